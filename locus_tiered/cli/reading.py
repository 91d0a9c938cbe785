"""Looking into a stack without changing it.

A load through a stack fills its near tiers, mends replicas and takes over journals. :class:`Reader` therefore asks
the places below those layers themselves, and puts their answers together by stamps, as the stack would.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Iterable, Sequence
from typing import TypeVar

from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened, Place
from locus_tiered.cli.text import one_line
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import AttemptTimeout, BackendError, CapabilityMissing, CorruptCheckpoint, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import MOST
from locus_tiered.core.operations import ListCheckpoints, ListThreads, Load, Operation
from locus_tiered.core.stamp import is_stamp
from locus_tiered.core.traits import Traits

__all__ = ["Reader", "ask", "entries_of", "hung", "in_order", "load_from", "threads_of"]

R = TypeVar("R")


hung: set[str] = set()
"""Places of this process that did not answer in time: a call may still be running in a thread."""


async def ask(place: Place, operation: Operation[R], timeout: float) -> R:
    """One call on one place, in at most ``timeout`` seconds; what fails is a :class:`BackendError`."""
    try:
        async with asyncio.timeout(timeout):
            return await place.layer.handle(operation)
    except TimeoutError:
        hung.add(place.name)
        raise AttemptTimeout(
            f"{place.name} did not answer {operation.name} within {timeout:g} s",
            member=place.name,
            operation=operation.name,
            temporary=True,
        ) from None


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Each id once, with its greatest stamp, newest first; those without a stamp come last, as they are listed."""
    newest: dict[str, Entry] = {}
    for entry in entries:
        held = newest.get(entry.id)
        if held is None or (entry.stamp or "") > (held.stamp or ""):
            newest[entry.id] = entry
    return sorted(newest.values(), key=lambda entry: entry.stamp or "", reverse=True)


async def entries_of(place: Place, thread: str, timeout: float) -> list[Entry]:
    """The thread's checkpoints in one place, newest first."""
    return await ask(place, ListCheckpoints(thread, MOST, ordered=True), timeout)


async def load_from(place: Place, thread: str, entry: Entry, timeout: float) -> Checkpoint | None:
    """One checkpoint from one place; :class:`CorruptCheckpoint` when it is damaged there.

    One without an envelope whose id is a stamp (it was copied out of a stack) is ordered by its id, as it is listed.
    """
    found = await ask(place, Load(thread, entry.id), timeout)
    if found is not None and found.stamp is None:
        return found.moved(id=entry.id, stamp=entry.id if is_stamp(entry.id) else None)
    return found


async def threads_of(place: Place, pattern: str, timeout: float) -> list[str]:
    """The threads of one place; :class:`CapabilityMissing` where it cannot list them."""
    verdict = place.layer.explain()["list_threads"]
    if not verdict:
        raise CapabilityMissing(f"{place.name} cannot list its threads: {verdict.reason}")
    # Listed whole, and matched here: what a pattern means differs from backend to backend.
    found = await ask(place, ListThreads(MOST, "*"), timeout)
    return [thread for thread in found if not thread.startswith(RESERVED) and fnmatch.fnmatchcase(thread, pattern)]


class Reader:
    """The truth of a stack, read only.

    ``unreachable`` collects, by name, the places that failed while others could answer; when all fail, the error is
    raised. ``timeout``: seconds that one call on one place may take.
    """

    def __init__(self, opened: Opened, *, timeout: float) -> None:
        self.name = opened.name
        self.places = opened.places
        self.truth = [place for place in self.places if place.role != "near"]
        self.timeout = timeout
        self.unreachable: dict[str, str] = {}

    @property
    def traits(self) -> tuple[Traits, ...]:
        """What is peculiar about those who hold the truth."""
        return tuple(place.layer.traits for place in self.truth)

    def up(self, places: Sequence[Place]) -> list[Place]:
        """Those of ``places`` that have not failed yet."""
        return [place for place in places if place.name not in self.unreachable]

    def failed(self, place: Place, error: Exception) -> None:
        """Note that a place failed; it is not asked again."""
        self.unreachable[place.name] = one_line(str(error), 300)

    async def threads(self, pattern: str = "*") -> list[str]:
        """The ids of all threads that match; :class:`Failure` where nobody can list them."""
        found: dict[str, None] = {}
        last: Exception | None = None
        able = [place for place in self.truth if place.layer.explain()["list_threads"]]
        if not able:
            verdict = self.truth[0].layer.explain()["list_threads"]
            raise Failure(
                f"{self.truth[0].name} cannot list its threads: {verdict.reason}",
                Exit.INCAPABLE,
                hint="name them: --thread ID (may be given several times)",
            )
        for place in self.up(able):
            try:
                found |= dict.fromkeys(await threads_of(place, pattern, self.timeout))
            except BackendError as error:
                last = error
                self.failed(place, error)
        if last is not None and not self.up(able):
            raise last
        return list(found)

    async def entries(self, thread: str) -> list[Entry]:
        """All checkpoints of a thread, newest first."""
        last: Exception | None = None
        found: list[Entry] = []
        for place in self.up(self.truth):
            try:
                found += await entries_of(place, thread, self.timeout)
            except BackendError as error:
                last = error
                self.failed(place, error)
        if not self.up(self.truth):
            raise last or self._all_failed()
        return found if len(self.truth) == 1 else in_order(found)

    async def load(self, thread: str, entry: Entry) -> Checkpoint | None:
        """One checkpoint, from the first place that has it undamaged."""
        last: Exception | None = None
        for place in self.up(self.truth):
            try:
                found = await load_from(place, thread, entry, self.timeout)
            except CorruptCheckpoint as error:
                last = error
                continue
            except BackendError as error:
                last = error
                self.failed(place, error)
                continue
            if found is not None and (found.stamp or "") >= (entry.stamp or ""):
                return found
        if last is not None:
            raise last
        if not self.up(self.truth):
            raise self._all_failed()
        return None

    def _all_failed(self) -> BackendError:
        name, message = next(iter(self.unreachable.items()))
        return BackendError(message, member=name, operation="load", temporary=True)

    async def find(self, thread: str, wanted: str | None) -> Entry:
        """The entry that a user means: the newest, a whole id, or the only one that starts so.

        ``newest`` and ``newest~2`` (two before it) are understood too. :class:`Failure` when there is none.
        """
        entries = await self.entries(thread)
        if not entries:
            raise Failure(f"thread {shorten(thread)} has no checkpoint in {self.name}", Exit.FOUND)
        if wanted is None:
            return entries[0]
        exact = [entry for entry in entries if entry.id == wanted]
        if exact:
            return exact[0]
        if wanted == "newest" or wanted.startswith("newest~"):
            back = wanted.removeprefix("newest").removeprefix("~") or "0"
            if not back.isdecimal():
                raise Failure(f"{wanted!r}: write newest~1 for the one before the newest", Exit.USAGE)
            if int(back) >= len(entries):
                raise Failure(f"thread {shorten(thread)} has only {len(entries)} checkpoints", Exit.FOUND)
            return entries[int(back)]
        begin = [entry for entry in entries if entry.id.startswith(wanted)]
        if len(begin) == 1:
            return begin[0]
        if begin:
            raise Failure(
                f"{len(begin)} checkpoints of thread {shorten(thread)} start with {wanted!r}",
                Exit.USAGE,
                hint=f"for example {begin[0].id} and {begin[1].id}: write more of the id",
            )
        raise Failure(
            f"thread {shorten(thread)} has no checkpoint {shorten(wanted)}",
            Exit.FOUND,
            hint=f"locus-tiered ls {self.name} {thread} shows all {len(entries)}",
        )
