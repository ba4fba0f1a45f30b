"""Validation at the edge, and what becomes of a good request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from interleaf.config import SchedulerConfig
from interleaf.errors import CorruptCheckpointError, ParameterError, PromptTooLongError, RequestError
from interleaf.frontend.processor import Processor, RequestInput
from interleaf.params import RequestOutputKind, SamplingParams
from tests.fake_engine import MAX_MODEL_LEN, VOCAB_SIZE, FakeTokenizer, engine_config


@pytest.fixture
def processor() -> Processor:
    return Processor(engine_config(), FakeTokenizer(), {})


def process(processor: Processor, prompt: Any, priority: int = 0, **params: Any) -> Any:
    return processor.process(RequestInput(prompt, SamplingParams(**params), priority)).engine_request


# ---- prompts ----


@pytest.mark.parametrize(
    "prompt", ["AB", [65, 66], (65, 66), {"prompt": "AB"}, {"prompt_token_ids": [65, 66], "prompt": "shown"}]
)
def test_every_form_of_prompt_becomes_token_ids(processor: Processor, prompt: Any) -> None:
    assert process(processor, prompt).prompt_token_ids == [65, 66]


def test_the_text_is_kept_where_there_is_one(processor: Processor) -> None:
    texts = [
        processor.process(RequestInput(prompt, SamplingParams())).prompt
        for prompt in ("AB", [65], {"prompt": "shown", "prompt_token_ids": [65]})
    ]
    assert texts == ["AB", None, "shown"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ([], "empty"),
        ({"prompt": ""}, "empty"),
        ({"prompt_token_ids": []}, "empty"),
        ({}, "prompt or prompt_token_ids"),
        ({"prompt": "a", "images": []}, "'images'"),
        ({"prompt": 3}, "must be text"),
        ({"prompt_token_ids": "abc"}, "must be a list"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
        (3, "not int"),
        (None, "not NoneType"),
        ([1, VOCAB_SIZE], str(VOCAB_SIZE)),
        ([-1], "-1"),
        ([True], "True"),
        ([1.0], "1.0"),
        (["a"], "'a'"),
    ],
)
def test_a_bad_prompt_is_refused(processor: Processor, prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        process(processor, prompt)
    assert str(caught.value).endswith(".")


def test_a_prompt_that_fills_the_context_but_one_token_is_the_longest(processor: Processor) -> None:
    request = process(processor, [1] * (MAX_MODEL_LEN - 1), max_tokens=9)
    assert request.params.max_tokens == 1
    with pytest.raises(PromptTooLongError, match=str(MAX_MODEL_LEN)):
        process(processor, [1] * MAX_MODEL_LEN)


@pytest.mark.parametrize(("keep", "kept"), [(1, [99]), (3, [97, 98, 99]), (500, list(range(100)))])
def test_truncation_keeps_the_last_tokens(keep: int, kept: list[int]) -> None:
    config = engine_config(scheduler=SchedulerConfig(8, 64, max_model_len=200))
    processor = Processor(config, FakeTokenizer(), {})
    assert process(processor, list(range(100)), truncate_prompt_tokens=keep).prompt_token_ids == kept


def test_truncation_by_minus_one_leaves_room_for_the_answer(processor: Processor) -> None:
    request = process(processor, [1] * 500, truncate_prompt_tokens=-1, max_tokens=20)
    assert (len(request.prompt_token_ids), request.params.max_tokens) == (MAX_MODEL_LEN - 20, 20)


def test_the_callers_token_list_is_copied(processor: Processor) -> None:
    prompt = [1, 2]
    request = process(processor, prompt)
    prompt.append(3)
    assert request.prompt_token_ids == [1, 2]


# ---- parameters ----


@pytest.mark.parametrize(("asked", "given"), [(None, MAX_MODEL_LEN - 4), (1000, MAX_MODEL_LEN - 4), (7, 7)])
def test_max_tokens_is_what_the_context_leaves(processor: Processor, asked: int | None, given: int) -> None:
    assert process(processor, "abcd", max_tokens=asked).params.max_tokens == given


def test_min_tokens_beyond_the_context_is_refused(processor: Processor) -> None:
    with pytest.raises(ParameterError, match="min_tokens"):
        process(processor, "abcd", max_tokens=None, min_tokens=MAX_MODEL_LEN - 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", [VOCAB_SIZE]),
        ("allowed_token_ids", [3, VOCAB_SIZE]),
        ("logit_bias", {VOCAB_SIZE: 1.0}),
        ("logprobs", 6),
        ("logprobs", -1),
        ("prompt_logprobs", 6),
        ("prompt_logprobs", -1),
    ],
)
def test_what_this_model_cannot_give_is_refused(processor: Processor, name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name) as caught:
        process(processor, "a", **{name: value})
    assert caught.value.param == name


def test_the_last_of_the_vocabulary_and_the_most_logprobs_are_allowed(processor: Processor) -> None:
    process(processor, [VOCAB_SIZE - 1], stop_token_ids=[VOCAB_SIZE - 1], logprobs=5, prompt_logprobs=5)


def test_the_whole_vocabularys_logprobs_need_an_engine_that_allows_them() -> None:
    processor = Processor(engine_config(max_logprobs=-1), FakeTokenizer(), {})
    assert process(processor, "a", logprobs=-1).params.logprobs == -1


def test_params_changed_behind_our_back_are_checked_again(processor: Processor) -> None:
    params = SamplingParams()
    params.temperature = float("nan")
    with pytest.raises(ParameterError, match="temperature"):
        processor.process(RequestInput("a", params))


@pytest.mark.parametrize("params", [None, {"temperature": 0}])
def test_params_of_another_type_are_refused(processor: Processor, params: Any) -> None:
    with pytest.raises(ParameterError, match="SamplingParams"):
        processor.process(RequestInput("a", params))


@pytest.mark.parametrize("priority", [True, 1.5, "high"])
def test_a_priority_is_an_integer(processor: Processor, priority: Any) -> None:
    with pytest.raises(RequestError, match="priority"):
        process(processor, "a", priority=priority)


def test_the_callers_params_are_not_touched(processor: Processor) -> None:
    params = SamplingParams(max_tokens=None, stop=["x"])
    before = params.clone()
    processor.process(RequestInput("a", params), RequestOutputKind.DELTA)
    assert params == before


def test_bad_words_are_spelled_at_the_start_and_behind_a_space(processor: Processor) -> None:
    request = process(processor, "a", bad_words=["ab", " c", "ab"])
    assert request.bad_word_token_ids == [[97, 98], [32, 97, 98], [99], [32, 99]]


def test_a_bad_word_of_blanks_stays_as_it_is(processor: Processor) -> None:
    assert process(processor, "a", bad_words=[" "]).bad_word_token_ids == [[32], [32, 32]]


def test_tokens_that_only_the_tokenizer_knows() -> None:
    config = engine_config()
    processor = Processor(replace(config, model=replace(config.model, vocab_size=100)), FakeTokenizer(), {})
    with pytest.raises(RequestError, match="120"):
        process(processor, "x")
    assert process(processor, "a", bad_words=["x", "b"]).bad_word_token_ids == [[98], [32, 98]]


# ---- end of sequence, seeds, ids ----


@pytest.mark.parametrize(
    ("generation_config", "hf", "expected"),
    [
        ({}, {}, [0]),
        ({"eos_token_id": 7}, {"eos_token_id": 9}, [0, 7]),
        ({"eos_token_id": [7, 0, 8]}, {}, [0, 7, 8]),
        ({}, {"eos_token_id": [9]}, [0, 9]),
        ({"eos_token_id": [VOCAB_SIZE, "x", None]}, {}, [0]),
    ],
)
def test_end_of_sequence_tokens(generation_config: dict[str, Any], hf: dict[str, Any], expected: list[int]) -> None:
    config = engine_config()
    config = replace(config, model=replace(config.model, hf=hf))
    processor = Processor(config, FakeTokenizer(), generation_config)
    assert process(processor, "a").eos_token_ids == expected == processor.eos_token_ids


def test_every_request_gets_a_seed_that_the_engines_seed_determines() -> None:
    def seeds(engine_seed: int) -> list[int]:
        processor = Processor(engine_config(seed=engine_seed), FakeTokenizer(), {})
        return [process(processor, "a").params.seed for _ in range(3)]

    assert seeds(1) == seeds(1) != seeds(2)
    assert len(set(seeds(1))) == 3
    assert all(0 <= seed < 2**63 for seed in seeds(1))


def test_a_given_seed_is_kept(processor: Processor) -> None:
    assert process(processor, "a", seed=42).params.seed == 42


def test_a_bad_request_leaves_no_trace_in_the_next_ones() -> None:
    def later_requests(with_failure: bool) -> list[tuple[str, int | None]]:
        processor = Processor(engine_config(), FakeTokenizer(), {})
        if with_failure:
            with pytest.raises(RequestError):
                processor.process_all([RequestInput("a", SamplingParams()), RequestInput("", SamplingParams())])
        request = process(processor, "a")
        return [(request.request_id, request.params.seed)]

    assert later_requests(True) == later_requests(False)


def test_internal_ids_are_unique_and_the_callers_id_stays_outside(processor: Processor) -> None:
    processed = [processor.process(RequestInput("a", SamplingParams(), request_id="mine")) for _ in range(3)]
    assert len({one.engine_request.request_id for one in processed}) == 3
    assert {one.external_id for one in processed} == {"mine"}


# ---- defaults ----


def test_the_checkpoints_defaults() -> None:
    generation_config = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 99,
        "do_sample": True,
    }
    params = Processor(engine_config(), FakeTokenizer(), generation_config).default_sampling_params()
    assert params == SamplingParams(
        temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.1, max_tokens=99
    )


def test_without_defaults_they_are_those_of_sampling_params(processor: Processor) -> None:
    assert processor.default_sampling_params() == SamplingParams()


def test_defaults_that_cannot_work_are_the_checkpoints_fault() -> None:
    processor = Processor(engine_config(), FakeTokenizer(), {"temperature": "hot"})
    with pytest.raises(CorruptCheckpointError, match="generation_config"):
        processor.default_sampling_params()


# ---- conversations ----

HELLO = {"role": "user", "content": "hi"}


def test_a_conversation_is_rendered_and_tokenized(processor: Processor) -> None:
    prompt = processor.render_chat([HELLO], tools=[{}], chat_template=">")
    assert prompt == {"prompt": ">u:hi;t1;a:", "prompt_token_ids": [ord(c) for c in ">u:hi;t1;a:"]}


def test_the_last_message_may_be_continued(processor: Processor) -> None:
    messages = [HELLO, {"role": "assistant", "content": "wel"}]
    prompt = processor.render_chat(messages, add_generation_prompt=False, continue_final_message=True)
    assert prompt["prompt"] == "u:hi;a:wel"


def test_text_parts_are_joined(processor: Processor) -> None:
    parts = [{"type": "text", "text": "a"}, "b"]
    assert processor.render_chat([{"role": "user", "content": parts}])["prompt"] == "u:a\nb;a:"


@pytest.mark.parametrize(
    "messages",
    [[], "hi", {}, ["hi"], [{"content": "x"}], [{"role": 1}], [{"role": "user", "content": 3}],
     [{"role": "user", "content": [{"type": "image_url"}]}]],
)  # fmt: skip
def test_malformed_conversations_are_refused(processor: Processor, messages: Any) -> None:
    with pytest.raises(RequestError):
        processor.render_chat(messages)
