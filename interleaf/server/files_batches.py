"""`/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from starlette.responses import FileResponse

from interleaf.observe import get_logger
from interleaf.server.batch import ENDPOINTS, NumberedLine, Result, ResultFile, read_lines, run_batch, summary
from interleaf.server.clock import now
from interleaf.server.errors import ApiError, bad_request, validated
from interleaf.server.file_store import FileStore
from interleaf.server.peers import OWNER
from interleaf.server.protocol.batches import (
    BatchList,
    BatchObject,
    BatchRequest,
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
    RequestCounts,
)
from interleaf.server.routing import JsonRoute, responses
from interleaf.server.state import RunningBatch, ServerState, state_of
from interleaf.server.streaming import json_response

logger = get_logger(__name__)
router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
T = TypeVar("T", FileObject, BatchObject)

PURPOSES = ("batch", "assistants", "fine-tune", "vision", "user_data", "evals")
WINDOW_SECONDS = 24 * 3600
CHUNK_BYTES = 1 << 20
ENDED = ("completed", "failed", "expired", "cancelled")

After = Annotated[str | None, Query(max_length=100)]


@router.post("/v1/files", responses=responses(FileObject))
async def upload_file(
    request: Request,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[str | None, Form(alias="expires_after[seconds]", pattern="^[0-9]{1,9}$")] = None,
) -> Response:
    """Keep a file, for as long as `expires_after` says or until it is deleted."""
    lifetime = None if seconds is None else int(seconds)
    if anchor is not None or lifetime is not None:
        lifetime = validated(ExpiresAfter, {"anchor": anchor, "seconds": lifetime}).seconds
    if purpose not in PURPOSES:
        raise bad_request(f"purpose must be one of {', '.join(PURPOSES)}.", "purpose")
    store = state_of(request).files
    file_id, path = store.new_path()
    with path.open("wb") as kept:
        while chunk := await file.read(CHUNK_BYTES):
            await asyncio.to_thread(kept.write, chunk)
    return json_response(_told(store.add_file(file_id, file.filename or "file", purpose, lifetime)))


@router.get("/v1/files", responses=responses(FileList))
async def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
) -> Response:
    """The files that are kept."""
    files = [one for one in state_of(request).files.files() if purpose in (None, one.purpose)]
    page, has_more = _page(files if order == "desc" else files[::-1], after, limit)
    return json_response(_told_page(page, has_more))


@router.get("/v1/files/{file_id}", responses=responses(FileObject))
async def retrieve_file(file_id: str, request: Request) -> Response:
    """What is known of a file."""
    return json_response(_told(state_of(request).files.file(file_id)))


@router.get("/v1/files/{file_id}/content", responses=responses(media_type="application/octet-stream"))
async def file_content(file_id: str, request: Request) -> Response:
    """A file's contents."""
    store = state_of(request).files
    store.file(file_id)
    return FileResponse(store.content_path(file_id), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", responses=responses(FileDeleted))
async def delete_file(file_id: str, request: Request) -> Response:
    """Forget a file."""
    store = state_of(request).files
    if any(file_id == batch.input_file_id and batch.status not in ENDED for batch in store.batches()):
        raise ApiError(409, "The file is the input of a batch that has not ended.", "file_id", "file_in_use")
    store.delete_file(file_id)
    return json_response(FileDeleted(file_id))


@router.post("/v1/batches", responses=responses(BatchObject))
async def create_batch(body: BatchRequest, request: Request) -> Response:
    """Answer the requests in a file, behind other requests."""
    body.check_fields()
    state = state_of(request)
    if body.endpoint not in ENDPOINTS:
        raise bad_request(f"endpoint must be one of {', '.join(ENDPOINTS)}.", "endpoint")
    if state.files.file(body.input_file_id, "input_file_id").purpose != "batch":
        raise bad_request("The input file's purpose must be batch.", "input_file_id")
    created = now()
    batch = BatchObject(
        f"batch-{uuid.uuid4().hex}",
        body.endpoint,
        body.input_file_id,
        body.completion_window,
        created,
        created + WINDOW_SECONDS,
        metadata=body.metadata,
        output_expires_after=None if body.output_expires_after is None else body.output_expires_after.seconds,
    )
    response = json_response(_told(batch))
    if state.peers.is_owner:
        start(state, batch)
        # A task that is cancelled before it has begun could not write down its end.
        await asyncio.sleep(0)
    else:
        state.files.put_batch(batch)
        # One that is being started again will find it by itself.
        with suppress(ApiError):
            await state.peers.ask(OWNER, "start_batch", batch.id)
    return response


@router.get("/v1/batches", responses=responses(BatchList))
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: After = None
) -> Response:
    """The batches that are known."""
    page, has_more = _page(state_of(request).files.batches(), after, limit)
    return json_response(_told_page(page, has_more))


@router.get("/v1/batches/{batch_id}", responses=responses(BatchObject))
async def retrieve_batch(batch_id: str, request: Request) -> Response:
    """How far a batch is."""
    return json_response(_told(await _told_by_owner(state_of(request), "batch", batch_id)))


@router.post("/v1/batches/{batch_id}/cancel", responses=responses(BatchObject))
async def cancel_batch(batch_id: str, request: Request) -> Response:
    """End a batch; what is done is kept."""
    return json_response(_told(await _told_by_owner(state_of(request), "cancel_batch", batch_id)))


def _told(one: FileObject | BatchObject) -> dict[str, Any]:
    """An object without the fields that it has no value for: OpenAI's document leaves them out."""
    return {name: value for name, value in msgspec.to_builtins(one).items() if value is not None}


def _told_page(page: Sequence[FileObject | BatchObject], has_more: bool) -> dict[str, Any]:
    ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
    return {"object": "list", "data": [_told(one) for one in page], "has_more": has_more, **ends}


def answer_peers(state: ServerState) -> None:
    """Batches run at one front end; let the others tell it of them, and ask."""

    async def begin(batch_id: str) -> BatchObject:
        batch = _current(state, batch_id)
        if batch_id not in state.batches and batch.status not in ENDED:
            start(state, batch)
            await asyncio.sleep(0)
        return batch

    async def current(batch_id: str) -> BatchObject:
        return _current(state, batch_id)

    async def cancel(batch_id: str) -> BatchObject:
        return await _cancel(state, batch_id)

    state.peers.answers |= {"start_batch": begin, "batch": current, "cancel_batch": cancel}


async def _told_by_owner(state: ServerState, question: str, batch_id: str) -> Any:
    """A batch, as the front end that runs it answers."""
    if state.peers.is_owner:
        return await state.peers.answers[question](batch_id)
    try:
        return await state.peers.ask(OWNER, question, batch_id)
    except ApiError as error:
        if question == "batch" and error.status_code == 503:
            return state.files.batch(batch_id)
        raise


async def _cancel(state: ServerState, batch_id: str) -> BatchObject:
    batch = _current(state, batch_id)
    if batch.status in ENDED:
        raise ApiError(409, f"The batch has ended: it is {batch.status}.", "batch_id")
    batch.status, batch.cancelling_at = "cancelling", now()
    state.files.put_batch(batch)
    running = state.batches[batch_id]
    running.task.cancel()
    with suppress(asyncio.CancelledError):
        await running.task
    return _current(state, batch_id)


def start(state: ServerState, batch: BatchObject) -> None:
    """Run a batch in the background."""
    state.files.put_batch(batch)
    state.batches[batch.id] = RunningBatch(batch, state.spawn(_run(state, batch)))


def resume_all(state: ServerState) -> None:
    """Take up the batches that an earlier server left."""
    for batch in reversed(state.files.batches()):
        if batch.status not in ENDED:
            start(state, batch)


async def _run(state: ServerState, batch: BatchObject) -> None:
    """Wait for the batches before it, then run it to an end; a server that is closed leaves it as it is."""
    try:
        async with state.batch_turn:
            async with asyncio.timeout(max(0, batch.expires_at - now())):
                await _answer_lines(state, batch)
        _end(state.files, batch, "completed")
    except asyncio.CancelledError:
        if batch.status != "cancelling":
            raise
        _end(state.files, batch, "cancelled")
    except TimeoutError:
        _end(state.files, batch, "expired")
    except Exception as error:
        logger.error("Batch %s failed", batch.id, exc_info=error)
        failure = {"code": "internal_error", "message": "The batch cannot be run.", "line": None, "param": None}
        batch.errors = {"object": "list", "data": [failure]}
        _end(state.files, batch, "failed")
    finally:
        del state.batches[batch.id]


async def _answer_lines(state: ServerState, batch: BatchObject) -> None:
    store = state.files
    path = store.content_path(batch.input_file_id)
    batch.output_file_id = batch.output_file_id or store.new_path()[0]
    batch.error_file_id = batch.error_file_id or store.new_path()[0]
    with path.open("rb") as lines:
        total = sum(1 for _ in read_lines(lines, batch.endpoint))
    batch.status, batch.in_progress_at = "in_progress", batch.in_progress_at or now()
    store.put_batch(batch)
    good = ResultFile(store.content_path(batch.output_file_id))
    bad = ResultFile(store.content_path(batch.error_file_id))

    def add(result: Result) -> None:
        (good if result.ok else bad).add(result)
        batch.request_counts = RequestCounts(total, good.num_ok, bad.num_failed)

    batch.request_counts = RequestCounts(total, good.num_ok, bad.num_failed)
    try:
        with path.open("rb") as raw:
            lines_left: Iterator[NumberedLine] = read_lines(raw, batch.endpoint)
            await run_batch(state, lines_left, good.done | bad.done, add)
        batch.status, batch.finalizing_at = "finalizing", now()
    finally:
        good.close()
        bad.close()


def _end(store: FileStore, batch: BatchObject, status: str) -> None:
    """Make the results known as files; one without lines is none."""
    if batch.output_file_id is not None and store.content_path(batch.output_file_id).exists():
        with store.content_path(batch.output_file_id).open("rb") as lines:
            batch.model, batch.usage = summary(lines)
    lifetime = batch.output_expires_after
    for name in ("output_file_id", "error_file_id"):
        file_id = getattr(batch, name)
        path = None if file_id is None else store.content_path(file_id)
        if path is not None and path.exists() and path.stat().st_size:
            store.add_file(file_id, f"{batch.id}_{name.removesuffix('_file_id')}.jsonl", "batch_output", lifetime)
        else:
            setattr(batch, name, None)
    batch.status = status
    setattr(batch, f"{status}_at", now())
    store.put_batch(batch)


def _current(state: ServerState, batch_id: str) -> BatchObject:
    running = state.batches.get(batch_id)
    return state.files.batch(batch_id) if running is None else running.batch


def _page(values: list[T], after: str | None, limit: int) -> tuple[list[T], bool]:
    """At most `limit` values behind the one of id `after`, and whether there are more."""
    names = [value.id for value in values]
    begin = names.index(after) + 1 if after in names else 0
    return values[begin : begin + limit], begin + limit < len(values)
