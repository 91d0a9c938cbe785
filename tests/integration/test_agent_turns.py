"""Turns of an agent on memory -> directory -> S3, as the SDK's documentation shows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from locus.core.events import ToolCompleteEvent
from locus.core.messages import Message
from locus.memory.backends.s3 import S3Backend
from locus.testing import tool_call

from locus_tiered import TieredCheckpointer
from locus_tiered.testing.services import SeaweedFS
from tests.integration.agents import (
    agent_on,
    calls,
    drain,
    ids_in_every_tier,
    said,
    settle,
    take_turn,
    three_tiers,
    tool_results,
)


@pytest.fixture
async def stack(s3_backend: S3Backend, tmp_path: Path) -> AsyncIterator[TieredCheckpointer]:
    async with three_tiers(s3_backend, tmp_path / "near") as made:
        yield made


async def test_a_turn_with_ten_tool_calls_leaves_exactly_its_final_checkpoint_in_every_tier(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS
) -> None:
    words = [f"word{number}" for number in range(10)]
    assert await take_turn(stack, "t", "ten words please", "there you are", *words) == "there you are"

    [final] = await stack.list_checkpoints("t", limit=1000)
    assert await ids_in_every_tier(stack, "t") == [[final]] * 3
    state = await stack.load("t")
    assert said(state) == ["ten words please", "there you are"]
    assert tool_results(state) == [f"{word} means {word[::-1]}" for word in words]

    client = s3_server.client()
    listed = client.list_objects_v2(Bucket=s3_backend.bucket, Prefix=f"{s3_backend.prefix}t/")["Contents"]
    client.close()
    assert sorted(each["Key"].rpartition("/")[2] for each in listed) == [
        f"{final}.json",
        f"{final}.meta.json",
        "_latest",
    ]


async def test_a_conversation_of_several_turns_is_remembered_and_its_history_is_newest_first(
    stack: TieredCheckpointer,
) -> None:
    for number in range(1, 5):
        await take_turn(
            stack, "t", f"question {number}", f"answer {number}", *[f"word{index}" for index in range(number)]
        )

    agent = agent_on(stack)
    history = await agent.get_state_history("t", limit=10)
    assert [said(state)[-1] for _, state in history] == ["answer 4", "answer 3", "answer 2", "answer 1"]
    assert [len(said(state)) for _, state in history] == [8, 6, 4, 2]
    ids = [checkpoint_id for checkpoint_id, _ in history]
    assert [checkpoint_id for checkpoint_id, _ in await agent.get_state_history("t", limit=2)] == ids[:2]
    memory, directory, home = await ids_in_every_tier(stack, "t")
    assert memory == directory == ids
    assert sorted(home) == sorted(ids), "by itself S3 knows no order within a second"


async def test_the_events_of_a_streamed_turn_arrive_and_the_next_turn_sees_what_was_said(
    stack: TieredCheckpointer,
) -> None:
    agent = agent_on(stack, *calls("one", "two"), "first answer", *calls("three"), "second answer")
    events = await drain(agent.run("first", thread_id="t"))
    assert events.count("tool_complete") == 2 and events[-1] == "terminate"
    await drain(agent.run("second", thread_id="t"))

    seen_by_the_model = [message.content for message in agent.model.received_messages[-1]]
    assert [content for content in seen_by_the_model if content in ("first", "first answer", "second")] == [
        "first",
        "first answer",
        "second",
    ]
    assert said(await stack.load("t")) == ["first", "first answer", "second", "second answer"]
    assert len(await stack.list_checkpoints("t")) == 2


async def test_get_state_by_id_answers_the_old_checkpoint_and_an_unknown_one_is_an_error(
    stack: TieredCheckpointer,
) -> None:
    await take_turn(stack, "t", "one", "first", "a")
    await take_turn(stack, "t", "two", "second", "b")
    agent = agent_on(stack)
    newest, oldest = await stack.list_checkpoints("t")
    assert said(await agent.get_state("t", oldest)) == ["one", "first"]
    assert said(await agent.get_state("t", newest)) == said(await agent.get_state("t"))
    with pytest.raises(LookupError):
        await agent.get_state("t", "never saved")
    with pytest.raises(LookupError):
        await agent.get_state("never used")


async def test_reading_an_old_checkpoint_does_not_make_it_the_newest(stack: TieredCheckpointer) -> None:
    await take_turn(stack, "t", "one", "first", "a")
    await take_turn(stack, "t", "two", "second", "b")
    before = await stack.list_checkpoints("t")
    await agent_on(stack).get_state("t", before[-1])
    assert said(await agent_on(stack).get_state("t"))[-1] == "second"
    assert await stack.list_checkpoints("t") == before


async def test_a_fork_carries_the_conversation_so_far_and_never_touches_its_parent(stack: TieredCheckpointer) -> None:
    await take_turn(stack, "t", "one", "first", "a")
    await take_turn(stack, "t", "two", "second", "b")
    parents = await stack.list_checkpoints("t")
    agent = agent_on(stack)
    forked = await agent.fork("t", parents[-1], new_thread_id="branch")
    assert said(await stack.load(forked)) == ["one", "first"]
    [row] = [row for row in await stack.list_with_metadata() if row["thread_id"] == forked]
    assert row["metadata"] == {"forked_from": "t", "parent_checkpoint_id": parents[-1]}

    await take_turn(stack, forked, "three", "third", "c")
    assert said(await stack.load(forked)) == ["one", "first", "three", "third"]
    assert said(await stack.load("t")) == ["one", "first", "two", "second"]
    assert await stack.list_checkpoints("t") == parents
    assert sorted(await stack.list_threads()) == ["branch", "t"]


async def test_update_state_writes_a_new_newest_checkpoint_and_keeps_the_one_it_edits(
    stack: TieredCheckpointer,
) -> None:
    await take_turn(stack, "t", "one", "first", "a")
    [first] = await stack.list_checkpoints("t")
    agent = agent_on(stack, "indeed")
    edited = await agent.update_state("t", messages=[Message.user("by the way")], metadata={"tone": "kind"})
    assert await stack.list_checkpoints("t") == [edited, first]
    assert said(await agent.get_state("t", first)) == ["one", "first"]
    assert (await agent.get_state("t")).metadata["tone"] == "kind"
    [row] = [row for row in await stack.list_with_metadata() if row["checkpoint_id"] == edited]
    assert row["metadata"] == {"source": "update_state", "parent_checkpoint_id": None}

    await agent.arun("go on", thread_id="t")
    assert said(await stack.load("t")) == ["one", "first", "by the way", "go on", "indeed"]


async def test_an_edit_of_an_old_checkpoint_is_what_the_next_turn_goes_on_from(stack: TieredCheckpointer) -> None:
    await take_turn(stack, "t", "one", "first", "a")
    await take_turn(stack, "t", "two", "second", "b")
    oldest = (await stack.list_checkpoints("t"))[-1]
    await agent_on(stack).update_state("t", messages=[Message.user("instead")], checkpoint_id=oldest)
    await take_turn(stack, "t", "three", "third", "c")
    assert said(await stack.load("t")) == ["one", "first", "instead", "three", "third"]


async def test_a_pause_for_a_question_is_resumed_by_another_agent_on_another_stack(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    asking = agent_on(stack, *calls("a"), tool_call("ask_user", question="shall I?"), completion_mode="explicit")
    assert (await drain(asking.run("please", thread_id="t")))[-1] == "interrupt"
    assert len(await stack.list_checkpoints("t")) == 2, "the SDK saves a pause twice, and nothing else stays"

    async with three_tiers(s3_server.backend(bucket=s3_backend.bucket), tmp_path / "elsewhere") as elsewhere:
        done = tool_call("task_complete", summary="done it", status="success")
        resumed = agent_on(elsewhere, *calls("b"), done, completion_mode="explicit")
        assert (await drain(resumed.resume("yes", thread_id="t")))[-1] == "terminate"

    results = tool_results(await stack.load("t"))
    assert results[:3] == ["a means a", "yes", "b means b"]
    assert len(await stack.list_checkpoints("t")) == 3


async def test_a_pause_is_resumed_in_the_same_process(stack: TieredCheckpointer) -> None:
    done = tool_call("task_complete", summary="done it", status="success")
    agent = agent_on(stack, tool_call("ask_user", question="shall I?"), done, completion_mode="explicit")
    assert (await drain(agent.run("please", thread_id="t")))[-1] == "interrupt"
    assert (await drain(agent.resume("yes", thread_id="t")))[-1] == "terminate"
    assert tool_results(await stack.load("t"))[0] == "yes"


async def test_a_consumer_who_leaves_the_stream_leaves_a_turn_that_can_be_continued(stack: TieredCheckpointer) -> None:
    agent = agent_on(stack, *calls("one", "two", "three"), "never said")
    seen = 0
    async for event in agent.run("three words", thread_id="t"):
        seen += isinstance(event, ToolCompleteEvent)
        if seen == 2:
            break
    await settle()
    assert tool_results(await stack.load("t"))[0] == "one means eno"
    assert len(await stack.list_checkpoints("t")) == 1, "the iteration saves are gone"

    assert (await drain(agent_on(stack, "that will do").continue_turn("t")))[-1] == "terminate"
    assert said(await stack.load("t")) == ["three words", "that will do"]


async def test_many_threads_at_once_do_not_meet(stack: TieredCheckpointer) -> None:
    threads = [f"thread/{number}" for number in range(6)] + ["thread:1", "thread_1", "Thread/1"]
    await take_turn(stack, threads[0], "the very first", "it makes the bucket")
    await stack.delete(threads[0])
    for turn in ("first", "second"):
        await asyncio.gather(
            *(take_turn(stack, thread, f"{turn} in {thread}", f"{turn}, {thread}", thread) for thread in threads)
        )
    for thread in threads:
        assert said(await stack.load(thread)) == [
            f"first in {thread}",
            f"first, {thread}",
            f"second in {thread}",
            f"second, {thread}",
        ]
        assert len(await stack.list_checkpoints(thread)) == 2
    assert sorted(await stack.list_threads()) == sorted(threads)


async def test_the_first_saves_of_many_threads_at_once_all_succeed_on_a_bucket_yet_to_be_made(
    stack: TieredCheckpointer,
) -> None:
    threads = [f"thread {number}" for number in range(8)]
    outcomes = await asyncio.gather(
        *(take_turn(stack, thread, "hello", f"hello, {thread}") for thread in threads), return_exceptions=True
    )
    assert outcomes == [f"hello, {thread}" for thread in threads]
