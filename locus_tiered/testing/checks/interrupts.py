"""Two tools for the checks of laws 9 and 10: cancel a call exactly where it waits, and run in another event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, Generic, TypeVar

__all__ = ["CutCall", "in_another_loop"]

T = TypeVar("T")


def _loses_cancellation(call: Any) -> bool:
    """Whether the call waits in a ``wait_for`` of a Python that may swallow a cancellation there.

    Before Python 3.12, one that comes as the awaited work is done is lost. That is no fault of a backend.
    """
    while sys.version_info < (3, 12) and isinstance(call, CoroutineType):
        if call.cr_code is asyncio.wait_for.__code__:
            return True
        call = call.cr_await
    return False


class CutCall(Generic[T]):
    """Awaits ``call`` and cancels the task it runs in when the call waits for the ``at``-th time.

    So every place at which a call can be cancelled is reached, one after another, without any timing.
    ``patient``: threads that the call handed its work to get a millisecond to begin before it is cancelled; what
    runs in a thread cannot be cancelled any more, what has not begun is never done. ``reached`` tells whether the
    call waited that often.
    """

    def __init__(self, call: Coroutine[Any, Any, T], at: int, *, patient: bool = False) -> None:
        self._call, self._at, self._patient = call, at, patient
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._call.__await__()
        waits = 0
        error: BaseException | None = None
        while True:
            try:
                waiting = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as done:
                result: T = done.value
                return result
            waits, error = waits + 1, None
            if waits == self._at:
                error = self._cut(waiting)
                if error is not None:
                    continue
            try:
                yield waiting
            except BaseException as raised:  # noqa: BLE001 - handed on to the call, whatever it is
                error = raised

    def _cut(self, waiting: Any) -> BaseException | None:
        """Cancel the task; where that could get lost, return what is to be raised at once instead."""
        task = asyncio.current_task()
        if task is None:
            return None
        self.reached = True
        if self._patient:
            time.sleep(0.001)
        if not _loses_cancellation(self._call):
            task.cancel()
            return None
        if isinstance(waiting, asyncio.Future):
            waiting.cancel()
        return asyncio.CancelledError()

    async def run(self) -> T:
        """The same as a coroutine, for a task of its own."""
        return await self


async def in_another_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` in a new event loop in a thread of its own, and close that loop; as ``Agent.run_sync`` does.

    Context variables of the caller are there. When the caller is cancelled, so is the work, but it is not waited
    for: a call that hangs in there keeps its (daemon) thread.
    """
    caller = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = caller.create_future()
    inner: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None] | None = None

    def settle(result: Callable[[], T]) -> None:
        if outcome.done():
            return
        try:
            outcome.set_result(result())
        except asyncio.CancelledError:
            outcome.set_exception(AssertionError("a call raised CancelledError though nobody cancelled it"))
        except BaseException as error:  # noqa: BLE001 - the caller's to see
            outcome.set_exception(error)

    async def main() -> T:
        nonlocal inner
        inner = asyncio.get_running_loop(), asyncio.current_task()
        return await work()

    def live() -> None:
        error: BaseException | None = None
        value: list[T] = []
        try:
            with asyncio.Runner() as runner:
                value.append(runner.run(main()))
        except BaseException as raised:  # noqa: BLE001 - the caller's to see
            error = raised

        def result() -> T:
            if error is not None:
                raise error
            return value[0]

        # The caller's loop may be closed by now; then nobody asks any more.
        with contextlib.suppress(RuntimeError):
            caller.call_soon_threadsafe(settle, result)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(live,), name="another event loop", daemon=True).start()
    try:
        return await outcome
    except asyncio.CancelledError:
        if inner is not None and inner[1] is not None:
            with contextlib.suppress(RuntimeError):
                inner[0].call_soon_threadsafe(inner[1].cancel)
        raise
