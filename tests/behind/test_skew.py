"""Deletes of what a process with a fast clock has saved: above it all the same (law 4)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from locus.core.state import AgentState

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.clock import Clock
from locus_tiered.testing.reference import ReferenceCheckpointer


def ahead(seconds: float) -> Clock:
    return Clock(wall=lambda: time.time() + seconds)


@pytest.mark.parametrize("whole", [False, True], ids=["one", "thread"])
@pytest.mark.parametrize("ack", ["journal", "turn", "far"])
async def test_law_4_a_delete_is_above_a_save_of_a_process_whose_clock_is_ahead(tmp_path: Path, ack, whole):
    far = ReferenceCheckpointer()
    async with WriteBehindCheckpointer(far, journal=tmp_path / "a", ack=ack, clock=ahead(5)) as fast:
        saved = await fast.save(AgentState(), "t")
    async with WriteBehindCheckpointer(far.twin(), journal=tmp_path / "b", ack=ack) as other:
        assert await other.delete("t", None if whole else saved) is True
        await other.flush()
        assert await other.exists("t", saved) is False
        assert await other.load("t") is None


async def test_law_8_a_save_after_a_delete_by_a_process_whose_clock_is_ahead_stays(tmp_path: Path):
    far = ReferenceCheckpointer()
    async with WriteBehindCheckpointer(far.twin(), journal=tmp_path / "b", clock=ahead(5)) as fast:
        await fast.save(AgentState(), "t")
        await fast.delete("t")
    async with WriteBehindCheckpointer(far, journal=tmp_path / "a", ack="journal") as other:
        saved = await other.save(AgentState(run_id="1"), "t")
        await other.flush()
        assert await other.exists("t", saved) is True
