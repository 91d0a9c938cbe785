"""Metrics: what is counted, with which labels, and that there is an end to them."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest
from locus.memory.backends import MemoryCheckpointer
from opentelemetry.sdk.metrics.export import MetricsData

import locus_tiered
from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
)
from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import BackendError
from locus_tiered.core.signals import emit
from locus_tiered.layers import tracing
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.legs import Legs
from locus_tiered.layers.tracing import error_type
from locus_tiered.layers.vocabulary import ATTRIBUTES, METRICS, SIGNALS
from tests.tracing.kit import QUICK, FlakyBackend, Seen, saying, two_tiers


async def test_hits_and_misses_are_counted_by_tier(tmp_path: Path) -> None:
    seen, home = Seen(), MemoryCheckpointer()
    await two_tiers(home).save(saying("hello"), "t")
    checkpointer = seen.traced(
        TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path), Tier(home, name="far"))
    )
    for _ in range(3):
        await checkpointer.load("t")
    assert seen.value("locus.checkpoint.misses", locus_tier="memory") == 1
    assert seen.value("locus.checkpoint.misses", locus_tier="directory") == 1
    assert seen.value("locus.checkpoint.hits", locus_tier="memory") == 2
    assert seen.value("locus.checkpoint.hits", locus_tier="directory") == 0


async def test_evictions_are_counted_where_they_happen(tmp_path: Path) -> None:
    seen = Seen()
    memory, directory = BoundedMemoryCheckpointer("8KiB"), DirectoryCheckpointer(tmp_path, max_bytes="8KiB")
    checkpointer = seen.traced(TieredCheckpointer(memory, directory, MemoryCheckpointer()))
    for number in range(20):
        await checkpointer.save(saying("hello"), f"thread-{number}")
    await checkpointer.close()
    assert seen.value("locus.checkpoint.evictions", locus_tier="memory") == memory.stats.evicted > 0
    assert seen.value("locus.checkpoint.evictions", locus_tier="directory") > 0


async def test_damage_is_counted(tmp_path: Path) -> None:
    seen = Seen()
    checkpointer = seen.traced(CachedCheckpointer(DirectoryCheckpointer(tmp_path, name="disk")))
    await checkpointer.save(saying("hello"), "t")
    (file,) = [path for path in tmp_path.rglob("*.json") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-20])
    fresh = seen.traced(CachedCheckpointer(DirectoryCheckpointer(tmp_path, name="disk")))
    with pytest.raises(locus_tiered.core.errors.LocusTieredError):
        await fresh.load("t")
    assert seen.value("locus.checkpoint.degraded", locus_tier="disk", locus_reason="damaged") == 1


async def test_the_state_of_a_breaker_is_a_gauge() -> None:
    seen, backend, now = Seen(), FlakyBackend(), [0.0]
    clock = Clock(monotonic=lambda: now[0])
    guarded = GuardedCheckpointer(backend, timeout=None, breaker=BreakerPolicy(in_a_row=2), clock=clock)
    checkpointer = seen.traced(two_tiers(Tier(guarded, name="far")))
    await checkpointer.load("t")

    def state() -> float:
        return seen.value("locus.checkpoint.breaker.state", locus_tier="far")

    assert state() == 0
    backend.failures = [ConnectionResetError()] * 2
    for _ in range(2):
        with pytest.raises(BackendError):
            await checkpointer.save(saying("hello"), "t")
    assert state() == 2
    now[0] += 6
    assert state() == 1
    await checkpointer.save(saying("hello"), "t")
    assert state() == 0


async def test_two_stacks_share_the_instruments_and_keep_apart() -> None:
    seen = Seen()
    stacks = [seen.traced(two_tiers(GuardedCheckpointer(MemoryCheckpointer())), name=name) for name in ("a", "b")]
    for stack in stacks:
        await stack.save(saying("hello"), "t")
    states = [labels for name, labels, _ in seen.points() if name == "locus.checkpoint.breaker.state"]
    assert sorted(labels["locus.stack"] for labels in states) == ["a", "b"]
    del stack
    stacks.pop()
    gc.collect()
    assert len([1 for name, _, _ in seen.points() if name == "locus.checkpoint.breaker.state"]) == 1


async def test_metrics_do_not_grow_with_threads_checkpoints_or_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_error_types", set())
    seen, backend = Seen(), FlakyBackend()
    checkpointer = seen.traced(
        TieredCheckpointer(
            BoundedMemoryCheckpointer("64KiB"), Tier(RetryingCheckpointer(backend, clock=QUICK), name="far")
        )
    )

    async def traffic(first: int, last: int) -> int:
        for number in range(first, last):
            thread = f"thread-{number}"
            saved = await checkpointer.save(saying("hello"), thread)
            await checkpointer.load(thread)
            await checkpointer.load(thread, saved)
            backend.failures = [type(f"Error{number}", (Exception,), {})()]
            with pytest.raises(BackendError):
                await checkpointer.save(saying("hello"), thread)
            await checkpointer.delete(thread)
        return len(seen.points())

    early = await traffic(0, 100)
    assert early < 400
    assert await traffic(100, 250) == early
    for _, labels, _ in seen.points():
        assert not any("thread-" in str(value) for value in labels.values())


def test_tiers_that_hide_in_foreign_checkpointers_come_to_an_end() -> None:
    legs = Legs(two_tiers())
    hidden = [legs.member(BoundedMemoryCheckpointer(name=f"hidden-{number}")) for number in range(200)]
    assert len(set(hidden)) == 51
    assert legs.member(BoundedMemoryCheckpointer(name="hidden-3")) is hidden[3]


def test_the_types_of_errors_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_error_types", set())
    found = {error_type(type(f"Error{number}", (Exception,), {})()) for number in range(200)}
    assert len(found) == 51
    assert "_OTHER" in found


async def test_what_is_exported_is_what_the_vocabulary_says(tmp_path: Path) -> None:
    seen, backend = Seen(), FlakyBackend()
    far = RetryingCheckpointer(GuardedCheckpointer(backend), clock=QUICK)
    checkpointer = seen.traced(
        TieredCheckpointer(BoundedMemoryCheckpointer("4KiB"), DirectoryCheckpointer(tmp_path), Tier(far, name="far"))
    )
    backend.failures = [ConnectionResetError()]
    for number in range(5):
        await checkpointer.save(saying("hello"), f"thread-{number}")
        await checkpointer.load(f"thread-{number}")
    known = {attribute.name: attribute for attribute in ATTRIBUTES}
    for name, labels, _ in seen.points():
        assert labels.keys() <= set(METRICS[name].labels)
        assert all(known[label].metrics for label in labels)
    data = seen._reader.get_metrics_data()
    assert isinstance(data, MetricsData)
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert metric.unit == METRICS[metric.name].unit
    for span in seen.spans:
        assert (span.attributes or {}).keys() <= known.keys()
        for event in span.events:
            assert SIGNALS[event.name].event
            assert (event.attributes or {}).keys() <= known.keys()


def test_every_signal_of_the_package_is_known() -> None:
    sent = set()
    for path in Path(locus_tiered.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == emit.__name__:
                kind = node.args[0]
                if isinstance(kind, ast.Constant):
                    sent.add(kind.value)
    assert sent == set(SIGNALS)
    for heard in SIGNALS.values():
        assert heard.metric is None or heard.metric in METRICS
