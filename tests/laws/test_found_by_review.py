"""Faults that a hostile review found once; each stays a test."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from uuid import uuid4

import pytest
from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, CachedCheckpointer, DirectoryCheckpointer, TieredCheckpointer
from locus_tiered.core.envelope import KEY
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, LocusTieredError, StackConfigError
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.virtual_time import run_virtual
from tests.laws.parts import ITERATIONS, ManualClock, latest, stack, state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
async def test_metadata_that_json_cannot_hold_is_saved_as_the_state_would_be(value):
    home = MemoryCheckpointer()
    await stack(home).save(state(1), "t", metadata={"score": value})
    assert await latest(stack(home)) == 1


async def test_metadata_nested_too_deeply_is_refused_before_anything_is_written():
    deep: dict = {}
    for _ in range(300):
        deep = {"x": deep}
    home = ReferenceCheckpointer()
    with pytest.raises(LocusTieredError, match="nothing was saved"):
        await stack(home).save(state(1), "t", metadata=deep)
    assert home.stored == {}


async def test_two_processes_that_save_one_name_agree_on_what_home_holds():
    time, home = ManualClock(), ReferenceCheckpointer()
    one, other = stack(home, clock=time.clock(300)), stack(home, clock=time.clock())
    await asyncio.gather(latest(one), latest(other))  # both have looked: the thread is empty
    await one.save(state(1), "t", "draft")
    await other.save(state(2), "t", "draft")  # an earlier stamp, but it landed last
    for reader in (one, other, stack(home)):
        assert await latest(reader) == 2


@pytest.mark.parametrize("name", ["n1", "0b1c2d3e4f5a4b6c8d7e9f0a1b2c3d4e"])
async def test_a_newest_whose_envelope_is_damaged_is_not_passed_over(name):
    home = ReferenceCheckpointer()
    await stack(home).save(state(1), "t", "old")
    await stack(home).save(state(2), "t", name)
    bare = await home.load("t", name)
    envelope = {**bare.metadata[KEY], "thread": "x"}
    await home.save(bare.model_copy(update={"metadata": {KEY: envelope}}), "t", name)
    with pytest.raises(CorruptCheckpoint):
        await stack(home).load("t")
    assert (await stack(home).load("t", "old")).iteration == 1


async def test_an_iteration_save_that_is_saved_again_is_the_newest_for_a_process_that_remembers_it():
    home = ReferenceCheckpointer()
    one, other = stack(home), stack(home)
    made_up = uuid4().hex
    await one.save(state(1, **{ITERATIONS: [made_up]}), "t", made_up)
    await one.save(state(2), "t")
    assert await latest(other) == 2
    await one.save(state(3, **{ITERATIONS: [made_up]}), "t", made_up)
    assert await latest(other) == 3


async def test_a_copy_looks_at_home_even_where_staleness_is_allowed():
    home = ReferenceCheckpointer()
    one, other = stack(home, latest=60), stack(home)
    await one.save(state(1), "source")
    assert await latest(one, "dest") is None
    await other.save(state(2), "dest")
    assert await one.copy_thread("source", "dest")
    assert await latest(other, "dest") == 1


async def test_a_fill_does_not_bring_back_what_another_stack_on_the_same_directory_deleted(tmp_path):
    home = ReferenceCheckpointer()
    one, other = (TieredCheckpointer(DirectoryCheckpointer(tmp_path), home) for _ in range(2))
    saved = await one.save(state(1), "t")
    assert await other.delete("t")
    await DirectoryCheckpointer(tmp_path).save(state(1), "t", saved)  # the late fill
    assert await other.load("t", saved) is None
    assert await latest(other) is None


async def test_a_memory_store_given_to_two_caches_leaks_nothing_between_them():
    near = BoundedMemoryCheckpointer()
    one = CachedCheckpointer(ReferenceCheckpointer(), near=near)
    other = CachedCheckpointer(ReferenceCheckpointer(), near=near)
    secret = await one.save(state(1), "t")
    assert await other.load("t", secret) is None
    assert not await other.exists("t", secret)


def test_event_loops_that_live_side_by_side_take_turns_on_a_backend_that_can_serve_only_one(tmp_path):
    checkpointer = TieredCheckpointer(BoundedMemoryCheckpointer(), FileCheckpointer(tmp_path))
    failures: list[BaseException] = []

    def loop(number: int) -> None:
        async def turn() -> None:
            await asyncio.gather(*(checkpointer.save(state(n), f"{number}-{n % 3}") for n in range(12)))
            assert await latest(checkpointer, f"{number}-2") == 11

        try:
            asyncio.run(turn())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_closed_event_loops_are_let_go():
    class Lazy(ReferenceCheckpointer):
        pass

    from locus_tiered import Leaf, Traits

    checkpointer = TieredCheckpointer(Leaf(Lazy(), traits=Traits(first_call_alone=True)))
    loops = []

    async def turn() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(checkpointer.save(state(n), f"t{n}") for n in range(5)))

    for _ in range(5):
        asyncio.run(turn())
    gc.collect()
    assert sum(each() is not None for each in loops) <= 1


def test_close_is_bounded_and_its_failures_are_ours():
    class HangsOnClose(ReferenceCheckpointer):
        async def close(self) -> None:
            await asyncio.Event().wait()

    class FailsOnClose(ReferenceCheckpointer):
        async def close(self) -> None:
            raise ValueError("a secret connection string")

    async def story(home: BaseCheckpointer) -> str:
        checkpointer = TieredCheckpointer(BoundedMemoryCheckpointer(), home)
        await checkpointer.save(state(1), "t")
        with pytest.raises(BackendError) as caught:
            await checkpointer.close()
        return str(caught.value)

    assert "TimeoutError" in run_virtual(story(HangsOnClose()))
    assert "secret" not in run_virtual(story(FailsOnClose()))


async def test_close_lets_loads_in_the_air_land():
    home = ReferenceCheckpointer()
    await stack(home).save(state(1), "t")
    faulty = FaultyCheckpointer(home, script=[on("load").hang()])
    checkpointer = stack(faulty)
    load = asyncio.create_task(checkpointer.load("t"))
    await faulty.until_hung()
    close = asyncio.create_task(checkpointer.close())
    await asyncio.sleep(0)
    faulty.release()
    assert (await load).iteration == 1
    await close


@pytest.mark.parametrize("answer", [None, [None, 3], "abc", 7])
async def test_an_answer_that_the_contract_does_not_know_is_the_members_failure(answer):
    class Odd(ReferenceCheckpointer):
        async def list_checkpoints(self, thread_id, limit=10):
            return answer

    checkpointer = TieredCheckpointer(Odd())
    for call in (checkpointer.load("t"), checkpointer.save(state(1), "t"), checkpointer.list_checkpoints("t")):
        with pytest.raises(BackendError, match="odd"):
            await call


class Duck:
    """Has to_checkpoint(), as the SDK's own backends ask."""

    def __init__(self, data):
        self._data = data

    def to_checkpoint(self):
        return self._data() if callable(self._data) else self._data


@pytest.mark.parametrize("make", [BoundedMemoryCheckpointer, lambda: stack(ReferenceCheckpointer())])
async def test_duck_types_are_saved_when_they_are_states_and_refused_when_not(make):
    checkpointer = make()
    await checkpointer.save(Duck(state(1).to_checkpoint()), "t")
    assert await latest(checkpointer) == 1
    for bad in ({"messages": "zzz"}, [], lambda: {}["missing"], lambda: 1 / 0):
        with pytest.raises(LocusTieredError, match="nothing was saved"):
            await checkpointer.save(Duck(bad), "t")
    assert await latest(checkpointer) == 1


class Special(AgentState):
    extra: str = "x"


async def test_a_subclass_comes_back_as_what_the_sdk_would_load():
    checkpointer = stack(ReferenceCheckpointer())
    await checkpointer.save(Special(iteration=3, messages=(Message.user("x"),)), "t")
    found = await checkpointer.load("t")
    assert type(found) is AgentState
    assert found.iteration == 3


def test_a_connection_string_in_the_place_of_a_checkpointer_is_not_repeated():
    for secret in ("postgresql://user:hunter2@host/db", {"password": "hunter2"}):
        with pytest.raises(StackConfigError) as caught:
            TieredCheckpointer(secret)
        assert "hunter2" not in str(caught.value)


def test_a_foreign_repr_is_never_shown():
    class Chatty(ReferenceCheckpointer):
        def __init__(self, dsn):
            super().__init__()
            self.dsn = dsn

        def __repr__(self):
            return f"Chatty({self.dsn!r})"

    assert "p@ss" not in repr(TieredCheckpointer(Chatty("redis://u:p@ss@host")))


async def test_what_dead_processes_left_behind_is_swept(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    (tmp_path / ".trash" / "x").mkdir(parents=True)
    (tmp_path / ".trash" / "x" / "old.json").write_text("a conversation")
    (tmp_path / ".tmp-1-x").write_text("half")
    await store.save(state(1), "t")
    assert not (tmp_path / ".trash").exists()
    assert (tmp_path / ".tmp-1-x").exists()  # it may be somebody's who is still writing
    later = ManualClock(wall=4_000_000_000.0)
    await DirectoryCheckpointer(tmp_path, clock=later.clock()).vacuum(36_500)
    assert not (tmp_path / ".tmp-1-x").exists()


async def test_a_save_in_a_directory_is_loaded_back_whatever_the_clock_says(tmp_path):
    time = ManualClock()
    ahead = DirectoryCheckpointer(tmp_path, clock=time.clock(3600))
    behind = DirectoryCheckpointer(tmp_path, clock=time.clock())
    await behind.exists("t")
    await ahead.save(state(1), "t", "draft")
    await behind.save(state(2), "t", "draft")
    assert (await behind.load("t", "draft")).iteration == 2
    assert (await ahead.load("t", "draft")).iteration == 2


async def test_age_goes_by_the_time_of_the_save_here_not_by_the_stamp(tmp_path):
    time = ManualClock()
    home = DirectoryCheckpointer(tmp_path / "home", clock=time.clock())
    await home.save(state(1), "t")
    time.advance(40 * 86_400)
    assert await home.copy_thread("t", "copy")
    assert await home.vacuum(30) == 1
    assert await latest(home, "copy") == 1
    near = DirectoryCheckpointer(tmp_path / "near", ttl=60, clock=time.clock())
    checkpointer = TieredCheckpointer(near, home, clock=time.clock())
    for _ in range(3):
        assert await latest(checkpointer, "copy") == 1
    assert (checkpointer.stats.fills, checkpointer.stats.hits) == (1, 2)


async def test_a_path_that_is_a_file_is_an_error_and_not_an_empty_store(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(BackendError):
        await DirectoryCheckpointer(tmp_path / "f").load("t")


@pytest.mark.parametrize("kind", ["directory", "stack"])
async def test_an_id_of_another_process_that_is_saved_again_here_is_the_newest(tmp_path, kind):
    home = ReferenceCheckpointer()
    make = {"directory": lambda: DirectoryCheckpointer(tmp_path), "stack": lambda: stack(home)}[kind]
    one, other = make(), make()
    await other.exists("t")  # has looked, and seen nothing
    await other.save(state(0), "t")
    older = await one.save(state(1), "t")
    await one.save(state(2), "t")
    await other.save(state(3), "t", older)
    assert await latest(one) == await latest(other) == await latest(make()) == 3
