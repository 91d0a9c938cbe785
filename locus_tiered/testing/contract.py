"""The contract kit as a pytest class: a backend author subclasses it with one fixture.

::

    class TestMyCheckpointer(CheckpointerContract):
        @pytest.fixture
        def checkpointer(self, tmp_path):
            return MyCheckpointer(tmp_path)

        def reopen(self, checkpointer):
            return MyCheckpointer(checkpointer.path)

There is a test for every check, under the check's own name, so ``-k`` and reports work as for tests written by
hand. Checks of what the checkpointer does not declare are skipped with the reason; for each of them there is one
that shows that it refuses instead.

Needs pytest and pytest-asyncio (the extra ``testing``). An ``async`` fixture is one of ``pytest_asyncio.fixture``
unless ``asyncio_mode = "auto"`` is set.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ClassVar

import pytest
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks import Check, CheckSkipped, Subject, all_checks, run_check, without_message_times

__all__ = ["CheckpointerContract"]


class CheckpointerContract:
    """Every promise that the SDK and the laws ask of a backend, as a test each.

    Override the fixture ``checkpointer``, and where there is a way the method ``reopen``.

    ``known_faults`` names checks that this checkpointer is known to fail, with the reason: they are reported as
    expected failures, and fail once they pass. ``timeout`` is in seconds and per check. ``skips = False`` lets
    checks of what the checkpointer does not declare pass instead of being skipped.
    """

    known_faults: ClassVar[Mapping[str, str]] = {}
    timeout: ClassVar[float] = 30.0
    skips: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = cls.known_faults.keys() - {check.name for check in all_checks()}
        if unknown:
            raise TypeError(f"{cls.__name__}.known_faults names no check: {', '.join(sorted(unknown))}")

    @pytest.fixture
    def checkpointer(self) -> BaseCheckpointer:
        """A fresh checkpointer with nothing in it. Closing it is the fixture's own affair."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture named checkpointer")

    def reopen(self, checkpointer: Any) -> BaseCheckpointer | Awaitable[BaseCheckpointer | None] | None:
        """Another handle on the data of ``checkpointer``, as another process would have; may be ``async``.

        ``None`` (the default) skips the checks that need one.
        """
        return None

    def normalise(self, state: AgentState) -> AgentState:
        """``state`` without what the backend is known to add; states are compared after it.

        The default takes out the times that ``PgCheckpointer`` and ``RetainedCheckpointer`` note on messages.
        """
        return without_message_times(state)


def _as_test(check: Check) -> Callable[..., Coroutine[Any, Any, None]]:
    async def test(self: CheckpointerContract, checkpointer: BaseCheckpointer) -> None:
        subject = Subject(lambda: checkpointer, reopen=self.reopen, normalise=self.normalise)
        known = self.known_faults.get(check.name)
        try:
            await run_check(check, subject, timeout=self.timeout)
        except CheckSkipped as reason:
            if self.skips:
                pytest.skip(str(reason))
            return
        except Exception:
            if known is None:
                raise
            pytest.xfail(known)
        if known is not None:
            pytest.fail(f"{check.name} passes: take it out of known_faults ({known})")

    test.__name__ = f"test_{check.name}"
    test.__qualname__ = f"{CheckpointerContract.__name__}.{test.__name__}"
    test.__doc__ = check.description
    return pytest.mark.asyncio(test)


for _check in all_checks():
    setattr(CheckpointerContract, f"test_{_check.name}", _as_test(_check))
