"""A server process: signals, clients that go away, sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from interleaf.errors import ConfigError
from interleaf.server.launch import Listen, bind
from tests.server.conftest import MODEL

BODY = {"model": MODEL, "prompt": "hi", "stream": True}


class Process:
    """A running server."""

    def __init__(self, pause: float, shutdown_timeout: float) -> None:
        arguments = [sys.executable, "-m", "tests.server.serve_fake", str(pause), str(shutdown_timeout)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        deadline = time.monotonic() + 10
        while True:
            try:
                assert httpx.get(self.url + "/ready").status_code == 200
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit status and last words."""
        out, _ = self.process.communicate(timeout=15)
        return self.process.returncode, out


Serve = Callable[..., Process]


@pytest.fixture
def serve() -> Iterator[Serve]:
    processes: list[Process] = []

    def start(pause: float = 0.0, shutdown_timeout: float = 10.0) -> Process:
        processes.append(Process(pause, shutdown_timeout))
        return processes[-1]

    yield start
    for one in processes:
        one.process.kill()
        one.process.communicate()


def stream(url: str, results: list[Any]) -> threading.Thread:
    """Stream a completion in a thread; returns once its first event is there."""
    begun = threading.Event()

    def run() -> None:
        with httpx.stream("POST", url + "/v1/completions", json=BODY, timeout=30) as response:
            for line in response.iter_lines():
                begun.set()
                results.append(line)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    return thread


def test_sigterm_finishes_what_runs(serve: Serve) -> None:
    server = serve(pause=0.1)
    results: list[Any] = []
    thread = stream(server.url, results)
    server.signal()
    time.sleep(0.2)
    refused = httpx.post(server.url + "/v1/completions", json=BODY)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
    assert httpx.get(server.url + "/ready").status_code == 503
    thread.join()
    assert results[-2] == "data: [DONE]"
    status, words = server.wait()
    assert status == 0 and "('shutdown', 0)" in words


def test_what_does_not_end_in_time_is_told(serve: Serve) -> None:
    server = serve(pause=0.5, shutdown_timeout=0.2)
    results: list[Any] = []
    thread = stream(server.url, results)
    start = time.monotonic()
    server.signal()
    thread.join()
    assert results[-2] == "data: [DONE]" and '"error"' in results[-4]
    assert server.wait()[0] == 0 and time.monotonic() - start < 4


def test_a_second_signal_ends_at_once(serve: Serve) -> None:
    server = serve(pause=0.5)
    thread = stream(server.url, [])
    start = time.monotonic()
    server.signal()
    time.sleep(0.2)
    server.signal(signal.SIGINT)
    thread.join()
    assert server.wait()[0] == 0 and time.monotonic() - start < 4


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_aborts_its_request(serve: Serve, streamed: bool) -> None:
    server = serve(pause=0.5)
    if streamed:
        with httpx.stream("POST", server.url + "/v1/completions", json=BODY) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + "/v1/completions", json={**BODY, "stream": False, "request_id": "r"}, timeout=0.2)
    deadline = time.monotonic() + 2
    while httpx.get(server.url + "/load").json() != {"server_load": 0}:
        assert time.monotonic() < deadline
    server.signal()
    status, words = server.wait()
    assert status == 0 and "['cmpl-" in words


def test_an_idle_connection_does_not_hold_the_server_up(serve: Serve) -> None:
    server = serve()
    with httpx.Client() as client:
        client.get(server.url + "/ping")
        start = time.monotonic()
        server.signal()
        assert server.wait()[0] == 0 and time.monotonic() - start < 3


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            bind(Listen(port=taken.getsockname()[1]))
    for listen in (Listen(port=70000), Listen(host="no.such.host.invalid"), Listen(uds="/no/such/directory/socket")):
        with pytest.raises(ConfigError, match="cannot listen"):
            bind(listen)


def test_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen = Listen(uds=path)
    bind(listen).close()
    with bind(listen) as bound:
        assert os.path.exists(path) and listen.address(bound) == f"unix:{path}"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError):
        bind(Listen(uds=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "precious"
