"""`interleaf serve` in a process of its own, and a client so small that it costs next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODEL = "tiny"


class Running:
    """A server that runs; `url` is where."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.url = self._address()
        self.port = int(self.url.rpartition(":")[2])

    def _address(self) -> str:
        begin = time.monotonic()
        while time.monotonic() - begin < 60 and self.process.poll() is None:
            for message in self.messages():
                if " is served at " in message:
                    return message.partition(" is served at ")[2].split(" ")[0]
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def messages(self, *levels: str) -> list[str]:
        """What the log says, at these levels or at all."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if not levels or line["level"] in levels]

    def children(self, module: str) -> list[int]:
        """Process ids of our children that run this module."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and module in (directory / "cmdline").read_text().split("\0"):
                    found.append(int(directory.name))
        return sorted(found)

    @property
    def engine_pid(self) -> int:
        [pid] = self.children("interleaf.engine.process")
        return pid

    def stop(self, timeout: float = 20) -> int:
        """Its exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(timeout)


@contextlib.contextmanager
def running(model: Path, directory: Path, *flags: str) -> Iterator[Running]:
    """A server for this model; what is left of it is killed at the end."""
    log = directory / "log"
    command = [sys.executable, "-m", "interleaf", "serve", str(model), "--port", "0", "--served-model-name", MODEL]
    command += ["--log-format", "json", *flags]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        yield Running(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


async def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and body of the answer, over a connection of its own."""
    reader, writer = await _send(port, method, path, body)
    raw = await reader.read()
    writer.close()
    head, _, answer = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), answer


async def ask_json(port: int, method: str, path: str, body: Any = None) -> Any:
    """The value that is answered with status 200."""
    status, raw = await ask(port, method, path, body)
    assert status == 200, (status, raw)
    return json.loads(raw)


async def stream(port: int, path: str, body: Any, events: list[Any] | None = None, limit: int | None = None) -> Any:
    """Events of a stream, up to its end; with `limit`, the client hangs up after that many."""
    events = [] if events is None else events
    reader, writer = await _send(port, "POST", path, {**body, "stream": True})
    try:
        status = int((await reader.readuntil(b"\r\n\r\n")).split()[1])
        assert status == 200, (status, await reader.read())
        while (line := await reader.readline()) and len(events) != limit:
            if line.startswith(b"data: "):
                events.append(line[6:-1].decode())
        return events
    finally:
        writer.close()


async def _send(port: int, method: str, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # HTTP/1.0: the body's end is the connection's, without the frames of chunks.
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + raw)
    return reader, writer


async def metrics(port: int) -> dict[str, float]:
    """Samples of /metrics, summed over labels."""
    status, raw = await ask(port, "GET", "/metrics")
    assert status == 200
    found: dict[str, float] = {}
    for line in raw.decode().splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0].split(" ")[0]
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> float:
    """Wait for something; returns how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "it takes too long"
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own: what it shares with others, such as code, is left out."""
    pages = [int(number) for number in Path(f"/proc/{pid}/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")
