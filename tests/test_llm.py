"""The offline API on a fake engine: order, validation before queueing, and leaving nothing behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from interleaf.errors import ConfigError, EngineDeadError, EngineError, ParameterError, PromptTooLongError, RequestError
from interleaf.llm import LLM
from interleaf.observe import Counter, Gauge, Histogram
from interleaf.params import RequestOutputKind, SamplingParams
from tests.fake_engine import MAX_MODEL_LEN, FakeClient, FakeTokenizer, engine_config, next_token


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient()
    client.script = {"one": "first answer", "two": "second", "3": "3rd answer, a long one"}
    return client


@pytest.fixture
def llm(client: FakeClient) -> Iterator[LLM]:
    with LLM.from_client(client, FakeTokenizer()) as llm:
        yield llm


GREEDY = SamplingParams(temperature=0, max_tokens=None)


def texts(outputs: Any) -> list[str]:
    return [output.outputs[0].text for output in outputs]


# ---- generate ----


def test_results_come_in_the_order_of_the_prompts_whatever_their_form(llm: LLM) -> None:
    prompts = ["one", [ord("3")], {"prompt": "two"}, {"prompt_token_ids": [ord(c) for c in "one"]}]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert texts(outputs) == ["first answer", "3rd answer, a long one", "second", "first answer"]
    assert all(output.finished for output in outputs)


@pytest.mark.parametrize("prompt", ["two", [ord(c) for c in "two"], {"prompt": "two"}])
def test_one_prompt_needs_no_list(llm: LLM, prompt: Any) -> None:
    assert texts(llm.generate(prompt, GREEDY, use_tqdm=False)) == ["second"]


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_each_prompt_may_have_its_own_params_and_priority(llm: LLM, client: FakeClient) -> None:
    params = [SamplingParams(max_tokens=2), SamplingParams(max_tokens=4)]
    assert texts(llm.generate(["one", "two"], params, use_tqdm=False, priority=[1, 2])) == ["fi", "seco"]
    assert [request.priority for request in client.requests] == [1, 2]


def test_without_params_the_checkpoints_defaults_hold(client: FakeClient) -> None:
    llm = LLM.from_client(client, FakeTokenizer(), {"max_new_tokens": 3, "temperature": 0.5})
    assert texts(llm.generate("one", use_tqdm=False)) == ["fir"]
    assert client.requests[0].params.temperature == 0.5
    assert llm.get_default_sampling_params().max_tokens == 3


def test_several_sequences_come_merged(llm: LLM) -> None:
    [output] = llm.generate("q", SamplingParams(n=3, max_tokens=2), use_tqdm=False)
    assert [one.index for one in output.outputs] == [0, 1, 2]
    assert output.outputs[1].token_ids[0] == next_token([ord("q"), 1])


def test_a_stop_string_ends_the_sequence_in_the_engine(llm: LLM, client: FakeClient) -> None:
    params = SamplingParams(max_tokens=None, stop="t a")
    [output] = llm.generate("one", params, use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("firs", "t a")
    assert client.aborted == [client.requests[0].request_id]
    assert not client.has_unfinished()


def test_outputs_are_final_whatever_kind_was_asked_for(llm: LLM) -> None:
    params = SamplingParams(max_tokens=None, output_kind=RequestOutputKind.DELTA)
    assert texts(llm.generate(["two"], params, use_tqdm=False)) == ["second"]
    assert params.output_kind is RequestOutputKind.DELTA


class FakeBar:
    def __init__(self, **options: Any) -> None:
        self.total, self.count, self.postfix, self.closed = options["total"], 0, "", False

    def update(self, count: int) -> None:
        self.count += count

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text

    def close(self) -> None:
        self.closed = True


def test_the_bar_counts_prompts_and_shows_speed(llm: LLM) -> None:
    bars: list[FakeBar] = []

    def make(**options: Any) -> FakeBar:
        bars.append(FakeBar(**options))
        return bars[-1]

    llm.generate(["one", "two"], GREEDY, use_tqdm=make)
    [bar] = bars
    assert (bar.total, bar.count, bar.closed) == (2, 2, True)
    assert "input: " in bar.postfix and "output: " in bar.postfix


def test_the_bar_is_tqdms_by_default(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["one"], GREEDY)
    assert "1/1" in capsys.readouterr().err


# ---- bad input ----


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        (["one", ""], RequestError),
        (["one", [1] * MAX_MODEL_LEN], PromptTooLongError),
        (["one", [1, -5]], RequestError),
        (["one", None], RequestError),
        ([1, "a"], RequestError),
        (7, RequestError),
    ],
)
def test_one_bad_prompt_queues_nothing(llm: LLM, client: FakeClient, prompts: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert client.requests == []
    assert texts(llm.generate("two", GREEDY, use_tqdm=False)) == ["second"]


def test_a_long_prompt_may_be_truncated(llm: LLM, client: FakeClient) -> None:
    llm.generate([[1] * MAX_MODEL_LEN], SamplingParams(truncate_prompt_tokens=5, max_tokens=1), use_tqdm=False)
    assert client.requests[0].prompt_token_ids == [1] * 5


@pytest.mark.parametrize("name", ["sampling_params", "priority"])
def test_lists_of_another_length_are_refused(llm: LLM, name: str) -> None:
    lists = {"sampling_params": [GREEDY] * 3, "priority": [1, 2, 3]}
    with pytest.raises(RequestError, match=f"2 prompts, but {name} has 3"):
        llm.generate(["one", "two"], **{name: lists[name]}, use_tqdm=False)


def test_a_request_that_the_engine_refuses_takes_back_those_before_it(llm: LLM, client: FakeClient) -> None:
    client.script["bad"] = ParameterError("The engine refuses this.")
    with pytest.raises(ParameterError):
        llm.generate(["one", "two", "bad", "3"], GREEDY, use_tqdm=False)
    assert client.aborted == ["0", "1"]
    assert not llm.has_unfinished()
    assert texts(llm.generate("two", GREEDY, use_tqdm=False)) == ["second"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("broke"), MemoryError])
def test_an_exception_in_the_middle_aborts_what_is_queued(llm: LLM, client: FakeClient, error: Any) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise error

    client.on_step = fail
    with pytest.raises(error if isinstance(error, type) else type(error)):
        llm.generate(["one", "two"], GREEDY, use_tqdm=False)
    assert not llm.has_unfinished()
    assert texts(llm.generate("two", GREEDY, use_tqdm=False)) == ["second"]


def test_ctrl_c_waits_for_the_end_of_the_step(llm: LLM, client: FakeClient) -> None:
    survived: list[int] = []

    def interrupt(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
            survived.append(number)

    client.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two"], GREEDY, use_tqdm=False)
    assert survived == [2] and client.num_steps == 2
    assert not llm.has_unfinished()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_gets_through_a_step_that_hangs(llm: LLM, client: FakeClient) -> None:
    def interrupt(number: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    client.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.generate("one", GREEDY, use_tqdm=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_engine_that_loses_a_request_is_found_out(llm: LLM, client: FakeClient) -> None:
    client.on_step = lambda number: client.abort(["0"])
    with pytest.raises(EngineError, match="no unfinished request"):
        llm.generate("one", GREEDY, use_tqdm=False)


def test_an_engine_that_dies_says_why(llm: LLM, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(number: int) -> None:
        client._running.clear()
        monkeypatch.setattr(client, "abort", lambda request_ids: pytest.fail("a dead engine was asked to abort"))
        raise EngineDeadError("It died of this.")

    client.on_step = die
    with pytest.raises(EngineDeadError, match="died of this"):
        llm.generate(["one", "two"], GREEDY, use_tqdm=False)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantum"):
        LLM(quantum=True)


# ---- stream ----


def test_a_stream_gives_the_same_text_in_pieces(llm: LLM) -> None:
    deltas = list(llm.stream("one", GREEDY))
    assert "".join(texts(deltas)) == "first answer"
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]


def test_closing_a_stream_aborts_its_request(llm: LLM, client: FakeClient) -> None:
    stream = llm.stream("one", GREEDY)
    next(stream)
    stream.close()
    assert client.aborted == ["0"] and not llm.has_unfinished()


def test_a_stream_that_is_never_read_or_dropped_is_aborted(llm: LLM, client: FakeClient) -> None:
    stream = llm.stream("one", GREEDY)
    next(stream)
    del stream
    gc.collect()
    assert not llm.has_unfinished()


def test_a_bad_prompt_is_refused_before_the_stream_starts(llm: LLM) -> None:
    with pytest.raises(RequestError):
        llm.stream("", GREEDY)


def test_a_stream_and_generate_may_interleave(llm: LLM) -> None:
    stream = llm.stream("one", GREEDY)
    text = next(stream).outputs[0].text
    assert texts(llm.generate("two", GREEDY, use_tqdm=False)) == ["second"]
    assert text + "".join(texts(stream)) == "first answer"


# ---- chat ----

HELLO = [{"role": "user", "content": "hi"}]


def test_chat_renders_the_conversation(llm: LLM, client: FakeClient) -> None:
    client.script["u:hi;a:"] = "hello!"
    [output] = llm.chat(HELLO, GREEDY, use_tqdm=False)
    assert (output.prompt, output.outputs[0].text) == ("u:hi;a:", "hello!")


def test_chat_takes_several_conversations(llm: LLM) -> None:
    outputs = llm.chat([HELLO, [{"role": "system", "content": "x"}, *HELLO]], GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == ["u:hi;a:", "s:x;u:hi;a:"]


def test_chat_passes_its_options_to_the_template(llm: LLM) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "he"}]
    [output] = llm.chat(
        messages, GREEDY, False, chat_template=">", add_generation_prompt=False, continue_final_message=True, tools=[{}]
    )
    assert output.prompt == ">u:hi;a:he;t1"


@pytest.mark.parametrize("messages", [[], [[]], "hi", [3]])
def test_chat_refuses_what_is_no_conversation(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError):
        llm.chat(messages, GREEDY, use_tqdm=False)


# ---- the rest ----


def test_metrics_have_vllms_names(llm: LLM) -> None:
    llm.generate(["one", "two"], GREEDY, use_tqdm=False)
    metrics = {(metric.name, metric.labels.get("finished_reason")): metric for metric in llm.get_metrics()}
    assert metrics["vllm:num_requests_running", None] == Gauge(
        "vllm:num_requests_running", {"model_name": "fake", "engine": "0"}, 0
    )
    hits = metrics["vllm:prefix_cache_hits", None]
    assert isinstance(hits, Counter) and hits.value == 4
    success = metrics["vllm:request_success", "stop"]
    assert isinstance(success, Counter) and success.value == 2
    first = metrics["vllm:time_to_first_token_seconds", None]
    assert isinstance(first, Histogram) and first.count == 2 == first.buckets["+Inf"]


def test_small_things(llm: LLM, client: FakeClient) -> None:
    assert isinstance(llm.get_tokenizer(), FakeTokenizer)
    assert llm.reset_prefix_cache() is True and client.num_resets == 1
    assert llm.config == engine_config()


def test_closing_frees_the_engine_once(client: FakeClient) -> None:
    with LLM.from_client(client, FakeTokenizer()) as llm:
        llm.close()
    del llm
    gc.collect()
    assert client.num_closed == 1


def test_a_closed_llm_says_so(client: FakeClient) -> None:
    llm = LLM.from_client(client, FakeTokenizer())
    llm.close()
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate("one", use_tqdm=False)


def test_deleting_an_llm_closes_it(client: FakeClient) -> None:
    llm = LLM.from_client(client, FakeTokenizer())
    del llm
    gc.collect()
    assert client.num_closed == 1


def test_closing_in_the_middle_of_a_stream_is_safe(client: FakeClient) -> None:
    llm = LLM.from_client(client, FakeTokenizer())
    stream = llm.stream("one", GREEDY)
    next(stream)
    llm.close()
    with pytest.raises(EngineDeadError):
        list(stream)
