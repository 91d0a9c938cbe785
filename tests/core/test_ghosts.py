"""What is listed and not there: an index that outlives its checkpoints, as the SDK's key-value adapter keeps one.

Its keys expire each by itself, and every save and delete prolongs the index. What the store itself has not got is not
the newest of a stack either (laws 1 and 7); what is saved again is found again, whoever saved it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from locus.memory.backends.adapters import StorageBackendAdapter
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    ReplicatedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.ids import IdRule
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import Head, Load
from locus_tiered.core.stamp import StampClock
from locus_tiered.core.traits import Traits
from tests.laws.parts import latest, state


class Keys:
    """Keys and values, which are counted, and which expire when the test says so."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(ttl_seconds=60)
        self.values: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []

    async def save(self, key: str, data: dict[str, Any]) -> None:
        self.requests.append(f"save {key}")
        self.values[key] = data

    async def load(self, key: str) -> dict[str, Any] | None:
        self.requests.append(f"load {key}")
        found = self.values.get(key)
        return None if found is None else dict(found)

    async def delete(self, key: str) -> bool:
        return self.values.pop(key, None) is not None

    async def exists(self, key: str) -> bool:
        self.requests.append(f"exists {key}")
        return key in self.values

    def expire(self, *checkpoints: str) -> dict[str, dict[str, Any]]:
        """Let these checkpoints of the thread expire; the index was prolonged since, and lists them."""
        keys = {name: f"t:{IdRule(most=90).encode(name)}" for name in checkpoints}
        return {name: self.values.pop(key) for name, key in keys.items() if key in self.values}


class Adapter(StorageBackendAdapter):
    locus_tiered_traits = Traits(loses_index_rows=True, reads_metadata=True, checkpoint_ids=IdRule(most=90))


class Plain(Adapter):
    """One of which nothing is known."""

    locus_tiered_traits = Traits()


Make = Callable[[Callable[[], BaseCheckpointer], Path], BaseCheckpointer]
STACKS: dict[str, Make] = {
    "cached": lambda make, _: CachedCheckpointer(make()),
    "tiered": lambda make, path: TieredCheckpointer(
        BoundedMemoryCheckpointer(), DirectoryCheckpointer(path / "near", durability="process"), make()
    ),
    "wrapped": lambda make, _: CachedCheckpointer(RetryingCheckpointer(GuardedCheckpointer(make()))),
    "exclusive": lambda make, _: CachedCheckpointer(make(), latest="exclusive"),
    "behind": lambda make, path: WriteBehindCheckpointer(make(), journal=path / "journal", ack="far"),
    "one": lambda make, _: ReplicatedCheckpointer(make(), make(), make()),
    "quorum": lambda make, _: ReplicatedCheckpointer(make(), make(), make(), read="quorum"),
}


@pytest.fixture
def stores() -> list[Keys]:
    return []


@pytest.fixture
def make(stores: list[Keys]) -> Callable[[], BaseCheckpointer]:
    def adapter() -> BaseCheckpointer:
        stores.append(Keys())
        return Adapter(stores[-1])

    return adapter


@pytest.mark.parametrize("shape", ["named", "long", "generated", "stamp"])
@pytest.mark.parametrize("kind", STACKS)
async def test_what_has_expired_is_not_the_newest_though_it_is_listed(kind, shape, make, stores, tmp_path):
    given = {"named": "draft", "long": "draft" * 40, "generated": uuid4().hex, "stamp": None}[shape]
    async with STACKS[kind](make, tmp_path) as checkpointer:
        old = await checkpointer.save(state(1), "t")
        new = await checkpointer.save(state(2), "t", given)
        assert await latest(checkpointer) == 2
        for keys in stores:
            keys.expire(new, "latest")
        for _ in range(2):
            assert await latest(checkpointer) == 1
            assert await checkpointer.load("t", new) is None
        for keys in stores:
            keys.expire(old)
        for _ in range(2):
            assert await latest(checkpointer) is None
            assert not await checkpointer.exists("t")
        assert await checkpointer.save(state(3), "t", new) == new
        assert await latest(checkpointer) == 3


@pytest.mark.parametrize("kind", STACKS)
async def test_a_name_that_has_expired_is_found_when_another_process_saves_it_again(kind, make, stores, tmp_path):
    async with STACKS[kind](make, tmp_path / "one") as checkpointer:
        await checkpointer.save(state(1), "t")
        await checkpointer.save(state(2), "t", "draft")
        for keys in stores:
            keys.expire("draft", "latest")
        assert await latest(checkpointer) == 1
        mine = list(stores)
        again = iter(mine)
        async with STACKS[kind](lambda: Adapter(next(again)), tmp_path / "other") as other:
            await other.save(state(3), "t", "draft")
        assert await latest(checkpointer) == 3
        assert (await checkpointer.list_checkpoints("t"))[0] == "draft"


@pytest.mark.parametrize("adapter", [Adapter, Plain])
async def test_a_leaf_asks_for_a_listed_name_that_it_missed_every_time_and_finds_it_when_it_is_there(adapter):
    keys = Keys()
    await CachedCheckpointer(adapter(keys)).save(state(1), "t", "draft")
    leaf = Leaf(adapter(keys))
    head = await leaf.handle(Head("t"))
    assert head is not None and head.id == "draft"
    # A list that is ahead of the checkpoint for a moment: somebody is saving it.
    under_way = keys.expire("draft")
    assert await leaf.handle(Load("t", "draft", head.stamp)) is None
    assert await leaf.handle(Head("t")) is None
    keys.values["t:draft"] = under_way["draft"]
    assert await leaf.handle(Head("t")) == head
    assert await leaf.handle(Load("t", "draft", head.stamp)) is not None


@pytest.mark.parametrize("given", ["draft", "0123456789abcdef0123456789abcdef"])
async def test_a_floor_does_not_hold_what_the_store_has_not_got(given):
    keys = Keys()
    checkpointer = CachedCheckpointer(Plain(keys))
    await checkpointer.save(state(1), "t")
    await checkpointer.save(state(2), "t", given)
    leaf = Leaf(Adapter(keys))
    head = await leaf.handle(Head("t"))
    assert head is not None and head.id == given
    keys.expire(given)  # its own latest is there still, as after a delete that was torn in two
    assert await leaf.handle(Load("t", given, head.stamp)) is None
    below = await leaf.handle(Head("t"))
    assert below is not None and below.id != given


async def test_a_newest_that_is_there_costs_no_request_more():
    keys = Keys()
    checkpointer = CachedCheckpointer(Adapter(keys))
    await checkpointer.save(state(1), "t")
    await checkpointer.save(state(2), "t", "draft")
    usual = ["load t:_checkpoints", "load t:_checkpoints", "load t:latest"]  # the list, the name's stamp, the latest
    keys.requests.clear()
    assert await latest(checkpointer) == 2
    assert keys.requests == usual

    keys.expire("draft", "latest")
    assert await latest(checkpointer) == 1
    keys.requests.clear()
    assert await latest(checkpointer) == 1
    # The name is asked for itself, as is what is now the newest: that the latest is gone may mean that all is.
    assert sorted(keys.requests)[1:] == ["load t:_checkpoints", "load t:draft", "load t:latest"]
    assert keys.requests[-1].startswith("exists t:")

    await CachedCheckpointer(Adapter(keys)).save(state(3), "t", "draft")
    assert await latest(checkpointer) == 3
    keys.requests.clear()
    assert await latest(checkpointer) == 3
    assert keys.requests == usual


async def test_a_copy_of_what_has_expired_is_not_believed_by_its_id_after_a_restart(tmp_path):
    keys = Keys()
    for restarted in (False, True):
        near = DirectoryCheckpointer(tmp_path, durability="process")
        async with CachedCheckpointer(Adapter(keys), near=near) as checkpointer:
            if not restarted:
                await checkpointer.save(state(1), "t", "draft")
                await checkpointer.save(state(2), "t")
                keys.expire("draft")
            else:
                assert await checkpointer.load("t", "draft") is None
                assert await latest(checkpointer) == 2


@pytest.mark.parametrize("given", ["draft", "0123456789abcdef0123456789abcdef", "stamp"])
@pytest.mark.parametrize("kind", STACKS)
async def test_what_was_asked_for_too_early_is_listed_as_soon_as_it_is_there(
    kind: str, given: str, make: Callable[[], BaseCheckpointer], tmp_path: Path
) -> None:
    name = StampClock().issue("t") if given == "stamp" else given
    homes: list[BaseCheckpointer] = []

    def keep() -> BaseCheckpointer:
        homes.append(make())
        return homes[-1]

    async with STACKS[kind](keep, tmp_path) as stack:
        before = await stack.save(state(1), "t")
        assert await stack.load("t", name) is None
        for home in homes:
            await home.save(state(2), "t", name)
        assert set(await stack.list_checkpoints("t")) == {before, name}


@pytest.mark.parametrize("read", ["one", "quorum"])
async def test_a_comparison_takes_the_row_of_a_step_out_of_an_index_that_outlives_it(
    read: Any, make: Callable[[], BaseCheckpointer], stores: list[Keys], tmp_path: Path
) -> None:
    homes = [make() for _ in range(3)]
    step = "01234567-89ab-4cde-8f01-23456789abcd"
    async with ReplicatedCheckpointer(*homes, read=read) as stack:
        state_in_turn = state(1).with_metadata(ITERATION_KEY, [step])
        await stack.save(state_in_turn, "t", step)
        final = await stack.save(state(2), "t")
        await stack.deliver()
        index = dict(stores[0].values["t:_checkpoints"])
        await stack.delete("t", step)
        await stack.deliver()
    stores[0].values["t:_checkpoints"] = index  # its process died between the two writes of a delete
    async with ReplicatedCheckpointer(*homes, read=read) as stack:
        assert (await stack.scrub(threads=["t"])).in_step
        assert await latest(stack) == 2
    assert [await home.list_checkpoints("t") for home in homes] == [[final]] * 3
