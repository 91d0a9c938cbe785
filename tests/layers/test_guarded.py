"""``GuardedCheckpointer``: timeouts, the bulkhead, abandoned calls and their lanes (of the breaker: test_breaker)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
)
from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.core.deadline import begin, end, remaining, timed
from locus_tiered.core.errors import AttemptTimeout, BackendError, BreakerOpen, Overloaded, StackConfigError
from locus_tiered.core.operations import OPERATIONS, CopyThread, Delete, Exists, Head, Load, Save, Search, Vacuum
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.bulkhead import Bulkhead, Full
from locus_tiered.layers.guarded import Timeouts
from locus_tiered.layers.order import StackOrderWarning
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.virtual_time import run_virtual, virtual_clock
from tests.layers.parts import Between, a_moment, guarded, latest, leg, now, others, outcome, state, virtual

MIB = 1024 * 1024


def inside(checkpointer: GuardedCheckpointer) -> tuple[int, int]:
    """How many calls are under way, and how many wait."""
    return checkpointer.running, checkpointer._bulkheads.get().waiting


# -- parameters ------------------------------------------------------------------------------------------------------


def test_the_defaults():
    checkpointer = GuardedCheckpointer(ReferenceCheckpointer())
    assert checkpointer.timeouts == Timeouts()
    assert checkpointer.breaker is not None
    assert (checkpointer.breaker.policy, checkpointer.breaker.state) == (BreakerPolicy(), "closed")
    assert (checkpointer.max_concurrency, checkpointer.max_waiting) == (16, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": True},
        {"timeout": "5s"},
        {"timeout": float("nan")},
        {"timeout": {"lode": 1.0}},
        {"timeout": {"load": 0}},
        {"timeout": {"load": None}},
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"max_concurrency": True},
        {"max_waiting": -1},
    ],
    ids=str,
)
def test_parameters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(StackConfigError):
        GuardedCheckpointer(ReferenceCheckpointer(), **wrong)


@pytest.mark.parametrize("wrong", [{"others": 0}, {"save_per_mib": -1}, {"by_operation": {"sav": 1}}], ids=str)
def test_timeouts_that_make_no_sense_are_refused(wrong):
    with pytest.raises(StackConfigError):
        Timeouts(**wrong)


def test_an_operation_that_is_misspelt_is_told_the_right_names():
    with pytest.raises(StackConfigError, match="copy_thread, delete, exists") as caught:
        Timeouts.of({"lode": 1.0})
    assert "'lode'" in str(caught.value)


SECONDS = {"load": 5, "head": 5, "exists": 5, "save": 10, "delete": 10, "copy_thread": 120, "vacuum": 300}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_the_time_that_each_operation_has(kind):
    arguments = {"search": ("x",), "query_by_metadata": ("k", "v"), "save": ("t", AgentState()), "list_threads": ()}
    arguments |= {"copy_thread": ("t", "u"), "vacuum": (), "list_with_metadata": ()}
    operation = kind(*arguments.get(kind.name, ("t",)))
    assert Timeouts().seconds(operation) == SECONDS.get(kind.name, 10)
    assert Timeouts.of(0.25).seconds(operation) == 0.25  # type: ignore[union-attr]
    chosen = Timeouts.of({kind.name: 7.0, "delete": 3.0} | ({kind.name: 7.0}))
    assert chosen is not None
    assert chosen.seconds(operation) == 7.0


def test_no_timeout_at_all():
    assert Timeouts.of(None) is None
    assert GuardedCheckpointer(ReferenceCheckpointer(), timeout=None).timeouts is None


async def test_a_save_has_more_time_for_a_larger_state():
    large = AgentState(messages=(Message.user("x" * 3 * MIB),))
    frozen = Save("t", None, "id", None, Checkpoint("t", "id", None, {}, await Body.of(large)))
    for save in (Save("t", large, "id"), frozen):  # without and with an ordering layer above
        assert Timeouts().seconds(save) == pytest.approx(10 + 3 * 2, abs=0.1)
        assert Timeouts(save_per_mib=10).seconds(save) == pytest.approx(10 + 3 * 10, abs=0.1)
        assert Timeouts(save_per_mib=0).seconds(save) == 10
        assert Timeouts.of(1.5).seconds(save) == 1.5  # type: ignore[union-attr]
    assert Timeouts().seconds(Save("t", AgentState(), "id")) == 10


def test_the_size_of_something_else_than_a_state_is_nothing():
    class Duck:
        messages = (Message.user("words"), "a string", None)

        def to_checkpoint(self) -> dict[str, Any]:
            return {}

    assert Timeouts().seconds(Save("t", Duck(), "id")) == pytest.approx(10, abs=0.01)
    assert Timeouts().seconds(Save("t", object(), "id")) == 10


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, ""),
        ({"timeout": Timeouts()}, ""),
        ({"timeout": 2}, ", timeout=2"),
        ({"timeout": {"load": 1.0}}, ", timeout={'load': 1.0}"),
        ({"timeout": {"load": 1.0, "search": 2.0}}, ", timeout={'load': 1.0, 'search': 2.0}"),
        ({"timeout": None}, ", timeout=None"),
        ({"breaker": None}, ", breaker=None"),
        ({"max_concurrency": 2, "max_waiting": 0}, ", max_concurrency=2, max_waiting=0"),
        ({"breaker": BreakerPolicy(in_a_row=3)}, f", breaker={BreakerPolicy(in_a_row=3)!r}"),
        ({"timeout": Timeouts({"load": 1.0})}, f", timeout={Timeouts({'load': 1.0})!r}"),
        ({"timeout": Timeouts(others=1.0)}, f", timeout={Timeouts(others=1.0)!r}"),
    ],
    ids=str,
)
def test_its_repr_is_the_code_that_builds_it(options, written):
    checkpointer = GuardedCheckpointer(BoundedMemoryCheckpointer("1MiB"), **options)
    assert repr(checkpointer) == f"GuardedCheckpointer(BoundedMemoryCheckpointer(max_bytes='1MiB'){written})"
    names = {"GuardedCheckpointer": GuardedCheckpointer, "BoundedMemoryCheckpointer": BoundedMemoryCheckpointer}
    again = eval(repr(checkpointer), names | {"Timeouts": Timeouts, "BreakerPolicy": BreakerPolicy})  # noqa: S307
    assert again.timeouts == checkpointer.timeouts
    assert (again.breaker and again.breaker.policy) == (checkpointer.breaker and checkpointer.breaker.policy)
    assert (again.max_concurrency, again.max_waiting) == (checkpointer.max_concurrency, checkpointer.max_waiting)


@pytest.mark.filterwarnings("ignore::locus_tiered.layers.order.StackOrderWarning")
@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: GuardedCheckpointer(RetryingCheckpointer(ReferenceCheckpointer())), "never hears of what the retry"),
        (lambda: GuardedCheckpointer(GuardedCheckpointer(ReferenceCheckpointer())), "wait in two queues"),
        (lambda: GuardedCheckpointer(CachedCheckpointer(ReferenceCheckpointer())), "guard each backend"),
        (lambda: GuardedCheckpointer(TieredCheckpointer(ReferenceCheckpointer())), "guard each backend"),
    ],
)
def test_a_wrong_order_of_layers_warns_and_says_why(build, why):
    with pytest.warns(StackOrderWarning, match=why) as caught:
        build()
    assert caught[0].filename == __file__


def test_the_right_order_warns_of_nothing():
    leg(ReferenceCheckpointer())
    TieredCheckpointer(BoundedMemoryCheckpointer(), leg(ReferenceCheckpointer()))
    CachedCheckpointer(leg(ReferenceCheckpointer()))


# -- where nothing goes wrong ----------------------------------------------------------------------------------------


@virtual
async def test_it_is_not_to_be_noticed_where_nothing_goes_wrong():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert await checkpointer.save(state(2), "t", "two", {"k": "v"}) == "two"
    assert await latest(checkpointer) == 2
    assert await checkpointer.list_checkpoints("t") == ["two", "one"]
    assert (await checkpointer.get_metadata("t", "two") or {})["metadata"] == {"k": "v"}
    assert await checkpointer.exists("t", "one") is True
    assert await checkpointer.delete("t", "one") is True
    assert await checkpointer.copy_thread("t", "u") is True
    assert await checkpointer.list_threads() == ["u", "t"]
    assert await checkpointer.vacuum(1) == 0
    assert inside(checkpointer) == (0, 0)
    stats = checkpointer.stats
    assert (stats.calls, stats.failures, stats.timeouts, stats.refused, stats.overloaded, stats.opened) == (
        len(faulty.calls), 0, 0, 0, 0, 0,
    )  # fmt: skip
    await checkpointer.close()
    await checkpointer.close()


@virtual
async def test_what_a_member_raises_passes_as_it_is():
    error = ConnectionResetError("gone")
    checkpointer = guarded(FaultyCheckpointer(script=[on().fail_before(error)]))
    with pytest.raises(BackendError) as caught:
        await checkpointer.load("t")
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, AttemptTimeout)
    assert checkpointer.stats.failures == 1


# -- timeouts --------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[GuardedCheckpointer], Awaitable[Any]]] = {
    "load": lambda c: c.load("t"),
    "exists": lambda c: c.exists("t"),
    "list_checkpoints": lambda c: c.list_checkpoints("t"),
    "list_threads": lambda c: c.list_threads(),
    "save": lambda c: c.save(AgentState(), "t"),
    "delete": lambda c: c.delete("t"),
    "copy_thread": lambda c: c.copy_thread("t", "u"),
    "vacuum": lambda c: c.vacuum(),
}


@pytest.mark.parametrize("name", CALLS)
@virtual
async def test_nobody_waits_longer_than_the_timeout(name):
    faulty = FaultyCheckpointer(script=[on(name).hang()])
    checkpointer = guarded(faulty)
    with pytest.raises(AttemptTimeout) as caught:
        await CALLS[name](checkpointer)
    assert now() == SECONDS.get(name, 10)
    error = caught.value
    assert (error.member, error.operation, error.temporary) == ("FaultyCheckpointer", name, True)
    assert f"took longer than {now():g} s" in str(error)
    changes = name in ("save", "delete", "copy_thread", "vacuum")
    assert ("may still take effect" in str(error)) == changes
    assert ("nothing was changed" in str(error)) == (not changes)
    assert (checkpointer.stats.timeouts, checkpointer.stats.failures) == (1, 1)
    await a_moment()
    # A read was cancelled, a change goes on.
    assert faulty.calls[0].outcome == ("pending" if changes else "cancelled")
    assert inside(checkpointer) == (int(changes), 0)
    faulty.release()
    await a_moment()
    assert inside(checkpointer) == (0, 0)


class Deaf(ReferenceCheckpointer):
    """A client that waits for its server even to be cancelled, as asyncpg does in a black hole."""

    def __init__(self) -> None:
        super().__init__()
        self.healed = asyncio.Event()
        self.ended = 0

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        try:
            await asyncio.sleep(3600)
        finally:
            await self.healed.wait()  # its farewell to the server
            self.ended += 1
        return None


@virtual
async def test_nobody_waits_for_a_client_that_waits_for_its_server_to_be_cancelled():
    deaf = Deaf()
    checkpointer = guarded(deaf, max_concurrency=2, max_waiting=0)
    with pytest.raises(AttemptTimeout):
        await checkpointer.load("t")
    assert now() == 5.0
    loading = asyncio.create_task(checkpointer.load("t"))
    await asyncio.sleep(1)
    loading.cancel()
    assert isinstance(await outcome(loading), asyncio.CancelledError)
    assert now() == 6.0
    assert inside(checkpointer) == (2, 0)  # they keep their places until they have heard of it
    assert isinstance(await outcome(checkpointer.exists("t")), Overloaded)
    await checkpointer.close()
    assert now() == 11.0
    deaf.healed.set()
    await a_moment()
    assert inside(checkpointer) == (0, 0) and deaf.ended == 2
    assert await checkpointer.exists("t") is False


@virtual
async def test_what_is_just_in_time_is_in_time():
    checkpointer = guarded(FaultyCheckpointer(script=[on("load").slow(4.999), on("save").slow(9.999)]))
    assert await checkpointer.load("t") is None
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert checkpointer.stats.timeouts == 0


@virtual
async def test_without_a_timeout_it_waits_for_as_long_as_it_takes():
    checkpointer = guarded(FaultyCheckpointer(script=[on("load").slow(10_000)]), timeout=None)
    assert await checkpointer.load("t") is None
    assert now() == 10_000


@virtual
async def test_a_timeout_of_the_member_itself_is_as_bad():
    async def give_up(_: object) -> None:
        raise TimeoutError

    checkpointer = guarded(Between(FaultyCheckpointer(), give_up), timeout=None)
    with pytest.raises(AttemptTimeout, match="its own limit"):
        await checkpointer.load("t")
    assert checkpointer.stats.failures == 1


@virtual
async def test_the_sooner_deadline_of_an_outer_layer_holds():
    faulty = FaultyCheckpointer(script=[on(times=None).hang()])
    checkpointer = guarded(faulty)
    token = begin(2.0, virtual_clock())
    with pytest.raises(AttemptTimeout, match="longer than 2 s"):
        await checkpointer.load("t")
    end(token)
    assert now() == 2.0
    token = begin(60.0, virtual_clock())
    with pytest.raises(AttemptTimeout, match="longer than 5 s"):
        await checkpointer.load("t")
    end(token)
    assert now() == 7.0


@pytest.mark.parametrize("name", CALLS)
@virtual
async def test_with_no_time_left_nothing_is_sent_and_nobody_is_to_blame(name):
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    token = begin(1.0, virtual_clock())
    await asyncio.sleep(1.0)
    for _ in range(10):
        with pytest.raises(AttemptTimeout, match="the deadline had passed; nothing was sent"):
            await CALLS[name](checkpointer)
    end(token)
    assert faulty.calls == []
    assert (checkpointer.stats.timeouts, checkpointer.stats.failures) == (10, 0)
    assert checkpointer.breaker is not None and checkpointer.breaker.state == "closed"


# -- abandoned calls (law 9) -----------------------------------------------------------------------------------------


@virtual
async def test_a_late_save_never_lands_on_a_newer_one_that_was_acknowledged():
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far, script=[on("save").slow(30)])
    checkpointer = guarded(faulty)
    with pytest.raises(AttemptTimeout):
        await checkpointer.save(state(1), "t", "late")
    assert now() == 10.0
    # Its thread waits until it has ended, and other threads go on.
    second = asyncio.create_task(checkpointer.save(state(2), "t", "newer"))
    await checkpointer.save(state(3), "u")
    assert now() == 10.0 and not second.done()
    assert faulty.count("save", "t") == 1
    assert isinstance(await outcome(second), AttemptTimeout)  # 20 s: the first one is still on its way
    assert await checkpointer.save(state(4), "t", "newest") == "newest"
    assert now() == 30.0
    assert list(far.stored["t"]) == ["late", "newest"]  # in this order: "newer" timed out in line and was not sent
    assert await latest(checkpointer) == 4
    assert faulty.max_in_flight("t") == 1


@virtual
async def test_a_call_that_timed_out_in_line_was_not_sent_and_says_so():
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    checkpointer = guarded(faulty)
    with pytest.raises(AttemptTimeout, match="goes on in the background"):
        await checkpointer.save(state(1), "t", "one")
    with pytest.raises(AttemptTimeout, match="waited for its turn longer than 10 s; nothing was sent"):
        await checkpointer.delete("t", "one")
    faulty.release()
    await a_moment()
    assert faulty.count("delete") == 0
    assert await checkpointer.exists("t", "one")


@virtual
async def test_reads_do_not_wait_for_an_abandoned_save():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    await checkpointer.save(state(1), "t")
    faulty.inject(on("save").hang())
    await outcome(checkpointer.save(state(2), "t"))
    before = now()
    assert await latest(checkpointer) == 1
    assert now() == before
    faulty.release()
    await a_moment()
    assert await latest(checkpointer) == 2


@virtual
async def test_a_thread_and_its_copy_share_a_lane():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    await checkpointer.save(state(1), "t")
    faulty.inject(on("copy_thread").hang())
    copying = asyncio.create_task(checkpointer.copy_thread("t", "u"))
    await faulty.until_hung()
    saving = asyncio.create_task(checkpointer.save(state(2), "u"))
    await a_moment()
    assert faulty.count("save", "u") == 0
    faulty.release()
    assert await copying
    await saving
    assert await latest(checkpointer, "u") == 2


@virtual
async def test_a_cancelled_save_leaves_at_once_and_goes_on():
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    checkpointer = guarded(faulty)
    saving = asyncio.create_task(checkpointer.save(state(1), "t", "one"))
    await faulty.until_hung()
    saving.cancel()
    assert isinstance(await outcome(saving), asyncio.CancelledError)
    assert now() == 0.0
    assert inside(checkpointer) == (1, 0)
    faulty.release()
    await a_moment()
    assert inside(checkpointer) == (0, 0)
    assert await latest(checkpointer) == 1
    assert checkpointer.stats.failures == 0  # nobody's fault


@virtual
async def test_an_abandoned_call_that_fails_is_logged_and_frees_its_lane(caplog: pytest.LogCaptureFixture):
    faulty = FaultyCheckpointer(script=[on("save").slow(11), on("save").fail_after()])
    checkpointer = guarded(faulty)
    await outcome(checkpointer.save(state(1), "t"))
    await checkpointer.save(state(2), "t")
    assert now() == 11.0
    assert "a call whose caller had left failed afterwards: BackendError" in caplog.text


@virtual
async def test_context_variables_reach_the_member_also_from_an_abandoned_call():
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[str] = []

    class Noting(ReferenceCheckpointer):
        async def save(self, *arguments: Any, **options: Any) -> str:
            await asyncio.sleep(20)
            seen.append(tenant.get())
            return await super().save(*arguments, **options)

    checkpointer = guarded(Noting())
    token = tenant.set("ada")
    assert isinstance(await outcome(checkpointer.save(state(1), "t")), AttemptTimeout)
    tenant.reset(token)
    await checkpointer.close()
    await asyncio.sleep(10)
    assert seen == ["ada"]


# -- the bulkhead ----------------------------------------------------------------------------------------------------


@virtual
async def test_so_many_at_once_and_no_more():
    faulty = FaultyCheckpointer(script=[on(times=None).slow(1)])
    checkpointer = guarded(faulty, timeout=None)
    results = await asyncio.gather(
        *(checkpointer.save(state(n), f"t{n}", "one") for n in range(40)),
        *(checkpointer.load(f"u{n}") for n in range(40)),
    )
    assert results == ["one"] * 40 + [None] * 40
    assert faulty.max_in_flight() == 16
    assert now() == 5.0  # 80 calls of 1 s, 16 at a time
    assert inside(checkpointer) == (0, 0)


@pytest.mark.parametrize(("places", "waiting"), [(16, 64), (2, 3), (4, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["saves", "loads", "both", "saves to one thread"])
@virtual
async def test_a_burst_fills_the_places_and_the_queue_and_the_rest_is_turned_away_at_once(places, waiting, kind):
    faulty = FaultyCheckpointer(script=[on(times=None).slow(1)])
    checkpointer = guarded(faulty, timeout=None, max_concurrency=places, max_waiting=waiting)
    turned_away: list[float] = []

    async def call(number: int) -> None:
        thread = "t" if kind == "saves to one thread" else f"t{number}"
        saves = kind.startswith("saves") or (kind == "both" and number % 2)
        try:
            await (checkpointer.save(state(number), thread) if saves else checkpointer.load(thread))
        except Overloaded:
            turned_away.append(now())

    await asyncio.gather(*(call(number) for number in range(places + waiting + 10)))
    assert turned_away == [0.0] * 10
    assert len(faulty.calls) == places + waiting
    assert checkpointer.stats.overloaded == 10
    assert inside(checkpointer) == (0, 0)


@virtual
async def test_what_is_turned_away_was_not_sent_and_is_nobodys_fault():
    faulty = FaultyCheckpointer(script=[on("load").hang()])
    checkpointer = guarded(faulty, max_concurrency=1, max_waiting=0)
    assert checkpointer.breaker is not None
    first = asyncio.create_task(checkpointer.load("t"))
    await faulty.until_hung()
    heard: list[Signal] = []
    with listen(heard.append):
        for _ in range(20):
            with pytest.raises(Overloaded) as caught:
                await checkpointer.save(state(1), "u")
    error = caught.value
    assert (error.member, error.operation, error.temporary) == ("FaultyCheckpointer", "save", True)
    assert "1 calls are under way or wait already" in str(error) and "nothing was sent" in str(error)
    assert {signal.kind for signal in heard} == {"guard.overloaded"} and len(heard) == 20
    assert checkpointer.breaker.state == "closed" and checkpointer.stats.failures == 0
    assert now() == 0.0 and len(faulty.calls) == 1
    faulty.release()
    await first
    await checkpointer.save(state(1), "u")


@virtual
async def test_an_overload_is_no_verdict_of_a_probe():
    faulty = FaultyCheckpointer(script=[on("exists").hang()])
    checkpointer = guarded(faulty, timeout=None, max_concurrency=1, max_waiting=1)
    asking = [asyncio.create_task(checkpointer.exists("t")) for _ in range(2)]
    await faulty.until_hung()
    assert checkpointer.breaker is not None
    for _ in range(5):
        checkpointer.breaker.failed(checkpointer.breaker.era)
    await asyncio.sleep(5)
    for _ in range(3):
        assert isinstance(await outcome(checkpointer.load("t")), Overloaded)
    assert checkpointer.breaker.state == "half-open"
    faulty.release()
    await asyncio.gather(*asking)
    assert await checkpointer.load("t") is None
    assert checkpointer.breaker.state == "closed"


@virtual
async def test_an_abandoned_call_keeps_its_place():
    faulty = FaultyCheckpointer(script=[on("save", times=2).hang()])
    checkpointer = guarded(faulty, max_concurrency=2, max_waiting=1)
    await asyncio.gather(*(outcome(checkpointer.save(state(n), f"t{n}")) for n in range(2)))
    assert inside(checkpointer) == (2, 0)
    with pytest.raises(AttemptTimeout):
        await checkpointer.load("u")  # waits for a place
    await a_moment()
    with pytest.raises(AttemptTimeout, match="waited for its turn longer than 10 s; nothing was sent"):
        await checkpointer.save(state(3), "u", "never")
    await a_moment()
    assert len(faulty.calls) == 2
    assert inside(checkpointer) == (2, 0)
    faulty.release(1)
    await checkpointer.load("u")
    faulty.release()
    await a_moment()
    assert inside(checkpointer) == (0, 0)
    assert not await checkpointer.exists("u", "never")


@pytest.mark.parametrize("kind", ["load", "save"])
@virtual
async def test_who_is_cancelled_while_he_waits_for_a_place_sends_nothing_and_holds_nobody_up(kind):
    faulty = FaultyCheckpointer(script=[on("exists").hang()])
    checkpointer = guarded(faulty, max_concurrency=1, timeout=None)
    first = asyncio.create_task(checkpointer.exists("t"))
    await faulty.until_hung()

    def call(number: int) -> Awaitable[Any]:
        return checkpointer.load(f"t{number}") if kind == "load" else checkpointer.save(state(number), f"t{number}")

    waiting = [asyncio.ensure_future(call(number)) for number in range(5)]
    await a_moment()
    assert inside(checkpointer) == (1, 5)
    for number in (0, 2, 4):
        waiting[number].cancel()
        assert isinstance(await outcome(waiting[number]), asyncio.CancelledError)
    await a_moment()
    assert inside(checkpointer) == (1, 2)
    faulty.release()
    await asyncio.gather(first, waiting[1], waiting[3])
    assert [call.thread_id for call in faulty.matching(kind)] == ["t1", "t3"]
    assert inside(checkpointer) == (0, 0)


@virtual
async def test_who_is_cancelled_while_he_waits_in_line_sends_nothing_and_holds_nobody_up():
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    checkpointer = guarded(faulty, timeout=None)
    saves = [asyncio.create_task(checkpointer.save(state(number), "t", f"{number}")) for number in range(5)]
    await faulty.until_hung()
    assert inside(checkpointer) == (1, 4)
    for number in (1, 3):
        saves[number].cancel()
        assert isinstance(await outcome(saves[number]), asyncio.CancelledError)
    assert inside(checkpointer) == (1, 2)
    faulty.release()
    assert await asyncio.gather(saves[0], saves[2], saves[4]) == ["0", "2", "4"]
    assert await checkpointer.list_checkpoints("t") == ["4", "2", "0"]
    assert inside(checkpointer) == (0, 0)


@virtual
async def test_who_is_given_a_place_and_cancelled_at_once_passes_it_on():
    faulty = FaultyCheckpointer(script=[on("exists").hang()])
    checkpointer = guarded(faulty, max_concurrency=1, timeout=None)
    first = asyncio.create_task(checkpointer.exists("t"))
    await faulty.until_hung()
    second, third = (asyncio.create_task(checkpointer.load(thread)) for thread in ("u", "v"))
    await a_moment()
    first.cancel()
    await asyncio.sleep(0)  # the place is on its way to the second
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(outcome(first), outcome(second), third)
    assert inside(checkpointer) == (0, 0)


@virtual
async def test_who_is_cancelled_just_as_a_place_is_free_is_passed_over():
    faulty = FaultyCheckpointer(script=[on("exists", times=2).hang()])
    checkpointer = guarded(faulty, max_concurrency=2, timeout=None)
    first, second = (asyncio.create_task(checkpointer.exists("t")) for _ in range(2))
    await faulty.until_hung(2)
    waiting = [asyncio.create_task(checkpointer.load(f"t{number}")) for number in range(4)]
    await a_moment()
    # All in one turn of the loop: two go away, and the two places before them are given up.
    waiting[0].cancel()
    waiting[1].cancel()
    first.cancel()
    second.cancel()
    results = await asyncio.gather(*(outcome(task) for task in (first, second, *waiting)))
    assert [type(result) for result in results] == [asyncio.CancelledError] * 4 + [type(None)] * 2
    assert inside(checkpointer) == (0, 0)


class Crowd:
    """Callers of a bulkhead that come, go away, and are done, and what must hold meanwhile."""

    def __init__(self, places: int, waiting: int) -> None:
        self.places, self.most = places, waiting
        self.bulkhead = Bulkhead(places, waiting)
        self.inside: list[int] = []
        self.expected: list[int] = []
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.doors: dict[int, asyncio.Event] = {}

    async def call(self, number: int) -> None:
        await self.bulkhead.enter()
        self.inside.append(number)
        try:
            await self.doors[number].wait()
        finally:
            self.inside.remove(number)
            self.bulkhead.leave()

    async def play(self, story: list[tuple[str, int]]) -> None:
        line: list[int] = []  # in the order in which they came
        for number, (what, which) in enumerate(story):
            if what == "come":
                self.doors[number] = asyncio.Event()
                room = len(line) < self.places + self.most
                self.tasks[number] = asyncio.create_task(self.call(number))
                await a_moment(3)
                if room:
                    line.append(number)
                else:
                    assert isinstance(self.tasks.pop(number).exception(), Full)
            elif line:
                chosen = line.pop(which % (min(len(line), self.places) if what == "done" else len(line)))
                task = self.tasks.pop(chosen)
                task.cancel() if what == "go" else self.doors[chosen].set()
                await a_moment(3)
                assert task.done()
            # First come, first served; no place is lost, none is given twice.
            assert sorted(self.inside) == line[: self.places]
            assert self.bulkhead.running == min(len(line), self.places)
            assert self.bulkhead.waiting == max(0, len(line) - self.places) <= self.most
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert (self.bulkhead.running, self.bulkhead.waiting) == (0, 0)


@given(
    places=st.integers(1, 3),
    waiting=st.integers(0, 3),
    story=st.lists(st.tuples(st.sampled_from(["come", "come", "done", "go"]), st.integers(0, 9)), max_size=40),
)
def test_a_bulkhead_is_fair_and_loses_no_place(places, waiting, story):
    run_virtual(lambda: Crowd(places, waiting).play(story))


# -- cancellation at every await point -------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(25))
@pytest.mark.parametrize("name", ["load", "save", "delete"])
@virtual
async def test_cancelled_after_any_number_of_steps_it_leaves_at_once(name, turns):
    faulty = FaultyCheckpointer()
    await faulty.inner.save(state(1), "t", "one")
    faulty.inject(on(times=None).slow(1))
    checkpointer = guarded(faulty, max_concurrency=1, timeout=None)
    ahead = asyncio.create_task(checkpointer.exists("t"))  # so that there is a queue as well
    await asyncio.sleep(0)
    calls = {
        "load": lambda: checkpointer.load("t"),
        "save": lambda: checkpointer.save(state(2), "t", "two"),
        "delete": lambda: checkpointer.delete("t", "one"),
    }
    task = asyncio.create_task(calls[name]())
    for _ in range(turns % 5):
        await asyncio.sleep(0)
    await asyncio.sleep((turns // 5) * 0.5)  # before, when, and after the place is free; when it is done
    late = task.done()
    before = now()
    task.cancel()
    result = await outcome(task)
    assert late or isinstance(result, asyncio.CancelledError)
    assert now() == before
    await ahead
    await checkpointer.close()
    assert inside(checkpointer) == (0, 0)
    assert len(others()) == 0
    assert remaining(virtual_clock()) is None
    await checkpointer.save(state(3), "t")
    assert await latest(checkpointer) == 3


# -- life ------------------------------------------------------------------------------------------------------------


@virtual
async def test_close_waits_a_little_for_abandoned_calls_and_says_what_it_left(caplog: pytest.LogCaptureFixture):
    faulty = FaultyCheckpointer(script=[on("save", thread_id="t").slow(12), on("save", thread_id="u").hang()])
    checkpointer = guarded(faulty)
    await outcome(checkpointer.save(state(1), "t"))
    await checkpointer.close()
    assert now() == pytest.approx(12.0, abs=0.05)
    assert caplog.text == ""
    await outcome(checkpointer.save(state(1), "u"))
    began = now()
    await checkpointer.close()
    assert now() <= began + 10  # this layer's 5 s, and the leaf's
    assert "closed with 1 calls still running" in caplog.text
    faulty.release()
    await checkpointer.close()
    assert await latest(checkpointer, "u") == 1  # and usable afterwards


def test_every_loop_has_places_of_its_own():
    faulty = FaultyCheckpointer(script=[on("load").hang()])
    checkpointer = GuardedCheckpointer(faulty, max_concurrency=1, max_waiting=0, clock=virtual_clock(seed=1))

    async def leave_one_behind() -> None:
        task = asyncio.create_task(checkpointer.load("t"))
        await faulty.until_hung()
        assert not task.done()

    async def go_on() -> None:
        for _ in range(3):
            assert await checkpointer.load("t") is None
        assert checkpointer.running == 0

    run_virtual(leave_one_behind)  # the end of the loop cancels it
    run_virtual(go_on, start=100.0)
    run_virtual(go_on, start=200.0)


@virtual
async def test_its_state_can_be_read():
    faulty = FaultyCheckpointer(script=[on("save", times=None).hang()])
    checkpointer = guarded(faulty, max_waiting=2, max_concurrency=1)
    heard: list[Signal] = []
    with listen(heard.append):
        first = asyncio.create_task(outcome(checkpointer.save(state(1), "t")))
        await faulty.until_hung()
        assert checkpointer.running == 1
        waiting = [asyncio.create_task(outcome(checkpointer.load("t"))) for _ in range(2)]
        await a_moment()
        assert isinstance(await outcome(checkpointer.load("t")), Overloaded)
        await asyncio.gather(first, *waiting)
    stats = checkpointer.stats
    assert (stats.calls, stats.failures, stats.timeouts, stats.overloaded) == (4, 3, 3, 1)
    assert checkpointer.breaker is not None and checkpointer.breaker.state == "closed"
    kinds = ["guard.overloaded", "guard.timeout", "guard.timeout", "guard.timeout"]
    assert [signal.kind for signal in heard] == kinds
    assert heard[-1].thread_id == "t" and heard[-1].facts == {"operation": "save"}
    faulty.release()
    await a_moment()


# -- timed -----------------------------------------------------------------------------------------------------------


@virtual
async def test_timed_is_a_timeout_without_a_timer_for_what_never_waits():
    async def at_once() -> str:
        return "done"

    async def fails() -> None:
        raise KeyError("x")

    async def slowly(seconds: float) -> str:
        task = asyncio.current_task()
        await asyncio.sleep(seconds / 2)
        await asyncio.sleep(seconds / 2)
        assert asyncio.current_task() is task
        return "done"

    async def stubborn() -> str:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            return "did not hear"
        return "never"

    scheduled = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
    assert await timed(at_once(), 1) == "done"
    with pytest.raises(KeyError):
        await timed(fails(), 1)
    assert len(asyncio.get_running_loop()._scheduled) == scheduled  # type: ignore[attr-defined]
    assert await timed(slowly(1), 2) == "done"
    with pytest.raises(TimeoutError):
        await timed(slowly(3), 2)
    assert now() == 3.0
    assert await timed(stubborn(), 1) == "did not hear"  # as asyncio.timeout has it
    assert now() == 4.0
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


@virtual
async def test_a_cancellation_from_outside_is_no_timeout():
    async def waits() -> None:
        await asyncio.sleep(10)

    task = asyncio.create_task(timed(waits(), 5))
    await asyncio.sleep(1)
    task.cancel()
    assert isinstance(await outcome(task), asyncio.CancelledError)
    assert now() == 1.0


def test_the_timeouts_of_the_operations_it_was_written_for_exist():
    assert {kind.name for kind in (Load, Head, Exists, Save, Delete, CopyThread, Vacuum)} == set(SECONDS)
    assert Timeouts().seconds(Search("x")) == 10.0
    assert logging.getLogger("locus_tiered.layers.guarded") is not None
    assert isinstance(BreakerOpen("x", member="m", operation="o"), BackendError)
