"""The application: every command under its name."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from locus_tiered.cli.bench import bench
from locus_tiered.cli.check import check
from locus_tiered.cli.demo import demo
from locus_tiered.cli.diff import diff
from locus_tiered.cli.explain import explain
from locus_tiered.cli.flush import flush
from locus_tiered.cli.ls import ls
from locus_tiered.cli.migrate import migrate
from locus_tiered.cli.prune import prune
from locus_tiered.cli.repair import repair
from locus_tiered.cli.schema import schema
from locus_tiered.cli.show import show
from locus_tiered.cli.stats import stats
from locus_tiered.cli.threads import threads
from locus_tiered.cli.verify import verify

__all__ = ["COMMANDS", "app", "main"]

app = typer.Typer(
    name="locus-tiered",
    help="Look into the checkpoint stores of Locus agents, and keep them in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    check,
    explain,
    schema,
    threads,
    ls,
    show,
    diff,
    stats,
    flush,
    verify,
    repair,
    migrate,
    prune,
    bench,
    demo,
)
"""In the order of the help."""

for command in COMMANDS:
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from locus_tiered import __version__

        typer.echo(f"locus-tiered {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Look into the checkpoint stores of Locus agents, and keep them in order."""


def main() -> None:
    """The console script."""
    # A shell script's background job ignores Ctrl-C; a migration there should still end cleanly.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="locus-tiered")
    except KeyboardInterrupt:
        sys.exit(130)
