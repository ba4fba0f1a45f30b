"""What an engine checks of a request that came over a socket, where nothing is taken on trust.

The front end has checked it all and tells callers better what is wrong; what is left here is whatever
would make the engine read or write out of bounds.
"""

from __future__ import annotations

from collections.abc import Iterable

from interleaf.config import EngineConfig
from interleaf.errors import RequestError
from interleaf.messages import EngineRequest
from interleaf.reasoning import ReasoningMarkers

MAX_ID_CHARACTERS = 200
MAX_GRAMMAR_CHARACTERS = 1 << 20


def check_request(request: EngineRequest, config: EngineConfig) -> None:
    """
    Raises:
        RequestError: the request's id, seed, a token id, a length or a count cannot be used.
    """
    params, vocab_size = request.params, config.model.vocab_size
    if not 0 < len(request.request_id) <= MAX_ID_CHARACTERS or not request.request_id.replace("-", "").isalnum():
        raise RequestError("A request's id must be made of letters, digits and dashes.", "request_id")
    if params.seed is None:
        raise RequestError("A request must come with a seed.", "seed")
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None and count > vocab_size:
            raise RequestError(f"{name} is larger than the vocabulary.", name)
    if request.grammar is not None and len(request.grammar) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError("The grammar is too large.", "grammar")
    resumed = request.resumed_token_ids or []
    if request.pooling is not None and (params.n != 1 or params.prompt_logprobs is not None or resumed):
        raise RequestError("A request for an embedding has one sequence, which generates nothing.", "pooling")
    if params.beam is not None and (request.pooling is not None or any(resumed)):
        raise RequestError("A beam search starts from its prompt, and generates text.", "beam_width")
    if any(len(tokens) > config.scheduler.max_model_len for tokens in resumed):
        raise RequestError("resumed_token_ids is longer than the context.", "resumed_token_ids")
    lists: list[tuple[str, Iterable[int]]] = [
        ("prompt_token_ids", request.prompt_token_ids),
        ("eos_token_ids", request.eos_token_ids),
        ("stop_token_ids", params.stop_token_ids or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("logit_bias", params.logit_bias or ()),
        *_reasoning_lists(params.reasoning_markers),
        *(("bad_words", tokens) for tokens in request.bad_word_token_ids),
        *(("resumed_token_ids", tokens) for tokens in resumed),
    ]
    for name, token_ids in lists:
        if min(token_ids, default=0) < 0 or max(token_ids, default=0) >= vocab_size:
            raise RequestError(f"{name} has a token id that is outside of the vocabulary.", name)


def _reasoning_lists(markers: ReasoningMarkers | None) -> list[tuple[str, Iterable[int]]]:
    if markers is None:
        return []
    if not markers.end_token_ids:
        raise RequestError("reasoning_markers needs end_token_ids.", "reasoning_markers")
    return [("reasoning_markers", [*markers.start_token_ids, *markers.end_token_ids])]
