"""What the integration tests share: agents that follow a script, stacks of three tiers, and a second process.

Run as a module, this file *is* the second process: it builds a stack of its own, with a memory of its own, from
the JSON of its first argument, and obeys one JSON command per line of its standard input. :class:`Process` is
the handle that a test holds of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from locus.agent import Agent
from locus.core.events import LocusEvent
from locus.core.messages import Message, Role
from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer
from locus.models.base import ModelResponse
from locus.testing import ScriptedModel, text, tool_call
from locus.tools import tool
from locus.tools.decorator import Tool

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, Layer, Operation, TieredCheckpointer
from locus_tiered.core.operations import Save

ROOT = Path(__file__).parents[2]
R = TypeVar("R")


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} means {word[::-1]}"


def calls(*words: str, name: str = "look_up") -> list[ModelResponse]:
    """A model's turns that call a tool once for each word."""
    return [tool_call(name, call_id=f"call-{uuid4().hex[:12]}", word=word) for word in words]


def agent_on(
    checkpointer: BaseCheckpointer, *script: ModelResponse | str, tools: tuple[Tool, ...] = (look_up,), **options: Any
) -> Agent:
    """An agent whose model says exactly this, and complains when it is asked for more."""
    model = ScriptedModel([text(each) if isinstance(each, str) else each for each in script])
    return Agent(model=model, tools=list(tools), checkpointer=checkpointer, context_window=100_000, **options)


async def take_turn(checkpointer: BaseCheckpointer, thread: str, prompt: str, answer: str, *words: str) -> str:
    """One turn of an agent that was made for it: a tool call for each word, then the answer."""
    result = await agent_on(checkpointer, *calls(*words), answer).arun(prompt, thread_id=thread)
    return result.text


async def drain(events: AsyncIterator[LocusEvent]) -> list[str]:
    """Consume a stream to its end; the types of its events."""
    return [event.event_type async for event in events]


def said(state: AgentState | None) -> list[str]:
    """What the user and the agent have said to each other."""
    assert state is not None, "the thread has no checkpoint"
    return [m.content for m in state.messages if m.role in (Role.USER, Role.ASSISTANT) and m.content]


def tool_results(state: AgentState | None) -> list[str]:
    """What the tools have answered, errors included."""
    assert state is not None, "the thread has no checkpoint"
    return [message.content or "" for message in state.messages if message.role == Role.TOOL]


def state_saying(*words: str, **metadata: Any) -> AgentState:
    """A state with one user message for each word."""
    return AgentState(messages=tuple(Message.user(word) for word in words), metadata=metadata)


def three_tiers(home: BaseCheckpointer, directory: Path, **options: Any) -> TieredCheckpointer:
    """Memory, then a directory, then ``home``: what one process has."""
    return TieredCheckpointer(BoundedMemoryCheckpointer("64MiB"), DirectoryCheckpointer(directory), home, **options)


async def ids_in_every_tier(stack: TieredCheckpointer, thread: str) -> list[list[str]]:
    """The ids that each tier holds by itself, nearest first: all equal when the tiers are in step."""
    return [await tier.checkpointer.list_checkpoints(thread, limit=1000) for tier in stack.tiers]


async def one_turn_of_the_loop() -> None:
    """Let every task that is ready run once."""
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_soon(turn.set_result, None)
    await turn


async def settle() -> None:
    """Return when no other task of this loop is left."""
    await one_turn_of_the_loop()  # what was scheduled before becomes a task first
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


class PowerCut(BaseException):
    """The end of a process, without ending this one. No handler takes it for an error."""


class Unplugged(Layer):
    """After so many saves nothing gets through any more: what is stored then is what a killed process leaves."""

    def __init__(self, inner: BaseCheckpointer, saves: int) -> None:
        super().__init__(inner)
        self._left = saves

    async def handle(self, operation: Operation[R]) -> R:
        if isinstance(operation, Save):
            self._left -= 1
        if self._left < 0:
            raise PowerCut(operation.name)
        return await self.inner.handle(operation)


async def die_in_mid_turn(checkpointer: BaseCheckpointer, thread: str, prompt: str, *words: str) -> None:
    """A turn that ends without a word after it looked these words up: only its iteration saves are left."""
    with contextlib.suppress(PowerCut):
        await take_turn(Unplugged(checkpointer, len(words)), thread, prompt, "never said", *words, "too late")


def s3_options(server: Any, bucket: str) -> dict[str, Any]:
    """What another process needs to reach a bucket."""
    return {
        "bucket": bucket,
        "endpoint_url": server.endpoint_url,
        "region_name": "us-east-1",
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
    }


class Process:
    """A process with a stack of its own over one bucket. Commands are the functions of :class:`_Commands`."""

    def __init__(self, s3: dict[str, Any], directory: Path) -> None:
        self._setup = json.dumps({"s3": s3, "directory": str(directory)})
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.agents", self._setup],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    async def do(self, command: str, *arguments: Any) -> Any:
        """Have it obey; its answer. :class:`ProcessLookupError` when it died of that."""
        return await asyncio.to_thread(self._do, command, arguments)

    async def dies_of(self, command: str, *arguments: Any) -> bool:
        """Whether it was killed by SIGKILL while it obeyed."""
        try:
            await self.do(command, *arguments)
        except ProcessLookupError:
            assert self._process is not None
            return self._process.returncode == -signal.SIGKILL
        return False

    def _do(self, command: str, arguments: tuple[Any, ...]) -> Any:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise ProcessLookupError(f"the process ended during {command}")
        return json.loads(line)


# -- inside the other process ------------------------------------------------------------------------------------


class Mortal(Layer):
    """Takes the process with it, as a power cut would, when it is told to do what it is armed for."""

    armed: str | None = None

    async def handle(self, operation: Operation[R]) -> R:
        if operation.name == self.armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return await self.inner.handle(operation)


@tool
async def pull_the_plug(word: str) -> str:
    """End the process, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    return word


class _Commands:
    def __init__(self, s3: dict[str, Any], directory: str) -> None:
        self.directory = Mortal(DirectoryCheckpointer(directory))
        self.stack = TieredCheckpointer(BoundedMemoryCheckpointer("64MiB"), self.directory, S3Backend(**s3))

    async def turn(self, thread: str, prompt: str, answer: str, *words: str) -> str:
        return await take_turn(self.stack, thread, prompt, answer, *words)

    async def turn_cut_short(self, thread: str, prompt: str, *words: str) -> None:
        """A turn whose last tool call ends the process."""
        script = [*calls(*words), *calls("plug", name="pull_the_plug")]
        await agent_on(self.stack, *script, tools=(look_up, pull_the_plug)).arun(prompt, thread_id=thread)

    async def said(self, thread: str) -> list[str]:
        return said(await self.stack.load(thread))

    async def ids(self, thread: str) -> list[str]:
        return await self.stack.list_checkpoints(thread, limit=1000)

    async def save(self, thread: str, checkpoint_id: str, word: str) -> str:
        return await self.stack.save(state_saying(word), thread, checkpoint_id)

    async def delete(self, thread: str, checkpoint_id: str | None = None) -> bool:
        return await self.stack.delete(thread, checkpoint_id)

    async def arm(self, operation: str) -> None:
        """From now on the directory tier dies of this operation, before it did any of it."""
        assert operation in {Save.name, "delete"}
        self.directory.armed = operation


async def _obey(setup: dict[str, Any]) -> None:
    commands = _Commands(**setup)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, *arguments = json.loads(line)
        command: Callable[..., Awaitable[Any]] = getattr(commands, name)
        print(json.dumps(await command(*arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(_obey(json.loads(sys.argv[1])))
