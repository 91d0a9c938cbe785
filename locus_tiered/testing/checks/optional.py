"""The optional operations, where a checkpointer declares them: metadata, threads, copies, vacuum, search.

The SDK leaves the shape of some answers open, so a check accepts the shapes that its own backends have:
``get_metadata`` gives the caller's metadata alone or a row with a ``metadata`` in it.
"""

from __future__ import annotations

from typing import Any

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, short
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.states import plain_state

_LONG_AGO = 36_500
"""Days; a century."""


def metadata_of(row: dict[str, Any] | None) -> dict[str, Any]:
    """The caller's metadata in an answer of ``get_metadata`` or a row of ``list_with_metadata``."""
    expect(isinstance(row, dict), f"expected a dict with the metadata, got {short(row)}")
    inner = (row or {}).get("metadata")
    return inner if isinstance(inner, dict) else (row or {})


def _pairs(rows: list[dict[str, Any]], where: str) -> list[tuple[str, str]]:
    for row in rows:
        expect(
            isinstance(row, dict) and {"thread_id", "checkpoint_id"} <= row.keys(),
            f"{where}: a row does not name its thread_id and checkpoint_id: {short(row, 120)}",
        )
    return [(row["thread_id"], row["checkpoint_id"]) for row in rows]


async def _save_with(cp: BaseCheckpointer, thread: str, name: str, **metadata: Any) -> None:
    await cp.save(plain_state(f"{thread} {name}"), thread, name, metadata)


@check(law="sdk", needs="metadata_query")
async def check_get_metadata_by_id(subject: Subject) -> None:
    """get_metadata gives what was saved with that checkpoint, and names no other checkpoint."""
    cp, nested = await subject.make(), {"kind": "draft", "n": 1, "tags": ["a"], "who": {"id": None}}
    await _save_with(cp, "t", "a", **nested)
    await _save_with(cp, "t", "b", kind="final")
    for name, wanted in (("a", nested), ("b", {"kind": "final"})):
        row = await cp.get_metadata("t", name)
        got = metadata_of(row)
        expect(got == wanted, f"get_metadata('t', {name!r}) is {short(got, 120)}, expected {wanted}")
        named = (row or {}).get("checkpoint_id", name)
        expect(named == name, f"get_metadata('t', {name!r}) says it is of checkpoint {named!r}")


@check(law="sdk", needs="metadata_query")
async def check_get_metadata_of_the_latest(subject: Subject) -> None:
    """get_metadata without an id gives the metadata of the newest checkpoint."""
    cp = await subject.make()
    for name in ("a", "c", "b"):
        await _save_with(cp, "t", name, mark=name)
        got = metadata_of(await cp.get_metadata("t"))
        expect(got == {"mark": name}, f"after save({name!r}), get_metadata('t') is {short(got, 120)}")
    await cp.save(plain_state("none"), "t", "d")
    row = await cp.get_metadata("t", "d")
    expect(row is not None, "get_metadata of a checkpoint saved without metadata= is None, as if it were not there")


@check(law="sdk", needs="metadata_query")
async def check_get_metadata_of_unknown(subject: Subject) -> None:
    """get_metadata of what was never saved is None."""
    cp = await subject.make()
    await _save_with(cp, "t", "a", mark="a")
    expect(await cp.get_metadata("nobody") is None, "get_metadata of an unknown thread is not None")
    expect(await cp.get_metadata("t", "b") is None, "get_metadata of an unknown checkpoint is not None")
    expect(await cp.get_metadata("nobody", "a") is None, "get_metadata finds the checkpoint of another thread")


@check(law="sdk", needs="metadata_query")
async def check_query_by_metadata(subject: Subject) -> None:
    """query_by_metadata finds exactly the checkpoints with that value, of every thread, by thread and id."""
    cp = await subject.make()
    await _save_with(cp, "t", "a", kind="draft", n=1)
    await _save_with(cp, "t", "b", kind="final", n=2)
    await _save_with(cp, "u", "c", kind="draft", n=2)
    await cp.save(plain_state("none"), "u", "d")
    for key, value, wanted in (
        ("kind", "draft", [("t", "a"), ("u", "c")]),
        ("n", 2, [("t", "b"), ("u", "c")]),
        ("kind", "nothing", []),
        ("other", "draft", []),
    ):
        where = f"query_by_metadata({key!r}, {value!r})"
        got = sorted(_pairs(await cp.query_by_metadata(key, value), where))
        expect(got == wanted, f"{where} finds {got}, expected {wanted}")


@check(law="sdk", needs="metadata_query")
async def check_query_limit(subject: Subject) -> None:
    """query_by_metadata gives at most ``limit`` rows."""
    cp = await subject.make()
    for number in range(4):
        await _save_with(cp, "t", f"c{number}", kind="draft")
    for limit, wanted in ((0, 0), (1, 1), (3, 3), (ALL, 4)):
        got = len(await cp.query_by_metadata("kind", "draft", limit=limit))
        expect(got == wanted, f"query_by_metadata(limit={limit}) gives {got} of 4 rows, expected {wanted}")


@check(law=4, needs=("metadata_query", "deletes_single_checkpoints"))
async def check_metadata_goes_with_its_checkpoint(subject: Subject) -> None:
    """Metadata of a deleted checkpoint is not found any more; metadata saved again replaces the old."""
    cp = await subject.make()
    await _save_with(cp, "t", "a", kind="draft")
    await _save_with(cp, "t", "b", kind="draft")
    await cp.delete("t", "b")
    expect(await cp.get_metadata("t", "b") is None, "get_metadata of a deleted checkpoint is not None")
    got = _pairs(await cp.query_by_metadata("kind", "draft"), "query_by_metadata")
    expect(got == [("t", "a")], f"after a delete, query_by_metadata finds {got}")
    await _save_with(cp, "t", "a", kind="final")
    expect(await cp.query_by_metadata("kind", "draft") == [], "query_by_metadata finds metadata that was replaced")


@check(law="sdk", needs="list_threads")
async def check_list_threads(subject: Subject) -> None:
    """list_threads gives every thread once, and nothing that is not a thread."""
    cp = await subject.make()
    for thread in ("one", "two", "three"):
        await save_some(cp, 2, thread)
    got = sorted(await cp.list_threads())
    expect(got == ["one", "three", "two"], f"list_threads is {got}, expected three threads")


@check(law="sdk", needs="list_threads")
async def check_list_threads_limit(subject: Subject) -> None:
    """The order of list_threads is steady: asked twice it is the same, and a limit cuts its end."""
    cp = await subject.make()
    for number in range(6):
        await save_some(cp, 1, f"t{number * 7 % 10}")
    whole = await cp.list_threads()
    expect(await cp.list_threads() == whole, "list_threads answers differently when asked twice")
    for limit in (0, 1, 4, 6, ALL):
        got = await cp.list_threads(limit=limit)
        expect(got == whole[:limit], f"list_threads(limit={limit}) is {got}, the whole is {whole}")


@check(law="sdk", needs="list_threads")
async def check_list_threads_pattern(subject: Subject) -> None:
    """list_threads(pattern=) gives the threads that match, with * for any text."""
    cp = await subject.make()
    for thread in ("user-1", "user-2", "team-1", "user", "xuser-3"):
        await save_some(cp, 1, thread)
    for pattern, wanted in (
        ("*", ["team-1", "user", "user-1", "user-2", "xuser-3"]),
        ("user-*", ["user-1", "user-2"]),
        ("*-1", ["team-1", "user-1"]),
        ("user", ["user"]),
        ("nobody*", []),
    ):
        got = sorted(await cp.list_threads(pattern=pattern))
        expect(got == wanted, f"list_threads(pattern={pattern!r}) is {got}, expected {wanted}")


@check(law=4, needs=("list_threads", "delete"))
async def check_list_threads_forgets_the_deleted(subject: Subject) -> None:
    """A deleted thread is not listed any more."""
    cp = await subject.make()
    for thread in ("kept", "gone"):
        await save_some(cp, 2, thread)
    await cp.delete("gone")
    got = await cp.list_threads()
    expect(got == ["kept"], f"after the other thread was deleted, list_threads is {got}")


@check(law=4, needs=("list_threads", "deletes_single_checkpoints"))
async def check_list_threads_forgets_the_emptied(subject: Subject) -> None:
    """A thread whose checkpoints were all deleted one by one is not listed any more."""
    cp = await subject.make()
    await save_some(cp, 1, "kept")
    for name in await save_some(cp, 2, "emptied"):
        await cp.delete("emptied", name)
    got = await cp.list_threads()
    expect(got == ["kept"], f"after the other thread was emptied, list_threads is {got}")


@check(law="sdk", needs="list_with_metadata")
async def check_list_with_metadata(subject: Subject) -> None:
    """list_with_metadata has a row for every checkpoint of every thread, with the metadata it was saved with."""
    cp = await subject.make()
    wanted: dict[tuple[str, str], dict[str, Any]] = {("t", "a"): {"n": 1}, ("u", "a"): {"tags": ["x"]}, ("t", "b"): {}}
    for (thread, name), metadata in wanted.items():
        await cp.save(plain_state(name), thread, name, metadata)
    rows = await cp.list_with_metadata()
    got = dict(zip(_pairs(rows, "list_with_metadata"), map(metadata_of, rows), strict=True))
    expect(len(rows) == 3 and got.keys() == wanted.keys(), f"list_with_metadata has rows for {sorted(got)}")
    expect(got == wanted, f"list_with_metadata has {short(got, 200)}, expected {wanted}")


@check(law=2, needs="list_with_metadata")
async def check_list_with_metadata_is_newest_first(subject: Subject) -> None:
    """list_with_metadata gives the newest checkpoints first, across threads, and a limit keeps the newest."""
    cp = await subject.make()
    saved = [("t", "b"), ("u", "d"), ("t", "a"), ("s", "c"), ("u", "e")]
    for thread, name in saved:
        await _save_with(cp, thread, name, n=1)
    wanted = saved[::-1]
    for limit in (ALL, 5, 3, 1, 0):
        got = _pairs(await cp.list_with_metadata(limit=limit), "list_with_metadata")
        expect(got == wanted[:limit], f"list_with_metadata(limit={limit}) is {got}, expected {wanted[:limit]}")


async def _states(cp: BaseCheckpointer, thread: str) -> list[AgentState | None]:
    return [await cp.load(thread, name) for name in await cp.list_checkpoints(thread, ALL)]


@check(law="sdk", needs="branching")
async def check_copy_thread(subject: Subject) -> None:
    """copy_thread returns True and copies every checkpoint, in the same order, with the same newest."""
    cp = await subject.make()
    for thread in ("s0", "s1", "s2"):
        saved = [plain_state(f"{thread} {name}") for name in ("m", "z", "a", "q", "b")]
        for state in saved:
            await cp.save(state, thread, state.run_id[-1])
        expect(await cp.copy_thread(thread, f"{thread} copy") is True, "copy_thread did not return True")
        subject.expect_state(await cp.load(f"{thread} copy"), saved[-1], "the latest of a copied thread")
        got = [state and state.run_id for state in await _states(cp, f"{thread} copy")]
        wanted = [state.run_id for state in reversed(saved)]
        expect(got == wanted, f"a copied thread lists, newest first, {got}; its source has {wanted}")


@check(law=5, needs=("branching", "deletes_single_checkpoints"))
async def check_copy_is_independent(subject: Subject) -> None:
    """What is saved to or deleted from a copy does not touch its source, nor the other way round."""
    cp = await subject.make()
    saved = list((await save_some(cp, 3, "source")).values())
    await cp.copy_thread("source", "copy")
    await cp.save(plain_state("new in copy"), "copy", "n")
    subject.expect_state(await cp.load("source"), saved[-1], "load of the source after a save to its copy")
    await cp.save(plain_state("new in source"), "source", "n")
    other = await cp.load("copy")
    expect(other is not None and other.run_id == "new in copy", "a save to the source changed the copy's latest")
    await cp.delete("copy", "n")
    other = await cp.load("source", "n")
    expect(other is not None and other.run_id == "new in source", "a delete in the copy took it from the source")
    await cp.delete("source")
    got = sorted(state.run_id for state in await _states(cp, "copy") if state is not None)
    wanted = sorted(state.run_id for state in saved)
    expect(got == wanted, f"after its source was deleted, the copy has {got}, expected {wanted}")


@check(law="sdk", needs="branching")
async def check_copy_of_an_unknown_thread(subject: Subject) -> None:
    """Copying a thread that was never saved returns False and makes nothing."""
    cp = await subject.make()
    await save_some(cp, 1)
    got = await cp.copy_thread("nobody", "copy")
    expect(got is False, f"copy_thread of an unknown thread returned {got!r}, expected False")
    expect(await cp.load("copy") is None, "copying an unknown thread made a thread")
    expect(await cp.exists("copy") is False, "copying an unknown thread made a thread")


@check(law="sdk", needs=("branching", "list_with_metadata"))
async def check_copy_is_listed_as_itself(subject: Subject) -> None:
    """list_with_metadata names a copied checkpoint by the thread that it was copied to."""
    cp = await subject.make()
    await _save_with(cp, "source", "a", n=1)
    await cp.copy_thread("source", "copy")
    got = sorted({thread for thread, _ in _pairs(await cp.list_with_metadata(), "list_with_metadata")})
    expect(got == ["copy", "source"], f"after a copy, list_with_metadata names the threads {got}")


@check(law="sdk", needs=("branching", "metadata_query"))
async def check_copy_keeps_metadata(subject: Subject) -> None:
    """A copied checkpoint has the metadata of its source."""
    cp = await subject.make()
    await _save_with(cp, "source", "a", kind="draft")
    await cp.copy_thread("source", "copy")
    got = metadata_of(await cp.get_metadata("copy"))
    expect(got == {"kind": "draft"}, f"the copy of a checkpoint with metadata has {short(got)}")


@check(law="sdk", needs="vacuum")
async def check_vacuum_keeps_the_young(subject: Subject) -> None:
    """vacuum with a huge age deletes nothing, and returns the number 0."""
    cp = await subject.make()
    saved = await save_some(cp, 3)
    got = await cp.vacuum(older_than_days=_LONG_AGO)
    expect(got == 0 and type(got) is int, f"vacuum of a century returned {got!r}, expected 0")
    expect(len(await cp.list_checkpoints("t")) == 3, "vacuum of a century deleted a checkpoint just saved")
    for name, state in saved.items():
        subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r}) after vacuum")


@check(law="sdk", needs="search")
async def check_search(subject: Subject) -> None:
    """search finds a word that is in one saved state, gives dicts, and keeps to its limit."""
    cp = await subject.make()
    for number in range(3):
        state = AgentState(run_id=f"s{number}", messages=(Message.user("a zebrafish, once more"),))
        await cp.save(state, f"t{number}", "c")
    found = await cp.search("zebrafish")
    expect(found and all(isinstance(row, dict) for row in found), f"search for a saved word gives {short(found)}")
    expect(len(await cp.search("zebrafish", limit=1)) == 1, "search(limit=1) does not give one row")
    expect(await cp.search("quokka") == [], "search for a word that was never saved is not []")
