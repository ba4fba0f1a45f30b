"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from interleaf.frontend.processor import PromptDict
from interleaf.outputs import CompletionOutput
from interleaf.params import RequestOutputKind, SamplingParams
from interleaf.server import generation
from interleaf.server.chat_prompt import chat_prompt, message_dict
from interleaf.server.clock import now
from interleaf.server.errors import bad_request
from interleaf.server.generation import Context, UsageCounter, context_of, generated
from interleaf.server.logprobs import LogprobWriter, of_prompt
from interleaf.server.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletionRequest,
    ChatLogprobs,
    ChatResponse,
    ChunkChoice,
    Delta,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.streaming import EventStream, event, guarded, json_response, until_gone

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", responses=responses(ChatResponse, stream=True))
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation."""
    job = Job.of(body, context_of(request))
    if body.stream:
        return await EventStream.begin(request.receive, guarded(job.chunks()))
    return json_response(await until_gone(request.receive, job.response()))


@dataclass
class Job:
    """One request and its parameters."""

    body: ChatCompletionRequest
    context: Context
    id: str
    model: str
    params: SamplingParams
    created: int = field(default_factory=now)

    @staticmethod
    def of(body: ChatCompletionRequest, context: Context) -> Job:
        """Check a request.

        Raises:
            ApiError, RequestError: it is refused.
        """
        body.check_fields()
        model = context.state.check_model(body.model)
        most = context.engine.config.max_logprobs
        if body.top_logprobs is not None and -1 < most < body.top_logprobs:
            raise bad_request(f"top_logprobs must be at most {most} here.", "top_logprobs")
        defaults = context.engine.default_sampling_params()
        params = body.sampling_params(
            defaults,
            max_tokens=body.max_completion_tokens or body.max_tokens or generation.default_max_tokens(defaults),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            output_kind=RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY,
        )
        return Job(body, context, generation.identifier("chatcmpl", context, body), model, params)

    @property
    def role(self) -> str:
        """Of the answer: the assistant's, unless it goes on behind a given message."""
        return "assistant" if self.body.add_generation_prompt is not False else self.body.messages[-1].role

    def echo(self) -> str:
        """The given message that the answer goes on behind, where it shall be told again."""
        last = self.body.messages[-1]
        if not self.body.echo or last.role != self.role:
            return ""
        content = message_dict(last)["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content)

    async def prompt(self) -> PromptDict:
        return await chat_prompt(self.context.state, self.body, with_tools=self.body.tool_choice != "none")

    async def response(self) -> ChatResponse:
        """The whole response."""
        prompt = await self.prompt()
        echo = self.echo()
        counter = UsageCounter(1)
        response = ChatResponse(self.id, self.created, self.model, [], counter.usage())
        async with aclosing(generated(self.context, self.body, [prompt], self.params, self.id)) as outputs:
            async for _, output in outputs:
                counter.add(0, output)
                response.choices = [
                    ChatChoice(
                        one.index,
                        AnswerMessage(self.role, echo + one.text),
                        self._logprobs(one),
                        one.finish_reason,
                        one.stop_reason,
                        one.token_ids if self.body.return_token_ids else UNSET,
                    )
                    for one in output.outputs
                ]
                if self.body.return_token_ids:
                    response.prompt_token_ids = output.prompt_token_ids
                if output.prompt_logprobs is not None:
                    response.prompt_logprobs = of_prompt(output.prompt_logprobs) or []
        response.usage = counter.usage()
        return response

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The response in pieces: for each choice its role, then what is new."""
        usage_at_end, usage_always = self.body.usage_in_stream
        prompt = await self.prompt()
        echo = self.echo()
        counter = UsageCounter(1)
        begun: set[int] = set()
        chunk = ChatChunk(self.id, self.created, self.model, [])
        async with aclosing(generated(self.context, self.body, [prompt], self.params, self.id)) as outputs:
            async for _, output in outputs:
                counter.add(0, output)
                if usage_at_end:
                    chunk.usage = counter.usage() if usage_always else None
                for one in output.outputs:
                    if one.index not in begun:
                        if self.body.return_token_ids and not begun:
                            chunk.prompt_token_ids = output.prompt_token_ids
                        begun.add(one.index)
                        chunk.choices = [ChunkChoice(one.index, Delta(self.role, echo))]
                        yield event(chunk)
                        chunk.prompt_token_ids = UNSET
                    if one.text or one.finished or self._tells_tokens(one):
                        chunk.choices = [self._piece(one)]
                        yield event(chunk)
        if usage_at_end:
            yield event(ChatChunk(self.id, self.created, self.model, [], counter.usage()))

    def _piece(self, one: CompletionOutput) -> ChunkChoice:
        return ChunkChoice(
            one.index,
            Delta(content=one.text) if one.text or not one.finished else Delta(),
            self._logprobs(one),
            one.finish_reason,
            one.stop_reason if one.finished else UNSET,
            one.token_ids if self.body.return_token_ids else UNSET,
        )

    def _tells_tokens(self, one: CompletionOutput) -> bool:
        return bool(one.token_ids) and bool(self.body.logprobs or self.body.return_token_ids)

    def _logprobs(self, one: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs or one.logprobs is None:
            return None
        writer = LogprobWriter(self.context.engine.tokenizer, bool(self.body.return_tokens_as_token_ids))
        return writer.chat(one.token_ids, one.logprobs, self.body.top_logprobs or 0)
