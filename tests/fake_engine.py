"""A tiny deterministic "model" behind the engine client's interface, and a tokenizer of single characters.

The model's next token is a function of the sequence so far, so its answers can be computed by hand;
`FakeClient.script` overrides them by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from interleaf.config import CacheConfig, EngineConfig, SchedulerConfig
from interleaf.engine.core import StepTimes
from interleaf.errors import RequestError
from interleaf.messages import (
    EngineOutput,
    EngineOutputs,
    EngineRequest,
    FinishReason,
    SchedulerStats,
    TokenLogprobs,
)
from interleaf.model_config import parse_model_config

EOS = 0
VOCAB_SIZE = 128
MAX_MODEL_LEN = 64


def engine_config(**changes: Any) -> EngineConfig:
    """A small engine's configuration; `changes` are fields of EngineConfig."""
    model = parse_model_config(
        {
            "architectures": ["FakeForCausalLM"],
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 256,
        }
    )
    fields: dict[str, Any] = {
        "model_name": "fake",
        "model": model,
        "cache": CacheConfig(block_size=16, num_blocks=32, enable_prefix_caching=True),
        "scheduler": SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=MAX_MODEL_LEN),
        "dtype": "float32",
        "threads": 1,
        "seed": 0,
        "max_logprobs": 5,
    }
    return EngineConfig(**{**fields, **changes})


class CharacterBytes:
    """Token -> bytes, as `interleaf.frontend.token_bytes.TokenBytes` gives them."""

    strips_first_space = False

    def __getitem__(self, token: int) -> bytes:
        return chr(token).encode()


class NoBackend:
    """The library's tokenizer, of which nobody can make anything."""

    def to_str(self) -> str:
        return "{}"


class FakeTokenizer:
    """Token i is character chr(i); token 0 is the end of a sequence, a special token without text."""

    eos_token_id = EOS
    bos_token_id = None
    all_special_ids = [EOS]
    special_id_set = frozenset([EOS])
    special_tokens: list[str] = []
    backend = NoBackend()
    token_bytes = CharacterBytes()
    chat_template: str | None = "fake"

    def __len__(self) -> int:
        return VOCAB_SIZE

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [min(ord(character), VOCAB_SIZE - 1) for character in text]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return "".join("" if token == EOS and skip_special_tokens else chr(token) for token in token_ids)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        text = "".join(f"{message['role'][0]}:{message['content']};" for message in messages)
        if chat_template:
            text = chat_template + text
        if tools:
            text += f"t{len(tools)};"
        if continue_final_message:
            return text[:-1]
        return text + ("a:" if add_generation_prompt else "")


class FakeDetokenizer:
    """Emits each token's text at once, or late by `lag` tokens, as unfinished characters do."""

    def __init__(
        self, tokenizer: FakeTokenizer, prompt: list[int], skip_special: bool, spaces: bool, lag: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._waiting: list[int] = []
        self._lag = lag

    def append(self, token_ids: list[int]) -> str:
        self._waiting += token_ids
        if len(self._waiting) <= self._lag:
            return ""
        return self.flush()

    def flush(self) -> str:
        waiting, self._waiting = self._waiting, []
        return self._tokenizer.decode(waiting, skip_special_tokens=self._skip_special)


def next_token(token_ids: list[int]) -> int:
    """A lower-case letter that depends on every token before it."""
    return ord("a") + sum((position + 1) * token for position, token in enumerate(token_ids)) % 26


@dataclass
class Sequence:
    request: EngineRequest
    index: int
    token_ids: list[int] = field(default_factory=list)


class FakeClient:
    """The engine's interface, with one token a sequence and step.

    Attributes:
        script: prompt text -> the text to answer (then EOS), or an exception to raise when it is added.
        on_step: called at the start of each step with its number.
        requests: every request that was ever added.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or engine_config()
        self.script: dict[str, str | Exception] = {}
        self.on_step: Callable[[int], None] = lambda number: None
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.num_steps = 0
        self.num_closed = 0
        self.num_resets = 0
        self._running: list[Sequence] = []

    def add_request(self, request: EngineRequest) -> None:
        answer = self.script.get(_text(request.prompt_token_ids))
        if isinstance(answer, Exception):
            raise answer
        if any(request.request_id == old.request_id for old in self.requests):
            raise RequestError("This id was used before.")
        self.requests.append(request)
        self._running += [Sequence(request, index) for index in range(request.params.n)]

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        self._running = [one for one in self._running if one.request.request_id not in request_ids]

    def abort_sequences(self, sequence_ids: list[str]) -> None:
        self.aborted += sequence_ids
        self._running = [one for one in self._running if _sequence_id(one) not in sequence_ids]

    def has_unfinished(self) -> bool:
        return bool(self._running)

    def step(self) -> EngineOutputs:
        self.num_steps += 1
        self.on_step(self.num_steps)
        outputs = [self._advance(sequence) for sequence in self._running]
        self._running = [one for one, output in zip(self._running, outputs, strict=True) if not output.finished]
        return EngineOutputs(outputs, self.stats())

    def reset_prefix_cache(self) -> bool:
        self.num_resets += 1
        return not self._running

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_blocks=32,
            num_free_blocks=32 - len(self._running),
            num_used_token_slots=12 * len(self._running),
            prefix_cache_queries=10,
            prefix_cache_hits=4,
            num_steps=self.num_steps,
        )

    def step_times(self) -> StepTimes:
        """Each step takes 4 seconds, whatever the clock says."""
        steps = self.num_steps
        return StepTimes(steps, schedule=0.5 * steps, execute=3.0 * steps, update=0.5 * steps, kernels=2.0 * steps)

    def close(self) -> None:
        self.num_closed += 1

    def _advance(self, sequence: Sequence) -> EngineOutput:
        params = sequence.request.params
        if sequence.request.pooling is not None:
            return EngineOutput(
                sequence.request.request_id, 0, [], finish_reason=FinishReason.STOP, embedding=_pooled(sequence.request)
            )
        token = self._next(sequence)
        first = not sequence.token_ids
        sequence.token_ids.append(token)
        reason, stop = None, None
        if token in sequence.request.eos_token_ids and not params.ignore_eos:
            reason = FinishReason.STOP
        elif token in (params.stop_token_ids or []):
            reason, stop = FinishReason.STOP, token
        elif len(sequence.token_ids) == params.max_tokens:
            reason = FinishReason.LENGTH
        return EngineOutput(
            request_id=sequence.request.request_id,
            index=sequence.index,
            new_token_ids=[token],
            logprobs=None if params.logprobs is None else [_logprobs(token, params.logprobs)],
            prompt_logprobs=self._prompt_logprobs(sequence) if first else None,
            finish_reason=reason,
            stop_reason=stop,
        )

    def _next(self, sequence: Sequence) -> int:
        answer = self.script.get(_text(sequence.request.prompt_token_ids))
        if isinstance(answer, str):
            position = len(sequence.token_ids)
            return ord(answer[position]) if position < len(answer) else EOS
        return next_token([*sequence.request.prompt_token_ids, sequence.index, *sequence.token_ids])

    def _prompt_logprobs(self, sequence: Sequence) -> list[TokenLogprobs] | None:
        count = sequence.request.params.prompt_logprobs
        if count is None or sequence.index:
            return None
        return [_logprobs(token, count) for token in sequence.request.prompt_token_ids[1:]]


def _logprobs(token: int, count: int) -> TokenLogprobs:
    """The token is the second likeliest; the likeliest ones are tokens 100, `token`, 102, ..."""
    likeliest = [token if rank == 2 else 99 + rank for rank in range(1, count + 1)]
    return TokenLogprobs([token, *likeliest], [-2.0, *(-float(rank) for rank in range(1, count + 1))], 2)


def _pooled(request: EngineRequest) -> list[float]:
    """As many values as the model is wide: the length of the prompt, 1 for "mean", then zeros."""
    return [float(len(request.prompt_token_ids)), float(request.pooling == "mean"), *[0.0] * 30]


def _text(token_ids: list[int]) -> str:
    return "".join(map(chr, token_ids))


def _sequence_id(sequence: Sequence) -> str:
    suffix = f".{sequence.index}" if sequence.index else ""
    return sequence.request.request_id + suffix
