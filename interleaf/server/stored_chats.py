"""Chat completions that were asked for with `store`: kept, listed, annotated, forgotten."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from interleaf.server.chat_prompt import message_dict
from interleaf.server.errors import ApiError
from interleaf.server.generation import Context
from interleaf.server.protocol.chat import (
    ChatCompletionRequest,
    ChatDeleted,
    ChatList,
    ChatMessage,
    ChatResponse,
    ChatUpdate,
    StoredMessageList,
)
from interleaf.server.response_store import StoredChat
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import state_of
from interleaf.server.streaming import json_response

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

PATH = "/v1/chat/completions"
TOLD_AGAIN = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
)
"""Fields of a request that are told with the answer to it when that is looked up."""

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[str, Query(pattern="^(asc|desc)$")]
After = Annotated[str | None, Query(max_length=200)]


async def keep(context: Context, body: ChatCompletionRequest, answer: dict[str, Any]) -> None:
    """Keep an answer and what it answers."""
    told = body.model_dump(include=set(TOLD_AGAIN), by_alias=True, exclude_none=True)
    told = {**answer, "request_id": context.request_id, "input_user": body.user, **told}
    messages = [_stored_message(message) for message in body.messages]
    await context.state.chat_store.put(StoredChat(told["id"], told, messages, body.metadata or {}))


async def kept_when_done(
    context: Context, body: ChatCompletionRequest, events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, whose answer is kept once all of them were sent."""
    streamed = _Streamed()
    async with aclosing(events):
        async for data in events:
            streamed.add(msgspec.json.decode(data.removeprefix(b"data: ")))
            yield data
    await keep(context, body, streamed.answer())


class _Streamed:
    """The answer that a stream's chunks make together."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk."""
        self._head |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for piece in chunk["choices"]:
            message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
            new = {"index": piece["index"], "message": message, "logprobs": None, "stop_reason": None}
            choice = self._choices.setdefault(piece["index"], new)
            choice |= {name: piece[name] for name in ("finish_reason", "stop_reason") if piece.get(name) is not None}
            _merge(choice["message"], piece["delta"])
            if piece["logprobs"]:
                logprobs = choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                logprobs["content"] += piece["logprobs"]["content"]

    def answer(self) -> dict[str, Any]:
        """All of it, in the form of an answer that comes whole."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices}


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "role":
            message["role"] = value
        elif name != "tool_calls":
            message[name] = (message.get(name) or "") + value
    for piece in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if piece["index"] == len(calls):
            calls.append({"id": piece["id"], "type": "function", "function": {"name": "", "arguments": ""}})
        function = calls[piece["index"]]["function"]
        for name, text in piece["function"].items():
            function[name] += text


@router.get(PATH, responses=responses(ChatList))
async def list_chats(
    request: Request, model: str | None = None, limit: Limit = 20, after: After = None, order: Order = "asc"
) -> Response:
    """The chats that are kept; `metadata[key]=value` chooses among them."""
    asked = {name[9:-1]: text for name, text in request.query_params.items() if name.startswith("metadata[")}

    def wanted(chat: StoredChat) -> bool:
        return model in (None, chat.body["model"]) and asked.items() <= chat.metadata.items()

    page, has_more = await state_of(request).chat_store.page(wanted, after, limit, order == "desc")
    return json_response(_list([_told(chat) for chat in page], has_more))


@router.get(PATH + "/{completion_id}", responses=responses(ChatResponse))
async def retrieve_chat(completion_id: str, request: Request) -> Response:
    """A chat that was kept."""
    return json_response(_told(await _stored(request, completion_id)))


@router.post(PATH + "/{completion_id}", responses=responses(ChatResponse))
async def update_chat(completion_id: str, body: ChatUpdate, request: Request) -> Response:
    """Give a kept chat other metadata."""
    body.check_fields()
    chat = await _stored(request, completion_id)
    chat = StoredChat(chat.id, chat.body, chat.messages, body.metadata or {})
    await state_of(request).chat_store.put(chat)
    return json_response(_told(chat))


@router.delete(PATH + "/{completion_id}", responses=responses(ChatDeleted))
async def delete_chat(completion_id: str, request: Request) -> Response:
    """Forget a chat."""
    await _stored(request, completion_id)
    await state_of(request).chat_store.delete(completion_id)
    return json_response(ChatDeleted(completion_id))


@router.get(PATH + "/{completion_id}/messages", responses=responses(StoredMessageList))
async def list_messages(
    completion_id: str, request: Request, limit: Limit = 20, after: After = None, order: Order = "asc"
) -> Response:
    """The messages that a chat answers."""
    chat = await _stored(request, completion_id)
    messages = [{"id": f"{chat.id}-{number}", **message} for number, message in enumerate(chat.messages)]
    messages = messages if order == "asc" else messages[::-1]
    begin = next((number for number, one in enumerate(messages, start=1) if one["id"] == after), 0)
    return json_response(_list(messages[begin : begin + limit], begin + limit < len(messages)))


async def _stored(request: Request, completion_id: str) -> StoredChat:
    """
    Raises:
        ApiError: (404) it is not kept.
    """
    chat = await state_of(request).chat_store.get(completion_id)
    if chat is None:
        message = f"There is no chat completion {completion_id[:200]!r} here: only those made with store are kept."
        raise ApiError(404, message, "completion_id", "completion_not_found")
    return chat


def _told(chat: StoredChat) -> dict[str, Any]:
    return {**chat.body, "metadata": chat.metadata}


def _list(page: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": has_more, **ends}


def _stored_message(message: ChatMessage) -> dict[str, Any]:
    """A message as it is listed: parts of text are told as parts, and together."""
    plain = message_dict(message)
    content, parts = plain.pop("content"), None
    if isinstance(content, list):
        content, parts = "\n".join(part["text"] for part in content), content
    given = message.model_dump(include={"role", "name", "tool_calls", "tool_call_id"}, exclude_none=True)
    return {"name": None, "refusal": None, **given, "content": content, "content_parts": parts}
