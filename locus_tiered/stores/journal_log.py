"""Whether a journal's write-ahead log ends where it should (sqlite.org/fileformat2.html#walformat).

SQLite reads a log up to the first frame whose checksum is wrong and passes over the rest without a word. After a
power cut that is right: the rest was never fsynced, so never acknowledged. After damage of the disk it is not; this
module tells that there *is* a rest. Each commit is fsynced before the next begins: a power cut leaves the end of one
commit at the most. Where the ends of two stand in the rest, the disk has lost what was acknowledged.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PassedOver", "passed_over"]

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC, _FORMAT = 0x377F0682, 3007000
_PAGE = 32_768
_MOST_FRAMES = 4096


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What stands in a log behind the last frame that SQLite will read."""

    frames: int = 0
    commits: int = 0
    """How many of them end a commit."""

    @property
    def is_damage(self) -> bool:
        """Whether no power cut can have left it."""
        return self.commits > 1


def _add(data: bytes, big: bool, first: int, second: int) -> tuple[int, int]:
    """SQLite's running checksum over ``data``."""
    words = array("I", data)
    if big != (sys.byteorder == "big"):
        words.byteswap()
    for place in range(0, len(words), 2):
        first = (first + words[place] + second) & 0xFFFFFFFF
        second = (second + words[place + 1] + first) & 0xFFFFFFFF
    return first, second


def passed_over(log: Path) -> PassedOver:
    """What of this log's own generation SQLite will not read; nothing for a sound log, or none.

    Reads the log; takes about a millisecond per frame.
    """
    try:
        raw = log.read_bytes()
    except FileNotFoundError:
        return PassedOver()
    if len(raw) < _HEADER.size:
        return PassedOver()
    magic, form, page, _, salt_1, salt_2, *check = _HEADER.unpack_from(raw)
    big = bool(magic & 1)
    sums = _add(raw[:24], big, 0, 0)
    sound = magic & ~1 == _MAGIC and form == _FORMAT and sums == tuple(check)
    if not sound:
        page = _PAGE
    step = _FRAME.size + page
    count = min((len(raw) - _HEADER.size) // step, _MOST_FRAMES) if page >= 512 else 0
    # Behind a header that cannot be read, everything is of its generation: SQLite reads none of it.
    salts = None if not sound else (salt_1, salt_2)
    frames = commits = 0
    for number in range(count):
        at = _HEADER.size + number * step
        header = _FRAME.unpack_from(raw, at)
        mine = salts is None or header[2:4] == salts
        if sound:
            sums = _add(raw[at : at + 8] + raw[at + _FRAME.size : at + step], big, *sums)
            sound = mine and sums == header[4:6] and header[0] > 0
        if not sound and mine:
            frames += 1
            commits += header[1] > 0
    return PassedOver(frames, commits)
