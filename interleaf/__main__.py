"""`python -m interleaf` is the command `interleaf`."""

import sys

from interleaf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
