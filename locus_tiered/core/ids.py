"""Ids in the alphabet of a backend (law 12).

A thread's or checkpoint's id is opaque to a stack; many a backend mangles some. An id that a backend keeps
faithfully is stored as it is, so that readers without the stack find it. Any other is stored under a name that
starts with ``lt-``: spelled out with ``-xx`` for every byte that is not safe (``lt-x-a-2fb`` is ``a/b``), or,
when that would be too long, as a hash (``lt-h-...``), whose id is then read from the envelope. Ids of users
that start with ``lt-`` are spelled out too, so no two ids ever share a name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = [
    "ANY",
    "KEPT_DAYS",
    "RESERVED",
    "IdRule",
    "again_marker",
    "has_surrogates",
    "is_hashed",
    "marked_name",
    "plain_text",
]

RESERVED = "locus-tiered.reserved."
"""Threads whose ids start so belong to the stack itself (tombstones): hidden from every listing."""

KEPT_DAYS = 14
"""Days that a tombstone is kept, whatever a vacuum goes by; a former process's write counts for half as long."""

MARK = "lt-"
_SPELLED, _HASHED, _AGAIN = "lt-x-", "lt-h-", "lt-again-"
_TOKEN = re.compile(rb"[A-Za-z0-9_]|-[0-9a-f]{2}")
_KEPT = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def has_surrogates(text: str) -> bool:
    """Whether ``text`` holds a lone surrogate, which UTF-8 cannot encode."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def plain_text(text: str) -> bool:
    """Text that every database keeps: no NUL, no lone surrogates."""
    return "\0" not in text and not has_surrogates(text)


@dataclass(frozen=True, slots=True)
class IdRule:
    """Which ids a backend keeps faithfully, and up to how many bytes of UTF-8.

    ``reserved`` are names that the backend uses itself.
    """

    safe: Callable[[str], bool] | None = None
    most: int | None = None
    reserved: Collection[str] = ()

    def encode(self, text: str) -> str:
        """The name under which the backend keeps this id."""
        if self.safe is None and self.most is None and not text.startswith(MARK):
            return text
        if not text.startswith(MARK) and text not in self.reserved and self._fits(text):
            return text
        raw = text.encode("utf-8", "surrogatepass")
        spelled = _SPELLED + "".join(chr(byte) if byte in _KEPT else f"-{byte:02x}" for byte in raw)
        if self.most is None or len(spelled) <= self.most:
            return spelled
        return _HASHED + hashlib.blake2b(raw, digest_size=20, person=b"locus-tiered").hexdigest()

    def _fits(self, text: str) -> bool:
        if self.safe is not None and not self.safe(text):
            return False
        return self.most is None or len(text.encode("utf-8", "surrogatepass")) <= self.most

    @staticmethod
    def decode(name: str) -> str | None:
        """The id behind a name; ``None`` for a hash, which does not tell."""
        if name.startswith(_HASHED):
            return None
        if not name.startswith(_SPELLED):
            return name
        spelled = name[len(_SPELLED) :].encode("utf-8", "surrogatepass")
        tokens = _TOKEN.findall(spelled)
        if b"".join(tokens) != spelled:
            return name  # not one of ours
        raw = b"".join(token if len(token) == 1 else bytes([int(token[1:], 16)]) for token in tokens)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return name


ANY = IdRule()
"""Every id as it is (but for those that start with ``lt-``)."""


def is_hashed(name: str) -> bool:
    """Whether the name is a hash, so that its id must be read from the envelope."""
    return name.startswith(_HASHED)


def again_marker(name: str) -> str:
    """The name of the marker that says: the checkpoint ``name`` was saved again, read its envelope."""
    return _AGAIN + name


def marked_name(name: str) -> str | None:
    """The name that a marker speaks of, or ``None`` when ``name`` is no marker."""
    return name[len(_AGAIN) :] if name.startswith(_AGAIN) else None
