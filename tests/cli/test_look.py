"""The commands that look: what they print at 80 columns, what they answer as JSON, and that they change nothing."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
from locus.memory.backends import FileCheckpointer

from locus_tiered import DirectoryCheckpointer, TieredCheckpointer
from locus_tiered.cli.answers import ANSWERS
from tests.cli.fixed import compare, fixed_stack
from tests.cli.kit import COMMAND, answer, asking, do, environment, fill, run, state


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fixed")
    fixed_stack(directory)
    return directory


def _files(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("threads", ["threads", "stack.yaml"], 0),
        ("threads-quiet", ["threads", "stack.yaml", "-q", "-p", "*o*"], 0),
        ("ls", ["ls", "stack.yaml", "ada"], 0),
        ("ls-long", ["ls", "stack.yaml", "carol", "--long"], 0),
        ("show", ["show", "stack.yaml", "ada", "newest~2"], 0),
        ("show-paused", ["show", "stack.yaml", "carol", "--last", "1"], 0),
        ("diff", ["diff", "stack.yaml", "ada", "newest~1"], 1),
        ("diff-tiers", ["diff", "stack.yaml", "ada", "--tiers", "near", "home"], 1),
        ("stats", ["stats", "stack.yaml"], 0),
        ("verify", ["verify", "stack.yaml"], 0),
        ("prune-dry-run", ["prune", "stack.yaml", "--keep-last", "1", "--dry-run"], 0),
        ("check", ["check", "stack.yaml"], 0),
    ],
)
def test_what_is_printed_at_80_columns_and_nothing_is_changed(
    fixed: Path, name: str, words: list[str], code: int
) -> None:
    before = _files(fixed)
    ran = run(*words, cwd=fixed, expect=code)
    assert ran.err == ""
    compare(name, ran.out)
    assert _files(fixed) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check", "stack.yaml", "--live"], 0),
        (["explain", "stack.yaml"], 0),
        (["threads", "stack.yaml"], 0),
        (["ls", "stack.yaml", "ada", "--long"], 0),
        (["show", "stack.yaml", "carol"], 0),
        (["diff", "stack.yaml", "ada", "--tiers", "near", "home"], 1),
        (["stats", "stack.yaml"], 0),
        (["verify", "stack.yaml"], 0),
        (["repair", "stack.yaml", "--dry-run"], 0),
        (["prune", "stack.yaml", "--older-than", "1d", "--dry-run"], 0),
        (["migrate", "--from", "stack.yaml", "--to", "file:other", "--dry-run"], 0),
        (["show", "stack.yaml", "nobody"], 1),
        (["flush", "stack.yaml"], 4),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_json_is_as_its_schema_in_the_docs_says(fixed: Path, words: list[str], code: int) -> None:
    found = answer(*words, cwd=fixed, expect=code)
    assert found["version"] == 1


def test_the_schemas_themselves_are_schemas() -> None:
    for name in ANSWERS:
        schema = json.loads((Path(__file__).parents[2] / f"docs/cli-schemas/{name}.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False


def test_ls_says_which_tier_has_which(fixed: Path) -> None:
    found = answer("ls", "stack.yaml", "ada", cwd=fixed)
    assert found["places"] == ["near", "home"], "the memory of another process is not listed"
    assert [row["tiers"]["near"] for row in found["checkpoints"]] == ["same", "same", "absent"]
    assert {row["tiers"]["home"] for row in found["checkpoints"]} == {"same"}


def test_show_gives_the_whole_state_and_the_caller_s_own_metadata(fixed: Path) -> None:
    found = answer("show", "stack.yaml", "carol", cwd=fixed)
    assert found["metadata"] == {"channel": "mail"}
    assert found["state"]["metadata"] == {"customer": "Ada"}, "no envelope"
    assert found["waits_for"] == "a result of ask_user()"
    assert found["newest"] is True
    assert len(found["state"]["messages"]) == 6


def test_an_id_may_be_cut_short_and_an_ambiguous_one_is_told(fixed: Path) -> None:
    listed = [row["id"] for row in answer("ls", "stack.yaml", "ada", cwd=fixed)["checkpoints"]]
    assert answer("show", "stack.yaml", "ada", listed[1][:-6], cwd=fixed)["checkpoint"] == listed[1]
    ran = run("show", "stack.yaml", "ada", "019", cwd=fixed, expect=2)
    assert "3 checkpoints of thread 'ada' start with '019'" in ran.err
    ran = run("show", "stack.yaml", "ada", "newest~7", cwd=fixed, expect=1)
    assert "only 3 checkpoints" in ran.err


def test_nothing_from_a_store_moves_the_cursor(tmp_path: Path) -> None:
    nasty = "\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J"
    store = DirectoryCheckpointer(tmp_path / "home")
    do(fill(store, {f"t-{nasty}": 1}, text=nasty))
    stack = tmp_path / "stack.yaml"
    stack.write_text("version: 1\ntiers:\n  - directory: {path: ./home}\n")
    for words in (["threads", stack], ["threads", stack, "-q"], ["show", stack, f"t-{nasty}"]):
        printed = run(*words, cwd=tmp_path).out
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
        assert "owned" in printed
    assert answer("threads", stack, cwd=tmp_path)["threads"][0]["thread"] == f"t-{nasty}"


def test_bare_checkpointers_of_the_sdk_are_read_too(tmp_path: Path) -> None:
    do(fill(FileCheckpointer(str(tmp_path / "plain")), {"ada": 3, "bob": 1}))
    found = answer("threads", "file:plain", cwd=tmp_path)
    assert {row["thread"]: row["checkpoints"] for row in found["threads"]} == {"ada": 3, "bob": 1}
    assert answer("show", "file:plain", "ada", cwd=tmp_path)["state"]["iteration"] == 2
    assert answer("stats", "file:plain", cwd=tmp_path)["checkpoints"] == 4
    verified = answer("verify", "file:plain", cwd=tmp_path)
    assert verified["places"][0]["without_digest"] == 4
    assert "4 without a digest" in run("verify", "file:plain", cwd=tmp_path).out
    changed = answer("diff", "file:plain", "ada", "newest~1", "newest", cwd=tmp_path, expect=1)["changes"]
    assert {"path": "iteration", "before": 1, "after": 2} in changed


def test_ids_that_a_bare_backend_keeps_under_other_names_are_found(tmp_path: Path) -> None:
    plain = FileCheckpointer(str(tmp_path / "plain"))
    do(fill(plain, {"anon:4711": 2, "a b": 1}))  # an AgentServer's ids hold a colon
    do(fill(TieredCheckpointer(plain), {"stack:1": 3}))
    found = answer("threads", "file:plain", cwd=tmp_path)
    assert {row["thread"]: row["checkpoints"] for row in found["threads"]} == {"anon:4711": 2, "a b": 1, "stack:1": 3}
    for thread, iteration in (("anon:4711", 1), ("stack:1", 2)):
        assert answer("show", "file:plain", thread, cwd=tmp_path)["state"]["iteration"] == iteration


def test_the_registry_s_name_for_a_stack_file_works(fixed: Path) -> None:
    assert answer("threads", "tiered:stack.yaml", cwd=fixed)["total"] == 3


class _Store(BaseHTTPRequestHandler):
    """What HTTPCheckpointer asks of its server, for one thread with one checkpoint."""

    body = json.dumps({"state": state(4).to_checkpoint(), "checkpoint_ids": ["only"], "checkpoints": ["only"]})

    def do_GET(self) -> None:
        found = self.body if self.path.split("?")[0].count("/") > 1 else "{}"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(found.encode())

    def log_message(self, *_: object) -> None:
        """Not in the tests' output."""


@pytest.fixture
def http_store() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://u-secret:p-secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_who_cannot_list_threads_says_so_and_what_is_possible(http_store: str, tmp_path: Path) -> None:
    for words in (["threads"], ["stats"], ["verify"], ["prune", "-k", "1"]):
        ran = run(words[0], f"http:{http_store}", *words[1:], cwd=tmp_path, expect=4)
        assert "cannot list its threads" in ran.err
        assert "--thread" in ran.err
        assert "secret" not in ran.err + ran.out
    found = answer("stats", f"http:{http_store}", "--thread", "t", cwd=tmp_path)
    assert found["checkpoints"] == 1
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["threads", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["threads", "fiel:x"], "did you mean 'file'?"),
        (["threads", "s3:a", "--pattrn", "x"], "--pattern"),
        (["ls", "file:x"], "THREAD"),
        (["diff", "file:x", "t"], "two ids, or --tiers T1 T2, or --other STACK"),
        (["prune", "file:x"], "--keep-last N"),
        (["prune", "file:x", "--older-than", "yesterday"], "'yesterday' is not an age"),
        (["threads", "oci:bucket"], "oci:BUCKET/NAMESPACE"),
        (["diff", "stack.yaml", "ada", "--tiers", "near", "hom"], "there is no tier 'hom'"),
        (["migrate", "--from", "stack.yaml", "--to", "tiered:stack.yaml", "-y"], "the same store"),
        (["schema", "--of", "nothing"], "there is no command 'nothing'"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_a_line_or_two_with_exit_code_2(fixed: Path, words: list[str], message: str) -> None:
    ran = run(*words, cwd=fixed, expect=2)
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert ran.out == ""


def test_every_mistake_of_a_file_is_shown(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("version: 1\ntiers:\n  - memori: {}\n  - directory: {pat: ./x}\n")
    ran = run("check", "wrong.yaml", cwd=tmp_path, expect=2)
    assert "wrong.yaml" in ran.err
    assert "memory" in ran.err
    assert "path" in ran.err
    found = answer("check", "wrong.yaml", cwd=tmp_path, expect=2)
    assert found["error"] == "StackConfigError"


def test_one_damaged_file_does_not_hide_the_rest(tmp_path: Path) -> None:
    fixed_stack(tmp_path)
    victim = sorted((tmp_path / "home").glob("ada/*.json"))[1]
    victim.write_bytes(victim.read_bytes().replace(b"Thursday", b"Saturday"))
    listed = answer("ls", "stack.yaml", "ada", "--long", cwd=tmp_path)
    assert listed["total"] == 3
    assert answer("stats", "stack.yaml", cwd=tmp_path)["threads"] == 3
    assert answer("show", "stack.yaml", "ada", cwd=tmp_path)["state"]["iteration"] == 3


def test_stats_count_duplicates_and_paused_turns(tmp_path: Path) -> None:
    store = FileCheckpointer(str(tmp_path / "plain"))
    paused = asking(1)

    async def save() -> None:
        await store.save(paused, "t")
        await store.save(paused, "t")

    do(save())
    found = answer("stats", "file:plain", cwd=tmp_path)
    assert (found["duplicates"], found["waiting"], found["checkpoints"]) == (1, 1, 2)
    assert [each["what"] for each in found["histograms"]] == [
        "checkpoints per thread",
        "bytes per checkpoint",
        "age of a thread's newest",
    ]
    quick = answer("stats", "file:plain", "--quick", cwd=tmp_path)
    assert (quick["bytes"], quick["duplicates"]) == (None, None)
    assert answer("stats", "file:plain", "--sample", "1", cwd=tmp_path)["sampled"] is False


def test_explain_shows_the_tree_and_who_decides(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(
        "version: 1\nname: support\ntiers:\n  - memory: {max_bytes: 8MiB}\n  - sdk-memory: {}\n"
        "    retry: {attempts: 2}\n    guard: {max_concurrency: 4}\n"
    )
    ran = run("explain", "stack.yaml", cwd=tmp_path)
    compare("explain", ran.out)
    found = answer("explain", "stack.yaml", cwd=tmp_path)
    assert found["capabilities"]["branching"]["member"] == "support"


def test_the_version_and_the_schema_of_stack_files(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).out.startswith("locus-tiered 0.")
    schema = run("schema", cwd=tmp_path).json
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "tiers" in schema["properties"]
    assert run("schema", "--of", "ls", cwd=tmp_path).json["title"] == "LsAnswer"


def test_a_reader_that_has_seen_enough_is_no_error(fixed: Path) -> None:
    command = [*COMMAND, "threads", "stack.yaml", "-q"]
    process = subprocess.Popen(
        command, cwd=fixed, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert "Traceback" not in said
    assert "Error" not in said
    assert process.wait(30) in (0, 1)


def test_an_empty_store_makes_one_think_of_a_wrong_name(tmp_path: Path) -> None:
    assert "is the name right?" in run("threads", "file:nowhere", cwd=tmp_path).out
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "words", [["ls", "file:states", ""], ["stats", "file:states", "-t", ""], ["prune", "file:states", "-k1", "-t", ""]]
)
def test_an_empty_thread_is_a_variable_that_was_not_set(tmp_path: Path, words: list[str]) -> None:
    assert "the thread's id is empty" in run(*words, cwd=tmp_path, expect=2).err


def test_an_id_stays_on_its_line_and_a_checkpoint_stays_whole(tmp_path: Path) -> None:
    store = DirectoryCheckpointer(tmp_path / "states")
    do(fill(store, {"two\nlines": 2, "long" * 60: 2}))
    stack = tmp_path / "stack.yaml"
    stack.write_text("tiers: [directory: {path: states}]\n", encoding="utf-8")
    assert "two\u240alines" in run("threads", stack, "-q", "-p", "two*", cwd=tmp_path).out.splitlines()
    table = run("prune", stack, "-k", "1", "--dry-run", cwd=tmp_path).out
    pruned = answer("prune", stack, "-k", "1", "--dry-run", cwd=tmp_path)["checkpoints"]
    assert len(pruned) == 2
    assert all(row["checkpoint"] in table for row in pruned)


def test_a_reader_that_has_read_enough_is_no_failure(tmp_path: Path) -> None:
    do(fill(DirectoryCheckpointer(tmp_path / "states"), {f"{'thread' * 30}-{number}": 1 for number in range(500)}))
    (tmp_path / "stack.yaml").write_text("tiers: [directory: {path: states}]\n", encoding="utf-8")
    command = [*COMMAND, "threads", "stack.yaml", "-q"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_a_message_of_the_same_words_is_the_same_whatever_time_postgresql_noted(tmp_path: Path) -> None:
    store = DirectoryCheckpointer(tmp_path / "states")
    one = state(1)
    noted = [message.model_copy(update={"metadata": {"locus_at": "2026-01-01"}}) for message in one.messages]
    do(store.save(one, "ada"))
    do(store.save(one.model_copy(update={"messages": tuple(noted), "iteration": 7}), "ada"))
    (tmp_path / "stack.yaml").write_text("tiers: [directory: {path: states}]\n", encoding="utf-8")
    told = run("diff", "stack.yaml", "ada", "newest~1", cwd=tmp_path, expect=1).out
    assert "iteration" in told
    assert "messages are the same" not in told
