"""The events of a response that was kept, as a stream of its making would have told them, each text in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from interleaf.server.streaming import event

DELTAS = {"output_text": "output_text", "reasoning_text": "reasoning_text"}
"""Type of a part -> what its events are named after."""


def beginning(body: dict[str, Any], after: int) -> Iterator[bytes]:
    """The first two events, before anything was written; of them those behind number `after`."""
    unwritten = {**body, "status": "in_progress", "output": [], "completed_at": None}
    unwritten.pop("usage", None)
    unwritten |= {"error": None, "incomplete_details": None}
    for number, kind in enumerate(("created", "in_progress")):
        if number > after:
            yield _encoded(kind, number, {"response": unwritten})


def rest(body: dict[str, Any], after: int) -> Iterator[bytes]:
    """The events behind those, of a response that has ended; of them those behind number `after`."""
    told = [news for index, item in enumerate(body["output"]) for news in _of_item(index, item)]
    for number, (kind, fields) in enumerate([*told, (body["status"], {"response": body})], start=2):
        if number > after:
            yield _encoded(kind, number, fields)


def _encoded(kind: str, number: int, fields: dict[str, Any]) -> bytes:
    kind = f"response.{kind}"
    return event({"type": kind, "sequence_number": number, **fields}, kind)


def _of_item(index: int, item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    place = {"item_id": item["id"], "output_index": index}
    empty: dict[str, Any] = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
    yield "output_item.added", {"output_index": index, "item": {**item, "status": "in_progress", **empty}}
    if item["type"] == "function_call":
        yield "function_call_arguments.delta", {**place, "delta": item["arguments"]}
        yield "function_call_arguments.done", {**place, "name": item["name"], "arguments": item["arguments"]}
    for number, part in enumerate(item.get("content", ())):
        yield from _of_part({**place, "content_index": number}, part)
    yield "output_item.done", {"output_index": index, "item": item}


def _of_part(place: dict[str, Any], part: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    name, text = DELTAS[part["type"]], part["text"]
    extra = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
    yield "content_part.added", {**place, "part": {**part, "text": "", **{key: [] for key in extra}}}
    if text:
        yield f"{name}.delta", {**place, "delta": text, **extra}
    yield f"{name}.done", {**place, "text": text, **extra}
    yield "content_part.done", {**place, "part": part}
