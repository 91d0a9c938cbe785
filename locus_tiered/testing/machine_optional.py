"""The rules of the state machine for the operations that a checkpointer may lack.

Each is asked for only where its flag is declared; where it is not, asking must raise ``NotImplementedError``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.machine_rules import CoreRules, handles, ids, places, something_saved, threads
from locus_tiered.testing.model import scribble

__all__ = ["OptionalRules"]

_MANY = 10_000


def _has(flag: str) -> Callable[[Any], bool]:
    return lambda machine: bool(getattr(machine.handles[0].capabilities, flag))


class OptionalRules(CoreRules):
    """Listing threads and rows, metadata, copying, vacuuming."""

    @precondition(_has("branching"))
    @rule(handle=handles, source=threads, dest=threads)
    def copy_thread(self, handle: int, source: str, dest: str) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer)
            # The SDK's backends disagree about ids that both threads have: one skips, one overwrites.
            if source != dest and not set(self.model.ids(source)) & set(self.model.ids(dest)):
                copied = await checkpointer.copy_thread(source, dest)
                self.same(f"copy_thread({source!r}, {dest!r})", copied, self.model.copy(source, dest))

        self.run(step(self.handle(handle)))

    @precondition(_has("list_threads"))
    @rule(handle=handles, thread=threads)
    def list_threads(self, handle: int, thread: str) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer)
            patterns = ["*"]
            if thread[0].isalnum() and not self.forgives("patterns"):
                patterns.append(f"{thread[0]}*")
            for pattern in patterns:
                listed = await checkpointer.list_threads(_MANY, pattern)
                if self.forgives("emptied threads"):
                    listed = [name for name in listed if name in self.model.threads]
                want = [name for name in self.model.threads if name.startswith(pattern[:-1])]
                self.same(f"list_threads(pattern={pattern!r})", sorted(listed), sorted(want))
            self.same(
                "list_threads(limit=1)",
                len(await checkpointer.list_threads(1)),
                min(1, len(self.model.threads)),
            )

        self.run(step(self.handle(handle)))

    def _check_row(self, row: Any, thread: str, name: str) -> None:
        saved = self.model.find(thread, name)
        assert saved is not None
        where = f"the row of checkpoint {name!r} of {thread!r}"
        assert isinstance(row, dict), f"{where} is {row!r}"
        self.same(where, (row.get("thread_id"), row.get("checkpoint_id")), (thread, name))
        self.same(f"{where}: metadata", row.get("metadata") or {}, saved.metadata)
        scribble(row)

    @precondition(_has("list_with_metadata"))
    @rule(handle=handles)
    def list_with_metadata(self, handle: int) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer)
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

        self.run(step(self.handle(handle)))

    @precondition(_has("metadata_query"))
    @rule(handle=handles, thread=threads, name=st.none() | ids)
    def get_metadata(self, handle: int, thread: str, name: str | None) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer)
            newest = self.model.ids(thread)[:1]
            asked = {(thread, name): name or (newest[0] if newest else None)}
            asked |= {row: row[1] for row in self.model.rows()}
            for (place, wanted), answered in asked.items():
                row = await checkpointer.get_metadata(place, wanted)
                if answered is None or self.model.find(place, answered) is None:
                    self.same(f"get_metadata({place!r}, {wanted!r})", row, None)
                else:
                    self._check_row(row, place, answered)

        self.run(step(self.handle(handle)))

    @something_saved
    @precondition(_has("metadata_query"))
    @rule(handle=handles, place=places)
    def query_by_metadata(self, handle: int, place: int) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            saved = self.model.find(*self.row(place))
            await self.settle(checkpointer)
            for key, value in (saved.metadata if saved else {}).items():
                # Stores differ in what equals what across types (1, 1.0, true), and only there.
                if key and isinstance(value, str) and value:
                    rows = await checkpointer.query_by_metadata(key, value, _MANY)
                    found = sorted((row["thread_id"], row["checkpoint_id"]) for row in rows)
                    self.same(f"query_by_metadata({key!r}, {value!r})", found, self._matching(key, value))
            self.same("a query for nothing", await checkpointer.query_by_metadata("no such key", "x"), [])

        self.run(step(self.handle(handle)))

    def _matching(self, key: str, value: str) -> list[tuple[str, str]]:
        rows = ((row, self.model.find(*row)) for row in self.model.rows())
        return sorted(row for row, saved in rows if saved is not None and saved.metadata.get(key) == value)

    @precondition(_has("vacuum"))
    @rule(handle=handles)
    def vacuum_nothing(self, handle: int) -> None:
        self.same("vacuum(a century)", self.run(self.handle(handle).vacuum(36_500)), 0)

    @precondition(lambda self: not self.forgives("undeclared operations"))
    @rule(handle=handles, thread=threads)
    def ask_for_what_is_not_declared(self, handle: int, thread: str) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
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

        self.run(step(self.handle(handle)))
