"""`POST /v1/completions`: text behind text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from interleaf.frontend.processor import PromptDict
from interleaf.outputs import CompletionOutput, Logprob, PromptLogprobs, RequestOutput
from interleaf.params import RequestOutputKind, SamplingParams
from interleaf.server import generation
from interleaf.server.clock import now
from interleaf.server.errors import bad_request
from interleaf.server.generation import Context, UsageCounter, context_of, generated
from interleaf.server.logprobs import LogprobWriter, of_prompt
from interleaf.server.protocol.common import MAX_SEQUENCES
from interleaf.server.protocol.completions import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.streaming import EventStream, event, json_response, until_gone

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/completions", responses=responses(CompletionResponse, stream=True))
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Write on from a prompt."""
    job = Job.of(body, context_of(request))
    if body.stream:
        return await EventStream.begin(request.receive, job.chunks(), openai=True)
    return json_response(await until_gone(request.receive, job.response()))


@dataclass
class Job:
    """One request: its parameters, and what has come of it.

    Fields:
        count: choices for each prompt; `params.n` may be more, of which the best are taken.
        echoed: per prompt, what is told once of it: its logprobs.
        offsets: choice -> length of the text that its logprobs have told of.
    """

    body: CompletionRequest
    context: Context
    id: str
    model: str
    params: SamplingParams
    count: int
    created: int = field(default_factory=now)
    echoed: dict[int, PromptLogprobs] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(body: CompletionRequest, context: Context) -> Job:
        """Check a request.

        Raises:
            ApiError, RequestError: it is refused.
        """
        body.check_fields()
        model = context.state.check_model(body.model)
        count = body.n or 1
        choose = body.best_of is not None and body.best_of > count and not body.use_beam_search
        defaults = context.engine.default_sampling_params()
        limit = defaults.max_tokens if body.max_tokens is None else max(1, body.max_tokens)
        params = body.sampling_params(
            defaults,
            max_tokens=limit,
            logprobs=0 if choose and body.logprobs is None else body.logprobs,
            output_kind=RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY,
        )
        if choose:
            params.n = body.best_of or count
        if body.echo and body.logprobs is not None and params.prompt_logprobs is None:
            params.prompt_logprobs = body.logprobs
        return Job(body, context, generation.identifier("cmpl", context, body), model, params, count)

    @property
    def nothing_wanted(self) -> bool:
        """No output is asked for, only the prompt's echo; the engine writes one token all the same."""
        return self.body.max_tokens == 0

    async def prompts(self) -> list[PromptDict]:
        special = self.body.add_special_tokens is not False
        prompts = self.body.prompts()
        if len(prompts) * self.params.n > MAX_SEQUENCES:
            raise bad_request(
                f"{len(prompts)} prompts and n (or best_of) of {self.params.n} ask for more than {MAX_SEQUENCES} "
                f"sequences.",
                "n",
            )
        tokenized = [await generation.tokenized(self.context.engine, one, special) for one in prompts]
        generation.check_room(self.context, tokenized, self.params, self.body.max_tokens, "max_tokens")
        return tokenized

    def outputs(self, prompts: list[PromptDict]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        return generated(self.context, self.body, prompts, self.params, self.id)

    async def response(self) -> CompletionResponse:
        """The whole response."""
        prompts = await self.prompts()
        counter = UsageCounter(len(prompts))
        choices: list[CompletionChoice] = []
        async with aclosing(self.outputs(prompts)) as outputs:
            async for number, output in outputs:
                if self.nothing_wanted:
                    _empty(output)
                counter.add(number, output)
                if output.prompt_logprobs is not None:
                    self.echoed[number] = output.prompt_logprobs
                for rank, one in enumerate(self._best(output.outputs)):
                    choices.append(self._choice(number, number * self.count + rank, output, one, first=True))
        choices.sort(key=lambda choice: choice.index)
        fingerprint = self.context.state.fingerprint
        return CompletionResponse(self.id, self.created, self.model, choices, fingerprint, counter.usage())

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The response in pieces."""
        usage_at_end, usage_always = self.body.usage_in_stream(self.context.state.options.force_include_usage)
        prompts = await self.prompts()
        counter = UsageCounter(len(prompts))
        begun: set[int] = set()
        chunk = CompletionResponse(self.id, self.created, self.model, [], self.context.state.fingerprint)
        async with aclosing(self.outputs(prompts)) as outputs:
            async for number, output in outputs:
                if self.nothing_wanted:
                    _empty(output)
                counter.add(number, output)
                if output.prompt_logprobs is not None:
                    self.echoed[number] = output.prompt_logprobs
                if usage_at_end:
                    chunk.usage = counter.usage() if usage_always else None
                for one in output.outputs:
                    index = number * self.count + one.index
                    if index in begun and not (one.text or one.finished or self._tells_tokens(one)):
                        continue
                    chunk.choices = [self._choice(number, index, output, one, first=index not in begun)]
                    begun.add(index)
                    yield event(chunk)
        if usage_at_end:
            chunk.choices, chunk.usage = [], counter.usage()
            yield event(chunk)

    def _tells_tokens(self, output: CompletionOutput) -> bool:
        return bool(output.token_ids) and (self.body.logprobs is not None or bool(self.body.return_token_ids))

    def _best(self, outputs: list[CompletionOutput]) -> list[CompletionOutput]:
        """The likeliest sequences by the mean logprob of their tokens."""
        if len(outputs) <= self.count:
            return outputs

        def quality(output: CompletionOutput) -> float:
            return (output.cumulative_logprob or 0.0) / max(1, len(output.token_ids))

        return sorted(outputs, key=quality, reverse=True)[: self.count]

    def _choice(
        self, number: int, index: int, output: RequestOutput, one: CompletionOutput, first: bool
    ) -> CompletionChoice:
        """A choice, or what is new of it; the prompt is told of with the first piece."""
        body = self.body
        echo = bool(body.echo) and first
        prompt_text = self._prompt_text(output) if echo else ""
        choice = CompletionChoice(index, prompt_text + one.text, None, one.finish_reason, one.stop_reason)
        if body.logprobs is not None:
            choice.logprobs = self._logprobs(index, output, one, self.echoed.get(number) if echo else None)
        if body.return_token_ids:
            choice.token_ids = one.token_ids
            choice.prompt_token_ids = output.prompt_token_ids if first else UNSET
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = of_prompt(self.echoed.get(number)) or []
        return choice

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None and self.params.truncate_prompt_tokens is None:
            return output.prompt
        return self.context.engine.tokenizer.decode(output.prompt_token_ids)

    def _logprobs(
        self, index: int, output: RequestOutput, one: CompletionOutput, prompt: PromptLogprobs | None
    ) -> CompletionLogprobs:
        writer = LogprobWriter(self.context.engine.tokenizer, generation.tokens_as_ids(self.context, self.body))
        token_ids = [*(output.prompt_token_ids if prompt else []), *one.token_ids]
        entries: list[dict[int, Logprob] | None] = [*(prompt or []), *(one.logprobs or [])]
        told = writer.legacy(token_ids, entries, self.body.logprobs or 0, self.offsets.get(index, 0))
        if told.tokens:
            self.offsets[index] = told.text_offset[-1] + len(told.tokens[-1])
        return told


def _empty(output: RequestOutput) -> None:
    for one in output.outputs:
        one.text, one.token_ids, one.logprobs = "", [], None if one.logprobs is None else []
        one.finish_reason, one.stop_reason = one.finish_reason and "length", None
