"""The contract kit on our own stores, layers and stacks, and on stacks over real servers."""

from __future__ import annotations

import pytest
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    ReplicatedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.testing.contract import CheckpointerContract as Contract
from locus_tiered.testing.faults import ReferenceCheckpointer


class CheckpointerContract(Contract):
    """The kit; every optional operation has a check for each direction, so nothing is left unsaid by a skip."""

    __test__ = False
    skips = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.__test__ = True


# A hit by id in any tier is final: another process's delete is noticed with the next look at the thread.
FINAL_BY_ID = {"two_handles_forget_deleted_ids": "a hit by id is final"}


class TestBoundedMemory(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return BoundedMemoryCheckpointer()


class TestDirectory(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path):
        return DirectoryCheckpointer(tmp_path, durability="process")

    def reopen(self, checkpointer):
        return DirectoryCheckpointer(checkpointer.path, durability="process")


class TestCached(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return CachedCheckpointer(ReferenceCheckpointer())


class TestWriteBehind(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path):
        return WriteBehindCheckpointer(ReferenceCheckpointer(), journal=tmp_path)


class TestWriteBehindAcknowledgedByTheJournal(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path):
        return WriteBehindCheckpointer(ReferenceCheckpointer(), journal=tmp_path, ack="journal")

    def reopen(self, checkpointer):
        return WriteBehindCheckpointer(checkpointer.inner, journal=checkpointer.journal, ack="journal")


class TestReplicated(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return ReplicatedCheckpointer(ReferenceCheckpointer(), MemoryCheckpointer(), BoundedMemoryCheckpointer())


class TestReplicatedReadByQuorum(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        replicas = [ReferenceCheckpointer() for _ in range(3)]
        return ReplicatedCheckpointer(*replicas, read="quorum")

    def reopen(self, checkpointer):
        return ReplicatedCheckpointer(*checkpointer.replicas, read="quorum")


class TestTiersBehindAJournal(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path):
        home = Tier(MemoryCheckpointer(), write="behind")
        return TieredCheckpointer(BoundedMemoryCheckpointer(), home, journal=tmp_path)


class TestRetryingOverGuarded(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return RetryingCheckpointer(GuardedCheckpointer(ReferenceCheckpointer()))


class TestTiersOverSdkMemory(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self, tmp_path):
        near = DirectoryCheckpointer(tmp_path, durability="process")
        return TieredCheckpointer(BoundedMemoryCheckpointer(), near, MemoryCheckpointer(), latest="exclusive")


class TestTiersOverFile(CheckpointerContract):
    known_faults = FINAL_BY_ID

    @pytest.fixture
    def checkpointer(self, tmp_path):
        self.path = tmp_path
        return self.tiers("near")

    def tiers(self, near):
        directory = DirectoryCheckpointer(self.path / near, durability="process")
        return TieredCheckpointer(BoundedMemoryCheckpointer(), directory, FileCheckpointer(self.path / "home"))

    def reopen(self, checkpointer):
        return self.tiers("other near")


@pytest.mark.xdist_group("servers")
class TestTiersOverS3(CheckpointerContract):
    known_faults = FINAL_BY_ID | {
        "list_threads_forgets_the_deleted": "the server keeps listing an empty prefix",
        "list_threads_forgets_the_emptied": "the server keeps listing an empty prefix",
    }

    @pytest.fixture
    def checkpointer(self, s3_server):
        self.server, self.bucket = s3_server, s3_server.bucket_name()
        return self.tiers()

    def tiers(self):
        return TieredCheckpointer(BoundedMemoryCheckpointer(), self.server.backend(bucket=self.bucket))

    def reopen(self, checkpointer):
        return self.tiers()


@pytest.mark.xdist_group("servers")
class TestTiersOverPg(CheckpointerContract):
    known_faults = FINAL_BY_ID

    @pytest.fixture
    async def checkpointer(self, postgres_server):
        self.make = postgres_server.checkpointer
        stack = TieredCheckpointer(BoundedMemoryCheckpointer(), self.make())
        yield stack
        await stack.close()


@pytest.mark.xdist_group("servers")
class TestTiersOverRedis(CheckpointerContract):
    known_faults = FINAL_BY_ID | {
        "list_threads_forgets_the_emptied": "the adapter keeps an empty index",
    }

    @pytest.fixture
    async def checkpointer(self, valkey_server):
        stack = TieredCheckpointer(BoundedMemoryCheckpointer(), valkey_server.checkpointer())
        yield stack
        await stack.close()
