"""From what a caller asks to what the engine takes: validation at the edge, and tokenizing.

Everything wrong with a request is found here, so that the engine sees good requests only.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from interleaf.config import EngineConfig
from interleaf.core.room import check_beams
from interleaf.errors import CorruptCheckpointError, GrammarError, ParameterError, PromptTooLongError, RequestError
from interleaf.frontend.grammar import SUBJECTS, grammar_source
from interleaf.frontend.grammar_check import GrammarChecker
from interleaf.frontend.reasoning_families import markers_behind
from interleaf.messages import EngineRequest, Vocabulary
from interleaf.params import PoolingParams, RequestOutputKind, RequestParams, SamplingParams
from interleaf.worker.logits.custom import ProcessorClass, validate_params

if TYPE_CHECKING:
    from interleaf.frontend.tokenizer import Tokenizer

SEED_BITS = 63

GENERATION_DEFAULTS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Field of generation_config.json -> field of SamplingParams."""


class PromptDict(TypedDict, total=False):
    """A prompt with its parts named: text, or token ids (then the text is only shown)."""

    prompt: str
    prompt_token_ids: list[int]
    cache_salt: str


Prompt = str | list[int] | PromptDict
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestInput:
    """What a caller asks: a prompt in any of its forms, and how to go on from it or to make an embedding of it.

    `request_id` is the caller's own name for the request; None takes the internal one.
    """

    prompt: Prompt
    params: RequestParams
    priority: int = 0
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ProcessedRequest:
    """A request that is ready for the engine, and what only the frontend keeps of it.

    `pooling` is set where an embedding is wanted.
    """

    engine_request: EngineRequest
    prompt: str | None
    external_id: str
    pooling: PoolingParams | None = None


class Processor:
    """Validates and tokenizes requests for one engine.

    Args:
        config: the engine's configuration.
        tokenizer: the model's.
        generation_config: the checkpoint's generation_config.json, or an empty mapping.
        logits_processors: the engine's custom ones, which see each request's parameters.
        stream: tells apart processors of one engine, which must not draw the same seeds.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        generation_config: Mapping[str, Any],
        logits_processors: Sequence[ProcessorClass] = (),
        stream: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self._scheduler, self._cache = config.scheduler, config.cache
        self._max_model_len = config.scheduler.max_model_len
        self._vocab_size = config.model.vocab_size
        self._hidden_size = config.model.hidden_size
        self._max_logprobs = config.max_logprobs
        self._generation_config = generation_config
        self._logits_processors = logits_processors
        self._eos_token_ids = _eos_token_ids(config, tokenizer, generation_config)
        self._checker = GrammarChecker(lambda: self.vocabulary)
        self._counter = itertools.count()
        self._seeds = random.Random(config.seed if stream == 0 else f"{config.seed} {stream}")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the engine must know to hold texts to grammars. Takes up to a second for a large vocabulary."""
        size = max(self._vocab_size, len(self.tokenizer))
        return Vocabulary(self.tokenizer.backend.to_str(), size, self._eos_token_ids)

    def close(self) -> None:
        """End the process that checks grammars, if there is one."""
        self._checker.close()

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a sequence unless `ignore_eos` is set."""
        return list(self._eos_token_ids)

    def default_sampling_params(self) -> SamplingParams:
        """SamplingParams with the checkpoint's own defaults.

        Raises:
            CorruptCheckpointError: generation_config.json has a value that cannot work.
        """
        found = {ours: self._generation_config.get(theirs) for theirs, ours in GENERATION_DEFAULTS.items()}
        try:
            return SamplingParams.from_optional(**found)
        except ParameterError as error:
            raise CorruptCheckpointError(f"The checkpoint's generation_config.json cannot be used: {error}") from error

    def process(self, request: RequestInput, output_kind: RequestOutputKind | None = None) -> ProcessedRequest:
        """`process_all` for one request."""
        return self.process_all([request], output_kind)[0]

    def process_all(
        self, requests: Iterable[RequestInput], output_kind: RequestOutputKind | None = None
    ) -> list[ProcessedRequest]:
        """Check every request, then make engine requests of them, in order.

        A bad one leaves no trace: ids and seeds are given out only once all are known to be good.

        Args:
            output_kind: overrides that of each request's params.

        Raises:
            RequestError: (or a subclass) of the first bad request.
        """
        drafts = [self._draft(request, output_kind) for request in requests]
        return [self._issue(draft) for draft in drafts]

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> PromptDict:
        """Turn a conversation into a prompt with the chat template.

        Raises:
            RequestError: the messages are malformed, or the template refuses them.
        """
        _check_messages(messages)
        text = self.tokenizer.apply_chat_template(
            [_flat_message(message) for message in messages],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            **(chat_template_kwargs or {}),
        )
        return {"prompt": text, "prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def _draft(self, request: RequestInput, output_kind: RequestOutputKind | None) -> ProcessedRequest:
        """A checked request that has no internal id, arrival time and drawn seed yet."""
        pooling = self._checked_pooling(request.params) if isinstance(request.params, PoolingParams) else None
        params = self._checked_params(request.params) if pooling is None else _of_pooling(pooling)
        least_output = 1 if pooling is None else 0
        text, token_ids, salt = self._prompt(request.prompt, params, least_output)
        if pooling is None:
            self._fit_lengths(params, len(token_ids))
            self._find_reasoning(params, token_ids)
        if params.beam is not None:
            check_beams(params, len(token_ids), self._scheduler, self._cache)
        if output_kind is not None:
            params.output_kind = output_kind
        if isinstance(request.priority, bool) or not isinstance(request.priority, int):
            raise RequestError(f"priority must be an integer, not {request.priority!r}.", "priority")
        engine_request = EngineRequest(
            request_id="",
            prompt_token_ids=token_ids,
            params=params,
            eos_token_ids=self._eos_token_ids,
            bad_word_token_ids=self._bad_word_token_ids(params.bad_words or []),
            priority=request.priority,
            cache_salt=salt,
            pooling=None if pooling is None else pooling.pooling or "last",
            grammar=self._grammar(params),
        )
        return ProcessedRequest(engine_request, text, request.request_id or "", pooling)

    def _grammar(self, params: SamplingParams) -> str | None:
        """The checked grammar of what the text must look like; the engine needs nothing else of it."""
        structure, params.structured_outputs = params.structured_outputs, None
        if structure is None:
            return None
        kind = structure.constraint
        try:
            source = grammar_source(structure, self.tokenizer.special_tokens)
            self._checker.check(source)
        except GrammarError as error:
            raise GrammarError(
                str(error).replace("The grammar", f"The {SUBJECTS[kind]}", 1), error.param or kind
            ) from None
        return source

    def _issue(self, draft: ProcessedRequest) -> ProcessedRequest:
        request = draft.engine_request
        request.request_id = str(next(self._counter))
        request.arrival_time = time.monotonic()
        if request.params.seed is None:
            request.params.seed = self._seeds.getrandbits(SEED_BITS)
        return ProcessedRequest(request, draft.prompt, draft.external_id or request.request_id, draft.pooling)

    def _checked_pooling(self, params: PoolingParams) -> PoolingParams:
        """A copy of its own for the request; copying checks each field's range once more."""
        params = params.clone()
        if params.dimensions is not None and params.dimensions > self._hidden_size:
            raise ParameterError(
                f"dimensions is {params.dimensions}, but this model's embeddings have {self._hidden_size}.",
                "dimensions",
            )
        return params

    def _checked_params(self, params: object) -> SamplingParams:
        """A copy of its own for the request; copying checks each field's range once more."""
        if not isinstance(params, SamplingParams):
            raise ParameterError(f"sampling_params must be a SamplingParams, not {type(params).__name__}.")
        params = params.clone()
        self._check_vocabulary("stop_token_ids", params.stop_token_ids)
        self._check_vocabulary("allowed_token_ids", params.allowed_token_ids)
        self._check_vocabulary("logit_bias", params.logit_bias)
        self._check_logprobs("logprobs", params.logprobs)
        self._check_logprobs("prompt_logprobs", params.prompt_logprobs)
        validate_params(self._logits_processors, params)
        return params

    def _check_vocabulary(self, name: str, token_ids: Iterable[int] | None) -> None:
        for token in token_ids or ():
            if not 0 <= token < self._vocab_size:
                raise ParameterError(
                    f"{name} has token id {token}, but the vocabulary ends at {self._vocab_size - 1}.", name
                )

    def _check_logprobs(self, name: str, count: int | None) -> None:
        if count is None or self._max_logprobs == -1:
            return
        if count == -1 or count > self._max_logprobs:
            asked = "the whole vocabulary's" if count == -1 else str(count)
            raise ParameterError(
                f"{name} asks for {asked} logprobs, but this engine gives at most {self._max_logprobs}: "
                f"start it with a higher max_logprobs.",
                name,
            )

    def _prompt(
        self, prompt: Prompt, params: SamplingParams, least_output: int
    ) -> tuple[str | None, list[int], str | None]:
        """Text where there is one, token ids and cache salt of a prompt, cut and checked.

        Args:
            least_output: tokens that must fit in the context behind it.
        """
        text, given_ids, salt = _parts(prompt)
        if given_ids is not None:
            token_ids = list(given_ids)
            for token in token_ids:
                if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocab_size:
                    raise RequestError(
                        f"The prompt has {token!r} where a token id from 0 to {self._vocab_size - 1} is expected.",
                        "prompt_token_ids",
                    )
        else:
            token_ids = self.tokenizer.encode(text or "", add_special_tokens=True)
            if max(token_ids, default=0) >= self._vocab_size:
                raise RequestError(
                    f"The prompt has a token that the tokenizer knows ({max(token_ids)}) but the model does not: its "
                    f"vocabulary ends at {self._vocab_size - 1}.",
                    "prompt",
                )
        token_ids = self._truncated(token_ids, params, least_output)
        if not token_ids:
            raise RequestError("The prompt is empty: give it at least one token.", "prompt")
        if len(token_ids) + least_output > self._max_model_len:
            raise PromptTooLongError(
                f"This model's maximum context length is {self._max_model_len} tokens, which leaves "
                f"{self._max_model_len - least_output} for the prompt, but it has {len(token_ids)}: shorten it or set "
                f"truncate_prompt_tokens.",
                "prompt",
            )
        return text, token_ids, salt

    def _truncated(self, token_ids: list[int], params: SamplingParams, least_output: int) -> list[int]:
        keep = params.truncate_prompt_tokens
        if keep is None:
            return token_ids
        if keep == -1:
            keep = max(1, self._max_model_len - (params.max_tokens or least_output))
        return token_ids[-keep:]

    def _fit_lengths(self, params: SamplingParams, num_prompt_tokens: int) -> None:
        room = self._max_model_len - num_prompt_tokens
        if params.min_tokens > room:
            raise ParameterError(
                f"min_tokens is {params.min_tokens}, but the prompt leaves room for {room} tokens in the context of "
                f"{self._max_model_len}.",
                "min_tokens",
            )
        params.max_tokens = min(params.max_tokens or room, room)

    def _find_reasoning(self, params: SamplingParams, prompt_token_ids: list[int]) -> None:
        """A budget needs to know what it is counted between, which callers need not tell."""
        if params.thinking_token_budget is not None and params.reasoning_markers is None:
            params.reasoning_markers = markers_behind(self.tokenizer, prompt_token_ids)
        if params.reasoning_markers is not None:
            self._check_vocabulary("reasoning_markers", params.reasoning_markers.start_token_ids)
            self._check_vocabulary("reasoning_markers", params.reasoning_markers.end_token_ids)

    def _bad_word_token_ids(self, words: Iterable[str]) -> list[list[int]]:
        """Each word as it is tokenized at the start of a text and behind a space.

        A spelling with a token that only the tokenizer knows is left out: the model cannot write it.
        """
        sequences: list[list[int]] = []
        for word in words:
            bare = word.lstrip() or word
            for spelling in (bare, " " + bare):
                token_ids = self.tokenizer.encode(spelling, add_special_tokens=False)
                if not token_ids:
                    raise ParameterError(f"bad_words has {word!r}, which stands for no token.", "bad_words")
                if token_ids not in sequences and max(token_ids) < self._vocab_size:
                    sequences.append(token_ids)
        return sequences


def _parts(prompt: Prompt) -> tuple[str | None, list[int] | None, str | None]:
    """Text, token ids and cache salt of a prompt, each None where it has none; no contents checked."""
    if isinstance(prompt, str):
        return prompt, None, None
    if isinstance(prompt, (list, tuple)):
        return None, list(prompt), None
    if not isinstance(prompt, Mapping):
        raise RequestError(
            f"A prompt must be text, a list of token ids, or a mapping with one of them, not {type(prompt).__name__}.",
            "prompt",
        )
    unknown = sorted(str(key) for key in set(prompt) - PromptDict.__annotations__.keys())
    if unknown:
        raise RequestError(f"A prompt has no field {unknown[0]!r}.", "prompt")
    text, token_ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt")
    if text is None and token_ids is None:
        raise RequestError("A prompt needs the field prompt or prompt_token_ids.", "prompt")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"prompt must be text, not {type(text).__name__}.", "prompt")
    if token_ids is not None and not isinstance(token_ids, (list, tuple)):
        raise RequestError(f"prompt_token_ids must be a list, not {type(token_ids).__name__}.", "prompt_token_ids")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise RequestError("cache_salt must be a non-empty text.", "cache_salt")
    return text, token_ids, salt


def _of_pooling(pooling: PoolingParams) -> SamplingParams:
    """What the engine is told of a request that samples nothing."""
    return SamplingParams(
        seed=0,
        max_tokens=None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        truncate_prompt_tokens=pooling.truncate_prompt_tokens,
    )


def _eos_token_ids(config: EngineConfig, tokenizer: Tokenizer, generation_config: Mapping[str, Any]) -> list[int]:
    """The tokenizer's, and those of generation_config.json or, where it names none, of config.json."""
    named = generation_config.get("eos_token_id")
    if named is None:
        named = config.model.hf.get("eos_token_id")
    candidates = [tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])]
    return sorted({token for token in candidates if isinstance(token, int) and 0 <= token < config.model.vocab_size})


def _check_messages(messages: Sequence[Message]) -> None:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError("A conversation must be a list of at least one message.", "messages")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError("Each message must be a mapping with a role and content.", "messages")


def _flat_message(message: Message) -> dict[str, Any]:
    """A message whose content, where it came as a list of text parts, is one text."""
    flat = dict(message)
    content = flat.get("content")
    if isinstance(content, (list, tuple)):
        flat["content"] = "\n".join(_part_text(part) for part in content)
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"A message's content must be text, not {type(content).__name__}.", "messages")
    return flat


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RequestError("A message's content may only have parts of type text.", "messages")
