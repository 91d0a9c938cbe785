"""Sizes and durations as people write them: ``256MiB``, ``15s``."""

from __future__ import annotations

import re

from locus_tiered.core.errors import StackConfigError, shorten

__all__ = ["DAY", "parse_bytes", "parse_seconds", "positive_seconds", "show_bytes"]

DAY = 86_400.0
"""Seconds."""

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_MOST_BYTES = 2**63
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")

_SECONDS = {
    "": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0,
    "h": 3600.0, "d": DAY, "w": 7 * DAY,
}  # fmt: skip
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_MOST_SECONDS = 100 * 366 * DAY


def parse_bytes(value: int | str, what: str) -> int:
    """A positive number of bytes from ``268435456``, ``"256MiB"`` or ``"1.5 GB"``.

    Raises :class:`StackConfigError` for anything else, naming ``what`` it was for.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        factor = _BYTES.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise StackConfigError(f"{what}={value!r} is not a size", hint='write bytes, or like "256MiB"')
        number = float(match[1]) * factor
        size = int(number) if number <= _MOST_BYTES else _MOST_BYTES + 1
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise StackConfigError(f"{what}={shorten(value)} is not a size", hint='write bytes, or like "256MiB"')
    if size > _MOST_BYTES:
        raise StackConfigError(f"{what}={shorten(value)} is more than any machine has")
    if size <= 0:
        raise StackConfigError(f"{what}={value!r} must be more than 0")
    return size


def show_bytes(size: int) -> str:
    """``size`` in the largest binary unit that keeps it whole, as ``parse_bytes`` reads it."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def positive_seconds(value: float | None, what: str) -> float | None:
    """A number of seconds above 0, or ``None``; :class:`StackConfigError` for anything else."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise StackConfigError(f"{what}={shorten(value)} must be a number of seconds above 0")
    return float(value)


def parse_seconds(value: float | str, what: str) -> float:
    """A number of seconds, 0 or more, from ``15``, ``"15s"``, ``"250ms"``, ``"10m"``, ``"1h30m"`` or ``"7d"``.

    Raises :class:`StackConfigError` for anything else, naming ``what`` it was for.
    """
    hint = 'write seconds, or like "15s", "10m", "1h30m"'
    if isinstance(value, str):
        seconds, place, text = 0.0, 0, value.rstrip()
        while match := _SPAN.match(text, place) if place < len(text) <= 40 else None:
            factor = _SECONDS.get(match[2].lower())
            # A number without a unit is seconds, but only where it stands alone.
            if factor is None or (not match[2] and match[0] != text):
                break
            seconds, place = seconds + float(match[1]) * factor, match.end()
        if not text or place != len(text):
            raise StackConfigError(f"{what}={shorten(value)} is not a duration", hint=hint)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _MOST_SECONDS else float("inf")
    else:
        raise StackConfigError(f"{what}={shorten(value)} is not a duration", hint=hint)
    if not 0 <= seconds <= _MOST_SECONDS:
        raise StackConfigError(f"{what}={shorten(value)} must be between 0 and a hundred years", hint=hint)
    return seconds
