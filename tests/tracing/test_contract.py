"""A traced stack keeps the whole contract, seen or not."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from locus_tiered import (
    BoundedMemoryCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
    TracedCheckpointer,
)
from locus_tiered.testing.contract import CheckpointerContract as Contract
from locus_tiered.testing.faults import ReferenceCheckpointer
from tests.tracing.kit import Seen


class CheckpointerContract(Contract):
    """The kit; nothing is left unsaid by a skip."""

    __test__ = False
    skips = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True


class TestTracedStack(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path: Any) -> TracedCheckpointer:
        near = DirectoryCheckpointer(tmp_path, durability="process")
        home = RetryingCheckpointer(GuardedCheckpointer(ReferenceCheckpointer()))
        return Seen().traced(TieredCheckpointer(BoundedMemoryCheckpointer(), near, home, latest="exclusive"))


class TestTracedBackend(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self) -> TracedCheckpointer:
        return Seen(ALWAYS_OFF).traced(ReferenceCheckpointer())


class TestTracedByNobody(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self) -> TracedCheckpointer:
        return TracedCheckpointer(RetryingCheckpointer(ReferenceCheckpointer()))
