"""``python -m locus_tiered.bench``: measure, print one table, write JSON where asked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from locus_tiered.bench.report import as_json, missed, table
from locus_tiered.bench.suite import ROWS, measure
from locus_tiered.testing.services import ServiceError

__all__ = ["main"]


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m locus_tiered.bench",
        description="Measure a stack against the SDK's own checkpointers, side by side.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE as JSON")
    parser.add_argument("--quick", action="store_true", help="a first look: seconds instead of minutes")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed")
    parser.add_argument("--only", nargs="+", choices=[row.key for row in ROWS], metavar="ROW", help="of: %(choices)s")
    arguments = parser.parse_args(words)
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such directory")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; answers the exit code.

    0 when measured; 1 when a server is missing or, with ``--strict``, a budget was missed.
    """
    arguments = _arguments(words)
    rows = [row for row in ROWS if arguments.only is None or row.key in arguments.only]
    console, progress = Console(), Console(stderr=True)
    measured = []
    try:
        with progress.status("measuring") as status:
            for row in rows:
                status.update(f"measuring: {row.title}")
                measured.append((row, measure(row, quick=arguments.quick)))
    except ServiceError as error:
        progress.print(f"An S3 server is needed: {error}. --only leaves rows out.", markup=False)
        return 1
    console.print(table(measured, quick=arguments.quick))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(measured, quick=arguments.quick), indent=2) + "\n")
        console.print(f"All figures: {arguments.json}")
    over = missed(measured)
    if over:
        console.print(f"{len(over)} of these figures are over their budget.")
    return 1 if over and arguments.strict else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
