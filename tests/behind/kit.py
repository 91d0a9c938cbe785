"""What the tests of write-behind share: a clock that a test turns, crashes, and a look behind the stack's back."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.clock import Clock
from locus_tiered.core.envelope import KEY
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import Layer
from locus_tiered.core.operations import ListCheckpoints

EPOCH = 1_800_000_000.0
JOURNAL_THREAD = "locus-tiered-journal"


class Hands:
    """A clock whose time is turned by hand; whoever sleeps on it wakes when his time has come."""

    def __init__(self, *, ahead: float = 0.0) -> None:
        self.now = 1000.0
        self.ahead = ahead
        self._sleeping: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def clock(self) -> Clock:
        return Clock(wall=lambda: EPOCH + self.ahead + self.now, monotonic=lambda: self.now, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleeping.append((self.now + seconds, future))
        await future

    def turn(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds
        for due, future in self._sleeping[:]:
            if future.done() or future.get_loop().is_closed():
                self._sleeping.remove((due, future))
            elif due <= self.now:
                future.get_loop().call_soon_threadsafe(lambda each=future: each.done() or each.set_result(None))
                self._sleeping.remove((due, future))

    @asynccontextmanager
    async def turning(self, step: float = 0.05) -> AsyncIterator[None]:
        """Time goes by while the block runs, much faster than outside."""

        async def turn() -> None:
            while True:
                self.turn(step)
                await asyncio.sleep(0.0005)

        task = asyncio.create_task(turn())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def eventually(holds: Callable[[], Any], within: float = 10.0) -> None:
    """Return once it holds."""
    async with asyncio.timeout(within):
        while not holds():
            await asyncio.sleep(0.002)


def said(*words: str, **metadata: Any) -> AgentState:
    return AgentState(messages=tuple(Message.user(word) for word in words), metadata=metadata)


def words(state: AgentState | None) -> str | None:
    return None if state is None else " ".join(message.content or "" for message in state.messages)


def step(turn: list[str], *text: str) -> tuple[AgentState, str]:
    """A state as an agent saves it after a step, and the id that it makes up; ``turn`` are the ids so far."""
    turn.append(uuid4().hex)
    return said(*text, **{ITERATION_KEY: list(turn)}), turn[-1]


def behind(inner: BaseCheckpointer, journal: Path, **options: Any) -> WriteBehindCheckpointer:
    return WriteBehindCheckpointer(inner, journal=journal, **options)


def crashed(journal: Path, name: str = "after-the-crash") -> Path:
    """The journal's directory as a crash would leave it now: a copy that no process holds."""
    copy = journal.parent / name
    shutil.copytree(journal, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy


async def far_words(far: BaseCheckpointer, thread: str) -> list[str | None]:
    """What the far store itself holds of a thread, in the order of the stamps, oldest first."""
    found = []
    for name in await far.list_checkpoints(thread, 1000):
        state = await far.load(thread, name)
        assert state is not None
        found.append((state.metadata.get(KEY, {}).get("stamp", ""), words(state)))
    return [text for _, text in sorted(found)]


async def stack_words(stack: Layer, thread: str) -> list[str | None]:
    """What a stack says that a thread holds, oldest first."""
    entries = await stack.handle(ListCheckpoints(thread, 1000, ordered=True))
    return [words(await stack.load(thread, entry.id)) for entry in reversed(entries)]


async def tombstones(far: BaseCheckpointer) -> int:
    return len(await far.list_checkpoints(f"{RESERVED}tombstones", 1000))


def journal_threads() -> set[threading.Thread]:
    """Those that run now; one that was told to end may be among them for a moment."""
    return {thread for thread in threading.enumerate() if thread.name == JOURNAL_THREAD}


def nothing_pending(stack: WriteBehindCheckpointer) -> bool:
    now = stack.pending()
    return now.rows == 0 and now.bytes == 0 and now.dead_letters == 0 and now.last_error is None
