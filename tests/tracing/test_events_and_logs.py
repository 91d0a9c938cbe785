"""The SDK's event bus, inside a run of it; and log records that carry the trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from locus.memory.backends import MemoryCheckpointer
from locus.observability import get_event_bus, reset_event_bus, run_context
from opentelemetry.trace import NoOpTracerProvider

from locus_tiered import CachedCheckpointer, RetryingCheckpointer, Tier, TracedCheckpointer
from locus_tiered.core.errors import BackendError, RetriesExhausted
from locus_tiered.layers.vocabulary import BUS_EVENTS
from tests.integration.agents import agent_on, calls
from tests.tracing.kit import QUICK, Flaky, FlakyBackend, Seen, saying, two_tiers


@pytest.fixture(autouse=True)
def own_bus() -> Iterator[None]:
    reset_event_bus()
    yield
    reset_event_bus()


async def told(run: str) -> list[tuple[str, dict[str, Any]]]:
    """What the bus was told in a run, by type."""
    bus = get_event_bus()
    await bus.close_stream(run)
    return [(event.event_type, event.data) async for event in bus.subscribe(run)]


async def test_the_bus_hears_which_tier_answered_what_was_retried_and_what_is_degraded() -> None:
    backend = FlakyBackend()
    checkpointer = TracedCheckpointer(two_tiers(Tier(RetryingCheckpointer(backend, clock=QUICK), name="far")))
    async with run_context() as run:
        await checkpointer.load("t")
        backend.failures = [ConnectionResetError("SECRET")]
        await checkpointer.save(saying("hello"), "t")
        await checkpointer.load("t")
    assert await told(run) == [
        (
            "memory.checkpoint.retried",
            {"operation": "save", "stack": "stack", "thread_id": "t", "tier": "far", "attempt": 1}
            | {"wait": pytest.approx(0.025, abs=0.025)},
        ),
        (
            "memory.checkpoint.answered",
            {"operation": "load", "stack": "stack", "thread_id": "t", "tier": "memory", "hit": True, "stale": False},
        ),
    ]


async def test_the_bus_hears_of_stale_answers() -> None:
    home = Flaky(MemoryCheckpointer(), name="far")
    checkpointer = TracedCheckpointer(CachedCheckpointer(home, on_outage="stale"), thread_id="off")
    await checkpointer.save(saying("hello"), "t")
    home.failures["head"] = [BackendError("down", member="far", operation="head", temporary=True)]
    async with run_context() as run:
        await checkpointer.load("t")
    (degraded, first), (answered, second) = await told(run)
    assert (degraded, first["reason"]) == ("memory.checkpoint.degraded", "stale")
    assert (answered, second["stale"], second["tier"]) == ("memory.checkpoint.answered", True, "memory")
    assert "thread_id" not in first | second


async def test_what_failed_for_good_was_told_too() -> None:
    backend = FlakyBackend()
    checkpointer = TracedCheckpointer(two_tiers(RetryingCheckpointer(backend, clock=QUICK, attempts=2)))
    await checkpointer.load("t")
    backend.failures = [ConnectionResetError(), ConnectionResetError()]
    async with run_context() as run:
        with pytest.raises(RetriesExhausted):
            await checkpointer.save(saying("hello"), "t")
    assert [name for name, _ in await told(run)] == ["memory.checkpoint.retried"]


async def test_in_a_real_run_ours_stand_beside_the_sdks_own() -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), *calls("a"), "done")
    async with run_context() as run:
        await agent.arun("Hello.", thread_id="t")
        await agent_on(agent.config.checkpointer, "done").arun("Hello again.", thread_id="t")
    names = [name for name, _ in await told(run) if name.startswith("memory.checkpoint.")]
    assert names.count("memory.checkpoint.answered") == 1
    assert "memory.checkpoint.loaded" in names
    assert set(names) <= {*BUS_EVENTS, "memory.checkpoint.loaded", "memory.checkpoint.saved"}


async def test_outside_a_run_the_bus_hears_nothing() -> None:
    seen = Seen()
    checkpointer = seen.traced(two_tiers())
    await checkpointer.save(saying("hello"), "t")
    await checkpointer.load("t")
    assert get_event_bus().stats()["history_runs"] == 0


async def test_a_log_line_carries_the_trace_that_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    seen, near = Seen(), FlakyBackend()
    checkpointer = seen.traced(CachedCheckpointer(MemoryCheckpointer(), near=near))
    await checkpointer.load("t")
    seen.forget()
    near.failures = [OSError("SECRET")]
    with caplog.at_level(logging.WARNING, "locus_tiered"):
        await checkpointer.save(saying("hello"), "t")
    (record,) = caplog.records
    root = seen.named("checkpoint.save")[0]
    assert record.trace_id == f"{root.context.trace_id:032x}"
    assert record.span_id in {f"{span.context.span_id:016x}" for span in seen.spans}
    formatted = logging.Formatter("%(levelname)s %(trace_id)s %(message)s").format(record)
    assert "SECRET" not in formatted


async def test_a_log_line_without_a_trace_has_empty_ids(caplog: pytest.LogCaptureFixture) -> None:
    near = FlakyBackend()
    checkpointer = TracedCheckpointer(
        CachedCheckpointer(MemoryCheckpointer(), near=near), tracer_provider=NoOpTracerProvider()
    )
    await checkpointer.load("t")
    near.failures = [OSError("SECRET")]
    await checkpointer.save(saying("hello"), "t")
    (record,) = caplog.records
    assert (record.trace_id, record.span_id) == ("", "")
