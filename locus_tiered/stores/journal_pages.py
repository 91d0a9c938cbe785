"""Whether every page of a journal's file is in its place, found out without reading the states.

SQLite believes what its trees say: one wrong bit in a page's count of cells, or in a pointer to a page, and rows are
gone without a word, or come back after they were dropped. Here every page of a file must be used exactly once, by a
table, by a state that is longer than a page, or as free; and within a page of a table every byte must be accounted
for (sqlite.org/fileformat2.html). Of states only the links between their pages are read: their content has a check
of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from locus_tiered.stores.journal_schema import PAGE

__all__ = ["Misplaced", "check_header", "check_pages"]

_LOCK_PAGE = (1 << 30) // PAGE + 1  # SQLite never uses it
_FIXED = {
    0: b"SQLite format 3\0" + PAGE.to_bytes(2, "big") + b"\x02\x02\x00\x40\x20\x20",
    44: b"\0\0\0\x04",  # schema format
    52: bytes(4),  # no auto-vacuum
    56: b"\0\0\0\x01",  # UTF-8
    64: bytes(4),
    72: bytes(20),
}


class Misplaced(Exception):
    """A page is not where it belongs; the message says which."""


def check_header(file: Path) -> None:
    """Raise :class:`Misplaced` when the constant part of a file's header is not that of a journal."""
    with file.open("rb") as opened:
        head = opened.read(100)
    for at, expected in _FIXED.items():
        if head[at : at + len(expected)] != expected:
            raise Misplaced(f"its header is wrong at byte {at}")


def check_pages(file: Path, roots: Iterable[int]) -> None:
    """Raise :class:`Misplaced` unless every page of a file is used once; ``roots`` are those of its tables.

    The file must be closed and its log folded in. One read per page of a table, four bytes per other page.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _Walk(descriptor).run(roots)
    finally:
        os.close(descriptor)


class _Walk:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = self._read(1, 100)
        self._pages = int.from_bytes(head[28:32], "big")
        self._free, self._free_count = int.from_bytes(head[32:36], "big"), int.from_bytes(head[36:40], "big")
        self._used = bytearray(1)

    def _read(self, page: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, (page - 1) * PAGE)
        if len(data) != size:
            raise Misplaced(f"page {page} is behind the end of the file")
        return data

    def _take(self, page: int) -> int:
        if not 1 <= page <= self._pages or page == _LOCK_PAGE:
            raise Misplaced(f"there is no page {page}")
        if self._used[page]:
            raise Misplaced(f"page {page} is used twice")
        self._used[page] = 1
        return page

    def run(self, roots: Iterable[int]) -> None:
        size = os.fstat(self._descriptor).st_size
        if size != self._pages * PAGE:
            raise Misplaced(f"it has {size} bytes and should have {self._pages} pages")
        self._used = bytearray(self._pages + 1)
        for root in (1, *roots):
            self._tree(root)
        self._free_pages()
        missing = self._used.find(0, 1)
        if missing == _LOCK_PAGE:
            missing = self._used.find(0, missing + 1)
        if missing > 0:
            raise Misplaced(f"nobody uses page {missing}")

    def _free_pages(self) -> None:
        found, trunk = 0, self._free
        while trunk:
            data = self._read(self._take(trunk), PAGE)
            count = int.from_bytes(data[4:8], "big")
            if count > PAGE // 4 - 2:
                raise Misplaced(f"page {trunk} lists {count} free pages")
            for place in range(count):
                self._take(int.from_bytes(data[8 + 4 * place : 12 + 4 * place], "big"))
            found += 1 + count
            trunk = int.from_bytes(data[:4], "big")
        if found != self._free_count:
            raise Misplaced(f"{found} pages are free and {self._free_count} should be")

    # -- a table ---------------------------------------------------------------------------------------

    def _tree(self, root: int) -> None:
        before = -(1 << 63)  # every key is greater than those before it
        todo: list[tuple[int, int | None]] = [(root, None)]  # pages in the order of their keys, and their greatest
        leaves_at: set[int] = set()
        depths = {root: 0}
        while todo:
            page, most = todo.pop()
            data = self._read(self._take(page), PAGE)
            start = 100 if page == 1 else 0
            kind, count = data[start], int.from_bytes(data[start + 3 : start + 5], "big")
            depth = depths.pop(page)
            if kind == 5:
                keys = [self._child(data, at) for at in self._cells(page, data, start, 12, count)]
                children = [*keys, (int.from_bytes(data[start + 8 : start + 12], "big"), most)]
                for child, _ in children:
                    if child in depths:
                        raise Misplaced(f"page {child} is used twice")
                    depths[child] = depth + 1
                todo += reversed(children)
                continue
            if kind != 13:
                raise Misplaced(f"page {page} is none of a table")
            leaves_at.add(depth)
            for at in self._cells(page, data, start, 8, count):
                key = self._row(data, at)
                if key <= before or (most is not None and key > most):
                    raise Misplaced(f"page {page} is out of order")
                before = key
            before = before if most is None else max(before, most)
        if len(leaves_at) > 1:
            raise Misplaced("a table has leaves at different depths")

    def _cells(self, page: int, data: bytes, start: int, header: int, count: int) -> list[int]:
        """Where a page's cells begin; every byte of the page must belong to one thing."""
        content, loose = int.from_bytes(data[start + 5 : start + 7], "big"), data[start + 7]
        places = [int.from_bytes(data[at : at + 2], "big") for at in self._pointers(start, header, count)]
        first = start + header + 2 * count
        taken = [(at, at + self._size(data, at, leaf=header == 8)) for at in places]
        free = int.from_bytes(data[start + 1 : start + 3], "big")
        while free:
            after, size = int.from_bytes(data[free : free + 2], "big"), int.from_bytes(data[free + 2 : free + 4], "big")
            taken.append((free, free + size))
            if size < 4 or 0 < after <= free:
                raise Misplaced(f"page {page} has wrong free blocks")
            free = after
        end, gaps = content, 0
        for begin, until in sorted(taken):
            if begin < end or begin < first:
                raise Misplaced(f"page {page} has things that overlap")
            gaps, end = gaps + begin - end, until
        if first > content or end > PAGE or gaps + PAGE - end != loose:
            raise Misplaced(f"page {page} has bytes that nothing accounts for")
        return places

    @staticmethod
    def _pointers(start: int, header: int, count: int) -> range:
        begin = start + header
        if begin + 2 * count > PAGE:
            raise Misplaced("a page has more cells than fit")
        return range(begin, begin + 2 * count, 2)

    @staticmethod
    def _child(data: bytes, at: int) -> tuple[int, int]:
        key, _ = _varint(data, at + 4)
        return int.from_bytes(data[at : at + 4], "big"), key

    @staticmethod
    def _size(data: bytes, at: int, *, leaf: bool) -> int:
        if not leaf:
            return max(4, _varint(data, at + 4)[1] - at)
        payload, begin = _varint(data, at)
        _, begin = _varint(data, begin)
        local = _local(payload)
        return max(4, begin - at + local + (4 if local < payload else 0))

    def _row(self, data: bytes, at: int) -> int:
        """A row's key, once the pages of its state have been accounted for."""
        payload, begin = _varint(data, at)
        key, begin = _varint(data, begin)
        local = _local(payload)
        rest, link = payload - local, data[begin + local : begin + local + 4]
        while rest > 0:
            link = self._read(self._take(int.from_bytes(link, "big")), 4)
            rest -= PAGE - 4
            if rest <= 0 and any(link):
                raise Misplaced("a state goes on behind its end")
        return key - (1 << 64) if key >> 63 else key


def _local(payload: int) -> int:
    """How much of a row stands in the page of its table."""
    if payload <= PAGE - 35:
        return payload
    least = (PAGE - 12) * 32 // 255 - 23
    most = least + (payload - least) % (PAGE - 4)
    return most if most <= PAGE - 35 else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        if place >= len(data):
            raise Misplaced("a cell goes on behind the end of its page")
        value = value << 7 | data[place] & 0x7F
        if data[place] < 0x80:
            return value, place + 1
    if at + 8 >= len(data):
        raise Misplaced("a cell goes on behind the end of its page")
    return value << 8 | data[at + 8], at + 9
