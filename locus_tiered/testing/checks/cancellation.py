"""Cancellation is clean (law 9): who is cancelled leaves at once, and nothing is left half done.

A call is cancelled at each place where it waits, one after another, so what is reached depends on no timing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.interrupts import CutCall
from locus_tiered.testing.checks.order import expect_newest
from locus_tiered.testing.checks.states import plain_state

_WAITS = 24
"""At most so many places of one call are cancelled."""

_BULK = "so large that no backend answers before it was waited for " * 5000


_SERIES = 4
"""How often all places are gone through, every second time patiently (see :class:`CutCall`)."""


def _falling(series: int, at: int) -> str:
    """Names that fall: a backend that breaks ties by name is judged for that elsewhere."""
    return f"{9 - series}{99 - at}"


async def _cut(call: Coroutine[Any, Any, object], at: int, patient: bool, what: str) -> bool:
    """Cancel ``call`` where it waits for the ``at``-th time; False when it never waits that often."""
    cut = CutCall(call, at, patient=patient)
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
    """The checkpoint is listed, exists and loads, or none of it.

    A call that was abandoned may still take effect while this asks. So it asks again, for a third of a second: what
    is half a checkpoint then stays one.
    """
    for pause in (0.0, 0.01, 0.1, 0.2):
        await asyncio.sleep(pause)
        there = {
            "list_checkpoints": name in await cp.list_checkpoints("t", ALL),
            "exists": await cp.exists("t", name),
            "load": (got := await cp.load("t", name)) is not None,
        }
        if await subject.has("metadata_query"):
            there["get_metadata"] = await cp.get_metadata("t", name) is not None
        if got is not None:
            subject.expect_state(got, state, f"load of the checkpoint that was being changed by {what}")
        if len(set(there.values())) == 1:
            return
    says = ", ".join(f"{way} {'has' if found else 'lacks'} it" for way, found in there.items())
    raise AssertionError(f"{what} left half a checkpoint: {says}")


@check(law=9)
async def check_cancelled_save(subject: Subject) -> None:
    """A save that is cancelled leaves a whole checkpoint or none, and the next save is the newest."""
    cp = await subject.make()
    before = plain_state("before")
    await cp.save(before, "t", "zz")
    for series in range(_SERIES):
        for at in range(1, _WAITS + 1):
            end = _falling(series, at)
            state, name, next_name = plain_state(f"cut {end}", bulk=_BULK), f"{end}-cut", f"{end}-after"
            what = f"a save cancelled where it waits for the {at}. time"
            if not await _cut(cp.save(state, "t", name), at, series % 2 == 1, "save"):
                before = state
                break
            got = await cp.load("t")
            expect(
                got is not None and any(subject.equal(got, one) for one in (before, state)),
                f"after {what}, load gives {got and got.run_id!r}: neither the state before nor the one being saved",
            )
            before = plain_state(f"after {end}")
            await cp.save(before, "t", next_name)
            await expect_newest(cp, "t", before.run_id, next_name, f"after {what} and one more save")
            await _expect_whole_or_absent(subject, cp, name, state, what)


@check(law=9)
async def check_cancelled_load(subject: Subject) -> None:
    """A load that is cancelled harms nothing: the next calls answer as before."""
    cp = await subject.make()
    saved = {name: plain_state(f"save {name}", bulk=_BULK) for name in ("b", "a")}
    for name, state in saved.items():
        await cp.save(state, "t", name)
    for series in range(_SERIES):
        for at in range(1, _WAITS + 1):
            if not await _cut(cp.load("t"), at, series % 2 == 1, "load"):
                break
            subject.expect_state(await cp.load("t"), saved["a"], f"load after one that was cancelled at its {at}. wait")
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
    await cp.save(kept, "t", "zz")
    for series in range(_SERIES):
        for at in range(1, _WAITS + 1):
            end = _falling(series, at)
            state, name, next_name = plain_state(f"cut {end}"), f"{end}-cut", f"{end}-after"
            await cp.save(state, "t", name)
            what = f"a delete cancelled where it waits for the {at}. time"
            if not await _cut(cp.delete("t", name), at, series % 2 == 1, "delete"):
                break
            await cp.save(plain_state(next_name), "t", next_name)
            await expect_newest(cp, "t", next_name, next_name, f"after {what} and one more save")
            await _expect_whole_or_absent(subject, cp, name, state, what)
            subject.expect_state(await cp.load("t", "zz"), kept, f"load of another checkpoint after {what}")


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
