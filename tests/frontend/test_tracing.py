"""Spans of requests: what they hold, whose children they are, and that they arrive."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from interleaf import AsyncEngine, SamplingParams
from interleaf.errors import ConfigError
from interleaf.frontend import tracing
from tests.loader import tiny

export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
PARAMS = SamplingParams(temperature=0.5, top_p=0.9, seed=1, n=2, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("traced-model") / "tiny.gguf"
    tiny.tiny_gguf(path)
    return str(path)


@pytest.fixture(autouse=True)
def no_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.PROTOCOL_VARIABLE, raising=False)


def traced(model: str, endpoint: str, headers: Mapping[str, str] | None, aborted: bool = False) -> None:
    """Run one request on a traced engine."""

    async def main() -> None:
        engine = AsyncEngine(
            model=model, kv_cache_memory_bytes=1 << 24, threads=1, served_model_name="m", otlp_traces_endpoint=endpoint
        )
        async with engine:
            outputs: AsyncGenerator[Any, None] = engine.generate([3] * 40, PARAMS, "r", trace_headers=headers)
            async for _ in outputs:
                if aborted:
                    break
            await outputs.aclose()

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps spans; endpoints are not looked at."""
    exporter = export.InMemorySpanExporter()
    monkeypatch.setattr(tracing, "exporter_to", lambda endpoint: exporter)
    return exporter


def test_a_request_has_a_span(model: str, exporter: Any) -> None:
    traced(model, "", PARENT)
    [span] = exporter.get_finished_spans()
    assert span.name == "llm_request" and span.kind.name == "SERVER"
    assert span.parent is not None and format(span.parent.span_id, "x") == "b7ad6b7169203331"
    assert format(span.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    told = {name.removeprefix("gen_ai."): value for name, value in span.attributes.items()}
    latencies = {name.removeprefix("latency."): told.pop(name) for name in list(told) if name.startswith("latency.")}
    assert told == {
        "response.model": "m",
        "request.id": "r",
        "request.max_tokens": 5,
        "request.temperature": 0.5,
        "request.top_p": 0.9,
        "request.n": 2,
        "usage.prompt_tokens": 40,
        "usage.completion_tokens": 10,
    }
    assert 0 <= latencies["time_in_queue"] < latencies["time_to_first_token"] < latencies["e2e"]
    assert latencies["e2e"] == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-3)
    assert span.resource.attributes["service.name"] == "interleaf" and span.status.is_unset


def test_requests_without_a_parent_and_those_that_end_early(model: str, exporter: Any) -> None:
    traced(model, "", None, aborted=True)
    [span] = exporter.get_finished_spans()
    assert span.parent is None and span.attributes["gen_ai.request.id"] == "r"


def test_a_collector_is_sent_spans(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    monkeypatch.setenv(tracing.PROTOCOL_VARIABLE, "http/protobuf")
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        traced(model, f"http://127.0.0.1:{server.server_port}/v1/traces", PARENT)
        server.shutdown()
        thread.join()
    [(path, _)] = received
    assert path == "/v1/traces"


def test_what_cannot_be_had_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tracing.PROTOCOL_VARIABLE, "carrier pigeon")
    with pytest.raises(ConfigError, match="carrier pigeon"):
        AsyncEngine(model=str(tmp_path), otlp_traces_endpoint="http://127.0.0.1:4317")
    monkeypatch.delenv(tracing.PROTOCOL_VARIABLE)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    with pytest.raises(ConfigError, match=r"interleaf\[otlp\]"):
        AsyncEngine(model=str(tmp_path), otlp_traces_endpoint="http://127.0.0.1:4317")
