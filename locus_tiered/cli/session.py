"""What every command runs in: two consoles, a progress bar, a question, and one way to end.

Answers go to standard output, everything else to standard error. With ``--json`` standard output holds exactly one
JSON document, also when the command fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from locus_tiered.cli.answers import Answer, Problem
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened, open_stack
from locus_tiered.cli.reading import Reader, hung
from locus_tiered.cli.text import clean, redact
from locus_tiered.core.errors import (
    BackendError,
    CapabilityMissing,
    CorruptCheckpoint,
    InvalidArgument,
    JournalError,
    LocusTieredError,
    QuorumError,
    StackConfigError,
    told_cause,
)

__all__ = ["Bar", "Done", "Session", "run"]

_CLOSE_SECONDS, _HUNG_CLOSE_SECONDS = 15.0, 1.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: its answer, its exit code, and how to show the answer to a person."""

    answer: Answer
    code: Exit
    show: Callable[[Console], None]


class Bar:
    """A progress bar, or nothing where there is no terminal."""

    def __init__(self, progress: Progress | None, what: str, total: int | None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task(what, total=total)
        self.done = 0

    def step(self, amount: int = 1) -> None:
        """Count what was done."""
        self.done += amount
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def reach(self, done: int) -> None:
        """Say how much is done by now."""
        if done > self.done:
            self.step(done - self.done)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", "progress.data.speed"
        )


class Session:
    """One run of a command."""

    def __init__(self, command: str, *, json: bool = False, yes: bool = False, timeout: float = 30.0) -> None:
        self.command, self.json, self.yes, self.timeout = command, json, yes, timeout
        self.out = Console(highlight=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False)
        self.timed_out = False
        self.interrupted_at: Callable[[], str] | None = None
        self._opened: list[Opened] = []

    def open(self, spec: str, *, allow_import: bool = False) -> Opened:
        """Open a stack, to be closed when the command ends."""
        opened = open_stack(spec, allow_import=allow_import)
        self._opened.append(opened)
        return opened

    def reader(self, spec: str, *, allow_import: bool = False) -> Reader:
        """Open a stack to look into it."""
        return Reader(self.open(spec, allow_import=allow_import), timeout=self.timeout)

    async def close(self) -> list[str]:
        """Close all that was opened; answers what failed to close."""
        failures = []
        for opened in self._opened:
            try:
                async with asyncio.timeout(_HUNG_CLOSE_SECONDS if hung else _CLOSE_SECONDS):
                    await opened.layer.close()
            except TimeoutError:
                self.timed_out = True
                if not hung:
                    failures.append(f"{opened.name} did not close within {_CLOSE_SECONDS:g} s")
            except LocusTieredError as error:
                failures.append(str(error))
        self._opened.clear()
        return failures

    def say(self, text: str) -> None:
        """A line for whoever watches, beside the answer."""
        self.err.print(Text(clean(text)), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Bar]:
        """A bar with rate and time left, on a terminal only."""
        if not self.err.is_terminal:
            yield Bar(None, what, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.err, transient=True) as progress:
            yield Bar(progress, what, total)

    def confirm(self, question: str) -> None:
        """Go on only when the user says so; :class:`Failure` otherwise. ``--yes`` answers without asking."""
        if self.yes:
            return
        if not (sys.stdin.isatty() and self.err.is_terminal):
            raise Failure(f"{question} Nothing was done", Exit.USAGE, hint="nobody is there to ask: pass --yes")
        # The event loop would only note a Ctrl-C, and wait for Enter.
        noting = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.err.print(Text(f"{clean(question)} [y/N] "), end="", soft_wrap=True)
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            self.err.print()
            raise
        finally:
            signal.signal(signal.SIGINT, noting)
        if answer.strip().lower() not in ("y", "yes"):
            raise Failure("not confirmed; nothing was done", Exit.FOUND)


def _explained(error: Exception) -> tuple[str, Exit, str | None]:
    """What an error is to a user: a message, an exit code, a hint."""
    if isinstance(error, Failure):
        return error.message, error.code, error.hint
    if isinstance(error, StackConfigError):
        return str(error), Exit.USAGE, None
    if isinstance(error, CapabilityMissing):
        return str(error), Exit.INCAPABLE, None
    if isinstance(error, CorruptCheckpoint):
        return str(error), Exit.FOUND, None
    if isinstance(error, BackendError | QuorumError | JournalError):
        cause = error.__cause__
        hint = None if cause is None else f"the cause: {told_cause(cause)}; --debug shows it whole"
        return str(error), Exit.UNREACHABLE, hint
    if isinstance(error, InvalidArgument):
        return str(error), Exit.USAGE, None
    if isinstance(error, LocusTieredError):
        return str(error), Exit.FOUND, None
    if isinstance(error, OSError):
        place = "" if error.filename is None else f" ({redact(str(error.filename))})"
        return f"{error.strerror or type(error).__name__}{place}", Exit.USAGE, None
    kind = type(error).__name__
    return f"an unexpected {kind}; nothing more was done", Exit.FOUND, "--debug shows where; please report it"


def _emit_json(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer.model_dump(mode="json"), indent=2, ensure_ascii=True) + "\n")


def run(session: Session, work: Callable[[Session], Awaitable[Done]], *, debug: bool = False) -> NoReturn:
    """Carry out a command; ends with ``typer.Exit``, whose code is one of :class:`Exit`."""
    _be_quiet(debug)
    code = Exit.FINE
    try:
        done = asyncio.run(_cancellable(session, work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        where = "" if session.interrupted_at is None else " " + session.interrupted_at()
        code = _end(session, Failure(f"Stopped.{where}", Exit.INTERRUPTED))
    except BrokenPipeError:
        _leave(Exit.FINE)
    except Exception as error:  # noqa: BLE001 - a command never ends in a traceback
        if debug:
            session.err.print_exception()
        code = _end(session, error)
    else:
        code = done.code
        try:
            if session.json:
                _emit_json(done.answer)
            else:
                done.show(session.out)
            sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # rich makes the second of the first
            _leave(code)
        except Exception as error:  # noqa: BLE001 - nor does showing its answer
            if debug:
                session.err.print_exception()
            code = _end(session, error)
    if session.timed_out:
        _leave(code)  # a call that hangs in a thread would hold the interpreter
    raise typer.Exit(code)


def _end(session: Session, error: Exception) -> Exit:
    message, code, hint = _explained(error)
    if session.json:
        _emit_json(Problem(command=session.command, error=type(error).__name__, message=message, hint=hint, code=code))
        sys.stdout.flush()
        return code
    text = Text(clean(message) if code == Exit.INTERRUPTED else f"Error: {clean(message)}", "bold red")
    if code in (Exit.INTERRUPTED, Exit.FOUND):
        text.style = ""
    session.err.print(text, soft_wrap=True)
    if hint is not None:
        session.err.print(Text(clean(hint), "dim"), soft_wrap=True)
    return code


async def _cancellable(session: Session, work: Callable[[Session], Awaitable[Done]]) -> Done:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, task.cancel)
    try:
        done = await work(session)
    finally:
        failures = await asyncio.shield(session.close())
        session.timed_out = session.timed_out or bool(hung)
        if session.timed_out:
            # asyncio.run would wait minutes for the threads of calls that hang.
            loop._default_executor = None  # type: ignore[attr-defined]
    for failure in failures:
        session.say(f"while closing: {failure}")
    return done


def _be_quiet(debug: bool) -> None:
    """Libraries' warnings are for programmers: shown with ``--debug`` only."""
    if debug:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        return
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.CRITICAL)


def _leave(code: Exit) -> NoReturn:
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)
