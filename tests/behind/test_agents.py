"""Real agents, graphs and servers of the SDK on write-behind: the states are right, home is right, nothing is left."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from locus.core.command import Command
from locus.core.events import ToolCompleteEvent
from locus.core.interrupt import interrupt
from locus.multiagent.graph import END, START, GraphConfig, StateGraph
from locus.server.app import AgentServer
from locus.tools import tool

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, Layer, Tier, TieredCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.services import SeaweedFS
from tests.behind.kit import JOURNAL_THREAD, behind, nothing_pending
from tests.integration.agents import agent_on, calls, drain, look_up, said, settle, state_saying, take_turn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a newer starlette would rather have httpx2
    from fastapi.testclient import TestClient

T = TypeVar("T")


@dataclass
class Case:
    """A stack with write-behind in it, and home as somebody without the stack sees it."""

    stack: Layer
    behind: WriteBehindCheckpointer
    home: Any
    before: set[threading.Thread] = field(default_factory=lambda: set(threading.enumerate()))

    def no_journal_is_open(self) -> bool:
        """Whether no journal's thread of this test is left, once those that end have ended."""
        mine = [each for each in threading.enumerate() if each.name == JOURNAL_THREAD and each not in self.before]
        for each in mine:
            each.join(1)
        return not any(each.is_alive() for each in mine)

    async def home_said(self, thread: str) -> list[list[str]]:
        """What each checkpoint of a thread says in home itself, oldest first."""
        try:
            names = sorted(await self.home.list_checkpoints(thread, 100))
        except Exception as error:
            if type(error).__name__ != "NoSuchBucket":
                raise
            return []  # everything cancelled out: not even the bucket was made
        return [said(await self.home.load(thread, name)) for name in names]

    async def check(self, **threads: list[list[str]]) -> None:
        """Close, and see that home holds exactly this, and that nothing is left behind."""
        await self.stack.close()
        await settle()
        assert nothing_pending(self.behind), self.behind.pending()
        for thread, expected in threads.items():
            assert await self.home_said(thread) == expected
        assert self.no_journal_is_open()
        assert not list(self.behind.journal.glob("*/journal.db")), "an empty journal goes"


@pytest.fixture(params=["layer turn", "layer journal", "layer far", "tiers turn", "tiers journal", "exclusive journal"])
def case(request: pytest.FixtureRequest, s3_server: SeaweedFS, tmp_path: Path) -> Iterator[Case]:
    kind, ack = request.param.split()
    if kind == "layer":
        home: Any = FaultyCheckpointer()
        layer = behind(home, tmp_path / "journal", ack=ack)
        yield Case(layer, layer, home)
        return
    home = s3_server.backend()
    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer("64MiB"),
        DirectoryCheckpointer(tmp_path / "near"),
        Tier(home, write="behind", ack=ack),
        journal=tmp_path / "journal",
        latest="exclusive" if kind == "exclusive" else "validate",
    )
    assert isinstance(stack.home, WriteBehindCheckpointer)
    yield Case(stack, stack.home, s3_server.backend(bucket=home.bucket))
    s3_server.drop_bucket(home.bucket)


def in_a_loop(work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work()

    return asyncio.run(run())


FIRST, BOTH = ["a", "first"], ["a", "first", "b", "second"]


def test_run_sync_again_and_again(case: Case) -> None:
    agent = agent_on(case.stack, *calls("one", "two"), "first", *calls("three"), "second", "third")
    for prompt, answer in (("a", "first"), ("b", "second"), ("c", "third")):
        assert agent.run_sync(prompt, thread_id="t").text == answer
        assert nothing_pending(case.behind), "every run_sync closes the stack, which drains"
        assert case.no_journal_is_open()
    in_a_loop(lambda: case.check(t=[FIRST, BOTH, [*BOTH, "c", "third"]]))


async def test_run_sync_inside_a_running_loop(case: Case) -> None:
    await take_turn(case.stack, "t", "a", "first", "one")
    agent = agent_on(case.stack, *calls("two", "three"), "second")
    assert agent.run_sync("b", thread_id="t").text == "second"  # in a loop of its own, on another thread
    await take_turn(case.stack, "t", "c", "third", "four")
    assert said(await case.stack.load("t")) == [*BOTH, "c", "third"]
    await case.check(t=[FIRST, BOTH, [*BOTH, "c", "third"]])


def test_asyncio_run_twice_without_a_close(case: Case) -> None:
    asyncio.run(take_turn(case.stack, "t", "a", "first", "one", "two"))
    asyncio.run(take_turn(case.stack, "t", "b", "second", "three"))
    in_a_loop(lambda: case.check(t=[FIRST, BOTH]))


async def test_turns_on_many_threads_at_once(case: Case) -> None:
    names = [f"t{number}" for number in range(6)]
    for turn in ("first", "second"):
        answers = await asyncio.gather(*(take_turn(case.stack, name, turn, f"{turn} answer", "one") for name in names))
        assert answers == [f"{turn} answer"] * 6
    once = ["first", "first answer"]
    await case.check(**{name: [once, [*once, "second", "second answer"]] for name in names})


async def test_a_consumer_that_breaks_out_of_the_stream(case: Case) -> None:
    stream = agent_on(case.stack, *calls("one", "two", "three"), "never").run("go", thread_id="t")
    async for event in stream:
        if isinstance(event, ToolCompleteEvent) and "two" in (event.result or ""):
            break
    await stream.aclose()
    assert said(await case.stack.load("t")) == ["go"]
    await drain(agent_on(case.stack, "so be it").continue_turn("t"))
    assert said(await case.stack.load("t")) == ["go", "so be it"]
    await case.check(t=[["go"], ["go", "so be it"]])


async def test_a_turn_that_is_cancelled(case: Case) -> None:
    started = asyncio.Event()

    @tool
    async def wait_for_ever(word: str) -> str:
        """Never answer."""
        started.set()
        await asyncio.Event().wait()
        return word

    script = [*calls("one"), *calls("x", name="wait_for_ever")]
    turn = asyncio.create_task(agent_on(case.stack, *script, tools=(look_up, wait_for_ever)).arun("go", thread_id="t"))
    await started.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert len(await case.stack.list_checkpoints("t")) == 1, "the steps are gone"
    await drain(agent_on(case.stack, "never mind").continue_turn("t"))
    await case.check(t=[["go"], ["go", "never mind"]])


async def test_history_update_and_fork(case: Case) -> None:
    agent = agent_on(case.stack, *calls("one"), "first", "second", "elsewhere")
    await agent.arun("a", thread_id="t")
    await agent.arun("b", thread_id="t")
    history = await agent.get_state_history("t")
    assert [said(each[1] if isinstance(each, tuple) else each) for each in history] == [BOTH, FIRST]
    await agent.update_state("t", metadata={"edited": True})
    edited = await agent.get_state("t")
    assert edited is not None and edited.metadata["edited"] is True
    fork = await agent.fork("t", new_thread_id="u")
    await agent.arun("c", thread_id=fork if isinstance(fork, str) else "u")
    assert said(await case.stack.load("u")) == [*BOTH, "c", "elsewhere"]
    assert said(await case.stack.load("t")) == BOTH
    await case.check(t=[FIRST, BOTH, BOTH], u=[BOTH, [*BOTH, "c", "elsewhere"]])


async def test_a_graph_that_asks_a_person(case: Case) -> None:
    async def draft(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["topic"].upper()}

    async def review(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"verdict": interrupt({"question": "publish?", "text": inputs["text"]})}

    graph = StateGraph(config=GraphConfig(thread_id="g"))
    graph.add_node("draft", draft)
    graph.add_node("review", review)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "review")
    graph.add_edge("review", END)
    graph = graph.compile(checkpointer=case.stack)
    assert (await graph.execute({"topic": "cats"})).is_interrupted
    finished = await graph.execute(Command(resume="fine"))
    assert finished.success and finished.final_state["verdict"] == "fine"
    assert len(await graph.aget_state_history()) == 3
    await case.stack.close()
    assert nothing_pending(case.behind)
    assert len(await case.home.list_checkpoints("g", 100)) == 3
    assert (await graph.aget_state() or {})["verdict"] == "fine"
    await case.check()


def test_the_server(case: Case) -> None:
    agent = agent_on(case.stack, *calls("one"), "first", *calls("two"), "second")
    client = TestClient(AgentServer(agent, allow_unauthenticated=True).app)  # a loop per request, and no close
    for prompt, answer in (("a", "first"), ("b", "second")):
        assert client.post("/invoke", json={"prompt": prompt, "thread_id": "t"}).json()["message"] == answer
    shown = client.get("/threads/t").json()["messages"]
    assert [m["content"] for m in shown if m["role"] == "user"] == ["a", "b"]
    assert client.delete("/threads/t").json()["deleted"] is True
    assert client.get("/threads/t").status_code == 404
    assert client.delete("/threads/t").json()["deleted"] is False
    in_a_loop(lambda: case.check(**{"anon:t": []}))


def test_loops_on_several_threads_at_once(case: Case) -> None:
    failures: list[BaseException] = []

    def talk(name: str) -> None:
        try:
            for turn in ("first", "second"):
                asyncio.run(take_turn(case.stack, name, turn, f"{turn} answer", "one", "two"))
        except BaseException as error:
            failures.append(error)

    asyncio.run(take_turn(case.stack, "warm", "up", "done"))
    threads = [threading.Thread(target=talk, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    once = ["first", "first answer"]
    expected = {f"t{number}": [once, [*once, "second", "second answer"]] for number in range(4)}
    in_a_loop(lambda: case.check(**expected))


async def test_no_turn_sends_a_step_that_is_deleted_in_time(case: Case) -> None:
    await take_turn(case.stack, "t", "a", "first", "one", "two", "three")
    await case.stack.close()
    if case.behind.ack != "far" and isinstance(case.home, FaultyCheckpointer):
        assert case.home.count("save", "t") == 1 and case.home.count("delete", "t") == 0
    await case.check(t=[FIRST])


async def test_states_saved_without_the_stack_are_found_and_stay_older(case: Case) -> None:
    await case.home.save(state_saying("from before"), "t", "old")
    await take_turn(case.stack, "t", "a", "first", "one")
    await case.stack.close()
    assert said(await case.stack.load("t")) == ["from before", "a", "first"]
    assert (await case.stack.list_checkpoints("t"))[-1] == "old"
    await case.check()
