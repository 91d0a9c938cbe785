"""A backend's own vacuum, which knows nothing of what a stack keeps in it for itself.

Tombstones have to last for two weeks, whatever age a vacuum goes by: a write of a process that crashed, found before
that, must not bring back what was deleted. So those that are younger, and that the backend's vacuum removes, are saved
again afterwards. It goes to its end also when nobody waits for it any more. Should the process end in between, or the
backend fail, they are gone: keep ``older_than_days`` above seven where processes may leave journals behind on machines
that die during a vacuum.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from locus_tiered.core.checkpoint import Checkpoint
from locus_tiered.core.envelope import seal
from locus_tiered.core.errors import CorruptCheckpoint
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.leaf_rows import ALL
from locus_tiered.core.operations import Load, Vacuum
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.core.units import DAY

if TYPE_CHECKING:
    from locus_tiered.core.leaf import Leaf

__all__ = ["vacuum"]

_SLACK_DAYS = 1
"""A backend's clock, and its idea of a day, may differ from ours by so much."""


async def vacuum(leaf: Leaf, op: Vacuum) -> int:
    """Have the backend vacuum; what the stack keeps in it for itself stays as long as it is needed."""

    async def native() -> int:
        return int(await leaf._calls.make("vacuum", None, leaf.backend.vacuum, op.older_than_days, empty=0))

    if not leaf._keeps_lanes or op.older_than_days >= KEPT_DAYS + _SLACK_DAYS or not leaf.explain()["list_threads"]:
        return await native()

    async def careful() -> int:
        kept = await _of_the_stack(leaf, op.older_than_days)
        try:
            return await native()
        finally:
            for checkpoint in kept:
                put_back = partial(_put_back, leaf, checkpoint)
                await leaf._lanes.change(leaf._lane(checkpoint.thread_id), put_back)

    # In a lane, which nobody else is in, so that it goes on to its end when its caller has left.
    return await leaf._lanes.change(RESERVED, careful)


async def _of_the_stack(leaf: Leaf, older_than_days: float) -> list[Checkpoint]:
    """What the stack keeps in the backend that is still needed, and that its vacuum may remove."""
    now = leaf._clock.wall()
    found: list[Checkpoint] = []
    for name in await leaf._thread_names(ALL):
        thread = await leaf._thread_of(name)
        if thread is None or not thread.startswith(RESERVED):
            continue
        for entry in await leaf._read(thread, partial(leaf._entries, thread)):
            age = 0.0 if entry.stamp is None else (now - stamp_seconds(entry.stamp)) / DAY
            if older_than_days - _SLACK_DAYS < age < KEPT_DAYS:
                with suppress(CorruptCheckpoint):
                    checkpoint = await leaf.on_load(Load(thread, entry.id, entry.stamp))
                    found += [] if checkpoint is None else [checkpoint]
    return found


async def _put_back(leaf: Leaf, checkpoint: Checkpoint) -> None:
    """Save again what is not there any more; somebody may have saved a newer one since."""
    thread, name = leaf._names(checkpoint.thread_id, checkpoint.id)
    there = await leaf._calls.make("exists", checkpoint.thread_id, leaf.backend.exists, thread, name, empty=False)
    if not there:
        state, metadata = await seal(checkpoint, leaf.traits)
        await leaf._calls.make("save", checkpoint.thread_id, leaf.backend.save, state, thread, name, metadata)
