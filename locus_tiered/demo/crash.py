"""A turn that a SIGKILL ends in the middle, and the process that goes on with it.

The processes are ``child.py``; each tells what happens as one JSON object per line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from locus_tiered.testing.services import SeaweedFS

__all__ = ["THREAD", "CrashStory", "tell"]

THREAD = "crash"
TOOL_CALLS = 10
KILLED_AT = 7
_PATIENCE = 30.0  # seconds for a process to say something


@dataclass(frozen=True, slots=True)
class CrashStory:
    """What was seen: the first process until its end, and what the second one knew and did."""

    tool_calls: int
    made_before: list[int]
    killed_at: int
    ended_by: int
    in_s3: int
    """Checkpoints of the thread that S3 had then."""
    conversation: list[str]
    results: list[int]
    load_seconds: float
    made_after: list[int]
    answer: str

    @property
    def went_on(self) -> bool:
        """Whether nothing that was finished was lost or done again, and the turn came to its end."""
        done = [number for number in self.made_before if number != self.killed_at]
        wanted = list(range(1, self.tool_calls + 1))
        return self.results == done and self.results + self.made_after == wanted and bool(self.answer)


@contextlib.asynccontextmanager
async def _child(config: dict[str, Any], errors: IO[bytes]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ``child.py``; gone when the block is left, however it is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "locus_tiered.demo.child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # an interrupt at the terminal is for us: we end the process
    )
    try:
        assert process.stdin is not None
        # Not on the command line, which everybody can read: there is a key in it.
        process.stdin.write(json.dumps(config).encode() + b"\n")
        await process.stdin.drain()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _hear(process: asyncio.subprocess.Process, errors: IO[bytes]) -> dict[str, Any]:
    """The next thing that the process tells."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_PATIENCE):
            line = await process.stdout.readline()
    except TimeoutError:
        raise RuntimeError(f"the agent's process said nothing for {_PATIENCE:g} s") from None
    if not line:
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
        raise RuntimeError(f"the agent's process ended too early:\n{complaint}")
    heard: dict[str, Any] = json.loads(line)
    return heard


async def tell(server: SeaweedFS, directory: Path) -> CrashStory:
    """Run a turn in a process, kill it while a tool runs, and go on with the turn in another process."""
    config: dict[str, Any] = {
        "bucket": server.bucket_name(),
        "endpoint_url": server.endpoint_url,
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
        "directory": str(directory),
        "tool_calls": TOOL_CALLS,
        "stop_at": KILLED_AT,
    }
    made: list[int] = []
    with tempfile.TemporaryFile() as errors:
        async with _child(config | {"part": "begin"}, errors) as process:
            while KILLED_AT not in made:
                made.append((await _hear(process, errors))["call"])
            process.send_signal(signal.SIGKILL)
            ended_by = -await process.wait()
        in_s3 = await _in_s3(server, config["bucket"])
        async with _child(config | {"part": "go on"}, errors) as process:
            remembered = await _hear(process, errors)
            after: list[int] = []
            while "call" in (heard := await _hear(process, errors)):
                after.append(heard["call"])
            await process.wait()
    return CrashStory(
        tool_calls=TOOL_CALLS,
        made_before=made,
        killed_at=KILLED_AT,
        ended_by=ended_by,
        in_s3=in_s3,
        conversation=remembered["conversation"],
        results=remembered["results"],
        load_seconds=remembered["seconds"],
        made_after=after,
        answer=heard["answer"],
    )


async def _in_s3(server: SeaweedFS, bucket: str) -> int:
    """How many checkpoints S3 holds for the thread of the crash."""
    client = server.client()
    try:
        return len(await server.backend(bucket=bucket, _client=client).list_checkpoints(THREAD, limit=1000))
    finally:
        client.close()
