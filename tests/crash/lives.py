"""Lives of a process over one journal and one far store: what it does, and what the next one finds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.envelope import KEY
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.ids import RESERVED, marked_name
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.virtual_time import virtual_clock
from tests.crash.ledger import Event, Ledger, listed_iterations, state_of

Script = Callable[["Client"], Awaitable[None]]
MOST = 10_000


class Client:
    """Calls a stack as the SDK's agent does, and writes down what it was promised."""

    def __init__(self, stack: BaseCheckpointer, ledger: Ledger, *, trusting: bool = True) -> None:
        self.stack, self.ledger, self._trusting = stack, ledger, trusting

    async def save(self, thread: str, name: str | None = None, turn: list[str] | None = None) -> str:
        """Save a new state; with ``turn``, the ids of a turn's steps so far, as one step more of it."""
        mark = self.ledger.next_mark()
        event = self.ledger.begin(Event("save", thread, name, mark, iteration=turn is not None))
        try:
            saved = await self.stack.save(state_of(mark, turn or ()), thread, name)
        except LocusTieredError:
            event.status = "refused"
            raise
        event.id, event.status = saved, "done"
        return saved

    async def step(self, thread: str, turn: list[str]) -> str:
        """One step of a turn: its id is made up here, and listed in the state."""
        name = hashlib.blake2b(f"{thread} {self.ledger._marks}".encode(), digest_size=16).hexdigest()
        turn.append(name)
        return await self.save(thread, name, turn)

    async def delete(self, thread: str, name: str | None = None) -> bool:
        event = self.ledger.begin(Event("delete", thread, name))
        answer = await self.stack.delete(thread, name)
        event.claims = answer or self._trusting or name is None
        event.status = "done"
        return answer

    async def finish(self, thread: str, turn: list[str]) -> None:
        """The end of a turn: the final save, then the deletes of its steps."""
        await self.save(thread)
        for name in turn:
            await self.delete(thread, name)

    async def turn(self, thread: str, steps: int, *, pause: float = 0.0, flush_after: int | None = None) -> None:
        """A whole turn, with ``pause`` seconds after each step."""
        turn = listed_iterations(await self.stack.load(thread))
        for number in range(steps):
            await self.step(thread, turn)
            if pause:
                await asyncio.sleep(pause)
            if number == flush_after:
                await self.flush()
        await self.finish(thread, turn)

    async def flush(self) -> None:
        assert isinstance(self.stack, WriteBehindCheckpointer)
        await self.stack.flush()

    async def close(self) -> None:
        await self.stack.close()


def behind(far: BaseCheckpointer, base: Path, seed: int, **options: Any) -> WriteBehindCheckpointer:
    """A write-behind layer as a process of its own would have it."""
    return WriteBehindCheckpointer(far, journal=base, clock=virtual_clock(seed=seed), **options)


async def look(stack: BaseCheckpointer, ledger: Ledger, thread: str) -> list[str]:
    """Read a thread in every way there is; which laws it breaks."""
    names = await stack.list_checkpoints(thread, MOST)
    listed, problems = [], []
    for name in names:
        state = await stack.load(thread, name)
        if state is None:
            problems.append(f"LOST {thread}/{name}: listed, and does not load")
            continue
        mark = state.total_tokens_used
        listed.append((name, mark))
        if state != state_of(mark, listed_iterations(state)):
            problems.append(f"BODY {thread}/{name} mark {mark}: not what was saved")
    problems += ledger.broken(thread, listed)
    newest = await stack.load(thread)
    if (newest.total_tokens_used if newest else None) != (listed[0][1] if listed else None):
        problems.append(f"NEWEST {thread}: load() has {newest and newest.total_tokens_used}, the list has {listed[:1]}")
    if await stack.exists(thread) != bool(names):
        problems.append(f"EXISTS {thread}: {not names}, with {names}")
    for name in ledger.ids(thread):
        there = name in names
        if await stack.exists(thread, name) != there or (await stack.load(thread, name) is not None) != there:
            problems.append(f"EXISTS {thread}/{name}: the list says {there}, exists() or load() do not")
    return problems


async def look_everywhere(stack: BaseCheckpointer, ledger: Ledger) -> list[str]:
    return [problem for thread in ledger.threads() for problem in await look(stack, ledger, thread)]


def far_promises(far: ReferenceCheckpointer, ledger: Ledger) -> list[str]:
    """What the far store itself has acknowledged must be there, whatever became of the journal."""
    problems = []
    for thread in ledger.threads():
        for name, marks in ledger.durable(thread).items():
            text = far.stored.get(thread, {}).get(name)
            if text is None or not any(f'"total_tokens_used": {mark}' in text.state for mark in marks):
                problems.append(f"LOST {thread}/{name} marks {marks}: the far store had acknowledged it")
    return problems


async def in_step(stack: BaseCheckpointer, far: ReferenceCheckpointer, ledger: Ledger) -> list[str]:
    """Whether the far store by itself, read without a stack, says what the stack says after it was drained."""
    bare, problems = far, []
    for thread in ledger.threads():
        names = await stack.list_checkpoints(thread, MOST)
        raw = [name for name in await bare.list_checkpoints(thread, MOST) if marked_name(name) is None]
        if sorted(raw) != sorted(names):
            problems.append(f"DRAINED {thread}: far has {raw}, the stack says {names}")
            continue
        for name in names:
            mine, theirs = await stack.load(thread, name), await bare.load(thread, name)
            assert mine is not None and theirs is not None
            if mine.total_tokens_used != theirs.total_tokens_used:
                problems.append(f"DRAINED {thread}/{name}: far has another state")
        mine, theirs = await stack.load(thread), await bare.load(thread)
        if theirs is not None and "again" in theirs.metadata.get(KEY, {}):
            continue  # a leaf's own marker: a crash between it and its checkpoint leaves it on top for bare readers
        if (mine and mine.total_tokens_used) != (theirs and theirs.total_tokens_used):
            problems.append(
                f"BARE {thread}: bare newest {theirs and theirs.total_tokens_used}, "
                f"stack says {mine and mine.total_tokens_used}"
            )
    unknown = [t for t in far.stored if t not in ledger.threads() and not t.startswith(RESERVED)]
    return problems + [f"DRAINED: unknown threads {unknown}"] * bool(unknown)
