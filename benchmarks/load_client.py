"""Clients of the server's load test, in a process of their own that costs it next to nothing.

`measure` starts `python -m benchmarks.load_client` and gives it the requests. All of them are made into bytes before
the clock starts. Sockets don't block; one loop reads what has come from all of them, every few milliseconds, so that it
does not take a core from the server for each event. An answer is looked at when it has ended.
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

PAUSE = 0.005  # seconds between two looks at the sockets
EVENT = b"data: "
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"  # the last event, the frame of its chunk, and the chunk without contents
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Asked:
    """A completion of exactly `tokens` tokens; its client hangs up after `patience` events, if that is not None."""

    prompt: list[int]
    tokens: int
    patience: int | None = None


@dataclass(slots=True)
class Report:
    """What came of a load: seconds on the wall and of the client's own processor time, from the first connection on."""

    seconds: float = 0.0
    processor_seconds: float = 0.0
    tokens: int = 0  # in answers that came to their end
    events: int = 0
    hung_up: int = 0
    faults: list[str] = field(default_factory=list)


def measure(port: int, work: list[Asked], at_once: int, streamed: bool) -> Report:
    """Send this work to /v1/completions, so many requests at a time, from a process of its own."""
    job = {"port": port, "at_once": at_once, "streamed": streamed, "work": [asdict(one) for one in work]}
    command = [sys.executable, "-m", "benchmarks.load_client"]
    done = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
    return Report(**json.loads(done.stdout))


class Exchange:
    """A connection with its request and as much of its answer as has come."""

    __slots__ = ("_received", "_socket", "asked", "streamed")

    def __init__(self, port: int, asked: Asked, message: bytes, streamed: bool) -> None:
        self.asked = asked
        self.streamed = streamed
        self._received = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(message)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> bool:
        """Take what has come; False at the end."""
        try:
            piece = self._socket.recv(1 << 16)
        except ConnectionError:
            return False
        self._received += piece
        return bool(piece)

    def events(self) -> int:
        return self._received.count(EVENT)

    def impatient(self) -> bool:
        return self.asked.patience is not None and self.events() >= self.asked.patience

    def fault(self, ended: bool) -> str | None:
        """What is wrong with the answer, if anything is; one that was cut short needs no end."""
        if b" 200 " not in self._received[:16] or b'"error"' in self._received:
            return self._received.decode(errors="replace")
        if not ended:
            return None
        told = COMPLETION_TOKENS.findall(self._received)
        if not told or int(told[-1]) != self.asked.tokens:
            return f"{self.asked.tokens} tokens were asked for, and the answer says {told}"
        if self.streamed and not self._received.endswith(END):
            return f"the stream ends in {bytes(self._received[-40:])!r}"
        return None


def message(asked: Asked, streamed: bool) -> bytes:
    """The request as bytes."""
    body: dict[str, Any] = {"prompt": asked.prompt, "max_tokens": asked.tokens, "ignore_eos": True, "temperature": 0}
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(body).encode()
    head = [
        "POST /v1/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + raw


def run(port: int, at_once: int, streamed: bool, work: list[Asked]) -> Report:
    """Keep so many requests open until the work is done."""
    prepared = [(asked, message(asked, streamed)) for asked in work]
    report = Report()
    begin, own = time.monotonic(), time.process_time()
    waiting = (Exchange(port, asked, raw, streamed) for asked, raw in prepared)
    _exchange(waiting, at_once, report)
    report.seconds, report.processor_seconds = time.monotonic() - begin, time.process_time() - own
    return report


def _exchange(waiting: Iterator[Exchange], at_once: int, report: Report) -> None:
    poll = select.epoll()
    exchanges: dict[int, Exchange] = {}

    def start(number: int) -> None:
        for exchange in islice(waiting, number):
            exchanges[exchange.fileno()] = exchange
            poll.register(exchange, select.EPOLLIN)

    start(at_once)
    while exchanges:
        time.sleep(PAUSE)
        for descriptor, _ in poll.poll():
            exchange = exchanges[descriptor]
            ended = not exchange.read()
            if not ended and not exchange.impatient():
                continue
            del exchanges[descriptor]
            poll.unregister(exchange)
            exchange.close()
            start(1)
            _count(exchange, ended, report)


def _count(exchange: Exchange, ended: bool, report: Report) -> None:
    report.events += exchange.events()
    if (fault := exchange.fault(ended)) is not None:
        report.faults.append(fault)
    elif ended:
        report.tokens += exchange.asked.tokens
    else:
        report.hung_up += 1


def main() -> None:
    job = json.load(sys.stdin)
    report = run(job["port"], job["at_once"], job["streamed"], [Asked(**one) for one in job["work"]])
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
