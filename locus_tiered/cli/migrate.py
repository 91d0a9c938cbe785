"""``migrate``: every thread from one stack to another."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import MigrateAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.journals import rows_pending
from locus_tiered.cli.migration import Migration
from locus_tiered.cli.migration_state import StateFile, default_path
from locus_tiered.cli.opening import Place, store_of
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Pattern, Threads, Timeout, Yes
from locus_tiered.cli.reading import Reader
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean, clean_id, count, show_size
from locus_tiered.cli.working import chosen, each, plain_table, show_unreachable, with_unreachable
from locus_tiered.core.leaf import Leaf

__all__ = ["migrate"]


def migrate(
    source: Annotated[str, typer.Option("--from", metavar="STACK", show_default=False, help="Where the threads are.")],
    destination: Annotated[
        str, typer.Option("--to", metavar="STACK", show_default=False, help="Where they are to be.")
    ],
    pattern: Pattern = "*",
    thread: Threads = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="FILE", help="Where to note what was done. [locus-tiered-migrate-*.state]"),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror-deletes", help="Delete copies of threads that the source has deleted since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be copied.")] = False,
    yes: Yes = False,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy all threads to another stack: in order, verified by digest, resumable.

    The source is only read, and may be in use. Whatever stops it, the same command goes on where it was; run again
    later, it copies what has changed since. Each checkpoint is read back and compared; the newest state of every
    thread is the same at both ends. Exit code 1 when a thread could not be copied, or when the source has rows in
    journals that it has not sent yet.
    """

    async def work(session: Session) -> Done:
        left = session.open(source, allow_import=allow_import)
        right = session.open(destination, allow_import=allow_import)
        readers = [Reader(each_, timeout=timeout) for each_ in (left, right)]
        _check_apart(source, destination, *readers)
        path = state or default_path(source, destination)
        threads = await chosen(readers[0], thread, pattern)
        if not dry_run:
            session.confirm(f"Copy {count(len(threads), 'thread')} from {left.name} to {right.name}?")
        kept = StateFile(path, source, destination) if not dry_run or path.exists() else None
        migration = Migration(readers[0], readers[1], right, None if dry_run else kept, mirror)
        session.interrupted_at = lambda: (
            f"{migration.copied:,} checkpoints of {migration.threads:,} threads were copied; "
            "the same command goes on from here."
        )
        gone = [] if kept is None or thread else list(_gone(kept, threads, pattern))
        try:
            with session.progress("threads", len(threads) + len(gone)) as bar:
                await each([*threads, *gone], migration.thread, jobs=jobs, bar=bar)
        finally:
            if kept is not None:
                kept.close()
        unreachable = {**readers[0].unreachable, **readers[1].unreachable}
        answer = MigrateAnswer(
            stack=left.name,
            source=left.name,
            destination=right.name,
            dry_run=dry_run,
            state_file=None if dry_run else str(path),
            threads=migration.threads,
            already=migration.already,
            copied=migration.copied,
            bytes=migration.bytes,
            removed=migration.removed,
            verified=migration.verified,
            problems=dict(sorted(migration.problems.items())),
            pending=rows_pending(left),
            unreachable=unreachable,
        )
        code = with_unreachable(Exit.FOUND if answer.problems or answer.pending else Exit.FINE, unreachable)
        return Done(answer, code, lambda console: _show(console, answer))

    run(Session("migrate", json=json, yes=yes, timeout=timeout), work, debug=debug)


def _gone(kept: StateFile, threads: list[str], pattern: str) -> Iterator[str]:
    """Threads of an earlier run that the source does not list any more."""
    there = set(threads)
    return (each_ for each_ in kept.threads() if each_ not in there and fnmatch.fnmatchcase(each_, pattern))


def _check_apart(source: str, destination: str, *readers: Reader) -> None:
    """Copying a store onto itself would end in a mess."""
    named = [str(Path(each_).resolve()) if Path(each_).exists() else each_ for each_ in (source, destination)]
    paths = [{path for place in reader.truth if (path := _path(place)) is not None} for reader in readers]
    if named[0] == named[1] or paths[0] & paths[1]:
        raise Failure("--from and --to are the same store; nothing was done", Exit.USAGE)


def _path(place: Place) -> Path | None:
    bottom = store_of(place.layer)
    found = getattr(bottom.backend, "base_dir", None) if isinstance(bottom, Leaf) else getattr(bottom, "path", None)
    return None if found is None else Path(found).resolve()


def _show(console: Console, answer: MigrateAnswer) -> None:
    if answer.problems:
        table = plain_table("thread", "not copied, because")
        for thread, why in answer.problems.items():
            table.add_row(Text(clean_id(thread)), Text(clean(why), "red"))
        console.print(table)
    if answer.dry_run:
        console.print(f"{count(answer.threads, 'thread')}: {count(answer.copied, 'checkpoint')} would be copied.")
    else:
        console.print(
            f"{count(answer.threads, 'thread')}: {count(answer.copied, 'checkpoint')} "
            f"({show_size(answer.bytes)}) copied, "
            f"{answer.verified:,} read back and equal; {count(answer.already, 'thread')} already up to date."
        )
    if not answer.threads:
        console.print(Text("Nothing is stored there that matches; is --from right?", "yellow"))
    if answer.removed:
        did = "would be removed" if answer.dry_run else "removed"
        console.print(f"{answer.removed:,} copies {did} that the source has deleted since.")
    if answer.pending:
        told = (
            f"{answer.pending:,} rows lie in journals of the source and were not copied: flush it, then run this again."
        )
        console.print(Text(told, "bold red"))
    if answer.state_file is not None and not answer.problems:
        told = f"Run it again to copy what changes; {clean(answer.state_file)} knows what was done."
        console.print(Text(told, "dim"), soft_wrap=True)
    show_unreachable(console, answer.unreachable)
