"""``CachedCheckpointer``: a near tier in front of a checkpointer, coherent with it.

What it promises (``near`` holds copies, ``inner`` holds the truth):

* a save is acknowledged when ``inner`` has it; then it is put into ``near``. If that fails, or takes longer than
  ``near_timeout``, the save succeeds, and ``near`` is not believed about that id (law 6);
* the newest checkpoint is what ``inner`` says it is (``latest="validate"``: one small question, the body comes
  from ``near`` when it has it), or what this process knows (``"exclusive"``, or a number of seconds);
* ``None`` means that ``inner`` said so; there is no negative caching (law 7);
* a fill that raced a change of its thread is dropped (law 4); concurrent loads of one checkpoint are one load;
* what ``near`` held before this process started is compared with ``inner`` before it is believed by id.

It does not promise to notice that another process deleted a checkpoint, or saved its id again, when this one asks
for it by id and has seen it before (a hit by id is final), nor, with ``"exclusive"``, that another process saved.
"""

from __future__ import annotations

from typing import Literal

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import BackendError, StackConfigError, StaleRead, shorten
from locus_tiered.core.flights import Flights
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.layer import MOST, Layer, as_layer, construction
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import (
    CopyThread,
    Delete,
    Exists,
    GetMetadata,
    Head,
    ListCheckpoints,
    Load,
    Row,
    Save,
    Vacuum,
)
from locus_tiered.core.ordering import OrderingLayer
from locus_tiered.core.signals import emit
from locus_tiered.core.units import positive_seconds
from locus_tiered.layers.near import CacheStats, NearTier
from locus_tiered.layers.view import Unknown, View, Views
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

__all__ = ["CacheStats", "CachedCheckpointer", "Latest", "OnOutage"]

logger = logger_for(__name__)

Latest = Literal["validate", "exclusive"] | float
OnOutage = Literal["raise", "stale"]

_TRIES = 5  # looks at one head that does not load
_MOST_TRIES = 1000  # heads that go away one after the other, as an index of expired checkpoints shows them
_SETTLE_SECONDS = 5.0


def check_latest(latest: object) -> Latest:
    """``latest=`` as given by a user, or :class:`StackConfigError`."""
    if latest in ("validate", "exclusive"):
        return latest
    if isinstance(latest, int | float) and not isinstance(latest, bool) and latest >= 0:
        return float(latest)
    raise StackConfigError(
        f"latest={shorten(latest)} is not a way to read the newest checkpoint",
        hint='write "validate", "exclusive", or the seconds of staleness that you allow',
    )


class CachedCheckpointer(OrderingLayer):
    """A near tier in front of one checkpointer.

    Args:
        inner: Who holds the truth.
        near: Who holds copies; by default a ``BoundedMemoryCheckpointer`` of 256 MiB.
        latest: ``"validate"`` asks ``inner`` for its head and transfers the body only when it changed;
            ``"exclusive"`` trusts what this process knows (it must be the thread's only writer); a number
            trusts that for so many seconds.
        on_outage: When ``inner`` cannot be reached: ``"raise"``, or ``"stale"`` to answer with what is known
            and say so (log, signal, ``stats.stale``).
        near_timeout: Seconds that a call on ``near`` may take before the answer comes from ``inner``.

    A cancelled save or delete goes on to its end in the background, near tier included.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        *,
        near: BaseCheckpointer | None = None,
        latest: Latest = "validate",
        on_outage: OnOutage = "raise",
        name: str | None = None,
        near_timeout: float | None = 5.0,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(inner, name=name, clock=clock)
        if on_outage not in ("raise", "stale"):
            raise StackConfigError(f"on_outage={shorten(on_outage)}", hint='write "raise" or "stale"')
        self._default_near = near is None
        self.near: Layer = as_layer(BoundedMemoryCheckpointer() if near is None else near, type(self).__name__)
        self.latest = check_latest(latest)
        self.on_outage = on_outage
        self.stats = CacheStats()
        self._views = Views()
        self._lanes = Lanes()
        self._flights: Flights[Checkpoint | None] = Flights()
        self.put_in_order()
        self.inner.share_stamps(self._stamps)
        limit = positive_seconds(near_timeout, "near_timeout")
        self._near = NearTier(self.near, self.name, self.stats, self._views, self._lanes, self._truth, limit)
        # What expires or is pruned at home must not live on in a copy that is asked for by its id.
        self._fleeting = self.traits.prunes or self.inner.explain()["ttl"].granted

    def members(self) -> tuple[Layer, ...]:
        return (self.near, self.inner)

    # -- changing: below first, then near ------------------------------------------------------------

    async def on_save(self, op: Save) -> str:
        if op.checkpoint is None:
            op = await self.freeze(op)
        checkpoint = op.checkpoint
        assert checkpoint is not None
        key = self._scoped(op.thread_id)
        view = self._views.of(key)

        async def save() -> str:
            view.move()
            try:
                saved = await self.inner.handle(op)
                self._stamps.observe(key, checkpoint.stamp)
                view.see(checkpoint.entry)
                await self._near.put(view, key, checkpoint)
                self._advance(view, checkpoint.entry)
            except BaseException:
                # Nobody knows whether it took effect: ask for the head, and compare copies of this id.
                view.head = Unknown()
                view.unvouch(checkpoint.id)
                raise
            finally:
                view.move()
            return saved

        return await self._lanes.change(key, save)

    async def on_delete(self, op: Delete) -> bool:
        op = self._dated(op)
        key = self._scoped(op.thread_id)
        view = self._views.of(key)

        async def delete() -> bool:
            view.move()
            try:
                deleted = await self.inner.handle(op)
                if op.checkpoint_id is None:
                    view.know_head(None, self._clock.monotonic())
                else:
                    view.forget_head(op.checkpoint_id)
                await self._near.drop(view, key, op.checkpoint_id)
            except BaseException:
                view.head = Unknown()
                view.unvouch(op.checkpoint_id)
                raise
            finally:
                view.move()
            return deleted

        return await self._lanes.change(key, delete)

    async def on_vacuum(self, op: Vacuum) -> int:
        try:
            return await self.inner.handle(op)
        finally:
            # It may have touched any thread: nothing that the near tier holds is believed unseen.
            self._views.forget()

    async def on_copy_thread(self, op: CopyThread) -> bool:
        """Load, stamp anew and save, oldest first: a backend's own copy would carry the source's envelopes.

        Not atomic: when it fails half-way, what was copied stays.
        """
        entries = await self._truth(op.source_thread_id)
        key = await self._look(op.dest_thread_id, again=True)
        copied = False
        for entry in reversed(entries):
            found = await self.handle(Load(op.source_thread_id, entry.id, entry.stamp))
            if found is not None:
                checkpoint = self._restamped(found, op.dest_thread_id, key)
                await self.handle(Save(op.dest_thread_id, None, checkpoint.id, None, checkpoint))
                copied = True
        return copied

    def _advance(self, view: View, entry: Entry) -> None:
        """The thread's newest after a save: this one, unless a newer one is known."""
        head = view.head
        if isinstance(head, Unknown):
            return
        if head is None or (head.stamp or "") <= (entry.stamp or ""):
            view.know_head(entry, self._clock.monotonic())

    # -- reading -------------------------------------------------------------------------------------

    async def on_load(self, op: Load) -> Checkpoint | None:
        key = self._scoped(op.thread_id)
        view = self._views.of(key)
        if op.checkpoint_id is None:
            if self._head_is_known(view):
                head = view.head
                if head is None:
                    return None
                assert isinstance(head, Entry)
                found = await self._near.exactly(key, op.thread_id, head)
                if found is not None:
                    return found
            return await self._flights.join((key, None, view.generation), lambda: self._newest(op.thread_id, key))
        found = await self._near_by_id(view, key, op)
        if found is not None:
            return found
        flight = (key, op.checkpoint_id, op.stamp, view.generation)
        return await self._flights.join(flight, lambda: self._from_below(view, key, op))

    async def on_head(self, op: Head) -> Entry | None:
        key = self._scoped(op.thread_id)
        view = self._views.of(key)
        if self._head_is_known(view):
            assert not isinstance(view.head, Unknown)
            return view.head
        return await self._ask_head(view, key, op.thread_id)

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        ordered = ListCheckpoints(op.thread_id, op.limit, ordered=True)
        try:
            return await self.inner.handle(ordered)
        except BackendError as error:
            if self.on_outage != "stale":
                raise
            key = self._scoped(op.thread_id)
            listed = await self._near.list(key, op.limit)
            if not listed:
                raise
            self._say_stale(op.thread_id, error)
            return listed

    async def on_exists(self, op: Exists) -> bool:
        if op.checkpoint_id is None:
            return await self.on_head(Head(op.thread_id)) is not None
        key = self._scoped(op.thread_id)
        if await self._near_by_id(self._views.of(key), key, Load(op.thread_id, op.checkpoint_id)) is not None:
            return True
        return await self.inner.handle(op)

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        if op.checkpoint_id is not None:
            return await self.inner.handle(op)
        head = await self.on_head(Head(op.thread_id))
        return None if head is None else await self.inner.handle(GetMetadata(op.thread_id, head.id))

    # -- the newest ----------------------------------------------------------------------------------

    def _head_is_known(self, view: View) -> bool:
        """Whether ``latest=`` allows answering from what this process knows."""
        if self.latest == "validate" or isinstance(view.head, Unknown) or self._fleeting:
            return False
        return self.latest == "exclusive" or self._clock.monotonic() - view.head_at <= float(self.latest)

    async def _ask_head(self, view: View, key: str, thread_id: str) -> Entry | None:
        generation = view.generation
        try:
            head = await self.inner.handle(Head(thread_id))
        except (BackendError, StaleRead) as error:
            if self.on_outage != "stale":
                raise
            return await self._stale_head(view, key, thread_id, error)
        self._stamps.observe(key, None if head is None else head.stamp)
        if self._views.current(key, view, generation):
            view.know_head(head, self._clock.monotonic())
            if head is None:
                view.unvouch()
        return head

    async def _stale_head(self, view: View, key: str, thread_id: str, error: Exception) -> Entry | None:
        """The newest that is known while the truth cannot be reached; raises when that is nothing, or too old."""
        head = view.seen
        if head is None:
            head = await self._near.head(key)
        if head is None:
            raise error
        self._say_stale(thread_id, error)
        self._stamps.observe(key, head.stamp)
        return head

    def _say_stale(self, thread_id: str, error: Exception) -> None:
        self.stats.stale += 1
        logger.warning("%s: thread %s is answered from the near tier: %s", self.name, shorten(thread_id), error)
        emit("answer.stale", self.name, thread_id, error=type(error).__name__)

    async def _newest(self, thread_id: str, key: str) -> Checkpoint | None:
        before, same = None, 0
        for _ in range(_MOST_TRIES):
            view = self._views.of(key)
            head = await self._ask_head(view, key, thread_id)
            if head is None:
                return None
            found = await self._near.exactly(key, thread_id, head)
            if found is None:
                found = await self._from_below(view, key, Load(thread_id, head.id, head.stamp))
            if found is not None:
                return found
            view.head = Unknown()  # it went away between the two questions, or is listed but gone
            same = same + 1 if head == before else 0
            before = head
            if same == _TRIES:
                break
        raise BackendError(
            f"{self.name}: the newest checkpoint of thread {shorten(thread_id)} was listed but could not be loaded, "
            "again and again; nothing was changed. Try again",
            member=self.name,
            operation="load",
            temporary=True,
        )

    async def _from_below(self, view: View, key: str, op: Load) -> Checkpoint | None:
        generation = view.generation
        found = await self.inner.handle(op)
        if found is not None:
            await found.body.encode()  # once, for all who wait for it
            self.stats.misses += 1
            emit("cache.miss", self.name, op.thread_id, tier=self.near.name)
            await self._near.fill(view, key, generation, found)
        return found

    async def _near_by_id(self, view: View, key: str, op: Load) -> Checkpoint | None:
        """The near tier's copy, compared with the truth first where it must be."""
        found, sure = await self._near.by_id(view, key, op)
        try:
            if found is not None and not sure:
                found = await self._near.compared_by_id(view, key, op)
            if found is not None and self._fleeting and op.stamp is None:
                assert op.checkpoint_id is not None
                there = await self.inner.handle(Exists(op.thread_id, op.checkpoint_id))
                return found if there else None
        except BackendError as error:
            if self.on_outage != "stale":
                raise
            self._say_stale(op.thread_id, error)
        return found

    async def _look_below(self, thread_id: str) -> Entry | None:
        return await self.inner.handle(Head(thread_id))

    async def _truth(self, thread_id: str) -> list[Entry]:
        """All checkpoints of a thread, as the layer below has them."""
        return await self.inner.handle(ListCheckpoints(thread_id, MOST, ordered=True))

    # -- life ----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait a little for loads in the air and for changes whose callers have left, then close both tiers."""
        await self._flights.land(_SETTLE_SECONDS)
        left = await self._lanes.settle(_SETTLE_SECONDS)
        if left:
            logger.warning("%s: closed with %d changes still running", self.name, left)
        await super().close()

    def __repr__(self) -> str:
        return construction(
            self,
            self.inner,
            near=None if self._default_near else self.near,
            latest=None if self.latest == "validate" else self.latest,
            on_outage=None if self.on_outage == "raise" else self.on_outage,
        )
