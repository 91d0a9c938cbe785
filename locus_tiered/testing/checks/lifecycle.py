"""Cancellation is clean (law 9); loops come and go, and so does ``close`` (law 10).

A call is cancelled at each place where it waits, one after another, so nothing depends on timing.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Coroutine
from typing import Any

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, gather_all
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.interrupts import CutCall, in_another_loop
from locus_tiered.testing.checks.order import expect_newest
from locus_tiered.testing.checks.states import plain_state

_WAITS = 24
"""At most so many places of one call are cancelled."""

_BULK = "so large that no backend answers before it was waited for " * 5000


async def _cut(call: Coroutine[Any, Any, object], at: int, what: str) -> bool:
    """Cancel ``call`` where it waits for the ``at``-th time; False when it never waits that often."""
    cut = CutCall(call, at)
    task = asyncio.create_task(cut.run())
    await asyncio.wait({task})
    if not cut.reached:
        task.result()
        return False
    if task.cancelled():
        return True
    error = task.exception()
    shown = "answered" if error is None else f"raised {type(error).__name__}"
    raise AssertionError(f"{what} was cancelled where it waits for the {at}. time; it {shown} instead of leaving")


async def _expect_whole_or_absent(
    subject: Subject, cp: BaseCheckpointer, name: str, state: AgentState, what: str
) -> None:
    """The checkpoint is listed, exists and loads, or none of it."""
    there = {
        "list_checkpoints": name in await cp.list_checkpoints("t", ALL),
        "exists": await cp.exists("t", name),
        "load": (got := await cp.load("t", name)) is not None,
    }
    if await subject.has("metadata_query"):
        there["get_metadata"] = await cp.get_metadata("t", name) is not None
    says = ", ".join(f"{way} {'has' if found else 'lacks'} it" for way, found in there.items())
    expect(len(set(there.values())) == 1, f"{what} left half a checkpoint: {says}")
    if got is not None:
        subject.expect_state(got, state, f"load of the checkpoint whose save was cancelled ({what})")


@check(law=9)
async def check_cancelled_save(subject: Subject) -> None:
    """A save that is cancelled leaves a whole checkpoint or none, and the next save is the newest."""
    cp = await subject.make()
    before = plain_state("before")
    await cp.save(before, "t", "z")
    for at in range(1, _WAITS + 1):
        # Falling names: a backend that breaks ties by name is judged for that elsewhere.
        state, name, next_name = plain_state(f"cut {at}", bulk=_BULK), f"y{99 - at}-cut", f"y{99 - at}-after"
        what = f"a save cancelled where it waits for the {at}. time"
        if not await _cut(cp.save(state, "t", name), at, "save"):
            break
        got = await cp.load("t")
        expect(
            got is not None and any(subject.equal(got, one) for one in (before, state)),
            f"after {what}, load gives {got and got.run_id!r}: neither the state before nor the one being saved",
        )
        before = plain_state(f"after {at}")
        await cp.save(before, "t", next_name)
        await expect_newest(cp, "t", before.run_id, next_name, f"after {what} and one more save")
        await _expect_whole_or_absent(subject, cp, name, state, what)


@check(law=9)
async def check_cancelled_load(subject: Subject) -> None:
    """A load that is cancelled harms nothing: the next calls answer as before."""
    cp = await subject.make()
    saved = {name: plain_state(f"save {name}", bulk=_BULK) for name in ("a", "b")}
    for name, state in saved.items():
        await cp.save(state, "t", name)
    wanted = saved["b"]
    for at in range(1, _WAITS + 1):
        if not await _cut(cp.load("t"), at, "load"):
            break
        subject.expect_state(await cp.load("t"), wanted, f"load after one that was cancelled at its {at}. wait")
        for name, state in saved.items():
            subject.expect_state(await cp.load("t", name), state, f"load by id after a cancelled load ({at})")
    await cp.save(plain_state("after"), "t", "after")
    got = await cp.load("t")
    expect(got is not None and got.run_id == "after", "after cancelled loads, a save is not the newest")


@check(law=9, needs="deletes_single_checkpoints")
async def check_cancelled_delete(subject: Subject) -> None:
    """A delete that is cancelled leaves the checkpoint whole or takes it away, and harms no other."""
    cp = await subject.make()
    kept = plain_state("kept")
    await cp.save(kept, "t", "z")
    for at in range(1, _WAITS + 1):
        state, name, next_name = plain_state(f"cut {at}"), f"y{99 - at}-cut", f"y{99 - at}-after"
        await cp.save(state, "t", name)
        what = f"a delete cancelled where it waits for the {at}. time"
        if not await _cut(cp.delete("t", name), at, "delete"):
            break
        await cp.save(plain_state(next_name), "t", next_name)
        await expect_newest(cp, "t", next_name, next_name, f"after {what} and one more save")
        await _expect_whole_or_absent(subject, cp, name, state, what)
        subject.expect_state(await cp.load("t", "z"), kept, f"load of another checkpoint after {what}")


@check(law=9)
async def check_cancelling_one_of_two(subject: Subject) -> None:
    """When one of two equal loads is cancelled, the other still answers; the same for two saves."""
    cp = await subject.make()
    wanted = list((await save_some(cp, 2)).values())[-1]
    for at in range(1, 4):
        cut = CutCall(cp.load("t"), at)
        first = asyncio.create_task(cut.run())
        second = asyncio.create_task(cp.load("t"))
        await asyncio.wait({first, second})
        expect(not second.cancelled(), "cancelling one load cancelled another caller's load")
        subject.expect_state(second.result(), wanted, "a load beside one that was cancelled")
        cut_save = CutCall(cp.save(plain_state("cut"), "t", "cut"), at)
        saving = asyncio.create_task(cut_save.run())
        wanted = plain_state(f"kept {at}")
        other = asyncio.create_task(cp.save(wanted, "t", f"kept{at}"))
        await asyncio.wait({saving, other})
        expect(not other.cancelled(), "cancelling one save cancelled another caller's save")
        expect(other.result() == f"kept{at}", "a save beside one that was cancelled did not return its id")
        subject.expect_state(await cp.load("t", f"kept{at}"), wanted, "load of a save beside a cancelled one")
        await cp.save(wanted, "t", f"last{at}")


@check(law=10)
async def check_close_before_use(subject: Subject) -> None:
    """close may be called before anything else, and the checkpointer works after it."""
    cp, state = await subject.make(), plain_state("first")
    await cp.close()
    await cp.save(state, "t", "c")
    subject.expect_state(await cp.load("t"), state, "load after close, save")


@check(law=10)
async def check_close_and_use_again(subject: Subject) -> None:
    """close may be called twice; after it the checkpointer works again and has everything."""
    cp = await subject.make()
    saved = await save_some(cp, 3)
    await cp.close()
    await cp.close()
    for name, state in saved.items():
        subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r}) after close")
    await cp.save(plain_state("after"), "t", "after")
    await expect_newest(cp, "t", "after", "after", "after close and one more save")
    expect(len(await cp.list_checkpoints("t")) == 4, "after close, checkpoints are missing")
    await cp.close()


async def _busy(cp: BaseCheckpointer, prefix: str, rounds: int) -> None:
    """``rounds`` saves, loads and lists of one thread, all at the same time."""

    async def save(number: int) -> None:
        name = f"{prefix}{number}"
        expect(await cp.save(plain_state(name), "t", name) == name, f"save under {name!r} returned another id")

    async def load() -> None:
        expect(await cp.load("t") is not None, "load('t') is None though the thread has checkpoints")

    async def names() -> None:
        expect(await cp.list_checkpoints("t", ALL), "list_checkpoints('t') is empty though it has checkpoints")

    await gather_all(*(call for number in range(rounds) for call in (save(number), load(), names())))


async def _expect_all(cp: BaseCheckpointer, prefixes: str, rounds: int) -> None:
    wanted = {f"{prefix}{number}" for prefix in prefixes for number in range(rounds)}
    lost = sorted(wanted - set(await cp.list_checkpoints("t", ALL)))
    expect(not lost, f"{len(lost)} of {len(wanted)} acknowledged saves are not listed: {lost[:5]}")


async def _in_two_loops(cp: BaseCheckpointer, *, close: bool) -> None:
    """Ten simultaneous rounds in a loop that then ends, ten more in the next one."""

    async def first() -> None:
        try:
            await cp.save(plain_state("before"), "t", "before")
            await _busy(cp, "a", 10)
        finally:
            if close:
                await cp.close()

    async def second() -> None:
        try:
            expect(await cp.load("t") is not None, "in a second event loop, load('t') is None")
            await _busy(cp, "b", 10)
            await _expect_all(cp, "ab", 10)
            await cp.save(plain_state("after"), "t", "after")
            got = await cp.load("t")
            expect(got is not None and got.run_id == "after", "in a second event loop, a save is not the newest")
        finally:
            await cp.close()

    await in_another_loop(first)
    await in_another_loop(second)


@check(law=10)
async def check_second_loop_after_close(subject: Subject) -> None:
    """Used and closed in one event loop, it works in the next, with many calls at the same time."""
    await _in_two_loops(await subject.make(), close=True)


@check(law=10)
async def check_second_loop_without_close(subject: Subject) -> None:
    """Used in one event loop that ended without close, it works in the next, with many calls at the same time."""
    cp = await subject.make()
    with warnings.catch_warnings():
        # Connections of a loop that ended cannot be closed any more; Python may say so when they are collected.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            await _in_two_loops(cp, close=False)
        finally:
            gc.collect()
