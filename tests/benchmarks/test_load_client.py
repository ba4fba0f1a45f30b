from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.load_client import Asked, run

HEAD = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(contents: str) -> str:
    return f"{len(contents):x}\r\n{contents}\r\n"


def answer(tokens: int, done: bool = True) -> str:
    """A stream of an event for each token, and of one with the usage."""
    events = [f'data: {{"choices": [{{"text": "{number}"}}]}}\n\n' for number in range(tokens)]
    events.append(f'data: {{"choices": [], "usage": {{"prompt_tokens": 2, "completion_tokens": {tokens}}}}}\n\n')
    return HEAD + "".join(map(chunk, [*events, *["data: [DONE]\n\n"] * done, ""]))


@contextmanager
def server(raw: str) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server that answers this, in two pieces, and the requests that it was sent."""
    requests: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            requests.append(self.request.recv(1 << 16))
            half = len(raw) // 2
            self.request.sendall(raw[:half].encode())
            self.request.sendall(raw[half:].encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listening.server_address[1], requests
        finally:
            listening.shutdown()
            thread.join()


def test_streams_are_counted() -> None:
    with server(answer(5)) as (port, requests):
        report = run(port, 3, True, [Asked([1, 2], 5)] * 7)
    assert (report.tokens, report.events, report.hung_up, report.faults) == (35, 7 * 7, 0, [])
    assert len(requests) == 7
    assert all(b'"prompt": [1, 2]' in raw and b'"max_tokens": 5' in raw for raw in requests)


def test_an_impatient_client_hangs_up() -> None:
    with server(answer(500)) as (port, _):
        report = run(port, 2, True, [Asked([1], 500, patience=1), Asked([1], 500)])
    assert (report.tokens, report.hung_up, report.faults) == (500, 1, [])


def test_what_is_wrong_is_a_fault() -> None:
    refused = "HTTP/1.1 429 Too Many Requests\r\n\r\n" + '{"error": {"message": "full"}}'
    for raw in (answer(4), answer(5, done=False), answer(5)[:-5], refused, HEAD + chunk('data: {"error": {}}\n\n'), ""):
        with server(raw) as (port, _):
            report = run(port, 1, True, [Asked([1], 5)])
        assert len(report.faults) == 1, raw
        assert not report.tokens


def test_a_whole_answer_needs_no_last_event() -> None:
    raw = 'HTTP/1.1 200 OK\r\n\r\n{"usage": {"prompt_tokens": 1, "completion_tokens": 5}}'
    with server(raw) as (port, requests):
        assert not run(port, 1, False, [Asked([1], 5)]).faults
        assert run(port, 1, False, [Asked([1], 6)]).faults
    assert b"stream" not in requests[0]
