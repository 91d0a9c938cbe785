"""To a collector and back: http/protobuf, over a socket, as an application sends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from locus.memory.backends import MemoryCheckpointer
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from locus_tiered import RetryingCheckpointer, Tier, TracedCheckpointer, turn_span
from tests.integration.agents import agent_on, calls
from tests.tracing.kit import QUICK, FlakyBackend, two_tiers


class Collector:
    """What arrived."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.types: set[str] = set()

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    """A collector's endpoint, while the block runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.types.add(self.headers["Content-Type"])
            if self.path == "/v1/traces":
                collector.traces.append(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
            else:
                assert self.path == "/v1/metrics"
                collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


async def test_a_turn_arrives_at_a_collector_as_it_was() -> None:
    with collecting() as (endpoint, collector):
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"), 3_600_000)
        meters = MeterProvider([reader], shutdown_on_exit=False)
        backend = FlakyBackend()
        checkpointer = TracedCheckpointer(
            two_tiers(Tier(RetryingCheckpointer(backend, clock=QUICK), name="far")),
            tracer_provider=tracers,
            meter_provider=meters,
        )
        await checkpointer.load("ünï-\ud800")
        backend.failures = [ConnectionResetError()]
        agent = agent_on(checkpointer, *calls("a", "b", "c"), "done")
        async with turn_span(agent, "thread-1"):
            await agent.arun("Look them up.", thread_id="thread-1")
        tracers.shutdown()
        meters.shutdown()
    assert collector.types == {"application/x-protobuf"}
    spans = collector.spans()
    (turn,) = [span for span in spans if span.name == "agent.turn"]
    in_turn = [span for span in spans if span.trace_id == turn.trace_id]
    children = [
        span.name
        for span in sorted(in_turn, key=lambda s: s.start_time_unix_nano)
        if span.parent_span_id == turn.span_id
    ]
    assert children == ["checkpoint.load", *["checkpoint.save"] * 4, *["checkpoint.delete"] * 3]
    attempts = [span for span in in_turn if span.name == "checkpoint.attempt"]
    failed = [span for span in attempts if any(each.key == "error.type" for each in span.attributes)]
    assert len(failed) == 1
    assert failed[0].kind == Span.SPAN_KIND_CLIENT
    metrics = {
        metric.name: metric
        for request in collector.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"db.client.operation.duration", "locus.checkpoint.retries"} <= metrics.keys()
    assert metrics["db.client.operation.duration"].unit == "s"
    assert metrics["db.client.operation.duration"].histogram.data_points[0].explicit_bounds[0] == 0.0001
    assert metrics["locus.checkpoint.retries"].sum.data_points[0].as_int == 1


async def test_a_collector_that_is_down_fails_no_operation(caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as (endpoint, _):
        pass
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=1)))
    checkpointer = TracedCheckpointer(two_tiers(MemoryCheckpointer()), tracer_provider=tracers)
    agent = agent_on(checkpointer, *calls("a"), "done")
    result = await agent.arun("Look it up.", thread_id="t")
    assert result.text == "done"
    tracers.shutdown()
