"""What a span says about one operation: errors, attempts, misses, cancellation, work that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from locus.memory.backends import MemoryCheckpointer
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    TracedCheckpointer,
)
from locus_tiered.core.errors import AttemptTimeout, BackendError, InvalidArgument, RetriesExhausted, StackConfigError
from locus_tiered.core.layer import Layer
from tests.tracing.kit import QUICK, Flaky, FlakyBackend, Seen, saying, two_tiers


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def failed(seen: Seen) -> list[str]:
    """The spans that say that they failed; both ways of saying so go together."""
    for span in seen.spans:
        assert ("error.type" in said(span)) == (span.status.status_code is StatusCode.ERROR)
    return [
        f"{span.name} {said(span).get('locus.tier', '')}".strip() for span in seen.spans if "error.type" in said(span)
    ]


def retried(backend: FlakyBackend, **options: Any) -> Tier:
    return Tier(RetryingCheckpointer(backend, clock=QUICK, **options), name="far")


async def test_a_save_says_where_it_went_and_how_large_it_was() -> None:
    seen = Seen()
    await seen.traced(two_tiers()).save(saying("hello"), "t")
    root, far, near = seen.named("checkpoint.save")
    assert said(root) == {
        "db.system.name": "locus_tiered",
        "db.operation.name": "save",
        "locus.stack": "stack",
        "locus.thread.id": "t",
        "locus.checkpoint.bytes": said(far)["locus.checkpoint.bytes"],
    }
    assert said(near)["db.system.name"] == "memory"
    assert said(far)["locus.checkpoint.bytes"] > 100
    assert (root.kind, far.kind, near.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.INTERNAL)
    assert root.start_time <= seen.named("checkpoint.head")[0].start_time, "the look before the first save is inside"


async def test_a_miss_is_not_an_error_nor_a_hit() -> None:
    seen = Seen()
    assert await seen.traced(two_tiers()).load("nowhere") is None
    assert failed(seen) == []
    assert all("locus.cache.hit" not in said(span) for span in seen.named("checkpoint.load"))
    assert seen.value("locus.checkpoint.misses") == 0


async def test_a_load_says_which_tier_answered(tmp_path: Any) -> None:
    seen, home = Seen(), MemoryCheckpointer()
    await two_tiers(home).save(saying("hello"), "t")
    memory, directory = BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path)
    checkpointer = seen.traced(TieredCheckpointer(memory, directory, Tier(home, name="far")))
    for answered, hit in (("far", False), ("memory", True)):
        seen.forget()
        await checkpointer.load("t")
        root = seen.spans[0]
        assert (said(root)["locus.tier"], said(root)["locus.cache.hit"]) == (answered, hit)
    await memory.delete("t")
    seen.forget()
    await checkpointer.load("t")
    assert said(seen.spans[0])["locus.tier"] == "directory"
    asked = {said(span)["locus.tier"]: said(span).get("locus.cache.hit") for span in seen.named("checkpoint.load")[1:]}
    assert asked == {"memory": False, "directory": True}


async def test_a_save_that_was_retried_and_then_good_is_one_good_span_with_attempts() -> None:
    seen, backend = Seen(), FlakyBackend()
    checkpointer = seen.traced(two_tiers(retried(backend)))
    await checkpointer.load("t")
    seen.forget()
    backend.failures = [ConnectionResetError("SECRET"), TimeoutError("SECRET")]
    await checkpointer.save(saying("hello"), "t")
    assert seen.tree == "\n".join(
        (
            "checkpoint.save",
            "  checkpoint.save [far]",
            "    checkpoint.attempt [far] ConnectionResetError",
            "    checkpoint.attempt [far] TimeoutError",
            "    checkpoint.attempt [far]",
            "  checkpoint.save [memory]",
        )
    )
    assert [said(span)["locus.attempt"] for span in seen.named("checkpoint.attempt")] == [1, 2, 3]
    (leg,) = seen.named("checkpoint.save", "far")
    assert [(event.name, dict(event.attributes or {})["locus.attempt"]) for event in leg.events] == [
        ("retry", 1),
        ("retry", 2),
    ]
    assert failed(seen) == ["checkpoint.attempt far"] * 2
    assert seen.value("locus.checkpoint.retries", locus_tier="far") == 2
    assert not [labels for name, labels, _ in seen.points() if "error.type" in labels]


async def test_a_save_that_fails_for_good_fails_up_to_the_top() -> None:
    seen, backend = Seen(), FlakyBackend()
    checkpointer = seen.traced(two_tiers(retried(backend, attempts=2)))
    await checkpointer.load("t")
    seen.forget()
    backend.failures = [ConnectionResetError("x"), ConnectionResetError("x")]
    with pytest.raises(RetriesExhausted):
        await checkpointer.save(saying("hello"), "t")
    assert seen.tree == "\n".join(
        (
            "checkpoint.save RetriesExhausted",
            "  checkpoint.save [far] RetriesExhausted",
            "    checkpoint.attempt [far] ConnectionResetError",
            "    checkpoint.attempt [far] ConnectionResetError",
        )
    )
    assert len(failed(seen)) == 4
    errors = {labels["error.type"] for _, labels, _ in seen.points() if "error.type" in labels}
    assert errors == {"RetriesExhausted"}


async def test_the_type_of_an_error_is_that_of_the_backend() -> None:
    seen, backend = Seen(), FlakyBackend()
    checkpointer = seen.traced(backend)
    backend.failures = [PermissionError("SECRET")]
    with pytest.raises(BackendError):
        await checkpointer.load("t")
    assert seen.tree == "checkpoint.load [flaky-backend] PermissionError"
    assert seen.spans[0].status.description == "PermissionError"
    assert not seen.spans[0].events


async def test_a_near_tier_that_fails_is_an_error_of_the_tier_only() -> None:
    seen = Seen()
    near = FlakyBackend()
    checkpointer = seen.traced(TieredCheckpointer(Tier(near, name="near"), Tier(MemoryCheckpointer(), name="far")))
    await checkpointer.load("t")
    near.failures = [OSError("SECRET")]
    await checkpointer.save(saying("hello"), "t")
    root = seen.named("checkpoint.save")[0]
    assert failed(seen) == ["checkpoint.save near"]
    assert [event.name for event in root.events] == ["tier.failed"]
    assert seen.value("locus.checkpoint.degraded", locus_tier="near", locus_reason="tier_failed") == 1


async def test_a_stale_answer_says_so() -> None:
    seen = Seen()
    home = Flaky(MemoryCheckpointer(), name="far")
    checkpointer = seen.traced(CachedCheckpointer(home, on_outage="stale"))
    await checkpointer.save(saying("hello"), "t")
    seen.forget()
    home.failures["head"] = [BackendError("down", member="far", operation="head", temporary=True)]
    assert await checkpointer.load("t") is not None
    root = seen.spans[0]
    assert said(root)["locus.answer.stale"] is True
    assert said(root)["locus.tier"] == "memory"
    assert "error.type" not in said(root)
    assert seen.value("locus.checkpoint.degraded", locus_reason="stale") == 1


async def test_an_argument_that_is_refused_fails_its_span() -> None:
    seen = Seen()
    with pytest.raises(InvalidArgument):
        await seen.traced(two_tiers()).save(saying("x"), "")
    assert seen.tree == "checkpoint.save InvalidArgument"


async def test_a_cancelled_call_is_no_error_and_what_goes_on_is_linked_to_it() -> None:
    seen, backend = Seen(), FlakyBackend()
    checkpointer = seen.traced(two_tiers(Tier(backend, name="far")))
    await checkpointer.load("t")
    seen.forget()
    backend.gate = asyncio.Event()
    backend.reached.clear()
    task = asyncio.create_task(checkpointer.save(saying("hello"), "t"))
    await backend.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (root,) = seen.named("checkpoint.save")
    assert said(root)["locus.cancelled"] is True
    backend.gate.set()
    await checkpointer.close()
    assert failed(seen) == []
    _, far, memory = seen.named("checkpoint.save")
    for span in (far, memory):
        assert said(span)["locus.background"] is True
        assert [link.context.span_id for link in span.links] == [root.context.span_id]
    assert far.parent is not None
    assert memory.parent is None, "begun after its operation had ended: a trace of its own"


async def test_a_call_that_timed_out_and_goes_on_is_a_span_of_its_own() -> None:
    seen, backend = Seen(), FlakyBackend()
    guarded = GuardedCheckpointer(backend, timeout=0.02, breaker=None)
    checkpointer = seen.traced(Layered(RetryingCheckpointer(guarded, attempts=1)))
    backend.gate = asyncio.Event()
    with pytest.raises((RetriesExhausted, AttemptTimeout)):
        await checkpointer.save(saying("hello"), "t")
    assert [span.name for span in seen.spans] == ["checkpoint.save", "checkpoint.attempt"]
    attempt = seen.spans[1]
    assert said(attempt)["error.type"] == "AttemptTimeout"
    assert [event.name for event in attempt.events] == ["guard.timeout"]
    backend.gate.set()
    await checkpointer.close()
    late = next(span for span in seen.spans if said(span).get("locus.background"))
    assert late.parent is None
    assert [link.context.span_id for link in late.links] == [attempt.context.span_id]
    assert "error.type" not in said(late)


class Layered(Layer):
    """A layer of somebody else's, of which tracing knows nothing."""

    async def handle(self, operation: Any) -> Any:
        return await self.inner.handle(operation)


async def test_a_load_that_shares_anothers_answer_says_so() -> None:
    seen, backend = Seen(), FlakyBackend()
    await two_tiers(backend).save(saying("hello"), "t")
    checkpointer = seen.traced(two_tiers(backend))
    backend.gate = asyncio.Event()
    backend.reached.clear()
    first = asyncio.create_task(checkpointer.load("t"))
    await backend.reached.wait()
    second = asyncio.create_task(checkpointer.load("t"))
    await asyncio.sleep(0)
    backend.gate.set()
    assert await first == await second
    shared = [span for span in seen.named("checkpoint.load") if "locus.answer.shared" in said(span)]
    assert len(shared) == 1
    assert len(seen.trees()) == 2


async def test_wrapping_a_leg_names_it_and_nothing_is_seen_twice() -> None:
    seen = Seen()
    leg = seen.traced(RetryingCheckpointer(MemoryCheckpointer()), name="bucket")
    checkpointer = seen.traced(two_tiers(leg), name="support")
    await checkpointer.save(saying("hello"), "t")
    assert seen.named("checkpoint.save", "bucket")
    assert [span.name for span in seen.named("checkpoint.save")] == ["checkpoint.save"] * 3
    assert {said(span)["locus.stack"] for span in seen.spans} == {"support"}
    assert seen.value("db.client.operation.duration", db__operation__name="save") == 3


async def test_a_leg_alone_is_one_span() -> None:
    seen = Seen()
    checkpointer = two_tiers(seen.traced(MemoryCheckpointer(), name="far"))
    await checkpointer.save(saying("hello"), "t")
    assert seen.trees() == ["checkpoint.head [far]", "checkpoint.save [far]"]


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.exists("t"),
        lambda c: c.list_checkpoints("t"),
        lambda c: c.get_metadata("t"),
        lambda c: c.delete("t"),
        lambda c: c.copy_thread("t", "u"),
        lambda c: c.list_threads(),
        lambda c: c.vacuum(1),
        lambda c: c.list_with_metadata(),
        lambda c: c.query_by_metadata("a", "b"),
    ],
    ids=[
        "exists",
        "list_checkpoints",
        "get_metadata",
        "delete",
        "copy_thread",
        "list_threads",
        "vacuum",
        "rows",
        "query",
    ],
)
async def test_every_operation_is_one_trace(call: Callable[[Any], Any], tmp_path: Any) -> None:
    seen = Seen()
    checkpointer = seen.traced(TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path)))
    await checkpointer.save(saying("hello"), "t")
    seen.forget()
    await call(checkpointer)
    assert seen.tree.count("\n") >= 1
    assert said(seen.spans[0])["db.system.name"] == "locus_tiered"
    assert failed(seen) == []


async def test_a_trace_that_is_not_sampled_has_no_spans_and_is_measured() -> None:
    seen = Seen(ALWAYS_OFF)
    checkpointer = seen.traced(two_tiers(retried(FlakyBackend())))
    await checkpointer.save(saying("hello"), "t")
    await checkpointer.load("t")
    assert seen.spans == []
    assert seen.value("db.client.operation.duration", db__system__name="locus_tiered") == 2
    assert seen.value("db.client.operation.duration", locus_tier="far", db__operation__name="save") == 1


async def test_thread_ids_are_shown_as_told() -> None:
    for how, shown in (("plain", "anna"), ("hash", "a64be71ff1353ba8"), ("off", None)):
        seen = Seen()
        await seen.traced(two_tiers(), thread_id=how).load("anna")
        found = {said(span).get("locus.thread.id") for span in seen.spans}
        assert len(found) == 1
        if how != "hash":
            assert found == {shown}
        else:
            assert len(str(found.pop())) == 16
    with pytest.raises(StackConfigError):
        TracedCheckpointer(MemoryCheckpointer(), thread_id="loud")  # type: ignore[arg-type]


async def test_odd_thread_ids_can_be_exported() -> None:
    seen = Seen()
    checkpointer = seen.traced(two_tiers())
    for odd in ("\ud800", "é" * 5000, "nul\0"):
        await checkpointer.load(odd)
    for span in seen.spans:
        shown = said(span)["locus.thread.id"]
        assert len(shown) <= 256
        shown.encode()


def test_its_repr_reads_as_the_code() -> None:
    checkpointer = TracedCheckpointer(MemoryCheckpointer(), name="far", thread_id="hash")
    assert repr(checkpointer).startswith("TracedCheckpointer(MemoryCheckpointer(")
    assert repr(checkpointer).endswith("name='far', thread_id='hash')")
