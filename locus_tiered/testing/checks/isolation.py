"""A state is the caller's own (law 5), and a save that cannot be done changes nothing.

The second half is about bad input: values without a JSON form, ``None``, text that not every encoding has.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, refused, short
from locus_tiered.testing.checks.basics import ALL
from locus_tiered.testing.checks.optional import metadata_of
from locus_tiered.testing.checks.states import nested_state, plain_state


def _scribble(state: AgentState) -> None:
    """Change every mutable value of a state from :func:`nested_state`, in place."""
    state.metadata["plan"].append("changed by the caller")
    state.metadata["graph_state"]["visited"].append("changed by the caller")
    state.metadata["new"] = "added by the caller"
    state.messages[0].metadata["tags"].append("changed by the caller")
    state.messages[0].metadata["new"] = "added by the caller"
    state.messages[1].tool_calls[0].arguments["filters"].append("changed by the caller")
    state.tool_executions[0].arguments["filters"].append("changed by the caller")
    cast(dict[str, Any], state.provider_state)["cursor"]["pages"].append(99)


@check(law=5)
async def check_loaded_state_is_own(subject: Subject) -> None:
    """Changing what load returned, however deep, changes no stored checkpoint and no other loaded state."""
    cp = await subject.make()
    name = await cp.save(nested_state("nested"), "t")
    wanted = nested_state("nested")
    for asked in (("t", name), ("t",)):
        got, other = await cp.load(*asked), await cp.load(*asked)
        if got is None or other is None:
            raise AssertionError(f"load{asked} is None")
        _scribble(got)
        subject.expect_state(other, wanted, "a state loaded earlier, after another loaded one was changed")
        again = await cp.load("t", name)
        subject.expect_state(again, wanted, "load by id, after a loaded state was changed")
        subject.expect_state(await cp.load("t"), wanted, "load of the latest, after a loaded state was changed")


@check(law=5)
async def check_saved_state_is_own(subject: Subject) -> None:
    """Changing a state after it was saved, however deep, changes no stored checkpoint."""
    cp, state = await subject.make(), nested_state("nested")
    name = await cp.save(state, "t")
    _scribble(state)
    for asked in (("t", name), ("t",)):
        got = await cp.load(*asked)
        subject.expect_state(got, nested_state("nested"), f"load{asked} after the saved state was changed")


@check(law=5, needs="metadata_query")
async def check_metadata_is_own(subject: Subject) -> None:
    """Changing metadata= after the save, or what get_metadata returned, changes nothing stored."""
    cp, metadata = await subject.make(), {"tags": ["a"]}
    await cp.save(plain_state("save"), "t", "c", metadata)
    metadata["tags"].append("changed by the caller")
    got = metadata_of(await cp.get_metadata("t", "c"))
    expect(got.get("tags") == ["a"], f"changing metadata= after the save changed what is stored: {short(got)}")
    got["tags"].append("changed by the caller")
    got = metadata_of(await cp.get_metadata("t", "c"))
    expect(got.get("tags") == ["a"], f"changing what get_metadata returned changed what is stored: {short(got)}")


@check(law=5, needs="list_with_metadata")
async def check_listed_metadata_is_own(subject: Subject) -> None:
    """Changing metadata= after the save, or a row of list_with_metadata, changes nothing stored."""
    cp, metadata = await subject.make(), {"tags": ["a"]}
    await cp.save(plain_state("save"), "t", "c", metadata)
    metadata["tags"].append("changed by the caller")
    for when in ("changing metadata= after the save", "changing a row of list_with_metadata"):
        rows = await cp.list_with_metadata()
        expect(len(rows) == 1, f"list_with_metadata has {len(rows)} rows for one checkpoint")
        got = metadata_of(rows[0])
        expect(got.get("tags") == ["a"], f"{when} changed what is stored: {short(got)}")
        got["tags"].append("changed by the caller")


async def _expect_untouched(
    subject: Subject, save: Callable[[str, str], Coroutine[Any, Any, object]], what: str
) -> BaseException | None:
    """A save is tried over an existing checkpoint, as a new one and in a new thread; if it fails, nothing changed.

    Returns the error with which it failed, or ``None`` when it was accepted, in all three places alike.
    """
    cp = await subject.make()
    kept = [plain_state("kept first"), plain_state("kept second")]
    for name, state in zip(("a", "b"), kept, strict=True):
        await cp.save(state, "t", name)
    errors: list[BaseException | None] = []
    for thread, name in (("t", "a"), ("t", "c"), ("new", "c")):
        errors.append(error := await refused(save(thread, name), what))
        if error is None:
            continue
        failed = f"after save of {what} failed with {type(error).__name__}"
        listed = await cp.list_checkpoints("t", ALL)
        expect(sorted(listed) == ["a", "b"], f"{failed}, list_checkpoints is {listed}, expected 'b' and 'a'")
        for old, state in zip(("a", "b"), kept, strict=True):
            subject.expect_state(await cp.load("t", old), state, f"{failed}, load('t', {old!r})")
        subject.expect_state(await cp.load("t"), kept[1], f"{failed}, load('t')")
        await _expect_nothing(cp, thread, name, failed)
    expect(len({error is None for error in errors}) == 1, f"save of {what} is refused for some ids and not for others")
    return errors[0]


async def _expect_nothing(cp: BaseCheckpointer, thread: str, name: str, failed: str) -> None:
    if (thread, name) == ("t", "a"):
        return
    expect(await cp.load(thread, name) is None, f"{failed}, load({thread!r}, {name!r}) is not None")
    expect(await cp.exists(thread, name) is False, f"{failed}, exists({thread!r}, {name!r}) is not False")
    if thread != "t":
        expect(await cp.load(thread) is None, f"{failed}, load({thread!r}) is not None")
        expect(await cp.list_checkpoints(thread) == [], f"{failed}, the thread {thread!r} lists something")


@check(law="sdk")
async def check_unserialisable_state(subject: Subject) -> None:
    """A state without a JSON form fails the save, and nothing changed."""
    cp = await subject.make()
    state = plain_state("bad", handle=object())
    error = await _expect_untouched(
        subject, lambda thread, name: cp.save(state, thread, name), "a state that holds an object()"
    )
    expect(error is not None, "a state that holds an object() was saved: what can load give back?")


@check(law="sdk")
async def check_unserialisable_metadata(subject: Subject) -> None:
    """metadata= without a JSON form fails the save and nothing changed, unless it could never be read back."""
    cp = await subject.make()
    error = await _expect_untouched(
        subject,
        lambda thread, name: cp.save(plain_state("new"), thread, name, {"handle": object()}),
        "metadata= that holds an object()",
    )
    if error is None and (await subject.has("metadata_query") or await subject.has("list_with_metadata")):
        raise AssertionError("metadata= that holds an object() was accepted, and cannot be given back as it was")


@check(law="sdk")
async def check_none_is_refused(subject: Subject) -> None:
    """A state of None fails the save, and nothing changed."""
    cp = await subject.make()
    nothing = cast(AgentState, None)
    error = await _expect_untouched(subject, lambda thread, name: cp.save(nothing, thread, name), "a state of None")
    expect(error is not None, "save(None) was accepted")


async def _survives_or_fails(subject: Subject, text: str, what: str) -> None:
    cp = await subject.make()
    state = AgentState(run_id="odd", messages=(Message.user(text),), metadata={"text": text})
    error = await _expect_untouched(subject, lambda thread, name: cp.save(state, thread, name), what)
    if error is None:
        for asked in (("t", "a"), ("t", "c"), ("new", "c"), ("new",)):
            subject.expect_state(await cp.load(*asked), state, f"load{asked} of {what}")


@check(law="sdk")
async def check_lone_surrogate_in_a_message(subject: Subject) -> None:
    """Text with a lone surrogate, as cut-off model output has it, is kept, or the save fails and nothing changed."""
    await _survives_or_fails(subject, "half an emoji: \ud83d.", "a message with a lone surrogate")


@check(law="sdk")
async def check_nul_in_a_message(subject: Subject) -> None:
    """Text with a NUL character is kept, or the save fails and nothing changed."""
    await _survives_or_fails(subject, "a\0b", "a message with a NUL character")
