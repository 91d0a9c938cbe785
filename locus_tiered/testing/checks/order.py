"""Newest means last saved, reading changes nothing, deleted stays deleted: laws 2, 3 and 4, with one caller.

All saves here follow one another as fast as the backend takes them, so that several fall into one second, one
millisecond, one tick of whatever clock a backend may order by. Where chance could hide a fault, a check goes
through it several times.
"""

from __future__ import annotations

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.states import plain_state

_THREADS = ("t0", "t1", "t2")


async def expect_newest(cp: BaseCheckpointer, thread: str, label: str, name: str, when: str) -> None:
    """The latest of ``thread`` is the state ``label``, and its list begins with ``name``."""
    got = await cp.load(thread)
    shown = "None" if got is None else repr(got.run_id)
    expect(got is not None and got.run_id == label, f"{when}: load gives {shown}, expected {label!r}")
    listed = await cp.list_checkpoints(thread, ALL)
    expect(listed[:1] == [name], f"{when}: list_checkpoints begins with {listed[:1]}, expected {name!r}")


@check(law=2)
async def check_newest_is_the_last_saved(subject: Subject) -> None:
    """After every save, the latest is that save and the list begins with it, whatever the ids look like."""
    cp = await subject.make()
    for thread, names in {
        "rising": [f"c{number}" for number in range(6)],
        "falling": [f"c{number}" for number in reversed(range(6))],
        "mixed": ["m", "z", "a", "q", "b", "y"],
    }.items():
        for name in names:
            await cp.save(plain_state(f"{thread} {name}"), thread, name)
            await expect_newest(cp, thread, f"{thread} {name}", name, f"after save({name!r})")


@check(law=2)
async def check_saving_again_makes_newest(subject: Subject) -> None:
    """Saving an id again replaces its state and makes it the newest; it is listed once."""
    cp = await subject.make()
    for thread in _THREADS:
        for name in ("z", "y", "x"):
            await cp.save(plain_state(name), thread, name)
        again = plain_state("z again")
        expect(await cp.save(again, thread, "z") == "z", "saving an id again returned another id")
        await expect_newest(cp, thread, "z again", "z", "after saving 'z' again")
        subject.expect_state(await cp.load(thread, "z"), again, "load by the id that was saved again")
        listed = await cp.list_checkpoints(thread)
        expect(sorted(listed) == ["x", "y", "z"], f"after saving 'z' again, list_checkpoints is {listed}")
        expect(listed == ["z", "x", "y"], f"after saving 'z' again, list_checkpoints is {listed}, not newest first")


@check(law=2, needs="deletes_single_checkpoints")
async def check_deleting_the_newest_falls_back(subject: Subject) -> None:
    """When the newest checkpoint is deleted, the one saved before it is the latest."""
    cp = await subject.make()
    for thread in _THREADS:
        names = ["b", "d", "a", "c"]
        for name in names:
            await cp.save(plain_state(name), thread, name)
        while len(names) > 1:
            gone = names.pop()
            await cp.delete(thread, gone)
            await expect_newest(cp, thread, names[-1], names[-1], f"after deleting the newest, {gone!r}")


@check(law=2, needs="deletes_single_checkpoints")
async def check_deleting_an_older_one_keeps_the_newest(subject: Subject) -> None:
    """Deleting a checkpoint that is not the newest leaves the newest where it is."""
    cp = await subject.make()
    for thread in _THREADS:
        for name in ("a", "b", "c", "d"):
            await cp.save(plain_state(name), thread, name)
        for gone in ("a", "c", "b"):
            await cp.delete(thread, gone)
            await expect_newest(cp, thread, "d", "d", f"after deleting {gone!r}, which is not the newest")


@check(law=2, needs="deletes_single_checkpoints")
async def check_quick_turns_of_an_agent(subject: Subject) -> None:
    """Turns as an agent saves them, one right after another: the latest is always the last turn's final state.

    A turn is a save per iteration under an id of the agent's own, the final save, then the deletes of the former.
    """
    cp = await subject.make()
    finals = []
    for turn in range(8):
        ids: list[str] = []
        for iteration in range(2):
            ids.append(f"{turn * 997 % 10:x}{turn}{iteration}".rjust(32, "0"))
            state = plain_state(f"turn {turn}, iteration {iteration}", _locus_iteration_checkpoints=list(ids))
            await cp.save(state, "t", ids[-1])
        got = await cp.load("t")
        expect(got is not None and got.run_id == state.run_id, f"in turn {turn}, load is not its last iteration")
        finals.append(await cp.save(plain_state(f"turn {turn}"), "t"))
        for name in ids:
            await cp.delete("t", name)
        got = await cp.load("t")
        shown = "None" if got is None else repr(got.run_id)
        expect(got is not None and got.run_id == f"turn {turn}", f"turn {turn} is lost: load gives {shown}")
    listed = await cp.list_checkpoints("t", ALL)
    expect(listed == finals[::-1], f"after 8 turns list_checkpoints is {listed}, expected {finals[::-1]}")


@check(law=2)
async def check_latest_agrees_with_the_list(subject: Subject) -> None:
    """load, load by the first listed id, and the last save are the same state in every thread."""
    cp = await subject.make()
    for thread in _THREADS:
        for name in ("m", "z", "a", "q", "b"):
            wanted = plain_state(f"{thread} {name}")
            await cp.save(wanted, thread, name)
        subject.expect_state(await cp.load(thread), wanted, f"load({thread!r})")
        head = (await cp.list_checkpoints(thread, 1))[:1]
        expect(head, f"list_checkpoints({thread!r}, 1) is empty")
        subject.expect_state(await cp.load(thread, head[0]), wanted, f"load({thread!r}, first listed id)")


@check(law=3)
async def check_reading_changes_nothing(subject: Subject) -> None:
    """Loading an old checkpoint, listing and exists move neither the latest nor the list."""
    cp = await subject.make()
    saved = await save_some(cp, 4)
    before = await cp.list_checkpoints("t")
    newest = await cp.load("t")
    for _ in range(2):
        for name in reversed(saved):
            await cp.load("t", name)
            await cp.exists("t", name)
        await cp.load("t", "not there")
        await cp.exists("t")
    after = await cp.list_checkpoints("t")
    expect(after == before, f"reading changed list_checkpoints from {before} to {after}")
    if newest is not None:
        subject.expect_state(await cp.load("t"), newest, "load('t') after old checkpoints were read")


@check(law=4, needs="deletes_single_checkpoints")
async def check_deleted_checkpoint_is_gone(subject: Subject) -> None:
    """A deleted checkpoint is gone for every way of asking, and a second delete says False."""
    cp = await subject.make()
    await save_some(cp, 2)
    for position in (0, -1):
        name = (await cp.list_checkpoints("t"))[position]
        expect(await cp.delete("t", name) is True, f"delete('t', {name!r}) is not True")
        expect(await cp.load("t", name) is None, f"{name!r} was deleted, load still gives it")
        expect(await cp.exists("t", name) is False, f"{name!r} was deleted, exists is still True")
        expect(name not in await cp.list_checkpoints("t"), f"{name!r} was deleted and is still listed")
        expect(await cp.delete("t", name) is False, f"a second delete of {name!r} is not False")


@check(law=4, needs="deletes_single_checkpoints")
async def check_thread_emptied_one_by_one(subject: Subject) -> None:
    """A thread whose checkpoints were all deleted one by one has no latest, lists nothing and does not exist."""
    cp = await subject.make()
    for name in await save_some(cp, 3):
        await cp.delete("t", name)
    got = await cp.load("t")
    expect(got is None, f"all checkpoints were deleted, load('t') still gives {got and got.run_id!r}")
    expect(await cp.list_checkpoints("t") == [], "all checkpoints were deleted, list_checkpoints is not empty")
    expect(await cp.exists("t") is False, "all checkpoints were deleted, exists('t') is True")


@check(law=4, needs="delete")
async def check_deleted_thread_starts_anew(subject: Subject) -> None:
    """After a thread was deleted, it has only what is saved from then on."""
    cp = await subject.make()
    saved = await save_some(cp, 3)
    await cp.delete("t")
    expect(await cp.exists("t") is False, "a deleted thread still exists")
    await cp.save(plain_state("new"), "t", "new")
    await expect_newest(cp, "t", "new", "new", "after a thread was deleted and saved again")
    listed = await cp.list_checkpoints("t")
    expect(listed == ["new"], f"after a thread was deleted and saved again, list_checkpoints is {listed}")
    for name in saved:
        expect(await cp.load("t", name) is None, f"{name!r} came back when its deleted thread was saved again")


@check(law=4, needs="deletes_single_checkpoints")
async def check_deleted_id_can_be_saved_again(subject: Subject) -> None:
    """An id that was deleted can be saved again, and is then the newest with its new state."""
    cp = await subject.make()
    await save_some(cp, 2)
    await cp.save(plain_state("old"), "t", "c")
    await cp.save(plain_state("other"), "t", "d")
    await cp.delete("t", "c")
    state = plain_state("new")
    await cp.save(state, "t", "c")
    subject.expect_state(await cp.load("t", "c"), state, "load of an id that was deleted and saved again")
    got = await cp.load("t")
    expect(got is not None and got.run_id == "new", "an id that was deleted and saved again is not the latest")
