"""The types of tiers: those of the SDK by its names, ours, and users' own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from locus.memory import registry as sdk
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer
from locus.memory.backends.oci_bucket import OCIBucketBackend
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.checkpointer import BaseCheckpointer
from pydantic import BaseModel, Field, SecretStr

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, Leaf, load_stack, register_tier_type
from locus_tiered.config import registry
from locus_tiered.config.kinds import built_in
from locus_tiered.core.errors import StackConfigError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves both registries as they were."""
    own, theirs = dict(registry._own), dict(sdk._CHECKPOINTERS)
    yield
    registry._own.clear()
    registry._own.update(own)
    sdk._CHECKPOINTERS.clear()
    sdk._CHECKPOINTERS.update(theirs)


def store(tier: Any, **options: Any) -> Any:
    """What a stack of one tier has at its bottom."""
    bottom = [each for each in load_stack({"tiers": [tier]}, **options).walk() if not each.members()]
    found = next(each for each in bottom if each.name != "nowhere")
    return found.backend if isinstance(found, Leaf) else found


def _config(tier: Any) -> Any:
    return store(tier)._backend.config


def test_every_name_of_the_sdks_registry_is_a_type() -> None:
    assert set(sdk.list_checkpointers()) - {"tiered"} <= set(built_in())


def test_memory_is_ours_and_the_sdks_has_a_name_of_its_own() -> None:
    assert type(store("memory")) is BoundedMemoryCheckpointer
    assert type(store("sdk-memory")) is MemoryCheckpointer
    assert type(store({"directory": {"path": "d"}})) is DirectoryCheckpointer


def test_options_reach_the_constructors() -> None:
    file = store({"file": {"base_dir": "f", "pretty": False, "max_checkpoints_per_thread": "7"}})
    assert (file.base_dir, file.pretty, file.max_checkpoints_per_thread) == (Path("f"), False, 7)
    http = store({"http": {"base_url": "https://h/a", "headers": {"X": "y"}, "auth": ["a", "b"], "timeout": "1m"}})
    assert (http.base_url, http.headers, http.auth, http.timeout) == ("https://h/a", {"X": "y"}, ("a", "b"), 60.0)
    redis = _config({"redis": {"url": "rediss://h:1/2", "prefix": "p:", "ttl_seconds": 60, "db": 3}})
    assert (redis.url, redis.prefix, redis.ttl_seconds, redis.db) == ("rediss://h:1/2", "p:", 60, 3)
    postgres = _config(
        {"postgresql": {"host": "h", "port": "1", "password": "p", "table_name": "t", "max_pool_size": 2}}
    )
    assert (postgres.host, postgres.port, postgres.table_name, postgres.max_pool_size) == ("h", 1, "t", 2)
    assert postgres.password.get_secret_value() == "p"
    mysql = _config({"mysql": {"dsn": "mysql://h/d", "charset": "utf8"}})
    assert (mysql.dsn, mysql.charset) == ("mysql://h/d", "utf8")
    opensearch = _config({"opensearch": {"hosts": ["a", "b"], "use_ssl": False, "ca_certs": "/c"}})
    assert (opensearch.hosts, opensearch.use_ssl, opensearch.ca_certs) == (["a", "b"], False, "/c")
    oracle = _config({"oracle": {"dsn": "d", "wallet_location": "/w", "wallet_password": "p", "min_pool_size": 2}})
    assert (oracle.dsn, oracle.wallet_location, oracle.min_pool_size) == ("d", "/w", 2)
    s3 = store({"s3": {"bucket": "b", "prefix": "p/", "endpoint_url": "http://h", "create_bucket": "false"}})
    assert (s3.bucket, s3.prefix, s3._create_bucket) == ("b", "p/", False)
    oci = store({"oci": {"bucket_name": "b", "namespace": "n", "compartment_id": "c", "config_file": "~/x"}})
    assert isinstance(oci, OCIBucketBackend)
    assert (oci.config.bucket_name, oci.config.compartment_id) == ("b", "c")
    pg = store({"pg": {"dsn": "postgresql://h/d", "schema": "s", "keep_checkpoints": 3, "message_retention": "30d"}})
    assert isinstance(pg, PgCheckpointer)
    assert (pg.keep_checkpoints, pg._schema) == (3, "s")
    assert pg.message_retention.days == 30


def test_what_is_not_written_is_left_to_the_constructor() -> None:
    assert str(store("file").base_dir) == str(FileCheckpointer().base_dir)
    assert _config("redis").url == "redis://localhost:6379"
    assert _config("opensearch").hosts == ["localhost:9200"]


# -- users' own ------------------------------------------------------------------------------------------


class Mine(MemoryCheckpointer):
    """A store of a user."""

    def __init__(self, room: str, seats: int = 10, *, where: Path | None = None, **_: Any) -> None:
        super().__init__()
        self.room, self.seats, self.where = room, seats, where


def strict_mine(room: str, *, seats: int = 10) -> Mine:
    """A store of a user."""
    return Mine(room, seats)


class MineOptions(BaseModel):
    """Its options."""

    room: str
    seats: int = 7
    token: SecretStr = SecretStr("")
    where: Path | None = None


def test_a_factory_with_a_model_gets_its_fields() -> None:
    given: dict[str, Any] = {}

    def factory(**options: Any) -> Mine:
        given.update(options)
        return Mine(options["room"], options["seats"])

    register_tier_type("mine", factory, options=MineOptions)
    assert store({"mine": {"room": "attic", "token": "t"}}).seats == 7
    assert given == {"room": "attic", "seats": 7, "token": SecretStr("t"), "where": None}
    with pytest.raises(StackConfigError, match=r"tiers\[0\].mine.rooom: unknown key 'rooom' \(did you mean 'room'"):
        store({"mine": {"rooom": "attic"}})
    with pytest.raises(StackConfigError, match=r"tiers\[0\].mine.room: room is missing"):
        store({"mine": {}})


def test_a_model_may_call_its_fields_otherwise_in_the_file() -> None:
    class Renamed(BaseModel):
        room: str = Field(alias="chamber")
        seats: int = 4

    register_tier_type("mine", Mine, options=Renamed)
    made = store({"mine": {"chamber": "attic"}})
    assert (made.room, made.seats) == ("attic", 4)
    with pytest.raises(StackConfigError, match="did you mean 'chamber'"):
        store({"mine": {"chambr": "attic"}})


def test_a_factory_without_a_model_has_its_parameters() -> None:
    register_tier_type("strict-mine", strict_mine)
    assert store({"strict-mine": {"room": "attic", "seats": "3"}}).seats == 3
    with pytest.raises(StackConfigError, match=r"unknown key 'seets'.*did you mean 'seats'"):
        store({"strict-mine": {"room": "a", "seets": 3}})
    register_tier_type("open-mine", Mine)
    assert store({"open-mine": {"room": "a", "colour": "red"}}).room == "a"


def test_paths_of_users_are_relative_to_the_file_too(tmp_path: Path) -> None:
    register_tier_type("mine", Mine, options=None)
    (tmp_path / "stack.yaml").write_text("tiers: [mine: {room: a, where: ./w}]\n", encoding="utf-8")
    layers = load_stack(tmp_path / "stack.yaml").walk()
    (leaf,) = [each for each in layers if isinstance(each, Leaf)]
    assert isinstance(leaf.backend, Mine)
    assert leaf.backend.where == tmp_path / "w"


@pytest.mark.parametrize("name", ["memory", "s3", "replicated", "retry", "name", "a b", "", "1x", "a.b", 5])
def test_names_that_cannot_be_taken(name: Any) -> None:
    with pytest.raises(StackConfigError):
        register_tier_type(name, Mine)


def test_factories_that_cannot_be_used() -> None:
    with pytest.raises(StackConfigError, match="cannot be called"):
        register_tier_type("mine", 5)  # type: ignore[arg-type]
    with pytest.raises(StackConfigError, match="not a pydantic model"):
        register_tier_type("mine", Mine, options=dict)  # type: ignore[arg-type]


def _raises(**_: Any) -> BaseCheckpointer:
    raise LookupError("no such room")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (_raises, "cannot be built: LookupError: no such room"),
        (lambda **_: 5, "mine: a int is not a checkpointer"),
        (lambda **_: None, "mine: a NoneType is not a checkpointer"),
        (lambda **_: Mine, "mine: Mine is a class, not an instance"),
    ],
)
def test_factories_that_fail(factory: Any, said: str) -> None:
    register_tier_type("mine", factory)
    with pytest.raises(StackConfigError) as raised:
        load_stack("tiers:\n  - memory\n  - mine: {}\n")
    assert str(raised.value).startswith(f"<text>:3:5, tiers[1].mine: {said}")
    assert isinstance(raised.value.__cause__, LookupError if factory is _raises else type(None))


def test_what_users_gave_to_the_sdk_is_a_type_as_well() -> None:
    sdk.register_checkpointer("theirs", lambda room, config_hint=None: Mine(room))
    assert store({"theirs": {"room": "attic"}}).room == "attic"
    with pytest.raises(StackConfigError, match="unknown key 'config_hint'"):
        store({"theirs": {"room": "attic", "config_hint": "x"}})


# -- dotted paths ----------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that shows whether it was imported."""
    (tmp_path / "lt_canary.py").write_text(
        "from locus.memory.backends import MemoryCheckpointer\n"
        "class Store(MemoryCheckpointer):\n"
        "    def __init__(self, room: str) -> None:\n"
        "        super().__init__()\n"
        "        self.room = room\n"
        "number = 5\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "lt_canary"
    sys.modules.pop("lt_canary", None)


@pytest.mark.parametrize("dotted", ["lt_canary.Store", "lt_canary:Store"])
def test_a_dotted_path_is_imported_only_when_allowed(canary: str, dotted: str) -> None:
    for tier in ({dotted: {"room": "a"}}, dotted):
        with pytest.raises(StackConfigError):
            store(tier)
    assert canary not in sys.modules
    assert store({dotted: {"room": "attic"}}, allow_import=True).room == "attic"
    assert canary in sys.modules
    with pytest.raises(StackConfigError, match="did you mean 'room'"):
        store({dotted: {"rooom": "attic"}}, allow_import=True)


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("lt_nowhere.Store", "ModuleNotFoundError: No module named 'lt_nowhere'"),
        ("lt_canary.Nothing", "AttributeError: module 'lt_canary' has no attribute 'Nothing'"),
        ("lt_canary.number", "TypeError: it cannot be called"),
    ],
)
@pytest.mark.usefixtures("canary")
def test_a_dotted_path_that_leads_nowhere(dotted: str, said: str) -> None:
    with pytest.raises(StackConfigError, match=f"cannot be imported: {said}"):
        store({dotted: {}}, allow_import=True)


@pytest.mark.parametrize("name", [".Store", "..", "redis:redis://h", "a b.C", "1.5"])
def test_what_is_no_dotted_path_is_not_imported(name: str) -> None:
    with pytest.raises(StackConfigError, match=r"is not a type of store|unknown key"):
        store(name, allow_import=True)
