"""Structured output: grammars, how far each sequence has come in its own, and which tokens may follow.

A grammar is a text in the language of the llguidance library, made by `interleaf.frontend.grammar`. The library is
imported when the first one comes; it works on the bytes of tokens, and without the interpreter's lock.
See docs/structured_output.md.
"""

from __future__ import annotations

import copy
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
    from llguidance import LLMatcher, LLTokenizer

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
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, source, limits=LLParserLimits(**LIMITS), log_level=0)
    # The first mask takes a hundred times as long as others; what was found for it stays with the copies.
    matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError(f"The grammar cannot be used: {_reason(matcher)}")
    if matcher.is_stopped() and not matcher.is_accepting():
        raise GrammarError("The grammar cannot be used: no text follows it.")
    return Grammar(matcher, tokenizer.vocab_size, frozenset(tokenizer.eos_tokens))


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar, in its first state.

    Fields:
        vocab_size: bits of a mask.
        eos_token_ids: may follow wherever the text may end.
    """

    matcher: LLMatcher
    vocab_size: int
    eos_token_ids: frozenset[int]

    def start(
        self, stop_token_ids: Collection[int], token_ids: list[int], reasoning: ReasoningMarkers | None = None
    ) -> GrammarState:
        """The state of a sequence that has these output tokens already.

        Args:
            stop_token_ids: may follow wherever the text may end, besides `eos_token_ids`.
            reasoning: marks what may stand before the text.
        """
        tracker = None if reasoning is None else ReasoningTracker(reasoning)
        start = [] if reasoning is None else reasoning.start_token_ids
        ends = frozenset(stop_token_ids)
        state = GrammarState(self.matcher.deep_copy(), self.vocab_size, self.eos_token_ids, ends, tracker, start)
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
    eos_token_ids: frozenset[int]
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


def _reason(matcher: LLMatcher) -> str:
    return _line(matcher.get_error())


def _line(text: str) -> str:
    """What matters of a message of several lines, as the end of a sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    line = " ".join([lines[0], *(line for line in lines[1:] if line.startswith("error:"))])
    line = {"NoExtensionBias": "no text follows it"}.get(line, line)
    line = line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + "..."
    return line if line.endswith(".") else line + "."
