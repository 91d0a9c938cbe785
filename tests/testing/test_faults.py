"""Every kind of fault does what its name says, once it is due and not before."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from typing import Any

import pytest
from locus.core.messages import Message
from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.fault_script import OPERATIONS
from locus_tiered.testing.faults import Fault, FaultKind, FaultyCheckpointer, InjectedFault, on
from locus_tiered.testing.reference import ReferenceCheckpointer


def state(text: str = "hello", **metadata: Any) -> AgentState:
    return AgentState(messages=(Message.user(text),), metadata=metadata)


def said(found: AgentState | None) -> str | None:
    return None if found is None else found.messages[0].content


def arguments_of(name: str) -> tuple[Any, ...]:
    return {
        "save": (state(), "t", "a"),
        "load": ("t",),
        "list_checkpoints": ("t",),
        "delete": ("t", "a"),
        "exists": ("t",),
        "search": ("x",),
        "query_by_metadata": ("k", "v"),
        "get_metadata": ("t",),
        "vacuum": (36_500,),
        "copy_thread": ("t", "u"),
        "list_threads": (),
        "list_with_metadata": (),
        "close": (),
    }[name]


# -- a wrapper that is not there -----------------------------------------------------------------------


def test_the_thirteen_methods_are_the_sdks() -> None:
    asynchronous = {name for name, method in vars(BaseCheckpointer).items() if inspect.iscoroutinefunction(method)}
    assert asynchronous == OPERATIONS
    assert all(name in vars(FaultyCheckpointer) for name in OPERATIONS)
    assert all(name in vars(FaultyCheckpointer) for name in ("capabilities", "deletes_single_checkpoints"))


async def test_without_faults_it_answers_as_the_inner_one() -> None:
    inner = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(inner)
    assert await faulty.save(state("one"), "t", "a", {"k": 1}) == "a"
    generated = await faulty.save(state("two"), "t")
    assert said(await faulty.load("t")) == "two"
    assert said(await faulty.load("t", "a")) == "one"
    assert await faulty.list_checkpoints("t") == [generated, "a"]
    assert await faulty.exists("t", "a")
    assert [row["checkpoint_id"] for row in await faulty.query_by_metadata("k", 1)] == ["a"]
    assert (await faulty.get_metadata("t", "a") or {})["metadata"] == {"k": 1}
    assert await faulty.copy_thread("t", "u")
    assert await faulty.list_threads() == ["u", "t"]
    assert await faulty.list_threads(pattern="t*") == ["t"]
    assert [row["checkpoint_id"] for row in await faulty.list_with_metadata(2)] == [generated, "a"]
    assert await faulty.vacuum(36_500) == 0
    assert await faulty.delete("t", "a")
    assert not await faulty.delete("t", "a")
    assert await faulty.delete("t")
    assert await inner.list_threads() == ["u"]
    with pytest.raises(NotImplementedError):
        await faulty.search("x")
    await faulty.close()


def test_properties_are_the_inner_ones() -> None:
    class Chained(MemoryCheckpointer):
        @property
        def deletes_single_checkpoints(self) -> bool:
            return False

    assert FaultyCheckpointer().capabilities == ReferenceCheckpointer().capabilities
    assert FaultyCheckpointer(Chained()).capabilities == CheckpointerCapabilities(
        list_threads=True, persistent_checkpoint_ids=True
    )
    assert FaultyCheckpointer(Chained()).deletes_single_checkpoints is False
    assert FaultyCheckpointer().deletes_single_checkpoints is True
    assert repr(FaultyCheckpointer()) == "FaultyCheckpointer(ReferenceCheckpointer())"


async def test_the_reference_store_shares_nothing_and_twins_share_everything() -> None:
    first = ReferenceCheckpointer()
    second = first.twin()
    given = state("one", nested={"list": [1]})
    await first.save(given, "t", "a")
    given.metadata["nested"]["list"].append(2)
    loaded = await second.load("t", "a")
    assert loaded is not None and loaded.metadata == {"nested": {"list": [1]}}
    loaded.metadata["nested"]["list"].append(3)
    assert (await first.load("t")) == state("one", nested={"list": [1]}).model_copy(
        update={name: getattr(given, name) for name in ("run_id", "started_at", "updated_at")}
    )


async def test_the_reference_store_vacuums_by_arrival() -> None:
    now = 0.0
    store = ReferenceCheckpointer(clock=lambda: now)
    await store.save(state(), "t", "old")
    now = 10 * 86_400.0
    await store.save(state(), "t", "new")
    assert await store.vacuum(older_than_days=5) == 1
    assert await store.list_checkpoints("t") == ["new"]


# -- failing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OPERATIONS))
async def test_fail_before_reaches_nothing(name: str) -> None:
    faulty = FaultyCheckpointer(script=[on(name).fail_before()])
    await faulty.inner.save(state(), "t", "kept")
    with pytest.raises(InjectedFault, match=f"injected: fail before, {name}"):
        await getattr(faulty, name)(*arguments_of(name))
    assert await faulty.inner.list_checkpoints("t") == ["kept"]
    assert faulty.calls[0].outcome == "raised"
    assert faulty.calls[0].error == "InjectedFault"
    assert faulty.calls[0].faults == (FaultKind.FAIL_BEFORE,)


async def test_fail_after_applied() -> None:
    faulty = FaultyCheckpointer(script=[on("save").fail_after(), on("delete").fail_after()])
    with pytest.raises(ConnectionError):
        await faulty.save(state("one"), "t", "a")
    assert said(await faulty.load("t", "a")) == "one"
    with pytest.raises(ConnectionError):
        await faulty.delete("t", "a")
    assert await faulty.load("t", "a") is None


async def test_an_error_of_ones_own() -> None:
    gone = OSError("gone")
    faulty = FaultyCheckpointer(script=[on("load").fail_before(gone), on("load", at=2).fail_before(KeyError)])
    with pytest.raises(OSError, match="gone"):
        await faulty.load("t")
    with pytest.raises(KeyError):
        await faulty.load("t")


async def test_at_times_and_thread_count_matching_calls_only() -> None:
    faulty = FaultyCheckpointer(
        script=[
            on("save", thread_id="t", at=2, times=2).fail_before(),
            on("load", at=2, times=None).fail_before(),
        ]
    )
    outcomes = []
    for thread in ("t", "other", "t", "other", "t", "t"):
        try:
            outcomes.append(await faulty.save(state(), thread, "a"))
        except InjectedFault:
            outcomes.append("failed")
    assert outcomes == ["a", "a", "failed", "a", "failed", "a"]
    assert await faulty.load("t") is not None
    for _ in range(3):
        with pytest.raises(InjectedFault):
            await faulty.load("t")
    faulty.clear()
    assert await faulty.load("t") is not None


def test_a_fault_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="'stale latest' cannot befall 'save', only: load"):
        on("save").stale_latest()
    with pytest.raises(ValueError, match="count from 1"):
        on("save", at=0).hang()
    with pytest.raises(ValueError, match="count from 1"):
        Fault(kind=FaultKind.HANG, times=0)
    with pytest.raises(ValueError, match="further operation"):
        on("save").apply_late(after=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        FaultyCheckpointer(rates={FaultKind.HANG: 5})
    with pytest.raises(ValueError, match="a partition is one of"):
        FaultyCheckpointer().partition(FaultKind.TIE)


# -- time ----------------------------------------------------------------------------------------------


async def test_slow_goes_through_the_injected_sleep() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    faulty = FaultyCheckpointer(script=[on("save").slow(30), on("save").fail_after()], sleep=sleep)
    with pytest.raises(InjectedFault):
        await faulty.save(state(), "t", "a")
    assert slept == [30]
    assert faulty.calls[0].faults == (FaultKind.SLOW, FaultKind.FAIL_AFTER)


async def test_hang_until_released() -> None:
    faulty = FaultyCheckpointer(script=[on("save", times=2).hang()])
    first = asyncio.create_task(faulty.save(state("one"), "t", "a"))
    second = asyncio.create_task(faulty.save(state("two"), "t", "b"))
    await faulty.until_hung(2)
    assert faulty.hung == faulty.in_flight("t") == 2
    assert await faulty.inner.list_checkpoints("t") == []
    assert faulty.release(1) == 1
    assert await first == "a"
    assert not second.done()
    assert faulty.release() == 1
    assert await second == "b"
    assert faulty.hung == faulty.release() == 0
    assert faulty.max_in_flight("t") == faulty.max_in_flight() == 2
    assert faulty.max_in_flight("other") == 0


async def test_a_hung_call_that_is_cancelled_never_happened() -> None:
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    call = asyncio.create_task(faulty.save(state(), "t", "a"))
    await faulty.until_hung()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert faulty.hung == faulty.release() == 0
    assert faulty.calls[0].outcome == "cancelled"
    assert await faulty.inner.list_checkpoints("t") == []


async def test_waiting_for_a_call_that_does_not_hang_ends() -> None:
    with pytest.raises(TimeoutError):
        await FaultyCheckpointer().until_hung(within=0)


def test_loops_come_and_go() -> None:
    faulty = FaultyCheckpointer(script=[on("save", times=None).hang()])

    async def hang_and_leave() -> None:
        task = asyncio.ensure_future(faulty.save(state(), "t", "a"))
        await faulty.until_hung()
        faulty.release()
        assert await task == "a"

    asyncio.run(hang_and_leave())
    asyncio.run(hang_and_leave())
    assert [call.outcome for call in faulty.calls] == ["returned", "returned"]


# -- effects that land later ---------------------------------------------------------------------------


async def test_late_apply_lands_after_its_caller_was_cancelled() -> None:
    faulty = FaultyCheckpointer(script=[on("save").apply_late()])
    await faulty.inner.save(state("old"), "t", "old")
    given = state("late", nested=[1])
    call = asyncio.create_task(faulty.save(given, "t", "a"))
    await faulty.until_hung()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    given.metadata["nested"].append(2)
    assert (faulty.hung, faulty.late) == (0, 1)
    assert await faulty.delete("t")
    assert await faulty.land() == 1
    landed = await faulty.load("t")
    assert landed is not None
    assert landed.metadata == {"nested": [1]}, "what was sent is what was given at the time"
    assert faulty.calls[0].landed is not None
    assert faulty.late == 0


async def test_late_apply_answers_the_caller_who_waited() -> None:
    faulty = FaultyCheckpointer(script=[on("save").apply_late()])
    call = asyncio.create_task(faulty.save(state("late"), "t"))
    await faulty.until_hung()
    assert await faulty.land() == 1
    assert said(await faulty.load("t", await call)) == "late"


async def test_late_apply_returns_or_raises_at_once_and_lands_after_so_many_operations() -> None:
    faulty = FaultyCheckpointer(
        script=[
            on("save").apply_late(answer="return", after=2),
            on("delete").apply_late(answer="raise", after=1),
        ]
    )
    name = await faulty.save(state("late"), "t")
    assert await faulty.load("t") is None
    assert await faulty.load("t") is None, "the second further operation does not see it yet"
    assert await faulty.list_checkpoints("t") == [name]
    with pytest.raises(InjectedFault):
        await faulty.delete("t", name)
    assert await faulty.exists("t", name)
    assert not await faulty.exists("t", name)


async def test_late_effects_land_in_either_order() -> None:
    for newest_first, latest in ((False, "two"), (True, "one")):
        faulty = FaultyCheckpointer(script=[on("save", times=2).apply_late(answer="return")])
        await faulty.save(state("one"), "t", "a")
        await faulty.save(state("two"), "t", "b")
        assert await faulty.land(newest_first=newest_first) == 2
        assert said(await faulty.load("t")) == latest


async def test_a_late_effect_keeps_its_callers_context_and_its_error_is_nobodys() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    class Tenants(ReferenceCheckpointer):
        async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
            seen.append(tenant.get())
            raise RuntimeError("too late")

    faulty = FaultyCheckpointer(Tenants(), script=[on("delete").apply_late(answer="return")])

    async def as_tenant() -> None:
        tenant.set("acme")
        assert await faulty.delete("t")

    await asyncio.create_task(as_tenant())
    assert await faulty.land() == 1
    assert seen == ["acme"]


# -- wrong answers -------------------------------------------------------------------------------------


async def test_stale_latest() -> None:
    faulty = FaultyCheckpointer(script=[on("load", times=None).stale_latest()])
    assert await faulty.load("t") is None
    await faulty.save(state("one"), "t", "a")
    assert await faulty.load("t") is None, "as before the first save"
    await faulty.save(state("two"), "t", "b")
    assert said(await faulty.load("t")) == "one"
    assert said(await faulty.load("t", "b")) == "two", "only the latest is stale"
    assert [call.faults for call in faulty.matching("load")] == [
        (),
        (FaultKind.STALE_LATEST,),
        (FaultKind.STALE_LATEST,),
        (),
    ]


async def test_wrong_threads_answer() -> None:
    faulty = FaultyCheckpointer(
        script=[on(name, times=None).wrong_thread() for name in ("load", "list_checkpoints", "get_metadata")]
    )
    await faulty.save(state("mine"), "t", "a", {"k": 1})
    assert said(await faulty.load("t", "a")) == "mine", "there is no other thread yet"
    assert faulty.calls[-1].faults == ()
    await faulty.save(state("yours"), "u", "b", {"k": 2})
    assert said(await faulty.load("t", "a")) == "yours"
    assert await faulty.list_checkpoints("t") == ["b"]
    assert (await faulty.get_metadata("t") or {})["metadata"] == {"k": 2}
    assert faulty.calls[-1].faults == (FaultKind.WRONG_THREAD,)


async def test_none_on_outage_as_the_http_checkpointer_does() -> None:
    faulty = FaultyCheckpointer()
    await faulty.save(state(), "t", "a")
    faulty.partition(FaultKind.NONE_ON_OUTAGE)
    assert await faulty.load("t") is None
    assert await faulty.list_checkpoints("t") == []
    assert await faulty.exists("t", "a") is False
    assert await faulty.delete("t", "a") is False
    assert await faulty.get_metadata("t") is None
    assert await faulty.list_threads() == await faulty.list_with_metadata() == await faulty.search("x") == []
    for call in (faulty.save(state(), "t"), faulty.copy_thread("t", "u"), faulty.vacuum()):
        with pytest.raises(InjectedFault):
            await call
    await faulty.close()
    faulty.heal()
    assert await faulty.exists("t", "a")


async def test_a_lost_index_row_is_loadable_and_not_listed_until_saved_again() -> None:
    faulty = FaultyCheckpointer(script=[on("save", at=2).lose_index_row()])
    for name in ("a", "b", "c"):
        await faulty.save(state(name), "t", name)
    assert await faulty.list_checkpoints("t") == ["c", "a"]
    assert await faulty.list_checkpoints("t", limit=2) == ["c", "a"]
    assert [row["checkpoint_id"] for row in await faulty.list_with_metadata(2)] == ["c", "a"]
    assert said(await faulty.load("t", "b")) == "b"
    await faulty.save(state("again"), "t", "b")
    assert await faulty.list_checkpoints("t") == ["b", "c", "a"]


async def test_ties_come_out_in_key_order() -> None:
    faulty = FaultyCheckpointer(script=[on("save", at=2, times=2).tie()])
    await faulty.inner.save(state(), "t", "before")
    for name in ("o2", "o0", "o1", "new"):
        await faulty.save(state(name), "t", name)
    assert await faulty.list_checkpoints("t") == ["new", "o0", "o1", "o2", "before"]
    assert await faulty.list_checkpoints("t", limit=2) == ["new", "o0"], "the limit cuts the tied order"
    assert said(await faulty.load("t")) == "new"


async def test_damage_on_save_is_for_good_and_on_load_for_once() -> None:
    original = state("hello", count=1, flag=True)
    faulty = FaultyCheckpointer(script=[on("save").damage(), on("load", at=2).damage()])
    await faulty.save(original, "t", "a")
    stored = await faulty.load("t")
    assert stored is not None and stored != original
    assert await faulty.load("t") not in (stored, None)
    assert await faulty.load("t") == stored


async def test_damage_is_one_value_and_reproducible() -> None:
    def leaves(node: Any, path: str = "") -> dict[str, Any]:
        if isinstance(node, dict | list):
            pairs = node.items() if isinstance(node, dict) else enumerate(node)
            return {key: leaf for name, inner in pairs for key, leaf in leaves(inner, f"{path}/{name}").items()}
        return {path: node}

    original = state("hello \ud800", price=1e16, zero=-0.0, count=3, names=["a", "b"])
    before = leaves(original.model_dump(mode="json", exclude={"tool_loop_read_only_tools", "terminal_tools"}))
    changed = set()
    for seed in range(40):
        bodies = []
        for _ in range(2):
            faulty = FaultyCheckpointer(script=[on("load").damage()], seed=seed)
            await faulty.inner.save(original, "t", "a")
            bodies.append(await faulty.load("t"))
        assert bodies[0] == bodies[1] != original
        after = leaves(bodies[0].model_dump(mode="json", exclude={"tool_loop_read_only_tools", "terminal_tools"}))
        differing = [path for path in before if before[path] != after[path]]
        assert len(differing) == 1
        changed.add(differing[0])
    assert len(changed) > 8


# -- partitions, chance, the log -----------------------------------------------------------------------


async def test_partition_and_heal() -> None:
    faulty = FaultyCheckpointer()
    faulty.partition()
    with pytest.raises(InjectedFault):
        await faulty.save(state(), "t", "a")
    faulty.partition(FaultKind.FAIL_AFTER)
    with pytest.raises(InjectedFault):
        await faulty.save(state("arrived"), "t", "b")
    faulty.partition(FaultKind.HANG)
    call = asyncio.create_task(faulty.load("t"))
    await faulty.until_hung()
    faulty.heal()
    assert said(await call) == "arrived"
    assert await faulty.list_checkpoints("t") == ["b"]


async def outcomes_of(seed: int) -> list[tuple[str, tuple[FaultKind, ...]]]:
    faulty = FaultyCheckpointer(
        seed=seed,
        rates={FaultKind.FAIL_BEFORE: 0.2, FaultKind.LATE_APPLY: 0.2, FaultKind.DAMAGED_BODY: 0.3},
    )
    for step in range(60):
        try:
            await (faulty.save(state(), "t", f"{step}") if step % 3 else faulty.load("t"))
        except InjectedFault:
            continue
    assert not faulty.hung
    return [(call.outcome, call.faults) for call in faulty.calls]


async def test_chance_comes_from_the_seed() -> None:
    first, again, other = await outcomes_of(1), await outcomes_of(1), await outcomes_of(2)
    assert first == again != other
    assert {kind for _, kinds in first for kind in kinds} == {
        FaultKind.FAIL_BEFORE,
        FaultKind.LATE_APPLY,
        FaultKind.DAMAGED_BODY,
    }


async def test_close_fails_only_when_named() -> None:
    faulty = FaultyCheckpointer(script=[on(times=None).fail_before()], rates={FaultKind.FAIL_BEFORE: 1})
    await faulty.close()
    faulty.inject(on("close").fail_before())
    with pytest.raises(InjectedFault):
        await faulty.close()


async def test_the_log_counts_by_operation_and_thread() -> None:
    faulty = FaultyCheckpointer()
    await faulty.save(state(), "t", "a")
    await faulty.copy_thread("t", "u")
    await faulty.load("u")
    await faulty.list_threads()
    assert [faulty.count(), faulty.count("save"), faulty.count("load", "t")] == [4, 1, 0]
    assert [call.operation for call in faulty.matching(thread_id="u")] == ["copy_thread", "load"]
    first, *_, last = faulty.calls
    assert (first.thread_id, first.checkpoint_id, first.started, first.ended) == ("t", "a", 1, 2)
    assert last.thread_id is None
    assert faulty.max_in_flight() == 1
