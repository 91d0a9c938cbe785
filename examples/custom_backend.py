"""The backend of the SDK's how-to, made real, proved, and used as a tier.

    python examples/custom_backend.py

The how-to "Add a checkpointer backend" leaves ``connect(conn_string)`` to you. Here it opens a key-value store in
one SQLite file, and ``MyCustomBackend`` keeps its shape: ``put``, ``get``, ``list_keys``. What it does otherwise
than the how-to, it does because a check of the contract kit asks for it:

- ids are quoted inside keys, so ``("a/b", "c")`` and ``("a", "b/c")`` are two checkpoints, and ``"latest"`` is an
  id like any other;
- there is no pointer to the newest: the order of the puts is the order of the checkpoints, so the newest cannot
  disagree with the list, and deleting it falls back to the one before;
- the flags of ``capabilities`` that are true have a method behind them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote
from uuid import uuid4

from locus.agent import Agent
from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer
from locus.testing import ScriptedModel

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer
from locus_tiered.testing import check_checkpointer_conformance

T = TypeVar("T")

ALL = 1_000_000_000


class Connection:
    """A key-value store in one SQLite file. A ``put`` moves its key to the front of every list.

    One thread does the work, in the order of the calls, so that a call whose caller was cancelled cannot land
    on top of a later one, and so that any event loop may call. Several processes may share the file.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self._path, self._synchronous = path, synchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="custom-backend")
        self._db: sqlite3.Connection | None = None  # opened on first use, and again after close()

    async def put(self, key: str, value: Any) -> None:
        text = json.dumps(value)  # fails before anything is written
        await self._do(lambda db: db.execute("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", (key, text)))

    async def get(self, key: str) -> Any | None:
        rows = await self._do(lambda db: db.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchall())
        return json.loads(rows[0][0]) if rows else None

    async def list_keys(self, prefix: str, limit: int = ALL) -> list[str]:
        """The keys that start with ``prefix``, last put first."""
        return [key for key, _ in await self._select(prefix, "NULL", limit)]

    async def items(self, prefix: str, limit: int = ALL) -> list[tuple[str, Any]]:
        """The same with their values."""
        return [(key, json.loads(text)) for key, text in await self._select(prefix, "value", limit)]

    async def delete(self, keys: Iterable[str]) -> int:
        """All of them or, when it fails, none; answers how many there were."""

        def delete(db: sqlite3.Connection) -> int:
            with db:  # commits, or rolls back
                db.execute("BEGIN IMMEDIATE")
                return db.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys]).rowcount

        return await self._do(delete)

    async def close(self) -> None:
        def close() -> None:
            if self._db is not None:
                self._db.close()
                self._db = None

        await asyncio.get_running_loop().run_in_executor(self._thread, close)

    async def _select(self, prefix: str, what: str, limit: int) -> list[tuple[str, str]]:
        query = f"SELECT key, {what} FROM entries WHERE key >= ? AND key < ? ORDER BY place DESC LIMIT ?"
        bounds = (prefix, prefix + chr(0x10FFFF), max(0, min(limit, ALL)))
        return await self._do(lambda db: db.execute(query, bounds).fetchall())

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._open()))

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            db.execute(f"PRAGMA synchronous = {self._synchronous}")
            db.execute("PRAGMA journal_mode = WAL")
            columns = "place INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, value TEXT NOT NULL"
            db.execute(f"CREATE TABLE IF NOT EXISTS entries ({columns})")
            self._db = db
        return self._db


def connect(conn_string: str) -> Connection:
    """``sqlite:///path/to/file[?synchronous=OFF]``; nothing is opened yet.

    A put that returned survives a power cut, or with ``OFF`` only the process.
    """
    found = re.fullmatch(r"sqlite:///(?P<path>[^?]+)(\?synchronous=(?P<synchronous>FULL|OFF))?", conn_string)
    if found is None:
        raise ValueError(f"not like sqlite:///path/to/file: {conn_string!r}")
    return Connection(found["path"], found["synchronous"] or "FULL")


def _quoted(text: str) -> str:
    """Any id as letters, digits and ``_.-~%``."""
    return quote(text, safe="", errors="surrogatepass")


def _ids(key: str) -> tuple[str, str]:
    thread, checkpoint = (unquote(part, errors="surrogatepass") for part in key.split("/"))
    return thread, checkpoint


def _row(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    thread, checkpoint = _ids(key)
    about = {"created_at": entry["saved_at"], "metadata": entry["metadata"]}
    return {"thread_id": thread, "checkpoint_id": checkpoint, **about}


class MyCustomBackend(BaseCheckpointer):
    """Stores checkpoints under ``<quoted thread>/<quoted checkpoint>``."""

    def __init__(self, conn_string: str) -> None:
        self.conn_string = conn_string
        self._conn = connect(conn_string)

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return CheckpointerCapabilities(
            metadata_query=True,
            vacuum=True,
            branching=True,
            list_threads=True,
            list_with_metadata=True,
            persistent_checkpoint_ids=True,
        )

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        cp_id = uuid4().hex if checkpoint_id is None else checkpoint_id
        entry = {"state": state.to_checkpoint(), "metadata": metadata or {}, "saved_at": time.time()}
        await self._conn.put(f"{_quoted(thread_id)}/{_quoted(cp_id)}", entry)
        return cp_id

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        _, entry = await self._find(thread_id, checkpoint_id)
        return None if entry is None else AgentState.from_checkpoint(entry["state"])

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return [_ids(key)[1] for key in await self._conn.list_keys(f"{_quoted(thread_id)}/", limit)]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        prefix = f"{_quoted(thread_id)}/"
        keys = await self._conn.list_keys(prefix) if checkpoint_id is None else [prefix + _quoted(checkpoint_id)]
        return await self._conn.delete(keys) > 0

    async def close(self) -> None:
        await self._conn.close()

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        key, entry = await self._find(thread_id, checkpoint_id)
        return None if entry is None else _row(key, entry)

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        rows = await self.list_with_metadata(ALL)
        found = [row for row in rows if key in row["metadata"] and row["metadata"][key] == value]
        return found[: max(0, limit)]

    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        return [_row(key, entry) for key, entry in await self._conn.items("", limit)]

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        names = dict.fromkeys(_ids(key)[0] for key in await self._conn.list_keys(""))  # each once, newest first
        return [name for name in names if fnmatchcase(name, pattern)][: max(0, limit)]

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        entries = await self._conn.items(f"{_quoted(source_thread_id)}/")
        for key, entry in reversed(entries):  # oldest first: the order of the puts is the order of the copy
            await self._conn.put(f"{_quoted(dest_thread_id)}/{_quoted(_ids(key)[1])}", entry)
        return bool(entries)

    async def vacuum(self, older_than_days: int = 30) -> int:
        horizon = time.time() - older_than_days * 86_400
        return await self._conn.delete(
            [key for key, entry in await self._conn.items("") if entry["saved_at"] < horizon]
        )

    async def _find(self, thread_id: str, checkpoint_id: str | None) -> tuple[str, dict[str, Any] | None]:
        if checkpoint_id is not None:
            key = f"{_quoted(thread_id)}/{_quoted(checkpoint_id)}"
            return key, await self._conn.get(key)
        newest = await self._conn.items(f"{_quoted(thread_id)}/", 1)
        return newest[0] if newest else ("", None)

    def __repr__(self) -> str:
        return f"MyCustomBackend({self.conn_string!r})"


async def prove(directory: Path) -> None:
    """Run the contract kit on it: a fresh file per check, and a second handle where a check wants one."""
    numbers = count()
    report = await check_checkpointer_conformance(
        lambda: MyCustomBackend(f"sqlite:///{directory}/check-{next(numbers)}.db?synchronous=OFF"),
        reopen=lambda backend: MyCustomBackend(backend.conn_string),
    )
    print(f"{report} in {report.seconds:.1f} s")


async def use(directory: Path) -> None:
    """Put it behind memory and let an agent talk."""
    conn_string = f"sqlite:///{directory}/agents.db"
    async with TieredCheckpointer(BoundedMemoryCheckpointer(max_bytes="64MiB"), MyCustomBackend(conn_string)) as stack:
        model = ScriptedModel(["Hello, Ada.", "Ada."])
        agent = Agent(model=model, checkpointer=stack, context_window=8_000)
        for prompt in ("My name is Ada.", "What is my name?"):
            answer = await agent.arun(prompt, thread_id="support/42")
            print(f"> {prompt}\n{answer.message}")
        print(f"from memory: {stack.stats.hits}, from the backend: {stack.stats.misses}")

    backend = MyCustomBackend(conn_string)
    print(f"kept by the backend: {len(await backend.list_checkpoints('support/42'))} checkpoints of 'support/42'")
    await backend.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        await prove(Path(name))
        await use(Path(name))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main())
