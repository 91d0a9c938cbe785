"""What ``TracedCheckpointer`` adds to a call: without an OpenTelemetry SDK, not sampled, sampled, measured.

The inner one is a layer over a backend that does nothing, so that nothing but tracing is added. Half of what is
added when it is not sampled but measured is the SDK's own ``Histogram.record()``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.rows.layer_cost import Constant, PassThrough
from locus_tiered.bench.timing import interleave
from locus_tiered.layers.traced import TracedCheckpointer

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def measure(settings: Settings) -> list[Figure]:
    """``exists`` through a traced layer against the same without it, in microseconds of this process's time."""
    off, on = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    on.add_span_processor(BatchSpanProcessor(_Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    unmeasured = NoOpMeterProvider()
    inner = PassThrough(Constant())
    traced = {
        "no SDK": (1.0, TracedCheckpointer(inner, tracer_provider=NoOpTracerProvider(), meter_provider=unmeasured)),
        "not sampled": (15.0, TracedCheckpointer(inner, tracer_provider=off, meter_provider=unmeasured)),
        "not sampled, with metrics": (None, TracedCheckpointer(inner, tracer_provider=off, meter_provider=meters)),
        "sampled": (60.0, TracedCheckpointer(inner, tracer_provider=on, meter_provider=unmeasured)),
        "sampled, with metrics": (60.0, TracedCheckpointer(inner, tracer_provider=on, meter_provider=meters)),
    }
    calls = {"bare": lambda: inner.exists("thread")}
    calls |= {name: lambda each=each: each.exists("thread") for name, (_, each) in traced.items()}  # type: ignore[misc]
    try:
        rounds = await interleave(
            calls, rounds=settings.pick(41, 5), calls=settings.pick(1000, 200), clock=time.process_time
        )
    finally:
        on.shutdown()
        off.shutdown()
        meters.shutdown()
    return [
        Figure(
            what=f"exists, traced, {name}",
            unit="us",
            against="bare",
            sdk=rounds.median("bare") * 1e6,
            stack=rounds.median(name) * 1e6,
            ratio=rounds.ratio(name, "bare"),
            difference=rounds.difference(name, "bare") * 1e6,
            budget=None if budget is None else Budget("difference", budget),
        )
        for name, (budget, _) in traced.items()
    ]
