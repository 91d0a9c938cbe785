"""The reading half of replication: who is asked, who is believed, and what counts as a no.

A replica is not believed about a thread while a hint for it waits (law 6). One that was away for longer than
tombstones are kept is *fenced*: it is written to, has no vote and is not read from until ``scrub()`` has compared it.
A no is an answer of the whole only when so many replicas say it that no quorum of writes can have missed them all
(N - W + 1; Gifford, Weighted Voting for Replicated Data, SOSP 1979).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.errors import (
    BackendError,
    CorruptCheckpoint,
    LocusTieredError,
    QuorumError,
    StackConfigError,
    shorten,
)
from locus_tiered.core.floors import Floors
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.layer import MOST
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    Exists,
    GetMetadata,
    Head,
    ListCheckpoints,
    Load,
    Operation,
    Row,
    Save,
)
from locus_tiered.core.signals import emit
from locus_tiered.layers.conflicts import Conflicts
from locus_tiered.layers.heartbeat import Heartbeats
from locus_tiered.layers.latency import HedgeBudget
from locus_tiered.layers.pending import last_word, overlay
from locus_tiered.layers.quorum import Answers, ask_until, described
from locus_tiered.layers.replica import Replica
from locus_tiered.layers.replicated_options import check_read
from locus_tiered.layers.replicated_rows import ReplicatedRows
from locus_tiered.layers.tombstones import Tombstones

__all__ = ["ReplicatedReads"]

logger = logger_for(__name__)

T = TypeVar("T")


class _Ready:
    """Whether this event loop has opened the hints and looked at the heartbeats."""

    done = False


class ReplicatedReads(ReplicatedRows, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`, which is this and the changes."""

    tombstones: Tombstones

    def _begin(self, replicas: Sequence[Replica], votes: int, read: object) -> None:
        self.read = check_read(read)
        self._replicas, self._votes = tuple(replicas), votes
        self._noes = len(replicas) - votes + 1
        self._floors = Floors()
        self._conflicts = Conflicts(lambda: self.name)
        self._hedge = HedgeBudget()
        self._heartbeats = Heartbeats(self._replicas, self._clock, self._stamps)
        self._is_ready: PerLoop[_Ready] = PerLoop(_Ready)
        self._to_look_at: dict[str, tuple[str, float]] = {}

    def _key(self, thread_id: str) -> str:
        key = self._scoped(thread_id)
        if self._partition is not None and self._partition(thread_id) is not None:
            careless = [replica.name for replica in self._replicas if replica.layer.traits.partition is None]
            if careless:
                raise StackConfigError(
                    f"{self.name}: replica {careless[0]} does not keep tenants apart, others do; nothing was done",
                    hint="give each tenant a stack of its own",
                )
        return key

    async def _ready(self) -> None:
        """Before the first operation in an event loop: hints of former processes, and who was away for too long."""
        ready = self._is_ready.get()
        if not ready.done:
            ready.done = True
            for replica in self._replicas:
                await replica.open(make=False)
        await self._heartbeats.beat()
        for replica in self._replicas:
            if replica.marked and not replica.is_resting:
                for key, thread_id in list(replica.marked.items()):
                    self._suspect(thread_id, key)

    async def _forget_loop(self) -> None:
        self._is_ready.drop()

    # -- who is asked --------------------------------------------------------------------------------

    def _order(self, key: str | None = None) -> list[Replica]:
        """The replicas that are believed (about a thread): those that work first, the fastest first."""
        alive = [each for each in self._replicas if not (each.fenced if key is None else each.is_doubtful(key))]
        return sorted(alive, key=lambda replica: (replica.is_resting, replica.latency.usual))

    async def _ask(
        self,
        op: Operation[Any],
        key: str,
        ask: Callable[[Replica], Any],
        good: Callable[[Replica, T], bool],
        *,
        order: Sequence[Replica] | None = None,
        at_once: int = 1,
    ) -> Answers[T]:
        hedged = self.read == "hedged" and at_once == 1
        if hedged:
            self._hedge.earn()
        return await ask_until(
            self._order(key) if order is None else order,
            ask,
            good,
            operation=op.name,
            at_once=at_once,
            hedge=self._hedge if hedged else None,
            enough=lambda answers: len(answers.others) >= self._noes,
        )

    def _unknown(self, op: Operation[Any], answers: Answers[Any], no: str) -> QuorumError:
        """Too few replicas answered to say no."""
        known = {replica.name: "fenced: it was away for too long" for replica in self._replicas if replica.fenced}
        known |= answers.known("has it", no)
        corrupt = [each for each in answers.errors.values() if isinstance(each, CorruptCheckpoint)]
        thread = shorten(op.threads[0]) if op.threads else ""
        error = QuorumError(
            f"{self.name}: {op.name} of thread {thread} needs {self._noes} replicas that say no, or one that has it "
            f"({described(known)}). Nothing was changed. Try again when more replicas are back",
            known=known,
            member=self.name,
            operation=op.name,
        )
        error.__cause__ = corrupt[0] if corrupt else next(iter(answers.errors.values()), None)
        return error

    # -- one checkpoint ------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        if op.checkpoint_id is None:
            return await self._newest(op.thread_id)
        await self._ready()
        key = self._key(op.thread_id)
        wanted = op.checkpoint_id

        async def load(replica: Replica) -> Checkpoint | None:
            last = last_word(replica.rows(key), wanted)
            if last is None or last.kind == "scrub":
                return await replica.ask(op)
            if last.kind == "delete":
                return None
            journal = replica.hints
            return None if journal is None else await journal.checkpoint(last)

        def right(_: Replica, found: Checkpoint | None) -> bool:
            return found is not None and (op.stamp is None or found.stamp == op.stamp)

        if self.read == "quorum" and op.stamp is None:
            return await self._load_by_quorum(op, key, load)
        answers: Answers[Checkpoint | None] = await self._ask(op, key, load, right)
        if answers.found is not None:
            if answers.others:
                self._suspect(op.thread_id, key)
            return answers.found[1]
        if len(answers.others) >= self._noes:
            return None
        damaged = [each for each in answers.errors.values() if isinstance(each, CorruptCheckpoint)]
        if damaged:
            raise damaged[0]
        raise self._unknown(op, answers, "has not got it")

    async def _load_by_quorum(self, op: Load, key: str, load: Callable[[Replica], Any]) -> Checkpoint | None:
        """The newest version of an id that any of so many replicas has."""
        answers: Answers[Checkpoint | None] = await self._ask(op, key, load, lambda *_: False, at_once=self._noes)
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "has not got it, or an older one")
        found = [each for each in answers.others.values() if each is not None]
        if not found:
            return None
        newest = max(found, key=lambda each: each.stamp or "")
        if len(found) < len(answers.others) or any(each.stamp != newest.stamp for each in found):
            if await self._is_buried(op.thread_id, newest.entry):
                return None
            await self._mend(op.thread_id, key, newest, answers.others)
        return newest

    async def _newest(self, thread_id: str) -> Checkpoint | None:
        for _ in range(1000):
            head = await self.on_head(Head(thread_id))
            if head is None:
                return None
            found = await self.on_load(Load(thread_id, head.id, head.stamp))
            if found is not None:
                return found
            self._floors.lower(self._key(thread_id), head)
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
                return await replica.ask(op)
            listed = overlay(await replica.entries(op.thread_id, key), rows)
            return listed[0] if listed else None

        if self.read == "quorum":
            found = await self._head_by_quorum(op, key, head)
        else:
            found = await self._head_by_one(op, key, head)
        if found is not None:
            self._floors.raise_to(key, found)
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
        answers: Answers[Entry | None] = await self._ask(op, key, head, lambda *_: False, at_once=self._noes)
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "answered")
        heads = [each for each in answers.others.values() if each is not None]
        if not heads:
            return await self._after_floor(op.thread_id, key, [])
        newest = max(heads, key=lambda entry: entry.stamp or "")
        if len(heads) == len(answers.others) and all(entry == newest for entry in heads):
            return await self._after_floor(op.thread_id, key, heads)
        # They differ: what one of them has may have been deleted, or may have been missed by the others.
        for entry in sorted(set(heads), key=lambda each: each.stamp or "", reverse=True):
            if await self._is_buried(op.thread_id, entry):
                continue
            found = await self._load_from(op.thread_id, entry, answers.others)
            if found is not None:
                await self._mend(op.thread_id, key, found, answers.others)
                return entry
        return None

    async def _after_floor(self, thread_id: str, key: str, heads: list[Entry]) -> Entry | None:
        """The newest of ``heads``, unless this process has seen something newer that still exists."""
        newest = max(heads, key=lambda entry: entry.stamp or "", default=None)
        floor = self._floors.above(key, newest)
        if floor is not None:
            if await self.on_load(Load(thread_id, floor.id, floor.stamp)) is not None:
                return floor
            self._floors.lower(key, floor)
        return newest

    # -- mending what was read -----------------------------------------------------------------------

    async def _is_buried(self, thread_id: str, entry: Entry) -> bool:
        if thread_id.startswith(RESERVED):
            return False
        gone = await self.tombstones.among([(thread_id, None), (thread_id, entry.id)])
        return (entry.stamp or "") <= max(gone.values(), default="") if gone else False

    async def _load_from(self, thread_id: str, entry: Entry, replicas: Any) -> Checkpoint | None:
        for replica in replicas:
            try:
                found = await replica.ask(Load(thread_id, entry.id, entry.stamp))
            except (LocusTieredError, OSError):
                continue
            if found is not None:
                return found  # type: ignore[no-any-return]
        return None

    async def _mend(self, thread_id: str, key: str, found: Checkpoint, others: dict[Replica, Any]) -> None:
        """Have the replicas that were asked hold what is about to be answered."""
        for replica, answer in others.items():
            if answer is not None and answer.stamp is not None and answer.stamp >= (found.stamp or ""):
                continue
            try:
                await replica.put(key, Save(thread_id, None, found.id, None, found))
                emit("replica.mended", self.name, thread_id, tier=replica.name)
            except (LocusTieredError, OSError) as error:
                logger.warning("%s: %s could not be mended: %s", self.name, replica.name, type(error).__name__)
        self._suspect(thread_id, key)

    @abstractmethod
    def _suspect(self, thread_id: str, key: str) -> None:
        """The replicas differ about a thread: compare them soon."""

    # -- lists ---------------------------------------------------------------------------------------

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        await self._ready()
        key = self._key(op.thread_id)

        async def entries(replica: Replica) -> list[Entry]:
            rows = replica.rows(key)
            if not rows and not op.ordered and op.thread_id.startswith(RESERVED):
                return await replica.ask(ListCheckpoints(op.thread_id, MOST))
            listed = await replica.entries(op.thread_id, key)
            return overlay(listed, rows) if rows else listed

        def fresh(_: Replica, found: list[Entry]) -> bool:
            newest = found[0] if found else None
            return bool(found) and self._floors.above(key, newest) is None

        by_quorum = self.read == "quorum" or op.thread_id.startswith(RESERVED)
        answers: Answers[list[Entry]] = await self._ask(
            op, key, entries, (lambda *_: False) if by_quorum else fresh, at_once=self._noes if by_quorum else 1
        )
        if answers.found is not None:
            self._conflicts.seen(key, answers.found[1])
            return answers.found[1][: op.limit]
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "answered")
        listed = overlay([entry for each in answers.others.values() for entry in reversed(each)], ())
        if op.thread_id.startswith(RESERVED):
            return listed[: op.limit]
        sure = []
        for entry in listed:
            everywhere = all(entry in each for each in answers.others.values())
            if everywhere or not await self._is_buried(op.thread_id, entry):
                sure.append(entry)
        self._conflicts.seen(key, sure)
        return sure[: op.limit]

    async def on_exists(self, op: Exists) -> bool:
        if op.checkpoint_id is None:
            return await self.on_head(Head(op.thread_id)) is not None
        await self._ready()
        key = self._key(op.thread_id)
        wanted = op.checkpoint_id

        async def exists(replica: Replica) -> bool:
            last = last_word(replica.rows(key), wanted)
            return await replica.ask(op) if last is None or last.kind == "scrub" else last.kind == "save"

        answers: Answers[bool] = await self._ask(op, key, exists, lambda _, there: there)
        if answers.found is not None:
            return True
        if len(answers.others) < self._noes:
            raise self._unknown(op, answers, "has not got it")
        return False

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        checkpoint_id = op.checkpoint_id
        if checkpoint_id is None:
            head = await self.on_head(Head(op.thread_id))
            if head is None:
                return None
            checkpoint_id = head.id
        asked = GetMetadata(op.thread_id, checkpoint_id)
        await self._ready()
        key = self._key(op.thread_id)
        able = [replica for replica in self._order(key) if replica.layer.explain()["metadata_query"]]
        answers: Answers[Row | None] = await self._ask(
            asked, key, lambda replica: replica.ask(asked), lambda _, row: row is not None, order=able
        )
        if answers.found is not None:
            return answers.found[1]
        if not await self.on_exists(Exists(op.thread_id, checkpoint_id)):
            return None
        raise self._unknown(asked, answers, "has not got it")
