"""What ``DirectoryCheckpointer`` does on the disk, as plain functions that block.

Layout of a base directory::

    <quoted thread>/<stamp>[.<quoted id>].json    one readable file per checkpoint
    .damaged/<quoted thread>/...                  files that were not what was saved
    .trash/                                       threads on their way out

A file appears by ``rename``, complete or not at all; with ``sync`` it and its directory entry are on the disk
before the call returns (fsync of the file, then of the directory: see fsync(2)). A thread disappears by one
``rename``. Several processes may work on one directory: there is no index that they could overwrite for each
other, the directory listing is the index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.stores.filenames import (
    UNSTAMPED,
    Named,
    checkpoint_file,
    parse_checkpoint_file,
    quote_id,
    unquote_id,
)

__all__ = ["Damaged", "Files"]

VERSION = 1
_HEAD, _STATE, _END = b'{"locus_tiered":', b'"state":', b"\n}\n"


class Damaged(Exception):
    """A file is not what was saved; the message says in which way."""


def _check(metadata: bytes, state: bytes) -> str:
    digest = hashlib.blake2b(metadata, digest_size=16, person=b"locus-tiered")
    digest.update(b"\n")
    digest.update(state)
    return digest.hexdigest()


def encode_file(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as a file: a JSON object of four lines; the state's bytes are shared, not encoded again."""
    state = checkpoint.body.encoded
    metadata = json.dumps(dict(checkpoint.metadata)).encode()
    header = {
        "v": VERSION,
        "stamp": checkpoint.stamp,
        "thread": checkpoint.thread_id,
        "id": checkpoint.id,
        "check": _check(metadata, state),
    }
    lines = (_HEAD + json.dumps(header).encode() + b",", b'"metadata":' + metadata + b",", _STATE, state)
    return b"\n".join(lines) + _END


def _decode_header(head: bytes, metadata: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    try:
        header = json.loads(head[len(_HEAD) : -1])
        raw = metadata[len(b'"metadata":') : -1]
        own = json.loads(raw)
    except ValueError as error:
        raise Damaged("its header is not JSON") from error
    if not head.startswith(_HEAD) or not isinstance(header, dict) or not isinstance(own, dict):
        raise Damaged("it has no header")
    if not isinstance(header.get("thread"), str) or not isinstance(header.get("id"), str):
        raise Damaged("its header names no thread and id")
    return header, own, raw


def decode_file(raw: bytes) -> Checkpoint:
    """The checkpoint in a file; raises :class:`Damaged`."""
    lines = raw.split(b"\n", 3)
    if len(lines) != 4 or lines[2] != _STATE or not lines[3].endswith(_END):
        raise Damaged("it is cut short or not a checkpoint")
    header, metadata, raw_metadata = _decode_header(lines[0], lines[1])
    state = lines[3][: -len(_END)]
    if header.get("check") != _check(raw_metadata, state):
        raise Damaged("its content is not what was saved (checksum)")
    return Checkpoint(header["thread"], header["id"], header.get("stamp"), metadata, Body(state))


@dataclass(frozen=True, slots=True)
class Files:
    """The files below one base directory."""

    base: Path
    sync: bool

    # -- writing -------------------------------------------------------------------------------------

    def write(self, checkpoint: Checkpoint, now: float) -> int:
        """Put a checkpoint in place; answers the bytes written. Other versions under its id go.

        The file's modification time is ``now``, the time of this save.
        """
        folder = self._folder(checkpoint.thread_id)
        target = checkpoint_file(checkpoint.stamp, checkpoint.id)
        raw = encode_file(checkpoint)
        for attempt in range(5):
            self._make(folder)
            # Beside the thread's folder, so that listing a thread never meets it.
            temporary = self.base / f".tmp-{os.getpid()}-{uuid4().hex}"
            try:
                self._write_file(temporary, raw)
                os.utime(temporary, (now, now))
                os.replace(temporary, folder / target)
            except FileNotFoundError:
                # Another process deleted the thread in between.
                temporary.unlink(missing_ok=True)
                if attempt == 4:
                    raise
                continue
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            break
        if checkpoint.id != checkpoint.stamp:
            key = quote_id(checkpoint.id)
            for named in self._versions(folder.name):
                if named.file != target and named.key == key:
                    (folder / named.file).unlink(missing_ok=True)
        self._sync_folder(folder)
        return len(raw)

    def _write_file(self, path: Path, raw: bytes) -> None:
        with open(path, "wb") as file:
            file.write(raw)
            if self.sync:
                file.flush()
                os.fsync(file.fileno())

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self._sync_folder(self.base)

    def _sync_folder(self, folder: Path) -> None:
        if not self.sync:
            return
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    # -- deleting ------------------------------------------------------------------------------------

    def delete(self, thread_id: str, checkpoint_id: str) -> bool:
        """Remove every version of one checkpoint; ``False``: there was none."""
        folder = self._folder(thread_id)
        gone = False
        key = quote_id(checkpoint_id)
        for named in self._versions(folder.name):
            if named.key == key:
                gone |= self._unlink(folder / named.file)
        for path in self._quarantined(thread_id, checkpoint_id):
            gone |= self._unlink(path)
        if gone:
            self._sync_folder(folder)
            with contextlib.suppress(OSError):
                folder.rmdir()
        return gone

    def delete_thread(self, thread_id: str) -> bool:
        """Remove a thread, all at once; ``False``: it had no checkpoint."""
        folder = self._folder(thread_id)
        there = bool(self.names(thread_id))
        shutil.rmtree(self._damaged_folder(thread_id), ignore_errors=True)
        if not folder.is_dir():
            return False
        trash = self.base / ".trash"
        trash.mkdir(exist_ok=True)
        away = trash / uuid4().hex
        try:
            os.rename(folder, away)
        except FileNotFoundError:
            return False
        self._sync_folder(self.base)
        shutil.rmtree(away, ignore_errors=True)
        return there

    def drop(self, thread_folder: str, named: Named) -> bool:
        """Remove one file (expired, or evicted)."""
        folder = self.base / thread_folder
        gone = self._unlink(folder / named.file)
        with contextlib.suppress(OSError):
            folder.rmdir()
        return gone

    @staticmethod
    def _unlink(path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    # -- reading -------------------------------------------------------------------------------------

    def names(self, thread_id: str) -> list[Named]:
        """The thread's files, newest first; older versions of an id are left out."""
        return self.names_in(quote_id(thread_id))

    def names_in(self, thread_folder: str) -> list[Named]:
        """:meth:`names` by the name of the thread's folder."""
        seen: set[str] = set()
        newest = []
        for named in self._versions(thread_folder):
            if named.key not in seen:
                seen.add(named.key)
                newest.append(named)
        return newest

    def _versions(self, thread_folder: str) -> list[Named]:
        """Every file of a folder, newest first: a crash in the middle of a save may leave two versions of an id."""
        try:
            files = os.listdir(self.base / thread_folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((named for file in files if (named := parse_checkpoint_file(file)) is not None), reverse=True)

    def read(self, thread_id: str, named: Named) -> Checkpoint | None:
        """The checkpoint in a file; ``None`` when the file is gone. Raises :class:`Damaged`."""
        try:
            raw = (self._folder(thread_id) / named.file).read_bytes()
        except FileNotFoundError:
            return None
        checkpoint = decode_file(raw)
        stamp = None if named.stamp == UNSTAMPED else named.stamp
        if checkpoint.thread_id != thread_id or named.key != quote_id(checkpoint.id) or checkpoint.stamp != stamp:
            raise Damaged("it belongs to another thread, id or stamp than its name says")
        return checkpoint

    def read_header(self, thread_folder: str, named: Named) -> Checkpoint | None:
        """A checkpoint without its state; ``None`` when the file is gone. Raises :class:`Damaged`."""
        try:
            with open(self.base / thread_folder / named.file, "rb") as file:
                head, metadata = file.readline().rstrip(b"\n"), file.readline().rstrip(b"\n")
        except FileNotFoundError:
            return None
        header, own, _ = _decode_header(head, metadata)
        return Checkpoint(header["thread"], header["id"], header.get("stamp"), own, Body(b"{}"))

    def touch(self, thread_id: str, named: Named) -> None:
        """Note that a file was used, in its access time."""
        path = self._folder(thread_id) / named.file
        with contextlib.suppress(OSError):
            os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))

    # -- all threads ---------------------------------------------------------------------------------

    def thread_folders(self) -> list[str]:
        """The names of all threads' folders, in no order."""
        try:
            with os.scandir(self.base) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        except FileNotFoundError:
            return []

    def thread_of(self, thread_folder: str) -> str | None:
        """The thread's id; read from one of its files where the folder's name is a hash."""
        thread_id = unquote_id(thread_folder)
        if thread_id is not None:
            return thread_id
        for named in self.names_in(thread_folder):
            with contextlib.suppress(Damaged):
                header = self.read_header(thread_folder, named)
                if header is not None:
                    return header.thread_id
        return None

    def everything(self) -> list[tuple[str, str, Named]]:
        """``(stamp, thread folder, file)`` of every checkpoint, newest first."""
        found = [(named.stamp, folder, named) for folder in self.thread_folders() for named in self.names_in(folder)]
        found.sort(reverse=True)
        return found

    def sizes(self) -> Iterator[tuple[float, int, str, Named]]:
        """``(last use, bytes, thread folder, file)`` of every checkpoint."""
        for folder in self.thread_folders():
            for named in self.names_in(folder):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(self.base / folder / named.file)
                    yield max(status.st_atime, status.st_mtime), status.st_size, folder, named

    def saved_at(self, thread_folder: str, named: Named) -> float:
        """When the file was saved here, in seconds since the epoch; 0 when it is gone."""
        try:
            return os.stat(self.base / thread_folder / named.file).st_mtime
        except FileNotFoundError:
            return 0.0

    def identity(self) -> tuple[int, int] | None:
        """Which directory the base is; ``None`` when it is not there. Raises ``OSError`` when it is no directory."""
        try:
            status = os.stat(self.base)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(20, "a file is in the place of the directory", str(self.base))
        return status.st_dev, status.st_ino

    def sweep(self, before: float) -> None:
        """Remove what processes that died have left: threads half deleted, files half written before ``before``."""
        shutil.rmtree(self.base / ".trash", ignore_errors=True)
        for path in self.base.glob(".tmp-*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()

    # -- damage --------------------------------------------------------------------------------------

    def quarantine(self, thread_id: str, named: Named) -> Path:
        """Move a damaged file out of the way; it is never deleted."""
        folder = self._damaged_folder(thread_id)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / named.file
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._folder(thread_id) / named.file, target)
        return target

    def is_quarantined(self, thread_id: str, checkpoint_id: str) -> bool:
        """Whether a damaged version of this checkpoint was found."""
        return bool(self._quarantined(thread_id, checkpoint_id))

    def _quarantined(self, thread_id: str, checkpoint_id: str) -> list[Path]:
        folder = self._damaged_folder(thread_id)
        try:
            files = os.listdir(folder)
        except FileNotFoundError:
            return []
        key = quote_id(checkpoint_id)
        parsed = (parse_checkpoint_file(file) for file in files)
        return [folder / named.file for named in parsed if named is not None and named.key == key]

    def _folder(self, thread_id: str) -> Path:
        return self.base / quote_id(thread_id)

    def _damaged_folder(self, thread_id: str) -> Path:
        return self.base / ".damaged" / quote_id(thread_id)
