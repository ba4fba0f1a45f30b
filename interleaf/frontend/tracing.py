"""A span of OpenTelemetry for each request, under vLLM's names.

The SDK is an extra: it is imported when traces are asked for, and never else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interleaf.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from interleaf.frontend.output import RequestState
    from interleaf.params import SamplingParams

TRACE_HEADERS = ("traceparent", "tracestate")
"""Headers in which a request names its parent, as the W3C has them."""
SPAN_NAME = "llm_request"
SERVICE_NAME = "interleaf"
CLOSE_SECONDS = 2.0
PROTOCOL_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"


class RequestTracer:
    """Tells a collector of requests that have ended.

    Raises:
        ConfigError: the extra is missing, or the environment names no protocol that there is.
    """

    def __init__(self, endpoint: str) -> None:
        self._exporter = exporter_to(endpoint)
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        service = os.environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("interleaf")

    def record(
        self, state: RequestState, params: SamplingParams, model_name: str, headers: Mapping[str, str] | None
    ) -> None:
        """Make the span of a request that has ended.

        Args:
            model_name: what the span calls the model.
            headers: of the request, of which TRACE_HEADERS matter.
        """
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Requests are timed by a clock that is never set; spans have the time of day.
        offset = time.time() - time.monotonic()
        times = state.metrics
        span = self._tracer.start_span(
            SPAN_NAME,
            context=TraceContextTextMapPropagator().extract(headers or {}),
            kind=SpanKind.SERVER,
            attributes=_attributes(state, params, model_name),
            start_time=_nanoseconds(times.arrival_time + offset),
        )
        if any(str(sequence.finish_reason) == "error" for sequence in state.sequences):
            span.set_status(StatusCode.ERROR)
        span.end(_nanoseconds(times.finished_time + offset))

    def close(self) -> None:
        """Send what has not been sent yet, unless it takes longer than CLOSE_SECONDS."""
        closing = threading.Thread(target=self._provider.shutdown, name="interleaf-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            # The exporter would go on trying for ten seconds where nobody listens.
            self._exporter.shutdown()


def exporter_to(endpoint: str) -> SpanExporter:
    """What sends spans there, by the protocol that the environment names; gRPC is the default, as in vLLM.

    Raises:
        ConfigError: see `RequestTracer`.
    """
    protocol = os.environ.get(PROTOCOL_VARIABLE, "grpc")
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc

            return over_grpc.OTLPSpanExporter(endpoint=endpoint)
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http

            return over_http.OTLPSpanExporter(endpoint=endpoint)
    except ImportError:
        raise ConfigError("Traces need the extra otlp: pip install 'interleaf[otlp]'.") from None
    raise ConfigError(f"{PROTOCOL_VARIABLE} must be grpc or http/protobuf, not {protocol!r}.")


def _attributes(state: RequestState, params: SamplingParams, model_name: str) -> dict[str, Any]:
    times = state.metrics
    attributes = {
        "gen_ai.response.model": model_name,
        "gen_ai.request.id": state.external_id,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.n": params.n,
        "gen_ai.usage.prompt_tokens": len(state.prompt_token_ids),
        "gen_ai.usage.completion_tokens": sum(len(sequence.token_ids) for sequence in state.sequences),
        "gen_ai.latency.e2e": times.finished_time - times.arrival_time,
    }
    if times.first_token_time:
        scheduled = times.scheduled_time or times.arrival_time
        attributes |= {
            "gen_ai.latency.time_in_queue": max(scheduled - times.arrival_time, 0.0),
            "gen_ai.latency.time_to_first_token": times.first_token_time - times.arrival_time,
            "gen_ai.latency.time_in_model_prefill": times.first_token_time - scheduled,
            "gen_ai.latency.time_in_model_decode": times.last_token_time - times.first_token_time,
            "gen_ai.latency.time_in_model_inference": times.last_token_time - scheduled,
        }
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
