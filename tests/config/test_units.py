"""Durations as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.units import parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("15s", 15.0), ("250ms", 0.25), ("10m", 600.0), ("10min", 600.0), ("2h", 7200.0), ("7d", 604_800.0),
        ("1w", 604_800.0), ("1h30m", 5400.0), (" 1 h 30 m ", 5400.0), ("1.5h", 5400.0), ("15", 15.0), (15, 15.0),
        (0.5, 0.5), (0, 0.0), ("0s", 0.0), ("5S", 5.0),
    ],
)  # fmt: skip
def test_durations(written: Any, seconds: float) -> None:
    assert parse_seconds(written, "it") == seconds


@pytest.mark.parametrize(
    "written",
    ["", " ", "s", "15x", "5 5", "1h30", "-3", "-3s", "1e3", "nan", "9" * 50, "5s" * 50, True, None, [], -1, 1e30,
     float("nan"), float("inf"), 10**400],
)  # fmt: skip
def test_what_is_no_duration(written: Any) -> None:
    with pytest.raises(StackConfigError, match="it="):
        parse_seconds(written, "it")


@pytest.mark.parametrize("size", [2**64, "9999999TiB", "1" * 400, 10**400])
def test_more_bytes_than_any_machine_has(size: Any) -> None:
    with pytest.raises(StackConfigError, match="more than any machine has"):
        parse_bytes(size, "it")
