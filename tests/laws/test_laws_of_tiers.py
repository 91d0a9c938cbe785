"""Laws 5 to 8: a state is the caller's own, a tier that missed a write, what None means, what is acknowledged."""

from __future__ import annotations

import asyncio
import logging

import pytest
from locus.core.messages import Message, ToolCall
from locus.core.state import AgentState
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
)
from locus_tiered.core.errors import BackendError, CorruptCheckpoint, StackConfigError
from locus_tiered.core.signals import listen
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.virtual_time import run_virtual
from tests.laws.parts import ManualClock, latest, stack, state


def nested() -> AgentState:
    call = ToolCall(name="look", arguments={"where": ["here", {"deep": [1]}]})
    message = Message(role="assistant", content="x", tool_calls=[call], metadata={"tags": ["a"]})
    return AgentState(messages=(message,), metadata={"list": [1, [2]], "dict": {"k": ["v"]}}, provider_state={"p": [1]})


def spoil(found: AgentState) -> None:
    found.metadata["list"].append(99)
    found.metadata["dict"]["k"].append("spoilt")
    found.metadata["new"] = True
    found.provider_state["p"].append(2)
    found.messages[0].metadata["tags"].append("spoilt")
    found.messages[0].tool_calls[0].arguments["where"][1]["deep"].append(2)


@pytest.mark.parametrize("latest_mode", ["validate", "exclusive"])
@pytest.mark.parametrize("times", [1, 4])
async def test_law_5_changing_what_was_loaded_or_saved_changes_nothing_in_any_tier(tmp_path, latest_mode, times):
    home = MemoryCheckpointer()
    checkpointer = stack(home, tmp_path, latest=latest_mode)
    given, said = nested(), {"tags": ["x"]}
    saved = await checkpointer.save(given, "t", metadata=said)
    given_copy = given.model_copy(deep=True)
    spoil(given)
    said["tags"].append("spoilt")
    for _ in range(times):
        for reader in (checkpointer, stack(home)):
            for found in (await reader.load("t"), await reader.load("t", saved)):
                assert found == given_copy
                spoil(found)


async def test_law_5_a_state_often_loaded_is_still_everyones_own():
    # Flat states take a faster way when they are loaded again and again.
    checkpointer = CachedCheckpointer(MemoryCheckpointer(), latest="exclusive")
    flat = AgentState(messages=(Message.user("x"),), metadata={"a": 1})
    await checkpointer.save(flat, "t")
    loaded = [await checkpointer.load("t") for _ in range(5)]
    for found in loaded:
        assert found == flat
        found.metadata["a"] = 2
        found.messages[0].metadata["b"] = 3
        found.messages[0].tool_calls.append(ToolCall(name="x"))
    assert await checkpointer.load("t") == flat


async def test_law_5_a_state_is_equal_whichever_tier_answers(tmp_path):
    home = ReferenceCheckpointer()
    wild = AgentState(
        messages=(Message.user("lone \ud800 surrogate \0 and 🦭"),),
        metadata={"t": (1, 2), "s": {3}, "nan": float("nan"), "f": -0.0, "big": 1e300, "i": 12345678901234567890},
    )
    checkpointer = stack(home, tmp_path)
    saved = await checkpointer.save(wild, "t")
    first = await checkpointer.load("t")
    assert first.messages == wild.messages
    readers = [checkpointer, stack(home), TieredCheckpointer(DirectoryCheckpointer(tmp_path), home)]
    for reader in readers:
        assert await reader.load("t", saved) == first


class Broken(BoundedMemoryCheckpointer):
    """A near tier of ours that fails the operations named in ``failing``."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()

    async def handle(self, operation):
        if operation.name in self.failing:
            raise OSError(f"no {operation.name}")
        return await super().handle(operation)


async def test_law_6_a_tier_that_missed_a_resave_is_not_believed_until_mended(caplog):
    near, home = Broken(), ReferenceCheckpointer()
    checkpointer = CachedCheckpointer(home, near=near, latest="exclusive")
    await checkpointer.save(state(1), "t", "x")
    near.failing = {"save", "delete"}
    with caplog.at_level(logging.WARNING, "locus_tiered"):
        assert await checkpointer.save(state(2), "t", "x") == "x"  # the save succeeds
    assert "near tier Broken failed during save" in caplog.text
    assert checkpointer.stats.near_failures == 1
    assert (await checkpointer.load("t", "x")).iteration == 2
    assert await latest(checkpointer) == 2
    assert checkpointer.stats.hits == 0
    near.failing = set()
    assert (await checkpointer.load("t", "x")).iteration == 2  # mended on the way
    assert (await checkpointer.load("t", "x")).iteration == 2
    assert checkpointer.stats.hits == 1


async def test_law_6_a_tier_that_missed_a_delete_does_not_bring_it_back():
    near, home = Broken(), ReferenceCheckpointer()
    checkpointer = CachedCheckpointer(home, near=near)
    one = await checkpointer.save(state(1), "t")
    two = await checkpointer.save(state(2), "t")
    near.failing = {"delete"}
    assert await checkpointer.delete("t", two)
    assert await checkpointer.load("t", two) is None
    assert not await checkpointer.exists("t", two)
    assert await checkpointer.delete("t")
    assert await checkpointer.load("t", one) is None
    near.failing = set()
    assert await checkpointer.load("t", one) is None


@pytest.mark.parametrize("missed", ["delete", "resave", "thread"])
async def test_law_6_is_remembered_by_the_next_process_when_the_tier_is_durable(tmp_path, missed):
    home = ReferenceCheckpointer()
    before = TieredCheckpointer(DirectoryCheckpointer(tmp_path), home)
    await before.save(state(1), "t", "x")
    await before.save(state(2), "t", "y")
    # The process died between the home and the directory: the directory missed what the home acknowledged.
    other = stack(home)
    if missed == "delete":
        await other.delete("t", "x")
    elif missed == "thread":
        await other.delete("t")
    else:
        await other.save(state(3), "t", "x")
    after = TieredCheckpointer(DirectoryCheckpointer(tmp_path), home)
    found = await after.load("t", "x")
    assert (None if found is None else found.iteration) == {"delete": None, "thread": None, "resave": 3}[missed]
    found = await after.load("t", "y")
    assert (None if found is None else found.iteration) == (None if missed == "thread" else 2)


async def test_law_6_a_save_of_unknown_outcome_makes_the_near_tier_ask():
    faulty = FaultyCheckpointer(script=[on("save", at=2).fail_after()])
    checkpointer = CachedCheckpointer(faulty, latest="exclusive")
    await checkpointer.save(state(1), "t", "x")
    with pytest.raises(BackendError):
        await checkpointer.save(state(2), "t", "x")
    assert (await checkpointer.load("t", "x")).iteration == 2  # it did take effect
    assert await latest(checkpointer) == 2


async def test_law_7_an_unreachable_home_raises_and_is_never_taken_for_an_empty_one(tmp_path):
    faulty = FaultyCheckpointer()
    checkpointer = stack(faulty, tmp_path)
    saved = await checkpointer.save(state(1), "t")
    faulty.partition()
    with pytest.raises(BackendError) as caught:
        await checkpointer.load("t")
    assert caught.value.member == "faulty-checkpointer"
    assert "'t'" in str(caught.value)
    with pytest.raises(BackendError):
        await checkpointer.load("unknown")
    with pytest.raises(BackendError):
        await checkpointer.list_checkpoints("t")
    assert (await checkpointer.load("t", saved)).iteration == 1  # by id, a near tier's word is enough
    faulty.heal()
    assert await latest(checkpointer) == 1
    assert await checkpointer.load("unknown") is None


async def test_law_7_nothing_is_cached_about_absence():
    home = ReferenceCheckpointer()
    checkpointer = stack(home)
    assert await checkpointer.load("t") is None
    assert await checkpointer.load("t", "x") is None
    await stack(home).save(state(1), "t", "x")
    assert await latest(checkpointer) == 1
    assert (await checkpointer.load("t", "x")).iteration == 1


async def test_law_7_a_directory_that_vanished_is_an_outage(tmp_path):
    for checkpointer in (
        DirectoryCheckpointer(tmp_path / "ours"),
        TieredCheckpointer(BoundedMemoryCheckpointer(), Tier(FileCheckpointer(tmp_path / "ours"), name="file")),
    ):
        await checkpointer.save(state(1), "t")
        assert await latest(checkpointer) == 1
        (tmp_path / "ours").rename(tmp_path / "away")
        with pytest.raises(BackendError):
            await checkpointer.load("t")
        with pytest.raises(BackendError):
            await checkpointer.list_checkpoints("t")
        (tmp_path / "away").rename(tmp_path / "ours")
        assert await latest(checkpointer) == 1
        await checkpointer.delete("t")


async def test_law_7_stale_answers_are_given_only_when_asked_for_and_say_so(tmp_path, caplog):
    faulty = FaultyCheckpointer()
    checkpointer = stack(faulty, tmp_path, on_outage="stale")
    await checkpointer.save(state(1), "t")
    faulty.partition()
    heard = []
    with listen(heard.append), caplog.at_level(logging.WARNING, "locus_tiered"):
        assert await latest(checkpointer) == 1
    assert sum(stats.stale for stats in checkpointer.tier_stats.values()) == 1
    assert "answer.stale" in [signal.kind for signal in heard]
    assert "answered from the near tier" in caplog.text
    assert await checkpointer.list_checkpoints("t")
    with pytest.raises(BackendError):
        await checkpointer.load("unknown")
    with pytest.raises(BackendError):
        await checkpointer.save(state(2), "t")
    restarted = stack(faulty, tmp_path, on_outage="stale")
    assert await latest(restarted) == 1  # from the directory


@pytest.mark.parametrize("seed", range(40))
async def test_law_7_damage_at_home_is_not_absence_wherever_it_hits(seed):
    faulty = FaultyCheckpointer(script=[on("save", at=2).damage()], seed=seed)
    await stack(faulty).save(state(1), "t")
    await stack(faulty).save(state(2), "t", "x")
    with pytest.raises(CorruptCheckpoint) as caught:
        await stack(faulty).load("t", "x")
    assert (caught.value.thread_id, caught.value.checkpoint_id) == ("t", "x")


async def test_law_8_a_save_is_acknowledged_by_home_and_by_nobody_else():
    near, faulty = Broken(), FaultyCheckpointer(script=[on("save").fail_before()])
    checkpointer = CachedCheckpointer(faulty, near=near)
    with pytest.raises(BackendError) as caught:
        await checkpointer.save(state(1), "t")
    assert "not acknowledged" in str(caught.value)
    assert near.is_empty
    near.failing = {"save"}
    saved = await checkpointer.save(state(2), "t")
    assert (await faulty.inner.load("t", saved)).iteration == 2


async def test_concurrent_loads_of_one_checkpoint_are_one_load_that_survives_a_cancelled_leader():
    home = ReferenceCheckpointer()
    saved = await stack(home).save(state(1), "t")
    faulty = FaultyCheckpointer(home, script=[on("load").hang()])
    checkpointer = stack(faulty)
    leader = asyncio.create_task(checkpointer.load("t", saved))
    await faulty.until_hung()
    others = [asyncio.create_task(checkpointer.load("t", saved)) for _ in range(5)]
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    faulty.release()
    found = await asyncio.gather(*others)
    assert [each.iteration for each in found] == [1] * 5
    assert len({id(each) for each in found}) == 5
    assert faulty.count("load") == 1


async def test_a_load_is_cancelled_when_its_last_waiter_has_left():
    home = ReferenceCheckpointer()
    saved = await stack(home).save(state(1), "t")
    faulty = FaultyCheckpointer(home, script=[on("load").hang()])
    checkpointer = stack(faulty)
    waiters = [asyncio.create_task(checkpointer.load("t", saved)) for _ in range(3)]
    await faulty.until_hung()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await asyncio.sleep(0)
    assert faulty.in_flight() == 0
    assert (await checkpointer.load("t", saved)).iteration == 1


async def test_law_3_a_directory_that_was_home_loses_nothing_behind_a_new_one(tmp_path):
    await TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path)).save(state(1), "t")
    behind = TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path), ReferenceCheckpointer())
    assert await latest(behind) is None
    assert await latest(DirectoryCheckpointer(tmp_path)) == 1


@pytest.mark.parametrize("same", ["path", "object", "wrapped object"])
def test_two_tiers_on_one_store_are_refused(tmp_path, same):
    one = DirectoryCheckpointer(tmp_path)
    other = {
        "path": lambda: DirectoryCheckpointer(tmp_path / ".." / tmp_path.name),
        "object": lambda: one,
        "wrapped object": lambda: RetryingCheckpointer(one),
    }[same]()
    with pytest.raises(StackConfigError, match="two tiers use one store"):
        TieredCheckpointer(one, other)


async def test_stale_answers_survive_a_failed_save(tmp_path):
    faulty = FaultyCheckpointer()
    checkpointer = stack(faulty, tmp_path, on_outage="stale")
    await checkpointer.save(state(1), "t")
    faulty.partition()
    with pytest.raises(BackendError):
        await checkpointer.save(state(2), "t")
    assert await latest(checkpointer) == 1
    assert await latest(stack(faulty, tmp_path, on_outage="stale")) == 1


async def test_nothing_older_than_what_was_seen_is_served_as_the_newest(tmp_path):
    home = ReferenceCheckpointer()
    first = await stack(home).save(state(1), "t")
    await stack(home).save(state(2), "t")
    faulty = FaultyCheckpointer(home)
    checkpointer = stack(faulty, tmp_path, on_outage="stale")
    assert await checkpointer.exists("t")  # looked at the head, loaded only the older one
    assert (await checkpointer.load("t", first)).iteration == 1
    faulty.partition()
    with pytest.raises(BackendError):
        await checkpointer.load("t")


class Hanging(BoundedMemoryCheckpointer):
    """A near tier that does not answer."""

    hang = False

    async def handle(self, operation):
        if self.hang:
            await asyncio.Event().wait()
        return await super().handle(operation)


def test_a_near_tier_that_hangs_does_not_take_the_agent_down():
    async def story():
        near = Hanging()
        checkpointer = CachedCheckpointer(ReferenceCheckpointer(), near=near)
        await checkpointer.save(state(1), "t")
        near.hang = True
        assert await latest(checkpointer) == 1
        await checkpointer.save(state(2), "t")
        assert await latest(checkpointer) == 2
        assert checkpointer.stats.near_failures > 0

    run_virtual(story())


async def test_what_home_lets_expire_does_not_live_on_in_a_near_tier():
    time = ManualClock()
    home = BoundedMemoryCheckpointer(ttl=60, clock=time.clock())
    for mode in ("validate", "exclusive"):
        checkpointer = CachedCheckpointer(home, latest=mode, clock=time.clock())
        saved = await checkpointer.save(state(1), "t")
        assert (await checkpointer.load("t", saved)).iteration == 1
        time.advance(61)
        assert await checkpointer.load("t", saved) is None
        assert await checkpointer.load("t") is None
        assert not await checkpointer.exists("t", saved)


async def test_law_5_waiters_of_one_large_load_share_nothing():
    home = MemoryCheckpointer()
    large = AgentState(
        messages=tuple(Message(role="user", content="x" * 100, metadata={"k": [1]}) for _ in range(1500))
    )
    await stack(home).save(large, "t")
    checkpointer = TieredCheckpointer(home)

    async def one(number: int) -> int:
        found = await checkpointer.load("t")
        seen = sum(message.metadata["k"] != [1] for message in found.messages)
        for message in found.messages:
            message.metadata["k"].append(number)
        return seen

    assert sum(await asyncio.gather(*(one(number) for number in range(6)))) == 0
