"""``DirectoryCheckpointer``: one readable JSON file per checkpoint, safe against power loss and other processes.

It promises: an acknowledged save is on the disk (``durability="power"``: fsync of file and directory;
``"process"``: it survives the process, not the machine); any id gets a file of its own inside the directory; the
newest checkpoint is known from one directory listing; several processes may share the directory; a damaged file
is reported, moved to ``.damaged/`` and hides no other.

It does not promise an order between two processes whose clocks differ by more than the time between their
saves, and it keeps no full-text index. It refuses nothing because of a full budget: it evicts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, Literal, TypeVar

from aiofiles.os import wrap

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.classification import classify
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import (
    BackendError,
    CheckpointTooLarge,
    CorruptCheckpoint,
    StackConfigError,
    shorten,
)
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import construction
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    Delete,
    Head,
    ListCheckpoints,
    ListThreads,
    ListWithMetadata,
    Load,
    QueryByMetadata,
    Row,
    Save,
    Vacuum,
)
from locus_tiered.core.signals import emit
from locus_tiered.core.threads import threads
from locus_tiered.core.traits import ORDINARY, Traits
from locus_tiered.core.units import DAY, parse_bytes, positive_seconds, show_bytes
from locus_tiered.stores.base import Store, matching, row_of, same_value
from locus_tiered.stores.filenames import UNSTAMPED, Named, quote_id
from locus_tiered.stores.files import Damaged, Files

__all__ = ["DirectoryCheckpointer"]

logger = logger_for(__name__)

T = TypeVar("T")

_SETTLE_SECONDS = 10.0
_LEFT_OVER_SECONDS = 3600.0  # no write takes that long
_AFTER_EVICTION = 0.9  # of the budget


class DirectoryCheckpointer(Store):
    """Checkpoints as files below one directory.

    Args:
        path: The directory; made on first use.
        max_bytes: The budget, in bytes or like ``"10GiB"``; least recently used checkpoints go first, and a
            thread's newest goes only with the whole thread. ``None``: no bound.
        ttl: Seconds after which a checkpoint is gone. ``None``: never.
        durability: ``"power"``: a save returns when it would survive a power cut. ``"process"``: when it
            would survive the process (faster; for a near tier of something durable).

    Files are read and written by aiofiles, on threads of this library's own, never on the event loop. Errors of the
    file system are :class:`BackendError`; a cancelled save goes on to its end, and the next one of its thread waits
    for it.
    """

    _traits = ORDINARY  # as long as nobody knows the path

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int | str | None = None,
        ttl: float | None = None,
        durability: Literal["power", "process"] = "power",
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(name=name, clock=clock)
        if durability not in ("power", "process"):
            raise StackConfigError(f"durability={shorten(durability)}", hint='write "power" or "process"')
        if not isinstance(path, str | os.PathLike) or not str(path) or "\0" in str(path):
            raise StackConfigError(f"path={shorten(path)} is not a directory", hint="pass a path")
        self.path = Path(path)
        self.max_bytes = None if max_bytes is None else parse_bytes(max_bytes, "max_bytes")
        self.ttl = positive_seconds(ttl, "ttl")
        self.durability = durability
        self._files = Files(self.path, durability == "power")
        with suppress(OSError):  # the working directory is gone
            home = f"checkpoints in {self.path.resolve()}"
            self._traits = Traits(home=home, home_is_unique=True, expires_after=self.ttl)
        self._lanes = Lanes()
        self._identity: tuple[int, int] | None = None  # of the directory, once it was there
        self._swept = False
        self._size: int | None = None  # bytes below it, as far as this process knows

    @property
    def expires(self) -> bool:
        return self.ttl is not None

    @property
    def traits(self) -> Traits:
        return self._traits

    async def _on_disk(self, operation: str, thread_id: str | None, work: Callable[..., T], *args: Any) -> T:
        try:
            result: T = await wrap(copy_context().run)(work, *args, executor=threads())
            return result
        except OSError as error:
            about = "" if thread_id is None else f" of thread {shorten(thread_id)}"
            safe = "what was acknowledged before is untouched"
            raise BackendError(
                f"{self.name} failed during {operation}{about} ({type(error).__name__}, errno {error.errno}): {safe}. "
                "Look at the disk and the directory's permissions",
                member=self.name,
                operation=operation,
                temporary=classify(error).temporary,
            ) from error

    # -- changing ------------------------------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        if op.checkpoint is None:
            op = await self.freeze(op)
        checkpoint = op.checkpoint
        assert checkpoint is not None
        await checkpoint.body.encode()
        if self.max_bytes is not None and len(checkpoint.body.encoded) > self.max_bytes:
            raise CheckpointTooLarge(
                f"{self.name}: checkpoint {shorten(checkpoint.id)} of thread {shorten(checkpoint.thread_id)} has "
                f"{len(checkpoint.body.encoded)} bytes, more than the whole budget of {self.max_bytes}; it was not "
                "kept here. Raise max_bytes"
            )

        async def save() -> str:
            written = await self._on_disk("save", op.thread_id, self._write, checkpoint)
            if self.max_bytes is not None:
                await self._make_room(written)
            return checkpoint.id

        return await self._lanes.change(op.thread_id, save)

    async def on_delete(self, op: Delete) -> bool:
        async def delete() -> bool:
            if op.checkpoint_id is None:
                return await self._on_disk("delete", op.thread_id, self._files.delete_thread, op.thread_id)
            return await self._on_disk("delete", op.thread_id, self._files.delete, op.thread_id, op.checkpoint_id)

        return await self._lanes.change(op.thread_id, delete)

    async def on_vacuum(self, op: Vacuum) -> int:
        now = self._clock.wall()

        def vacuum() -> int:
            return sum(
                self._files.drop(folder, named)
                for _, folder, named in self._files.everything()
                if (at := self._files.saved_at(folder, named)) < now - op.older_than_days * DAY
                and (at < now - KEPT_DAYS * DAY or not self._is_ours(folder, named))
            )

        await self._on_disk("vacuum", None, self._files.sweep, self._clock.wall() - _LEFT_OVER_SECONDS)
        return await self._on_disk("vacuum", None, vacuum)

    def _is_ours(self, folder: str, named: Named) -> bool:
        """Whether the stack keeps it for itself: a tombstone has to last, whatever a vacuum goes by."""
        with suppress(Damaged):
            header = self._files.read_header(folder, named)
            return header is not None and header.thread_id.startswith(RESERVED)
        return False

    # -- reading -------------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        if op.checkpoint_id is None:
            return await self._on_disk("load", op.thread_id, self._load_newest, op.thread_id)
        return await self._on_disk("load", op.thread_id, self._load_one, op)

    async def on_head(self, op: Head) -> Entry | None:
        entries = await self._on_disk("head", op.thread_id, self._entries, op.thread_id, 1)
        return entries[0] if entries else None

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        return await self._on_disk("list_checkpoints", op.thread_id, self._entries, op.thread_id, op.limit)

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        def threads() -> list[str]:
            newest = []
            for folder in self._files.thread_folders():
                alive = self._alive(folder)
                if alive:
                    newest.append((alive[0].stamp, folder))
            newest.sort(reverse=True)
            ids = (self._files.thread_of(folder) for _, folder in newest)
            return matching((thread for thread in ids if thread is not None), op.pattern, op.limit)

        return await self._on_disk("list_threads", None, threads)

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        return await self._on_disk("list_with_metadata", None, self._rows, op.limit, lambda _: True)

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        def wanted(checkpoint: Checkpoint) -> bool:
            return op.key in checkpoint.metadata and same_value(checkpoint.metadata[op.key], op.value)

        return await self._on_disk("query_by_metadata", None, self._rows, op.limit, wanted)

    # -- on aiofiles' threads ------------------------------------------------------------------------

    def _alive(self, folder: str) -> list[Named]:
        """The folder's checkpoints, newest first; what has expired goes on the way."""
        names = self._files.names_in(folder)
        if self.ttl is None:
            return names
        alive = []
        for named in names:
            if self._is_expired(folder, named):
                self._files.drop(folder, named)
            else:
                alive.append(named)
        return alive

    def _is_expired(self, folder: str, named: Named) -> bool:
        return self.ttl is not None and self._clock.wall() - self._files.saved_at(folder, named) >= self.ttl

    def _write(self, checkpoint: Checkpoint) -> int:
        written = self._files.write(checkpoint, self._clock.wall())
        self._identity = self._files.identity()
        if not self._swept:
            self._swept = True
            self._files.sweep(self._clock.wall() - _LEFT_OVER_SECONDS)
        return written

    def _names(self, thread_id: str) -> list[Named]:
        names = self._alive(quote_id(thread_id))
        if not names:
            # A directory that was there and is another one now is a lost mount, not an empty store (law 7).
            identity = self._files.identity()
            if self._identity is not None and identity != self._identity:
                raise FileNotFoundError(2, "the directory was there and is gone", str(self.path))
            self._identity = identity
        return names

    def _entries(self, thread_id: str, limit: int) -> list[Entry]:
        entries = []
        for named in self._names(thread_id)[:limit]:
            checkpoint_id = named.id
            if checkpoint_id is None:
                try:
                    header = self._files.read_header(quote_id(thread_id), named)
                except Damaged as damage:
                    self._report(thread_id, named, damage)
                    continue
                if header is None:
                    continue
                checkpoint_id = header.id
            entries.append(Entry(checkpoint_id, None if named.stamp == UNSTAMPED else named.stamp))
        return entries

    def _load_newest(self, thread_id: str) -> Checkpoint | None:
        tried: set[str] = set()
        while True:
            named = next((each for each in self._names(thread_id) if each.file not in tried), None)
            if named is None:
                return None
            tried.add(named.file)
            try:
                found = self._files.read(thread_id, named)
            except Damaged as damage:
                self._report(thread_id, named, damage)
                continue
            if found is not None:
                self._used(thread_id, named)
                return found

    def _load_one(self, op: Load) -> Checkpoint | None:
        assert op.checkpoint_id is not None
        key = quote_id(op.checkpoint_id)
        for _ in range(5):  # a version may be replaced between listing and reading
            named = next((each for each in self._names(op.thread_id) if each.key == key), None)
            if named is None:
                if self._files.is_quarantined(op.thread_id, op.checkpoint_id):
                    raise self._corrupt(op.thread_id, op.checkpoint_id, "it was found damaged before")
                return None
            if op.stamp is not None and named.stamp != op.stamp:
                return None
            try:
                found = self._files.read(op.thread_id, named)
            except Damaged as damage:
                self._report(op.thread_id, named, damage)
                raise self._corrupt(op.thread_id, op.checkpoint_id, str(damage)) from damage
            if found is not None:
                self._used(op.thread_id, named)
                return found
        return None

    def _used(self, thread_id: str, named: Named) -> None:
        if self.max_bytes is not None:
            self._files.touch(thread_id, named)

    def _rows(self, limit: int, wanted: Callable[[Checkpoint], bool]) -> list[Row]:
        rows: list[Row] = []
        for _, folder, named in self._files.everything():
            if len(rows) == limit:
                break
            try:
                header = self._files.read_header(folder, named)
            except Damaged:
                continue  # a load of it reports it
            saved_at, expired = self._files.saved_at(folder, named), self._is_expired(folder, named)
            if header is None or expired or header.thread_id.startswith(RESERVED):
                continue
            if wanted(header):
                rows.append(row_of(header, saved_at))
        return rows

    # -- damage --------------------------------------------------------------------------------------

    def _report(self, thread_id: str, named: Named, damage: Damaged) -> None:
        moved = self._files.quarantine(thread_id, named)
        logger.error(
            "%s: damaged checkpoint of thread %s: %s; moved to %s",
            self.name,
            shorten(thread_id),
            damage,
            moved,
        )
        emit("store.damaged", self.name, thread_id)

    def _corrupt(self, thread_id: str, checkpoint_id: str, what: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"{self.name}: checkpoint {shorten(checkpoint_id)} of thread {shorten(thread_id)} is damaged: {what}. The "
            "file is kept below .damaged/; other checkpoints of the thread are untouched",
            member=self.name,
            thread_id=thread_id,
            checkpoint_id=checkpoint_id,
        )

    # -- the budget ----------------------------------------------------------------------------------

    async def _make_room(self, written: int) -> None:
        assert self.max_bytes is not None
        if self._size is not None and self._size + written <= self.max_bytes:
            self._size += written
            return
        self._size = await self._on_disk("evict", None, self._evict, self.max_bytes)

    def _evict(self, budget: int) -> int:
        """Measure everything; if it is too much, let the least recently used go. Answers the bytes left."""
        found = sorted(self._files.sizes())
        total = sum(size for _, size, _, _ in found)
        if total <= budget:
            return total
        by_folder: dict[str, list[tuple[int, Named]]] = {}
        for _, size, folder, named in found:
            by_folder.setdefault(folder, []).append((size, named))
        gone: set[tuple[str, str]] = set()
        for _, _, folder, named in found:
            if total <= budget * _AFTER_EVICTION:
                break
            newest = max(each.stamp for _, each in by_folder[folder])
            victims = by_folder[folder] if named.stamp == newest else [
                pair for pair in by_folder[folder] if pair[1] == named
            ]  # fmt: skip
            for size, victim in victims:
                if (folder, victim.file) not in gone:
                    gone.add((folder, victim.file))
                    self._files.drop(folder, victim)
                    total -= size
        emit("cache.evicted", self.name, None, checkpoints=len(gone))
        return total

    async def close(self) -> None:
        """Wait for saves whose callers have left."""
        left = await self._lanes.settle(_SETTLE_SECONDS)
        if left:
            logger.warning("%s: closed with %d writes still running", self.name, left)

    def __repr__(self) -> str:
        return construction(
            self,
            str(self.path),
            max_bytes=None if self.max_bytes is None else show_bytes(self.max_bytes),
            ttl=self.ttl,
            durability=None if self.durability == "power" else self.durability,
        )
