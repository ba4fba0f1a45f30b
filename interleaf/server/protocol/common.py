"""What requests and responses of several endpoints have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, FailFast, Field, WithJsonSchema

from interleaf.observe import get_logger
from interleaf.params import BeamSettings, SamplingParams
from interleaf.server.errors import bad_request
from interleaf.structured_params import StructuredOutputsParams

logger = get_logger(__name__)

MAX_N = 128
MAX_PROMPTS = 2048
MAX_SEQUENCES = 8192
"""Prompts times sequences of each."""
MAX_REPORTED_FIELDS = 1000
"""Names of ignored fields that are remembered, so that each is reported once."""

NOT_SUPPORTED = {
    "audio": "this server makes no audio",
    "container": "no code is run here",
    "context_management": "conversations are taken as they are",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "kv_transfer_params": "caches cannot be handed to other servers",
    "logits_processors": "no code is taken from requests",
    "mcp_servers": "no tool is run here",
    "moderation": "this server moderates nothing",
    "web_search_options": "this server searches no web",
}
"""Fields whose being ignored would change the answer: field -> why it is refused."""

WITHOUT_EFFECT = {
    "guided_decoding_backend": "there is one",
    "metadata": "nothing is kept of it",
    "prediction": "it would change nothing in the answer",
    "prompt_cache_key": "every prefix is cached",
    "prompt_cache_options": "every prefix is cached",
    "prompt_cache_retention": "every prefix is cached",
    "safety_identifier": "users are not told apart",
    "service_tier": "there is one",
    "store": "completions are not stored",
    "user": "users are not told apart",
    "verbosity": "the model decides",
}
"""Documented fields that change nothing here: field -> why."""

_reported: set[str] = set()


class FirstMistake(FailFast):
    """Ends the check of a list at its first mistake: a million of them must not make a million complaints."""

    def __hash__(self) -> int:
        # Types that are joined with `|` are hashed, together with what annotates them.
        return hash(type(self))


Texts = Annotated[list[str], FirstMistake()]
TokenIds = Annotated[
    list[int], FirstMistake(), WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}})
]
LogitBias = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": {"type": "number"}})]
"""What is in it is checked by `SamplingParams`."""


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""Notes of a client, with OpenAI's limits."""


class ApiModel(BaseModel):
    """Base of all request shapes: types are taken strictly, and fields that are not known are reported."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    without_effect: ClassVar[dict[str, str]] = WITHOUT_EFFECT

    def check_fields(self) -> None:
        """Refuse fields that must not be ignored; log which other ones are.

        Raises:
            ApiError: a field asks for something that there is not.
        """
        for name, value in (self.model_extra or {}).items():
            if name in NOT_SUPPORTED:
                if value:
                    raise bad_request(f"{name} is not supported: {NOT_SUPPORTED[name]}.", name, "unsupported_parameter")
            else:
                report_ignored(name, self.without_effect.get(name, "it is not known"))


def report_ignored(name: str, reason: str) -> None:
    """Log, once for each name, that a field of a request changes nothing."""
    if name not in _reported and len(_reported) < MAX_REPORTED_FIELDS:
        _reported.add(name)
        logger.warning("The field %.100r of a request has no effect: %s.", name, reason)


class StreamOptions(ApiModel):
    """`include_usage` adds a last chunk with the usage, `continuous_usage_stats` the usage so far to every chunk."""

    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False

    without_effect: ClassVar[dict[str, str]] = {"include_obfuscation": "lengths of chunks are not hidden"}


class JsonSchemaFormat(ApiModel):
    """A schema and its name; it is followed to the letter, as OpenAI does with `strict`."""

    name: str = Field(min_length=1, max_length=1000)
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(ApiModel):
    """What an answer must look like: the fields of a structural tag are those of `StructuredOutputsParams`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: Texts | None = None
    format: dict[str, Any] | None = None

    def structure(self) -> dict[str, Any]:
        """Fields of `StructuredOutputsParams`; none for text.

        Raises:
            ApiError: there is no schema where one is needed.
        """
        if self.type == "text":
            return {}
        if self.type == "json_object":
            return {"json_object": True}
        if self.type == "structural_tag":
            return {"structural_tag": self.model_dump(exclude_none=True, exclude={"json_schema"})}
        if self.json_schema is None:
            raise bad_request("response_format of type json_schema needs the field json_schema.", "response_format")
        schema = self.json_schema.json_schema
        return {"json_object": True} if schema is None else {"json": schema}


class StructureFields(ApiModel):
    """What an answer must look like, in OpenAI's field, vLLM's newer one and its older ones."""

    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Texts | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def structure(self) -> StructuredOutputsParams | None:
        """All of them together.

        Raises:
            ParameterError: they ask for several things, or one of them cannot be.
        """
        fields = {name: value for name, value in (self.structured_outputs or {}).items() if value is not None}
        known = StructuredOutputsParams.__struct_fields__
        for name in sorted(fields.keys() - set(known)):
            report_ignored(f"structured_outputs.{name}", "it is not known")
            del fields[name]
        if self.response_format is not None:
            fields |= self.response_format.structure()
        for name, value in (
            ("json", self.guided_json),
            ("regex", self.guided_regex),
            ("choice", self.guided_choice),
            ("grammar", self.guided_grammar),
            ("whitespace_pattern", self.guided_whitespace_pattern),
            ("structural_tag", self.structural_tag),
        ):
            if value is not None:
                fields[name] = value
        return StructuredOutputsParams(**fields) if fields else None


class RequestFields(ApiModel):
    """What a request may say to the engine, whatever it wants of it."""

    model: str | None = None
    priority: int | None = 0
    request_id: str | None = Field(None, min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")
    cache_salt: str | None = Field(None, min_length=1)


class SamplingFields(RequestFields, StructureFields):
    """How to sample: OpenAI's fields and vLLM's; what they mean is told in `interleaf.params.SamplingParams`."""

    n: int | None = Field(None, ge=1, le=MAX_N)
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    logit_bias: LogitBias | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Texts | None = None
    prompt_logprobs: int | None = None
    speculative: bool | None = None
    vllm_xargs: dict[str, Any] | None = None

    use_beam_search: bool | None = False
    beam_width: int | None = Field(None, ge=1, le=MAX_N)
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = None

    def sampling_params(self, defaults: SamplingParams, **own: Any) -> SamplingParams:
        """SamplingParams of this request.

        Args:
            defaults: the checkpoint's, for what the request leaves open.
            own: further fields, which the endpoint gives.

        Raises:
            ParameterError: a value is out of range.
        """
        values = {name: getattr(defaults, name) for name in DEFAULTED}
        values |= {name: value for name in SHARED if (value := getattr(self, name)) is not None}
        own["structured_outputs"] = own.get("structured_outputs") or self.structure()
        if self.use_beam_search:
            # A checkpoint's temperature is for sampling.
            values["temperature"] = 1.0 if self.temperature is None else self.temperature
            values["beam"] = self._beam_settings()
        return SamplingParams(**values, extra_args=self.vllm_xargs, **own)

    def _beam_settings(self) -> BeamSettings:
        """The width is vLLM's `n` or `best_of` where there is no `beam_width`."""
        widths = (self.beam_width, getattr(self, "best_of", None), self.n)
        given: dict[str, Any] = {
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
        }
        return BeamSettings(
            next((width for width in widths if width is not None), 1),
            **{name: value for name, value in given.items() if value is not None},
        )

    def check_fields(self) -> None:
        super().check_fields()
        if self.stream_options is not None:
            self.stream_options.check_fields()
            if not self.stream:
                raise bad_request("stream_options are only for requests with stream set to true.", "stream_options")
        if self.beam_width is not None and not self.use_beam_search:
            raise bad_request("beam_width needs use_beam_search set to true.", "beam_width")
        if self.stream and self.prompt_logprobs is not None:
            raise bad_request("prompt_logprobs cannot be streamed: set stream to false.", "prompt_logprobs")

    def usage_in_stream(self, forced: bool) -> tuple[bool, bool]:
        """Whether a last chunk tells the usage, and whether every chunk does.

        Args:
            forced: a last chunk does in any case.
        """
        options = self.stream_options
        if options is None:
            return forced, False
        last = bool(options.include_usage) or forced
        return last, last and bool(options.continuous_usage_stats)


DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields for which a checkpoint may have defaults."""
SHARED = (
    *DEFAULTED,
    "n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "allowed_token_ids",
    "bad_words",
    "speculative",
    "prompt_logprobs",
)
"""Fields that mean the same in `SamplingParams`."""


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    """Tokens that a request took; `cached_tokens` are those of the prompt that were in the prefix cache.

    `completion_tokens_details` are there for models that reason.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobsField = list[dict[str, PromptLogprob] | None]
"""Per prompt token: token id -> logprob; nothing for the first one."""
