"""What a check of the contract is, where all of them are registered, and how one is run.

A check is one ``async`` function that is given a :class:`Subject` and raises ``AssertionError`` when the
checkpointer under test breaks a promise. :func:`check` registers it with its facts: the law it shows, the
capability it needs or the capability that must be absent, whether it needs a second handle. Its name is the
function's, its description the first line of the docstring: there is no second list.

Depends on the SDK's ``BaseCheckpointer`` and on nothing else of this package, so that it can judge any backend.
It promises that a check touches only the checkpointer that it was given, and that a check which cannot be run is
skipped with a reason, never passed. It does not cut off a backend that blocks the event loop itself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.states import difference, without_message_times

__all__ = [
    "Check",
    "CheckSkipped",
    "CheckTimeout",
    "Factory",
    "Law",
    "Normalise",
    "Reopen",
    "Subject",
    "all_checks",
    "check",
    "expect",
    "gather_all",
    "refused",
    "run_check",
    "short",
]

T = TypeVar("T")

Law = int | Literal["sdk"]
"""The number of the law that a check shows; ``"sdk"`` is what the SDK's own documentation asks of a backend."""

Factory = Callable[[], BaseCheckpointer | Awaitable[BaseCheckpointer]]
"""Makes a fresh checkpointer with nothing in it; a plain or an ``async`` function."""

Reopen = Callable[[BaseCheckpointer], BaseCheckpointer | Awaitable[BaseCheckpointer | None] | None]
"""Given the checkpointer under test, makes another handle on the same data, as another process would have."""

Normalise = Callable[[AgentState], AgentState]
"""Takes out of a state what the backend is known to add to it, before states are compared."""

FLAGS = frozenset(field.name for field in fields(CheckpointerCapabilities))
_NEEDS = FLAGS | {"delete", "deletes_single_checkpoints"}

_GRACE = 1.0
"""Seconds that a check gets to end after it was cancelled; then it is abandoned."""


class CheckSkipped(Exception):
    """A check that says nothing about this checkpointer; the message is the reason."""


class CheckTimeout(AssertionError):
    """A check that did not end in time."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its facts.

    ``needs`` are capability flags that must be true for the check to apply, or ``"delete"`` (the checkpointer
    can delete at all), or ``"deletes_single_checkpoints"``; ``without`` is one that must be false. ``reopen``
    says that the check needs a second handle on the same data.
    """

    name: str
    law: Law
    needs: tuple[str, ...]
    without: str | None
    reopen: bool
    description: str
    run: Callable[[Subject], Coroutine[Any, Any, None]]


_registry: dict[str, Check] = {}


def check(
    *, law: Law, needs: str | tuple[str, ...] = (), without: str | None = None, reopen: bool = False
) -> Callable[[Callable[[Subject], Coroutine[Any, Any, None]]], Callable[[Subject], Coroutine[Any, Any, None]]]:
    """Register the decorated function, ``check_<name>``, as a check.

    Raises:
        ValueError: Two checks of one name, a flag that does not exist, a missing docstring.
    """
    wanted = (needs,) if isinstance(needs, str) else needs

    def register(
        run: Callable[[Subject], Coroutine[Any, Any, None]],
    ) -> Callable[[Subject], Coroutine[Any, Any, None]]:
        name = run.__name__.removeprefix("check_")
        unknown = ({*wanted} | ({without} if without else set())) - _NEEDS
        if unknown or name in _registry or not run.__doc__:
            raise ValueError(f"check {name!r}: unknown flags {sorted(unknown)}, or no docstring, or not unique")
        description = run.__doc__.strip().splitlines()[0]
        _registry[name] = Check(name, law, wanted, without, reopen, description, run)
        return run

    return register


def all_checks() -> tuple[Check, ...]:
    """Every check: what the SDK asks first, then law by law."""
    return tuple(sorted(_registry.values(), key=lambda check: 0 if check.law == "sdk" else check.law))


class Subject:
    """The checkpointer under test, as a check sees it.

    Args:
        factory: Makes the checkpointer. Called once, when the check first asks for it.
        reopen: Makes a second handle on the same data; without it, checks that need one are skipped.
        normalise: Applied to both states before they are compared. The default takes out the time that
            ``PgCheckpointer`` and ``RetainedCheckpointer`` note on every message.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        reopen: Reopen | None = None,
        normalise: Normalise = without_message_times,
    ) -> None:
        self._factory, self._reopen, self._normalise = factory, reopen, normalise
        self._made: BaseCheckpointer | None = None
        self._others: list[BaseCheckpointer] = []

    async def make(self) -> BaseCheckpointer:
        """The checkpointer under test: fresh and empty at the first call of a check, the same one after that."""
        if self._made is None:
            made = self._factory()
            self._made = await made if inspect.isawaitable(made) else made
        return self._made

    @property
    def made(self) -> BaseCheckpointer | None:
        """The checkpointer under test, if a check asked for it."""
        return self._made

    async def reopen(self) -> BaseCheckpointer:
        """Another handle on the same data.

        Raises:
            CheckSkipped: The author of the backend gave no way to open one.
        """
        other = None if self._reopen is None else self._reopen(await self.make())
        if inspect.isawaitable(other):
            other = await other
        if other is None:
            raise CheckSkipped("needs a second handle on the same data, and no reopen was given")
        self._others.append(other)
        return other

    async def capabilities(self) -> CheckpointerCapabilities:
        """What the checkpointer declares."""
        return (await self.make()).capabilities

    async def has(self, flag: str) -> bool:
        """Whether the checkpointer says that it has ``flag`` (see :class:`Check`)."""
        if flag == "deletes_single_checkpoints":
            return (await self.make()).deletes_single_checkpoints is True
        if flag == "delete":
            return await self._deletes(await self.make())
        return bool(getattr(await self.capabilities(), flag))

    @staticmethod
    async def _deletes(checkpointer: BaseCheckpointer) -> bool:
        """Whether ``delete`` does anything. There is no flag for it, so in doubt an unknown thread is deleted."""
        if type(checkpointer).delete is BaseCheckpointer.delete:
            return False
        if checkpointer.deletes_single_checkpoints is True:
            return True
        error = await refused(checkpointer.delete("no such thread"), "delete of an unknown thread")
        return not isinstance(error, NotImplementedError)

    async def close_others(self) -> None:
        """Close the handles that :meth:`reopen` made."""
        while self._others:
            await self._others.pop().close()

    def equal(self, one: AgentState, other: AgentState) -> bool:
        """Whether two states are equal, after ``normalise``."""
        return self._normalise(one) == self._normalise(other)

    def expect_state(self, got: AgentState | None, wanted: AgentState, where: str) -> None:
        """Raise ``AssertionError`` unless ``got`` is an ``AgentState`` equal to ``wanted``."""
        if got is None:
            raise AssertionError(f"{where}: expected the state {wanted.run_id!r}, got None")
        expect(isinstance(got, AgentState), f"{where}: expected an AgentState, got {type(got).__name__}")
        if not self.equal(got, wanted):
            one, other = self._normalise(got), self._normalise(wanted)
            raise AssertionError(f"{where}: not the state that was saved there: {difference(one, other)}")


async def run_check(check: Check, subject: Subject, *, timeout: float) -> None:
    """Run one check, for at most ``timeout`` seconds.

    Raises:
        CheckSkipped: It says nothing about this checkpointer.
        CheckTimeout: It did not end. It was cancelled, and abandoned if it would not even end then.
        Exception: The promise is broken, or the checkpointer raised.
    """
    task = asyncio.create_task(_gated(check, subject), name=f"check {check.name}")
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.add_done_callback(_look_at_outcome)
        task.cancel()
        await asyncio.wait({task}, timeout=_GRACE)
        raise CheckTimeout(f"did not end within {timeout:g} s: a call of the checkpointer hangs")
    if task.cancelled():
        raise AssertionError("a call of the checkpointer raised CancelledError though nobody cancelled it")
    task.result()


def _look_at_outcome(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def _gated(check: Check, subject: Subject) -> None:
    for flag in check.needs:
        if not await subject.has(flag):
            raise CheckSkipped(f"the checkpointer does not have {flag}")
    if check.without is not None and await subject.has(check.without):
        raise CheckSkipped(f"the checkpointer has {check.without}")
    try:
        await check.run(subject)
    finally:
        await subject.close_others()


def expect(condition: object, message: str) -> None:
    """``assert`` that ``python -O`` does not take away."""
    if not condition:
        raise AssertionError(message)


def short(value: object, most: int = 60) -> str:
    """The ``repr`` of ``value``, printable and never longer than ``most`` characters."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


async def gather_all(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """All results of calls made at the same time; ``AssertionError`` when any failed, after all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise AssertionError(
            f"{len(errors)} of {len(results)} calls made at the same time failed, the first with "
            f"{type(errors[0]).__name__}: {short(str(errors[0]), 160)}"
        ) from errors[0]
    return [result for result in results if not isinstance(result, BaseException)]


async def refused(call: Awaitable[object], what: str) -> BaseException | None:
    """The error with which a call failed, or ``None`` when it answered.

    Raises:
        AssertionError: It failed with something that is no answer to bad input, such as ``SystemExit``.
    """
    try:
        await call
    except Exception as error:  # noqa: BLE001 - any error refuses; which kind is for the check to judge
        return error
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            raise
        raise AssertionError(f"{what} raised {type(error).__name__}") from error
    return None
