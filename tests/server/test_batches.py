"""Files of requests: the runner, and `/v1/files` and `/v1/batches`, on the fake engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from interleaf.errors import EngineDeadError, EngineRestartingError, OverloadedError
from interleaf.server.batch import ResultFile, read_lines, run_batch
from interleaf.server.options import ServerOptions
from interleaf.server.state import ServerState
from tests.server.conftest import MODEL, MakeClient, error
from tests.server.fake_async_engine import FakeAsyncEngine

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


def line(name: Any, url: str = CHAT, **body: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}).encode() + b"\n"


async def answer(engine: FakeAsyncEngine, path: Path, lines: list[bytes]) -> dict[Any, dict[str, Any]]:
    """Run a batch into a file; returns the file's results by custom_id or line number."""
    state = ServerState(engine, ServerOptions((MODEL,)))
    results = ResultFile(path)
    try:
        await run_batch(state, read_lines(lines), results.done, results.add)
    finally:
        results.close()
        await state.close()
    told = [json.loads(raw) for raw in path.read_bytes().splitlines()]
    return {(one["error"] or {}).get("line") or one["custom_id"]: one for one in told}


async def test_results(engine: FakeAsyncEngine, tmp_path: Path) -> None:
    lines = [
        line("a"),
        line("b", "/v1/completions", prompt="hi"),
        line("c", "/v1/responses", input="hi"),
        line("d", n=0),
        line("e", model="nope"),
        line("f", stream=True),
        b"\n",
        line("a"),
        line("g", "/v1/audio/speech"),
        b"{\n",
        line(7),
        line("h", "/v1/embeddings", input="hi"),
    ]
    told = await answer(engine, tmp_path / "out", lines)
    assert told["a"]["response"]["body"]["choices"][0]["message"]["content"] == "hello there"
    assert told["b"]["response"]["body"]["choices"][0]["text"] == "hello there"
    assert told["c"]["response"]["body"]["output"][0]["content"][0]["text"] == "hello there"
    assert told["h"]["response"]["body"]["data"][0]["embedding"][0] == 1.0
    assert [told[name]["response"]["status_code"] for name in "abcdef"] == [200, 200, 200, 400, 404, 400]
    assert told["d"]["response"]["body"]["error"]["param"] == "n" and told["d"]["error"] is None
    assert [told[number]["error"]["code"] for number in (8, 9, 10, 11)] == [
        "duplicate_custom_id",
        "invalid_url",
        "invalid_json_line",
        "invalid_json_line",
    ]


async def test_what_is_done_is_not_done_again(engine: FakeAsyncEngine, tmp_path: Path) -> None:
    lines = [line("a"), line("b"), b"{\n", line("c")]
    await answer(engine, tmp_path / "out", lines[:3])
    with (tmp_path / "out").open("ab") as file:
        file.write(b'{"id":"batch_req_torn","custom_id":"c","resp')
    told = await answer(engine, tmp_path / "out", lines)
    assert len(engine.client.requests) == 3
    assert list(told) == ["a", "b", 3, "c"] or set(told) == {"a", "b", 3, "c"}
    assert (tmp_path / "out").read_bytes().count(b"\n") == 4


async def test_overload_is_waited_out(engine: FakeAsyncEngine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("interleaf.server.batch.RESTART_SECONDS", 0.01)
    for failure in (OverloadedError("Full.", 0.01), EngineRestartingError("Wait.")):
        engine.failure = failure
        running = asyncio.ensure_future(answer(engine, tmp_path / type(failure).__name__, [line("a")]))
        await asyncio.sleep(0.05)
        engine.failure = None
        assert (await running)["a"]["response"]["status_code"] == 200


async def test_a_dead_engine_ends_the_run(engine: FakeAsyncEngine, tmp_path: Path) -> None:
    engine.failure = EngineDeadError("Dead.")
    with pytest.raises(EngineDeadError):
        await answer(engine, tmp_path / "out", [line("a"), line("b")])
    assert (tmp_path / "out").read_bytes() == b""


async def upload(client: httpx.AsyncClient, content: bytes, purpose: str = "batch") -> httpx.Response:
    return await client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": purpose})


async def run_to_end(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    for _ in range(200):
        batch: dict[str, Any] = (await client.get(f"/v1/batches/{batch_id}")).json()
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            return batch
        await asyncio.sleep(0.01)
    raise AssertionError(batch)


async def create(client: httpx.AsyncClient, file_id: str, **fields: Any) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}
    return await client.post("/v1/batches", json=body)


async def test_files(client: httpx.AsyncClient) -> None:
    one = (await upload(client, b"content")).json()
    assert (one["object"], one["bytes"], one["filename"], one["purpose"]) == ("file", 7, "in.jsonl", "batch")
    two = (await upload(client, b"x", "user_data")).json()
    assert {file["id"] for file in (await client.get("/v1/files")).json()["data"]} == {one["id"], two["id"]}
    assert [file["id"] for file in (await client.get("/v1/files?purpose=batch")).json()["data"]] == [one["id"]]
    assert (await client.get(f"/v1/files/{one['id']}")).json() == one
    assert (await client.get(f"/v1/files/{one['id']}/content")).content == b"content"
    assert (await client.delete(f"/v1/files/{one['id']}")).json() == {
        "id": one["id"],
        "deleted": True,
        "object": "file",
    }
    for path in (one["id"], one["id"] + "/content", "file-x", "..%2F..%2Fetc%2Fpasswd", f"batch-{'0' * 32}"):
        assert (await client.get(f"/v1/files/{path}")).status_code == 404
    assert error(await upload(client, b"x", "nonsense"))["param"] == "purpose"
    assert error(await client.post("/v1/files", json={}))["status"] == 400
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    assert error(await client.post("/v1/files", content=b"--x\r\nnonsense", headers=multipart))["status"] == 400


async def test_files_that_expire(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    kept = (await client.post("/v1/files", files={"file": b"x"}, data=data)).json()
    assert kept["expires_at"] == kept["created_at"] + 3600
    for change in ({"expires_after[seconds]": "3599"}, {"expires_after[seconds]": "x"}, {"expires_after[anchor]": "x"}):
        told = error(await client.post("/v1/files", files={"file": b"x"}, data={**data, **change}))
        assert told["status"] == 400, change
    path = f"/v1/files/{kept['id']}"
    assert (await client.get(path)).json() == kept
    monkeypatch.setattr("interleaf.server.file_store.now", lambda: kept["expires_at"])
    assert (await client.get(path)).status_code == (await client.get(path + "/content")).status_code == 404
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_a_batch(client: httpx.AsyncClient) -> None:
    file_id = (await upload(client, line("a") + line("b", n=0) + line("c", "/v1/completions"))).json()["id"]
    batch = (await create(client, file_id, metadata={"x": "y"})).json()
    assert batch["status"] == "validating" and batch["metadata"] == {"x": "y"}
    batch = await run_to_end(client, batch["id"])
    assert batch["status"] == "completed" and batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    output = (await client.get(f"/v1/files/{batch['output_file_id']}/content")).text.splitlines()
    usage = json.loads(output[0])["response"]["body"]["usage"]
    assert batch["model"] == MODEL and batch["usage"]["total_tokens"] == usage["total_tokens"] > 0
    assert batch["usage"]["output_tokens"] == usage["completion_tokens"]
    errors = (await client.get(f"/v1/files/{batch['error_file_id']}/content")).text.splitlines()
    assert [json.loads(raw)["custom_id"] for raw in output] == ["a"] and len(errors) == 2
    assert (await client.get("/v1/batches")).json()["data"] == [batch]
    assert error(await client.post(f"/v1/batches/{batch['id']}/cancel"))["status"] == 409


async def test_a_cancelled_batch(client: httpx.AsyncClient, engine: FakeAsyncEngine) -> None:
    engine.pause = 5
    file_id = (await upload(client, line("a"))).json()["id"]
    batch = (await create(client, file_id)).json()
    await asyncio.sleep(0.05)
    assert error(await client.delete(f"/v1/files/{file_id}"))["status"] == 409
    second = (await create(client, file_id)).json()
    for one in (second, batch):
        cancelled = (await client.post(f"/v1/batches/{one['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled" and cancelled["cancelled_at"]
    assert not engine.client.has_unfinished()


async def test_batch_refusals(client: httpx.AsyncClient) -> None:
    data = (await upload(client, b"x", "user_data")).json()["id"]
    assert error(await create(client, data))["param"] == "input_file_id"
    missing = error(await create(client, f"file-{'0' * 32}"))
    assert missing["status"] == 404 and missing["param"] == "input_file_id"
    assert error(await create(client, data, endpoint="/v1/moderations"))["param"] == "endpoint"
    assert error(await create(client, data, completion_window="1h"))["param"] == "completion_window"
    assert error(await client.get("/v1/batches?limit=0"))["param"] == "limit"


async def test_a_batch_outlives_its_server(make_client: MakeClient, engine: FakeAsyncEngine, tmp_path: Path) -> None:
    engine.pause = 5
    async with make_client(files_dir=tmp_path) as client:
        file_id = (await upload(client, line("a"))).json()["id"]
        batch = (await create(client, file_id)).json()
        await asyncio.sleep(0.05)
        await client._transport.app.state.server.close()  # type: ignore[attr-defined]
    engine.pause = 0
    async with make_client(files_dir=tmp_path) as client:
        app = client._transport.app  # type: ignore[attr-defined]
        async with app.router.lifespan_context(app):
            assert (await run_to_end(client, batch["id"]))["request_counts"]["completed"] == 1
