"""How a driver talks: a line of JSON in, a line of JSON out.

A driver runs in its engine's environment, where interleaf is not installed, and imports nothing but that engine and
this file. Its standard output belongs to the protocol; what the engine prints goes to standard error.
"""

import json
import os
import sys
import time


def drive(load):
    """Load with `load(model, precision, threads)`, which returns `prepare(job)`; then serve jobs until input ends.

    `prepare` returns `run()`, whose call alone is timed, and which returns the number of tokens that it generated.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begin = time.monotonic()
    prepare = load(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(json.dumps({"seconds": time.monotonic() - begin}), file=channel, flush=True)
    for line in sys.stdin:
        run = prepare(json.loads(line))
        begin = time.monotonic()
        generated = run()
        seconds = time.monotonic() - begin
        print(json.dumps({"seconds": seconds, "output_tokens": generated}), file=channel, flush=True)
