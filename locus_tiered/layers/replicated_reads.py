"""The reading half of replication: who is asked, who is believed, and what counts as a no.

A replica is not believed about a thread while a hint for it waits (law 6). One that was away for longer than
tombstones are kept is *fenced*: it is written to, has no vote and is not read from until ``scrub()`` has compared it.
A no is an answer of the whole only when so many replicas say it that no quorum of writes can have missed them all
(N - W + 1; Gifford, Weighted Voting for Replicated Data, SOSP 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.envelope import corrupt
from locus_tiered.core.errors import (
    BackendError,
    CorruptCheckpoint,
    LocusTieredError,
    shorten,
)
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    Exists,
    GetMetadata,
    Head,
    ListCheckpoints,
    Load,
    Row,
)
from locus_tiered.core.stamp import looks_random, stamp_seconds
from locus_tiered.layers.pending import last_word, newest_first, overlay
from locus_tiered.layers.quorum import Answers, newest_versions
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_base import ReplicatedBase
from locus_tiered.layers.tombstones import buries, graves_of
from locus_tiered.layers.versions import is_iteration_save
from locus_tiered.stores.base import row_of
from locus_tiered.stores.journal_rows import RowDamaged

__all__ = ["ReplicatedReads"]

logger = logger_for(__name__)

T = TypeVar("T")

_TRIES = 2  # more, of a newest that is listed and cannot be loaded


class ReplicatedReads(ReplicatedBase, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`, which is this and the changes."""

    # -- one checkpoint ------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        if op.checkpoint_id is None:
            return await self._newest(op.thread_id)
        await self._ready()
        key = self._key(op.thread_id)
        wanted = op.checkpoint_id

        async def load(replica: Replica) -> Checkpoint | None:
            found = await self._copy(replica, op, wanted, key)
            return None if found is None or self._graves.hold(key, found.entry) else found

        if op.stamp is None and (self.read == "quorum" or op.thread_id.startswith(RESERVED)):
            return self._saw(key, await self._load_by_quorum(op, key, load))
        least = self._told.of(key, wanted)

        def right(_: Replica, found: Checkpoint | None) -> bool:
            if found is None or op.stamp is not None:
                return found is not None and found.stamp == op.stamp
            return (found.stamp or "") >= least  # this process was told of that version: not of an older one any more

        answers: Answers[Checkpoint | None] = await self._ask(op, key, load, right)
        if answers.found is not None:
            if answers.others:
                self._suspect(op.thread_id, key)
            found = answers.found[1]
            damaged = [each for each, error in answers.errors.items() if isinstance(error, CorruptCheckpoint)]
            if damaged and found is not None:
                self._in_background(self._mend(op.thread_id, key, found, dict.fromkeys(damaged)))
            return self._saw(key, found)
        if len(answers.others) >= self._noes:
            if op.stamp is not None:
                return None
            if least:
                self._has_gone(key, Entry(wanted, least))
            older = [each for each in answers.others.values() if each is not None]
            if not older:
                await self._mind_graves(op.thread_id, key, wanted)
            return self._saw(key, max(older, key=lambda each: each.stamp or "", default=None))
        for error in answers.errors.values():
            if isinstance(error, CorruptCheckpoint):
                raise error
        raise self._unknown(op, answers, "has not got it")

    async def _copy(self, replica: Replica, op: Load, wanted: str, key: str) -> Checkpoint | None:
        """A checkpoint as a replica will have it once its hints were sent."""
        last = last_word(replica.rows(key), wanted)
        if last is None or last.kind == "scrub" or (last.kind == "save" and op.stamp not in (None, last.stamp)):
            return await replica.ask(op)
        again = last.id is None or not looks_random(wanted)  # anybody may have saved it since
        if again and last.stamp != op.stamp:
            there = None
            try:
                there = await replica.ask(op)
            except (LocusTieredError, OSError):
                if last.kind == "delete" or self.read == "quorum":
                    raise
            if there is not None and (there.stamp or "") > last.stamp:
                return there
        if last.kind == "delete":
            return None
        journal = replica.hints
        try:
            found = None if journal is None else await journal.checkpoint(last)
        except RowDamaged as damage:
            raise corrupt(replica.name, op.thread_id, wanted, f"a hint for it is damaged ({damage})") from damage
        if found is not None and self.read == "quorum" and await self._is_buried(op.thread_id, found.entry):
            return None  # somebody who has not got the hint has deleted it
        return found

    def _hinted(self, key: str, answers: Iterable[Replica]) -> set[Entry]:
        """What some of those who answered are only thought to have, because a hint for it waits."""
        return {row.entry for replica in answers for row in replica.rows(key) if row.kind == "save"}

    def _saw(self, key: str, found: Checkpoint | None) -> Checkpoint | None:
        """This process was told of a checkpoint: nothing less is answered to it from now on, and what it saves next is
        above it, whatever its clock says.
        """
        if found is not None:
            self._tell(key, [found.entry])
            self._is_below_the_next(key, found.entry)
        return found

    def _is_below_the_next(self, key: str, entry: Entry) -> None:
        """What this process saves next is above a checkpoint. Where it has not looked at the newest yet, it will."""
        if entry.stamp is not None and self._stamps.has_seen(key):
            self._stamps.observe(key, entry.stamp)

    async def _load_by_quorum(self, op: Load, key: str, load: Callable[[Replica], Any]) -> Checkpoint | None:
        """The newest version of an id that any of so many replicas has."""
        answers: Answers[Checkpoint | None] = await self._ask(op, key, load, lambda *_: False, at_once=self._noes)
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "has not got it, or an older one")
        found = [each for each in answers.others.values() if each is not None]
        if not found:
            await self._mind_graves(op.thread_id, key, op.checkpoint_id)
            return None
        newest = max(found, key=lambda each: each.stamp or "")
        if len(found) < len(answers.others) or any(each.stamp != newest.stamp for each in found):
            if await self._is_buried(op.thread_id, newest.entry):
                return None
            if not is_iteration_save(newest):  # those are not copied: see scrub
                await self._mend(op.thread_id, key, newest, answers.others)
        return newest

    async def _newest(self, thread_id: str) -> Checkpoint | None:
        before: list[Entry] = []
        for number in range(1000):
            head = await self.on_head(Head(thread_id))
            if head is None:
                return None
            found = await self.on_load(Load(thread_id, head.id, head.stamp))
            if found is not None:
                # What others in this process were told of meanwhile is not gone back behind; but not for ever.
                if number >= _TRIES or self._floors.above(self._key(thread_id), found.entry) is None:
                    return found
                continue
            self._has_gone(self._key(thread_id), head)
            if before.count(head) == _TRIES:
                break
            before.append(head)  # else somebody saves again and again, or deletes
        # It was never acknowledged, and the replica that lists it cannot tell what it was.
        for entry in await self.on_list_checkpoints(ListCheckpoints(thread_id, MOST, ordered=True)):
            found = await self.on_load(Load(thread_id, entry.id, entry.stamp))
            if found is not None:
                return found
        raise BackendError(
            f"{self.name}: the newest checkpoint of thread {shorten(thread_id)} was listed but could not be loaded, "
            "again and again; nothing was changed. Try again",
            member=self.name,
            operation="load",
            temporary=True,
        )

    # -- the newest ----------------------------------------------------------------------------------

    async def on_head(self, op: Head) -> Entry | None:
        await self._ready()
        key = self._key(op.thread_id)

        async def head(replica: Replica) -> Entry | None:
            rows = replica.rows(key)
            if not rows:
                found = await replica.ask(op)
                if found is None or not self._graves.hold(key, found):
                    return found
            listed = await self._entries(replica, op.thread_id, key)
            return listed[0] if listed else None

        if self.read == "quorum":
            found = await self._head_by_quorum(op, key, head)
        else:
            found = await self._head_by_one(op, key, head)
        if found is None:
            await self._mind_graves(op.thread_id, key)
        else:
            self._tell(key, [found])
            self._stamps.observe(key, found.stamp)
            self._conflicts.seen(key, [found])
        return found

    async def _head_by_one(self, op: Head, key: str, head: Callable[[Replica], Any]) -> Entry | None:
        def fresh(_: Replica, found: Entry | None) -> bool:
            return found is not None and self._floors.above(key, found) is None

        answers: Answers[Entry | None] = await self._ask(op, key, head, fresh)
        if answers.found is not None:
            if answers.others:
                self._suspect(op.thread_id, key)
            return answers.found[1]
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "has nothing newer than this process has seen")
        return await self._after_floor(
            op.thread_id, key, [each for each in answers.others.values() if each is not None]
        )

    async def _head_by_quorum(self, op: Head, key: str, head: Callable[[Replica], Any]) -> Entry | None:
        answers: Answers[Entry | None] = await self._ask(
            op, key, head, lambda *_: False, at_once=self._noes, by_lists=True
        )
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "answered")
        heads = [each for each in answers.others.values() if each is not None]
        if not heads:
            return await self._after_floor(op.thread_id, key, [])
        newest = max(heads, key=lambda entry: entry.stamp or "")
        agreed = len(heads) == len(answers.others) and all(entry == newest for entry in heads)
        if agreed and newest not in self._hinted(key, answers.others):
            return await self._after_floor(op.thread_id, key, heads)
        # They differ: what one of them has may have been deleted, or may have been missed by the others.
        gone = await self._is_buried(op.thread_id, newest)
        if agreed and not gone:
            return await self._after_floor(op.thread_id, key, heads)
        found = None if gone else await self.on_load(Load(op.thread_id, newest.id, newest.stamp))
        if found is not None:
            await self._mend_head(op.thread_id, key, found, answers.others)
            return await self._after_floor(op.thread_id, key, [newest])
        # It is gone, and hides what lies below it: the newest of that need not be among the heads.
        for entry in await self.on_list_checkpoints(ListCheckpoints(op.thread_id, MOST, ordered=True)):
            if entry == newest:
                continue
            found = await self.on_load(Load(op.thread_id, entry.id, entry.stamp))
            if found is not None:
                await self._mend_head(op.thread_id, key, found, answers.others)
                return await self._after_floor(op.thread_id, key, [entry])
        return await self._after_floor(op.thread_id, key, [])

    async def _mend_head(self, thread_id: str, key: str, found: Checkpoint, others: dict[Replica, Any]) -> None:
        """Have the others hold the newest, unless that is a step of a turn: it may be deleted by now, and no tombstone
        tells. Where it was acknowledged, so many have it that every quorum finds it.
        """
        if not is_iteration_save(found):
            await self._mend(thread_id, key, found, others)

    async def _after_floor(self, thread_id: str, key: str, heads: list[Entry]) -> Entry | None:
        """The newest of ``heads``, unless this process has seen something newer that still exists."""
        newest = max(heads, key=lambda entry: entry.stamp or "", default=None)
        floor = self._floors.above(key, newest)
        if floor is not None:
            there = await self.on_load(Load(thread_id, floor.id, floor.stamp)) is not None
            if there and not await self._is_buried(thread_id, floor):
                return floor
            self._has_gone(key, floor)
            await self._mind_graves(thread_id, key)
            if self._floors.above(key, newest) is not None:  # what it was told of before that: a list tells of all
                listed = await self.on_list_checkpoints(ListCheckpoints(thread_id, MOST, ordered=True))
                return listed[0] if listed else None
        return newest

    # -- lists ---------------------------------------------------------------------------------------

    async def _entries(self, replica: Replica, thread_id: str, key: str) -> list[Entry]:
        """A thread as a replica will have it once its hints were sent."""
        listed = await replica.entries(thread_id, key)
        rows = replica.rows(key)
        if rows:
            saved = {entry.id: entry.stamp or "" for entry in listed}
            # What somebody else has saved since under the same id stays.
            listed = overlay(
                listed, [row for row in rows if row.kind != "save" or saved.get(row.id or "", "") <= row.stamp]
            )
        return [entry for entry in listed if not self._graves.hold(key, entry)]

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        await self._ready()
        key = self._key(op.thread_id)

        async def entries(replica: Replica) -> list[Entry]:
            rows = replica.rows(key)
            if not rows and not op.ordered and op.thread_id.startswith(RESERVED):
                return await replica.ask(ListCheckpoints(op.thread_id, MOST))
            return await self._entries(replica, op.thread_id, key)

        def fresh(_: Replica, found: list[Entry]) -> bool:
            newest = found[0] if found else None
            return bool(found) and self._floors.above(key, newest) is None and not self._told.is_less(key, found)

        by_quorum = self.read == "quorum" or op.thread_id.startswith(RESERVED)
        answers: Answers[list[Entry]] = await self._ask(
            op,
            key,
            entries,
            (lambda *_: False) if by_quorum else fresh,
            at_once=self._noes if by_quorum else 1,
            by_lists=by_quorum,
        )
        if answers.found is not None:
            return self._listed(key, answers.found[1], op.limit)
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "answered")
        if op.thread_id.startswith(RESERVED):
            return newest_first(newest_versions(answers.others.values()).values())[: op.limit]
        sure = await self._sure(op.thread_id, key, answers)
        self._told.only(key, sure)
        if (floor := self._floors.of(key)) is not None and floor not in sure:
            self._has_gone(key, floor)
        return self._listed(key, sure, op.limit)

    async def _sure(self, thread_id: str, key: str, answers: Answers[list[Entry]]) -> list[Entry]:
        """What so many lists amount to, newest first: the newest versions, without what somebody has deleted."""
        listed = newest_first(newest_versions(answers.others.values()).values())
        hinted = self._hinted(key, answers.others)
        everywhere = set(listed).intersection(*answers.others.values())
        doubtful = {entry for entry in listed if entry in hinted or entry not in everywhere}
        gone = await self.tombstones.among(graves_of(thread_id, doubtful)) if doubtful else {}
        return [each for each in listed if each not in doubtful or not buries(gone, thread_id, each)]

    def _listed(self, key: str, entries: list[Entry], limit: int) -> list[Entry]:
        """This process was told of the first of these checkpoints, newest first."""
        self._conflicts.seen(key, entries)
        told = entries[:limit]
        if told:
            self._is_below_the_next(key, told[0])
        self._tell(key, told)
        return told

    async def on_exists(self, op: Exists) -> bool:
        if op.checkpoint_id is None:
            return await self.on_head(Head(op.thread_id)) is not None
        await self._ready()
        key = self._key(op.thread_id)
        wanted = op.checkpoint_id
        by_quorum = self.read == "quorum"

        async def exists(replica: Replica) -> bool:
            last = last_word(replica.rows(key), wanted)
            deleted = self._graves.stamp_of(key, wanted)
            if last is not None and last.kind == "save" and last.stamp > deleted:
                if not by_quorum or op.thread_id.startswith(RESERVED):
                    return True
                return await self._copy(replica, Load(op.thread_id, wanted), wanted, key) is not None
            if last is not None and last.kind == "delete":
                if last.id is not None and looks_random(wanted):
                    return False
                deleted = max(deleted, last.stamp)
            if not deleted:
                return await replica.ask(op)
            found = await replica.ask(Load(op.thread_id, wanted))
            return found is not None and (found.stamp or "") > deleted

        answers: Answers[bool] = await self._ask(
            op, key, exists, lambda _, there: there and not by_quorum, at_once=self._noes if by_quorum else 1
        )
        if answers.found is not None:
            return True
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "has not got it")
        said = set(answers.others.values())
        return said.pop() if len(said) == 1 else await self.on_load(Load(op.thread_id, wanted)) is not None

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        checkpoint_id = op.checkpoint_id
        if checkpoint_id is None:
            head = await self.on_head(Head(op.thread_id))
            if head is None:
                return None
            checkpoint_id = head.id
        elif not await self.on_exists(Exists(op.thread_id, checkpoint_id)):
            return None
        asked = GetMetadata(op.thread_id, checkpoint_id)
        await self._ready()
        key = self._key(op.thread_id)

        async def row(replica: Replica) -> Row | None:
            """As it will be once the replica's hints were sent."""
            last = last_word(replica.rows(key), asked.checkpoint_id or "")
            if last is None or last.kind == "scrub":
                return await replica.ask(asked)
            found = await self._copy(replica, Load(asked.thread_id, last.id), asked.checkpoint_id or "", key)
            if found is not None and last.kind == "save" and found.stamp == last.stamp:
                return row_of(found, stamp_seconds(last.stamp))
            return None if found is None else await replica.ask(asked)

        able = [replica for replica in self._order(key) if replica.layer.explain()["metadata_query"]]
        answers: Answers[Row | None] = await self._ask(asked, key, row, lambda _, found: found is not None, order=able)
        if answers.found is not None:
            return answers.found[1]
        if not await self.on_exists(Exists(op.thread_id, checkpoint_id)):
            return None
        raise self._unknown(asked, answers, "has not got it")
