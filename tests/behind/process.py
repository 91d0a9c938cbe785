"""Another process with write-behind over a home that is a directory: obeys one JSON command per line.

What only some commands need is imported by them: a process starts in half the time without the SDK's agents.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from locus_tiered import DirectoryCheckpointer, WriteBehindCheckpointer
from locus_tiered.core.clock import Clock
from tests.behind.kit import Hands, stack_words, step, words
from tests.behind.kit import said as saying

ROOT = Path(__file__).parents[2]


class Process:
    """A handle of the other process. ``ahead``: how far its wall clock is ahead, in seconds."""

    def __init__(self, home: Path, journal: Path, *, ack: str = "journal", ahead: float = 0.0) -> None:
        self._setup = json.dumps({"home": str(home), "journal": str(journal), "ack": ack, "ahead": ahead})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.behind.process", self._setup],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    async def do(self, command: str, *arguments: Any) -> Any:
        """Have it obey; its answer. ``ProcessLookupError`` when it died of that."""
        return await asyncio.to_thread(self._do, command, arguments)

    def _do(self, command: str, arguments: tuple[Any, ...]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            assert self._process.returncode == -signal.SIGKILL
            raise ProcessLookupError(f"the process ended during {command}")
        return json.loads(line)


class _Commands:
    """What can be asked of it. Nothing becomes due: only ``flush`` sends."""

    def __init__(self, home: str, journal: str, ack: str, ahead: float) -> None:
        hands = Hands(ahead=ahead)
        clock = Clock(wall=lambda: _real() + ahead, monotonic=hands.clock.monotonic, sleep=hands.clock.sleep)
        self.stack = WriteBehindCheckpointer(
            DirectoryCheckpointer(home, clock=clock),
            journal=journal,
            ack=ack,  # type: ignore[arg-type]
            clock=clock,
        )
        self.turn_ids: list[str] = []

    async def save(self, thread: str, text: str, checkpoint_id: str | None = None) -> str:
        return await self.stack.save(saying(text), thread, checkpoint_id)

    async def step(self, thread: str, text: str) -> str:
        state, name = step(self.turn_ids, text)
        return await self.stack.save(state, thread, name)

    async def load(self, thread: str, checkpoint_id: str | None = None) -> str | None:
        return words(await self.stack.load(thread, checkpoint_id))

    async def words(self, thread: str) -> list[str | None]:
        return await stack_words(self.stack, thread)

    async def said(self, thread: str) -> list[str]:
        from tests.integration.agents import said

        return said(await self.stack.load(thread))

    async def ids(self, thread: str) -> list[str]:
        return await self.stack.list_checkpoints(thread, 1000)

    async def delete(self, thread: str, checkpoint_id: str | None = None) -> bool:
        return await self.stack.delete(thread, checkpoint_id)

    async def flush(self) -> int:
        await self.stack.flush()
        return self.stack.pending().rows

    async def recover(self) -> int:
        return (await self.stack.recover()).rows

    async def close(self) -> None:
        await self.stack.close()

    async def turn(self, thread: str, prompt: str, answer: str, *look_ups: str) -> str:
        from tests.integration.agents import agent_on, calls

        return (await agent_on(self.stack, *calls(*look_ups), answer).arun(prompt, thread_id=thread)).text

    async def turn_cut_short(self, thread: str, prompt: str, *look_ups: str) -> None:
        from tests.integration.agents import agent_on, calls, look_up, pull_the_plug

        script = [*calls(*look_ups), *calls("plug", name="pull_the_plug")]
        await agent_on(self.stack, *script, tools=(look_up, pull_the_plug)).arun(prompt, thread_id=thread)

    async def continue_turn(self, thread: str, answer: str) -> None:
        from tests.integration.agents import agent_on, drain, look_up, pull_the_plug

        await drain(agent_on(self.stack, answer, tools=(look_up, pull_the_plug)).continue_turn(thread))


def _real() -> float:
    import time

    return time.time()


async def _obey(setup: dict[str, Any]) -> None:
    commands = _Commands(**setup)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, *arguments = json.loads(line)
        command: Callable[..., Awaitable[Any]] = getattr(commands, name)
        print(json.dumps(await command(*arguments)), flush=True)


if __name__ == "__main__":
    assert os.getpid() > 1
    asyncio.run(_obey(json.loads(sys.argv[1])))
