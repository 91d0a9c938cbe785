"""File names for any id: injective, readable, and the same on file systems that ignore case.

An id is percent-encoded (RFC 3986, 2.1). One with capital letters gets a short hash at the end, so that
``Thread`` and ``thread`` never meet on a file system that takes them for one. One that would be too long is
named by its hash alone; its id is then read from the file. A checkpoint's file name starts with its stamp, so
that one directory listing puts a thread in order without opening a file::

    01a2...f3.json                      id is the stamp
    01a2...f3.draft%2F1.json            id is "draft/1"
    01a2...f3.~9c1185a5c5e9fc5461.json  a long id
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from urllib.parse import quote, unquote

__all__ = ["UNSTAMPED", "Named", "checkpoint_file", "parse_checkpoint_file", "quote_id", "unquote_id"]

UNSTAMPED = "0" * 32
"""In place of the stamp of a checkpoint that was saved before there were stamps."""

SUFFIX = ".json"
_MOST = 180  # of the 255 bytes that file systems allow, beside the stamp and the suffix


def _hash(text: str, size: int) -> str:
    raw = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=size, person=b"locus-tiered").hexdigest()


def quote_id(text: str) -> str:
    """The file name of an id."""
    quoted = quote(text, safe="", errors="surrogatepass").replace("~", "%7E")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if any("A" <= character <= "Z" for character in text):
        quoted = f"{quoted}~{_hash(text, 4)}"
    return quoted if len(quoted) <= _MOST else f"~{_hash(text, 20)}"


def unquote_id(name: str) -> str | None:
    """The id behind a file name; ``None`` when the name is a hash."""
    if name.startswith("~"):
        return None
    return unquote(name.partition("~")[0], errors="surrogatepass")


class Named(NamedTuple):
    """A checkpoint file by its name: in order of stamps when sorted."""

    stamp: str
    quoted: str
    """The quoted id; empty when the id is the stamp."""
    file: str

    @property
    def id(self) -> str | None:
        """The id; ``None`` when it must be read from the file."""
        return unquote_id(self.quoted) if self.quoted else self.stamp

    @property
    def key(self) -> str:
        """What all versions of one checkpoint share: ``quote_id`` of its id (a stamp quotes to itself)."""
        return self.quoted or self.stamp


def checkpoint_file(stamp: str | None, checkpoint_id: str) -> str:
    """The file name of a checkpoint."""
    if stamp == checkpoint_id:
        return stamp + SUFFIX
    return f"{stamp or UNSTAMPED}.{quote_id(checkpoint_id)}{SUFFIX}"


def parse_checkpoint_file(file: str) -> Named | None:
    """What a file name says; ``None`` for a file that is no checkpoint."""
    if not file.endswith(SUFFIX) or len(file) < 37:
        return None
    stamp, rest = file[:32], file[32 : -len(SUFFIX)]
    if (rest and rest[0] != ".") or rest == "." or stamp.strip("0123456789abcdef"):
        return None
    return Named(stamp, rest[1:], file)
