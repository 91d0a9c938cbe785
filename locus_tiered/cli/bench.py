"""``bench``: what a stack costs and saves on its user's own stores."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import BenchAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack, Yes
from locus_tiered.cli.plotting import amount, ratio_told, svg
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean
from locus_tiered.cli.working import plain_table

__all__ = ["bench"]


def bench(
    stack: Stack,
    rounds: Annotated[int, typer.Option("--rounds", "-r", min=1, metavar="N", help="Rounds to take medians of.")] = 5,
    plot: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the figures into an SVG file.")
    ] = None,
    yes: Yes = False,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a stack against its own home used alone: an agent's turn, saves and loads.

    Both sides take turns in one run, so ratios hold also on a busy machine. A checkpointer that is no stack is
    compared with memory and a temporary directory in front of it. Works in threads of its own, on the real stores,
    and deletes them afterwards.
    """

    async def work(session: Session) -> Done:
        from locus_tiered.bench.report import machine_name
        from locus_tiered.cli.measuring import measure

        if plot is not None and not plot.resolve().parent.is_dir():
            raise Failure(f"--svg {plot}: there is no such directory", Exit.USAGE)
        opened = session.open(stack, allow_import=allow_import)
        home = opened.places[-1]
        session.confirm(f"Save about {(rounds + 1) * 25} small checkpoints in {opened.name}, and delete them again?")
        with tempfile.TemporaryDirectory(prefix="locus-bench-") as directory:
            measured = opened if opened.layer.ordering() is not None else _in_front(opened, Path(directory))
            with session.progress("rounds", rounds + 1) as bar:
                rows = await measure(measured, home, rounds=rounds, bar=bar)
            if measured is not opened:
                await measured.layer.close()
        answer = BenchAnswer(stack=opened.name, home=home.name, machine=machine_name(), rounds=rounds, rows=rows)
        if plot is not None:
            caption = f"{answer.machine}, medians of {rounds} interleaved rounds; shorter is better"
            title = f"{measured.name} beside {home.name} alone"
            plot.write_text(svg(rows, title=clean(title), caption=caption), encoding="utf-8")
        code = Exit.FOUND if any(row.kept is False for row in rows) else Exit.FINE
        return Done(answer, code, lambda console: _show(console, answer, plot))

    run(Session("bench", json=json, yes=yes), work, debug=debug)


def _in_front(opened: Opened, directory: Path) -> Opened:
    from locus_tiered.layers.tiered import TieredCheckpointer
    from locus_tiered.stores.directory import DirectoryCheckpointer
    from locus_tiered.stores.memory import BoundedMemoryCheckpointer

    near = (BoundedMemoryCheckpointer("64MiB"), DirectoryCheckpointer(directory / "near"))
    return Opened(f"memory > directory > {opened.name}", TieredCheckpointer(*near, opened.layer))


def _show(console: Console, answer: BenchAnswer, plot: Path | None) -> None:
    table = plain_table(
        "what", (f"{answer.home} alone", "right"), ("stack", "right"), ("ratio", "right"), ("budget", "right")
    )
    for row in answer.rows:
        style = "bold red" if row.kept is False else "green" if row.kept else ""
        budget = "" if row.budget is None else f"1/{1 / row.budget:.0f}"
        cells = (amount(row.alone, row.unit), amount(row.stack, row.unit))
        table.add_row(row.what, *cells, Text(ratio_told(row.ratio), style), budget)
    console.print(table)
    console.print(f"{answer.machine}, medians of {answer.rounds} interleaved rounds.")
    if plot is not None:
        console.print(Text(f"The picture: {clean(str(plot))}"), soft_wrap=True)
