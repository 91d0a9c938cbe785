"""Stamps: the order of saves within a thread, independent of what any backend believes.

A stamp is 32 lower-case hex characters in the shape of a UUIDv7 (RFC 9562, section 5.7): 48 bits of
milliseconds, 20 bits of the millisecond's fraction (section 6.2, method 3), 14 bits of a counter that starts at
random, 24 random bits, and 16 bits that are a check over the rest, by which a stamp is told from anybody else's
UUIDv7. Stamps compare as text.

:class:`StampClock` issues them. Per thread a stamp never goes back: it is above the wall clock's, above the
last one issued, and above the highest one seen in that thread (a hybrid logical clock, Kulkarni et al. 2014,
one per thread, so that a bad clock poisons one thread only).

It does not promise an order between two processes that save to one thread within the skew of their clocks and
without looking at the thread in between.
"""

from __future__ import annotations

import hashlib
import re
from threading import Lock

from cachetools import LRUCache

from locus_tiered.core.clock import SYSTEM, Clock

__all__ = ["StampClock", "above", "is_stamp", "looks_random", "stamp_seconds"]

_COUNTER_BITS = 34
_TOLERATED_SKEW_MS = 60_000
_COUNTER_TOP = 1 << _COUNTER_BITS  # fraction of the millisecond and counter, as one number
_FRACTION_TOP = 1 << 20
_MOST_RANDOM = (1 << 24) - 1
_SHAPE = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")
_RANDOM_SHAPE = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _check(head: str) -> str:
    return hashlib.blake2b(head.encode(), digest_size=2, person=b"locus-tiered").hexdigest()


def is_stamp(text: str) -> bool:
    """Whether ``text`` is one of our stamps (1 in 65,536 foreign UUIDv7s passes by chance)."""
    return len(text) == 32 and _SHAPE.fullmatch(text) is not None and text[28:] == _check(text[:28])


def looks_random(text: str) -> bool:
    """Whether ``text`` has the shape of a generated id (a UUID or 32 hex characters).

    Such an id is hardly ever saved twice, so its order may be remembered; a name that a person chose
    (``"draft"``) may be saved again at any time by anybody.
    """
    return _RANDOM_SHAPE.fullmatch(text) is not None


def stamp_seconds(stamp: str) -> float:
    """The wall-clock time inside a stamp, in seconds since the epoch."""
    return int(stamp[:12], 16) / 1000


def _compose(tick: int, random: int) -> str:
    """A stamp from ``tick`` (milliseconds and counter as one number) and 24 random bits."""
    milliseconds, counter = divmod(tick, _COUNTER_TOP)
    high, low = divmod(counter, 1 << 22)
    value = (milliseconds << 64) | (7 << 60) | (high << 48) | (2 << 46) | (low << 24) | random
    head = f"{value:028x}"
    return head + _check(head)


def _tick(stamp: str) -> int:
    value = int(stamp[:28], 16)
    milliseconds, high, low = value >> 64, (value >> 48) & 0xFFF, (value >> 24) & 0x3FFFFF
    return milliseconds * _COUNTER_TOP + (high << 22) + low


def above(stamp: str, *seen: str) -> str:
    """``stamp`` where it is above all that was seen (empty: nothing was), else the first one above that.

    No clock that has seen the same will ever issue one below that.
    """
    highest = max(seen, default="")
    if stamp > highest:
        return stamp
    tick, random = _tick(highest), int(highest[:28], 16) & _MOST_RANDOM
    return _compose(tick, random + 1) if random < _MOST_RANDOM else _compose(tick + 1, 0)


class StampClock:
    """Issues the stamps of one layer. Safe to use from several threads.

    ``remember`` bounds how many threads' clocks are kept; one that is forgotten starts from the wall clock and
    from what is then seen in it.
    """

    def __init__(self, clock: Clock = SYSTEM, *, remember: int = 65_536) -> None:
        self._clock = clock
        self._last: LRUCache[str, int] = LRUCache(maxsize=remember)
        self._unseen: LRUCache[str, bool] = LRUCache(maxsize=remember)  # all that is known of them was issued here
        self._lock = Lock()

    def issue(self, thread: str) -> str:
        """The next stamp of ``thread``: above the wall clock, the last one issued and the highest one seen."""
        return self._issue(thread, seen=True)

    def reserve(self, thread: str) -> str:
        """A stamp of this moment for what is put in its place later, when the thread has been looked at.

        As :meth:`issue`, but whoever issues the next one is still to look first.
        """
        return self._issue(thread, seen=False)

    def _issue(self, thread: str, *, seen: bool) -> str:
        bits = self._clock.random_bits
        # Both starting points are random, so that two processes never issue one stamp twice.
        milliseconds, fraction = divmod(self._clock.wall() * 1000, 1)
        now = int(milliseconds) * _COUNTER_TOP + (int(fraction * _FRACTION_TOP) << 14) + bits(13)
        with self._lock:
            if seen:
                self._unseen.pop(thread, None)
            elif thread not in self._last:
                self._unseen[thread] = True
            tick = max(now, self._last.get(thread, -1) + 1 + bits(12))
            self._last[thread] = tick
        return _compose(tick, min(bits(24), _MOST_RANDOM - 1))  # there is room for one above it

    def observe(self, thread: str, stamp: str | None) -> None:
        """Note a stamp seen in ``thread`` (``None``: the thread was looked at and has none)."""
        tick = _tick(stamp) if stamp is not None else -1
        with self._lock:
            self._unseen.pop(thread, None)
            self._last[thread] = max(tick, self._last.get(thread, -1))

    def adopt(self, thread: str, stamp: str) -> bool:
        """Take ``stamp`` as the next one of ``thread``, if it is above all before it and not of the future."""
        tick = _tick(stamp)
        latest = int(self._clock.wall() * 1000 + _TOLERATED_SKEW_MS) * _COUNTER_TOP
        with self._lock:
            if self._last.get(thread, -1) < tick < latest:
                self._last[thread] = tick
                return True
        return False

    def has_seen(self, thread: str) -> bool:
        """Whether this clock knows anything of ``thread``; if not, look before issuing."""
        with self._lock:
            return thread in self._last and thread not in self._unseen
