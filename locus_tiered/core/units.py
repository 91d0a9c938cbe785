"""Sizes and durations as people write them: ``256MiB``, ``15s``."""

from __future__ import annotations

import re

from locus_tiered.core.errors import StackConfigError, shorten

__all__ = ["parse_bytes", "positive_seconds", "show_bytes"]

_BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(value: int | str, what: str) -> int:
    """A positive number of bytes from ``268435456``, ``"256MiB"`` or ``"1.5 GB"``.

    Raises :class:`StackConfigError` for anything else, naming ``what`` it was for.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        factor = _BYTES.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise StackConfigError(f"{what}={value!r} is not a size", hint='write bytes, or like "256MiB"')
        number = float(match[1])
        if number * factor > 2**63:
            raise StackConfigError(f"{what}={shorten(value)} is more than any machine has")
        size = int(number * factor)
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise StackConfigError(f"{what}={shorten(value)} is not a size", hint='write bytes, or like "256MiB"')
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
