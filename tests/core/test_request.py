import pytest

from interleaf.core.request import RequestGroup, wrap_seed
from interleaf.messages import EngineRequest, FinishReason, TokenLogprobs
from interleaf.params import SamplingParams

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def make(prompt=(1, 2, 3), output=(), index=0, eos=(7,), **params):
    source = EngineRequest("r", list(prompt), SamplingParams(seed=params.pop("seed", 0), **params), list(eos))
    request = RequestGroup(source, 0, 0).new_sequence(index)
    request.output_token_ids.extend(output)
    return request


@pytest.mark.parametrize(
    "seed, wrapped",
    [(0, 0), (-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (-(2**63), -(2**63)), (2**63 + 4, -(2**63) + 4)],
)
def test_seeds_wrap_into_64_bits(seed, wrapped):
    assert wrap_seed(seed) == wrapped


def test_siblings_are_named_and_seeded_by_index():
    first, third = make(seed=2**63 - 1), make(index=2, seed=2**63 - 1)
    assert (first.sequence_id, first.seed) == ("r", 2**63 - 1)
    assert (third.sequence_id, third.seed) == ("r.2", -(2**63) + 1)


@pytest.mark.parametrize("start, stop", [(0, 2), (0, 3), (1, 5), (3, 5), (4, 6), (2, 2), (0, 6)])
def test_tokens_between_is_a_slice(start, stop):
    request = make(output=[4, 5, 6])
    assert request.tokens_between(start, stop) == [1, 2, 3, 4, 5, 6][start:stop]


@pytest.mark.parametrize(
    "output, params, expected",
    [
        ([5], {}, None),
        ([7], {}, (STOP, None)),
        ([7], {"ignore_eos": True}, None),
        ([7], {"stop_token_ids": [7]}, (STOP, None)),
        ([7], {"stop_token_ids": [7], "ignore_eos": True}, (STOP, 7)),
        ([5], {"stop_token_ids": [5, 6]}, (STOP, 5)),
        ([7], {"min_tokens": 2}, None),
        ([5], {"min_tokens": 2, "stop_token_ids": [5]}, None),
        ([4, 7], {"min_tokens": 2}, (STOP, None)),
        ([4, 4], {"max_tokens": 2}, (LENGTH, None)),
        ([4, 7], {"max_tokens": 2}, (STOP, None)),
        ([4, 4, 4], {"max_tokens": None}, None),
        ([4, 4, 4, 4], {"max_tokens": None}, (LENGTH, None)),
    ],
)
def test_stop_reason(output, params, expected):
    assert make(output=output, **params).stop_reason(max_total_tokens=7) == expected


def test_prompt_logprobs_limit_the_cached_prefix():
    request = make(prompt=range(10), prompt_logprobs=1)
    request.group.prompt_logprobs = []
    assert (request.num_prompt_logprobs_done, request.max_cached_tokens) == (0, 0)
    request.group.prompt_logprobs = [TokenLogprobs([1], [0.0], 1)] * 4
    assert (request.num_prompt_logprobs_done, request.max_cached_tokens) == (4, 4)
    request.group.prompt_logprobs = None
    assert (request.num_prompt_logprobs_done, request.max_cached_tokens) == (9, 9)
    sibling = make(prompt=range(10), index=1, prompt_logprobs=1)
    assert (sibling.num_prompt_logprobs_done, sibling.max_cached_tokens) == (9, 9)
    assert (make(prompt=range(10)).num_prompt_logprobs_done, make(prompt=range(10)).max_cached_tokens) == (0, 9)


def test_new_request_shares_no_list():
    request = make(output=[4])
    request.block_ids = [0]
    new = request.as_new_request()
    assert new.token_ids == [1, 2, 3, 4]
    request.output_token_ids.append(5)
    request.block_ids.append(1)
    assert (new.token_ids, new.block_ids) == ([1, 2, 3, 4], [0])
