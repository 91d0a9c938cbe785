"""Many calls at the same time, from one handle and from two on the same data.

The laws here are 1 (one checkpointer), 2 (newest means last saved) and 4 (deleted stays deleted). Which of several
simultaneous saves is the newest is for the backend to decide; that ``load`` and ``list_checkpoints`` agree on it,
and that none is lost, is not.
"""

from __future__ import annotations

import asyncio

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, gather_all
from locus_tiered.testing.checks.basics import ALL
from locus_tiered.testing.checks.order import expect_newest
from locus_tiered.testing.checks.states import plain_state

_MANY = 20


async def _save_at_once(cp: BaseCheckpointer, thread: str, count: int = _MANY) -> dict[str, AgentState]:
    states = {f"c{number:02}": plain_state(f"{thread} {number}") for number in range(count)}
    names = await gather_all(*(cp.save(state, thread, name) for name, state in states.items()))
    expect(names == list(states), f"simultaneous saves returned {names}, expected the ids that were given")
    return states


async def expect_kept(
    subject: Subject, cp: BaseCheckpointer, thread: str, states: dict[str, AgentState], what: str
) -> None:
    """Every one of ``states`` is listed once and loads as it was saved."""
    listed = await cp.list_checkpoints(thread, ALL)
    lost = sorted(states.keys() - set(listed))
    expect(not lost, f"{what}: {len(lost)} of {len(states)} acknowledged saves are not listed: {lost[:5]}")
    expect(len(listed) == len(set(listed)), f"{what}: an id is listed twice")
    for name, state in states.items():
        subject.expect_state(await cp.load(thread, name), state, f"{what}: load({thread!r}, {name!r})")


@check(law=1)
async def check_first_calls_at_once(subject: Subject) -> None:
    """A new checkpointer takes its very first calls all at the same time."""
    cp = await subject.make()
    states = {f"t{number}": plain_state(f"first {number}") for number in range(10)}
    await gather_all(*(cp.save(state, thread, "c") for thread, state in states.items()))
    for thread, state in states.items():
        subject.expect_state(await cp.load(thread), state, f"load({thread!r})")


@check(law=1)
async def check_saves_at_once_are_all_kept(subject: Subject) -> None:
    """Of twenty simultaneous saves to one thread, every one is listed and can be loaded."""
    cp = await subject.make()
    await cp.save(plain_state("before"), "t", "before")
    states = await _save_at_once(cp, "t")
    await expect_kept(subject, cp, "t", states, "twenty simultaneous saves")
    expect(len(await cp.list_checkpoints("t", ALL)) == _MANY + 1, "the checkpoint from before them is not listed")


@check(law=2)
async def check_saves_at_once_agree_on_the_newest(subject: Subject) -> None:
    """After twenty simultaneous saves, load gives the state that is listed first; the next save is the newest."""
    cp = await subject.make()
    await cp.save(plain_state("before"), "t0", "zz")
    for thread in ("t0", "t1", "t2", "t3", "t4"):
        states = await _save_at_once(cp, thread)
        head = (await cp.list_checkpoints(thread, 1))[0]
        expect(head in states, f"after twenty simultaneous saves, an older one is listed first: {head!r}")
        got = await cp.load(thread)
        expect(
            got is not None and subject.equal(got, states[head]),
            f"after twenty simultaneous saves {head!r} is listed first, load gives {got and got.run_id!r}",
        )
        await cp.save(plain_state("after"), thread, "after")
        await expect_newest(cp, thread, "after", "after", "after one more save")


@check(law=1)
async def check_threads_at_once(subject: Subject) -> None:
    """Ten threads that are written at the same time each keep all of their own, in order."""
    cp = await subject.make()
    await cp.save(plain_state("before"), "before", "c")

    async def write(thread: str) -> None:
        for name in ("c", "a", "b"):
            await cp.save(plain_state(f"{thread} {name}"), thread, name)
            got = await cp.load(thread)
            expect(got is not None and got.run_id == f"{thread} {name}", f"load({thread!r}) is not its last save")

    threads = [f"t{number}" for number in range(10)]
    await gather_all(*(write(thread) for thread in threads))
    for thread in threads:
        listed = await cp.list_checkpoints(thread)
        expect(sorted(listed) == ["a", "b", "c"], f"list_checkpoints({thread!r}) is {listed}")


@check(law=1)
async def check_reads_beside_writes(subject: Subject) -> None:
    """While a checkpoint is saved over and over, readers see one of its states whole, never none, never a mixture."""
    cp = await subject.make()
    states = [plain_state("even", text="e" * 20_000), plain_state("odd", text="o" * 20_000)]
    await cp.save(states[0], "t", "c")
    writing = True

    async def write() -> None:
        nonlocal writing
        try:
            for number in range(1, 11):
                await cp.save(states[number % 2], "t", "c")
                await asyncio.sleep(0)
        finally:
            writing = False

    async def read(*arguments: str) -> None:
        while writing:
            got = await cp.load(*arguments)
            expect(
                got is not None and any(subject.equal(got, state) for state in states),
                f"load{arguments} beside a save gives {'None' if got is None else 'a state that was never saved'}",
            )
            await asyncio.sleep(0)

    await gather_all(write(), read("t"), read("t", "c"))


@check(law=1, reopen=True)
async def check_two_handles_lose_nothing(subject: Subject) -> None:
    """Of twenty simultaneous saves to one thread through two handles, every one is kept, for both."""
    one, two = await subject.make(), await subject.reopen()
    for number, handle in enumerate((one, two)):
        await handle.save(plain_state(f"before {number}"), "t", f"before{number}")
    states = {f"c{number:02}": plain_state(f"t {number}") for number in range(_MANY)}
    await gather_all(
        *((one, two)[number % 2].save(state, "t", name) for number, (name, state) in enumerate(states.items()))
    )
    for number, handle in enumerate((one, two)):
        await expect_kept(subject, handle, "t", states, f"saves through two handles, as handle {number} sees them")


@check(law=2, reopen=True)
async def check_two_handles_see_each_others_newest(subject: Subject) -> None:
    """What one handle saved is at once the newest for the other, back and forth."""
    one, two = await subject.make(), await subject.reopen()
    for number in range(6):
        writer, reader = (one, two) if number % 2 else (two, one)
        name = f"c{9 - number}"
        await writer.save(plain_state(name), "t", name)
        await expect_newest(reader, "t", name, name, f"after the other handle saved {name!r}")
    for handle in (one, two):
        expect(await handle.exists("t", "c9") is True, "a handle does not see the first save")


@check(law=4, needs="deletes_single_checkpoints", reopen=True)
async def check_two_handles_agree_on_deletes(subject: Subject) -> None:
    """What one handle deleted is not the other's latest and not in its list, also when it had just read it."""
    one, two = await subject.make(), await subject.reopen()
    for name in ("c", "b", "a"):
        await one.save(plain_state(name), "t", name)
    await expect_newest(two, "t", "a", "a", "before anything was deleted")
    await one.delete("t", "a")
    await expect_newest(two, "t", "b", "b", "after the other handle deleted the newest")
    await one.delete("t")
    expect(await two.load("t") is None, "a thread that the other handle deleted can still be loaded")
    expect(await two.exists("t") is False, "a thread that the other handle deleted still exists")
    expect(await two.list_checkpoints("t") == [], "a thread that the other handle deleted still lists checkpoints")


@check(law=4, needs="deletes_single_checkpoints", reopen=True)
async def check_two_handles_forget_deleted_ids(subject: Subject) -> None:
    """What one handle deleted cannot be loaded by its id through the other, also when it had just read it."""
    one, two = await subject.make(), await subject.reopen()
    for name in ("c", "b", "a"):
        await one.save(plain_state(name), "t", name)
        await two.load("t", name)
    await one.delete("t", "a")
    expect(await two.load("t", "a") is None, "a checkpoint that the other handle deleted can still be loaded")
    expect(await two.exists("t", "a") is False, "a checkpoint that the other handle deleted still exists")
    await one.delete("t")
    expect(await two.load("t", "b") is None, "a checkpoint of a thread that the other handle deleted still loads")
