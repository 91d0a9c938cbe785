"""The command line as its users run it: a process of its own; and stores to run it on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
from locus.core.messages import Message, ToolCall, ToolResult
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import DirectoryCheckpointer, TieredCheckpointer
from locus_tiered.core.layer import Layer

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "locus_tiered"]
T = TypeVar("T")


def environment(**more: str) -> dict[str, str]:
    """80 columns, no colour, nothing of the machine's own clouds, time in UTC."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "LOCUS_")) and name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM")
    }
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", "NO_PROXY": "127.0.0.1"} | more


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Standard output without the blanks that pad a table."""
        return [line.rstrip() for line in self.out.splitlines()]


def run(*words: object, cwd: Path, expect: int = 0, stdin: str = "", columns: int = 80, **env: str) -> Ran:
    """Run a command to its end, in a process of its own, without a terminal."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("in", "out", "err")]
        files[0].write_text(stdin)
        words_ = [str(word) for word in words]
        process = _FORKS.Process(target=_command, args=(words_, str(cwd), environment(**env), [*map(str, files)]))
        process.start()
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{words_} did not end: {files[1].read_text()}{files[2].read_text()}")
        ran = Ran(process.exitcode, files[1].read_text(encoding="utf-8"), files[2].read_text(encoding="utf-8"))
        process.close()
    assert ran.code == expect, f"exit {ran.code}, not {expect}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err
    printed = [line for line in ran.out.splitlines() if not line.startswith(("{", " ", '"'))]
    assert max(map(len, printed), default=0) <= columns
    return ran


def _command(words: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """What a new process of ``locus-tiered`` does, once Python has started and the imports are done."""
    for number, (file, flags) in enumerate(zip(files, _FLAGS, strict=True)):
        descriptor = os.open(file, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    # A fork server's own streams: standard input was closed there.
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, encoding="utf-8", closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["locus-tiered", *words]
    from locus_tiered.cli.app import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


_FLAGS = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_TRUNC] * 2)
# A new interpreter takes most of a second to import the SDK; a fork of one that has done so is a process as well.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("locus_tiered.cli.app", "locus_tiered.cli.measuring", "locus_tiered.config.builders", "tests.cli.kit"),
        *("locus_tiered.config.loader", "locus_tiered.layers.replicated", "locus.memory.backends"),
        *("locus.memory.backends.pg_checkpointer", "asyncpg", "boto3", "redis.asyncio"),
    ]
)


def answer(command: str, *words: object, cwd: Path, expect: int = 0, **env: str) -> Any:
    """Run a command with ``--json``; its answer, which its schema in the docs allows."""
    ran = run(command, *words, "--json", cwd=cwd, expect=expect, **env)
    found = ran.json
    name = "error" if "error" in found and "code" in found else command
    schema = json.loads((ROOT / f"docs/cli-schemas/{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    if name == "error":
        assert found["code"] == expect
    return found


def state(number: int, *, messages: int = 1, text: str = "hello", **metadata: Any) -> AgentState:
    """A small state whose content is its own."""
    told = tuple(Message.user(f"{text} {number}.{place}") for place in range(messages))
    return AgentState(agent_id="tests", iteration=number, messages=told, metadata=metadata)


def asking(number: int) -> AgentState:
    """A state that waits: its last call has no result, as an agent leaves it when it is interrupted."""
    call = ToolCall(id=f"call-{number}", name="ask_user", arguments={"question": "May I?"})
    return state(number).with_message(Message.assistant(None, [call]))


def answered(number: int) -> AgentState:
    """The same a moment later."""
    result = ToolResult(tool_call_id=f"call-{number}", name="ask_user", content="yes")
    return asking(number).with_message(Message.tool(result)).with_message(Message.assistant("Done."))


def do(work: Awaitable[T]) -> T:
    """Run something of the library in an event loop of its own."""

    async def wait() -> T:
        return await work

    return asyncio.run(wait())


async def fill(checkpointer: BaseCheckpointer, threads: dict[str, int], **options: Any) -> None:
    """Save so many checkpoints in each thread, and close."""
    for thread, many in threads.items():
        for number in range(many):
            await checkpointer.save(state(number, **options), thread, metadata={"number": number})
    await checkpointer.close()


def stack_of(directory: Path) -> tuple[TieredCheckpointer, Path]:
    """Two directories, one in front of the other, and the file that says so."""
    file = directory / "stack.yaml"
    file.write_text(
        "version: 1\nname: support\ntiers:\n  - memory: {max_bytes: 8MiB}\n"
        "  - directory: {path: ./near, durability: process}\n    name: near\n"
        "  - directory: {path: ./home, durability: process}\n    name: home\n"
    )
    layers: list[Layer] = [DirectoryCheckpointer(directory / name, durability="process") for name in ("near", "home")]
    return TieredCheckpointer(*layers), file


# Only a process whose own terminal it is gets the interrupt that the terminal makes of Ctrl-C.
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A command in a terminal of 80 columns."""

    def __init__(self, *words: object, cwd: Path, **env: str) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *COMMAND, *map(str, words)],
            cwd=cwd,
            env=environment(**env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, pattern: str, timeout: float = 30.0) -> str:
        """Read what is shown until it matches; everything that was shown since the start."""
        until = time.monotonic() + timeout
        while not re.search(pattern, self.shown):
            if not self._read(until):
                raise AssertionError(f"never shown: {pattern}\n{self.shown}")
        return self.shown

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.type("\x03")

    def end(self, timeout: float = 30.0) -> int:
        """Read to the end; the exit code."""
        until = time.monotonic() + timeout
        while self._read(until):
            pass
        return self._process.wait(max(0.1, until - time.monotonic()))

    def _read(self, until: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # the other end is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        """Gone in any case."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._master)


@contextlib.contextmanager
def terminal(*words: object, cwd: Path, **env: str) -> Iterator[Terminal]:
    """A command in a terminal, gone afterwards."""
    running = Terminal(*words, cwd=cwd, **env)
    try:
        yield running
    finally:
        running.close()


def ids(found: Sequence[dict[str, Any]]) -> list[str]:
    """The ids of listed checkpoints."""
    return [row["id"] for row in found]
