"""Every mistake is told at once, each with its place, its path, and what to write instead."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from locus_tiered import load_stack
from locus_tiered.core.errors import StackConfigError


def mistakes(source: Any, **options: Any) -> list[str]:
    """What is wrong with a stack, one line each."""
    with pytest.raises(StackConfigError) as raised:
        load_stack(source, env=options.pop("env", {}), **options)
    return [str(each) for each in raised.value.mistakes]


def one(source: Any, **options: Any) -> str:
    """The only thing that is wrong."""
    found = mistakes(source, **options)
    assert len(found) == 1, found
    return found[0].removeprefix("<text>:")


EVERYTHING = """\
version: 2
nmae: x
latest: newest
trace: {thread_id: hsh}
journal: ./j
near_timeout: 5 parsecs
tiers:
  - memry: {max_bytes: 256MiB}
  - memory: {max_byts: 256MiB, policy: lur}
  - s3:
    bucket: x
    write: behind
  - s3: {bucket: 5, endpoint_url: "${S3_ENDPOINT}"}
    retry: {attempts: 0, deadline: 15x, repeat: [sav]}
    guard: {timeout: {laod: 2s, save: -5s}, breaker: {failurs: 5}}
"""


def test_all_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text(EVERYTHING, encoding="utf-8")
    with pytest.raises(StackConfigError) as raised:
        load_stack(file, env={"S3_ENDPONT": "x"})
    error = raised.value
    assert [(each.line, each.column, each.path) for each in error.mistakes] == [
        (1, 10, "version"),
        (2, 1, "nmae"),
        (3, 9, "latest"),
        (4, 20, "trace.thread_id"),
        (5, 1, "journal"),
        (6, 15, "near_timeout"),
        (8, 5, "tiers[0].memry"),
        (9, 14, "tiers[1].memory.max_byts"),
        (9, 40, "tiers[1].memory.policy"),
        (11, 5, "tiers[2].bucket"),
        (12, 12, "tiers[2].write"),
        (13, 18, "tiers[3].s3.bucket"),
        (13, 35, "tiers[3].s3.endpoint_url"),
        (14, 23, "tiers[3].retry.attempts"),
        (14, 36, "tiers[3].retry.deadline"),
        (14, 50, "tiers[3].retry.repeat[0]"),
        (15, 23, "tiers[3].guard.timeout.laod"),
        (15, 39, "tiers[3].guard.timeout.save"),
        (15, 55, "tiers[3].guard.breaker.failurs"),
    ]
    assert all(each.file == str(file) for each in error.mistakes)
    text = str(error)
    assert text.startswith(f"19 mistakes in {file}:\n  {file}:1:10, version: ")
    for meant in ("name", "memory", "max_bytes", "lru", "hash", "S3_ENDPONT", "load", "failures"):
        assert f"did you mean '{meant}'?" in text
    assert (error.line, error.column, error.path) == (1, 10, "version")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
    assert str(again) == text
    assert len(again.mistakes) == 19


def test_one_mistake_is_itself() -> None:
    with pytest.raises(StackConfigError) as raised:
        load_stack("tiers: [memory]\nlatest: validat\n")
    (alone,) = raised.value.mistakes
    assert alone is raised.value
    assert str(alone).startswith("<text>:2:9, latest: 'validat' is not a way to read the newest checkpoint (write")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiers: []", "1:8, tiers: a stack needs at least one tier (list them nearest first, home last)"),
        ("name: x", "1:1, tiers: a stack needs at least one tier"),
        ("tiers:\n", "1:7, tiers: a stack needs at least one tier"),
        ("tiers: memory: {}", "1:14: this is not YAML"),
        ("tiers: {memory: {}}", "1:8, tiers: a list belongs here (begin each item with a dash)"),
        ("- memory\n- file: {}", "1:1: there is no mapping at the top (a stack begins with \"tiers:\")"),
        ("\n\n", " there is nothing in it"),
        ("tiers: [5]", "1:9, tiers[0]: 5 is not a tier"),
        ("tiers: [s3]", "1:9, tiers[0].s3.bucket: bucket is missing"),
        ("tiers: [{s3: }]", "1:13, tiers[0].s3.bucket: bucket is missing"),
        ("tiers: [{replicated: }]", "1:21, tiers[0].replicated.replicas: replicas is missing"),
        ("tiers: [{}]", "1:9, tiers[0]: names no store (one of directory, file, http"),
        ("tiers: [{name: x}]", "1:9, tiers[0]: names no store"),
        ("tiers: [memry]", "1:9, tiers[0]: 'memry' is not a type of store (did you mean 'memory'?)"),
        ("tiers: [{type: memory}]", "1:10, tiers[0].type: unknown key 'type' (write - memory: {...})"),
        ("tiers: [{memory: , file: }]", "1:20, tiers[0].file: a second store beside memory (a dash before each"),
        ("tiers: [{file: {retry: true}}]", "1:17, tiers[0].file.retry: retry belongs to the tier, beside file"),
        ("tiers: [{a.b.C: {}}]", "1:10, tiers[0].a.b.C: unknown key 'a.b.C' (a dotted path needs load_stack(...,"),
        ("tiers: [{memory: 5}]", "1:18, tiers[0].memory: memory takes options (write memory: {max_bytes: 256MiB})"),
        ("tiers: [{memory: {ttl: 0}}]", "1:24, tiers[0].memory.ttl: 0 must be more than 0"),
        ("tiers: [{memory: {max_bytes: }}]", "1:29, tiers[0].memory.max_bytes: None is not a size"),
        ("tiers: [{memory: }]\nname: ''", "2:7, name: '' is not a name"),
        ("tiers: [memory]\nname:\n  a: b", "3:3, name: the value is not a name"),
        ("tiers: [memory]\ntrace: hash", "2:8, trace: 'hash' is neither true, false nor a mapping"),
        ("tiers: [{file: , retry: }]", "1:24, tiers[0].retry: None is neither true, false nor a mapping"),
        ("tiers: [{file: {pretty: 5}}]", "1:25, tiers[0].file.pretty: 5 is wrong: it should be a valid boolean"),
        ("tiers: [{file: {max_checkpoints_per_thread: true}}]", "1:45, tiers[0].file.max_checkpoints_per_thread: True"),
        ("tiers: [{file: {base_dir: }}]", "1:26, tiers[0].file.base_dir: None is not a path"),
        ("tiers: [{file: , write: behnid}]", "1:25, tiers[0].write: 'behnid' is not one of through, behind (did you"),
        ("tiers: [{file: , write: behind}]", "1:25, tiers[0].write: write: behind needs a journal (write journal:"),
        ("tiers: [{file: , ack: turn}]", "1:23, tiers[0].ack: ack is for a tier with write: behind"),
        ("tiers: [file]\njournal: ./j", "2:1, journal: nothing uses the journal (put 'write: behind' at the last"),
        (
            "tiers: [{file: , write: behind}]\njournal: {path: j, linger: 90s}",
            "2:1, journal: linger is more than max_lag",
        ),
        ("tiers: [{file: , write: behind}]\njournal: 5", "2:10, journal: 5 is neither a path nor a mapping"),
        ("tiers: [{file: , write: behind}, file]\njournal: j\n", "1:25, tiers[0].write: only home, the last tier"),
        ("tiers: [{file: , name: a}, {directory: {path: x}, name: a}]", "1:57, tiers[1].name: this name is taken"),
        (
            "tiers: [{directory: {path: x}}, {directory: {path: x}}]",
            "1:1, tiers: two tiers use one store",
        ),
        ("tiers: [{file: , guard: {timeout: 5x}}]", "1:35, tiers[0].guard.timeout: '5x' is not a duration"),
        ("tiers: [{file: , guard: {breaker: {open_for: 9m}}}]", "1:18, tiers[0].guard: BreakerPolicy("),
        ("tiers: [{postgresql: {table_name: a-b}}]", "1:10, tiers[0].postgresql: Invalid table_name: 'a-b'."),
        ("tiers: [memory]\ntiers: [file]", "2:1, tiers: the key 'tiers' is written twice (it is on line 1 too"),
    ],
)  # fmt: skip
def test_what_is_said(text: str, said: str) -> None:
    found = mistakes(f"{text}\n")
    assert any(each.removeprefix("<text>:").startswith(said) for each in found), found


@pytest.mark.parametrize(
    ("tier", "path", "hint"),
    [
        ("redis: {url: 'redis://rediss://h:1'}", "redis.url", 'with TLS write "rediss://host:6379"'),
        ("redis: {url: 'h:6379'}", "redis.url", 'write "rediss://host:6379" (TLS) or "redis://host:6379"'),
        ("redis: rediss://h:1", "redis", 'write redis: {url: "rediss://host:6379"}'),
        ("'redis:rediss://h:1'", "", 'write redis: {url: "rediss://host:6379"}'),
        ("redis: {host: h}", "redis.host", 'it goes into url: "redis://user:password@host:port/0"'),
        ("redis: {ttl: 5}", "redis.ttl", "did you mean 'ttl_seconds'?"),
        ("oci: {bucket_name: a}", "oci.namespace", "write namespace: your tenancy's, which `oci os ns get` prints"),
        ("oci: {bucket_name: a/b, namespace: c}", "oci.bucket_name", "write namespace: beside it"),
        ("oci: agents/ns", "oci", "write oci: {bucket_name: ..., namespace: ...}"),
        ("oci: {bucket_name: a, namespace: b, auth_type: apikey}", "oci.auth_type", "one of api_key, security_token"),
        ("postgresql: {database: 'postgresql://h/d'}", "postgresql.database", 'write dsn: "postgresql://..." instead'),
        ("postgresql: postgresql://h/d", "postgresql", 'write postgresql: {dsn: "postgresql://..."}'),
        ("postgresql: {dsn: 'postgresql+asyncpg://h/d'}", "postgresql.dsn", 'write "postgresql://user:password@host'),
        ("postgresql: {dsn: 'postgresql://h/d', user: x}", "postgresql.user", "write it into dsn, or leave dsn out"),
        ("postgresql: {url: 'postgresql://h/d'}", "postgresql.url", "did you mean 'dsn'?"),
        ("pg: {dsn: 'mysql://h/d'}", "pg.dsn", 'write "postgresql://user:password@host/database"'),
        ("pg: {dsn: 'postgresql://h/d', table_name: x}", "pg.table_name", "did you mean 'table'?"),
        ("mysql: {database: 'mysql://h/d'}", "mysql.database", 'write dsn: "mysql://..." instead'),
        ("oracle: {database: x}", "oracle.database", 'write dsn: "host:1521/service", a TNS name, or host, port and'),
        ("oracle: {user: x}", "oracle", 'write dsn: "host:1521/service", or host and service_name'),
        ("opensearch: {hosts: 'h:9200'}", "opensearch.hosts", 'write hosts: ["host:9200"]'),
        ("s3: {bucket: 's3://a/b'}", "s3.bucket", "write bucket: agents, and prefix: path/"),
        ("s3: {bucket: a, region: b}", "s3.region", "did you mean 'region_name'?"),
        ("s3: {bucket: a, endpoint_url: 'h:9000'}", "s3.endpoint_url", 'write "https://host:port"'),
        ("s3: {bucket: a, aws_access_key_id: b}", "s3", "write both, or none and let boto3 find them"),
        ("http: {base_url: 'h/api'}", "http.base_url", 'write "https://host/api"'),
        ("memory: {max_checkpoints: 5}", "memory.max_checkpoints", "there is max_bytes, policy, ttl"),
        ("pg: {dsn: 'postgresql://h/d', tenant_of: x}", "pg.tenant_of", "did you mean 'tenant'?"),
        ("s3: {bucket: a, _client: x}", "s3._client", None),
    ],
)  # fmt: skip
def test_the_sdks_own_traps_are_told_with_the_right_spelling(tier: str, path: str, hint: str | None) -> None:
    text = f"tiers:\n  - {tier}\n"
    with pytest.raises(StackConfigError) as raised:
        load_stack(text, env={})
    (mistake,) = raised.value.mistakes
    assert mistake.path == f"tiers[0].{path}".rstrip(".")
    assert mistake.line == 2
    assert (mistake.hint or "").startswith(hint or "")


@pytest.mark.parametrize(
    ("replicated", "said"),
    [
        ("{replicas: [file]}", "1:33, replicas: replication needs at least two replicas"),
        ("{replicas: [file, sdk-memory]}", "1:10, two replicas with a majority need a journal"),
        ("{replicas: [file, memory, sdk-memory], write_quorum: 4}", "1:75, write_quorum: a quorum of 4 among 3"),
        ("{replicas: [file, memory, {sdk-memory: , write: behind}]}", "1:63, replicas[2].write: unknown key"),
        ("{replicas: [file, memory, {replicated: {}}]}", "1:49, replicas[2].replicated: unknown key"),
        ("{replicas: [file, memory, {s3: {buckt: x, bucket: y}}]}", "1:54, replicas[2].s3.buckt: unknown key"),
        ("{replicas: [{file: , name: a}, {memory: , name: a}, sdk-memory]}", "1:70, replicas[1].name: this name"),
        ("{replicas: [file, memory, sdk-memory], read: any}", "1:67, read: 'any' is not one of one, quorum, hedged"),
        ("{}", "1:22, replicas: replicas is missing"),
    ],
)
def test_replicas(replicated: str, said: str) -> None:
    mistake = one(f"tiers: [{{replicated: {replicated}}}]\n")
    assert mistake.replace("tiers[0].replicated.", "").replace("tiers[0].replicated: ", "").startswith(said)


def test_retry_and_guard_belong_to_each_replica() -> None:
    text = "tiers:\n- replicated: {replicas: [file, memory, sdk-memory]}\n  retry: true\n  guard: {}\n"
    assert [each.split(" (")[0] for each in mistakes(text)] == [
        "<text>:3:3, tiers[0].retry: retry belongs to each replica",
        "<text>:4:3, tiers[0].guard: guard belongs to each replica",
    ]


def test_a_mapping_has_paths_and_no_lines() -> None:
    assert one({"tiers": [{"memory": {"max_byts": 1}}]}) == (
        "tiers[0].memory.max_byts: unknown key 'max_byts' (did you mean 'max_bytes'?)"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("tiers: [memory]\n", encoding="utf-8")
    assert f"did you mean '{tmp_path}/stack.yaml'?" in one(tmp_path / "stakc.yaml")
    assert "cannot be read: Is a directory" in one(tmp_path)
    assert "cannot be read: not the name of a file" in one("a\0b")
    (tmp_path / "latin").write_bytes(b"tiers: [memory]\nname: caf\xe9\n")
    assert one(tmp_path / "latin") == f"{tmp_path}/latin:2: this is not UTF-8 text"
    (tmp_path / "large").write_bytes(b"#" * 300_000)
    assert "more than 256 KiB" in one(tmp_path / "large")


def test_what_is_no_source_at_all() -> None:
    for source in (None, 5, [], "", b"tiers: [memory]"):
        assert "is not a stack (pass a path, a text, or a mapping)" in one(source)


def test_what_a_reference_became_is_shown_as_the_reference() -> None:
    env = {"SIZE": "plenty", "EMPTY": "", "TYPE": "memry"}
    assert one("tiers: [{memory: {max_bytes: '${SIZE}'}}]", env=env).startswith(
        "1:30, tiers[0].memory.max_bytes: the value of ${SIZE} is not a size (write bytes"
    )
    assert one("tiers: [{s3: {bucket: '${EMPTY}'}}]", env=env) == (
        "1:23, tiers[0].s3.bucket: bucket is needed, and ${EMPTY} is empty"
    )
    assert one("tiers: ['${TYPE}']", env=env) == (
        "1:9, tiers[0]: the value of ${TYPE} is not a type of store (did you mean 'memory'?)"
    )


def test_a_missing_variable_is_one_mistake_not_two() -> None:
    assert "the variable PORT is not set" in one("tiers: [{postgresql: {port: '${PORT}'}}]")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "tiers: [memory]\n" + "".join(f"key{n}: 1\n" for n in range(4_000)),
        "tiers: [{memory: {" + ", ".join(f"key{n}: 1" for n in range(4_000)) + "}}]\n",
        "tiers: [{" + ", ".join(f"key{n}: 1" for n in range(4_000)) + "}]\n",
        "tiers: [" + ", ".join(["memry"] * 4_000) + "]\n",
        "tiers:\n" + "- {s3: {buckt: 1}, retry: {attempts: 0}}\n" * 1_000,
        "tiers:\n" + "- '${MISSING}'\n" * 4_000,
        "tiers: [memory]\n" + "name: x\n" * 4_000,
    ],
    ids=lambda text: f"{text[:24]!r}",
)
def test_of_very_many_only_the_first_are_told(text: str) -> None:
    with pytest.raises(StackConfigError, match=r"^100 mistakes and more in <text>:") as raised:
        load_stack(text, env={f"NAME_{n}": "x" for n in range(500)})
    assert len(raised.value.mistakes) == 100
