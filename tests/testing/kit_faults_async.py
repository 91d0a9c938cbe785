"""More stores with one fault each: ids that are mixed up, calls at the same time, cancellation, event loops."""

from __future__ import annotations

import asyncio
import posixpath
import unicodedata
from typing import Any

from locus.core.state import AgentState

from tests.testing.kit_faults import spoils
from tests.testing.kit_stores import ReferenceStore

# -- ids ------------------------------------------------------------------------------------------


class ManglesIds(ReferenceStore):
    """Stores under another name than it was given."""

    def thread(self, thread_id: str) -> str:
        return self.mangle(thread_id)

    def checkpoint(self, checkpoint_id: str | None) -> str | None:
        return None if checkpoint_id is None else self.mangle(checkpoint_id)

    def mangle(self, text: str) -> str:
        return text

    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        name = await super().save(state, self.thread(thread_id), self.checkpoint(checkpoint_id), *rest)
        return checkpoint_id or name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await super().load(self.thread(thread_id), self.checkpoint(checkpoint_id))

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await super().list_checkpoints(self.thread(thread_id), limit)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await super().delete(self.thread(thread_id), self.checkpoint(checkpoint_id))


@spoils("thread_ids_with_separators", "checkpoint_ids_with_separators", "list_threads_gives_ids_back")
class TakesSlashForUnderscore(ManglesIds):
    def mangle(self, text: str) -> str:
        return text.replace("/", "_")


@spoils("thread_ids_of_dots", "checkpoint_ids_of_dots")
class NormalisesPaths(ManglesIds):
    def mangle(self, text: str) -> str:
        return posixpath.normpath(text)


@spoils("thread_ids_that_look_internal", "checkpoint_ids_that_look_internal")
class DropsSuffixes(ManglesIds):
    def mangle(self, text: str) -> str:
        return text.removesuffix(".meta")


@spoils("thread_ids_that_are_long", "checkpoint_ids_that_are_long")
class CutsIds(ManglesIds):
    def mangle(self, text: str) -> str:
        return text[:255]


@spoils("thread_ids_in_unicode", "checkpoint_ids_in_unicode")
class NormalisesUnicode(ManglesIds):
    def mangle(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)


@spoils("thread_ids_with_blanks", "checkpoint_ids_with_blanks")
class Strips(ManglesIds):
    def mangle(self, text: str) -> str:
        return text.strip()


@spoils("thread_ids_with_nul", "checkpoint_ids_with_nul")
class EndsAtNul(ManglesIds):
    def mangle(self, text: str) -> str:
        return text.split("\0")[0]


@spoils("thread_ids_with_surrogates", "checkpoint_ids_with_surrogates")
class ReplacesSurrogates(ManglesIds):
    def mangle(self, text: str) -> str:
        return text.encode("utf-8", "replace").decode()


@spoils("pairs_that_join_alike")
class JoinsKeys(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        for thread, name in self.newest_first():
            if f"{thread}:{name}" == f"{thread_id}:{checkpoint_id}":
                return await super().load(thread, name)
        return await super().load(thread_id, checkpoint_id)


@spoils("empty_thread_id")
class EmptyIsTheRoot(ReferenceStore):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if not thread_id:
            self.rows.clear()
        return await super().delete(thread_id, checkpoint_id)


@spoils("empty_checkpoint_id")
class EmptyIsNone(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await super().load(thread_id, checkpoint_id or None)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await super().delete(thread_id, checkpoint_id or None)


# -- calls at the same time -----------------------------------------------------------------------


@spoils("first_calls_at_once")
class ConnectsTwice(ReferenceStore):
    connected = False

    async def save(self, *arguments: Any, **named: Any) -> str:
        if not self.connected:
            await asyncio.sleep(0)
            if self.connected:
                raise RuntimeError("the table exists already")
            self.connected = True
        return await super().save(*arguments, **named)


@spoils("saves_at_once_are_all_kept", "two_handles_lose_nothing")
class RewritesAnIndex(ReferenceStore):
    """Read, change and write of one row for all ids of a thread, with a pause in between."""

    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.index: dict[str, list[str]] = on.index if isinstance(on, RewritesAnIndex) else {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        name = await super().save(state, thread_id, *rest, **named)
        names = [other for other in self.index.get(thread_id, []) if other != name]
        await asyncio.sleep(0)
        self.index[thread_id] = [name, *names]
        return name

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return self.index.get(thread_id, [])[:limit]


@spoils("saves_at_once_agree_on_the_newest")
class PointsAtTheSlowest(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.latest: dict[str, str] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        name = await super().save(state, thread_id, *rest, **named)
        for _ in range(len(self.rows) % 3):
            await asyncio.sleep(0)
        self.latest[thread_id] = name
        return name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await super().load(thread_id, checkpoint_id or self.latest.get(thread_id))


@spoils("threads_at_once")
class RemembersTheCurrentThread(ReferenceStore):
    current = ""

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        self.current = thread_id
        await asyncio.sleep(0)
        return await super().save(state, self.current, *rest, **named)


@spoils("reads_beside_writes")
class DeletesBeforeItWrites(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        self.rows.pop((thread_id, checkpoint_id or ""), None)
        await asyncio.sleep(0)
        return await super().save(state, thread_id, checkpoint_id, *rest)


@spoils("ids_persist")
class StartsEmpty(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__()


@spoils("two_handles_see_each_others_newest", "two_handles_agree_on_deletes", "two_handles_forget_deleted_ids")
class CachesForever(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.cache: dict[tuple[str, str | None], AgentState] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        self.cache[thread_id, None] = state
        return await super().save(state, thread_id, *rest, **named)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        state = self.cache.get((thread_id, checkpoint_id)) or await super().load(thread_id, checkpoint_id)
        if state is not None:
            self.cache[thread_id, checkpoint_id] = state
        return state


# -- cancellation and event loops -----------------------------------------------------------------


@spoils("cancelled_save", "cancelled_delete")
class HasTwoHalves(ReferenceStore):
    """A checkpoint and its place in the list are two writes."""

    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.listed: set[tuple[str, str]] = set()

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        name = await super().save(state, thread_id, *rest, **named)
        await asyncio.sleep(0)
        self.listed.add((thread_id, name))
        return name

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        names = await super().list_checkpoints(thread_id, 1000)
        return [name for name in names if (thread_id, name) in self.listed][:limit]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self.listed.discard((thread_id, checkpoint_id or ""))
        await asyncio.sleep(0)
        return await super().delete(thread_id, checkpoint_id)


@spoils("cancelled_load")
class StaysBusy(ReferenceStore):
    busy = False

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if self.busy:
            raise RuntimeError("another operation is in progress")
        self.busy = True
        await asyncio.sleep(0)
        self.busy = False
        return await super().load(thread_id, checkpoint_id)


@spoils("cancelling_one_of_two")
class SharesOneFlight(ReferenceStore):
    flight: asyncio.Task[AgentState | None] | None = None

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is not None:
            return await super().load(thread_id, checkpoint_id)
        if self.flight is None or self.flight.done():
            self.flight = asyncio.create_task(self._load(thread_id))
        return await self.flight

    async def _load(self, thread_id: str) -> AgentState | None:
        await asyncio.sleep(0)
        return await super().load(thread_id)


class SwallowsCancellation(ReferenceStore):
    """No check of its own: ``cancelled_load`` finds it too."""

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass
        return await super().load(thread_id, checkpoint_id)


@spoils("close_before_use", "close_and_use_again")
class ClosesForGood(ReferenceStore):
    closed = False

    async def close(self) -> None:
        self.closed = True

    async def save(self, *arguments: Any, **named: Any) -> str:
        if self.closed:
            raise RuntimeError("this store is closed")
        return await super().save(*arguments, **named)


@spoils("second_loop_after_close", "second_loop_without_close")
class LocksInOneLoop(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.lock = asyncio.Lock()

    async def save(self, *arguments: Any, **named: Any) -> str:
        async with self.lock:
            await asyncio.sleep(0)
            return await super().save(*arguments, **named)
