"""Whether there is room for a request at all: in the context, in the cache, among the sequences that run."""

from __future__ import annotations

from interleaf.config import CacheConfig, SchedulerConfig
from interleaf.errors import ParameterError, PromptTooLongError, RequestError
from interleaf.messages import EngineRequest
from interleaf.params import SamplingParams


def check_room(request: EngineRequest, scheduler: SchedulerConfig, cache: CacheConfig) -> None:
    """
    Raises:
        RequestError: the prompt is empty.
        ParameterError: there can never be so many beams.
        PromptTooLongError: the prompt leaves no room for a token, in the context or the cache.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise RequestError("The prompt is empty: send at least one token.", "prompt")
    if request.params.beam is not None:
        check_beams(request.params, num_prompt_tokens, scheduler, cache)
    # A prompt whose hidden states are pooled may fill the context; any other must leave room for a token.
    num_tokens = num_prompt_tokens + (request.pooling is None)
    if num_tokens > scheduler.max_model_len:
        raise PromptTooLongError(
            f"The prompt has {num_prompt_tokens} tokens, which leaves no room for output in the context of "
            f"{scheduler.max_model_len}: shorten it or raise --max-model-len.",
            "prompt",
        )
    if num_tokens > cache.num_slots:
        raise PromptTooLongError(
            f"The prompt has {num_prompt_tokens} tokens, which leaves no room for output in the KV cache of "
            f"{cache.num_slots}: shorten it or raise --kv-cache-memory-bytes.",
            "prompt",
        )


def longest_beam(params: SamplingParams, num_prompt_tokens: int, cache: CacheConfig) -> int:
    """Tokens of prompt and output that all beams can have at once; the full blocks of the prompt are shared.

    The last token of a text needs no place in the cache. What windows save is left out of account.
    """
    assert params.beam is not None
    shared = num_prompt_tokens // cache.block_size
    own = (cache.num_blocks // len(cache.layout.windows) - shared) // params.beam.width
    return (shared + own) * cache.block_size + 1 if own > 0 else 0


def check_beams(params: SamplingParams, num_prompt_tokens: int, scheduler: SchedulerConfig, cache: CacheConfig) -> None:
    """
    Raises:
        ParameterError: there can never be so many beams.
        PromptTooLongError: there is no room for them behind the prompt.
    """
    assert params.beam is not None
    width = params.beam.width
    if width > scheduler.max_num_seqs:
        raise ParameterError(
            f"beam_width is {width}, but at most {scheduler.max_num_seqs} sequences run at once: lower it or raise "
            f"--max-num-seqs.",
            "beam_width",
        )
    if longest_beam(params, num_prompt_tokens, cache) <= num_prompt_tokens:
        raise PromptTooLongError(
            f"The KV cache of {cache.num_slots} tokens has no room for {width} beams behind a prompt of "
            f"{num_prompt_tokens} tokens: shorten it, lower beam_width or raise --kv-cache-memory-bytes.",
            "prompt",
        )
