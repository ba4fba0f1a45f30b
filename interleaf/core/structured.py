"""Structured output: grammars, how far each sequence has come in its own, and which tokens may follow.

A grammar is a text in the language of the llguidance library, made by `interleaf.frontend.grammar`. The library is
imported when the first one comes; it works on the bytes of tokens, and without the interpreter's lock.
See docs/structured_output.md.
"""

from __future__ import annotations

import copy
import ctypes
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interleaf.errors import GrammarError
from interleaf.messages import Vocabulary
from interleaf.reasoning import Phase, ReasoningMarkers, ReasoningTracker

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

MAX_CACHED_GRAMMARS = 64
COMPILE_THREADS = 2
MAX_REASON_CHARACTERS = 300
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 2_000_000,
    "max_grammar_size": 500_000,
    "max_lexer_states": 50_000,
    "max_items_in_row": 2_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "verbose_errors": False,
}
"""What a grammar may cost, in steps that the library counts: see docs/structured_output.md for seconds."""


class GrammarCompiler:
    """Compiles grammars for one vocabulary in threads of its own, and keeps the last ones.

    Args:
        vocabulary: the model's tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._grammars: OrderedDict[str, Future[Grammar]] = OrderedDict()

    def submit(self, source: str) -> Future[Grammar]:
        """The grammar of a source once it is compiled, or `GrammarError` with the reason why it cannot be."""
        with self._lock:
            found = self._grammars.get(source)
            if found is None:
                self._pool = self._pool or ThreadPoolExecutor(COMPILE_THREADS, "interleaf-grammar")
                found = self._grammars[source] = self._pool.submit(self._compile, source)
            self._grammars.move_to_end(source)
            while len(self._grammars) > MAX_CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
            return found

    def close(self) -> None:
        """Let the threads end; nothing is compiled afterwards."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, source: str) -> Grammar:
        with self._lock:
            self._tokenizer = self._tokenizer or open_tokenizer(self._vocabulary)
        return compile_grammar(self._tokenizer, source)


def open_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """The grammar library's own view of a vocabulary; takes about a second for a large one.

    Raises:
        GrammarError: the library cannot use it.
    """
    from llguidance import LLTokenizer

    if not vocabulary.eos_token_ids:
        raise GrammarError("Structured output needs a model with an end-of-sequence token.")
    try:
        return LLTokenizer(vocabulary.tokenizer, vocabulary.size, vocabulary.eos_token_ids)
    except Exception as error:
        # The library raises what it likes.
        raise GrammarError(
            f"Structured output does not work with this model's tokenizer: {_line(str(error))}"
        ) from None


def compile_grammar(tokenizer: LLTokenizer, source: str) -> Grammar:
    """Compile a grammar, and find out what may come first.

    Raises:
        GrammarError: it is wrong, too large, or no text follows it.
    """
    from llguidance import LLExecutor, LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, source, limits=LLParserLimits(**LIMITS), log_level=0)
    # The first mask takes a hundred times as long as others; what was found for it stays with the copies.
    mask = bytearray((tokenizer.vocab_size + 31) // 32 * 4)
    LLExecutor(1).unsafe_compute_mask_ptr([(matcher, 0)], _address(mask), len(mask), 1)
    if matcher.is_error():
        raise GrammarError(f"The grammar cannot be used: {_reason(matcher)}")
    if matcher.is_stopped() and not matcher.is_accepting():
        raise GrammarError("The grammar cannot be used: no text follows it.")
    return Grammar(matcher, tokenizer.vocab_size)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar, in its first state.

    Fields:
        vocab_size: bits of a mask.
    """

    matcher: LLMatcher
    vocab_size: int

    def start(
        self, stop_token_ids: Collection[int], token_ids: list[int], reasoning: ReasoningMarkers | None = None
    ) -> GrammarState:
        """The state of a sequence that has these output tokens already.

        Args:
            stop_token_ids: may follow wherever the text may end, besides the vocabulary's own.
            reasoning: marks what may stand before the text.
        """
        tracker = None if reasoning is None else ReasoningTracker(reasoning)
        start = [] if reasoning is None else reasoning.start_token_ids
        state = GrammarState(self.matcher.deep_copy(), self.vocab_size, frozenset(stop_token_ids), tracker, start)
        state.accept(token_ids)
        return state


@dataclass(slots=True)
class GrammarState:
    """How far one sequence has come in its grammar.

    Fields:
        tracker: of reasoning, to which the grammar does not apply.
        reasoning_start: the tokens that would begin it.
        undecided: first tokens that may yet turn out to be that beginning; the matcher has not seen them.
    """

    matcher: LLMatcher
    vocab_size: int
    stop_token_ids: frozenset[int]
    tracker: ReasoningTracker | None
    reasoning_start: list[int]
    undecided: list[int] = field(default_factory=list)

    @property
    def error(self) -> str | None:
        """Why the sequence cannot go on, if it cannot: a step took too long, or a token did not fit."""
        return _reason(self.matcher) if self.matcher.is_error() else None

    @property
    def phase(self) -> Phase:
        return Phase.ANSWER if self.tracker is None else self.tracker.phase

    def accept(self, token_ids: list[int]) -> None:
        """Go on behind tokens that were sampled."""
        for token_id in token_ids:
            before = self.phase
            if self.tracker is not None:
                self.tracker.append(token_id)
            if before is Phase.ANSWER:
                self._consume(token_id)
            elif before is Phase.UNDECIDED:
                self.undecided.append(token_id)
                if self.phase is not Phase.UNDECIDED:
                    held_back, self.undecided = self.undecided, []
                    for token in held_back if self.phase is Phase.ANSWER else ():
                        self._consume(token)

    def fitting(self, token_ids: list[int]) -> list[int]:
        """The longest beginning of guessed tokens that can be told to be let through."""
        if self.phase is Phase.UNDECIDED:
            return []
        num_free = min(self.num_free(token_ids), len(token_ids))
        return token_ids[: num_free + self.matcher.validate_tokens(token_ids[num_free:])]

    def forced(self) -> list[int]:
        """The tokens that must follow, as the tokenizer would write the only text that is possible."""
        return self.matcher.compute_ff_tokens() if self.phase is Phase.ANSWER else []

    def num_free(self, drafts: list[int]) -> int:
        """How many of the next tokens the grammar does not apply to, if they are these and the one behind them."""
        if self.tracker is None or self.tracker.phase is not Phase.REASONING:
            return 0
        tracker = copy.deepcopy(self.tracker)
        for i, draft in enumerate(drafts):
            tracker.append(draft)
            if tracker.is_over:
                return i + 1
        return len(drafts) + 1

    def _consume(self, token_id: int) -> None:
        if token_id not in self.stop_token_ids or self.matcher.validate_tokens([token_id]):
            self.matcher.consume_token(token_id)


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """A sequence that is about to sample: one mask for its next token, and one behind each of its drafts."""

    sequence_id: str
    state: GrammarState
    drafts: list[int]


class PendingMasks:
    """Masks that are being filled.

    Fields:
        place_of: sequence -> its first mask; the one behind its draft i is i + 1 further.
        row_bytes: of a mask: bit t % 8 of byte t // 8 tells whether token t may follow.
    """

    def __init__(self, place_of: dict[str, int], row_bytes: int, filled: Future[bytearray]) -> None:
        self.place_of = place_of
        self.row_bytes = row_bytes
        self._filled = filled

    def wait(self) -> bytearray:
        """All masks, one behind the other."""
        return self._filled.result()


class MaskFiller:
    """Fills the masks of a step in a thread beside the one that computes it.

    Args:
        num_threads: of the library's own, among which the sequences are divided.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._thread = ThreadPoolExecutor(1, "interleaf-masks")
        self._executor: LLExecutor | None = None

    def fill(self, wanted: list[MaskRequest]) -> PendingMasks:
        """Begin to fill; the states must be left alone until the masks are there."""
        place_of: dict[str, int] = {}
        place = 0
        for one in wanted:
            place_of[one.sequence_id] = place
            place += 1 + len(one.drafts)
        row_bytes = (wanted[0].state.vocab_size + 31) // 32 * 4
        return PendingMasks(place_of, row_bytes, self._thread.submit(self._fill, wanted, place_of, place, row_bytes))

    def close(self) -> None:
        self._thread.shutdown()

    def _fill(self, wanted: list[MaskRequest], place_of: dict[str, int], count: int, row_bytes: int) -> bytearray:
        from llguidance import LLExecutor

        self._executor = self._executor or LLExecutor(self._num_threads)
        # What is not filled lets everything through: reasoning, and what stands behind a draft that ends its sequence.
        masks = bytearray(b"\xff") * (count * row_bytes)
        plain: list[tuple[LLMatcher, int]] = []
        drafted: list[tuple[LLMatcher, int, list[int]]] = []
        for one in wanted:
            state, num_free = one.state, one.state.num_free(one.drafts)
            place, drafts = place_of[one.sequence_id] + num_free, one.drafts[num_free:]
            if drafts:
                drafted.append((state.matcher, place, drafts))
            elif num_free <= len(one.drafts) and not state.undecided:
                plain.append((state.matcher, place))
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, _address(masks), row_bytes, count)
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, _address(masks), row_bytes, count)
        for one in wanted:
            rows = _Rows(masks, row_bytes, place_of[one.sequence_id])
            if one.state.phase is Phase.UNDECIDED:
                _let_reasoning_begin(one.state, rows)
            elif one.state.stop_token_ids:
                _let_stop(one, rows)
        return masks


@dataclass(slots=True)
class _Rows:
    """The masks of one sequence."""

    masks: bytearray
    row_bytes: int
    place: int

    def allow(self, number: int, token_id: int) -> None:
        self.masks[(self.place + number) * self.row_bytes + token_id // 8] |= 1 << token_id % 8

    def set(self, number: int, mask: bytes) -> None:
        start = (self.place + number) * self.row_bytes
        self.masks[start : start + self.row_bytes] = mask.ljust(self.row_bytes, b"\0")


def _let_stop(one: MaskRequest, rows: _Rows) -> None:
    """Let a request's own stop tokens through wherever its text may end."""
    matcher, first = one.state.matcher, one.state.num_free(one.drafts)
    num_taken = 0
    for number in range(first, len(one.drafts) + 1):
        if matcher.is_accepting():
            for token_id in one.state.stop_token_ids:
                rows.allow(number, token_id)
        if number == len(one.drafts) or not matcher.validate_tokens([one.drafts[number]]):
            break
        matcher.consume_token(one.drafts[number])
        num_taken += 1
    if num_taken:
        matcher.rollback(num_taken)


def _let_reasoning_begin(state: GrammarState, rows: _Rows) -> None:
    """Let the next token of the mark through that begins the reasoning, besides what the grammar does."""
    undecided = state.undecided
    if undecided:
        mask = b""
        if state.matcher.validate_tokens(undecided) == len(undecided):
            state.matcher.consume_tokens(undecided)
            mask = state.matcher.compute_bitmask()
            state.matcher.rollback(len(undecided))
        rows.set(0, mask)
    rows.allow(0, state.reasoning_start[len(undecided)])


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _reason(matcher: LLMatcher) -> str:
    return _line(matcher.get_error())


def _line(text: str) -> str:
    """What matters of a message of several lines, as the end of a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    line = " ".join([lines[0], *(line for line in lines[1:] if line.startswith("error:"))])
    line = {"NoExtensionBias": "no text follows it"}.get(line, line)
    line = line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + "..."
    return line if line.endswith(".") else line + "."
