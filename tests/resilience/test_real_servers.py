"""Valkey, PostgreSQL and an S3 server that are refused, reset, silent, slow, cut off, paused, killed and restarted.

For each: what the caller sees and that he sees it in time, how much reached the server, that nothing is there twice
and nothing that was acknowledged is missing, and that the breaker opened and closed again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from locus.core.state import AgentState
from locus.memory.backends import HTTPCheckpointer
from locus.tools import tool

from locus_tiered import GuardedCheckpointer, RetryingCheckpointer
from locus_tiered.core.errors import BackendError, BreakerOpen, RetriesExhausted
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.testing.services import Valkey, postgres, seaweedfs, valkey
from tests.integration.agents import agent_on, calls, look_up, said, tool_results
from tests.layers.parts import latest, others, outcome, state
from tests.resilience.rigs import LIMIT, PATIENCE, Rig, Server, rig, until

SERVERS = ["valkey_server", "postgres_server", "s3_server"]
STACKS = ["leg", "tiers"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


class Story:
    """Calls on one thread, what was acknowledged, and what is in doubt."""

    def __init__(self, rig: Rig, thread: str = "t") -> None:
        self.rig, self.thread = rig, thread
        self.number = 0
        self.attempted: list[str] = []
        self.acknowledged: list[str] = []
        self.errors: list[BackendError] = []

    async def _timely(self, call: Awaitable[Any]) -> Any:
        began = time.monotonic()
        limit = LIMIT if self.rig.hurried else 3 * PATIENCE
        try:
            return await call
        except BackendError as error:
            self.errors.append(error)
            return error
        finally:
            assert time.monotonic() - began < limit, "it hung"

    async def save(self) -> Any:
        self.number += 1
        name = f"save-{self.number}"
        self.attempted.append(name)
        result = await self._timely(self.rig.stack.save(state(self.number), self.thread, name))
        if result == name:
            self.acknowledged.append(name)
        return result

    async def load(self) -> Any:
        return await self._timely(self.rig.stack.load(self.thread))

    async def recover(self) -> None:
        """After a restart each connection of a pool may be dead, and a client finds out one by one."""
        for _ in range(10):
            self.rig.forward(60)
            if not isinstance(await self.load(), BackendError):
                break
        assert self.rig.breaker == "closed"

    async def check(self) -> None:
        """After the outage: a save is the newest, everything acknowledged is there, and everything once."""
        await until(lambda: self.rig.guard.running == 0, "the end of what was abandoned")
        found = await self.rig.stack.load(self.thread)
        last = int(self.acknowledged[-1].split("-")[1]) if self.acknowledged else 0
        assert (found.iteration if found else 0) >= last
        assert await self.save() == self.attempted[-1], self.errors[-1]
        assert await latest(self.rig.stack, self.thread) == self.number
        ids = await self.rig.ids(self.thread)
        assert len(ids) == len(set(ids))
        assert set(self.acknowledged) <= set(ids) <= set(self.attempted)
        for name in self.acknowledged:
            kept = await self.rig.stack.load(self.thread, name)
            assert kept is not None and kept.iteration == int(name.split("-")[1])


def named(rig: Rig, error: BackendError) -> bool:
    """Whether an error says which member it is about."""
    return error.member == rig.guard.inner.name and error.member in str(error)


# -- outages ---------------------------------------------------------------------------------------------------------

CAUSES = {
    # What the drivers raise inside, by the kind of outage; an attempt that took too long has a TimeoutError inside.
    ("valkey_server", "refuse"): {"ConnectionError"},
    ("valkey_server", "reset"): {"ConnectionError"},
    ("postgres_server", "refuse"): {"ConnectionRefusedError", "ConnectionDoesNotExistError", "ConnectionResetError"},
    ("postgres_server", "reset"): {"ConnectionResetError", "ConnectionDoesNotExistError"},
    ("s3_server", "refuse"): {"EndpointConnectionError", "ConnectionClosedError"},
    ("s3_server", "reset"): {"ConnectionClosedError"},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("outage", ["refuse", "reset", "black_hole", "half_open"])
async def test_an_outage(server: Server, outage: str, stack: str, request: pytest.FixtureRequest):
    async with rig(server, stack) as it:
        story = Story(it)
        await story.save()
        assert (await story.load()).iteration == 1
        before = it.attempts
        it.proxy.reset_counters()
        it.hurry()
        getattr(it.proxy, outage)()
        results = [await (story.save() if number % 2 else story.load()) for number in range(8)]

        # What the caller sees.
        assert all(isinstance(result, BackendError) for result in results)
        assert all(named(it, error) for error in story.errors)
        assert [type(result) for result in results] == [RetriesExhausted] * 2 + [BreakerOpen] * 6
        causes = {type(error.__cause__).__name__ for error in results[:2]}
        key = request.node.callspec.params["server"]
        assert causes <= CAUSES.get((key, outage), {"TimeoutError"})

        # What reached the server: the breaker opened after three attempts.
        assert it.breaker == "open"
        assert it.attempts - before == 3
        assert it.guard.stats.opened == 1
        if outage == "half_open":
            assert 1 <= it.proxy.requests <= 3 * 4
        else:
            assert it.proxy.requests == 0

        # Afterwards.
        it.relax()
        it.forward(5)
        assert it.breaker == "half-open"
        assert not isinstance(await story.load(), BackendError)
        assert it.breaker == "closed"
        await story.check()
    await until(lambda: not others(), "the end of every task")


@pytest.mark.parametrize("outage", ["refuse", "black_hole", "half_open"])
async def test_an_outage_from_the_very_beginning(server: Server, outage: str):
    async with rig(server) as it:
        story = Story(it)
        it.hurry()
        getattr(it.proxy, outage)()
        for _ in range(3):
            assert isinstance(await story.save(), BackendError)
        it.relax()
        it.forward(60)
        await until(lambda: it.guard.running == 0, "the end of what was abandoned")
        await story.check()
        assert it.breaker == "closed"


async def test_answers_that_are_late_are_waited_for_as_long_as_allowed(server: Server):
    async with rig(server) as it:
        story = Story(it)
        await story.save()
        it.proxy.slow(0.01)
        await story.save()
        assert (await story.load()).iteration == 2
        assert story.errors == [] and it.leg.stats.retries == 0
        it.hurry()
        it.proxy.slow(3600)
        assert isinstance(await story.load(), RetriesExhausted)
        assert isinstance(await story.save(), BackendError)
        it.relax()
        it.forward(60)
        await story.check()


# -- one request -----------------------------------------------------------------------------------------------------


async def requests_of(it: Rig, call: Callable[[], Awaitable[Any]]) -> int:
    """How many requests one call makes, once everything is set up."""
    await call()
    it.proxy.reset_counters()
    await call()
    return it.proxy.requests


@pytest.mark.parametrize("stack", STACKS)
async def test_a_save_is_one_checkpoint_whichever_of_its_requests_is_cut(server: Server, stack: str):
    """Every request of a save in turn reaches the server and is not answered: no id is made up twice."""
    async with rig(server, stack, breaker=None, attempts=3, budget=RetryBudget(ratio=1)) as it:
        count = await requests_of(it, lambda: it.stack.save(state(0), "t"))
        saved = set(await it.ids("t"))
        assert len(saved) == 2 and count >= 3
        for number in range(count):
            before = it.leg.stats.recovered
            it.proxy.cut_after_request(skip=number)
            saved.add(await it.stack.save(state(number + 1), "t"))
            assert it.leg.stats.recovered == before + 1
            assert it.proxy.mode == "pass_through"
            assert set(await it.ids("t")) == saved
            assert await latest(it.stack) == number + 1
        assert len(saved) == count + 2


@pytest.mark.parametrize("stack", STACKS)
async def test_a_load_and_a_delete_recover_whichever_of_their_requests_is_cut(server: Server, stack: str):
    async with rig(server, stack, breaker=None, attempts=3, budget=RetryBudget(ratio=1)) as it:
        kept = await it.stack.save(state(7), "t", "kept")
        for number in range(await requests_of(it, lambda: it.stack.list_checkpoints("t"))):
            it.proxy.cut_after_request(skip=number)
            assert await it.stack.list_checkpoints("t") == [kept]
        for number in range(await requests_of(it, lambda: it.leg.load("t", kept))):
            it.proxy.cut_after_request(skip=number)
            assert (await it.leg.load("t", kept)) is not None
        it.proxy.pass_through()
        for number in range(12):
            await it.stack.save(state(8), "t", "goes")
            it.proxy.cut_after_request(skip=number)
            await it.stack.delete("t", "goes")
            it.proxy.pass_through()
            assert await it.ids("t") == [kept]
            assert await it.stack.load("t", "goes") is None
        assert it.leg.stats.recovered > 0


# -- many calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["reset", "half_open"])
async def test_a_burst_in_an_outage_is_not_multiplied(server: Server, outage: str):
    """Forty saves at once, without a breaker: the budget alone bounds what is sent."""
    async with rig(server, breaker=None, budget=RetryBudget(burst=2)) as it:
        await it.stack.save(state(0), "t")
        before = it.attempts
        it.hurry()
        getattr(it.proxy, outage)()
        began = time.monotonic()
        results = await asyncio.gather(*(outcome(it.stack.save(state(n), f"t{n}", "one")) for n in range(40)))
        assert time.monotonic() - began < LIMIT
        assert all(isinstance(result, BackendError) for result in results)
        sent = it.attempts - before
        assert 40 <= sent <= 1.1 * 40 + 2
        it.relax()
        await until(lambda: it.guard.running == 0, "the end of what was abandoned")
        for number in range(40):
            assert await it.ids(f"t{number}") in ([], ["one"])
        assert await it.stack.save(state(1), "t", "after") == "after"


# -- agents ----------------------------------------------------------------------------------------------------------


# S3Backend without tiers loses turns by itself (SDK-FACTS 2.3).
STUMBLES = [(server, stack) for server in SERVERS for stack in STACKS if (server, stack) != ("s3_server", "leg")]


@pytest.mark.parametrize(("server", "stack"), STUMBLES, indirect=["server"])
async def test_a_turn_of_an_agent_goes_on_when_the_store_stumbles_for_one_request(server: Server, stack: str):
    """Whichever request it is: the load, an iteration's save, the last save, a delete."""
    async with rig(server, stack, breaker=None, attempts=3, budget=RetryBudget(ratio=1)) as it:
        expected: list[str] = []
        stumbled = 0
        for turn in range(16):
            if turn:
                it.proxy.cut_after_request(skip=turn)
            agent = agent_on(it.stack, *calls(f"word{turn}"), f"answer {turn}")
            result = await agent.arun(f"question {turn}", thread_id="ada")
            stumbled += it.proxy.mode == "pass_through"
            it.proxy.pass_through()
            assert result.text == f"answer {turn}"
            expected += [f"question {turn}", f"answer {turn}"]
            found = await it.stack.load("ada")
            assert said(found) == expected
            assert len(tool_results(found)) == turn + 1
        assert stumbled > 8 and it.leg.stats.recovered >= stumbled - 1
        # Of the iteration saves none is left.
        assert len(await it.ids("ada")) == 16


async def test_a_turn_goes_on_when_all_connections_are_reset_while_a_tool_runs(server: Server):
    async with rig(server, "tiers", attempts=4, budget=RetryBudget(ratio=1)) as it:

        async def stumble() -> str:
            """Reset everything."""
            it.proxy.reset()
            it.proxy.pass_through()
            return "done"

        agent = agent_on(it.stack, *calls("x"), *calls(name="stumble"), "fine", tools=(look_up, tool(stumble)))
        result = await agent.arun("question", thread_id="ada")
        assert result.text == "fine"
        assert said(await it.stack.load("ada")) == ["question", "fine"]


async def test_an_agent_in_an_outage_is_told_before_its_model_is_asked(server: Server):
    async with rig(server, "tiers") as it:
        await agent_on(it.stack, "hello").arun("hi", thread_id="ada")
        it.hurry()
        it.proxy.refuse()
        agent = agent_on(it.stack, "never said")
        with pytest.raises(RetriesExhausted) as caught:
            await agent.arun("still there?", thread_id="ada")
        assert named(it, caught.value)
        assert agent.config.model.call_count == 0  # type: ignore[union-attr]
        it.relax()
        it.forward(60)
        await agent_on(it.stack, "here").arun("and now?", thread_id="ada")
        assert said(await it.stack.load("ada")) == ["hi", "hello", "and now?", "here"]


async def test_what_is_known_can_be_read_in_an_outage_where_that_was_asked_for(server: Server):
    async with rig(server, "tiers", on_outage="stale") as it:
        await it.stack.save(state(1), "t", "one")
        assert await latest(it.stack) == 1
        it.hurry()
        it.proxy.black_hole()
        began = time.monotonic()
        assert await latest(it.stack) == 1
        assert isinstance(await outcome(it.stack.save(state(2), "t", "two")), BackendError)
        assert await it.stack.list_checkpoints("t") == ["one"]
        assert time.monotonic() - began < 3 * LIMIT
        assert it.breaker == "open"
        sent = it.attempts
        assert await latest(it.stack) == 1
        assert it.attempts == sent  # at once, because the breaker is open


# -- servers that are paused, killed, restarted ----------------------------------------------------------------------

OWN: dict[str, Callable[[], Any]] = {"valkey": valkey, "postgres": postgres, "s3": seaweedfs}


@pytest.fixture(params=OWN)
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with OWN[request.param]() as server:
        yield server


@pytest.fixture
async def own(own_server: Server) -> AsyncIterator[Rig]:
    async with rig(own_server, "tiers") as it:
        yield it
        if not own_server.running:
            own_server.restart()


@pytest.mark.xdist_group("servers")
async def test_a_server_is_paused_killed_and_restarted(own_server: Server, own: Rig):
    story = Story(own)
    for _ in range(2):
        await story.save()

    # SIGSTOP: connections stay open, nobody answers.
    own.hurry()
    own_server.pause()
    late = asyncio.create_task(story.save())
    assert isinstance(await late, RetriesExhausted)
    assert isinstance(story.errors[-1].__cause__, TimeoutError)
    assert isinstance(await story.load(), BackendError)
    assert own.breaker == "open"
    assert isinstance(await story.load(), BreakerOpen)
    own_server.resume()
    own.relax()
    await until(lambda: own.guard.running == 0, "the end of what was abandoned")
    await story.recover()
    await story.check()  # what was late is not on top of what came after it

    # SIGKILL in the middle of things.
    saving = [asyncio.create_task(story.save()) for _ in range(4)]
    await asyncio.sleep(0)
    own.hurry()
    own_server.kill()
    await asyncio.gather(*saving)
    assert isinstance(await story.load(), BackendError)
    assert all(named(own, error) for error in story.errors)
    own_server.restart()
    own.relax()
    await story.recover()
    await story.check()

    # A restart between two calls is not to be noticed, but by a pool of many connections.
    own_server.restart()
    if isinstance(own_server, Valkey):
        await story.recover()
    assert isinstance(await story.load(), AgentState)
    before = len(story.errors)
    await story.check()
    assert len(story.errors) == before


# -- a backend that hides its outages --------------------------------------------------------------------------------


async def test_nothing_from_a_server_that_cannot_be_reached_is_not_nothing():
    """``HTTPCheckpointer`` answers ``None``, ``[]`` and ``False`` in an outage; through a stack it does not."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    bare = HTTPCheckpointer(f"http://127.0.0.1:{port}", timeout=0.3)
    assert await bare.load("t") is None
    assert await bare.exists("t") is False
    stack = RetryingCheckpointer(GuardedCheckpointer(bare, timeout=0.5), attempts=2, base=0.01)
    for call in (stack.load("t"), stack.exists("t"), stack.list_checkpoints("t"), stack.delete("t")):
        error = await outcome(call)
        assert isinstance(error, BackendError) and error.member == "HTTPCheckpointer"
    assert isinstance(await outcome(stack.save(state(1), "t")), BackendError)
    await stack.close()
