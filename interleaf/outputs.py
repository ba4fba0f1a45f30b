"""What callers get back, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from interleaf.errors import RequestFailedError


@dataclass(slots=True)
class Logprob:
    """Natural logarithm of a token's probability, its rank (1 is the likeliest), and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


SampleLogprobs = list[dict[int, Logprob]]
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass(slots=True)
class CompletionOutput:
    """One generated sequence.

    Fields:
        index: of this sequence among the request's `n`.
        text: the generated text.
        token_ids: the generated tokens.
        cumulative_logprob: sum of the sampled tokens' logprobs; None unless logprobs were asked for.
        logprobs: per token, token id -> Logprob.
        finish_reason: "stop", "length", "abort", "error", or None while it runs.
        stop_reason: the stop string or stop token that ended it; None for end-of-sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds of the monotonic clock; 0.0 where not reached yet."""

    arrival_time: float = 0.0
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    last_token_time: float = 0.0
    finished_time: float = 0.0


@dataclass(slots=True)
class RequestOutput:
    """A request and what was generated for it so far.

    Fields:
        request_id: the caller's id.
        prompt: its text, where the prompt came as text.
        prompt_token_ids: as the model saw them.
        prompt_logprobs: per prompt token, the first being None; None unless asked for.
        outputs: `n` sequences, by index.
        finished: whether all of them ended.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        embedding: what `PoolingParams` ask for, float32 values; None while it is not there, and for other requests.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    embedding: list[float] | None = None


@dataclass(slots=True)
class EmbeddingOutput:
    """A prompt's embedding: float32 values, as many as the model is wide or as were asked for."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        """How many values it has."""
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """A request for an embedding, and what came of it; fields as in `RequestOutput`."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool
    num_cached_tokens: int = 0

    @classmethod
    def from_output(cls, output: RequestOutput) -> Self:
        """
        Args:
            output: the finished one, of a request with `PoolingParams`.

        Raises:
            RequestFailedError: the request ended without its embedding.
        """
        if output.embedding is None:
            raise RequestFailedError(f"Request {output.request_id} was ended before its embedding was computed.")
        return cls(
            output.request_id,
            EmbeddingOutput(output.embedding),
            output.prompt_token_ids,
            output.finished,
            output.num_cached_tokens,
        )


@dataclass(slots=True)
class BeamSearchSequence:
    """One text that a beam search found.

    Fields:
        tokens: prompt and output; without the end-of-sequence or stop token that ended it, unless the parameters keep
            it.
        text: these tokens as text.
        cum_logprob: sum of the output's logprobs, that of the token that ended it included. Sequences are ordered by
            cum_logprob / len(logprobs) ** length_penalty.
        logprobs: per output token, and for the token that ended it, token id -> Logprob.
        finish_reason, stop_reason: as in `CompletionOutput`.
    """

    tokens: list[int]
    text: str
    cum_logprob: float
    logprobs: SampleLogprobs
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """What a beam search found for one prompt, the best first."""

    sequences: list[BeamSearchSequence]
