"""What the SDK's documentation asks of every backend, and the calls as ``Agent`` and ``StateGraph`` make them."""

from __future__ import annotations

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, refused, short
from locus_tiered.testing.checks.states import large_state, plain_state, rich_state

ALL = 1_000_000
"""A limit above the number of checkpoints of any thread here; the SDK uses the same for "all"."""


async def save_some(checkpointer: BaseCheckpointer, count: int, thread: str = "t") -> dict[str, AgentState]:
    """Save ``count`` states; returns them by id, oldest first.

    The ids fall, so that a backend which breaks ties by name answers right: it is judged for that in ``order``.
    """
    saved = {}
    for number in range(count):
        name = f"c{999 - number}"
        saved[name] = plain_state(f"save {number} of {thread}")
        await checkpointer.save(saved[name], thread, name)
    return saved


@check(law="sdk")
async def check_empty_checkpointer(subject: Subject) -> None:
    """A checkpointer that nothing was ever saved to answers None, [] and False; being empty is no error."""
    cp = await subject.make()
    expect(await cp.load("t") is None, "load('t') of an empty checkpointer is not None")
    expect(await cp.load("t", "c") is None, "load('t', 'c') of an empty checkpointer is not None")
    expect(await cp.list_checkpoints("t") == [], "list_checkpoints('t') of an empty checkpointer is not []")
    expect(await cp.exists("t") is False, "exists('t') of an empty checkpointer is not False")
    if await subject.has("list_threads"):
        expect(await cp.list_threads() == [], "list_threads of an empty checkpointer is not []")
    if await subject.has("list_with_metadata"):
        expect(await cp.list_with_metadata() == [], "list_with_metadata of an empty checkpointer is not []")
    if await subject.has("delete"):
        expect(await cp.delete("t") is False, "delete('t') of an empty checkpointer is not False")


@check(law="sdk")
async def check_round_trip(subject: Subject) -> None:
    """A state with something in every field comes back equal, by its id and as the latest."""
    cp, state = await subject.make(), rich_state()
    name = await cp.save(state, "t")
    subject.expect_state(await cp.load("t", name), state, "load('t', id)")
    subject.expect_state(await cp.load("t"), state, "load('t')")


@check(law="sdk")
async def check_round_trip_of_an_empty_state(subject: Subject) -> None:
    """A state without messages comes back, and is not taken for none."""
    cp, state = await subject.make(), AgentState(run_id="empty")
    name = await cp.save(state, "t")
    subject.expect_state(await cp.load("t", name), state, "load('t', id)")
    subject.expect_state(await cp.load("t"), state, "load('t')")


@check(law="sdk")
async def check_round_trip_of_a_large_state(subject: Subject) -> None:
    """Half a megabyte of conversation comes back whole."""
    cp, state = await subject.make(), large_state()
    await cp.save(state, "t")
    subject.expect_state(await cp.load("t"), state, "load('t')")


@check(law="sdk")
async def check_every_checkpoint_is_kept(subject: Subject) -> None:
    """Later saves leave the earlier checkpoints of the thread as they were."""
    cp = await subject.make()
    for name, state in (saved := await save_some(cp, 5)).items():
        subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r})")
    expect(sorted(await cp.list_checkpoints("t")) == sorted(saved), "list_checkpoints('t') lacks some of them")


@check(law="sdk")
async def check_threads_are_separate(subject: Subject) -> None:
    """Two threads that are written in turns, with the same ids, each keep their own."""
    cp = await subject.make()
    for number in range(3):
        for thread in ("one", "two"):
            await cp.save(plain_state(f"{thread} {number}"), thread, f"c{number}")
    for thread in ("one", "two"):
        got = await cp.load(thread)
        expect(got is not None and got.run_id == f"{thread} 2", f"load({thread!r}) is not its last save")
        for number in range(3):
            kept = await cp.load(thread, f"c{number}")
            expect(
                kept is not None and kept.run_id == f"{thread} {number}",
                f"load({thread!r}, 'c{number}') is not what was saved there",
            )
        listed = await cp.list_checkpoints(thread)
        expect(sorted(listed) == ["c0", "c1", "c2"], f"list_checkpoints({thread!r}) is {listed}")


@check(law="sdk")
async def check_unknown_is_none(subject: Subject) -> None:
    """Loading what was never saved gives None: an unknown thread, an unknown id, an id of another thread."""
    cp = await subject.make()
    await cp.save(plain_state("mine"), "t", "c")
    expect(await cp.load("nobody") is None, "load of a thread that was never saved is not None")
    expect(await cp.load("t", "d") is None, "load('t', 'd') is not None though only 'c' was saved")
    expect(await cp.load("nobody", "c") is None, "load('nobody', 'c') gives the checkpoint 'c' of 't'")


@check(law="sdk")
async def check_ids_are_made_up(subject: Subject) -> None:
    """A save without an id returns a new one: text, not empty, different each time, and it can be loaded."""
    cp = await subject.make()
    states = [plain_state(f"save {number}") for number in range(5)]
    names = [await cp.save(state, "t") for state in states]
    expect(all(isinstance(name, str) and name for name in names), f"save returned {names}")
    expect(len(set(names)) == 5, f"save returned the same id for different saves: {names}")
    for number, name in enumerate(names):
        subject.expect_state(await cp.load("t", name), states[number], f"load('t', {name!r})")
    expect(sorted(await cp.list_checkpoints("t")) == sorted(names), "list_checkpoints does not have these ids")


@check(law="sdk")
async def check_given_id_is_kept(subject: Subject) -> None:
    """An id that the caller gives is returned, listed and loaded exactly as given."""
    cp = await subject.make()
    for name in ("first", "Second-2_x", "0123456789abcdef0123456789abcdef"):
        state = plain_state(name)
        returned = await cp.save(state, "t", name)
        expect(returned == name, f"save under {name!r} returned {returned!r}")
        expect(name in await cp.list_checkpoints("t"), f"list_checkpoints does not have {name!r}")
        subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r})")


@check(law="sdk")
async def check_list_is_newest_first(subject: Subject) -> None:
    """list_checkpoints gives the ids in the order of saving, newest first."""
    cp, wanted = await subject.make(), ["m", "z", "a", "q", "b", "y"]
    for name in reversed(wanted):
        await cp.save(plain_state(name), "t", name)
    got = await cp.list_checkpoints("t")
    expect(got == wanted, f"list_checkpoints('t') is {got}, expected {wanted}")


@check(law="sdk")
async def check_list_limit(subject: Subject) -> None:
    """A limit cuts the list at its old end; a huge one gives everything; without one it is ten."""
    cp = await subject.make()
    wanted = list(reversed(await save_some(cp, 12)))
    for limit in (1, 5, 12, ALL, 2**31 - 1):
        got = await cp.list_checkpoints("t", limit)
        expect(len(got) == min(limit, 12), f"list_checkpoints('t', {limit}) has {len(got)} of 12 ids")
        expect(set(got) <= set(wanted), f"list_checkpoints('t', {limit}) names ids that were never saved")
    expect(len(await cp.list_checkpoints("t")) == 10, "list_checkpoints('t') without a limit is not ten ids")


@check(law="sdk")
async def check_list_limit_zero(subject: Subject) -> None:
    """A limit of zero gives an empty list."""
    cp = await subject.make()
    await save_some(cp, 3)
    got = await cp.list_checkpoints("t", limit=0)
    expect(got == [], f"list_checkpoints('t', limit=0) is {got}")


@check(law="sdk")
async def check_list_negative_limit(subject: Subject) -> None:
    """A negative limit is an error or an empty list, never part of the thread."""
    cp = await subject.make()
    await save_some(cp, 3)
    got: list[str] = []

    async def ask() -> None:
        got.extend(await cp.list_checkpoints("t", limit=-1))

    if await refused(ask(), "list_checkpoints('t', limit=-1)") is None:
        expect(got == [], f"list_checkpoints('t', limit=-1) is {got}: some of the three ids, silently")


@check(law="sdk")
async def check_list_of_an_unknown_thread(subject: Subject) -> None:
    """The list of a thread that was never saved is empty."""
    cp = await subject.make()
    await save_some(cp, 1)
    expect(await cp.list_checkpoints("nobody") == [], "list_checkpoints of an unknown thread is not []")


@check(law="sdk", needs="deletes_single_checkpoints")
async def check_delete_one(subject: Subject) -> None:
    """Deleting one checkpoint returns True, removes that one and leaves the others."""
    cp = await subject.make()
    saved = await save_some(cp, 4)
    gone, *kept = saved
    expect(await cp.delete("t", gone) is True, "delete of a checkpoint that exists did not return True")
    expect(await cp.load("t", gone) is None, "a deleted checkpoint can still be loaded")
    for name in kept:
        subject.expect_state(await cp.load("t", name), saved[name], f"load('t', {name!r}) after another's delete")
    got = sorted(await cp.list_checkpoints("t"))
    expect(got == sorted(kept), f"list_checkpoints('t') is {got}, expected {sorted(kept)}")


@check(law="sdk", needs="delete")
async def check_delete_thread(subject: Subject) -> None:
    """Deleting a thread returns True, removes all of it and leaves other threads."""
    cp = await subject.make()
    saved = await save_some(cp, 12)
    await save_some(cp, 2, "other")
    expect(await cp.delete("t") is True, "delete of a thread that exists did not return True")
    expect(await cp.load("t") is None, "the latest of a deleted thread can still be loaded")
    expect(await cp.list_checkpoints("t") == [], "a deleted thread still lists checkpoints")
    for name in saved:
        expect(await cp.load("t", name) is None, f"checkpoint {name!r} of a deleted thread can still be loaded")
    expect(len(await cp.list_checkpoints("other")) == 2, "deleting a thread took checkpoints of another")


@check(law="sdk", needs="delete")
async def check_delete_unknown_thread(subject: Subject) -> None:
    """Deleting a thread that was never saved returns False and harms nothing."""
    cp = await subject.make()
    await save_some(cp, 2)
    got = await cp.delete("nobody")
    expect(got is False, f"delete of an unknown thread returned {got!r}, expected False")
    expect(len(await cp.list_checkpoints("t")) == 2, "deleting an unknown thread removed something")


@check(law="sdk", needs="deletes_single_checkpoints")
async def check_delete_unknown_checkpoint(subject: Subject) -> None:
    """Deleting an id that was never saved returns False and harms nothing."""
    cp = await subject.make()
    await save_some(cp, 2)
    before = await cp.list_checkpoints("t")
    for thread in ("t", "nobody"):
        got = await cp.delete(thread, "nothing")
        expect(got is False, f"delete({thread!r}, 'nothing') returned {got!r}, expected False")
    expect(await cp.list_checkpoints("t") == before, "deleting an unknown checkpoint changed the thread")


@check(law="sdk")
async def check_exists(subject: Subject) -> None:
    """exists tells what is there from what is not, for a thread and for a checkpoint, as a bool."""
    cp = await subject.make()
    await cp.save(plain_state("mine"), "t", "c")
    for arguments, wanted in ((("t",), True), (("t", "c"), True), (("t", "d"), False), (("u",), False)):
        got = await cp.exists(*arguments)
        expect(got is wanted, f"exists{arguments} is {got!r}, expected {wanted}")
    expect(await cp.exists("u", "c") is False, "exists('u', 'c') finds the checkpoint of another thread")


@check(law="sdk")
async def check_calls_of_the_agent(subject: Subject) -> None:
    """The positional calls that Agent makes: load, save with and without an id, get_state, fork."""
    cp = await subject.make()
    await save_some(cp, 1, "other")
    expect(await cp.load("t") is None, "load('t') of a new thread is not None")
    expect(await cp.load("t", None) is None, "load('t', None) of a new thread is not None")
    first, second = plain_state("first"), plain_state("second")
    await cp.save(first, "t", "0123456789abcdef0123456789abcdef")
    name = await cp.save(second, "t", None)
    subject.expect_state(await cp.load("t", None), second, "load('t', None)")
    subject.expect_state(await cp.load("t", name), second, "load('t', id)")
    history = await cp.list_checkpoints("t", limit=10)
    expect(len(history) == 2, f"list_checkpoints('t', limit=10) is {history}, expected two ids")
    fork = {"forked_from": "t", "parent_checkpoint_id": name}
    await cp.save(second, "fork of t", metadata=fork)
    subject.expect_state(await cp.load("fork of t"), second, "load of a fork")


@check(law="sdk")
async def check_calls_of_the_graph(subject: Subject) -> None:
    """The keyword calls that StateGraph makes, with the graph's data in the state's metadata."""
    cp = await subject.make()
    data = {"graph_state": {"count": 1, "items": [{"a": None}]}, "step": 1, "completed_nodes": ["n1"]}
    state = AgentState(run_id="graph", metadata=data)
    name = await cp.save(state=state, thread_id="t", metadata={"source": "step", "step": 1})
    await cp.save(state=state, thread_id="t")
    subject.expect_state(await cp.load(thread_id="t", checkpoint_id=name), state, "load of a graph's step")
    listed = await cp.list_checkpoints(thread_id="t", limit=5)
    expect(len(listed) == 2, f"two saves of a graph are listed as {listed}")
    expect(await cp.exists(thread_id="t", checkpoint_id=name) is True, "exists by keywords is not True")


@check(law="sdk")
async def check_metadata_argument(subject: Subject) -> None:
    """metadata= may be absent, None, empty or nested, and never shows up in the state."""
    cp = await subject.make()
    nested = {"source": "update", "tags": ["a", "b"], "who": {"id": 7, "name": None}}
    for number, metadata in enumerate((None, {}, {"k": "v"}, nested)):
        state = plain_state(f"save {number}", mine=number)
        name = await cp.save(state, "t", None, metadata)
        subject.expect_state(await cp.load("t", name), state, f"load after save(metadata={short(metadata)})")


@check(law="sdk")
async def check_object_is_truthy(subject: Subject) -> None:
    """The object is true, empty or not: an agent asks ``if checkpointer`` and saves nothing otherwise."""
    cp = await subject.make()
    expect(bool(cp), "bool(checkpointer) is False while it is empty: define no __len__ and no __bool__")
    await save_some(cp, 1)
    expect(bool(cp), "bool(checkpointer) is False: define no __len__ and no __bool__")
