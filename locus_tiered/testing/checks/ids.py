"""Ids are opaque (law 12): whatever text a thread or checkpoint is named by, no two are ever mixed up.

A backend may refuse an id with a ``ValueError`` (or a subclass) as long as it wrote nothing. What it accepts it
keeps apart from every other id, lists exactly as given, and deletes alone.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks import odd_ids
from locus_tiered.testing.checks.base import Subject, check, expect, refused, short
from locus_tiered.testing.checks.basics import ALL
from locus_tiered.testing.checks.states import plain_state


class _Problems:
    """What went wrong with which id; all of it is told at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def note(self, condition: object, message: str) -> None:
        if not condition:
            self.found.append(message)

    def tell(self) -> None:
        found = list(dict.fromkeys(self.found))
        if found:
            more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
            raise AssertionError("; ".join(found[:3]) + more)

    async def saved(self, call: Coroutine[Any, Any, str], name: str, what: str) -> bool:
        """Whether a save was accepted. Refusing an id with anything but a ``ValueError`` is a problem."""
        returned: list[str] = []

        async def save() -> None:
            returned.append(await call)

        error = await refused(save(), what)
        if error is None:
            self.note(returned == [name], f"{what} returned {short(returned[0])}, another checkpoint id")
            return True
        self.note(isinstance(error, ValueError), f"{what} raised {type(error).__name__}, which is no ValueError")
        return False

    async def answered(self, call: Coroutine[Any, Any, object], wanted: object, what: str, *, accepted: bool) -> None:
        """Ask something; an id that was refused may be refused again."""
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await call)

        error = await refused(ask(), what)
        if error is None:
            self.note(answers == [wanted], f"{what} is {short(answers[0])}, expected {short(wanted)}")
        elif accepted or not isinstance(error, ValueError):
            self.found.append(f"{what} raised {type(error).__name__}")


async def _label(call: Coroutine[Any, Any, AgentState | None]) -> str | None:
    got = await call
    return None if got is None else got.run_id


async def _sorted(call: Coroutine[Any, Any, list[str]]) -> list[str]:
    return sorted(await call)


async def threads_apart(subject: Subject, ids: Sequence[str]) -> None:
    """Every id names a thread of its own, with a checkpoint of the same id in each."""
    cp, problems = await subject.make(), _Problems()
    kept: dict[str, str | None] = {}
    for number, thread in enumerate(ids):
        state = plain_state(f"no. {number}, {short(thread, 30)}")
        accepted = await problems.saved(cp.save(state, thread, "c"), "c", f"save to thread {short(thread)}")
        kept[thread] = state.run_id if accepted else None
    await _look_at_threads(cp, problems, kept)
    if await subject.has("delete"):
        gone = [thread for thread in ids[:: max(1, len(ids) // 4)] if kept[thread]]
        for thread in gone:
            await problems.answered(cp.delete(thread), True, f"delete of thread {short(thread)}", accepted=True)
            kept[thread] = None
        await _look_at_threads(cp, problems, kept, f", after deleting {', '.join(short(name, 20) for name in gone)}")
    problems.tell()


async def _look_at_threads(
    cp: BaseCheckpointer, problems: _Problems, kept: dict[str, str | None], when: str = ""
) -> None:
    for thread, label in kept.items():
        where = f"thread {short(thread)}{when}"
        there = label is not None
        await problems.answered(_label(cp.load(thread)), label, f"load of {where}", accepted=there)
        await problems.answered(_label(cp.load(thread, "c")), label, f"load by id in {where}", accepted=there)
        wanted = ["c"] if there else []
        await problems.answered(cp.list_checkpoints(thread), wanted, f"list_checkpoints of {where}", accepted=there)
        await problems.answered(cp.exists(thread), there, f"exists of {where}", accepted=there)


async def checkpoints_apart(subject: Subject, ids: Sequence[str]) -> None:
    """Every id names a checkpoint of its own, in two threads."""
    cp, problems = await subject.make(), _Problems()
    kept: dict[str, str | None] = {}
    for number, name in enumerate(ids):
        for thread in ("t", "u"):
            state = plain_state(f"no. {number} of {thread}, {short(name, 30)}")
            accepted = await problems.saved(cp.save(state, thread, name), name, f"save under id {short(name)}")
            if thread == "t":
                kept[name] = state.run_id if accepted else None
            if accepted:
                what = f"load of the latest after save under id {short(name)}"
                await problems.answered(_label(cp.load(thread)), state.run_id, what, accepted=True)
    await _look_at_checkpoints(cp, problems, kept)
    if await subject.has("deletes_single_checkpoints"):
        gone = [name for name in ids[:: max(1, len(ids) // 4)] if kept[name]]
        for name in gone:
            await problems.answered(cp.delete("t", name), True, f"delete of id {short(name)}", accepted=True)
            kept[name] = None
        await _look_at_checkpoints(
            cp, problems, kept, f", after deleting {', '.join(short(name, 20) for name in gone)}"
        )
    problems.tell()


async def _look_at_checkpoints(
    cp: BaseCheckpointer, problems: _Problems, kept: dict[str, str | None], when: str = ""
) -> None:
    for name, label in kept.items():
        where = f"id {short(name)}{when}"
        there = label is not None
        await problems.answered(_label(cp.load("t", name)), label, f"load of {where}", accepted=there)
        await problems.answered(cp.exists("t", name), there, f"exists of {where}", accepted=there)
    listed = await _sorted(cp.list_checkpoints("t", ALL))
    missing = [name for name, label in kept.items() if label is not None and name not in listed]
    odd = [name for name in listed if kept.get(name) is None]
    problems.note(not missing, f"list_checkpoints lacks {', '.join(short(name, 30) for name in missing[:5])}{when}")
    problems.note(not odd, f"list_checkpoints has {', '.join(short(name, 30) for name in odd[:5])}{when}")
    problems.note(len(set(listed)) == len(listed), f"list_checkpoints names an id twice{when}")


@check(law=12)
async def check_thread_ids_with_separators(subject: Subject) -> None:
    """Threads named a/b, a_b, a:b, a.b ... are different threads."""
    await threads_apart(subject, odd_ids.SEPARATORS)


@check(law=12)
async def check_thread_ids_of_dots(subject: Subject) -> None:
    """Threads named ., .., ../a ... are threads like any other."""
    await threads_apart(subject, odd_ids.DOTS)


@check(law=12)
async def check_thread_ids_that_look_internal(subject: Subject) -> None:
    """Threads named _latest, x.meta, *, % ... are threads like any other."""
    await threads_apart(subject, odd_ids.INTERNAL)


@check(law=12)
async def check_thread_ids_that_are_long(subject: Subject) -> None:
    """Threads with ids of 4 KB that differ in one character are different threads."""
    await threads_apart(subject, odd_ids.LONG)


@check(law=12)
async def check_thread_ids_in_unicode(subject: Subject) -> None:
    """Threads whose ids are equal only after normalising or folding case are different threads."""
    await threads_apart(subject, odd_ids.UNICODE)


@check(law=12)
async def check_thread_ids_with_blanks(subject: Subject) -> None:
    """Threads whose ids differ in blanks, line ends or case are different threads."""
    await threads_apart(subject, odd_ids.BLANKS)


@check(law=12)
async def check_thread_ids_with_nul(subject: Subject) -> None:
    """Threads whose ids have a NUL character are kept apart or refused."""
    await threads_apart(subject, odd_ids.NULS)


@check(law=12)
async def check_thread_ids_with_surrogates(subject: Subject) -> None:
    """Threads whose ids have a lone surrogate are kept apart or refused."""
    await threads_apart(subject, odd_ids.SURROGATES)


@check(law=12)
async def check_checkpoint_ids_with_separators(subject: Subject) -> None:
    """Checkpoints named a/b, a_b, a:b, a.b ... are different checkpoints."""
    await checkpoints_apart(subject, odd_ids.SEPARATORS)


@check(law=12)
async def check_checkpoint_ids_of_dots(subject: Subject) -> None:
    """Checkpoints named ., .., ../a ... are checkpoints like any other."""
    await checkpoints_apart(subject, odd_ids.DOTS)


@check(law=12)
async def check_checkpoint_ids_that_look_internal(subject: Subject) -> None:
    """Checkpoints named latest, _checkpoints, x.meta ... are checkpoints like any other."""
    await checkpoints_apart(subject, odd_ids.INTERNAL)


@check(law=12)
async def check_checkpoint_ids_that_are_long(subject: Subject) -> None:
    """Checkpoints with ids of 4 KB that differ in one character are different checkpoints."""
    await checkpoints_apart(subject, odd_ids.LONG)


@check(law=12)
async def check_checkpoint_ids_in_unicode(subject: Subject) -> None:
    """Checkpoints whose ids are equal only after normalising or folding case are different checkpoints."""
    await checkpoints_apart(subject, odd_ids.UNICODE)


@check(law=12)
async def check_checkpoint_ids_with_blanks(subject: Subject) -> None:
    """Checkpoints whose ids differ in blanks, line ends or case are different checkpoints."""
    await checkpoints_apart(subject, odd_ids.BLANKS)


@check(law=12)
async def check_checkpoint_ids_with_nul(subject: Subject) -> None:
    """Checkpoints whose ids have a NUL character are kept apart or refused."""
    await checkpoints_apart(subject, odd_ids.NULS)


@check(law=12)
async def check_checkpoint_ids_with_surrogates(subject: Subject) -> None:
    """Checkpoints whose ids have a lone surrogate are kept apart or refused."""
    await checkpoints_apart(subject, odd_ids.SURROGATES)


@check(law=12)
async def check_pairs_that_join_alike(subject: Subject) -> None:
    """Thread u with id v:w and thread u:v with id w are different checkpoints, whatever the separator."""
    cp, problems = await subject.make(), _Problems()
    pairs = []
    for separator in (":", "/", "_", "-", ".", "|", "#", "::", "\x1f"):
        pairs += [("u", f"v{separator}w"), (f"u{separator}v", "w")]
    kept = {}
    for thread, name in pairs:
        state = plain_state(f"{thread!r} and {name!r}")
        if await problems.saved(cp.save(state, thread, name), name, f"save({thread!r}, {name!r})"):
            kept[thread, name] = state
    for (thread, name), state in kept.items():
        where = f"load({thread!r}, {name!r})"
        await problems.answered(_label(cp.load(thread, name)), state.run_id, where, accepted=True)
        if thread != "u":
            where = f"list_checkpoints({thread!r})"
            await problems.answered(cp.list_checkpoints(thread), [name], where, accepted=True)
    problems.tell()


@check(law=12)
async def check_empty_thread_id(subject: Subject) -> None:
    """A thread named by empty text is refused or a thread of its own; deleting it deletes no other."""
    cp, problems = await subject.make(), _Problems()
    await cp.save(plain_state("kept"), "kept", "c")
    for when in ("never saved", "saved"):
        label = None
        if when == "saved" and await problems.saved(cp.save(plain_state("empty"), "", "c"), "c", "save to thread ''"):
            label = "empty"
        there = label is not None
        await problems.answered(_label(cp.load("")), label, f"load('') when {when}", accepted=there)
        wanted = ["c"] if there else []
        await problems.answered(cp.list_checkpoints(""), wanted, f"list_checkpoints('') when {when}", accepted=there)
        if await subject.has("delete"):
            await problems.answered(cp.delete(""), there, f"delete('') when {when}", accepted=there)
            await problems.answered(_label(cp.load("")), None, "load('') after delete('')", accepted=False)
        await problems.answered(
            _label(cp.load("kept")), "kept", f"load of another thread after delete('') when {when}", accepted=True
        )
        await cp.save(plain_state("kept"), "kept", "c")
    problems.tell()


@check(law=12)
async def check_empty_checkpoint_id(subject: Subject) -> None:
    """An empty checkpoint id is refused or an id like any other, never taken for the latest or for all of them."""
    cp, problems = await subject.make(), _Problems()
    for name in ("a", "b"):
        await cp.save(plain_state(name), "t", name)
    await problems.answered(_label(cp.load("t", "")), None, "load('t', '') when never saved", accepted=False)
    await problems.answered(cp.exists("t", ""), False, "exists('t', '') when never saved", accepted=False)
    if await subject.has("deletes_single_checkpoints"):
        await problems.answered(cp.delete("t", ""), False, "delete('t', '') when never saved", accepted=False)
    for name in ("a", "b"):
        where = f"load('t', {name!r}) after delete('t', '')"
        await problems.answered(_label(cp.load("t", name)), name, where, accepted=True)
    problems.tell()


@check(law=12, needs="list_threads")
async def check_list_threads_gives_ids_back(subject: Subject) -> None:
    """list_threads gives thread ids exactly as they were given to save, whatever they look like."""
    cp = await subject.make()
    kept = [
        thread
        for thread in ("plain", "a/b", "a_b", "a:b", "anon:a b", "_latest", "x.json", "\u00e9", "e\u0301")
        if await refused(cp.save(plain_state(thread), thread, "c"), f"save to {thread!r}") is None
    ]
    got = sorted(await cp.list_threads(limit=1000))
    missing = [short(thread, 30) for thread in kept if thread not in got]
    odd = [short(thread, 30) for thread in got if thread not in kept]
    expect(not missing, f"list_threads lacks {', '.join(missing)}" + (f"; it has {', '.join(odd)}" if odd else ""))
    expect(not odd, f"list_threads has {', '.join(odd)}, which were never saved")
