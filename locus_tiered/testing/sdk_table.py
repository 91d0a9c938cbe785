"""What the SDK's own checkpointers keep of the contract, run and not typed: the table in the docs comes from here.

:func:`sdk_conformance` starts the servers that it needs, runs the kit on five checkpointers, takes about half a
minute and returns the table. It promises to report what it saw and nothing else: where a result depends on the
machine, so does the table. Needs the extras ``services``, ``s3``, ``redis`` and ``postgres``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from locus.memory.backends.adapters import StorageBackendAdapter
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks import Factory, Reopen
from locus_tiered.testing.conformance import CheckResult, ConformanceReport, check_checkpointer_conformance
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey, postgres, seaweedfs, valkey

__all__ = ["SdkSubject", "conformance_table", "same_keys", "sdk_conformance", "sdk_reports", "sdk_subjects"]


@dataclass(frozen=True, slots=True)
class SdkSubject:
    """How to make one of the SDK's checkpointers for the kit, and another handle on the same data."""

    factory: Factory
    reopen: Reopen | None = None

    async def report(self, *, only: Collection[str] | None = None) -> ConformanceReport:
        """Run the kit on it; what fails is in the report."""
        return await check_checkpointer_conformance(self.factory, reopen=self.reopen, only=only, raise_on_failure=False)


def same_keys(one: Any) -> StorageBackendAdapter:
    """Another handle on the data of an adapter, whatever the backend below it."""
    return StorageBackendAdapter(type(one._backend)(**one._backend.config.model_dump()))


def sdk_subjects(directory: Path, s3: SeaweedFS, redis: Valkey, pg: Postgres) -> dict[str, SdkSubject]:
    """The SDK's checkpointers by name, on running servers and with files below ``directory``."""
    numbers = count()

    def file() -> BaseCheckpointer:
        return FileCheckpointer(directory / str(next(numbers)))

    # A second handle is made from what the first one was made from; the SDK keeps that in private attributes.
    def same_file(one: Any) -> BaseCheckpointer:
        return FileCheckpointer(one.base_dir)

    def same_bucket(one: Any) -> BaseCheckpointer:
        return s3.backend(bucket=one.bucket, prefix=one.prefix)

    def same_table(one: Any) -> BaseCheckpointer:
        return pg.checkpointer(table=one._table_name)

    return {
        "MemoryCheckpointer": SdkSubject(MemoryCheckpointer),
        "FileCheckpointer": SdkSubject(file, same_file),
        "S3Backend": SdkSubject(s3.backend, same_bucket),
        "redis_checkpointer": SdkSubject(redis.checkpointer, same_keys),
        "PgCheckpointer": SdkSubject(pg.checkpointer, same_table),
    }


async def sdk_reports(*, only: Collection[str] | None = None) -> dict[str, ConformanceReport]:
    """Run the kit on all of :func:`sdk_subjects`, on servers started for it; reports by name."""
    with ExitStack() as running:
        directory = running.enter_context(tempfile.TemporaryDirectory())
        s3, redis, pg = (
            running.enter_context(seaweedfs()),
            running.enter_context(valkey()),
            running.enter_context(postgres()),
        )
        subjects = sdk_subjects(Path(directory), s3, redis, pg)
        return {name: await subject.report(only=only) for name, subject in subjects.items()}


def conformance_table(reports: Mapping[str, ConformanceReport]) -> str:
    """A markdown table of checks by checkpointers: ✓ kept, ✗ broken, - says nothing about this one.

    The reports must be of the same checks.
    """
    names = list(reports)
    rows = [f"| law | check | {' | '.join(names)} |", f"|---|---|{':-:|' * len(names)}"]
    for results in zip(*(report.checks for report in reports.values()), strict=True):
        first = results[0]
        marks = " | ".join(_mark(result) for result in results)
        rows.append(f"| {first.law} | `{first.name}`: {first.description.replace('|', chr(92) + '|')} | {marks} |")
    passed = (f"{_kept(report)} of {_ran(report)}" for report in reports.values())
    rows.append(f"| | **kept** | {' | '.join(passed)} |")
    return "\n".join(rows) + "\n"


def _mark(result: CheckResult) -> str:
    return "-" if result.skipped else "✓" if result.ok else "✗"


def _ran(report: ConformanceReport) -> int:
    return sum(not check.skipped for check in report.checks)


def _kept(report: ConformanceReport) -> int:
    return _ran(report) - len(report.failures)


async def sdk_conformance() -> str:
    """Run the kit on the SDK's own checkpointers and return the markdown table. Starts and stops the servers."""
    return conformance_table(await sdk_reports())
