"""Whether a journal's write-ahead log ends where it should (sqlite.org/fileformat2.html#walformat).

SQLite reads a log up to the first frame whose checksum is wrong and passes over the rest without a word. After a
power cut that is right: the rest was never fsynced, so never acknowledged. After damage of the disk it is not; this
module tells that there *is* a rest.
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path

__all__ = ["frames_passed_over"]

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC = 0x377F0682
_MOST_FRAMES = 4096


def _add(data: bytes, big: bool, first: int, second: int) -> tuple[int, int]:
    """SQLite's running checksum over ``data``."""
    words = array("I", data)
    if big != (sys.byteorder == "big"):
        words.byteswap()
    for place in range(0, len(words), 2):
        first = (first + words[place] + second) & 0xFFFFFFFF
        second = (second + words[place + 1] + first) & 0xFFFFFFFF
    return first, second


def frames_passed_over(log: Path) -> int:
    """How many frames of this log's own generation stand behind the last one that SQLite will read.

    0 for a sound log, or none. Reads the log; takes about a millisecond per frame.
    """
    try:
        raw = log.read_bytes()
    except FileNotFoundError:
        return 0
    if len(raw) < _HEADER.size:
        return 0
    magic, _, page, _, salt_1, salt_2, check_1, check_2 = _HEADER.unpack_from(raw)
    step = _FRAME.size + page
    count = min((len(raw) - _HEADER.size) // step, _MOST_FRAMES) if page >= 512 else 0
    big = bool(magic & 1)
    sums = _add(raw[:24], big, 0, 0)
    sound = magic & ~1 == _MAGIC and sums == (check_1, check_2)
    passed_over = 0
    for number in range(count):
        at = _HEADER.size + number * step
        header = _FRAME.unpack_from(raw, at)
        mine = header[2:4] == (salt_1, salt_2)
        if sound:
            sums = _add(raw[at : at + 8] + raw[at + _FRAME.size : at + step], big, *sums)
            sound = mine and sums == header[4:6]
        if not sound and mine:
            passed_over += 1
    return passed_over
