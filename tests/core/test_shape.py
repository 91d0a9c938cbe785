"""The shape of the package: imports run downwards, modules stay small, no layer forgets an operation."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import locus_tiered
from locus_tiered import CachedCheckpointer, DirectoryCheckpointer, Layer, TieredCheckpointer
from locus_tiered.core.layer import DispatchingLayer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.leaf_rows import LeafRows
from locus_tiered.core.operations import OPERATIONS, Operation
from locus_tiered.core.ordering import OrderingLayer
from locus_tiered.layers.replicated_base import ReplicatedBase
from locus_tiered.layers.replicated_mending import ReplicatedMending
from locus_tiered.layers.replicated_reads import ReplicatedReads
from locus_tiered.layers.replicated_rows import ReplicatedRows
from locus_tiered.layers.replicated_writes import ReplicatedWrites
from locus_tiered.layers.write_behind_deletes import WriteBehindDeletes
from locus_tiered.layers.write_behind_life import WriteBehindLife
from locus_tiered.layers.write_behind_reads import WriteBehindReads
from locus_tiered.stores.base import Store

PACKAGE = Path(locus_tiered.__file__).parent
FLOORS = ["core", "stores", "layers"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_downwards_only(floor):
    above = [*FLOORS[FLOORS.index(floor) + 1 :], "config", "cli", "testing", "bench", "demo"]
    for path in (PACKAGE / floor).rglob("*.py"):
        for module in imports(path):
            assert not any(module.startswith(f"locus_tiered.{each}") for each in above), f"{path}: {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_longer_than_a_person_reads(path):
    assert len(path.read_text().splitlines()) <= 420
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), "no docstring"


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


WITH_A_MEMORY = subclasses(DispatchingLayer) - {
    DispatchingLayer,
    LeafRows,
    OrderingLayer,
    Store,
    ReplicatedBase,
    ReplicatedMending,
    ReplicatedReads,
    ReplicatedWrites,
    ReplicatedRows,
    WriteBehindLife,
    WriteBehindReads,
    WriteBehindDeletes,
}


@pytest.mark.parametrize("kind", sorted(WITH_A_MEMORY, key=lambda kind: kind.__name__))
def test_a_layer_with_a_memory_names_every_operation_that_changes_something(kind):
    for operation in OPERATIONS:
        if operation.changes:
            assert operation in kind._handlers


def test_a_layer_that_forgets_a_change_cannot_be_made():
    with pytest.raises(TypeError, match="on_delete, on_vacuum, on_copy_thread"):

        class Forgetful(DispatchingLayer):
            async def on_save(self, op):
                return ""


def test_every_method_of_the_contract_is_an_operation_and_is_implemented_by_layer():
    from locus.memory.checkpointer import BaseCheckpointer

    methods = {
        name
        for name, value in vars(BaseCheckpointer).items()
        if inspect.iscoroutinefunction(value) and not name.startswith("_")
    }
    assert methods - {"close"} == {operation.name for operation in OPERATIONS} - {"head"}
    for name in (*methods, "capabilities", "deletes_single_checkpoints"):
        assert getattr(Layer, name) is not getattr(BaseCheckpointer, name), name
        assert (
            list(inspect.signature(getattr(Layer, name)).parameters)
            == list(inspect.signature(getattr(BaseCheckpointer, name)).parameters)
            if name in methods
            else True
        )
    # slots=True makes every class twice, so by name
    assert {kind.__name__ for kind in subclasses(Operation)} == {"Operation", *(kind.__name__ for kind in OPERATIONS)}


def test_constructors_touch_no_event_loop_and_no_file(tmp_path):
    from locus.memory.backends import FileCheckpointer

    stack = TieredCheckpointer(
        DirectoryCheckpointer(tmp_path / "a"), CachedCheckpointer(FileCheckpointer(tmp_path / "b"))
    )
    assert bool(stack) is True
    assert not (tmp_path / "a").exists()
    assert repr(stack)


def test_a_repr_reads_as_the_code_and_shows_no_secret(tmp_path):
    from locus.memory.backends import HTTPCheckpointer, redis_checkpointer

    from locus_tiered import BoundedMemoryCheckpointer, Tier

    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer("1MiB"),
        DirectoryCheckpointer("./x", max_bytes="2GiB"),
        Tier(redis_checkpointer("redis://user:SECRET@host:1/0"), name="far"),
        latest="exclusive",
    )
    assert repr(stack) == (
        "TieredCheckpointer(BoundedMemoryCheckpointer(max_bytes='1MiB'), DirectoryCheckpointer('x', max_bytes='2GiB'), "
        "Tier(StorageBackendAdapter(RedisBackend(...)), name='far'), latest='exclusive')"
    )
    assert "SECRET" not in repr(CachedCheckpointer(HTTPCheckpointer("https://user:SECRET@host/x")))


def test_a_foreign_checkpointer_is_wrapped_in_a_leaf_whose_backend_it_is():
    from locus.memory.backends import MemoryCheckpointer

    backend = MemoryCheckpointer()
    inner = CachedCheckpointer(backend).inner
    assert isinstance(inner, Leaf)
    assert inner.backend is backend
