"""The rules of the state machine for the operations that a checkpointer may lack.

Each is asked for only where its flag is declared; where it is not, asking must raise ``NotImplementedError``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.machine_rules import CoreRules, handles, ids, places, threads
from locus_tiered.testing.model import brief, scribble

__all__ = ["OptionalRules"]

_MANY = 10_000


class OptionalRules(CoreRules):
    """Listing threads and rows, metadata, copying, vacuuming."""

    @precondition(lambda self: self.handles[0].capabilities.branching)
    @rule(handle=handles, source=threads, dest=threads)
    def copy_thread(self, handle: int, source: str, dest: str) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer)
            # The SDK's backends disagree about ids that both threads have: one skips, one overwrites.
            if source != dest and not set(self.model.ids(source)) & set(self.model.ids(dest)):
                await self.look_first(checkpointer, dest)
                copied = await checkpointer.copy_thread(source, dest)
                self.touched(checkpointer, dest, self.model.ids(source))
                self.same(f"copy_thread({brief(source)}, {brief(dest)})", copied, self.model.copy(source, dest))

        self.run(step(self.handle(handle)))

    @rule(handle=handles, thread=threads, name=st.none() | ids, place=places)
    def ask(self, handle: int, thread: str, name: str | None, place: int) -> None:
        """Everything that can be asked besides load and list, and what must not be."""

        async def step(checkpointer: BaseCheckpointer) -> None:
            has = checkpointer.capabilities
            await self.settle(checkpointer)
            if has.list_threads:
                await self._list_threads(checkpointer, thread)
            if has.list_with_metadata:
                await self._list_with_metadata(checkpointer)
            if has.metadata_query:
                await self._get_metadata(checkpointer, thread, name)
                if self.model.threads:
                    await self._query_by_metadata(checkpointer, *self.row(place))
            if has.vacuum:
                self.same("vacuum(a century)", await checkpointer.vacuum(36_500), 0)
            if not self.forgives("undeclared operations"):
                await self._undeclared(checkpointer, thread)

        self.run(step(self.handle(handle)))

    async def _list_threads(self, checkpointer: BaseCheckpointer, thread: str) -> None:
        patterns = ["*"]
        if thread[0].isalnum() and not self.forgives("patterns"):
            patterns.append(f"{thread[0]}*")
        for pattern in patterns:
            listed = await checkpointer.list_threads(_MANY, pattern)
            if self.forgives("emptied threads"):
                listed = [name for name in listed if name in self.model.threads]
            want = [name for name in self.model.threads if name.startswith(pattern[:-1])]
            self.same(f"list_threads(pattern={brief(pattern)})", sorted(listed), sorted(want))
        if not self.forgives("emptied threads"):
            few = await checkpointer.list_threads(1)
            self.same("how many list_threads(limit=1) answers", len(few), min(1, len(self.model.threads)))

    def _check_row(self, row: Any, thread: str, name: str) -> None:
        saved = self.model.find(thread, name)
        assert saved is not None
        where = f"the row of checkpoint {brief(name)} of {brief(thread)}"
        assert isinstance(row, dict), f"{where} is {brief(row)}"
        self.same(where, (row.get("thread_id"), row.get("checkpoint_id")), (thread, name))
        self.same(f"{where}: metadata", row.get("metadata") or {}, saved.metadata)
        scribble(row)

    async def _list_with_metadata(self, checkpointer: BaseCheckpointer) -> None:
        rows = await checkpointer.list_with_metadata(_MANY)
        listed = [(row["thread_id"], row["checkpoint_id"]) for row in rows]
        self.same("the rows of list_with_metadata", sorted(listed), sorted(self.model.rows()))
        if not self.forgives("row order"):
            # Newest first; across threads that is for clocks to say, within one it is law 2.
            by_thread = sorted(listed, key=lambda row: row[0])
            want = sorted(self.model.rows(), key=lambda row: row[0])
            self.same("the order of list_with_metadata within threads", by_thread, want)
        for row, (thread, name) in zip(rows, listed, strict=True):
            self._check_row(row, thread, name)

    async def _get_metadata(self, checkpointer: BaseCheckpointer, thread: str, name: str | None) -> None:
        newest = self.model.ids(thread)[:1]
        asked = {(thread, name): name or (newest[0] if newest else None)}
        asked |= {row: row[1] for row in self.model.rows()}
        for (where, wanted), expected in asked.items():
            row = await checkpointer.get_metadata(where, wanted)
            if expected is None or self.model.find(where, expected) is None:
                self.same(f"get_metadata({brief(where)}, {brief(wanted)})", row, None)
            else:
                self._check_row(row, where, expected)

    async def _query_by_metadata(self, checkpointer: BaseCheckpointer, thread: str, name: str) -> None:
        saved = self.model.find(thread, name)
        for key, value in (saved.metadata if saved else {}).items():
            # Stores differ in what equals what across types (1, 1.0, true), and only there.
            if key and isinstance(value, str) and value:
                rows = await checkpointer.query_by_metadata(key, value, _MANY)
                found = sorted((row["thread_id"], row["checkpoint_id"]) for row in rows)
                self.same(f"query_by_metadata({brief(key)}, {brief(value)})", found, self._matching(key, value))
        self.same("a query for nothing", await checkpointer.query_by_metadata("no such key", "x"), [])

    def _matching(self, key: str, value: str) -> list[tuple[str, str]]:
        rows = ((row, self.model.find(*row)) for row in self.model.rows())
        return sorted(row for row, saved in rows if saved is not None and saved.metadata.get(key) == value)

    async def _undeclared(self, checkpointer: BaseCheckpointer, thread: str) -> None:
        attempts: Sequence[tuple[str, Callable[[], Awaitable[object]]]] = (
            ("search", lambda: checkpointer.search("x")),
            ("metadata_query", lambda: checkpointer.query_by_metadata("k", "v")),
            ("metadata_query", lambda: checkpointer.get_metadata(thread)),
            ("vacuum", lambda: checkpointer.vacuum(36_500)),
            ("branching", lambda: checkpointer.copy_thread(thread, "a copy")),
            ("list_threads", lambda: checkpointer.list_threads()),
            ("list_with_metadata", lambda: checkpointer.list_with_metadata()),
        )
        for flag, attempt in attempts:
            if not getattr(checkpointer.capabilities, flag):
                try:
                    await attempt()
                except NotImplementedError:
                    continue
                raise AssertionError(f"{flag} is not declared, and yet works")
