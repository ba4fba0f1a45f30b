"""A server process on the fake engine: `python -m tests.server.serve_fake SECONDS_A_STEP SHUTDOWN_TIMEOUT`.

Prints its port, then at its end what was called of the engine.
"""

from __future__ import annotations

import asyncio
import sys

from interleaf.server.launch import Listen, bind, serve
from interleaf.server.options import ServerOptions
from tests.server.conftest import MODEL
from tests.server.fake_async_engine import FakeAsyncEngine


async def main(pause: float, shutdown_timeout: float) -> None:
    engine = FakeAsyncEngine()
    engine.pause = pause
    engine.client.script = {"hi": "hello there", "u:hi;a:": "hello there"}
    listen = Listen(port=0)
    bound = bind(listen)
    print(bound.getsockname()[1], flush=True)
    await serve(engine, bound, listen, ServerOptions((MODEL,)), shutdown_timeout)
    print(engine.calls, engine.aborted, flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
