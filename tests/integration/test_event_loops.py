"""Loops come and go (law 10): run_sync opens one per call and closes the stack after each; others close nothing.

No fixture with a loop of its own is used here: every test opens its loops itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from locus.core.events import ToolCompleteEvent

from locus_tiered import TieredCheckpointer
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey
from tests.integration.agents import (
    agent_on,
    calls,
    drain,
    one_turn_of_the_loop,
    said,
    state_saying,
    take_turn,
    three_tiers,
)


@pytest.fixture
def stack(s3_server: SeaweedFS, tmp_path: Path) -> Iterator[TieredCheckpointer]:
    home = s3_server.backend()
    made = three_tiers(home, tmp_path / "near")
    yield made
    asyncio.run(made.close())
    s3_server.drop_bucket(home.bucket)


def test_run_sync_called_twice_goes_on_with_the_conversation_and_closes_after_each(stack: TieredCheckpointer) -> None:
    agent = agent_on(stack, *calls("one"), "first", *calls("two", "three"), "second")
    assert agent.run_sync("a", thread_id="t").text == "first"
    assert agent.run_sync("b", thread_id="t").text == "second"
    assert asyncio.run(_said(stack, "t")) == ["a", "first", "b", "second"]
    assert len(asyncio.run(stack.list_checkpoints("t"))) == 2


async def test_run_sync_inside_a_running_loop_shares_the_stack_with_that_loop(stack: TieredCheckpointer) -> None:
    await take_turn(stack, "t", "a", "first", "one")
    agent = agent_on(stack, *calls("two"), "second")
    assert agent.run_sync("b", thread_id="t").text == "second"  # in a loop of its own, on another thread
    await take_turn(stack, "t", "c", "third", "three")
    assert said(await stack.load("t")) == ["a", "first", "b", "second", "c", "third"]
    await stack.close()


def test_asyncio_run_twice_without_a_close_in_between(stack: TieredCheckpointer) -> None:
    asyncio.run(take_turn(stack, "t", "a", "first", "one", "two"))
    asyncio.run(take_turn(stack, "t", "b", "second", "three"))
    assert asyncio.run(_said(stack, "t")) == ["a", "first", "b", "second"]


def test_a_second_loop_is_as_good_as_the_first_when_many_calls_meet_in_it(stack: TieredCheckpointer) -> None:
    async def crowd(turn: str) -> list[str]:
        await stack.save(state_saying("the bucket exists"), "other")
        same = [stack.save(state_saying(f"{turn} {number}"), "crowded") for number in range(10)]
        saved = await asyncio.gather(*same)
        assert await stack.list_checkpoints("crowded", limit=10) == saved[::-1]
        return said(await stack.load("crowded"))

    assert asyncio.run(crowd("first")) == ["first 9"]
    assert asyncio.run(crowd("second")) == ["second 9"]


def test_loops_on_several_threads_at_once_share_one_stack(stack: TieredCheckpointer) -> None:
    asyncio.run(stack.save(state_saying("the bucket exists"), "other"))
    failures: list[BaseException] = []

    def talk(name: str) -> None:
        try:
            for turn in ("first", "second"):
                asyncio.run(take_turn(stack, name, turn, f"{turn} answer", "one", "two"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for number in range(4):
        assert asyncio.run(_said(stack, f"t{number}")) == ["first", "first answer", "second", "second answer"]


def test_a_loop_that_ends_while_a_turn_is_abandoned_leaves_what_was_finished(stack: TieredCheckpointer) -> None:
    async def walk_away() -> None:
        async for event in agent_on(stack, *calls("one", "two", "three"), "never").run("go", thread_id="t"):
            if isinstance(event, ToolCompleteEvent) and "two" in (event.result or ""):
                return

    asyncio.run(walk_away())
    asyncio.run(drain(agent_on(stack, "so be it").continue_turn("t")))
    assert asyncio.run(_said(stack, "t")) == ["go", "so be it"]


def test_close_is_idempotent_and_the_next_call_takes_everything_up_again(stack: TieredCheckpointer) -> None:
    async def scenario() -> None:
        await stack.close()
        await stack.save(state_saying("one"), "t")
        await stack.close()
        await stack.close()
        assert said(await stack.load("t")) == ["one"]
        async with stack:
            await stack.save(state_saying("two"), "t")
        assert said(await stack.load("t")) == ["two"]

    asyncio.run(scenario())
    asyncio.run(scenario())


def test_close_waits_for_saves_that_wait_for_their_turn(stack: TieredCheckpointer) -> None:
    async def scenario() -> list[bool]:
        await stack.save(state_saying("zero"), "t")
        saves = [asyncio.create_task(stack.save(state_saying(word), "t")) for word in ("one", "two", "three")]
        await one_turn_of_the_loop()
        await stack.close()
        done = [save.done() for save in saves]
        await asyncio.gather(*saves)
        await stack.close()
        return done

    assert asyncio.run(scenario()) == [True, True, True]


@pytest.mark.parametrize("kind", ["redis", "pg", "pg adapter"])
def test_run_sync_called_twice_on_homes_whose_connections_belong_to_a_loop(
    kind: str, valkey_server: Valkey, postgres_server: Postgres, tmp_path: Path
) -> None:
    home = {
        "redis": valkey_server.checkpointer,
        "pg": postgres_server.checkpointer,
        "pg adapter": postgres_server.adapter,
    }[kind]()
    stack = three_tiers(home, tmp_path / "near")
    agent = agent_on(stack, *calls("one", "two"), "first", *calls("three"), "second")
    assert agent.run_sync("a", thread_id="t").text == "first"
    assert agent.run_sync("b", thread_id="t").text == "second"

    async def look() -> list[str]:
        async with stack:
            assert len(await stack.list_checkpoints("t")) == 2
            return said(await stack.load("t"))

    assert asyncio.run(look()) == ["a", "first", "b", "second"]


async def _said(stack: TieredCheckpointer, thread: str) -> list[str]:
    return said(await stack.load(thread))
