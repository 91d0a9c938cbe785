"""The envelope: golden files, states that were carried along, stacks inside stacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import CachedCheckpointer, Layer, TieredCheckpointer
from locus_tiered.core.envelope import KEY
from locus_tiered.core.errors import CorruptCheckpoint
from locus_tiered.testing.faults import ReferenceCheckpointer
from tests.laws.parts import latest, stack, state

GOLDEN = Path(__file__).parent.parent / "golden"


async def test_every_version_of_the_envelope_that_was_ever_written_stays_readable():
    home = ReferenceCheckpointer()
    await home.save(
        AgentState.from_checkpoint(json.loads((GOLDEN / "envelope-v1.json").read_text())), "a thread", "an id"
    )
    checkpointer = stack(home)
    found = await checkpointer.load("a thread")
    assert found.metadata == {"nested": {"list": [1, 2.5, None]}}
    assert found.messages[0].content == "hello 🦭"
    assert await checkpointer.copy_thread("a thread", "another")
    (copy,) = [await home.load("another", each) for each in await home.list_checkpoints("another")]
    assert copy.metadata[KEY]["metadata"] == {"who": "golden"}  # the caller's metadata= goes along


async def test_the_envelope_is_not_seen_by_callers_and_is_seen_by_readers_without_the_stack():
    home = ReferenceCheckpointer()
    saved = await stack(home).save(state(1, mine="x"), "t", metadata={"k": "v"})
    assert (await stack(home).load("t")).metadata == {"mine": "x"}
    bare = await home.load("t", saved)
    assert bare.metadata["mine"] == "x"
    envelope = bare.metadata[KEY]
    assert (envelope["thread"], envelope["id"], envelope["stamp"]) == ("t", saved, saved)


async def test_a_state_that_was_loaded_and_saved_without_the_stack_counts_as_saved_without_it():
    home = ReferenceCheckpointer()
    await stack(home).save(state(1), "t")
    carried = (await home.load("t")).with_iteration(7)
    saved = await home.save(carried, "u")
    found = await stack(home).load("u")
    assert found.iteration == 7
    assert KEY not in found.metadata
    assert await stack(home).list_checkpoints("u") == [saved]


async def test_an_unchanged_state_under_another_thread_is_somebody_elses():
    home = ReferenceCheckpointer()
    await stack(home).save(state(1), "t", "x")
    await home.save(await home.load("t", "x"), "u", "x")
    with pytest.raises(CorruptCheckpoint):
        await stack(home).load("u", "x")


class ThirdParty(BaseCheckpointer):
    """A wrapper that knows nothing of stacks."""

    def __init__(self, inner):
        self.inner = inner

    async def save(self, state, thread_id, checkpoint_id=None, metadata=None):
        return await self.inner.save(state, thread_id, checkpoint_id, metadata)

    async def load(self, thread_id, checkpoint_id=None):
        return await self.inner.load(thread_id, checkpoint_id)

    async def list_checkpoints(self, thread_id, limit=10):
        return await self.inner.list_checkpoints(thread_id, limit)

    async def delete(self, thread_id, checkpoint_id=None):
        return await self.inner.delete(thread_id, checkpoint_id)


async def test_a_third_party_wrapper_between_two_of_ours_keeps_working():
    home = ReferenceCheckpointer()
    inner = TieredCheckpointer(home)
    outer = CachedCheckpointer(ThirdParty(inner))
    ids = [await outer.save(state(n, m=n), "t") for n in range(3)]
    again = await outer.save(state(9), "t", ids[0])
    for reader in (outer, CachedCheckpointer(ThirdParty(TieredCheckpointer(home)))):
        assert await latest(reader) == 9
        assert (await reader.load("t", ids[1])) == state(1, m=1).model_copy(
            update={
                name: getattr(await outer.load("t", ids[1]), name) for name in ("run_id", "started_at", "updated_at")
            }
        )
        assert await reader.list_checkpoints("t") == [again, ids[2], ids[1]]
    assert [name for name in await home.list_checkpoints("t") if name.startswith("lt-again-")]


async def test_a_layer_of_a_users_own_is_a_whole_checkpointer():
    class Counted(Layer):
        def __init__(self, inner):
            super().__init__(inner)
            self.calls = 0

        async def handle(self, operation):
            self.calls += 1
            return await self.inner.handle(operation)

    counted = Counted(ReferenceCheckpointer())
    saved = await counted.save(state(1), "t")
    assert (await counted.load("t", saved)).iteration == 1
    assert await counted.exists("t")
    assert counted.calls == 3
    around = Counted(stack(ReferenceCheckpointer()))
    await around.save(state(1), "t")
    await around.save(state(2), "t")
    assert await latest(around) == 2
