"""An agent whose checkpoints can be seen: a turn with two tool calls, as OpenTelemetry is told of it.

    python examples/traced_agent.py                       # the turn as a tree
    python examples/traced_agent.py --exporter console    # what an exporter gets
    python examples/traced_agent.py --exporter otlp --endpoint http://localhost:4318

The far store fails once, for a moment: the save is retried, the turn does not notice, the tree shows it. Needs
``pip install "locus-tiered[otel]"``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import defaultdict
from typing import Any

from locus.agent import Agent
from locus.core.state import AgentState
from locus.hooks.builtin.telemetry import TelemetryHook
from locus.memory.backends import MemoryCheckpointer
from locus.testing import ScriptedModel, text, tool_call
from locus.tools import tool
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from locus_tiered import (
    BoundedMemoryCheckpointer,
    DirectoryCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    TracedCheckpointer,
    turn_span,
)


class ShakyStore(MemoryCheckpointer):
    """Somebody's store, on a bad day: its second save fails."""

    saves = 0

    async def save(self, state: AgentState, *args: Any, **kwargs: Any) -> str:
        self.saves += 1
        if self.saves == 2:
            raise ConnectionResetError("connection reset by peer")
        return await super().save(state, *args, **kwargs)


@tool
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def configure(exporter: str, endpoint: str) -> InMemorySpanExporter:
    """OpenTelemetry as an application sets it up; nothing of it is ours."""
    resource = Resource.create({"service.name": "traced-agent"})
    tracers, kept, readers = TracerProvider(resource=resource), InMemorySpanExporter(), []
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces")))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics")))
    elif exporter == "console":
        tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    else:
        tracers.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider(readers, resource=resource))
    return kept


def show(spans: tuple[ReadableSpan, ...]) -> None:
    """Print the spans as trees, with what is remarkable about each."""
    children = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        children[span.parent.span_id if span.parent else None].append(span)

    def line(span: ReadableSpan, depth: int) -> None:
        about = dict(span.attributes or {})
        words = [about[name] for name in ("locus.tier", "error.type") if name in about]
        if "locus.cache.hit" in about:
            words.append("hit" if about["locus.cache.hit"] else "miss")
        took = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
        print(f"{'  ' * depth + span.name:36} {took:8.2f} ms  {', '.join(map(str, words))}".rstrip())
        for child in children[span.context.span_id]:
            line(child, depth + 1)

    for root in children[None]:
        line(root, 0)


async def talk(directory: str) -> None:
    """One turn, under one span."""
    checkpointer = TracedCheckpointer(
        TieredCheckpointer(
            BoundedMemoryCheckpointer(max_bytes="64MiB"),
            DirectoryCheckpointer(directory),
            Tier(RetryingCheckpointer(ShakyStore()), name="far"),
        ),
        thread_id="hash",
    )
    script = [tool_call("weather", call_id=city, city=city) for city in ("Oslo", "Rome")]
    model = ScriptedModel([*script, text("Rome, then.")])  # any model of the SDK; this one needs no key
    hooks = [TelemetryHook()]
    agent = Agent(model=model, tools=[weather], hooks=hooks, checkpointer=checkpointer, context_window=8_000)
    async with turn_span(agent, "ada"):
        await agent.arun("Oslo or Rome?", thread_id="ada")
    await checkpointer.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description="one turn of an agent, as OpenTelemetry sees it")
    arguments.add_argument("--exporter", choices=("tree", "console", "otlp"), default="tree")
    arguments.add_argument("--endpoint", default="http://localhost:4318", help="of a collector, for otlp")
    given = arguments.parse_args()
    kept = configure(given.exporter, given.endpoint)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(talk(directory))
    show(kept.get_finished_spans())


if __name__ == "__main__":
    main()
