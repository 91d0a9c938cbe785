"""What else of the SDK takes a checkpointer: graphs, the server's thread routes, the registry."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from locus.core.command import Command
from locus.core.interrupt import interrupt
from locus.core.state import AgentState
from locus.memory import registry
from locus.memory.backends.s3 import S3Backend
from locus.multiagent.graph import END, START, GraphConfig, StateGraph
from locus.server.app import AgentServer

from locus_tiered import TieredCheckpointer
from locus_tiered.testing.services import SeaweedFS
from tests.integration.agents import agent_on, calls, said, state_saying, three_tiers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a newer starlette would rather have httpx2
    from fastapi.testclient import TestClient


@pytest.fixture
async def stack(s3_backend: S3Backend, tmp_path: Path) -> AsyncIterator[TieredCheckpointer]:
    async with three_tiers(s3_backend, tmp_path / "near") as made:
        yield made


def review_graph(checkpointer: TieredCheckpointer) -> StateGraph:
    """draft -> review (asks a person) -> publish."""

    async def draft(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["topic"].upper(), "notes": [{"by": "draft"}]}

    async def review(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"verdict": interrupt({"question": "publish?", "text": inputs["text"]})}

    async def publish(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"published": f"{inputs['text']} ({inputs['verdict']})"}

    graph = StateGraph(config=GraphConfig(thread_id="g"))
    graph.add_node("draft", draft)
    graph.add_node("review", review)
    graph.add_node("publish", publish)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "review")
    graph.add_edge("review", "publish")
    graph.add_edge("publish", END)
    return graph.compile(checkpointer=checkpointer)


async def test_a_graph_that_asks_a_person_is_resumed_by_another_process(
    stack: TieredCheckpointer, s3_backend: S3Backend, s3_server: SeaweedFS, tmp_path: Path
) -> None:
    paused = await review_graph(stack).execute({"topic": "cats"})
    assert paused.is_interrupted and paused.final_state["text"] == "CATS"

    async with three_tiers(s3_server.backend(bucket=s3_backend.bucket), tmp_path / "elsewhere") as elsewhere:
        graph = review_graph(elsewhere)
        assert (await graph.aget_state() or {})["text"] == "CATS"
        finished = await graph.execute(Command(resume="approved"))
    assert finished.success and finished.final_state["published"] == "CATS (approved)"
    assert (await review_graph(stack).aget_state() or {})["published"] == "CATS (approved)"


async def test_the_history_of_a_graph_is_newest_first_and_each_step_can_be_read(stack: TieredCheckpointer) -> None:
    graph = review_graph(stack)
    await graph.execute({"topic": "cats"})
    await graph.execute(Command(resume="approved"))
    history = await graph.aget_state_history()
    assert [sorted(set(state) & {"text", "verdict", "published"}) for _, state in history] == [
        ["published", "text", "verdict"],
        ["text", "verdict"],
        ["text"],
        ["text"],
    ]
    for checkpoint_id, state in history:
        assert await graph.aget_state(checkpoint_id=checkpoint_id) == state
    assert await graph.aget_state_history(limit=1) == history[:1]
    assert [row["metadata"] for row in await stack.list_with_metadata() if row["thread_id"] == "g"] == [
        {"source": "step", "step": 2},
        {"source": "step", "step": 1},
        {},
        {"source": "step", "step": 1},
    ]


async def test_a_paused_graph_that_is_edited_resumes_from_the_edit_and_its_fork_goes_its_own_way(
    stack: TieredCheckpointer,
) -> None:
    graph = review_graph(stack)
    await graph.execute({"topic": "cats"})
    fork = await graph.afork(new_thread_id="fork/of:g")
    await graph.aupdate_state(values={"text": "DOGS"})
    finished = await graph.execute(Command(resume="approved"))
    assert finished.final_state["published"] == "DOGS (approved)"

    forked = review_graph(stack)
    forked.config.thread_id = fork
    assert (await forked.execute(Command(resume="fine"))).final_state["published"] == "CATS (fine)"
    assert (await graph.aget_state() or {})["published"] == "DOGS (approved)"


async def test_a_graph_that_stops_before_a_node_is_resumed(stack: TieredCheckpointer) -> None:
    graph = review_graph(stack)
    graph.config.interrupt_before = ["publish"]
    await graph.execute({"topic": "cats"})
    stopped = await graph.execute(Command(resume="approved"))
    assert stopped.is_interrupted and "published" not in stopped.final_state
    assert (await graph.execute(Command(resume="go on"))).final_state["published"] == "CATS (approved)"


async def test_what_a_reader_of_a_graphs_state_changes_is_not_changed_for_the_next_reader(
    stack: TieredCheckpointer,
) -> None:
    graph = review_graph(stack)
    await graph.execute({"topic": "cats"})
    read = await graph.aget_state()
    assert read is not None
    read["notes"][0]["by"] = "somebody else"
    assert (await graph.aget_state() or {})["notes"] == [{"by": "draft"}]


# -- the server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def served(s3_server: SeaweedFS, tmp_path: Path) -> Iterator[tuple[TieredCheckpointer, TestClient, TestClient]]:
    """A stack, and two clients with keys of their own that talk to one agent on it."""
    home = s3_server.backend()
    stack = three_tiers(home, tmp_path / "near")
    script = [*calls("one"), "first", *calls("two", "three"), "second", "third"]
    agent = agent_on(stack, *script)
    clients = [
        TestClient(AgentServer(agent, api_key=key).app, headers={"Authorization": f"Bearer {key}"})
        for key in ("ann's key", "bob's key")
    ]
    with clients[0] as ann, clients[1] as bob:
        yield stack, ann, bob
        ann.portal.call(stack.close)
    s3_server.drop_bucket(home.bucket)


def test_the_servers_thread_routes_show_and_drop_exactly_the_callers_thread(
    served: tuple[TieredCheckpointer, TestClient, TestClient],
) -> None:
    _, ann, bob = served
    assert ann.get("/threads/t").status_code == 404
    assert ann.post("/invoke", json={"prompt": "a", "thread_id": "t"}).json()["message"] == "first"
    assert ann.post("/invoke", json={"prompt": "b", "thread_id": "t"}).json()["message"] == "second"
    assert bob.get("/threads/t").status_code == 404, "another principal's thread of that name"
    assert bob.post("/invoke", json={"prompt": "hi", "thread_id": "t"}).json()["message"] == "third"

    shown = ann.get("/threads/t").json()
    spoken = [m["content"] for m in shown["messages"] if m["role"] in ("user", "assistant") and m["content"]]
    assert spoken == ["a", "first", "b", "second"]
    assert shown["thread_id"] == "t" and shown["metadata"] == {}, "nothing of ours and nothing of the turn's own"

    assert ann.delete("/threads/t").json() == {"thread_id": "t", "deleted": True}
    assert ann.delete("/threads/t").json() == {"thread_id": "t", "deleted": False}
    assert ann.get("/threads/t").status_code == 404
    assert [m["content"] for m in bob.get("/threads/t").json()["messages"] if m["role"] == "assistant"] == ["third"]


def test_the_servers_scoped_thread_ids_keep_their_colon(
    served: tuple[TieredCheckpointer, TestClient, TestClient],
) -> None:
    stack, ann, _ = served
    ann.post("/invoke", json={"prompt": "a", "thread_id": "x:y"})
    [scoped] = ann.portal.call(stack.list_threads)
    principal, _, thread = scoped.partition(":")
    assert len(principal) == 12 and thread == "x:y"
    assert ann.get("/threads/x:y").status_code == 200
    assert ann.get("/threads/x_y").status_code == ann.get("/threads/y").status_code == 404


def test_the_server_works_when_every_request_has_an_event_loop_of_its_own(s3_server: SeaweedFS, tmp_path: Path) -> None:
    home = s3_server.backend()
    stack = three_tiers(home, tmp_path / "near")
    agent = agent_on(stack, *calls("one"), "first", *calls("two"), "second")
    client = TestClient(AgentServer(agent, allow_unauthenticated=True).app)  # without "with": a loop per request
    for prompt, answer in (("a", "first"), ("b", "second")):
        assert client.post("/invoke", json={"prompt": prompt, "thread_id": "t"}).json()["message"] == answer
    shown = client.get("/threads/t").json()["messages"]
    assert [m["content"] for m in shown if m["role"] == "user"] == ["a", "b"]
    assert client.delete("/threads/t").json()["deleted"] is True
    with client:
        client.portal.call(stack.close)
    s3_server.drop_bucket(home.bucket)


# -- the registry and keyword calls -------------------------------------------------------------------------------


async def test_a_stack_registered_by_name_is_what_the_sdks_registry_builds(
    s3_backend: S3Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_CHECKPOINTERS", dict(registry._CHECKPOINTERS))

    def factory(config_hint: str | None = None, **options: Any) -> TieredCheckpointer:
        return three_tiers(s3_backend, tmp_path / (config_hint or "near"), **options)

    registry.register_checkpointer("tiers", factory)
    built = registry.get_checkpointer("tiers:a:b", latest="exclusive", name="by name")
    assert isinstance(built, TieredCheckpointer) and built.latest == "exclusive" and built.name == "by name"
    async with built:
        agent = agent_on(built, *calls("one"), "first")
        await agent.arun("a", thread_id="t")
        assert said(await built.load("t")) == ["a", "first"]
    assert (tmp_path / "a:b").is_dir()


async def test_every_method_takes_its_arguments_by_the_names_that_the_sdk_calls_them_by(
    stack: TieredCheckpointer,
) -> None:
    saved = await stack.save(state=state_saying("one"), thread_id="t", checkpoint_id="c", metadata={"k": "v"})
    assert saved == "c"
    assert await stack.save(state=AgentState(), thread_id="t", metadata={"source": "step", "step": 1}) != "c"
    assert said(await stack.load(thread_id="t", checkpoint_id="c")) == ["one"]
    assert len(await stack.list_checkpoints(thread_id="t", limit=5)) == 2
    assert await stack.exists(thread_id="t", checkpoint_id="c")
    assert await stack.copy_thread(source_thread_id="t", dest_thread_id="u")
    assert sorted(await stack.list_threads(limit=5, pattern="*")) == ["t", "u"]
    assert len(await stack.list_with_metadata(limit=9)) == 4
    assert await stack.vacuum(older_than_days=1) == 0
    assert await stack.delete(thread_id="t", checkpoint_id="c")
    assert await stack.delete(thread_id="t")
