"""A real OpenTelemetry SDK that keeps what it is given, and ways to look at it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.backends import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer, TracedCheckpointer
from locus_tiered.core.clock import Clock
from locus_tiered.core.layer import Layer


class Seen:
    """What one OpenTelemetry SDK was told."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def traced(self, inner: BaseCheckpointer, **options: Any) -> TracedCheckpointer:
        """``inner``, seen by this."""
        return TracedCheckpointer(inner, tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        """All that have ended, by their beginning."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str, tier: str | None = None) -> list[ReadableSpan]:
        """The spans of this name, of a tier where one is named."""
        return [
            span
            for span in self.spans
            if span.name == name and (tier is None or (span.attributes or {}).get("locus.tier") == tier)
        ]

    def forget(self) -> None:
        """Forget the spans."""
        self._exporter.clear()

    def trees(self) -> list[str]:
        """Every trace as an indented text, one line per span: its name, its tier, its error."""
        spans = self.spans
        known = {span.context.span_id for span in spans}
        roots = [span for span in spans if span.parent is None or span.parent.span_id not in known]
        return ["\n".join(self._lines(root, spans, 0)) for root in roots]

    @property
    def tree(self) -> str:
        """The only trace."""
        (tree,) = self.trees()
        return tree

    def _lines(self, span: ReadableSpan, spans: list[ReadableSpan], depth: int) -> Iterable[str]:
        attributes = span.attributes or {}
        below = attributes.get("db.system.name") != "locus_tiered" and "locus.tier" in attributes
        words = [span.name, f"[{attributes['locus.tier']}]" if below else "", str(attributes.get("error.type", ""))]
        yield "  " * depth + " ".join(word for word in words if word)
        for child in spans:
            if child.parent is not None and child.parent.span_id == span.context.span_id:
                yield from self._lines(child, spans, depth + 1)

    def points(self) -> list[tuple[str, dict[str, Any], float]]:
        """Every data point: metric, labels, value (the count of a histogram)."""
        data = self._reader.get_metrics_data()
        return [
            (metric.name, dict(point.attributes), point.count if hasattr(point, "count") else point.value)
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]

    def value(self, metric: str, **labels: str) -> float:
        """The sum of a metric over the points that have these labels (``locus_tier="far"``)."""
        wanted = {name.replace("__", ".").replace("locus_", "locus."): value for name, value in labels.items()}
        return sum(value for name, found, value in self.points() if name == metric and wanted.items() <= found.items())


class Flaky(Layer):
    """Fails the operations of these names as often as told, with what it is told."""

    def __init__(self, inner: BaseCheckpointer, name: str | None = None) -> None:
        super().__init__(inner, name=name)
        self.failures: dict[str, list[BaseException]] = {}

    async def handle(self, operation: Any) -> Any:
        waiting = self.failures.get(operation.name)
        if waiting:
            raise waiting.pop(0)
        return await self.inner.handle(operation)


class FlakyBackend(MemoryCheckpointer):
    """A backend that fails or stops when told."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BaseException] = []
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def _maybe(self) -> None:
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)

    async def save(self, *args: Any, **kwargs: Any) -> str:
        await self._maybe()
        return await super().save(*args, **kwargs)

    async def load(self, *args: Any, **kwargs: Any) -> AgentState | None:
        await self._maybe()
        return await super().load(*args, **kwargs)


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)


QUICK = Clock(sleep=_no_sleep)
"""The real clock, but nobody waits."""


def two_tiers(home: BaseCheckpointer | None = None, **options: Any) -> TieredCheckpointer:
    """Memory in front of ``home``."""
    return TieredCheckpointer(
        BoundedMemoryCheckpointer("16MiB"), MemoryCheckpointer() if home is None else home, **options
    )


def saying(*words: str, **metadata: Any) -> AgentState:
    """A state with one user message for each word."""
    return AgentState(messages=tuple(Message.user(word) for word in words), metadata=metadata)
