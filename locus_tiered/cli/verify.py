"""``verify``: are the tiers in step, and is every checkpoint what was saved?"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import Found, FoundTier, VerifyAnswer
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.findings import examine_twice
from locus_tiered.cli.options import AllowImport, Debug, Jobs, Json, Most, Pattern, Stack, Threads, Timeout
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean, clean_id, count
from locus_tiered.cli.working import chosen, each, id_column, plain_table, show_unreachable, with_unreachable

__all__ = ["verify"]

_MEANINGS = {
    "damaged": "is not what was saved (digest, or somebody else's)",
    "unreadable": "is listed, and cannot be loaded",
    "missing": "is not in a replica that should have it",
    "stale": "is an older version in this tier",
    "leftover": "is only in a near tier",
    "latest": "readers without the stack are given an older one",
}


def verify(
    stack: Stack,
    pattern: Pattern = "*",
    thread: Threads = None,
    quick: Annotated[
        bool, typer.Option("--quick", "-q", help="Compare what is listed and the latest; read no other state.")
    ] = False,
    most: Most = 100,
    jobs: Jobs = 4,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every checkpoint in every tier by its digest, and whether the tiers agree.

    Changes nothing. Exit code 1 when something is found; repair mends what can be mended. Where something is found
    a thread is looked at twice, because on a live store a save may be on its way.
    """

    async def work(session: Session) -> Done:
        reader = session.reader(stack, allow_import=allow_import)
        threads = await chosen(reader, thread, pattern)
        kinds: Counter[str] = Counter()
        checked: Counter[str] = Counter()
        without: Counter[str] = Counter()
        found: list[Found] = []
        seen = checkpoints = 0

        async def look(name: str) -> None:
            nonlocal seen, checkpoints
            result = await examine_twice(reader, name, bodies=not quick)
            seen, checkpoints = seen + 1, checkpoints + len(result.entries)
            checked.update(result.checked)
            without.update(result.without_digest)
            kinds.update(each.kind for each in result.found)
            found.extend(result.found[: most - len(found)] if len(found) < most else [])

        session.interrupted_at = lambda: (
            f"{seen:,} of {len(threads):,} threads were looked at; {kinds.total():,} findings so far."
        )
        with session.progress("threads", len(threads)) as bar:
            await each(threads, look, jobs=jobs, bar=bar)
        places = [
            FoundTier(name=p.name, role=p.role, checked=checked[p.name], without_digest=without[p.name])
            for p in reader.places
            if not p.private or p.role != "near"
        ]
        answer = VerifyAnswer(
            stack=reader.name,
            threads=len(threads),
            checkpoints=checkpoints,
            places=places,
            kinds=dict(kinds),
            found=sorted(found, key=lambda each: (each.thread, each.place, each.kind)),
            cut=kinds.total() - len(found),
            unreachable=reader.unreachable,
        )
        code = with_unreachable(Exit.FOUND if kinds else Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer, quick))

    run(Session("verify", json=json, timeout=timeout), work, debug=debug)


def _show(console: Console, answer: VerifyAnswer, quick: bool) -> None:
    if answer.found:
        table = plain_table("found", "tier", "thread", id_column(each_.checkpoint for each_ in answer.found))
        for each_ in answer.found:
            table.add_row(
                Text(each_.kind, "bold red" if each_.kind in ("damaged", "unreadable", "missing") else "yellow"),
                Text(clean(each_.place)),
                Text(clean_id(each_.thread)),
                Text(clean_id(each_.checkpoint or "-")),
            )
        console.print(table)
        if answer.cut > 0:
            console.print(f"… and {answer.cut:,} more (--most)")
        for kind in answer.kinds:
            console.print(f"{kind}: {answer.kinds[kind]:,}, {_MEANINGS[kind]}")
        console.print()
    console.print(f"{count(answer.threads, 'thread')}, {count(answer.checkpoints, 'checkpoint')}.")
    if not quick:
        for place in answer.places:
            bare = f" ({place.without_digest:,} without a digest)" if place.without_digest else ""
            console.print(Text(f"  {clean(place.name)}: {place.checked:,} read{bare}"))
    if not answer.kinds and not answer.unreachable:
        console.print(Text("All in step." if quick else "All in step, and all as it was saved.", "green"))
    show_unreachable(console, answer.unreachable)
