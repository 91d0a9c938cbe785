"""States from before the stack, and readers who go past it to the bare backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.s3 import S3Backend

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer
from locus_tiered.testing.services import SeaweedFS
from tests.integration.agents import (
    agent_on,
    die_in_mid_turn,
    drain,
    said,
    state_saying,
    take_turn,
    three_tiers,
    tool_results,
)

KEY = "_locus_tiered"


@pytest.fixture
async def bare(s3_backend: S3Backend) -> S3Backend:
    """Whoever uses the bucket without the stack."""
    return s3_backend


@pytest.fixture
async def stack(bare: S3Backend, s3_server: SeaweedFS, tmp_path: Path) -> AsyncIterator[TieredCheckpointer]:
    async with three_tiers(s3_server.backend(bucket=bare.bucket), tmp_path / "near") as made:
        yield made


# -- before the stack ---------------------------------------------------------------------------------------------


async def test_a_thread_saved_before_the_stack_is_found_by_its_ids_and_as_the_newest(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    await take_turn(bare, "t", "a", "first", "one")
    [old] = await bare.list_checkpoints("t")
    assert said(await stack.load("t")) == said(await stack.load("t", old)) == ["a", "first"]
    assert await stack.list_checkpoints("t") == [old]
    assert await stack.exists("t") and await stack.exists("t", old)
    assert await stack.list_threads() == ["t"]


async def test_a_conversation_begun_before_the_stack_goes_on_through_it_and_every_stamped_save_is_newer(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    await take_turn(bare, "t", "a", "first", "one")
    [old] = await bare.list_checkpoints("t")
    await take_turn(stack, "t", "b", "second", "two")
    await take_turn(stack, "t", "c", "third", "three")
    assert said(await stack.load("t")) == ["a", "first", "b", "second", "c", "third"]
    assert (await stack.list_checkpoints("t"))[-1] == old
    history = await agent_on(stack).get_state_history("t")
    assert [said(state)[-1] for _, state in history] == ["third", "second", "first"]
    assert said(await stack.load("t", old)) == ["a", "first"]


async def test_a_turn_that_died_before_the_stack_is_continued_through_it_and_cleaned_up(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    await die_in_mid_turn(bare, "t", "go", "one")
    [leftover] = await bare.list_checkpoints("t")
    await drain(agent_on(stack, "done").continue_turn("t"))
    assert said(await stack.load("t")) == ["go", "done"]
    assert tool_results(await stack.load("t")) == ["one means eno"]
    assert leftover not in await stack.list_checkpoints("t") and leftover not in await bare.list_checkpoints("t")


async def test_a_fork_of_a_state_from_before_the_stack(bare: S3Backend, stack: TieredCheckpointer) -> None:
    await take_turn(bare, "t", "a", "first", "one")
    await agent_on(stack).fork("t", new_thread_id="branch")
    await take_turn(stack, "branch", "b", "second", "two")
    assert said(await stack.load("branch")) == ["a", "first", "b", "second"]
    assert said(await stack.load("t")) == said(await bare.load("t")) == ["a", "first"]


async def test_an_old_thread_is_deleted_through_the_stack(bare: S3Backend, stack: TieredCheckpointer) -> None:
    await take_turn(bare, "t", "a", "first", "one")
    await stack.load("t")
    assert await stack.delete("t")
    assert await stack.load("t") is None and await bare.load("t") is None


async def test_until_the_first_stamped_save_the_newest_is_what_the_bare_backend_says(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    for thread, ids in (("up", ("a", "b", "c")), ("down", ("c", "b", "a"))):
        for checkpoint_id in ids:
            await bare.save(state_saying(f"{thread} {checkpoint_id}"), thread, checkpoint_id)
        assert said(await bare.load(thread)) == [f"{thread} {ids[-1]}"]
        assert said(await stack.load(thread)) == [f"{thread} {ids[-1]}"]


# -- beside the stack ---------------------------------------------------------------------------------------------


async def test_a_bare_reader_finds_what_the_stack_saved_with_and_without_an_id(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    made = await stack.save(state_saying("without an id", colour="red"), "t", metadata={"by": "me"})
    seen = await bare.load("t")
    assert said(seen) == ["without an id"] == said(await bare.load("t", made))
    assert seen is not None and set(seen.metadata) == {"colour", KEY}
    envelope = seen.metadata[KEY]
    assert (envelope["thread"], envelope["id"], envelope["stamp"]) == ("t", made, made)
    meta = await bare.get_metadata("t", made)
    assert meta is not None and meta["by"] == "me" and set(meta) == {"by", KEY}

    given = await stack.save(state_saying("with an id"), "t", "draft")
    assert given == "draft"
    assert said(await bare.load("t")) == said(await bare.load("t", "draft")) == ["with an id"]
    assert sorted(await bare.list_checkpoints("t")) == sorted(["draft", made])
    assert await bare.list_threads() == ["t"]


async def test_what_the_stack_gives_back_shows_nothing_of_its_own(bare: S3Backend, stack: TieredCheckpointer) -> None:
    await stack.save(state_saying("plain", colour="red"), "t", metadata={"by": "me"})
    for where in (stack, stack.tiers[0].checkpointer, stack.tiers[1].checkpointer):
        loaded = await where.load("t")
        assert loaded is not None and loaded.metadata == {"colour": "red"}
    assert [row["metadata"] for row in await stack.list_with_metadata()] == [{"by": "me"}]


async def test_a_bare_agent_goes_on_with_a_thread_of_the_stack_and_its_work_is_found_by_id(
    bare: S3Backend, stack: TieredCheckpointer
) -> None:
    await take_turn(stack, "t", "a", "first")
    [stamped] = await stack.list_checkpoints("t")
    await take_turn(bare, "t", "b", "second")
    [theirs] = [each for each in await bare.list_checkpoints("t") if each != stamped]
    assert said(await bare.load("t", theirs)) == ["a", "first", "b", "second"]
    # It carries the envelope of what it was loaded from, which fits neither its content nor its id.
    found = await stack.load("t", theirs)
    assert said(found) == ["a", "first", "b", "second"]
    assert found is not None and found.metadata == {}
    assert await stack.list_checkpoints("t") == [stamped, theirs]


async def test_reading_old_checkpoints_through_the_stack_changes_nothing_for_bare_readers(
    bare: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    def tiers() -> TieredCheckpointer:
        near = FileCheckpointer(base_dir=tmp_path / "files")
        return TieredCheckpointer(BoundedMemoryCheckpointer(), near, s3_server.backend(bucket=bare.bucket))

    bare_near = FileCheckpointer(base_dir=tmp_path / "files")
    async with tiers() as stack:
        saved = [await stack.save(state_saying(f"{number}"), "t") for number in range(4)]
        assert said(await bare.load("t")) == said(await bare_near.load("t")) == ["3"]
        for checkpoint_id in saved:
            await stack.load("t", checkpoint_id)
        assert said(await bare.load("t")) == said(await bare_near.load("t")) == ["3"]
    before = await bare.list_checkpoints("t"), await bare_near.list_checkpoints("t")

    # The near tier lost its older half: what is loaded again must not become its newest.
    for lost in saved[:2]:
        await bare_near.delete("t", lost)
    async with tiers() as restarted:
        for checkpoint_id in [*saved, *saved]:
            assert await restarted.load("t", checkpoint_id) is not None
        assert said(await restarted.load("t")) == ["3"]
        assert await restarted.list_checkpoints("t") == saved[::-1]
    assert said(await bare.load("t")) == said(await bare_near.load("t")) == ["3"]
    assert await bare.list_checkpoints("t") == before[0]
    assert (await bare_near.list_checkpoints("t"))[0] == before[1][0]


async def test_an_empty_near_tier_filled_by_loads_in_any_order_has_the_right_newest(
    bare: S3Backend, stack: TieredCheckpointer, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    saved = [await stack.save(state_saying(f"{number}"), "t") for number in range(4)]
    async with three_tiers(s3_server.backend(bucket=bare.bucket), tmp_path / "elsewhere") as elsewhere:
        for checkpoint_id in (saved[3], saved[0], saved[2], saved[1]):
            await elsewhere.load("t", checkpoint_id)
        for tier in elsewhere.tiers:
            assert said(await tier.checkpointer.load("t")) == ["3"]
        assert said(await bare.load("t")) == ["3"]
