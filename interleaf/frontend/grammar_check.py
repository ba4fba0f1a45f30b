"""Whether a grammar can be used, found out in a process that may die of it.

Grammars come from strangers. Some of a few lines take the grammar library hours, or more stack than there is, and
nothing can stop a thread. So each is first compiled in a process of its own, which is killed if that takes too long;
what comes through is compiled again by the engine, in about the time that it took here.

This module is also that process: `python -m interleaf.frontend.grammar_check` reads a `Vocabulary` and then sources
from its standard input, and answers each with the reason why it cannot be used, or with nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import IO

import msgspec

from interleaf.errors import EngineError, GrammarError
from interleaf.messages import Vocabulary

CHECK_SECONDS = 2.0
"""Of processor time: what a grammar may take does not depend on what else the machine does."""
PATIENCE_SECONDS = 60.0
"""For an answer, or for the process to read the largest vocabulary, on a busy machine."""
MEMORY_BYTES = 1 << 31
STACK_BYTES = 1 << 22
"""Half of what the engine's threads have."""
MAX_REMEMBERED = 1024
TOO_SLOW = "The grammar takes too long to compile: make it smaller."
TOO_LARGE = "The grammar takes too much memory or is nested too deeply: make it smaller."
VERDICTS = {-signal.SIGPROF: TOO_SLOW, **dict.fromkeys((-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT), TOO_LARGE)}
"""How the process ended -> what that tells of the grammar."""

LENGTH = struct.Struct("<I")


class GrammarChecker:
    """Checks grammars for one vocabulary; the process is started by the first one. May be used by several threads.

    Args:
        vocabulary: gives the model's tokens.
        seconds: of processor time that a grammar may take.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary], seconds: float = CHECK_SECONDS) -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._unusable: GrammarError | None = None
        """Why no grammar can be checked for this vocabulary."""
        self._reasons: OrderedDict[bytes, str] = OrderedDict()
        """Digest of a source -> why it was refused, or nothing."""

    def check(self, source: str) -> None:
        """
        Raises:
            GrammarError: the grammar is wrong or too large, or takes too much time or memory.
            EngineError: it could not be checked.
        """
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if digest not in self._reasons:
                self._reasons[digest] = self._ask(source)
                if len(self._reasons) > MAX_REMEMBERED:
                    self._reasons.popitem(last=False)
            self._reasons.move_to_end(digest)
            reason = self._reasons[digest]
        if reason:
            raise GrammarError(reason)

    def close(self) -> None:
        """End the process; idempotent."""
        with self._lock:
            self._kill()

    def _ask(self, source: str) -> str:
        for _ in range(2):
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None, "both are pipes"
            try:
                _write(process.stdin, source.encode("utf-8", "surrogatepass"))
                return _read_within(process.stdout, PATIENCE_SECONDS).decode()
            except TimeoutError:
                self._kill()
                return TOO_SLOW
            except OSError:
                verdict = VERDICTS.get(process.wait(PATIENCE_SECONDS))
                self._kill()
                if verdict is not None:
                    return verdict
        raise EngineError("The grammar could not be checked, as the process that does it was ended twice: try again.")

    def _start(self) -> subprocess.Popen[bytes]:
        """
        Raises:
            GrammarError: the vocabulary cannot be used.
            EngineError: it did not start.
        """
        if self._unusable is not None:
            raise self._unusable
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "interleaf.frontend.grammar_check", str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        try:
            _write(process.stdin, msgspec.msgpack.encode(self._vocabulary()))
            reason = _read_within(process.stdout, PATIENCE_SECONDS).decode()
        except OSError:
            self._kill()
            raise EngineError("The process that checks grammars did not start: see the log, and try again.") from None
        if reason:
            self._kill()
            self._unusable = GrammarError(reason)
            raise self._unusable
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # What could not be written is of no interest any more.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _write(pipe: IO[bytes], raw: bytes) -> None:
    pipe.write(LENGTH.pack(len(raw)) + raw)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """
    Raises:
        OSError: the other side is gone.
    """
    header = pipe.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise BrokenPipeError
    return pipe.read(LENGTH.unpack(header)[0])


def _read_within(pipe: IO[bytes], seconds: float) -> bytes:
    """
    Raises:
        TimeoutError: nothing came in time.
        OSError: the other side is gone.
    """
    if not select.select([pipe], [], [], seconds)[0]:
        raise TimeoutError
    return _read(pipe)


def answer_all(seconds: float) -> None:
    """Answer until the standard input ends; a source that takes longer than this ends the process."""
    from interleaf.core.structured import compile_grammar, open_tokenizer

    _limit()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        tokenizer = open_tokenizer(msgspec.msgpack.decode(_read(requests), type=Vocabulary))
        _write(answers, b"")
        while True:
            source = _read(requests).decode("utf-8", "surrogatepass")
            # The signal ends the process, whatever it is doing.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                compile_grammar(tokenizer, source)
                answer = ""
            except GrammarError as error:
                answer = str(error)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            _write(answers, answer.encode())
    except GrammarError as error:
        _write(answers, str(error).encode())
    except BrokenPipeError:
        pass


def _limit() -> None:
    """Die of too much memory, and without a core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    # Ctrl-C is for the parent, which closes the pipes when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.stack_size(STACK_BYTES)
    working = threading.Thread(target=answer_all, args=(float(sys.argv[1]),))
    working.start()
    working.join()
