"""LLM: offline use, with vLLM's methods.

One loop serves all of them: `step()` lets the engine compute once, follows what it emitted, and
puts each request's news in its outbox. `generate` and `stream` differ only in what they wait for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from interleaf.config import EngineArgs, EngineConfig, engine_args
from interleaf.errors import ConfigError, EngineDeadError, EngineError, ParameterError, RequestError
from interleaf.frontend.beam_search import beam_output, request_params
from interleaf.frontend.output import OutputProcessor, ProcessedOutputs
from interleaf.frontend.processor import Message, Processor, Prompt, PromptDict, RequestInput
from interleaf.interrupt import InterruptLater
from interleaf.observe import Metric, scheduler_metrics
from interleaf.outputs import BeamSearchOutput, EmbeddingRequestOutput, RequestOutput
from interleaf.params import BeamSearchParams, PoolingParams, RequestOutputKind, RequestParams, SamplingParams
from interleaf.progress import Progress, UseTqdm
from interleaf.worker.logits.custom import load_custom

if TYPE_CHECKING:
    from interleaf.engine.core import StepTimes
    from interleaf.frontend.tokenizer import Tokenizer
    from interleaf.loader.checkpoint import Checkpoint
    from interleaf.messages import EngineOutputs, EngineRequest, SchedulerStats, Vocabulary

T = TypeVar("T")


class EngineClient(Protocol):
    """What is needed of `interleaf.engine.client.InProcessClient`."""

    @property
    def config(self) -> EngineConfig: ...

    def learn(self, vocabulary: Vocabulary) -> None: ...

    def add_request(self, request: EngineRequest) -> None: ...

    def abort(self, request_ids: list[str]) -> None: ...

    def abort_sequences(self, sequence_ids: list[str]) -> None: ...

    def step(self) -> EngineOutputs: ...

    def has_unfinished(self) -> bool: ...

    def reset_prefix_cache(self) -> bool: ...

    def stats(self) -> SchedulerStats: ...

    def step_times(self) -> StepTimes: ...

    def close(self) -> None: ...


class LLM:
    """A model, ready to generate.

    Args:
        model: a directory in Hugging Face layout, a .gguf file, a hub name, or a built-in name;
            None is the built-in model.
        options: the other fields of `interleaf.config.EngineArgs`.

    Raises:
        ConfigError: an option has no such name, or a value that cannot work.
        CheckpointError: the model cannot be found or used.
        InsufficientMemoryError: the model or a useful KV cache does not fit.

    Not safe for use from several threads at once. Frees all its memory on `close()`, at the end of
    a `with` block, or when it is deleted.
    """

    # On the class as well, so that an LLM whose making failed can be closed.
    _client: EngineClient | None = None
    _checkpoint: Checkpoint | None = None

    def __init__(self, model: str | None = None, **options: Any) -> None:
        args = engine_args({"model": model, **options})
        # Imported here, so that a mistyped option costs no second of loading.
        from interleaf.engine.client import InProcessClient
        from interleaf.frontend.generation_config import generation_config
        from interleaf.frontend.tokenizer import load_tokenizer
        from interleaf.loader.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(args.model, args.revision)
        try:
            tokenizer = load_tokenizer(args.tokenizer or checkpoint)
            client = InProcessClient(args, checkpoint)
        except BaseException:
            checkpoint.close()
            raise
        self._attach(client, tokenizer, generation_config(args, checkpoint.generation_config), args)
        self._checkpoint = checkpoint

    @classmethod
    def from_client(
        cls, client: EngineClient, tokenizer: Tokenizer, generation_config: Mapping[str, Any] | None = None
    ) -> Self:
        """An LLM on an engine that runs already; it is closed with the LLM."""
        llm = cls.__new__(cls)
        llm._attach(client, tokenizer, generation_config or {}, EngineArgs())
        return llm

    def _attach(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        generation_config: Mapping[str, Any],
        args: EngineArgs,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._chat_template = _template_text(args.chat_template, tokenizer)
        self._processor = Processor(client.config, tokenizer, generation_config, load_custom(args.logits_processors))
        self._outputs = OutputProcessor(tokenizer)
        self._outboxes: dict[str, list[RequestOutput]] = {}
        self._interrupt_later = InterruptLater()

    # ---- generation ----

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Generate for one prompt or many; results come in the order of the prompts.

        Args:
            prompts: text, a list of token ids, `{"prompt": ...}` or `{"prompt_token_ids": ...}`,
                or a sequence in which these may be mixed.
            sampling_params: for all prompts, or one for each; None takes the checkpoint's defaults.
            priority: for all prompts, or one for each; lower runs first under the priority policy.

        Raises:
            RequestError: a prompt or a parameter is wrong. Nothing was queued then.
        """
        return self._finished(self.enqueue(prompts, sampling_params, priority), use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: UseTqdm = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Make an embedding of one prompt or of each of many; results come in the order of the prompts.

        Args:
            prompts, priority: as for `generate`.
            pooling_params: for all prompts, or one for each; None takes the last token's hidden state, normalized.

        Raises:
            RequestError: a prompt or a parameter is wrong. Nothing was queued then.
        """
        prompts = _listed(prompts)
        given = PoolingParams() if pooling_params is None else pooling_params
        params: list[PoolingParams] = _one_each("pooling_params", given, len(prompts))
        for one in params:
            if not isinstance(one, PoolingParams):
                raise ParameterError(f"pooling_params must be a PoolingParams, not {type(one).__name__}.")
        outputs = self._finished(self.enqueue(prompts, params, priority), use_tqdm)
        return [EmbeddingRequestOutput.from_output(output) for output in outputs]

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        use_tqdm: UseTqdm = False,
        priority: int | Sequence[int] | None = None,
    ) -> list[BeamSearchOutput]:
        """Search for the likeliest texts behind one prompt or each of many; results come in the order of the prompts.

        The rules are those of Transformers' `generate(num_beams=...)`; see docs/beam_search.md.

        Args:
            prompts, priority: as for `generate`.

        Raises:
            RequestError: a prompt or a parameter is wrong. Nothing was queued then.
            RequestFailedError: the engine could not finish a request.
        """
        listed = _listed(prompts)
        asked = request_params(params, self.config.max_logprobs)
        outputs = self._finished(self.enqueue(listed, asked, priority), use_tqdm)
        return [beam_output(output, params, self._tokenizer) for output in outputs]

    def _finished(self, request_ids: list[str], use_tqdm: UseTqdm) -> list[RequestOutput]:
        """The last output of each of these requests, which are aborted if this fails."""
        progress = Progress(use_tqdm, len(request_ids))
        try:
            finished: dict[str, RequestOutput] = {}
            wanted = set(request_ids)
            with self._interrupt_later:
                while len(finished) < len(wanted):
                    news = self.step()
                    for request_id in news.request_outputs:
                        if request_id in wanted:
                            [finished[request_id]] = self.collect(request_id)
                            progress.finish(finished[request_id])
                    progress.advance(news.num_new_tokens)
        except BaseException:
            self.abort(request_ids)
            raise
        finally:
            progress.close()
        return [finished[request_id] for request_id in request_ids]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Generate the next message of a conversation, or of each of several.

        Args:
            messages: `[{"role": "user", "content": "..."}, ...]`, or a list of such lists.
            chat_template: Jinja source that takes the place of the model's own template.
            add_generation_prompt: end the prompt with the beginning of an assistant's message.
            continue_final_message: leave the last message open, so that it is continued.
            tools: passed through to the template.
            chat_template_kwargs: further variables of the template.

        Raises:
            RequestError: as for `generate`, or the template refuses the messages.
        """
        conversations = messages if messages and not isinstance(messages[0], Mapping) else [messages]
        prompts = [
            self.render_chat(
                cast("Sequence[Message]", conversation),
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm)

    def render_chat(self, messages: Sequence[Message], **options: Any) -> PromptDict:
        """The prompt that `chat` makes of a conversation; options are those of `Processor.render_chat`."""
        options["chat_template"] = options.get("chat_template") or self._chat_template
        return self._processor.render_chat(messages, **options)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Yield what each step adds to one prompt's output (`RequestOutputKind.DELTA`).

        The request is checked and queued by this call; closing the generator aborts it.
        """
        [request_id] = self.enqueue([prompt], sampling_params, output_kind=RequestOutputKind.DELTA)
        return self._deltas(request_id)

    def _deltas(self, request_id: str) -> Generator[RequestOutput, None, None]:
        try:
            while True:
                for output in self.collect(request_id):
                    yield output
                    if output.finished:
                        return
                self.step()
        finally:
            self.abort([request_id])

    # ---- the parts that generation is made of ----

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: RequestParams | Sequence[RequestParams] | None = None,
        priority: int | Sequence[int] | None = None,
        output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY,
    ) -> list[str]:
        """Queue prompts without computing anything; arguments are those of `generate`.

        `PoolingParams` in the place of sampling parameters make a request for an embedding, as `embed` does.

        Returns:
            the requests' ids, for `collect` and `abort`.

        Raises:
            RequestError: a prompt or a parameter is wrong. Nothing was queued then.
        """
        client = self._running_client()
        inputs = self._inputs(prompts, sampling_params, priority)
        requests = self._processor.process_all(inputs, output_kind)
        request_ids = [request.engine_request.request_id for request in requests]
        try:
            with self._interrupt_later:
                if any(request.engine_request.grammar is not None for request in requests):
                    client.learn(self._processor.vocabulary)
                for request in requests:
                    client.add_request(request.engine_request)
                    self._outputs.add(request)
                    self._outboxes[request.engine_request.request_id] = []
        except BaseException:
            self.abort(request_ids)
            raise
        return request_ids

    def step(self) -> ProcessedOutputs:
        """Let the engine compute one step, and sort its news into the requests' outboxes.

        Returns:
            the news, which `collect` gives as well.

        Raises:
            EngineError: nothing is left to compute.
        """
        client = self._running_client()
        if not client.has_unfinished():
            raise EngineError("The engine has no unfinished request: nothing more will be generated.")
        with self._interrupt_later:
            processed = self._outputs.process(client.step())
            if processed.abort_sequence_ids:
                client.abort_sequences(processed.abort_sequence_ids)
            for request_id, output in processed.request_outputs.items():
                self._outboxes[request_id].append(output)
        return processed

    def collect(self, request_id: str) -> list[RequestOutput]:
        """Take what a queued request has brought since the last call; after its end it is known no longer."""
        news = self._outboxes.get(request_id, [])
        if news and news[-1].finished:
            del self._outboxes[request_id]
        elif news:
            self._outboxes[request_id] = []
        return news

    def has_unfinished(self) -> bool:
        """Whether the engine has anything to compute."""
        return self._running_client().has_unfinished()

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop queued requests and what they have brought; those that have ended are ignored."""
        live = [request_id for request_id in request_ids if self._outboxes.pop(request_id, None) is not None]
        for request_id in live:
            self._outputs.forget(request_id)
        # An engine that died in a step has nothing left to abort.
        if live and self._client is not None and self._client.has_unfinished():
            self._client.abort(live)

    # ---- the rest ----

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no parameters: the checkpoint's generation_config.json."""
        return self._processor.default_sampling_params()

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False, and nothing done, while requests hold cached blocks."""
        return self._running_client().reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """Counters, gauges and histograms, under vLLM's names."""
        client = self._running_client()
        labels = {"model_name": client.config.model_name, "engine": "0"}
        return [*scheduler_metrics(client.stats(), labels), *self._outputs.statistics.snapshot(labels)]

    @property
    def config(self) -> EngineConfig:
        """The engine's configuration."""
        return self._running_client().config

    @property
    def client(self) -> EngineClient:
        """The engine, for measurements."""
        return self._running_client()

    def close(self) -> None:
        """Free all memory; the LLM cannot be used afterwards. Closing again does nothing."""
        client, self._client = self._client, None
        checkpoint, self._checkpoint = self._checkpoint, None
        if client is not None:
            client.close()
            self._processor.close()
        if checkpoint is not None:
            checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _running_client(self) -> EngineClient:
        if self._client is None:
            raise EngineDeadError("This LLM was closed: make a new one.")
        return self._client

    def _inputs(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: RequestParams | Sequence[RequestParams] | None,
        priority: int | Sequence[int] | None,
    ) -> list[RequestInput]:
        listed = _listed(prompts)
        given = self.get_default_sampling_params() if params is None else params
        params_of_each: list[RequestParams] = _one_each("sampling_params", given, len(listed))
        return [
            RequestInput(prompt, params_of_one, priority_of_one)
            for prompt, params_of_one, priority_of_one in zip(
                listed,
                params_of_each,
                _one_each("priority", 0 if priority is None else priority, len(listed)),
                strict=True,
            )
        ]


def _template_text(template: str | None, tokenizer: Tokenizer) -> str | None:
    """A chat template that is given as Jinja text, as the name of one of the model's, or as a file."""
    if template is None or "{" in template or template in tokenizer.chat_templates:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template {template!r} is no Jinja text, no template of the model and no file that can be read "
            f"({getattr(error, 'strerror', None) or error})."
        ) from None


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list; a list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [cast("Prompt", prompts)]
    if not isinstance(prompts, (list, tuple)):
        raise RequestError(f"prompts must be a prompt or a list of prompts, not {type(prompts).__name__}.", "prompts")
    if prompts and all(isinstance(item, int) for item in prompts):
        return [cast("list[int]", list(prompts))]
    return list(cast("Sequence[Prompt]", prompts))


def _one_each(name: str, value: T | Sequence[T], count: int) -> list[T]:
    if not isinstance(value, (list, tuple)):
        return [cast("T", value)] * count
    if len(value) != count:
        raise RequestError(f"There are {count} prompts, but {name} has {len(value)} entries.", name)
    return list(value)
