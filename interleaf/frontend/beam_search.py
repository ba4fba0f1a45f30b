"""Beam search as `LLM.beam_search` has it: parameters in, and vLLM's shape of results out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interleaf.errors import ParameterError, RequestFailedError
from interleaf.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from interleaf.params import BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer


def request_params(params: object, max_logprobs: int) -> SamplingParams:
    """The parameters of a request that brings all beams, with the logprobs of their candidates.

    Args:
        max_logprobs: most that may be asked for here; -1 is the whole vocabulary.

    Raises:
        ParameterError: a value is out of range.
    """
    if not isinstance(params, BeamSearchParams):
        raise ParameterError(f"params must be a BeamSearchParams, not {type(params).__name__}.")
    count = 2 * params.beam_width if isinstance(params.beam_width, int) else 0
    return params.sampling_params(count if max_logprobs == -1 else min(count, max_logprobs))


def beam_output(output: RequestOutput, params: BeamSearchParams, tokenizer: Tokenizer) -> BeamSearchOutput:
    """
    Args:
        output: the finished one, of a request with `request_params`.

    Raises:
        RequestFailedError: the request ended without its texts.
    """
    sequences = []
    for one in output.outputs:
        if one.finish_reason in ("error", "abort"):
            raise RequestFailedError(f"Request {output.request_id} was ended before its beam search was.")
        kept = one.token_ids
        if one.finish_reason == "stop" and not isinstance(one.stop_reason, str):
            kept = kept if params.include_stop_str_in_output else kept[:-1]
        tokens = output.prompt_token_ids + kept
        sequences.append(
            BeamSearchSequence(
                tokens,
                tokenizer.decode(tokens, skip_special_tokens=False),
                one.cumulative_logprob or 0.0,
                one.logprobs or [],
                one.finish_reason,
                one.stop_reason,
            )
        )
    return BeamSearchOutput(sequences)
