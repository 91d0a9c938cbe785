"""Going through many threads: which ones, several side by side, never more in memory than is being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from locus_tiered.cli.exits import Exit
from locus_tiered.cli.reading import Reader
from locus_tiered.cli.session import Bar
from locus_tiered.cli.text import clean

__all__ = ["chosen", "each", "id_column", "plain_table", "show_unreachable", "with_unreachable"]

T = TypeVar("T")
_WHOLE = 36  # a UUID with its hyphens


async def chosen(reader: Reader, threads: Sequence[str] | None, pattern: str) -> list[str]:
    """The threads that the options name: those given one by one, else all that match the pattern."""
    if threads:
        return list(dict.fromkeys(threads))
    return await reader.threads(pattern)


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, jobs: int, bar: Bar) -> None:
    """``work`` on every item, ``jobs`` at a time; the first failure stops all and is raised."""
    pending = iter(items)

    async def worker() -> None:
        for item in pending:
            await work(item)
            bar.step()

    workers = [asyncio.ensure_future(worker()) for _ in range(jobs)]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise


def id_column(ids: Iterable[str | None]) -> str | tuple[str, str]:
    """The heading of a column of checkpoint ids: whole, for copying, unless one is too long for any line."""
    return "checkpoint" if any(len(each) > _WHOLE for each in ids if each) else ("checkpoint", "whole")


def plain_table(*headings: str | tuple[str, str], title: str | None = None) -> Table:
    """A table without lines at its sides; ``(heading, "right")`` aligns numbers, a wide text folds."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left"
    )
    for heading in headings:
        name, justify = heading if isinstance(heading, tuple) else (heading, "left")
        if justify == "right":
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", no_wrap=justify == "whole")
    return table


def show_unreachable(console: Console, unreachable: dict[str, str]) -> None:
    """Say which members failed while others answered."""
    for name, message in unreachable.items():
        console.print(Text(f"Could not be reached: {name}: {clean(message)}", "bold red"))


def with_unreachable(code: Exit, unreachable: dict[str, str]) -> Exit:
    """The exit code of a command that could not ask everybody."""
    return Exit.UNREACHABLE if unreachable else code
