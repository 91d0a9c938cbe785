"""Three real servers, each behind a proxy, with everything that can happen to them; and the processes that use them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.proxy import FaultProxy
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey, postgres, seaweedfs, valkey

__all__ = ["FAULTS", "Fault", "Process", "Rig", "Site"]

Fault = Literal["killed", "stopped", "cut off", "wiped"]
FAULTS: tuple[Fault, ...] = ("killed", "stopped", "cut off", "wiped")

_CUT: dict[str, Literal["refuse", "half_open", "black_hole"]] = {
    "s3": "refuse",
    "pg": "half_open",
    "valkey": "black_hole",
}


@dataclass(slots=True)
class Site:
    """One replica: a server, the proxy in front of it, how a process reaches it, and how to empty it."""

    name: str
    server: SeaweedFS | Postgres | Valkey
    proxy: FaultProxy
    options: dict[str, Any]
    bare: BaseCheckpointer
    """Its data past the proxy and past every layer."""
    empty: Callable[[], None]

    def begin(self, fault: Fault) -> None:
        match fault:
            case "killed":
                self.server.kill()
            case "stopped":
                self.server.pause()
            case "cut off":
                getattr(self.proxy, _CUT[self.name])()
            case "wiped":
                self.proxy.refuse()
                self.server.kill()

    def end(self, fault: Fault) -> None:
        match fault:
            case "killed":
                self.server.restart()
            case "stopped":
                self.server.resume()
            case "cut off":
                self.proxy.pass_through()
            case "wiped":
                self.server.restart()
                self.empty()
                self.proxy.pass_through()


class Rig:
    """The servers, as an async context manager. Nothing of them is left afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sites: dict[str, Site] = {}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            enter = self._exits.enter_context
            for make in (self._s3, self._pg, self._valkey):
                site = make(enter)
                self.sites[site.name] = site
                self._exits.push_async_callback(site.bare.close)
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._exits.aclose()

    def _s3(self, enter: Any) -> Site:
        server = enter(seaweedfs())
        proxy = enter(FaultProxy(server.port))
        bucket = server.bucket_name()
        client = server.client()
        self._exits.callback(client.close)
        client.create_bucket(Bucket=bucket)
        options = {
            "bucket": bucket,
            "client": {
                "endpoint_url": f"http://127.0.0.1:{proxy.port}",
                "region_name": "us-east-1",
                "aws_access_key_id": server.access_key,
                "aws_secret_access_key": server.secret_key,
            },
        }

        def empty() -> None:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                keys = [{"Key": each["Key"]} for each in page.get("Contents", ())]
                if keys:
                    client.delete_objects(Bucket=bucket, Delete={"Objects": keys})

        return Site("s3", server, proxy, options, server.backend(bucket=bucket), empty)

    def _pg(self, enter: Any) -> Site:
        server = enter(postgres())
        proxy = enter(FaultProxy(server.port))
        table = f"checkpoints_{secrets.token_hex(8)}"
        dsn = server.dsn.replace(f":{server.port}/", f":{proxy.port}/")

        def empty() -> None:
            server.sql(f"TRUNCATE {table}")

        return Site("pg", server, proxy, {"dsn": dsn, "table": table}, server.checkpointer(table=table), empty)

    def _valkey(self, enter: Any) -> Site:
        server = enter(valkey())
        proxy = enter(FaultProxy(server.port))
        options = {"url": f"redis://127.0.0.1:{proxy.port}/0", "prefix": f"locus:{secrets.token_hex(8)}:"}

        def empty() -> None:
            with server.client() as client:
                client.flushall()

        return Site("valkey", server, proxy, options, server.checkpointer(prefix=options["prefix"]), empty)

    async def process(self, name: str, *, read: str, rate: float, seed: int) -> Process:
        """Start a process; ended with the rig if it has not ended before."""
        process = Process(self, name, read, rate, seed)
        self._exits.push_async_callback(process.reap)
        await process.start()
        return process

    async def spawn(self, name: str, life: str, since: float | None, read: str, rate: float, seed: int) -> _Child:
        """One life of a process: it finds the hints that the one before has left."""
        history = self.directory / f"{life}.jsonl"
        options = {
            "process": life,
            "agents": name,
            "since": since,
            "read": read,
            "rate": rate,
            "seed": seed,
            "replicas": {site.name: site.options for site in self.sites.values()},
            "journal": str(self.directory / f"hints-{name}"),
            "history": str(history),
        }
        log = self.directory / f"{life}.log"
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.replication_real.worker", json.dumps(options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=self._exits.enter_context(log.open("wb")),
            cwd=Path(__file__).parents[2], env=os.environ | {"AWS_EC2_METADATA_DISABLED": "true"},
        )  # fmt: skip
        return _Child(child, history, log)


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    history: Path
    log: Path


@dataclass(slots=True)
class Process:
    """A worker, from outside: it may be killed, and lives again."""

    rig: Rig
    name: str
    read: str
    rate: float
    seed: int
    lives: list[_Child] = field(default_factory=list)
    ended: bool = False

    @property
    def histories(self) -> list[Path]:
        """One file for each life."""
        return [life.history for life in self.lives]

    async def start(self) -> None:
        """Begin a life."""
        life = self.name if not self.lives else f"{self.name}{len(self.lives) + 1}"
        since = clock() if self.lives else None
        self.lives.append(await self.rig.spawn(self.name, life, since, self.read, self.rate, self.seed))

    async def crash(self) -> None:
        """kill -9 in the midst of whatever it is doing; and another life, which makes up for the saves it missed."""
        self.lives[-1].process.kill()
        await self.lives[-1].process.wait()
        await self.start()

    async def told(self, order: str, *, within: float = 60.0) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        self.ended = order == "end"
        child = self.lives[-1].process
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{order}\n".encode())
        await child.stdin.drain()
        line = await asyncio.wait_for(child.stdout.readline(), within)
        assert line, f"process {self.name} ended: {self.lives[-1].log.read_text()[-3000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def reap(self) -> None:
        if not self.lives:
            return
        child = self.lives[-1].process
        try:
            await asyncio.wait_for(child.wait(), 0 if not self.ended else 10)
        except TimeoutError:
            child.kill()
            await child.wait()
        for life in self.lives:
            transport = getattr(life.process, "_transport", None)
            if transport is not None:
                transport.close()


def clock() -> float:
    """Seconds, as in the histories."""
    return time.monotonic()
