"""Stamps of deletes: of their call, or just above what was seen, and never above what is issued afterwards."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.stamp import StampClock, above, is_stamp


def _frozen(wall: float = 1_800_000_000.0, bits: int = 0) -> StampClock:
    def random_bits(count: int) -> int:
        return bits & ((1 << count) - 1)

    return StampClock(
        Clock(wall=lambda: wall, monotonic=SYSTEM.monotonic, sleep=asyncio.sleep, random_bits=random_bits)
    )


@given(bits=st.integers(0, 2**24 - 1) | st.just(2**24 - 1), ahead=st.floats(-3600, 3600))
def test_what_is_just_above_a_stamp_is_below_all_that_is_issued_by_who_has_seen_it(bits: int, ahead: float) -> None:
    clock, other = _frozen(), _frozen(1_800_000_000.0 + ahead, bits)
    mine, seen = clock.reserve("t"), other.issue("t")
    clock.observe("t", seen)
    stamp = above(mine, seen)
    assert is_stamp(stamp)
    assert stamp > seen
    assert stamp >= mine
    assert clock.issue("t") > stamp


def test_without_anything_above_it_a_stamp_stays_as_it_is() -> None:
    clock = _frozen()
    lesser, mine = clock.issue("t"), clock.issue("t")
    assert above(mine) == above(mine, "", lesser) == mine


def test_a_reserved_stamp_says_nothing_of_having_looked() -> None:
    clock = _frozen()
    reserved = clock.reserve("t")
    assert not clock.has_seen("t")
    assert clock.issue("t") > reserved
    assert clock.has_seen("t")
    clock.reserve("u")
    clock.observe("u", None)
    assert clock.has_seen("u")
    assert clock.reserve("t") and clock.has_seen("t")
