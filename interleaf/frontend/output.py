"""From what the engine emits to what a caller gets: text, stop strings, logprobs, merging of `n` sequences.

A stop string is found by its text alone, wherever token borders fall in it: the text ends at the
first character that completes a stop string (the longest one that does), and the token that
brought this character is the last. So the result depends neither on how tokens were grouped into
steps nor on whether the text is streamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from interleaf.frontend.detokenizer import IncrementalDetokenizer
from interleaf.frontend.embedding import embedding_of
from interleaf.messages import EngineOutput, EngineOutputs, FinishReason, TokenLogprobs
from interleaf.observe import RequestStatistics, get_logger
from interleaf.outputs import CompletionOutput, Logprob, PromptLogprobs, RequestMetrics, RequestOutput, SampleLogprobs
from interleaf.params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from interleaf.frontend.processor import ProcessedRequest
    from interleaf.frontend.tokenizer import Tokenizer

logger = get_logger(__name__)


class Detokenizer(Protocol):
    """What is needed of `IncrementalDetokenizer`."""

    def append(self, token_ids: list[int]) -> str:
        """The text that these tokens add; bytes of an unfinished character wait for the next ones."""

    def flush(self) -> str:
        """The text of whatever still waits."""


DetokenizerFactory = Callable[["Tokenizer", list[int], bool, bool], Detokenizer]


def sequence_id(request_id: str, index: int) -> str:
    """The engine's name of sequence `index` of a request."""
    return request_id if index == 0 else f"{request_id}.{index}"


class StopStringScanner:
    """Finds the first stop string in a text that comes in pieces.

    Keeps back text that could still become a stop string, unless stop strings stay in the output:
    then nothing that was released would have to be taken back.

    Fields:
        matched: the stop string that ended the text, or None.
    """

    def __init__(self, stop_strings: Sequence[str], include_in_output: bool) -> None:
        self.matched: str | None = None
        self._stops = tuple(stop_strings)
        self._include = include_in_output
        self._tail = ""
        """The longest end of the text so far that begins a stop string."""

    def feed(self, piece: str, may_stop: bool = True) -> str:
        """Add text; return what may be released of all that was added.

        Args:
            may_stop: False ignores stop strings that would end within this piece.
        """
        if not self._stops or not piece:
            return piece
        text = self._tail + piece
        released_before = len(self._tail) if self._include else 0
        found = self._first_match(text, len(self._tail)) if may_stop else None
        if found is not None:
            end, self.matched = found
            return text[released_before : end if self._include else end - len(self.matched)]
        self._tail = text[self._start_of_beginning(text) :]
        return text[released_before : len(text) if self._include else len(text) - len(self._tail)]

    def flush(self) -> str:
        """What was kept back, when no more text will come."""
        tail, self._tail = self._tail, ""
        return "" if self._include else tail

    def _first_match(self, text: str, old: int) -> tuple[int, str] | None:
        """(end, stop string) of the match that ends first behind `text[:old]`; of two, the longer one."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, old - len(stop) + 1))
            if start < 0:
                continue
            end = start + len(stop)
            if best is None or end < best[0] or (end == best[0] and len(stop) > len(best[1])):
                best = end, stop
        return best

    def _start_of_beginning(self, text: str) -> int:
        """Where the longest end of `text` starts that begins a stop string, but is none; `len(text)` for none."""
        earliest = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), earliest)
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1, earliest)
            if start >= 0:
                earliest = start
        return earliest


class LogprobFormatter:
    """Turns `TokenLogprobs` into dictionaries with each token's text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, entry: TokenLogprobs, with_text: bool) -> dict[int, Logprob]:
        """Token id -> Logprob: the sampled (or prompt) token first, then the likeliest ones in order."""
        ranks = (entry.rank, *range(1, len(entry.token_ids)))
        formatted: dict[int, Logprob] = {}
        for token, logprob, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=True):
            if token not in formatted:
                formatted[token] = Logprob(logprob, rank, self._text(token) if with_text else None)
        return formatted

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return self._texts[token]


class SequenceOutput:
    """What one sequence has generated so far.

    Text is made of tokens when it is needed: at once if it may have a stop string or is told as it comes, else at the
    end.

    Args:
        detokenizer: None leaves the text empty.
    """

    def __init__(self, index: int, params: SamplingParams, detokenizer: Detokenizer | None) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.logprobs: SampleLogprobs | None = None if params.logprobs is None else []
        self.cumulative_logprob: float | None = None if params.logprobs is None else 0.0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._min_tokens = params.min_tokens
        self._keep_stop_token = params.include_stop_str_in_output
        self._detokenizer = detokenizer
        self._scanner = StopStringScanner(params.stop_strings, params.include_stop_str_in_output)
        self._scans = bool(params.stop_strings)
        self._waits = params.output_kind is RequestOutputKind.FINAL_ONLY and not self._scans
        self._text = ""
        self._num_spelled = 0
        """Tokens that are in the text."""
        self._sent_characters = 0
        self._sent_tokens = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def update(self, news: EngineOutput, format_logprobs: LogprobFormatter) -> bool:
        """Take the engine's news; return whether a stop string ended a sequence that the engine still runs."""
        silent_last = news.finish_reason is FinishReason.STOP and not self._keep_stop_token
        if self._scans:
            self._scan(news.new_token_ids, silent_last)
        else:
            self.token_ids += news.new_token_ids
            if not self._waits or news.finished:
                self._spell(len(self.token_ids) - (silent_last and bool(news.new_token_ids)))
        if news.finished and self._scanner.matched is None:
            self._add_text(self._detokenizer.flush() if self._detokenizer else "")
        if news.logprobs:
            self._add_logprobs(news.logprobs, format_logprobs)
        if self._scanner.matched is not None:
            self.finish_reason, self.stop_reason = FinishReason.STOP, self._scanner.matched
            return not news.finished
        if news.finished:
            self._text += self._scanner.flush()
            self.finish_reason, self.stop_reason = news.finish_reason, news.stop_reason
        return False

    def end(self, reason: FinishReason, stop_reason: str | None) -> None:
        """End the sequence with what it has, text that was kept back included."""
        if self._waits:
            self._spell(len(self.token_ids))
        self._add_text(self._detokenizer.flush() if self._detokenizer else "")
        self._text += self._scanner.flush()
        self.finish_reason, self.stop_reason = reason, stop_reason

    def snapshot(self, delta: bool) -> CompletionOutput:
        """The sequence as the caller sees it: whole, or what came since the last delta."""
        text, token_ids, logprobs = self._text, self.token_ids, self.logprobs
        if delta:
            text, token_ids = text[self._sent_characters :], token_ids[self._sent_tokens :]
            logprobs = None if logprobs is None else logprobs[self._sent_tokens :]
            self._sent_characters, self._sent_tokens = len(self._text), len(self.token_ids)
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=list(token_ids),
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if logprobs is None else list(logprobs),
            finish_reason=None if self.finish_reason is None else str(self.finish_reason),
            stop_reason=self.stop_reason,
        )

    def _scan(self, tokens: Sequence[int], silent_last: bool) -> None:
        """Take tokens up to the one that completes a stop string."""
        for position, token in enumerate(tokens):
            self.token_ids.append(token)
            if not (silent_last and position == len(tokens) - 1):
                self._add_text(self._detokenizer.append([token]) if self._detokenizer else "")
            if self._scanner.matched is not None:
                break

    def _spell(self, end: int) -> None:
        """Make text of the tokens up to `end`, where there is none yet."""
        if self._detokenizer is not None and self._num_spelled < end:
            self._text += self._detokenizer.append(self.token_ids[self._num_spelled : end])
        self._num_spelled = end

    def _add_text(self, piece: str) -> None:
        self._text += self._scanner.feed(piece, may_stop=len(self.token_ids) > self._min_tokens)

    def _add_logprobs(self, entries: Iterable[TokenLogprobs], format_logprobs: LogprobFormatter) -> None:
        """One entry for each token that was kept: a stop string may have cut off the last ones."""
        if self.logprobs is None or self.cumulative_logprob is None:
            return
        for entry in entries:
            if len(self.logprobs) == len(self.token_ids):
                break
            self.logprobs.append(format_logprobs(entry, with_text=self._detokenizer is not None))
            self.cumulative_logprob += entry.logprobs[0]


class RequestState:
    """A live request: its prompt, and the output of its `n` sequences or its embedding."""

    def __init__(self, processed: ProcessedRequest, detokenizers: Sequence[Detokenizer | None]) -> None:
        request = processed.engine_request
        self.external_id = processed.external_id
        self.prompt = processed.prompt
        self.prompt_token_ids = request.prompt_token_ids
        self.kind = request.params.output_kind
        self.sequences = [SequenceOutput(i, request.params, detok) for i, detok in enumerate(detokenizers)]
        self.metrics = RequestMetrics(arrival_time=request.arrival_time)
        self.max_tokens = request.params.max_tokens
        self.num_cached_tokens = 0
        self._pooling = processed.pooling
        self._embedding: list[float] | None = None
        self._with_text = request.params.detokenize
        self._prompt_logprobs: PromptLogprobs | None = None if request.params.prompt_logprobs is None else [None]

    @property
    def finished(self) -> bool:
        for sequence in self.sequences:  # noqa: SIM110 - asked for each token; a generator costs more than all of it.
            if sequence.finish_reason is None:
                return False
        return True

    def update(self, news: EngineOutput, format_logprobs: LogprobFormatter, now: float) -> bool:
        """Take news of one sequence; see `SequenceOutput.update`."""
        if not self.metrics.scheduled_time:
            self.metrics.scheduled_time = news.scheduled_time
        self.num_cached_tokens = max(self.num_cached_tokens, news.num_cached_tokens)
        if self._prompt_logprobs is not None and news.index == 0:
            self._prompt_logprobs += [format_logprobs(entry, self._with_text) for entry in news.prompt_logprobs or []]
        if self._pooling is not None and news.embedding is not None:
            self._embedding = embedding_of(news.embedding, self._pooling)
        sequence = self.sequences[news.index]
        must_abort = sequence.update(news, format_logprobs)
        if sequence.finish_reason is not None and self.finished:
            self.metrics.finished_time = now
        return must_abort

    def end(self, reason: FinishReason, stop_reason: str | None = None) -> None:
        """End whatever sequences are unfinished."""
        for sequence in self.sequences:
            if not sequence.finished:
                sequence.end(reason, stop_reason)
        self.metrics.finished_time = time.monotonic()

    def output(self, indices: Iterable[int]) -> RequestOutput | None:
        """What to tell the caller after news of the sequences `indices`; None while there is nothing to tell."""
        if self.kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        delta = self.kind is RequestOutputKind.DELTA
        told = sorted(set(indices)) if delta else range(len(self.sequences))
        return RequestOutput(
            request_id=self.external_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=self._told_prompt_logprobs(delta),
            outputs=[self.sequences[index].snapshot(delta) for index in told],
            finished=self.finished,
            num_cached_tokens=self.num_cached_tokens,
            metrics=self.metrics,
            embedding=self._embedding,
        )

    def _told_prompt_logprobs(self, delta: bool) -> PromptLogprobs | None:
        """Deltas tell them once, when they are complete."""
        told = self._prompt_logprobs
        if delta and told is not None:
            if len(told) < len(self.prompt_token_ids):
                return None
            self._prompt_logprobs = None
        return told


@dataclass(slots=True)
class ProcessedOutputs:
    """What one step means for callers, and for the engine.

    Fields:
        request_outputs: by internal request id.
        abort_sequence_ids: sequences that a stop string ended, which the engine must be told.
        num_new_tokens: that the engine sent in this step.
    """

    request_outputs: dict[str, RequestOutput] = field(default_factory=dict)
    abort_sequence_ids: list[str] = field(default_factory=list)
    num_new_tokens: int = 0


@dataclass(slots=True)
class FollowedNews:
    """What one step means, before outputs are made of it.

    Fields:
        updated: internal request id -> its state and the sequences with news.
        num_new_tokens: by internal request id, as the engine sent them.
        errors: internal request id -> why the engine could not finish it.
        abort_sequence_ids: sequences that a stop string ended, which the engine must be told.
    """

    updated: dict[str, tuple[RequestState, list[int]]] = field(default_factory=dict)
    num_new_tokens: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    abort_sequence_ids: list[str] = field(default_factory=list)


class OutputProcessor:
    """Follows all live requests of an engine.

    Args:
        tokenizer: the model's.
        make_detokenizer: called with (tokenizer, prompt token ids, skip_special_tokens,
            spaces_between_special_tokens) for every sequence.
        statistics: where requests are counted; None is a new one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        make_detokenizer: DetokenizerFactory = IncrementalDetokenizer,
        statistics: RequestStatistics | None = None,
    ) -> None:
        self.statistics = RequestStatistics() if statistics is None else statistics
        self._tokenizer = tokenizer
        self._make_detokenizer = make_detokenizer
        self._format_logprobs = LogprobFormatter(tokenizer)
        self._states: dict[str, RequestState] = {}

    def add(self, processed: ProcessedRequest) -> RequestState:
        """Follow a request from now on."""
        request = processed.engine_request
        state = self._states[request.request_id] = RequestState(
            processed, [self._detokenizer(request.prompt_token_ids, request.params) for _ in range(request.params.n)]
        )
        return state

    def forget(self, request_id: str) -> None:
        """Follow a request no longer: it was aborted, and later news of it are ignored."""
        if self._states.pop(request_id, None) is not None:
            self.statistics.note_abort()

    def end(self, request_id: str, reason: FinishReason, stop_reason: str | None = None) -> None:
        """End a request from this side, with what it has; later news of it are ignored."""
        state = self._states.pop(request_id, None)
        if state is not None:
            state.end(reason, stop_reason)
            self._record(state)

    def process(self, news: EngineOutputs) -> ProcessedOutputs:
        """`follow`, and outputs for all requests that have something to tell."""
        followed = self.follow(news)
        result = ProcessedOutputs({}, followed.abort_sequence_ids, sum(followed.num_new_tokens.values()))
        for request_id, (state, indices) in followed.updated.items():
            request_output = state.output(indices)
            if request_output is not None:
                result.request_outputs[request_id] = request_output
        return result

    def follow(self, news: EngineOutputs) -> FollowedNews:
        """Take a step's news. Those of requests and sequences that have ended are ignored."""
        now = time.monotonic()
        if news.num_tokens:
            self.statistics.iteration_tokens.observe(news.num_tokens)
        followed = FollowedNews()
        num_new_tokens, updated = followed.num_new_tokens, followed.updated
        ended: list[str] = []
        for output in news.outputs:
            request_id = output.request_id
            num_new_tokens[request_id] = num_new_tokens.get(request_id, 0) + len(output.new_token_ids)
            state = self._states.get(request_id)
            if state is None or state.sequences[output.index].finish_reason is not None:
                continue
            if output.error is not None:
                logger.warning("Request %s ended with an error: %s", state.external_id, output.error)
                followed.errors[request_id] = output.error
            if self._update(state, output, now, followed):
                followed.abort_sequence_ids.append(sequence_id(request_id, output.index))
            if not output.new_token_ids and output.finish_reason is None:
                continue
            if request_id in updated:
                updated[request_id][1].append(output.index)
            else:
                updated[request_id] = state, [output.index]
            if state.sequences[output.index].finish_reason is not None and state.finished:
                ended.append(request_id)
        self.statistics.note_tokens(
            [(state.metrics, count) for name, (state, _) in updated.items() if (count := num_new_tokens[name])], now
        )
        for request_id in ended:
            self._record(self._states.pop(request_id))
        return followed

    def _update(self, state: RequestState, output: EngineOutput, now: float, followed: FollowedNews) -> bool:
        """`RequestState.update`; a fault in it is the end of this sequence, and of no other."""
        try:
            return state.update(output, self._format_logprobs, now)
        except Exception:
            logger.exception("output of request %s could not be processed", state.external_id)
            followed.errors[output.request_id] = "The output could not be turned into text."
            state.sequences[output.index].finish_reason = FinishReason.ERROR
            return not output.finished

    def _detokenizer(self, prompt_token_ids: list[int], params: SamplingParams) -> Detokenizer | None:
        if not params.detokenize:
            return None
        return self._make_detokenizer(
            self._tokenizer, prompt_token_ids, params.skip_special_tokens, params.spaces_between_special_tokens
        )

    def _record(self, state: RequestState) -> None:
        self.statistics.note_end(
            state.metrics,
            str(state.sequences[0].finish_reason),
            num_prompt_tokens=len(state.prompt_token_ids),
            num_cached_tokens=state.num_cached_tokens,
            generated=[len(sequence.token_ids) for sequence in state.sequences],
            max_tokens=state.max_tokens,
        )
