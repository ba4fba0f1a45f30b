"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from interleaf.frontend.processor import PromptDict
from interleaf.outputs import CompletionOutput
from interleaf.params import RequestOutputKind, SamplingParams
from interleaf.server import generation
from interleaf.server.answers import Thinking, ToolChoice
from interleaf.server.chat_answer import ChatAnswers, tool_choice_of
from interleaf.server.chat_prompt import chat_prompt, message_dict
from interleaf.server.clock import now
from interleaf.server.errors import bad_request
from interleaf.server.generation import Context, UsageCounter, context_of, generated
from interleaf.server.logprobs import LogprobWriter, of_prompt
from interleaf.server.protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletionRequest,
    ChatLogprobs,
    ChatResponse,
    ChunkChoice,
    Delta,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.stored_chats import keep, kept_when_done
from interleaf.server.streaming import EventStream, event, json_response, until_gone

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", responses=responses(ChatResponse, stream=True))
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation."""
    job = Job.of(body, context_of(request))
    if body.store and await job.context.state.chat_store.get(job.id) is not None:
        # A client's id may come twice, and one chat must not take another's place.
        job.id = f"chatcmpl-{uuid.uuid4().hex}"
    if body.stream:
        chunks = kept_when_done(job.context, body, job.chunks()) if body.store else job.chunks()
        return await EventStream.begin(request.receive, chunks, openai=True)
    return json_response(await until_gone(request.receive, job.response()))


@dataclass
class Job:
    """One request and its parameters."""

    body: ChatCompletionRequest
    context: Context
    id: str
    model: str
    params: SamplingParams
    choice: ToolChoice
    created: int = field(default_factory=now)

    @staticmethod
    def of(body: ChatCompletionRequest, context: Context) -> Job:
        """Check a request.

        Raises:
            ApiError, RequestError: it is refused.
        """
        body.check_fields()
        model = context.state.check_model(body.model)
        choice = tool_choice_of(body)
        if choice.is_forced and body.response_format is not None:
            # A format is for texts, and a forced call is none.
            body = body.model_copy(update={"response_format": None})
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
        identifier = generation.identifier("chatcmpl", context, body)
        return Job(body, context, identifier, model, params, choice)

    @property
    def role(self) -> str:
        """Of the answer: the assistant's, unless it goes on behind a given message."""
        if self.body.add_generation_prompt is False:
            return self.body.messages[-1].role
        return self.context.state.options.response_role

    def echo(self) -> str:
        """The given message that the answer goes on behind, where it shall be told again."""
        last = self.body.messages[-1]
        if not self.body.echo or last.role != self.role:
            return ""
        content = message_dict(last)["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content)

    async def prompt(self) -> tuple[PromptDict, ChatAnswers]:
        """The prompt, and what reads the answers to it; the parameters get what that needs."""
        body = self.body
        prompt = await chat_prompt(self.context.state, body, with_tools=body.tool_choice != "none")
        field = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        generation.check_room(self.context, [prompt], self.params, getattr(body, field), field)
        last = message_dict(body.messages[-1])["content"] if body.continue_final_message else None
        thinking = Thinking(
            body.include_reasoning is not False,
            body.max_thinking_tokens if body.thinking_token_budget is None else body.thinking_token_budget,
            last if isinstance(last, str) else None,
        )
        plan = self.context.state.parsers.plan(self.params, prompt.get("prompt", ""), self.choice, thinking)
        if plan is not None:
            self.params = plan.params
        return prompt, ChatAnswers(plan, self.role, self.echo())

    async def response(self) -> ChatResponse:
        """The whole response."""
        prompt, answers = await self.prompt()
        counter = UsageCounter(1)
        fingerprint = self.context.state.fingerprint
        response = ChatResponse(self.id, self.created, self.model, [], counter.usage(), fingerprint)
        async with aclosing(generated(self.context, self.body, [prompt], self.params, self.id)) as outputs:
            async for _, output in outputs:
                counter.add(0, output)
                response.choices = [self._choice(one, answers) for one in output.outputs]
                if self.body.return_token_ids:
                    response.prompt_token_ids = output.prompt_token_ids
                if output.prompt_logprobs is not None:
                    response.prompt_logprobs = of_prompt(output.prompt_logprobs) or []
        counter.reasoning_tokens = answers.num_reasoning_tokens(self.context.engine.tokenizer)
        response.usage = counter.usage()
        if self.body.store:
            await keep(self.context, self.body, msgspec.to_builtins(response))
        return response

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The response in pieces: for each choice its role, then what is new."""
        usage_at_end, usage_always = self.body.usage_in_stream(self.context.state.options.force_include_usage)
        prompt, answers = await self.prompt()
        echo = self.echo()
        counter = UsageCounter(1)
        begun: set[int] = set()
        chunk = ChatChunk(self.id, self.created, self.model, [], self.context.state.fingerprint)
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
                    for choice in self._pieces(one, answers):
                        chunk.choices = [choice]
                        yield event(chunk)
        if usage_at_end:
            counter.reasoning_tokens = answers.num_reasoning_tokens(self.context.engine.tokenizer)
            chunk.choices, chunk.usage = [], counter.usage()
            yield event(chunk)

    def _choice(self, one: CompletionOutput, answers: ChatAnswers) -> ChatChoice:
        message, finish_reason = answers.message(one)
        token_ids = one.token_ids if self.body.return_token_ids else UNSET
        return ChatChoice(one.index, message, self._logprobs(one), finish_reason, one.stop_reason, token_ids)

    def _pieces(self, one: CompletionOutput, answers: ChatAnswers) -> list[ChunkChoice]:
        """What a sequence has brought: tokens are told of by the first piece, the end by the last."""
        deltas, finish_reason = answers.deltas(one)
        if not deltas and (one.finished or self._tells_tokens(one)):
            deltas = [Delta() if one.finished else Delta(content="")]
        pieces = [ChunkChoice(one.index, delta) for delta in deltas]
        if pieces:
            pieces[0].logprobs = self._logprobs(one)
            pieces[0].token_ids = one.token_ids if self.body.return_token_ids else UNSET
            pieces[-1].finish_reason = finish_reason
            pieces[-1].stop_reason = one.stop_reason if one.finished else UNSET
        return pieces

    def _tells_tokens(self, one: CompletionOutput) -> bool:
        return bool(one.token_ids) and bool(self.body.logprobs or self.body.return_token_ids)

    def _logprobs(self, one: CompletionOutput) -> ChatLogprobs | None:
        if not self.body.logprobs or one.logprobs is None:
            return None
        writer = LogprobWriter(self.context.engine.tokenizer, generation.tokens_as_ids(self.context, self.body))
        return writer.chat(one.token_ids, one.logprobs, self.body.top_logprobs or 0)
