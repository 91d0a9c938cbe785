"""The directory of a journal: one sub-directory per process, held by a lock; what nobody holds is adopted.

Layout::

    <journal>/.lock              held while somebody looks for orphans
    <journal>/<name>/lock        held (flock) for as long as a process writes here, and <name> itself likewise
    <journal>/<name>/journal.db  the rows, beside it SQLite's own -wal and -shm
    <journal>/.damaged/<name>/   what could not be read to the end, put aside for a human
    <journal>/.gone-<name>/      what was taken over, on its way out

A lock ends with its process, however that ends. The sub-directory is locked beside its lock file, because a cleaner of
old files may remove an empty file, but no directory with something in it. Locks do not work on network file systems,
nor does SQLite's log: those are refused. A forked child holds none of its parent's locks. What appears or goes here is
fsynced in its directory: a journal that was taken over does not come back with a power cut.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from uuid import uuid4

from locus_tiered.core.errors import JournalError, JournalLocked, shorten
from locus_tiered.core.logs import logger_for

if sys.platform != "win32":
    import fcntl

__all__ = ["FILE", "Folder", "Seat", "network_file_system"]

logger = logger_for(__name__)

FILE = "journal.db"
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|fuse\.ceph|glusterfs|fuse\.glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|ncpfs|"
    r"fuse\.(sshfs|s3fs|s3ql|rclone|gcsfuse|goofys|davfs|juicefs|mount-s3)|davfs|virtiofs-nfs|acfs"
)
_MOUNTS = Path("/proc/self/mounts")
_OURS = re.compile(r"\d+-[0-9a-f]{12}")
_GONE = ".gone-"
_LOOKS, _LOOK_SECONDS = 600, 0.05
_never = Event()


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


_descriptors: set[int] = set()  # of locks that this process holds
_forking = Lock()  # no fork between the opening of a lock and its being noted


def _open_lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    with _forking:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _descriptors.add(descriptor)
    return descriptor


def _close_lock(descriptor: int) -> None:
    """Let go of a lock: unlocked by name, because a child that was just forked may have its copy still open."""
    with _forking:
        if descriptor in _descriptors:
            _descriptors.discard(descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _after_fork() -> None:
    """A lock belongs to the open file, which a child inherits: the child closes its copies, and unlocks nothing."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)


def _sync_directory(path: Path) -> None:
    """Have the entries of a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Seat:
    """One sub-directory, held by locks until :meth:`release`."""

    def __init__(self, path: Path, descriptors: Sequence[int]) -> None:
        self.path = path
        self._held = list(descriptors)

    @property
    def file(self) -> Path:
        """The journal's file in it."""
        return self.path / FILE

    @property
    def bytes(self) -> int:
        """How much is in it."""
        return sum(_bytes_of(self.path / f"{FILE}{end}") for end in ("", "-wal"))

    def release(self) -> None:
        """Let go of the locks."""
        held, self._held = self._held, []
        for descriptor in held:
            _close_lock(descriptor)

    def remove(self) -> None:
        """Remove the sub-directory, and let go of it. It goes at once: a part of it is never taken for a journal."""
        target = self.path.parent / f"{_GONE}{self.path.name}"
        os.rename(self.path, target)
        _sync_directory(self.path.parent)
        shutil.rmtree(target, ignore_errors=True)
        self.release()

    def copy_aside(self) -> Path:
        """Copy the files to where a human will look; answers where they are."""
        target = self._aside()
        target.mkdir(mode=0o700)
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(self.path / f"{FILE}{end}", target / f"{FILE}{end}")
        return target

    def put_aside(self) -> Path:
        """Move the sub-directory to where a human will look, and let go of it; answers where it is now."""
        target = self._aside()
        os.rename(self.path, target)
        for directory in (target.parent, self.path.parent):
            _sync_directory(directory)
        self.release()
        return target

    def _aside(self) -> Path:
        aside = self.path.parent / ".damaged"
        aside.mkdir(mode=0o700, exist_ok=True)
        return aside / f"{self.path.name}-{uuid4().hex[:8]}"


class Folder:
    """A journal's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the directory; raises :class:`JournalError` where no journal can be."""
        if sys.platform == "win32":
            raise JournalError("a journal needs the file locks of a POSIX system; use write-through here")
        try:
            missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for each in missing:
                _sync_directory(each.parent)
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
        """Nobody else looks for orphans, or leaves, while the block runs. Waits half a minute for whoever does."""
        descriptor = _open_lock(self.path / ".lock")
        try:
            for look in range(_LOOKS):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if look + 1 == _LOOKS:
                        raise JournalLocked(
                            f"journal {shorten(str(self.path))} is being opened or closed by another process for more "
                            f"than {_LOOKS * _LOOK_SECONDS:g} s; nothing was saved. Is that process stopped?"
                        ) from error
                    _never.wait(_LOOK_SECONDS)
            yield
        finally:
            _close_lock(descriptor)

    def orphans(self) -> tuple[list[Seat], int]:
        """Every sub-directory that no process holds, taken over now, and how many are not ours to take.

        Call it :meth:`alone`.
        """
        seats: list[Seat] = []
        barred = 0
        try:
            for entry in sorted(self.path.iterdir()):
                if entry.name.startswith(_GONE):
                    shutil.rmtree(entry, ignore_errors=True)
                elif _OURS.fullmatch(entry.name) and entry.is_dir():
                    try:
                        seat = self._take(entry)
                    except OSError as error:
                        logger.warning("journal %s cannot be taken over (errno %s); left alone", entry, error.errno)
                        barred += 1
                        continue
                    if seat is not None:
                        seats.append(seat)
        except BaseException:
            for seat in seats:
                seat.release()
            raise
        return seats, barred

    def new(self) -> Seat:
        """A sub-directory of our own."""
        entry = self.path / f"{os.getpid()}-{uuid4().hex[:12]}"
        entry.mkdir(mode=0o700)
        _sync_directory(self.path)
        seat = self._take(entry)
        if seat is None:
            raise JournalLocked(
                f"journal {shorten(str(self.path))}: a directory just made is locked by somebody else; nothing was "
                "saved. Is it on a file system with real locks?"
            )
        return seat

    @staticmethod
    def _take(entry: Path) -> Seat | None:
        held: list[int] = []
        try:
            held.append(_open_lock(entry, os.O_RDONLY | os.O_DIRECTORY))
            held.append(_open_lock(entry / "lock"))
            if all(_lock(each, entry) for each in held):
                seat, held = Seat(entry, held), []
                return seat
            return None
        finally:
            for each in held:
                _close_lock(each)


def _lock(descriptor: int, entry: Path) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
            return False
        raise JournalError(
            f"journal {shorten(str(entry))} cannot be locked (errno {error.errno}); nothing was saved. Put it on "
            "a local disk"
        ) from error
    return True


def _bytes_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
