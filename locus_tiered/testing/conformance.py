"""The contract kit without pytest: run every check on a checkpointer and get a report.

::

    report = await check_checkpointer_conformance(
        lambda: MyCheckpointer(tempfile.mkdtemp()),
        reopen=lambda checkpointer: MyCheckpointer(checkpointer.path),
    )

In the house style of ``locus.testing.check_model_conformance``: every exception of a check becomes a line of the
report, a check that hangs is cut off and reported, and by default failures are raised together at the end.

It promises a result for every check that was asked for: passed, failed or skipped with the reason. It does not
clean up: a factory that needs a place to store things makes one, and removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import TypeVar, cast

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks import (
    Check,
    CheckSkipped,
    Law,
    Normalise,
    Reopen,
    Subject,
    all_checks,
    run_check,
    without_message_times,
)

__all__ = ["CheckResult", "ConformanceReport", "check_checkpointer_conformance"]

C = TypeVar("C", bound=BaseCheckpointer)

_MOST_DETAIL = 500


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check.

    ``ok`` is true for a check that was passed or skipped; ``detail`` says what is wrong, or why it was skipped.
    ``seconds`` includes making the checkpointer.
    """

    name: str
    ok: bool
    detail: str
    seconds: float
    skipped: bool
    law: Law
    description: str


@dataclass(slots=True)
class ConformanceReport:
    """The outcome of :func:`check_checkpointer_conformance`: one :class:`CheckResult` per check, in order."""

    checkpointer: str = "checkpointer"
    checks: list[CheckResult] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """``"check: detail"`` for each failed check."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.ok]

    @property
    def skipped(self) -> list[str]:
        """``"check: reason"`` for each check that says nothing about this checkpointer."""
        return [f"{check.name}: {check.detail}" for check in self.checks if check.skipped]

    @property
    def seconds(self) -> float:
        """How long all checks took together."""
        return sum(check.seconds for check in self.checks)

    def result(self, name: str) -> CheckResult:
        """The result of the check ``name``; ``KeyError`` when it was not run."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_markdown(self) -> str:
        """A table with a row per check."""
        rows = [f"# {self.checkpointer}: {_summary(self)}", "", "| check | law | result | ms | what |"]
        rows.append("|---|---|---|---:|---|")
        for check in self.checks:
            outcome = "skipped" if check.skipped else "passed" if check.ok else "**failed**"
            said = check.detail or check.description
            rows.append(f"| `{check.name}` | {check.law} | {outcome} | {check.seconds * 1000:.0f} | {_cell(said)} |")
        return "\n".join(rows) + "\n"

    def to_json(self) -> str:
        """The report as JSON text."""
        whole = {"checkpointer": self.checkpointer, "ok": self.ok, "seconds": round(self.seconds, 6)}
        return json.dumps({**whole, "checks": [asdict(check) for check in self.checks]}, indent=2)

    def __repr__(self) -> str:
        return f"ConformanceReport({self.checkpointer}: {_summary(self)})"


def _summary(report: ConformanceReport) -> str:
    skipped = sum(check.skipped for check in report.checks)
    ran = len(report.checks) - skipped
    passed = ran - len(report.failures)
    return f"{passed}/{ran} passed, {skipped} skipped"


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


async def check_checkpointer_conformance(
    factory: Callable[[], C | Awaitable[C]],
    *,
    reopen: Callable[[C], BaseCheckpointer | Awaitable[BaseCheckpointer | None] | None] | None = None,
    raise_on_failure: bool = True,
    only: Collection[str] | None = None,
    timeout: float = 30.0,
    normalise: Normalise = without_message_times,
) -> ConformanceReport:
    """Check that the checkpointers which ``factory`` makes do what the SDK and the laws ask of a backend.

    Args:
        factory: Makes a fresh checkpointer with nothing in it, once per check; plain or ``async``. It is closed
            after the check.
        reopen: Given the checkpointer, makes another handle on the same data, as another process would have.
            Without it, the checks of two handles are skipped.
        raise_on_failure: Raise ``AssertionError`` that lists the failures (default); False returns the report
            either way.
        only: Names of the checks to run; all by default.
        timeout: Seconds for each check; then it is cancelled and reported. A backend that blocks the event loop
            itself cannot be cut off.
        normalise: Takes out of a state what the backend is known to add to it, before states are compared.

    Raises:
        AssertionError: A check failed, and ``raise_on_failure`` is set.
        ValueError: ``only`` names a check that does not exist.
    """
    names = {only} if isinstance(only, str) else None if only is None else set(only)
    if names is not None and (unknown := names - {check.name for check in all_checks()}):
        raise ValueError(f"no such checks: {', '.join(sorted(unknown))}")
    report = ConformanceReport()
    for check in all_checks():
        if names is not None and check.name not in names:
            continue
        subject = Subject(factory, reopen=cast(Reopen | None, reopen), normalise=normalise)
        report.checks.append(await _run(check, subject, timeout))
        made = subject.made
        if made is not None:
            report.checkpointer = type(made).__name__
            await _close(made, timeout)
    if raise_on_failure and not report.ok:
        failures = "\n  ".join(report.failures)
        raise AssertionError(f"{report.checkpointer} failed checkpointer conformance:\n  {failures}")
    return report


async def _run(check: Check, subject: Subject, timeout: float) -> CheckResult:
    detail, ok, skipped = "", True, False
    start = perf_counter()
    try:
        await run_check(check, subject, timeout=timeout)
    except CheckSkipped as reason:
        detail, skipped = str(reason), True
    except AssertionError as error:
        detail, ok = _printable(str(error) or "failed without a message"), False
    except Exception as error:  # noqa: BLE001 - every failure becomes a line of the report
        detail, ok = _printable(f"raised {type(error).__name__}: {error}"), False
    seconds = perf_counter() - start
    return CheckResult(check.name, ok, detail, seconds, skipped, check.law, check.description)


def _printable(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MOST_DETAIL else f"{text[: _MOST_DETAIL - 3]}..."


async def _close(checkpointer: BaseCheckpointer, timeout: float) -> None:
    """Let go of what a check used. Whether closing works is judged by checks of its own."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(checkpointer.close(), min(timeout, 5.0))
