"""Text, stop strings, logprobs and merging, from scripted engine outputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interleaf.frontend.output import OutputProcessor, StopStringScanner
from interleaf.frontend.processor import ProcessedRequest, Processor, RequestInput
from interleaf.messages import EngineOutput, EngineOutputs, FinishReason, TokenLogprobs
from interleaf.outputs import CompletionOutput, Logprob, RequestOutput
from interleaf.params import RequestOutputKind, SamplingParams
from tests.fake_engine import EOS, FakeDetokenizer, FakeTokenizer, engine_config

DELTA, CUMULATIVE, FINAL_ONLY = RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY


class Pieces:
    """A detokenizer whose k-th token stands for the k-th text, and whose last text waits for the flush."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = list(texts)

    def append(self, token_ids: list[int]) -> str:
        return "".join(self._texts.pop(0) for _ in token_ids)

    def flush(self) -> str:
        return "".join(self._texts)


def processed_request(prompt: str = "p", **params: Any) -> ProcessedRequest:
    params.setdefault("max_tokens", None)
    return Processor(engine_config(), FakeTokenizer(), {}).process(RequestInput(prompt, SamplingParams(**params)))


def processor_for(request: ProcessedRequest, detokenizer: Any = FakeDetokenizer) -> OutputProcessor:
    processor = OutputProcessor(FakeTokenizer(), detokenizer)
    processor.add(request)
    return processor


def news(text: str, finish: FinishReason | None = None, index: int = 0, **fields: Any) -> EngineOutput:
    return EngineOutput("0", index, [ord(c) for c in text], finish_reason=finish, **fields)


def step(processor: OutputProcessor, *outputs: EngineOutput) -> tuple[RequestOutput | None, list[str]]:
    result = processor.process(EngineOutputs(list(outputs)))
    return result.request_outputs.get("0"), result.abort_sequence_ids


def only(output: RequestOutput | None) -> CompletionOutput:
    assert output is not None
    [completion] = output.outputs
    return completion


# ---- stop strings against brute force ----


def brute_force(pieces: list[str], stops: list[str], include: bool, min_tokens: int) -> tuple[str, int, str | None]:
    """(text, tokens kept, stop string) from looking at the whole text; the flush counts to the last token."""
    text = "".join(pieces)
    num_tokens = len(pieces) - 1
    owners = [min(i, num_tokens - 1) for i, piece in enumerate(pieces) for _ in piece]
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed and owners[end - 1] + 1 > min_tokens:
            stop = max(completed, key=len)
            return (text[:end] if include else text[: end - len(stop)]), owners[end - 1] + 1, stop
    return text, num_tokens, None


letters = st.text("ab", max_size=4)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(letters, min_size=2, max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    include=st.booleans(),
    min_tokens=st.integers(0, 4),
    groups=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    kind=st.sampled_from([DELTA, CUMULATIVE, FINAL_ONLY]),
)
def test_any_split_of_a_text_stops_where_the_whole_text_does(
    pieces: list[str], stops: list[str], include: bool, min_tokens: int, groups: list[int], kind: RequestOutputKind
) -> None:
    num_tokens = len(pieces) - 1
    request = processed_request(stop=stops, include_stop_str_in_output=include, min_tokens=min_tokens, output_kind=kind)
    processor = processor_for(request, lambda *_: Pieces(pieces))
    text, tokens, sent, last, aborted = "", [], 0, None, []
    for group in groups:
        count = min(group, num_tokens - sent)
        sent += count
        finish = FinishReason.LENGTH if sent == num_tokens else None
        output, abort = step(processor, EngineOutput("0", 0, [1] * count, finish_reason=finish))
        aborted += abort
        if output is not None:
            last = only(output)
            text, tokens = (text + last.text, tokens + last.token_ids) if kind is DELTA else (last.text, last.token_ids)
        if finish or abort:
            break
    expected_text, expected_tokens, stop = brute_force(pieces, stops, include, min_tokens)
    assert last is not None
    assert (text, len(tokens), last.stop_reason) == (expected_text, expected_tokens, stop)
    assert last.finish_reason == ("length" if stop is None else "stop")
    assert aborted == ([] if finish else ["0"])


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(letters, max_size=10), stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1))
def test_no_more_is_kept_back_than_could_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    scanner = StopStringScanner(stops, include_in_output=False)
    released, whole = "", ""
    for piece in pieces:
        whole += piece
        released += scanner.feed(piece)
        if scanner.matched is not None:
            return
        kept = whole[len(released) :]
        assert whole.startswith(released)
        assert kept == "" or any(stop.startswith(kept) for stop in stops)
        beginnings = [whole[i:] for i in range(len(whole)) if any(stop.startswith(whole[i:]) for stop in stops)]
        assert kept == (beginnings[0] if beginnings else "")


def test_a_long_stop_string_costs_little() -> None:
    scanner = StopStringScanner(["a" * 100_000 + "b"] * 64, include_in_output=False)
    for _ in range(300):
        assert scanner.feed("aaaaaaaa") == ""
    assert scanner.feed("c") == "a" * 2400 + "c"


def test_a_stop_string_across_tokens_never_shows_in_a_stream() -> None:
    processor = processor_for(processed_request(stop="END", output_kind=DELTA))
    texts = [only(step(processor, news(character))[0]).text for character in "abENcEN"]
    assert texts == ["a", "b", "", "", "ENc", "", ""]
    output, aborted = step(processor, news("D"))
    assert (only(output).text, only(output).finish_reason, only(output).stop_reason) == ("", "stop", "END")
    assert aborted == ["0"]


def test_text_kept_back_comes_with_the_end() -> None:
    processor = processor_for(processed_request(stop="END", output_kind=DELTA))
    assert only(step(processor, news("aEN"))[0]).text == "a"
    assert only(step(processor, news("", FinishReason.ABORT))[0]).text == "EN"


def test_tokens_behind_a_stop_string_are_dropped_with_their_logprobs() -> None:
    processor = processor_for(processed_request(stop="b", logprobs=0, include_stop_str_in_output=True))
    entries = [TokenLogprobs([ord(c)], [-1.0], 1) for c in "abc"]
    output, aborted = step(processor, news("abc", FinishReason.LENGTH, logprobs=entries))
    completion = only(output)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("ab", [97, 98], "stop")
    assert completion.logprobs is not None and len(completion.logprobs) == 2
    assert completion.cumulative_logprob == -2.0
    assert aborted == [], "the engine has ended the sequence itself"


def test_news_after_a_stop_string_is_ignored() -> None:
    processor = processor_for(processed_request(stop="b"))
    step(processor, news("ab"))
    assert step(processor, news("c", FinishReason.ABORT)) == (None, [])


# ---- stop tokens ----


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abX")])
def test_a_stop_token_is_in_the_tokens_but_not_in_the_text(include: bool, text: str) -> None:
    processor = processor_for(processed_request(stop_token_ids=[88], include_stop_str_in_output=include))
    output, _ = step(processor, news("abX", FinishReason.STOP, stop_reason=88))
    completion = only(output)
    assert (completion.text, completion.token_ids) == (text, [97, 98, 88])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", 88)


def test_the_end_of_sequence_has_no_stop_reason_and_no_text() -> None:
    processor = processor_for(processed_request(skip_special_tokens=False))
    completion = only(step(processor, news("a" + chr(EOS), FinishReason.STOP))[0])
    assert (completion.text, completion.token_ids, completion.stop_reason) == ("a", [97, EOS], None)


def test_without_detokenizing_there_is_no_text() -> None:
    processor = processor_for(processed_request(detokenize=False, logprobs=1))
    entry = TokenLogprobs([97, 98], [-1.0, -0.5], 2)
    completion = only(step(processor, news("a", FinishReason.LENGTH, logprobs=[entry]))[0])
    assert (completion.text, completion.token_ids) == ("", [97])
    assert completion.logprobs == [{97: Logprob(-1.0, 2, None), 98: Logprob(-0.5, 1, None)}]


# ---- logprobs ----


def test_logprobs_name_the_sampled_token_first_and_sum_up() -> None:
    processor = processor_for(processed_request(logprobs=2))
    entries = [TokenLogprobs([97, 98, 99], [-3.0, -0.5, -1.0], 7), TokenLogprobs([98, 98, 99], [-0.25, -0.25, -2.0], 1)]
    completion = only(step(processor, news("ab", FinishReason.LENGTH, logprobs=entries))[0])
    assert completion.logprobs == [
        {97: Logprob(-3.0, 7, "a"), 98: Logprob(-0.5, 1, "b"), 99: Logprob(-1.0, 2, "c")},
        {98: Logprob(-0.25, 1, "b"), 99: Logprob(-2.0, 2, "c")},
    ]
    assert list(completion.logprobs[0]) == [97, 98, 99]
    assert completion.cumulative_logprob == -3.25


def test_without_logprobs_there_are_none() -> None:
    completion = only(step(processor_for(processed_request()), news("a", FinishReason.LENGTH))[0])
    assert completion.logprobs is None and completion.cumulative_logprob is None


def test_deltas_bring_their_own_logprobs_and_the_sum_so_far() -> None:
    processor = processor_for(processed_request(logprobs=0, output_kind=DELTA))
    for character, total in (("a", -1.0), ("b", -2.0)):
        entry = TokenLogprobs([ord(character)], [-1.0], 1)
        completion = only(step(processor, news(character, logprobs=[entry]))[0])
        assert completion.logprobs == [{ord(character): Logprob(-1.0, 1, character)}]
        assert completion.cumulative_logprob == total


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE, FINAL_ONLY])
def test_prompt_logprobs_begin_with_none(kind: RequestOutputKind, in_pieces: bool) -> None:
    processor = processor_for(processed_request("pqr", prompt_logprobs=0, output_kind=kind))
    entries = [TokenLogprobs([ord(c)], [-1.0], 1) for c in "qr"]
    if in_pieces:
        assert step(processor, news("", prompt_logprobs=entries[:1])) == (None, [])
        entries = entries[1:]
    told = [step(processor, news("a", prompt_logprobs=entries))[0], step(processor, news("b", FinishReason.LENGTH))[0]]
    lists = [output.prompt_logprobs for output in told if output is not None]
    expected = [None, {113: Logprob(-1.0, 1, "q")}, {114: Logprob(-1.0, 1, "r")}]
    assert lists == {DELTA: [expected, None], CUMULATIVE: [expected] * 2, FINAL_ONLY: [expected]}[kind]


# ---- several sequences ----


def test_sequences_are_merged_in_order_and_end_together() -> None:
    processor = processor_for(processed_request(n=3, output_kind=FINAL_ONLY))
    assert step(processor, news("c", FinishReason.LENGTH, 2), news("a", index=0))[0] is None
    assert step(processor, news("b", FinishReason.LENGTH, 1))[0] is None
    output, _ = step(processor, news("x", FinishReason.STOP))
    assert output is not None and output.finished
    assert [(one.index, one.text, one.finish_reason) for one in output.outputs] == [
        (0, "a", "stop"), (1, "b", "length"), (2, "c", "length")
    ]  # fmt: skip


def test_deltas_tell_only_of_sequences_with_news() -> None:
    processor = processor_for(processed_request(n=3, output_kind=DELTA))
    output, _ = step(processor, news("c", index=2), news("a", index=0))
    assert output is not None and not output.finished
    assert [(one.index, one.text) for one in output.outputs] == [(0, "a"), (2, "c")]


def test_cumulative_outputs_tell_of_all_sequences() -> None:
    processor = processor_for(processed_request(n=2, output_kind=CUMULATIVE))
    step(processor, news("a", index=1))
    output, _ = step(processor, news("b", index=1))
    assert output is not None and [one.text for one in output.outputs] == ["", "ab"]


def test_a_stop_string_ends_its_own_sequence_only() -> None:
    processor = processor_for(processed_request(n=2, stop="x", output_kind=DELTA))
    output, aborted = step(processor, news("x", index=1), news("a"))
    assert aborted == ["0.1"]
    assert output is not None and [one.finish_reason for one in output.outputs] == [None, "stop"]


# ---- requests ----


def test_an_output_is_a_snapshot() -> None:
    processor = processor_for(processed_request(output_kind=CUMULATIVE, logprobs=0))
    first = only(step(processor, news("a", logprobs=[TokenLogprobs([97], [-1.0], 1)]))[0])
    step(processor, news("b", logprobs=[TokenLogprobs([98], [-1.0], 1)]))
    assert (first.text, first.token_ids, len(first.logprobs or [])) == ("a", [97], 1)


def test_facts_of_the_request_come_back() -> None:
    request = processed_request("pq")
    output, _ = step(processor_for(request), news("a", FinishReason.LENGTH, num_cached_tokens=1))
    assert output is not None
    assert (output.prompt, output.prompt_token_ids, output.num_cached_tokens) == ("pq", [112, 113], 1)
    times = output.metrics
    assert 0 < times.arrival_time <= times.first_token_time == times.finished_time


def test_forgotten_and_unknown_requests_are_ignored() -> None:
    processor = processor_for(processed_request())
    processor.forget("0")
    processor.forget("0")
    assert step(processor, news("a"), EngineOutput("9", 0, [1])) == (None, [])
    assert processor.statistics.finished == {"stop": 0, "length": 0, "abort": 1, "error": 0}


def test_an_error_ends_the_request_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    processor = processor_for(processed_request())
    output, _ = step(processor, news("", FinishReason.ERROR, error="it broke"))
    assert only(output).finish_reason == "error"
    assert "it broke" in caplog.text


def test_statistics_count_finished_requests() -> None:
    processor = processor_for(processed_request("pqr"))
    step(processor, news("ab", FinishReason.LENGTH))
    metrics = {(one.name, one.labels.get("finished_reason")): one for one in processor.statistics.snapshot({})}
    assert metrics["vllm:request_success", "length"].value == 1  # type: ignore[attr-defined]
    assert metrics["vllm:request_prompt_tokens", None].sum == 3.0  # type: ignore[attr-defined]
    assert metrics["vllm:request_generation_tokens", None].buckets["2"] == 1  # type: ignore[attr-defined]


def test_an_unfinished_character_counts_to_the_token_that_finishes_it() -> None:
    def late(*arguments: Any) -> FakeDetokenizer:
        return FakeDetokenizer(*arguments, lag=1)

    processor = processor_for(processed_request(stop="a", output_kind=DELTA), late)
    assert only(step(processor, news("a"))[0]).text == ""
    completion = only(step(processor, news("b"))[0])
    assert (completion.text, completion.token_ids, completion.stop_reason) == ("", [98], "a")


def test_a_fault_in_one_request_is_not_the_end_of_another() -> None:
    class Failing(FakeDetokenizer):
        def append(self, token_ids: list[int]) -> str:
            if token_ids == [ord("!")]:
                raise IndexError("a bug")
            return super().append(token_ids)

    made = Processor(engine_config(), FakeTokenizer(), {})
    processor = OutputProcessor(FakeTokenizer(), Failing)
    for prompt in ("p", "q"):
        processor.add(made.process(RequestInput(prompt, SamplingParams(max_tokens=None))))
    result = processor.follow(EngineOutputs([EngineOutput("0", 0, [ord("!")]), EngineOutput("1", 0, [ord("a")])]))
    assert result.errors.keys() == {"0"} and result.abort_sequence_ids == ["0"]
    state, _ = result.updated["0"]
    assert state.finished and only(state.output([0])).finish_reason == "error"
    assert only(result.updated["1"][0].output([0])).text == "a"
