"""`python -m interleaf.entrypoints.openai.api_server --model MODEL` is `interleaf serve --model MODEL`."""

from __future__ import annotations

import sys

from interleaf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
