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


def passed_over(log: Path, read: int) -> PassedOver:
    """What of this log's own generation SQLite did not read; ``read`` says how many frames it did.

    Nothing for a sound log, or none, and nothing for what a process had begun to write when it was killed. Takes
    about a millisecond per frame of the rest.
    """
    try:
        opened = log.open("rb")
    except FileNotFoundError:
        return PassedOver()
    with opened:
        head = opened.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return PassedOver()
        magic, form, page, _, salt_1, salt_2, *check = _HEADER.unpack(head)
        big = bool(magic & 1)
        sums = _add(head[:24], big, 0, 0)
        whole = good = magic & ~1 == _MAGIC and form == _FORMAT and page >= 512 and sums == tuple(check)
        step = _FRAME.size + (page if whole else _PAGE)
        if whole and read:
            opened.seek(_HEADER.size + (read - 1) * step)
            sums = _FRAME.unpack(opened.read(_FRAME.size))[4:6]
        opened.seek(_HEADER.size + read * step)
        frames = commits = 0
        while len(frame := opened.read(step)) == step and frames < _MOST_FRAMES:
            header = _FRAME.unpack_from(frame)
            # A frame of a former generation has neither of the salts; one with one of them was damaged there. Behind
            # a header that cannot be read there is no telling: SQLite reads nothing of it.
            mine = not whole or header[2] == salt_1 or header[3] == salt_2
            if good:
                sums = _add(frame[:8] + frame[_FRAME.size :], big, *sums)
                good = header[2:4] == (salt_1, salt_2) and sums == header[4:6] and header[0] > 0
            if mine and not good:
                frames += 1
                commits += header[1] > 0
    return PassedOver(frames, commits)
