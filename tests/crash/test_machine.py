"""Write-behind against a ledger of what was promised: random programs of two processes, outages, crashes and time.

Two processes share a journal's directory and a far store; each serves threads of its own. They are killed and closed,
the next one, or the other one, takes over what they left; the far store cannot be reached for a while; a bystander
deletes threads through a stack of its own; hours pass at once. Whenever nobody else owes a thread anything, it must
read as the laws say. ``LOCUS_TIERED_EXAMPLES`` raises the number of programs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.layers.far import Far
from locus_tiered.layers.write_behind_options import Ack
from locus_tiered.stores import journal as journal_module
from locus_tiered.stores.journal_file import JournalFile
from locus_tiered.testing.faults import FaultyCheckpointer
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.virtual_time import VirtualTimeLoop
from tests.crash.ledger import Event, Ledger, listed_iterations
from tests.crash.lives import Client, behind, in_step, look
from tests.crash.points import virtual_journals

EXAMPLES = int(os.environ.get("LOCUS_TIERED_EXAMPLES", "15"))
T = TypeVar("T")
_AN_INSTANT = 0.001
"""Two processes never act at one instant: within the skew of their clocks nobody orders what they do."""

OWNERS = {"a": 0, "b": 0, "c": 1}
threads = st.sampled_from(sorted(OWNERS))
slots = st.integers(0, 1)
names = st.sampled_from([None, "draft", "plan"])


@pytest.fixture(autouse=True)
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_journals(monkeypatch)


class Slot:
    """One process after another, with a memory of its own each."""

    def __init__(self) -> None:
        self.registry: dict[Any, Any] = {}
        self.far: FaultyCheckpointer | None = None
        self.client: Client | None = None

    @property
    def stack(self) -> WriteBehindCheckpointer:
        assert self.client is not None and isinstance(self.client.stack, WriteBehindCheckpointer)
        return self.client.stack


async def kill(stack: WriteBehindCheckpointer) -> None:
    """End a process at once: its files stay as they are, its lock is gone, nothing of it runs any more."""
    journal = stack._attached
    await stack._flusher.stop()
    if journal is None:
        return

    def die(file: JournalFile) -> None:
        assert journal._opened is not None
        folder = file.path.parent
        files = {path: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
        file.close()  # tidies up, as no killed process would: put everything back
        for path, content in files.items():
            path.write_bytes(content)
        journal._opened.seat.release()
        journal._closed.set()

    await journal._thread.stop(die)


class Machine(RuleBasedStateMachine):
    ack: Ack
    exclusive = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.truth = ReferenceCheckpointer(clock=lambda: 0.0)
        self.ledger = Ledger()
        self.slots = [Slot(), Slot()]
        self.holders: dict[str, set[object]] = {thread: set() for thread in OWNERS}
        self.turns: dict[str, list[str]] = {thread: [] for thread in OWNERS}
        self.cut = False
        self.processes = 0
        self.real_registry = journal_module._registry

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    # -- processes ----------------------------------------------------------------------------------

    async def up(self, number: int) -> Client:
        """The process in a slot; a new one takes over what dead ones left."""
        slot = self.slots[number]
        await asyncio.sleep(_AN_INSTANT)
        journal_module._registry = slot.registry
        if slot.client is None:
            self.processes += 1
            slot.far = FaultyCheckpointer(self.truth.twin())
            if self.cut:
                slot.far.partition()
            base = Path(self.directory.name) / "journal"
            stack = behind(slot.far, base, self.processes, ack=self.ack, exclusive=self.exclusive)
            slot.client = Client(stack, self.ledger)
            await stack.recover()
            for holders in self.holders.values():
                if "dead" in holders:
                    holders.discard("dead")
                    holders.add(number)
        return slot.client

    def down(self, number: int, *, owes: bool) -> None:
        self.slots[number] = Slot()
        for thread, holders in self.holders.items():
            if number in holders:
                holders.discard(number)
                if owes:
                    holders.add("dead")
            if OWNERS[thread] == number:
                self.turns[thread] = []

    async def attempt(self, thread: str, call: Awaitable[Any]) -> None:
        """A call that may be refused while the far store is cut off, and only then."""
        try:
            await call
        except LocusTieredError:
            assert self.cut, "refused, though the far store could be reached"
            for event in self.ledger.events:
                event.status = "refused" if event.status == "begun" else event.status

    async def mine(self, thread: str) -> Client:
        client = await self.up(OWNERS[thread])
        self.holders[thread].add(OWNERS[thread])
        return client

    # -- rules --------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        journal_module._registry = {}

    @rule(thread=threads, name=names)
    def save(self, thread: str, name: str | None) -> None:
        async def step() -> None:
            await self.attempt(thread, (await self.mine(thread)).save(thread, name))

        self.run(step())

    @rule(thread=threads)
    def step_of_a_turn(self, thread: str) -> None:
        async def step() -> None:
            await self.attempt(thread, (await self.mine(thread)).step(thread, self.turns[thread]))

        self.run(step())

    @rule(thread=threads)
    def end_of_a_turn(self, thread: str) -> None:
        async def step() -> None:
            client, turn = await self.mine(thread), self.turns[thread]
            self.turns[thread] = []
            await self.attempt(thread, client.finish(thread, turn))

        self.run(step())

    @rule(thread=threads)
    @precondition(lambda self: not self.cut)
    def continue_a_turn(self, thread: str) -> None:
        async def step() -> None:
            client = await self.mine(thread)
            turn = listed_iterations(await client.stack.load(thread))
            self.turns[thread] = []
            await self.attempt(thread, client.finish(thread, turn))

        self.run(step())

    @rule(thread=threads, which=st.integers(0, 5))
    def delete(self, thread: str, which: int) -> None:
        async def step() -> None:
            client = await self.mine(thread)
            known = self.ledger.ids(thread) or ["never there"]
            settled = not self.holders[thread] - {OWNERS[thread]}
            client._trusting = settled
            await self.attempt(thread, client.delete(thread, known[-1 - which % len(known)]))

        self.run(step())

    @rule(thread=threads)
    def delete_thread(self, thread: str) -> None:
        async def step() -> None:
            client = await self.mine(thread)
            self.turns[thread] = []
            await self.attempt(thread, client.delete(thread))

        self.run(step())

    @rule(thread=threads)
    @precondition(lambda self: not self.cut and not self.exclusive)
    def a_bystander_deletes(self, thread: str) -> None:
        async def step() -> None:
            journal_module._registry = {}
            self.processes += 1
            base = Path(self.directory.name) / "bystander"
            stack = behind(self.truth.twin(), base, self.processes, ack="turn")
            event = self.ledger.begin(Event("delete", thread, None))
            await asyncio.sleep(_AN_INSTANT)
            await stack.delete(thread)
            event.status = "done"
            await stack.close()
            await asyncio.sleep(_AN_INSTANT)
            self.turns[thread] = []
            # What a living process has not sent yet, it still shows until it asks.
            for number in self.holders[thread] & {0, 1}:
                await self.flushed(int(str(number)))

        self.run(step())

    async def flushed(self, number: int) -> None:
        client = await self.up(number)
        await client.flush()
        for holders in self.holders.values():
            holders.discard(number)

    @rule(number=slots)
    @precondition(lambda self: not self.cut)
    def flush(self, number: int) -> None:
        self.run(self.flushed(number))

    @rule(seconds=st.sampled_from([0.4, 1.2, 31.0, 70.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def cut_off_or_back(self) -> None:
        self.cut = not self.cut
        for slot in self.slots:
            if slot.far is not None:
                slot.far.partition() if self.cut else slot.far.heal()

    @rule(number=slots)
    def crash(self, number: int) -> None:
        async def step() -> None:
            slot = self.slots[number]
            if slot.client is not None and slot.far is not None:
                slot.far.partition()
                await kill(slot.stack)
            self.down(number, owes=True)

        self.run(step())

    @rule(number=slots)
    def close(self, number: int) -> None:
        async def step() -> None:
            slot = self.slots[number]
            if slot.client is not None:
                journal_module._registry = slot.registry
                await slot.stack.close()
                self.down(number, owes=slot.stack.pending().rows > 0)

        self.run(step())

    @rule(number=slots)
    def starts(self, number: int) -> None:
        self.run(self.up(number))

    # -- laws ---------------------------------------------------------------------------------------

    @rule(thread=threads)
    def read(self, thread: str) -> None:
        async def step() -> list[str]:
            client = await self.up(OWNERS[thread])
            if self.holders[thread] - {OWNERS[thread]}:
                return []
            if self.cut:
                return await self.read_in_an_outage(client, thread)
            return await look(client.stack, self.ledger, thread)

        problems = self.run(step())
        assert not problems, "\n".join(problems)

    async def read_in_an_outage(self, client: Client, thread: str) -> list[str]:
        """Whatever is answered at all is right."""
        expected = self.ledger.expected(thread)
        newest = max((expected.place[mark] for mark in expected.must.values()), default=-1)
        problems = []
        try:
            state = await client.stack.load(thread)
            found = -1 if state is None else expected.place.get(state.total_tokens_used, -2)
            if found < newest:
                problems.append(f"NEWEST {thread}: in an outage load() answers {state and state.total_tokens_used}")
        except LocusTieredError:
            pass
        for name in self.ledger.ids(thread):
            try:
                state = await client.stack.load(thread, name)
            except LocusTieredError:
                continue
            if (state is None and name in expected.must) or (
                state is not None and state.total_tokens_used not in expected.may.get(name, ())
            ):
                problems.append(f"WRONG {thread}/{name}: in an outage {state and state.total_tokens_used}")
        return problems

    @invariant()
    def bounded(self) -> None:
        for slot in self.slots:
            if slot.client is not None:
                assert slot.stack.pending().dead_letters == 0 and slot.stack.pending().damaged == 0

    def teardown(self) -> None:
        async def end() -> list[str]:
            if self.cut:
                self.cut_off_or_back_for_good()
            for number in (0, 1):
                await self.flushed(number)
            for number in (0, 1):
                journal_module._registry = self.slots[number].registry
                await self.slots[number].stack.close()
            journal_module._registry = {}
            stack = behind(self.truth.twin(), Path(self.directory.name) / "journal", 0, ack=self.ack)
            problems = [each for thread in OWNERS for each in await look(stack, self.ledger, thread)]
            problems += await in_step(stack, self.truth, self.ledger)
            if stack.pending().rows:
                problems.append(f"PENDING {stack.pending()}")
            await stack.close()
            return problems

        try:
            problems = self.run(end())
            assert not problems, "\n".join(problems)
        finally:
            journal_module._registry = self.real_registry
            self.runner.close()
            self.directory.cleanup()

    def cut_off_or_back_for_good(self) -> None:
        self.cut = False
        for slot in self.slots:
            if slot.far is not None:
                slot.far.heal()


def machine(kind: Ack, alone: bool = False) -> type[Machine]:
    class ThisMachine(Machine):
        ack = kind
        exclusive = alone

    return ThisMachine


def play(kind: Ack, examples: int, *, derandomize: bool = True, shrink: bool = True) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine(kind),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=derandomize,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("ack", ["turn", "journal", "far"])
def test_the_laws_hold_over_processes_outages_crashes_and_time(ack: Ack):
    play(ack, EXAMPLES, derandomize="LOCUS_TIERED_EXAMPLES" not in os.environ)


def test_a_recovery_that_asks_nobody_is_found_out(monkeypatch: pytest.MonkeyPatch):
    async def objections(self: Far, key: str, rows: Any) -> dict[Any, str]:
        return {}

    async def recall(self: Far, key: str, thread_id: str, saved: Any) -> None:
        return None

    monkeypatch.setattr(Far, "objections", objections)
    monkeypatch.setattr(Far, "recall", recall)
    with pytest.raises((AssertionError, ExceptionGroup)):
        play("journal", 60, shrink=False)
