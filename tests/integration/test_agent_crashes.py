"""Turns that end before they should: cancelled, crashed, killed. Nothing finished is lost, nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest
from locus.memory.backends.s3 import S3Backend
from locus.tools import tool

from locus_tiered import DirectoryCheckpointer, Layer, Operation, TieredCheckpointer
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.operations import Save
from locus_tiered.testing.services import SeaweedFS
from tests.integration.agents import (
    PowerCut,
    Process,
    agent_on,
    calls,
    drain,
    ids_in_every_tier,
    look_up,
    s3_options,
    said,
    settle,
    state_saying,
    take_turn,
    three_tiers,
    tool_results,
)

R = TypeVar("R")


@pytest.fixture
async def stack(s3_backend: S3Backend, tmp_path: Path) -> AsyncIterator[TieredCheckpointer]:
    async with three_tiers(s3_backend, tmp_path / "near") as made:
        yield made


@tool
async def crash(word: str) -> str:
    """Tear everything down."""
    raise PowerCut(word)


async def test_a_turn_that_crashes_in_a_tool_keeps_what_was_finished_and_can_be_continued(
    stack: TieredCheckpointer,
) -> None:
    await take_turn(stack, "t", "hello", "hello to you")
    doomed = agent_on(stack, *calls("one", "two"), *calls("now", name="crash"), tools=(look_up, crash))
    with pytest.raises((PowerCut, AttributeError)):  # the SDK swallows it and trips over the missing result
        await doomed.arun("two words", thread_id="t")
    assert tool_results(await stack.load("t")) == ["one means eno", "two means owt"]
    assert len(await stack.list_checkpoints("t")) == 2, "one per turn: the iteration saves are gone"

    survivor = agent_on(stack, "the third is unknown", tools=(look_up, crash))
    await drain(survivor.continue_turn("t"))
    assert said(await stack.load("t")) == ["hello", "hello to you", "two words", "the third is unknown"]
    assert "outcome" in tool_results(await stack.load("t"))[-1], "the call without a result is answered, not run again"
    assert len(set(map(tuple, map(sorted, await ids_in_every_tier(stack, "t"))))) == 1


async def test_a_turn_cancelled_in_mid_tool_saves_what_it_has_and_cleans_up_before_it_leaves(
    stack: TieredCheckpointer,
) -> None:
    started = asyncio.Event()

    @tool
    async def wait_for_ever(word: str) -> str:
        """Never answer."""
        started.set()
        await asyncio.Event().wait()
        return word

    script = [*calls("one"), *calls("x", name="wait_for_ever")]
    turn = asyncio.create_task(agent_on(stack, *script, tools=(look_up, wait_for_ever)).arun("go", thread_id="t"))
    await started.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn

    assert tool_results(await stack.load("t")) == ["one means eno"]
    [only] = await stack.list_checkpoints("t")
    assert await ids_in_every_tier(stack, "t") == [[only]] * 3
    await drain(agent_on(stack, "never mind").continue_turn("t"))
    assert said(await stack.load("t")) == ["go", "never mind"]


class CancelsInSave(Layer):
    """Cancels the task that makes the n-th save, just as the save begins."""

    def __init__(self, inner: TieredCheckpointer, nth: int) -> None:
        super().__init__(inner)
        self.left = nth

    async def handle(self, operation: Operation[R]) -> R:
        if isinstance(operation, Save):
            self.left -= 1
            if self.left == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
        return await self.inner.handle(operation)


async def test_a_turn_cancelled_in_mid_save_ends_with_its_final_state_on_top_in_every_tier(
    stack: TieredCheckpointer,
) -> None:
    await stack.save(state_saying("the bucket exists"), "warm")
    cancelling = CancelsInSave(stack, nth=2)
    turn = asyncio.create_task(take_turn(cancelling, "t", "go", "never said", "one", "two", "three"))
    beside = asyncio.create_task(take_turn(stack, "other", "go", "done", "one", "two", "three"))
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert await beside == "done"
    await settle()

    newest = await stack.load("t")
    assert tool_results(newest) == ["one means eno", "two means owt"]
    assert newest is not None and ITERATION_KEY not in newest.metadata, "the final save, not the abandoned one"
    # The save that was cancelled may have landed; the agent never learned its id and leaves it (as on bare S3).
    memory, directory, home = await ids_in_every_tier(stack, "t")
    assert memory == directory == await stack.list_checkpoints("t") and sorted(home) == sorted(memory)
    assert said(await stack.load("other")) == ["go", "done"] and len(await stack.list_checkpoints("other")) == 1


async def test_a_process_killed_in_mid_turn_is_continued_by_another_one_elsewhere(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    await stack.save(state_saying("the bucket exists"), "other")
    with Process(s3_options(s3_server, s3_backend.bucket), tmp_path / "theirs") as process:
        await process.do("turn", "t", "hello", "hello to you", "zero")
        assert await process.dies_of("turn_cut_short", "t", "two words", "one", "two")

    left_behind = await stack.list_checkpoints("t")
    assert len(left_behind) == 3, "the first turn, and the two iterations that the second had finished"
    assert tool_results(await stack.load("t"))[-2:] == ["one means eno", "two means owt"]

    await drain(agent_on(stack, "we were cut off").continue_turn("t"))
    assert said(await stack.load("t")) == ["hello", "hello to you", "two words", "we were cut off"]
    after = await stack.list_checkpoints("t")
    assert len(after) == 2 and after[1] == left_behind[-1], "the leftovers of the dead process are gone"
    assert sorted(await s3_backend.list_checkpoints("t")) == sorted(after)


async def test_a_new_turn_after_a_kill_also_removes_what_the_dead_process_left(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    await stack.save(state_saying("the bucket exists"), "other")
    ours = tmp_path / "near"  # the same directory: the process is restarted on its machine
    with Process(s3_options(s3_server, s3_backend.bucket), ours) as process:
        assert await process.dies_of("turn_cut_short", "t", "two words", "one", "two")
    assert len(await stack.list_checkpoints("t")) == 2

    await take_turn(stack, "t", "anew", "at your service", "three")
    [only] = await stack.list_checkpoints("t")
    assert await ids_in_every_tier(stack, "t") == [[only]] * 3
    assert said(await stack.load("t")) == ["two words", "anew", "at your service"]


async def test_law_6_a_directory_that_missed_a_re_save_and_a_delete_is_not_believed_after_a_restart(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    await stack.save(state_saying("the bucket exists"), "other")
    theirs = tmp_path / "theirs"
    options = s3_options(s3_server, s3_backend.bucket)
    with Process(options, theirs) as process:
        await process.do("save", "t", "draft", "old text")
        await process.do("save", "t", "doomed", "to be deleted")
        await process.do("save", "t", "kept", "kept text")
        await process.do("arm", "save")
        assert await process.dies_of("save", "t", "draft", "new text"), "home has it, the directory has not"
    with Process(options, theirs) as process:
        await process.do("arm", "delete")
        assert await process.dies_of("delete", "t", "doomed"), "gone at home, still in the directory"

    directory = DirectoryCheckpointer(theirs)
    assert said(await directory.load("t", "draft")) == ["old text"]
    assert said(await directory.load("t", "doomed")) == ["to be deleted"]

    async with three_tiers(s3_server.backend(bucket=s3_backend.bucket), theirs) as restarted:
        assert await restarted.load("t", "doomed") is None
        assert not await restarted.exists("t", "doomed")
        assert said(await restarted.load("t", "draft")) == ["new text"]
        assert said(await restarted.load("t", "kept")) == ["kept text"]
        assert await restarted.list_checkpoints("t") == ["draft", "kept"]
        assert said(await restarted.load("t")) == ["new text"]


async def test_law_6_a_directory_that_missed_the_delete_of_a_thread_is_not_believed_after_a_restart(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    await stack.save(state_saying("the bucket exists"), "other")
    theirs = tmp_path / "theirs"
    options = s3_options(s3_server, s3_backend.bucket)
    with Process(options, theirs) as process:
        await process.do("turn", "t", "hello", "hello to you", "zero")
        [only] = await process.do("ids", "t")
        await process.do("arm", "delete")
        assert await process.dies_of("delete", "t")
    assert await DirectoryCheckpointer(theirs).list_checkpoints("t") == [only]

    async with three_tiers(s3_server.backend(bucket=s3_backend.bucket), theirs) as restarted:
        assert await restarted.load("t") is None
        assert await restarted.load("t", only) is None
        assert not await restarted.exists("t") and not await restarted.exists("t", only)
        await take_turn(restarted, "t", "anew", "a fresh start")
        assert said(await restarted.load("t")) == ["anew", "a fresh start"]
        assert len(await restarted.list_checkpoints("t")) == 1
