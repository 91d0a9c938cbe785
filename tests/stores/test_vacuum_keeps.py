"""A tombstone lasts for two weeks, whatever age a vacuum goes by."""

from __future__ import annotations

import pytest

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer
from locus_tiered.core.stamp import StampClock
from locus_tiered.layers.tombstones import Tombstones
from tests.laws.parts import ManualClock, state

DAY = 86_400


@pytest.mark.parametrize("kind", ["directory", "memory"])
async def test_a_vacuum_of_our_stores_keeps_tombstones_for_two_weeks(tmp_path, kind):
    time = ManualClock()
    clock = time.clock()
    store = (
        DirectoryCheckpointer(tmp_path, clock=clock) if kind == "directory" else BoundedMemoryCheckpointer(clock=clock)
    )
    tombstones, stamps = Tombstones(store, clock, tidies=False), StampClock(clock)
    await tombstones.lay("t", "gone", stamps.issue("t"))
    await store.save(state(1), "t")
    time.advance(8 * DAY)
    assert await store.vacuum(7) == 1
    assert await tombstones.among([("t", "gone")])
    time.advance(7 * DAY)
    assert await store.vacuum(7) == 1
    assert not await tombstones.among([("t", "gone")])
