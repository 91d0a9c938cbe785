"""A disk for SQLite that loses power, fails, or is full, exactly where a test wants it.

:class:`Disk` is a VFS of SQLite (sqlite.org/vfs.html) in front of the usual one, made with ``ctypes`` on the very
library that Python's ``sqlite3`` uses. It notes every write, truncation, sync, creation and deletion, and lets one of
them fail. From the notes :meth:`Disk.cut_power` builds the files as a power cut may leave them: all that was synced,
and of the rest any part, whole, torn at a sector, or not at all. Reads, locks and shared memory are the usual ones.

It knows what SQLite writes, not what else a program does to the same directory.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import itertools
import os
import sqlite3
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal
from urllib.parse import quote

__all__ = ["Disk", "Note"]

SECTOR = 512
Kind = Literal["create", "write", "truncate", "sync", "delete"]
_FAILURE = {"write": sqlite3.SQLITE_IOERR_WRITE, "truncate": sqlite3.SQLITE_IOERR_TRUNCATE}
_FAILURE["sync"] = sqlite3.SQLITE_IOERR_FSYNC

_library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
_numbers = itertools.count(1)


class _Methods(Structure):
    """The beginning of ``sqlite3_io_methods``; what comes behind is copied as it is."""

    _fields_ = [
        ("iVersion", c_int),
        ("xClose", c_void_p),
        ("xRead", c_void_p),
        ("xWrite", c_void_p),
        ("xTruncate", c_void_p),
        ("xSync", c_void_p),
        ("rest", c_void_p * 13),
    ]


class _Vfs(Structure):
    _fields_ = [
        ("iVersion", c_int),
        ("szOsFile", c_int),
        ("mxPathname", c_int),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", c_void_p),
        ("xDelete", c_void_p),
        ("rest", c_void_p * 14),
    ]


_OPEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_CLOSE = ctypes.CFUNCTYPE(c_int, c_void_p)
_WRITE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)

_library.sqlite3_vfs_find.restype = POINTER(_Vfs)
_library.sqlite3_vfs_find.argtypes = [c_char_p]
_library.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
_library.sqlite3_vfs_unregister.argtypes = [POINTER(_Vfs)]


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that SQLite had the disk do."""

    kind: Kind
    path: str
    offset: int = 0
    """Where a write begins; the size that a truncation leaves."""
    data: bytes = b""
    directory: bool = False
    """Its directory was synced with it."""


@dataclass(slots=True)
class _File:
    """A file as a power cut finds it."""

    durable: bytearray = field(default_factory=bytearray)
    loose: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class _Fault:
    kind: str
    left: int
    on: str
    forever: bool


class Disk:
    """One such disk. Use it as a context manager: it is registered with SQLite while the block runs.

    ``room`` (bytes; ``None``: as much as there is) bounds what all its files may come to: a write beyond it is
    refused with ``SQLITE_FULL``. ``notes`` is what happened, in order.
    """

    def __init__(self) -> None:
        self.name = f"locus-tiered-disk-{os.getpid()}-{next(_numbers)}"
        self.notes: list[Note] = []
        self.room: int | None = None
        self._faults: list[_Fault] = []
        self._sizes: dict[str, int] = {}
        self._paths: dict[int, str] = {}
        self._fresh: set[str] = set()
        self._tables: dict[int, _Methods] = {}
        self._usual = _library.sqlite3_vfs_find(None)
        usual: _Vfs = self._usual.contents
        self._usual_open, self._usual_delete = _OPEN(usual.xOpen), _DELETE(usual.xDelete)
        self._calls = (_OPEN(self._open), _DELETE(self._delete), _CLOSE(self._close), _WRITE(self._write))
        self._more_calls = (_TRUNCATE(self._truncate), _SYNC(self._sync))
        self._vfs = _Vfs.from_buffer_copy(usual)
        self._vfs.pNext, self._vfs.zName = None, self.name.encode()
        self._vfs.xOpen, self._vfs.xDelete = _address(self._calls[0]), _address(self._calls[1])

    def __enter__(self) -> Disk:
        _library.sqlite3_vfs_register(ctypes.byref(self._vfs), 0)
        return self

    def __exit__(self, *_: object) -> None:
        """Every connection must be closed by now."""
        _library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def connect(self, path: Path, **options: Any) -> sqlite3.Connection:
        """``sqlite3.connect`` on this disk, with the same options."""
        uri = f"file:{quote(str(path.resolve()))}?vfs={self.name}"
        connection: sqlite3.Connection = sqlite3.connect(uri, uri=True, **options)
        return connection

    # -- faults --------------------------------------------------------------------------------------

    def fail(
        self, kind: Literal["write", "truncate", "sync"], nth: int = 1, *, on: str = "", forever: bool = False
    ) -> None:
        """Have the ``nth`` such call from now on fail with an I/O error, of files whose name ends with ``on``.

        ``forever``: all that follow too. What failed was not done.
        """
        self._faults.append(_Fault(kind, nth, on, forever))

    def heal(self) -> None:
        """No more faults, and room without end."""
        self._faults.clear()
        self.room = None

    def count(self, kind: Kind, on: str = "") -> int:
        """How many such calls were noted, of files whose name ends with ``on``."""
        return sum(note.kind == kind and note.path.endswith(on) for note in self.notes)

    def _fails(self, kind: str, path: str) -> bool:
        for fault in self._faults:
            if fault.kind == kind and path.endswith(fault.on):
                fault.left -= 1
                if fault.left == 0 or (fault.forever and fault.left < 0):
                    return True
        return False

    # -- what SQLite calls ---------------------------------------------------------------------------

    def _open(self, _: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = None if not name else ctypes.string_at(name).decode("utf-8", "surrogateescape")
        is_new = path is not None and not os.path.exists(path)
        result: int = self._usual_open(ctypes.addressof(self._usual.contents), name, file, flags, out)
        methods = c_void_p.from_address(file)
        if result == sqlite3.SQLITE_OK and path is not None and methods.value:
            self._paths[file] = path
            if is_new:
                self._fresh.add(path)
                self.notes.append(Note("create", path))
            self._sizes[path] = os.path.getsize(path)
            methods.value = self._table(methods.value)
        return result

    def _table(self, usual: int) -> int:
        """A table of methods like the one at ``usual``, which must outlive every file, with some of ours."""
        if usual not in self._tables:
            table = _Methods.from_buffer_copy(_Methods.from_address(usual))
            self._usual_close, self._usual_write = _CLOSE(table.xClose), _WRITE(table.xWrite)
            self._usual_truncate, self._usual_sync = _TRUNCATE(table.xTruncate), _SYNC(table.xSync)
            table.xClose, table.xWrite = _address(self._calls[2]), _address(self._calls[3])
            table.xTruncate, table.xSync = _address(self._more_calls[0]), _address(self._more_calls[1])
            self._tables[usual] = table
        return ctypes.addressof(self._tables[usual])

    def _close(self, file: int) -> int:
        self._paths.pop(file, None)
        return int(self._usual_close(file))

    def _write(self, file: int, data: int, size: int, offset: int) -> int:
        path = self._paths[file]
        if self._fails("write", path):
            return _FAILURE["write"]
        grown = max(self._sizes[path], offset + size)
        if self.room is not None and sum(self._sizes.values()) - self._sizes[path] + grown > self.room:
            return sqlite3.SQLITE_FULL
        result: int = self._usual_write(file, data, size, offset)
        if result == sqlite3.SQLITE_OK:
            self._sizes[path] = grown
            self.notes.append(Note("write", path, offset, ctypes.string_at(data, size)))
        return result

    def _truncate(self, file: int, size: int) -> int:
        path = self._paths[file]
        if self._fails("truncate", path):
            return _FAILURE["truncate"]
        result: int = self._usual_truncate(file, size)
        if result == sqlite3.SQLITE_OK:
            self._sizes[path] = size
            self.notes.append(Note("truncate", path, size))
        return result

    def _sync(self, file: int, flags: int) -> int:
        path = self._paths[file]
        if self._fails("sync", path):
            return _FAILURE["sync"]
        result: int = self._usual_sync(file, flags)
        if result == sqlite3.SQLITE_OK:
            # The first sync of a new log or rollback journal also syncs its directory (os_unix.c, UNIXFILE_DIRSYNC).
            directory = path in self._fresh and path.endswith(("-wal", "-journal"))
            self._fresh.discard(path)
            self.notes.append(Note("sync", path, directory=directory))
        return result

    def _delete(self, _: int, name: bytes, directory: int) -> int:
        result: int = self._usual_delete(ctypes.addressof(self._usual.contents), name, directory)
        path = name.decode("utf-8", "surrogateescape")
        if result == sqlite3.SQLITE_OK:
            self._sizes.pop(path, None)
            self.notes.append(Note("delete", path, directory=bool(directory)))
        return result

    # -- after a power cut ---------------------------------------------------------------------------

    def cut_power(self, after: int, random: Random) -> dict[str, bytes]:
        """The files, by path, when the power goes after so many ``notes``; ``random`` says what of the rest is left."""
        entries: dict[str, _File] = {}  # as the program sees them
        durable: dict[str, _File] = {}  # as the disk has them
        loose: list[tuple[str, _File | None]] = []
        for note in self.notes[:after]:
            if note.kind == "create":
                entries[note.path] = _File()
                loose.append((note.path, entries[note.path]))
            elif note.kind == "delete":
                entries.pop(note.path, None)
                loose.append((note.path, None))
            elif note.kind == "sync":
                file = entries[note.path]
                for each in file.loose:
                    _apply(file.durable, each)
                file.loose.clear()
            else:
                entries[note.path].loose.append(note)
            if note.directory:
                durable, loose = dict(entries), []
        for path, entry in loose:
            if random.random() < 0.5:
                if entry is None:
                    durable.pop(path, None)
                else:
                    durable[path] = entry
        return {path: bytes(_remains(file, random)) for path, file in durable.items()}


def _address(call: Any) -> int | None:
    return ctypes.cast(call, c_void_p).value


def _apply(content: bytearray, note: Note) -> None:
    if note.kind == "truncate":
        del content[note.offset :]
        return
    if len(content) < note.offset:
        content.extend(bytes(note.offset - len(content)))
    content[note.offset : note.offset + len(note.data)] = note.data


def _remains(file: _File, random: Random) -> bytearray:
    content = bytearray(file.durable)
    for note in file.loose:
        fate = random.random()
        if fate < 0.35:
            _apply(content, note)
        elif fate < 0.7 and note.kind == "write":
            for at in range(0, len(note.data), SECTOR):
                if random.random() < 0.5:
                    _apply(content, Note("write", note.path, note.offset + at, note.data[at : at + SECTOR]))
    return content
