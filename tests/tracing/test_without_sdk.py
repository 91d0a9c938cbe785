"""Where no OpenTelemetry SDK is configured, nothing is made; one that comes later is found."""

from __future__ import annotations

import pytest
from locus.memory.backends import MemoryCheckpointer
from opentelemetry import metrics, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from locus_tiered import TracedCheckpointer, turn_span
from locus_tiered.core import signals
from locus_tiered.layers import spans, traced
from tests.integration.agents import agent_on, calls
from tests.tracing.kit import Seen, saying, two_tiers


@pytest.fixture(params=["nothing", "noop"])
def unseen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TracedCheckpointer:
    """A traced stack that nobody looks at; making a span, a scope or an instrument would fail."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was made")

    monkeypatch.setattr(spans.Scope, "__init__", never)
    monkeypatch.setattr(trace.NoOpTracer, "start_span", never)
    monkeypatch.setattr(traced, "Tracing", never)
    monkeypatch.setattr(signals, "observe", never)
    if request.param == "nothing":
        return TracedCheckpointer(two_tiers())
    return TracedCheckpointer(two_tiers(), tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())


async def test_without_an_sdk_a_whole_turn_makes_nothing(unseen: TracedCheckpointer) -> None:
    agent = agent_on(unseen, *calls("a", "b"), "done")
    async with turn_span(agent, "t") as span:
        await agent.arun("Hello.", thread_id="t")
    assert not span.get_span_context().is_valid
    assert await unseen.list_checkpoints("t")


async def test_an_sdk_that_is_configured_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = TracedCheckpointer(two_tiers())
    await checkpointer.save(saying("hello"), "t")
    seen = Seen()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.tracers)
    await checkpointer.load("t")
    assert seen.named("checkpoint.load")
    assert seen.points() == []
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", seen.meters)
    await checkpointer.load("t")
    assert seen.value("db.client.operation.duration", db__operation__name="load") >= 1


async def test_metrics_alone_and_traces_alone() -> None:
    seen = Seen()
    counted = TracedCheckpointer(two_tiers(), tracer_provider=NoOpTracerProvider(), meter_provider=seen.meters)
    await counted.save(saying("hello"), "t")
    assert not seen.spans
    assert seen.value("db.client.operation.duration", locus_tier="memory") >= 1
    seen = Seen()
    drawn = TracedCheckpointer(two_tiers(), tracer_provider=seen.tracers, meter_provider=NoOpMeterProvider())
    await drawn.save(saying("hello"), "t")
    assert seen.spans
    assert not seen.points()


async def test_a_stack_that_stamps_nothing_stores_what_the_backend_would() -> None:
    seen, plain = Seen(), MemoryCheckpointer()
    state = saying("hello", colour="blue")
    await seen.traced(plain).save(state, "t", "one")
    assert await plain.load("t", "one") == state
