"""What would make the engine read out of bounds is refused, even from a front end."""

from __future__ import annotations

from typing import Any

import pytest

from interleaf.engine.request_check import check_request
from interleaf.errors import RequestError
from interleaf.messages import EngineRequest
from interleaf.params import SamplingParams
from interleaf.reasoning import ReasoningMarkers
from tests.fake_engine import MAX_MODEL_LEN, VOCAB_SIZE, engine_config


def request(params: dict[str, Any] | None = None, **fields: Any) -> EngineRequest:
    fields = {"request_id": "ab-1", "prompt_token_ids": [1, VOCAB_SIZE - 1]} | fields
    return EngineRequest(params=SamplingParams(**({"seed": 1} | (params or {}))), **fields)


def test_a_good_request_passes() -> None:
    params = {"stop_token_ids": [0], "logit_bias": {1: 2.0}, "allowed_token_ids": [3], "logprobs": -1}
    check_request(request(params, eos_token_ids=[0], resumed_token_ids=[[1, 2]]), engine_config())
    check_request(request(pooling="mean"), engine_config())


@pytest.mark.parametrize(
    "bad",
    [
        request(prompt_token_ids=[VOCAB_SIZE]),
        request(prompt_token_ids=[-1]),
        request(eos_token_ids=[VOCAB_SIZE]),
        request(bad_word_token_ids=[[1], [VOCAB_SIZE]]),
        request(resumed_token_ids=[[VOCAB_SIZE]]),
        request(resumed_token_ids=[[1] * (MAX_MODEL_LEN + 1)]),
        request({"stop_token_ids": [VOCAB_SIZE]}),
        request({"allowed_token_ids": [VOCAB_SIZE]}),
        request({"reasoning_markers": ReasoningMarkers([VOCAB_SIZE], [1])}),
        request({"reasoning_markers": ReasoningMarkers([1], [])}),
        request({"logit_bias": {VOCAB_SIZE: 1.0}}),
        request({"logprobs": VOCAB_SIZE + 1}),
        request({"prompt_logprobs": 2**31 - 1}),
        request({"seed": None}),
        request({"n": 2}, pooling="mean"),
        request({"prompt_logprobs": 1}, pooling="last"),
        request(pooling="last", resumed_token_ids=[[1]]),
        request(request_id=""),
        request(request_id="a.1"),
        request(request_id="a\nb"),
        request(request_id="a" * 1000),
    ],
)
def test_a_bad_one_does_not(bad: EngineRequest) -> None:
    with pytest.raises(RequestError):
        check_request(bad, engine_config())
