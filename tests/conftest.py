"""Servers and checkpointers for the whole suite.

``s3_server``, ``valkey_server`` and ``postgres_server`` are started when the first test asks, once per
worker, and shared: a test that pauses, kills or restarts a server starts one of its own. The fixtures that
give a checkpointer give a fresh one, isolated from every other, and close it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey, postgres, seaweedfs, valkey

if TYPE_CHECKING:
    from locus.memory.backends.adapters import StorageBackendAdapter
    from locus.memory.backends.pg_checkpointer import PgCheckpointer
    from locus.memory.backends.s3 import S3Backend


def pytest_configure(config: pytest.Config) -> None:
    # The SDK's RedisBackend closes its client by a name that redis-py renamed in 5.0.1; it works still.
    config.addinivalue_line(
        "filterwarnings",
        r"ignore:Call to deprecated close\.:DeprecationWarning:locus\.memory\.backends\.redis",
    )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedFS]:
    with seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
async def s3_backend(s3_server: SeaweedFS) -> AsyncIterator[S3Backend]:
    backend = s3_server.backend()
    yield backend
    await backend.close()
    s3_server.drop_bucket(backend.bucket)


@pytest.fixture
async def redis_checkpointer(valkey_server: Valkey) -> AsyncIterator[StorageBackendAdapter]:
    checkpointer = valkey_server.checkpointer()
    yield checkpointer
    await checkpointer.close()


@pytest.fixture
async def pg_checkpointer(postgres_server: Postgres) -> AsyncIterator[PgCheckpointer]:
    checkpointer = postgres_server.checkpointer()
    yield checkpointer
    await checkpointer.close()
