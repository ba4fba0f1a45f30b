"""The engine process at its socket: what it says, what it shrugs off, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from interleaf.config import EngineArgs
from interleaf.engine import wire
from interleaf.engine.step_record import read_step_record
from interleaf.messages import (
    AbortRequests,
    AbortSequences,
    Call,
    EngineOutputs,
    EngineRequest,
    FinishReason,
    FromEngine,
    Hello,
    Ping,
    Pong,
    Ready,
    Reply,
    SchedulerStats,
    StartFailure,
    ToEngine,
)
from interleaf.observe import LogSettings
from interleaf.params import SamplingParams
from tests.engine import faulty_engine
from tests.loader import tiny


class FrontEnd:
    """One connection to an engine, with blocking reads."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self._socket.connect(address)

    def send(self, *messages: ToEngine) -> None:
        for message in messages:
            self._socket.send(wire.encode(message))

    def send_raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> FromEngine:
        return wire.decode_from_engine(self._socket.recv())

    def until(self, wanted: Callable[[Any], Any]) -> Any:
        """The first message of which `wanted` is true."""
        while not wanted(message := self.receive()):
            pass
        return message

    def call(self, utility: str) -> Reply:
        self.send(Call(77, utility))
        reply: Reply = self.until(lambda message: isinstance(message, Reply) and message.number == 77)
        return reply

    def tokens(self, request_id: str) -> tuple[list[int], FinishReason | None]:
        """All tokens of a request with one sequence, up to its end."""
        tokens: list[int] = []
        while True:
            news = self.receive()
            for output in news.outputs if isinstance(news, EngineOutputs) else []:
                if output.request_id == request_id:
                    tokens += output.new_token_ids
                    if output.finished:
                        return tokens, output.finish_reason

    def close(self) -> None:
        self._context.destroy(linger=0)


class Engine:
    """An engine process that is our child."""

    def __init__(self, directory: Path, module: str = "interleaf.engine.process", **args: Any) -> None:
        self.record = directory / "step"
        self.address = f"ipc://{directory}/socket"
        raw = wire.encode(wire.EngineStart(EngineArgs(**args), self.address, str(self.record)))
        self.process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(wire.START_LENGTH.pack(len(raw)) + raw)
        self.process.stdin.flush()
        self._front_ends: list[FrontEnd] = []

    def front_end(self) -> FrontEnd:
        front_end = FrontEnd(self.address)
        self._front_ends.append(front_end)
        front_end.send(Hello())
        return front_end

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def close(self) -> None:
        for front_end in self._front_ends:
            front_end.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("engine-model") / "tiny.gguf"
    tiny.tiny_gguf(path)
    return str(path)


@pytest.fixture
def make_engine(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[MakeEngine]:
    engines = []

    def make(module: str = "interleaf.engine.process", **args: Any) -> Engine:
        args = {"model": model, "kv_cache_memory_bytes": 1 << 24, "threads": 1} | args
        engines.append(Engine(tmp_path_factory.mktemp("e"), module, **args))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(name: str, length: int = 5, **params: Any) -> EngineRequest:
    params = {"seed": 1, "temperature": 0.8, "max_tokens": 20, "ignore_eos": True} | params
    return EngineRequest(name, list(range(3, 3 + length)), SamplingParams(**params))


def test_it_serves_several_front_ends_each_with_its_own_news(make_engine: MakeEngine) -> None:
    engine = make_engine()
    one, two = engine.front_end(), engine.front_end()
    for front_end in (one, two):
        ready = front_end.until(lambda message: isinstance(message, Ready))
        assert ready.config.model.vocab_size == 384 and ready.config.cache.num_blocks > 0
    one.send(request("a"))
    two.send(request("b"))
    alone, reason = one.tokens("a")
    assert (len(alone), reason) == (20, FinishReason.LENGTH)
    assert two.tokens("b")[0] == alone
    two.send(request("c", seed=5))
    assert two.tokens("c")[0] != alone
    # A front end cannot end what another asked for.
    one.send(request("d", max_tokens=200))
    two.send(AbortRequests(["d"]), AbortSequences(["d"]))
    assert len(one.tokens("d")[0]) == 200


HOSTILE = [
    b"",
    b"\xc1",
    b"\x90",
    b"garbage",
    b"\x91" * 100_000,
    msgspec.msgpack.encode(["Nothing"]),
    msgspec.msgpack.encode(["EngineRequest"]),
    msgspec.msgpack.encode(["EngineRequest", "a", [1], {"temperature": -1.0}]),
    msgspec.msgpack.encode(["EngineRequest", "a", [1], {"n": 10**9}]),
    msgspec.msgpack.encode(["EngineRequest", "a", ["x"], {}]),
    msgspec.msgpack.encode(["EngineRequest", 5, [1], {}]),
    msgspec.msgpack.encode(["AbortRequests", [["a"]]]),
    msgspec.msgpack.encode(["Ready", {}]),
    wire.encode(request("a"))[:-3],
]
REFUSED = [
    request("bad id."),
    request("no-seed", seed=None),
    request("empty", length=0),
    request("long", length=100_000),
    EngineRequest("token", [10**6], SamplingParams(seed=1)),
    EngineRequest("resumed", [1], SamplingParams(seed=1, n=2), resumed_token_ids=[[1]]),
]


def test_hostile_frames_do_not_harm_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    hostile, honest = engine.front_end(), engine.front_end()
    honest.send(request("before", max_tokens=300))
    for frame in HOSTILE:
        hostile.send_raw(frame)
    hostile.send_raw(b"one", b"two", b"three")
    rng = random.Random(1)
    good = wire.encode(request("mutated"))
    for _ in range(300):
        mutated = bytearray(good)
        mutated[rng.randrange(2, len(mutated))] = rng.randrange(256)
        hostile.send_raw(bytes(mutated))
    hostile.send(request("twice", max_tokens=300), request("twice"), *REFUSED, Call(1, "no such utility"))
    for refused in REFUSED:
        assert hostile.tokens(refused.request_id) == ([], FinishReason.ERROR)
    assert len(honest.tokens("before")[0]) == 300
    assert engine.process.poll() is None
    assert hostile.call("no such utility").error is not None


def test_utilities_are_answered(make_engine: MakeEngine) -> None:
    front_end = make_engine().front_end()
    assert front_end.call("check_health").value is True
    front_end.send(request("a", length=40))
    tokens = front_end.tokens("a")[0]
    stats = front_end.call("stats").value
    assert isinstance(stats, SchedulerStats)
    assert stats.num_generation_tokens == 20 and stats.num_free_blocks == stats.num_blocks
    blocks = front_end.call("block_map").value
    assert isinstance(blocks, bytes) and len(blocks) == stats.num_blocks and set(blocks) == {0, 1}
    assert front_end.call("reset_prefix_cache").value is True
    assert front_end.call("is_sleeping").value is False
    front_end.call("sleep")
    assert front_end.call("is_sleeping").value is True
    front_end.send(request("b", length=40))
    assert front_end.call("stats").value.num_waiting == 1  # type: ignore[union-attr]
    front_end.call("wake_up")
    assert front_end.tokens("b")[0] == tokens


def test_an_abort_frees_the_blocks_and_is_told_when_idle(make_engine: MakeEngine) -> None:
    front_end = make_engine().front_end()
    front_end.send(request("a", max_tokens=400))
    front_end.until(lambda message: isinstance(message, EngineOutputs) and message.outputs)
    front_end.send(AbortRequests(["a"]))
    idle = front_end.until(lambda message: isinstance(message, EngineOutputs) and not message.outputs)
    assert idle.stats.num_running == 0 and idle.stats.num_free_blocks == idle.stats.num_blocks


def test_requests_of_a_front_end_that_went_away_are_dropped(make_engine: MakeEngine) -> None:
    engine = make_engine(faulty_engine.MODULE)
    staying, leaving = engine.front_end(), engine.front_end()
    leaving.send(request("a", max_tokens=450))
    leaving.until(lambda message: isinstance(message, EngineOutputs) and message.outputs)
    leaving.close()
    deadline = time.monotonic() + 1.0
    while staying.call("stats").value.num_running:  # type: ignore[union-attr]
        assert time.monotonic() < deadline, "450 steps take longer"


def test_a_ping_is_answered_in_the_middle_of_a_step(make_engine: MakeEngine) -> None:
    engine = make_engine(faulty_engine.MODULE)
    front_end = engine.front_end()
    front_end.until(lambda message: isinstance(message, Ready))
    front_end.send(Ping(1))
    assert front_end.until(lambda message: isinstance(message, Pong)).step_seconds < 0.3
    front_end.send(EngineRequest("a", [faulty_engine.HANGING], SamplingParams(seed=1)))
    while not read_step_record(engine.record)[1]:
        time.sleep(0.01)
    time.sleep(0.5)
    front_end.send(Ping(2))
    pong = front_end.until(lambda message: isinstance(message, Pong))
    assert pong.number == 2 and pong.step_seconds > 0.3
    assert read_step_record(engine.record)[1] == {"a"}


def test_it_says_why_it_cannot_start(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=0)
    failure = engine.front_end().receive()
    assert isinstance(failure, StartFailure)
    assert failure.error == "ConfigError" and "max_num_seqs" in failure.message
    assert engine.process.wait(10) == 1


def test_its_log_has_the_format_it_was_told(tmp_path: Path, model: str) -> None:
    args = EngineArgs(model=model, kv_cache_memory_bytes=1 << 24, threads=1)
    start = wire.EngineStart(
        args, f"ipc://{tmp_path}/socket", "/no/such/directory/step", LogSettings("INFO", json=True)
    )
    raw = wire.encode(start)
    with subprocess.Popen(
        [sys.executable, "-m", "interleaf.engine.process"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(wire.START_LENGTH.pack(len(raw)) + raw)
        process.stdin.flush()
        [line] = process.stderr.readlines()
        assert process.wait(10) == 1
    told = json.loads(line)
    assert told["level"] == "CRITICAL" and "FileNotFoundError" in told["exception"]


def test_it_ends_when_asked(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.front_end().call("shutdown").error is None
    assert engine.process.wait(10) == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_it_ends_with_its_parent_and_leaves_no_files(tmp_path: Path, model: str, stopped: bool) -> None:
    """The parent is a process of its own here, that dies with the engine in the middle of a step."""
    program = (
        "import sys; from pathlib import Path; from tests.engine.test_process import *\n"
        "directory = Path(sys.argv[1]) / 'd'; directory.mkdir()\n"
        "engine = Engine(directory, faulty_engine.MODULE, model=sys.argv[2], kv_cache_memory_bytes=1 << 24)\n"
        "front_end = engine.front_end()\n"
        "front_end.send(EngineRequest('a', [faulty_engine.HANGING], SamplingParams(seed=1)))\n"
        "while not read_step_record(engine.record)[1]: time.sleep(0.01)\n"
        "print(engine.process.pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), model], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "d").exists()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_to_the_whole_service_leave_it_to_the_parent(make_engine: MakeEngine) -> None:
    engine = make_engine()
    front_end = engine.front_end()
    front_end.until(lambda message: isinstance(message, Ready))
    for number in (signal.SIGINT, signal.SIGTERM):
        engine.process.send_signal(number)
    assert front_end.call("check_health").value is True


def test_an_idle_engine_uses_no_processor(make_engine: MakeEngine) -> None:
    engine = make_engine()
    front_end = engine.front_end()
    front_end.send(request("a"))
    front_end.tokens("a")
    time.sleep(0.3)
    before = engine.cpu_ticks()
    time.sleep(2.0)
    assert engine.cpu_ticks() - before <= 2, "one hundredth of two seconds"
