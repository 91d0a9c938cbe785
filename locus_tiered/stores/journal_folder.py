"""The directory of a journal: one sub-directory per process, held by a lock; what nobody holds is adopted.

Layout::

    <journal>/.lock              held while somebody looks for orphans
    <journal>/<name>/lock        held (flock) for as long as a process writes here
    <journal>/<name>/journal.db  the rows, beside it SQLite's own -wal and -shm
    <journal>/.damaged/<name>/   what could not be read to the end, put aside for a human

A lock ends with its process, however that ends. It does not work on network file systems, nor does SQLite's log:
those are refused. A forked child holds none of its parent's locks.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from locus_tiered.core.errors import JournalError, JournalLocked, shorten

if sys.platform != "win32":
    import fcntl

__all__ = ["FILE", "Folder", "Seat", "network_file_system"]

FILE = "journal.db"
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|fuse\.ceph|glusterfs|fuse\.glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|ncpfs|"
    r"fuse\.(sshfs|s3fs|s3ql|rclone|gcsfuse|goofys|davfs|juicefs|mount-s3)|davfs|virtiofs-nfs|acfs"
)
_MOUNTS = Path("/proc/self/mounts")


def network_file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the network file system that ``path`` is on; ``None``: it is on none, or nobody can tell."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where, best, kind = str(path.resolve()), -1, ""
    for line in lines:
        parts = line.split(" ")
        if len(parts) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), parts[1])
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), parts[2]
    return kind if _NETWORK.fullmatch(kind) else None


class Seat:
    """One sub-directory, held by a lock until :meth:`release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _held.add(self)

    @property
    def file(self) -> Path:
        """The journal's file in it."""
        return self.path / FILE

    def release(self) -> None:
        """Let go of the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the sub-directory, and let go of it."""
        shutil.rmtree(self.path)
        self.release()

    def put_aside(self) -> Path:
        """Move the sub-directory to where a human will look, and let go of it; answers where it is now."""
        aside = self.path.parent / ".damaged"
        aside.mkdir(exist_ok=True)
        target = aside / f"{self.path.name}-{uuid4().hex[:8]}"
        os.rename(self.path, target)
        self.release()
        return target


_held: weakref.WeakSet[Seat] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock belongs to the open file, which a child inherits: the child lets go of its copy."""
    for seat in list(_held):
        seat.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Folder:
    """A journal's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the directory; raises :class:`JournalError` where no journal can be."""
        if sys.platform == "win32":
            raise JournalError("a journal needs the file locks of a POSIX system; use write-through here")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(
                f"journal {shorten(str(self.path))} cannot be made ({type(error).__name__}, errno {error.errno}); "
                "nothing was saved. Give it a directory that this process may write to"
            ) from error
        kind = network_file_system(self.path)
        if kind is not None:
            raise JournalError(
                f"journal {shorten(str(self.path))} is on a network file system ({kind}), which keeps neither the "
                "locks nor the fsyncs that a journal stands on. Nothing was saved: put it on a local disk"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else looks for orphans, or leaves, while the block runs."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def orphans(self) -> list[Seat]:
        """Every sub-directory that no process holds, taken over now; the largest first. Call it :meth:`alone`."""
        seats = []
        for entry in sorted(self.path.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                seat = self._take(entry)
                if seat is not None:
                    seats.append(seat)
        return sorted(seats, key=lambda seat: -_bytes_of(seat.file))

    def new(self) -> Seat:
        """A sub-directory of our own."""
        entry = self.path / f"{os.getpid()}-{uuid4().hex[:12]}"
        entry.mkdir(mode=0o700)
        seat = self._take(entry)
        if seat is None:
            raise JournalLocked(
                f"journal {shorten(str(self.path))}: a directory just made is locked by somebody else; nothing was "
                "saved. Is it on a file system with real locks?"
            )
        return seat

    @staticmethod
    def _take(entry: Path) -> Seat | None:
        descriptor = os.open(entry / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
                return None
            raise JournalError(
                f"journal {shorten(str(entry))} cannot be locked (errno {error.errno}); nothing was saved. Put it on "
                "a local disk"
            ) from error
        return Seat(entry, descriptor)


def _bytes_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
