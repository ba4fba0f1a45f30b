"""What a request may ask for: sampling and pooling parameters under vLLM's names."""

from __future__ import annotations

import copy
import math
from enum import IntEnum
from typing import Any, Literal, get_args

import msgspec

from interleaf.errors import ParameterError
from interleaf.reasoning import ReasoningMarkers
from interleaf.structured_params import StructuredOutputsParams

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this are greedy: dividing logits by them would overflow."""

MAX_SEED = 2**63 - 1
MAX_STOP_STRINGS = 64
MAX_N = 16384
MAX_BEAM_WIDTH = 1024
FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)

MUTABLE = (
    "stop",
    "stop_token_ids",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "extra_args",
    "structured_outputs",
    "guided_decoding",
    "reasoning_markers",
)
"""Fields of `SamplingParams` whose values can change."""

Pooling = Literal["last", "mean"]
"""Which hidden states an embedding is made of: the last token's, or the mean of all tokens'."""


class RequestOutputKind(IntEnum):
    """How results arrive while a request is streamed."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class BeamSettings(msgspec.Struct, omit_defaults=True, frozen=True):
    """How to search for the likeliest texts in place of sampling one; the rules are those of Transformers.

    A bad value raises `ParameterError` with the field in `.param`.

    Fields:
        width: beams that are followed side by side.
        length_penalty: in [-10, 10]; a text's score is its logprob / length ** length_penalty.
        early_stopping: True ends the search with the `width`-th finished text; False when the best beam, judged at its
            present length, is no better than the finished texts; "never" when it could not become better at its
            longest.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        _integer("beam_width", self.width, 1, MAX_BEAM_WIDTH)
        _number("length_penalty", self.length_penalty, -10.0, 10.0)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ParameterError('early_stopping must be true, false or "never".', "early_stopping")


class SamplingParams(msgspec.Struct, omit_defaults=True, kw_only=False):
    """How to pick each next token, when to stop, and what to return.

    The names, defaults and meanings are vLLM's (which follow OpenAI's API). Every value is
    checked when the object is made; a bad one raises `ParameterError` with the field in `.param`.

    Fields:
        n: sequences to return for one prompt; sequence i samples with seed `seed + i`.
        presence_penalty, frequency_penalty: in [-2, 2]; subtracted from the logits of tokens that
            were generated (once; once per occurrence).
        repetition_penalty: > 0; divides positive (multiplies negative) logits of the tokens in
            the prompt and the output.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; keep the smallest set of tokens with at least this much probability.
        top_k: keep this many tokens; 0 or -1 keeps all.
        min_p: in [0, 1]; drop tokens less likely than this share of the likeliest.
        seed: of the sampling noise; None draws one from the engine's seed.
        stop: strings that end the text, also across token borders.
        stop_token_ids: tokens that end the text.
        ignore_eos: go on past the end-of-sequence token.
        max_tokens: of the output; None is as many as the context holds.
        min_tokens: no end-of-sequence or stop token before this many.
        logprobs: return the logprobs of this many likeliest tokens (and of the sampled one);
            -1 is the whole vocabulary.
        prompt_logprobs: the same for each prompt token.
        detokenize: turn tokens into text; False leaves `text` empty.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens in the text.
        include_stop_str_in_output: keep the stop string or stop token in the text.
        output_kind: see `RequestOutputKind`.
        logit_bias: token id -> value in [-100, 100] added to its logit.
        allowed_token_ids: only these may be sampled.
        bad_words: texts that must not be generated.
        truncate_prompt_tokens: keep only the last this many prompt tokens; -1 is as many as fit.
        speculative: False computes this request without drafts, where the engine makes them; the text is the same.
        extra_args: free-form, for plug-ins.
        beam: search for the `n` likeliest texts in place of sampling. Logprobs are then those that texts are ranked by:
            behind `temperature` (where it is neither 0 nor 1) and what changes logits. The other fields of sampling
            (`top_p`, `top_k`, `min_p`, `seed`) have nothing to do; `stop` cuts the texts that come out.
        structured_outputs: what the text must look like.
        guided_decoding: the same under the name that it had in older releases of vLLM; moved to
            `structured_outputs`.
        thinking_token_budget: most tokens of reasoning, whose end is then forced; None is no limit. Without
            `reasoning_markers`, those that the model's chat template speaks of are taken.
        reasoning_markers: what the text may begin with; `structured_outputs` is about what comes behind it.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    truncate_prompt_tokens: int | None = None
    extra_args: dict[str, Any] | None = None
    speculative: bool | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None
    reasoning_markers: ReasoningMarkers | None = None
    beam: BeamSettings | None = None

    def __post_init__(self) -> None:
        self._normalize()
        self._check_structure()
        self._check_sampling()
        self._check_beam()
        self._check_lengths()
        self._check_stops()
        self._check_token_maps()

    @staticmethod
    def from_optional(**fields: Any) -> SamplingParams:
        """Build from fields of which those that are None take their defaults."""
        return SamplingParams(**{name: value for name, value in fields.items() if value is not None})

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return self.stop if isinstance(self.stop, list) else []

    def clone(self) -> SamplingParams:
        """A copy that shares nothing that could change; its fields' ranges are checked once more."""
        own = {name: copy.deepcopy(value) for name in MUTABLE if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(self, **own)

    def _normalize(self) -> None:
        given: object = self.stop
        if isinstance(given, str):
            self.stop = [given]
        elif isinstance(given, tuple):
            self.stop = list(given)
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        if self.logprobs is True:
            self.logprobs = 1
        if self.prompt_logprobs is True:
            self.prompt_logprobs = 1

    def _check_structure(self) -> None:
        for name in ("structured_outputs", "guided_decoding"):
            if not isinstance(getattr(self, name), StructuredOutputsParams | None):
                raise ParameterError(f"{name} must be a StructuredOutputsParams.", name)
        if self.guided_decoding is not None:
            if self.structured_outputs is not None:
                raise ParameterError(
                    "guided_decoding is an older name of structured_outputs: give one of them.", "guided_decoding"
                )
            self.structured_outputs, self.guided_decoding = self.guided_decoding, None
        if not isinstance(self.reasoning_markers, ReasoningMarkers | None):
            raise ParameterError("reasoning_markers must be ReasoningMarkers.", "reasoning_markers")

    def _check_sampling(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, low_open=True)
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _integer("seed", self.seed, -MAX_SEED - 1, MAX_SEED)

    def _check_beam(self) -> None:
        if self.beam is None:
            return
        if not isinstance(self.beam, BeamSettings):
            raise ParameterError("beam must be a BeamSettings.", "beam")
        if self.n > self.beam.width:
            raise ParameterError(f"n ({self.n}) must not be greater than beam_width ({self.beam.width}).", "n")

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError(
                f"min_tokens ({self.min_tokens}) must not be greater than max_tokens ({self.max_tokens}).",
                "min_tokens",
            )
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, -1, 2**31 - 1)
        if self.prompt_logprobs is not None:
            _integer("prompt_logprobs", self.prompt_logprobs, -1, 2**31 - 1)
        if self.truncate_prompt_tokens is not None:
            _truncation(self.truncate_prompt_tokens)
        if self.thinking_token_budget is not None:
            _integer("thinking_token_budget", self.thinking_token_budget, 0, 2**31 - 1)

    def _check_stops(self) -> None:
        if self.stop is not None:
            if not isinstance(self.stop, list) or not all(isinstance(text, str) for text in self.stop):
                raise ParameterError("stop must be a string or a list of strings.", "stop")
            if "" in self.stop:
                raise ParameterError("stop must not contain an empty string.", "stop")
            if len(self.stop) > MAX_STOP_STRINGS:
                raise ParameterError(f"stop must not hold more than {MAX_STOP_STRINGS} strings.", "stop")
            if self.stop and not self.detokenize:
                raise ParameterError("stop strings need detokenize=True.", "stop")
        _token_ids("stop_token_ids", self.stop_token_ids)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(f"{name} must be true or false.", name)
        if self.speculative is not None and not isinstance(self.speculative, bool):
            raise ParameterError("speculative must be true or false.", "speculative")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise ParameterError("output_kind must be a RequestOutputKind.", "output_kind")

    def _check_token_maps(self) -> None:
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise ParameterError("logit_bias must map token ids to numbers.", "logit_bias")
            self.logit_bias = {_token_key(token): bias for token, bias in self.logit_bias.items()}
            for bias in self.logit_bias.values():
                _number("logit_bias", bias, -100.0, 100.0)
        _token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ParameterError("allowed_token_ids must not be empty.", "allowed_token_ids")
        if self.bad_words is not None and (
            not isinstance(self.bad_words, list) or not all(isinstance(word, str) and word for word in self.bad_words)
        ):
            raise ParameterError("bad_words must be a list of non-empty strings.", "bad_words")
        if self.extra_args is not None and not isinstance(self.extra_args, dict):
            raise ParameterError("extra_args must be a mapping.", "extra_args")


class BeamSearchParams(msgspec.Struct, omit_defaults=True):
    """What `LLM.beam_search` takes: vLLM's fields, and some of Transformers' `generate`.

    A bad value raises `ParameterError` with the field in `.param` when the request is made.

    Fields:
        beam_width: beams that are followed side by side, and texts that are returned.
        max_tokens: of the output.
        ignore_eos: go on past the end-of-sequence token.
        temperature: texts are ranked by softmax(logits / temperature); 0 is the same as 1.
        length_penalty, early_stopping: see `BeamSettings`.
        include_stop_str_in_output: keep the end-of-sequence token or what else ended a text.
        stop: strings at which the texts that come out are cut off; they do not steer the search.
        stop_token_ids: tokens that end a text.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | str = False
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None

    def sampling_params(self, num_logprobs: int | None) -> SamplingParams:
        """The same as parameters of a request that returns all beams.

        Raises:
            ParameterError: a value is out of range.
        """
        beam = BeamSettings(self.beam_width, self.length_penalty, self.early_stopping)
        return SamplingParams(
            n=beam.width,
            temperature=self.temperature,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            max_tokens=self.max_tokens,
            logprobs=num_logprobs,
            include_stop_str_in_output=self.include_stop_str_in_output,
            output_kind=RequestOutputKind.FINAL_ONLY,
            beam=beam,
        )


class PoolingParams(msgspec.Struct, omit_defaults=True):
    """How to make an embedding of a prompt: of the model's hidden states behind its last norm.

    Every value is checked when the object is made; a bad one raises `ParameterError` with the field in `.param`.

    Fields:
        pooling: see `Pooling`; None is "last".
        dimensions: keep only the first this many; None keeps all.
        normalize: scale the embedding (what is kept of it) to length 1.
        truncate_prompt_tokens: keep only the last this many prompt tokens; -1 is as many as fit.
    """

    pooling: Pooling | None = None
    dimensions: int | None = None
    normalize: bool = True
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.pooling is not None and self.pooling not in get_args(Pooling):
            raise ParameterError(f"pooling must be one of {', '.join(get_args(Pooling))}.", "pooling")
        if self.dimensions is not None:
            _integer("dimensions", self.dimensions, 1, 2**31 - 1)
        if not isinstance(self.normalize, bool):
            raise ParameterError("normalize must be true or false.", "normalize")
        if self.truncate_prompt_tokens is not None:
            _truncation(self.truncate_prompt_tokens)

    def clone(self) -> PoolingParams:
        return copy.deepcopy(self)


RequestParams = SamplingParams | PoolingParams
"""What a prompt comes with: how to go on from it, or how to make an embedding of it."""


def _truncation(value: Any) -> None:
    _integer("truncate_prompt_tokens", value, -1, 2**31 - 1)
    if value == 0:
        raise ParameterError("truncate_prompt_tokens must be at least 1, or -1.", "truncate_prompt_tokens")


def _number(name: str, value: Any, low: float, high: float, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ParameterError(f"{name} must be a finite number, not {value!r}.", name)
    if value < low or value > high or (low_open and value == low):
        bounds = f"greater than {low:g}" if low_open else f"at least {low:g}"
        if math.isfinite(high):
            bounds += f" and at most {high:g}"
        raise ParameterError(f"{name} must be {bounds}, not {value!r}.", name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} must be an integer, not {value!r}.", name)
    if not low <= value <= high:
        raise ParameterError(f"{name} must be between {low} and {high}, not {value}.", name)


def _token_ids(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list) or any(
        isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in value
    ):
        raise ParameterError(f"{name} must be a list of token ids (integers from 0).", name)


def _token_key(token: Any) -> int:
    """JSON objects have string keys, so `{"42": 1.0}` is taken as token 42."""
    value = -1
    if isinstance(token, str) and token.isdecimal() and len(token) < 20:
        value = int(token)
    elif isinstance(token, int) and not isinstance(token, bool):
        value = token
    if value < 0:
        raise ParameterError(f"logit_bias has {token!r} where a token id is expected.", "logit_bias")
    return value
