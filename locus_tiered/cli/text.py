"""Foreign text, times and sizes as a terminal shows them.

What comes out of a store was written by users and models: :func:`clean` keeps it from moving the cursor or
changing the terminal's title. :func:`redact` takes the passwords out of what names a store.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

__all__ = [
    "clean",
    "clean_id",
    "count",
    "one_line",
    "parse_age",
    "redact",
    "show_age",
    "show_size",
    "show_time",
]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_SECRET = re.compile(
    r"(?i)\b(password|passwd|pwd|secret|token|secret_key|access_key|api_key|sig|signature)=([^\s&;,]+)"
)


def clean(text: str) -> str:
    """``text`` with every control character but newline and tab made visible, and none that reorders a line."""
    return "".join(_visible(character) for character in text)


def clean_id(text: str) -> str:
    """An id cleaned: on one line, newlines and tabs made visible as well."""
    return clean(text).replace("\n", "\u240a").replace("\t", "\u2409")


def _visible(character: str) -> str:
    if character in "\n\t":
        return character
    kind = unicodedata.category(character)
    if kind == "Cc":
        code = ord(character)
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\\x{code:02x}"
    if kind in ("Cs", "Cf") and character not in "\u200c\u200d":  # these two join letters and emoji
        return f"\\u{ord(character):04x}"
    return character


def one_line(text: str, most: int) -> str:
    """``text`` cleaned, on one line, cut to ``most`` characters."""
    line = " ".join(clean(text[: 4 * most]).split())
    return line if len(line) <= most and len(text) <= 4 * most else line[: most - 1].rstrip() + "…"


def redact(text: str) -> str:
    """``text`` without the user names and passwords of URLs and the values of ``password=`` and its kin."""
    return _SECRET.sub(r"\1=***", _USERINFO.sub("***@", text))


def count(number: int, noun: str) -> str:
    """``1 thread``, ``2,000 threads``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def show_size(size: float) -> str:
    """Bytes for people: ``740 B``, ``12.3 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_age(seconds: float | None) -> str:
    """A span of time in its largest unit: ``35 s``, ``4 h``, ``12 d``."""
    if seconds is None:
        return "?"
    seconds = max(0.0, seconds)
    for unit, size, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def show_time(seconds: float | None) -> str:
    """A moment in UTC, to the second; ``?`` when nobody knows."""
    return "?" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def parse_age(text: str) -> float:
    """Seconds from ``90s``, ``15m``, ``12h``, ``30d``, ``8w``; ``ValueError`` for anything else."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an age: write a number and s, m, h, d or w, like 30d")
    return float(match[1]) * _UNITS[match[2]]
