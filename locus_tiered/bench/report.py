"""The figures as a table for people and as JSON for machines."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from locus_tiered.bench.figures import Figure, show
from locus_tiered.bench.suite import Row

__all__ = ["as_json", "machine_name", "missed", "table"]

Measured = Sequence[tuple[Row, Sequence[Figure]]]

_LEGEND = """A : B shows B alone beside A. M and D are our memory and directory
stores; File, Memory and S3 the SDK's own. turn and journal: what
acknowledges a save that is written behind; excl.: latest="exclusive"."""

_VERDICTS: Mapping[bool | None, Text] = {True: Text("yes", "green"), False: Text("NO", "bold red"), None: Text("")}


def machine_name() -> str:
    """What the figures were taken on, as far as it matters and may be told."""
    cores = os.cpu_count() or 1
    return "2-core VM" if cores == 2 else f"{cores} core{'s' if cores > 1 else ''}"


def _stage() -> str:
    versions = f"Python {platform.python_version()}, locus-sdk {version('locus-sdk')}"
    return f"{machine_name()}, {versions}, load average {os.getloadavg()[0]:.1f}"


def table(measured: Measured, *, quick: bool) -> Table:
    """One table of all rows, for 80 columns."""
    title = f"What a stack costs, {'first look (--quick)' if quick else 'medians of interleaved rounds'}"
    shown = Table(
        title=title,
        caption=f"{_stage()}\n{_LEGEND}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("what", ratio=1)
    for heading in ("SDK alone", "stack", "ratio", "budget"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("kept", no_wrap=True)
    for row, figures in measured:
        shown.add_section()
        shown.add_row(Text(row.title, "bold"))
        for figure in figures:
            alone = "" if figure.sdk is None else show(figure.sdk, figure.unit)
            stack = show(figure.stack, figure.unit)
            verdict = _VERDICTS[figure.within]
            shown.add_row(figure.what, alone, stack, figure.comparison(), figure.allowance(), verdict)
    return shown


def missed(measured: Measured) -> list[Figure]:
    """The figures that are not within their budget."""
    return [figure for _, figures in measured for figure in figures if figure.within is False]


def as_json(measured: Measured, *, quick: bool) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "version": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_name(),
        "python": platform.python_version(),
        "locus_sdk": version("locus-sdk"),
        "locus_tiered": version("locus-tiered"),
        "quick": quick,
        "load_average": os.getloadavg()[0],
        "rows": [
            {"key": row.key, "title": row.title, "figures": [figure.to_json() for figure in figures]}
            for row, figures in measured
        ],
    }
