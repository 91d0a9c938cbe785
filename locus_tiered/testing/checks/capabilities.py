"""Capabilities are honest both ways (law 11): a flag that is true works, one that is false refuses.

That a true flag works is what the checks with ``needs=`` show. Here is the other direction, and the two
properties themselves. The flag ``ttl`` has no operation of its own: no check can show it.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import fields
from typing import Any

from locus.core.protocols import CheckpointerCapabilities

from locus_tiered.testing.checks.base import Subject, check, expect, short
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.states import plain_state


@check(law=11)
async def check_capabilities_are_declared(subject: Subject) -> None:
    """capabilities is a CheckpointerCapabilities of bools, the same before and after use."""
    cp = await subject.make()
    before = cp.capabilities
    expect(
        isinstance(before, CheckpointerCapabilities),
        f"capabilities is {type(before).__name__}, expected CheckpointerCapabilities",
    )
    for field in fields(CheckpointerCapabilities):
        value = getattr(before, field.name)
        expect(isinstance(value, bool), f"capabilities.{field.name} is {value!r}, expected a bool")
    await save_some(cp, 1)
    expect(cp.capabilities == before, f"capabilities changed by a save: {before} became {cp.capabilities}")


@check(law=11)
async def check_deletes_single_is_a_bool(subject: Subject) -> None:
    """deletes_single_checkpoints is the bool True or False: an agent asks ``is True``."""
    cp = await subject.make()
    before: object = cp.deletes_single_checkpoints
    expect(
        before is True or before is False,
        f"deletes_single_checkpoints is {short(before)}, no bool: agents silently stop saving iterations",
    )
    await save_some(cp, 1)
    expect(cp.deletes_single_checkpoints is before, "deletes_single_checkpoints changed by a save")


@check(law=11, needs="deletes_single_checkpoints")
async def check_deletes_single_works(subject: Subject) -> None:
    """Where deletes_single_checkpoints is True, one checkpoint can be deleted and all others still load."""
    cp = await subject.make()
    saved = await save_some(cp, 4)
    for gone in list(saved)[:3]:
        await cp.delete("t", gone)
        del saved[gone]
        for name, state in saved.items():
            subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r}) after deleting {gone!r}")


@check(law=11, without="deletes_single_checkpoints")
async def check_no_single_deletes_by_mistake(subject: Subject) -> None:
    """Where deletes_single_checkpoints is False, deleting one checkpoint really does not work or harms others."""
    cp = await subject.make()
    saved = await save_some(cp, 4)
    gone = list(saved)[1]
    try:
        await cp.delete("t", gone)
    except NotImplementedError:
        return
    others = [name for name in saved if name != gone]
    works = await cp.load("t", gone) is None and all([await cp.load("t", name) is not None for name in others])
    expect(
        not works,
        "deletes_single_checkpoints is False though delete of one checkpoint works: agents silently stop saving "
        "iterations",
    )


async def _refuses(call: Coroutine[Any, Any, object], flag: str, name: str) -> None:
    try:
        got = await call
    except NotImplementedError:
        return
    except Exception as error:
        raise AssertionError(
            f"capabilities.{flag} is False, so {name} must raise NotImplementedError; it raised "
            f"{type(error).__name__}: {short(str(error), 120)}"
        ) from error
    raise AssertionError(
        f"capabilities.{flag} is False, so {name} must raise NotImplementedError; it answered {short(got, 120)}"
    )


@check(law=11, without="search")
async def check_search_refuses(subject: Subject) -> None:
    """Where search is not declared, search raises NotImplementedError."""
    cp = await subject.make()
    await save_some(cp, 1)
    await _refuses(cp.search("save"), "search", "search")


@check(law=11, without="metadata_query")
async def check_query_by_metadata_refuses(subject: Subject) -> None:
    """Where metadata_query is not declared, query_by_metadata raises NotImplementedError."""
    cp = await subject.make()
    await cp.save(plain_state("save"), "t", "c", {"k": "v"})
    await _refuses(cp.query_by_metadata("k", "v"), "metadata_query", "query_by_metadata")


@check(law=11, without="metadata_query")
async def check_get_metadata_refuses(subject: Subject) -> None:
    """Where metadata_query is not declared, get_metadata raises NotImplementedError."""
    cp = await subject.make()
    await cp.save(plain_state("save"), "t", "c", {"k": "v"})
    await _refuses(cp.get_metadata("t", "c"), "metadata_query", "get_metadata")


@check(law=11, without="vacuum")
async def check_vacuum_refuses(subject: Subject) -> None:
    """Where vacuum is not declared, vacuum raises NotImplementedError."""
    cp = await subject.make()
    await save_some(cp, 1)
    await _refuses(cp.vacuum(36_500), "vacuum", "vacuum")


@check(law=11, without="branching")
async def check_copy_thread_refuses(subject: Subject) -> None:
    """Where branching is not declared, copy_thread raises NotImplementedError and makes nothing."""
    cp = await subject.make()
    await save_some(cp, 1)
    await _refuses(cp.copy_thread("t", "copy"), "branching", "copy_thread")
    expect(await cp.load("copy") is None, "copy_thread raised NotImplementedError and copied something")


@check(law=11, without="list_threads")
async def check_list_threads_refuses(subject: Subject) -> None:
    """Where list_threads is not declared, list_threads raises NotImplementedError."""
    cp = await subject.make()
    await save_some(cp, 1)
    await _refuses(cp.list_threads(), "list_threads", "list_threads")


@check(law=11, without="list_with_metadata")
async def check_list_with_metadata_refuses(subject: Subject) -> None:
    """Where list_with_metadata is not declared, list_with_metadata raises NotImplementedError."""
    cp = await subject.make()
    await save_some(cp, 1)
    await _refuses(cp.list_with_metadata(), "list_with_metadata", "list_with_metadata")


@check(law=11, needs="persistent_checkpoint_ids", reopen=True)
async def check_ids_persist(subject: Subject) -> None:
    """Where persistent_checkpoint_ids is declared, another handle lists and loads the same ids."""
    cp = await subject.make()
    saved = await save_some(cp, 3)
    state = plain_state("without an id")
    saved[await cp.save(state, "t")] = state
    other = await subject.reopen()
    got = await other.list_checkpoints("t", ALL)
    expect(sorted(got) == sorted(saved), f"another handle lists {got}, expected {sorted(saved)}")
    for name, wanted in saved.items():
        subject.expect_state(await other.load("t", name), wanted, f"load('t', {name!r}) by another handle")
