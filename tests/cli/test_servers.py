"""The command line on real S3, Redis and PostgreSQL servers, with secrets that must never be seen."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends.s3 import S3Backend

from locus_tiered import TieredCheckpointer
from locus_tiered.cli.states import digest
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey, valkey
from tests.cli.kit import answer, do, environment, fill, ids, run, state

SECRET = "planted-" + secrets.token_hex(8)


@dataclass
class Site:
    """Stack files in a directory, and the environment that they read."""

    directory: Path
    env: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def write(self, name: str, *tiers: str) -> Path:
        file = self.directory / f"{name}.yaml"
        file.write_text("\n".join(["version: 1", f"name: {name}", "tiers:", *tiers]) + "\n")
        return file

    def answer(self, *words: object, expect: int = 0) -> Any:
        return answer(str(words[0]), *words[1:], cwd=self.directory, expect=expect, **self.env)

    def run(self, *words: object, expect: int = 0) -> str:
        ran = run(*words, cwd=self.directory, expect=expect, **self.env)
        return ran.out + ran.err


@pytest.fixture
def site(tmp_path: Path, s3_server: SeaweedFS, valkey_server: Valkey, postgres_server: Postgres) -> Iterator[Site]:
    bucket = s3_server.bucket_name()
    env = {
        "S3_BUCKET": bucket,
        "S3_URL": s3_server.endpoint_url,
        "S3_KEY": s3_server.access_key,
        "S3_SECRET": s3_server.secret_key,
        "PG_DSN": postgres_server.dsn.replace("@", f":{SECRET}@", 1),
        "REDIS_URL": valkey_server.url,
    }
    site = Site(tmp_path, env)
    site.write(
        "s3",
        "  - memory: {max_bytes: 8MiB}",
        '  - s3: {bucket: "${S3_BUCKET}", endpoint_url: "${S3_URL}", region_name: us-east-1,',
        '         aws_access_key_id: "${S3_KEY}", aws_secret_access_key: "${S3_SECRET}"}',
        "    name: s3",
    )
    table = f"checkpoints_{secrets.token_hex(6)}"
    site.write("pg", f'  - pg: {{dsn: "${{PG_DSN}}", table: {table}}}', "    name: pg")
    prefix = f"cli:{secrets.token_hex(6)}:"
    site.write("redis", f'  - redis: {{url: "${{REDIS_URL}}", prefix: "{prefix}"}}', "    name: redis")
    yield site
    s3_server.drop_bucket(bucket)


def _s3(server: SeaweedFS, site: Site) -> S3Backend:
    return server.backend(bucket=site.env["S3_BUCKET"])


def test_a_migration_from_s3_to_postgres_to_redis_and_back_to_a_directory(site: Site, s3_server: SeaweedFS) -> None:
    threads = {"ada": 6, "anon:4711": 4, "with/slash": 3}
    s3 = TieredCheckpointer(_s3(s3_server, site))
    do(fill(s3, threads))
    for name, is_there in (("s3", "S3Backend"), ("pg", "PgCheckpointer"), ("redis", "StorageBackendAdapter")):
        checked = site.answer("check", f"{name}.yaml", "--live")
        assert checked["ok"] is True
        assert is_there in [member["kind"] for member in checked["members"]]
        assert [probe["operation"] for probe in checked["members"][-1]["probes"]] == ["save", "load", "list", "delete"]
    for source, destination in (("s3", "pg"), ("pg", "redis"), ("redis", "back")):
        if destination == "back":
            site.write("back", "  - directory: {path: ./back}")
        found = site.answer("migrate", "--from", f"{source}.yaml", "--to", f"{destination}.yaml", "--yes")
        assert (found["copied"], found["verified"], found["problems"]) == (13, 13, {})
        assert found["threads"] == 3, "neither tombstones nor probes are threads"
        assert site.answer("verify", f"{destination}.yaml")["kinds"] == {}
    for thread, name in zip(threads, ("pg", "redis", "back"), strict=True):
        assert site.answer("diff", "s3.yaml", thread, "--other", f"{name}.yaml")["same"] is True
        before = do(s3.load(thread))
        assert before is not None
        shown = site.answer("show", f"{name}.yaml", thread)["state"]
        assert digest(before.from_checkpoint(shown)) == digest(before)
    do(s3.close())


def test_a_bare_bucket_is_read_by_its_name_in_the_registry(site: Site, s3_server: SeaweedFS) -> None:
    do(fill(_s3(s3_server, site), {"ada": 2}))
    site.env |= {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    found = site.answer("threads", f"s3:{site.env['S3_BUCKET']}")
    assert [(row["thread"], row["checkpoints"]) for row in found["threads"]] == [("ada", 2)]


def test_an_s3_that_lost_the_newest_turn_is_found_and_mended(site: Site, s3_server: SeaweedFS) -> None:
    bare = _s3(s3_server, site)
    stack = TieredCheckpointer(_s3(s3_server, site))
    do(fill(stack, {"ada": 3}))
    names = ids(site.answer("ls", "s3.yaml", "ada")["checkpoints"])
    # What S3Backend itself leaves behind after two quick turns: its pointer names the turn before.
    with_client = s3_server.client()
    with_client.put_object(Bucket=site.env["S3_BUCKET"], Key=bare._latest_key("ada"), Body=names[1].encode())
    with_client.close()
    lost = do(bare.load("ada"))
    assert lost is not None
    assert lost.iteration == 1
    found = site.answer("verify", "s3.yaml", expect=1)
    assert [(each["kind"], each["checkpoint"]) for each in found["found"]] == [("latest", names[0])]
    done = site.answer("repair", "s3.yaml", "--yes")
    assert [(each["action"], each["checkpoint"]) for each in done["done"]] == [("head saved again", names[0])]
    mended = do(bare.load("ada"))
    assert mended is not None
    assert mended.iteration == 2
    assert site.answer("verify", "s3.yaml")["kinds"] == {}
    assert ids(site.answer("ls", "s3.yaml", "ada")["checkpoints"]) == names
    do(bare.close())


def test_prune_on_s3_and_redis_leaves_the_newest_loadable(site: Site, s3_server: SeaweedFS) -> None:
    do(fill(TieredCheckpointer(_s3(s3_server, site)), {"ada": 5}))
    site.answer("migrate", "--from", "s3.yaml", "--to", "redis.yaml", "--yes")
    for name in ("s3", "redis"):
        assert site.answer("prune", f"{name}.yaml", "-k", "2", "--yes")["pruned"] == 3
        assert site.answer("ls", f"{name}.yaml", "ada")["total"] == 2
        assert site.answer("show", f"{name}.yaml", "ada")["state"]["iteration"] == 4


def test_no_secret_is_ever_printed(site: Site, s3_server: SeaweedFS) -> None:
    do(fill(TieredCheckpointer(_s3(s3_server, site)), {"ada": 1}))
    said = [site.run("explain", f"{name}.yaml") for name in ("s3", "pg", "redis")]
    said += [site.run("explain", f"{name}.yaml", "--json") for name in ("s3", "pg", "redis")]
    said += [site.run("check", "pg.yaml", "--live"), site.run("stats", "pg.yaml"), site.run("verify", "s3.yaml")]
    site.env["PG_DSN"] = f"postgresql://someone:{SECRET}@127.0.0.1:1/none?password={SECRET}"
    site.env["S3_SECRET"] = SECRET
    site.env["REDIS_URL"] = f"redis://:{SECRET}@127.0.0.1:1/0"
    for name in ("pg", "redis", "s3"):
        said.append(site.run("check", f"{name}.yaml", "--live", "--json", "--timeout", "5", expect=3))
        said.append(site.run("show", f"{name}.yaml", "t", "--timeout", "5", expect=3))
    said.append(site.run("threads", f"redis:redis://:{SECRET}@127.0.0.1:1/0", expect=3))
    (site.directory / "wrong.yaml").write_text('version: 1\ntiers:\n  - pg: {dsn: "${PG_DSN}", tabel: x}\n')
    said.append(site.run("check", "wrong.yaml", expect=2))
    everything = "\n".join(said)
    assert SECRET not in everything
    assert s3_server.secret_key not in everything
    assert "Traceback" not in everything


def test_a_server_that_hangs_ends_a_command_in_time_with_exit_code_3(tmp_path: Path) -> None:
    with valkey() as server:
        site = Site(tmp_path, {"REDIS_URL": server.url})
        site.write("redis", '  - redis: {url: "${REDIS_URL}"}', "    name: far")
        server.pause()
        began = time.monotonic()
        said = site.run("threads", "redis.yaml", "--timeout", "1", expect=3)
        assert time.monotonic() - began < 10
        assert "far did not answer list_threads within 1 s" in said
        down = site.answer("check", "redis.yaml", "--live", "--timeout", "1", expect=3)
        assert down["members"][0]["reachable"] is False
        server.resume()
        assert site.answer("check", "redis.yaml", "--live")["ok"] is True
        server.kill()
        assert "far failed" in site.run("stats", "redis.yaml", expect=3)


def test_rows_behind_a_server_that_is_down_stay_pending_and_are_told(tmp_path: Path) -> None:
    from locus_tiered.config import load_stack

    with valkey() as server:
        site = Site(tmp_path, {"REDIS_URL": server.url})
        file = site.write(
            "behind", '  - redis: {url: "${REDIS_URL}"}', "    name: far", "    write: behind", "    ack: journal"
        )
        file.write_text(file.read_text() + "journal: {path: ./journal, drain_timeout: 0.2}\n")
        server.kill()

        async def save() -> None:
            stack = load_stack(file, env=environment(**site.env))
            for number in range(3):
                await stack.save(state(number), "ada")
            await stack.close()

        do(save())
        assert "3 rows" in site.run("flush", "behind.yaml", "--timeout", "3", expect=3)
        server.restart()
        assert site.answer("flush", "behind.yaml")["after"][0]["rows"] == 0
        assert site.answer("ls", "behind.yaml", "ada")["total"] == 3
