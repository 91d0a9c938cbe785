"""A process that is going to be killed: agents on a write-behind stack over a real S3 server and a real journal.

It says what it does on a pipe, one JSON object per line: what it is about to ask of the stack before it asks, and that
it was acknowledged as soon as it was. What the pipe holds survives the process. ``kills.py`` starts it, listens, and
kills it at a moment that it does not know.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from uuid import uuid4
from zlib import crc32

from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend

from locus_tiered import BoundedMemoryCheckpointer, Layer, Operation, Tier, TieredCheckpointer, WriteBehindCheckpointer
from locus_tiered.core.canonical import digest_of
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.write_behind_options import Ack
from tests.crash.ledger import listed_iterations, state_of
from tests.integration.agents import take_turn

R = TypeVar("R")
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Life:
    """What one process is to do."""

    number: int
    seed: int
    s3: dict[str, Any]
    journal: str
    ack: Ack
    linger: float
    tiered: bool = False
    drains_first: bool = False
    looks_at: tuple[str, ...] = ()
    works_on: tuple[str, ...] = ()
    turns: int | None = None
    """Turns per thread, then a clean close; ``None``: until it is killed."""
    deletes: str | None = None
    """Only delete this thread, and leave."""


def mark_of(state: AgentState) -> int:
    """A number that stands for this state and no other."""
    return int(digest_of(state.to_checkpoint())[:15], 16)


class Told(Layer):
    """Tells the pipe what is asked of the stack, and what was acknowledged."""

    def __init__(self, inner: Layer, say: Callable[..., None]) -> None:
        super().__init__(inner)
        self._say, self._calls = say, 0

    async def handle(self, operation: Operation[R]) -> R:
        return await self.inner.handle(operation)

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        self._calls = call = self._calls + 1
        iteration = checkpoint_id is not None and checkpoint_id in state.metadata.get(ITERATION_KEY, ())
        self._say("save", call=call, thread=thread_id, id=checkpoint_id, mark=mark_of(state), iteration=iteration)
        saved = await super().save(state, thread_id, checkpoint_id, metadata)
        self._say("saved", call=call, id=saved)
        return saved

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self._calls = call = self._calls + 1
        self._say("delete", call=call, thread=thread_id, id=checkpoint_id)
        answer = await super().delete(thread_id, checkpoint_id)
        self._say("deleted", call=call, answer=answer)
        return answer


class Worker:
    """One thread's agent, and the people around it."""

    def __init__(self, told: Told, thread: str, life: Life, flush: Callable[[], Any]) -> None:
        self.told, self.thread, self.flush = told, thread, flush
        self.chance = Random(f"{life.seed} {life.number} {thread}")
        self._prefix, self._saves = life.number * 10**9 + crc32(thread.encode()) % 10**4 * 10**5, 0

    def _state(self, turn: list[str] | None = None) -> AgentState:
        self._saves += 1
        return state_of(self._prefix + self._saves, turn or ())

    async def turn(self) -> None:
        """A turn as the SDK's agent makes it."""
        turn = listed_iterations(await self.told.load(self.thread))
        for _ in range(self.chance.randrange(5)):
            turn.append(uuid4().hex)
            await self.told.save(self._state(turn), self.thread, turn[-1])
        await self.told.save(self._state(), self.thread)
        for name in turn:
            await self.told.delete(self.thread, name)

    async def agent(self) -> None:
        """A turn of the SDK's agent itself."""
        words = [f"word{self.chance.randrange(100)}" for _ in range(self.chance.randrange(1, 4))]
        await take_turn(self.told, self.thread, f"ask {uuid4().hex}", "done", *words)

    async def named(self) -> None:
        await self.told.save(self._state(), self.thread, self.chance.choice(["draft", "plan/a", "..", "é\x00"]))

    async def delete_one(self) -> None:
        names = await self.told.list_checkpoints(self.thread, MOST)
        if names:
            await self.told.delete(self.thread, self.chance.choice(names))

    async def delete_thread(self) -> None:
        await self.told.delete(self.thread)

    async def flushes(self) -> None:
        await self.flush()

    async def once(self) -> None:
        does = [self.turn, self.agent, self.named, self.delete_one, self.delete_thread, self.flushes]
        await self.chance.choices(does, weights=[8, 3, 3, 2, 1, 1])[0]()


async def _look(stack: Layer, thread: str) -> list[tuple[str, int | None]]:
    """Everything in a thread, newest first; the first pair is the newest as ``load`` has it."""
    newest = await stack.load(thread)
    found: list[tuple[str, int | None]] = [("", None if newest is None else mark_of(newest))]
    for name in await stack.list_checkpoints(thread, MOST):
        state = await stack.load(thread, name)
        found.append((name, None if state is None else mark_of(state)))
    return found


async def _live(life: Life, say: Callable[..., None]) -> None:
    far = S3Backend(**life.s3)
    behind = WriteBehindCheckpointer(far, journal=Path(life.journal), ack=life.ack, linger=life.linger)
    stack: Layer = TieredCheckpointer(BoundedMemoryCheckpointer("8MiB"), Tier(behind)) if life.tiered else behind
    say("open", **asdict(await behind.recover()))
    if life.drains_first:
        await behind.flush()
        say("drained", at=time.monotonic(), rows=behind.pending().rows, dead=behind.pending().dead_letters)
    for thread in life.looks_at:
        begun = time.monotonic()
        say("saw", thread=thread, begun=begun, found=await _look(stack, thread))
    told = Told(stack, say)
    if life.deletes is not None:
        await told.delete(life.deletes)

    async def work(thread: str) -> None:
        worker, turns = Worker(told, thread, life, behind.flush), life.turns
        while turns is None or turns > 0:
            await worker.once()
            turns = None if turns is None else turns - 1

    await asyncio.gather(*(work(thread) for thread in life.works_on))
    await stack.close()
    say("closed", at=time.monotonic(), rows=behind.pending().rows, dead=behind.pending().dead_letters)


def live(life: Life, pipe: Connection) -> None:
    """The whole life of a process; nothing is left of it but its journal, what S3 has, and what it said."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(what: str, **facts: Any) -> None:
        os.write(pipe.fileno(), json.dumps({"what": what, **facts}).encode() + b"\n")

    def hear(signal: Signal) -> None:
        if signal.kind in ("journal.cancelled", "journal.adopted", "journal.dead_letter", "journal.failed"):
            say("signal", kind=signal.kind, rows=signal.facts.get("rows", 1))

    say("up")
    with listen(hear):
        try:
            asyncio.run(_live(life, say))
        except LocusTieredError as error:
            say("error", error=type(error).__name__, text=str(error))
        except BaseException as error:
            say("error", error=type(error).__name__, text=repr(error))
            raise
