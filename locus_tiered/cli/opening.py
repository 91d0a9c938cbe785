"""From what a user writes as STACK to an open checkpointer, and the places in it where checkpoints lie.

STACK is the path of a YAML file, or any name that the SDK's ``get_checkpointer`` takes (``file:./checkpoints``,
``s3:bucket``). Opening touches no server; nothing is imported that the file names unless that is allowed.
"""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.plain import Plain
from locus_tiered.cli.text import redact
from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.layer import Layer, as_layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.filenames import Named
from locus_tiered.stores.files import Files

__all__ = ["Opened", "Place", "journals", "open_stack", "places_of", "store_of", "writes_behind"]

Role = Literal["near", "home", "replica"]


@dataclass(frozen=True, slots=True)
class Place:
    """One member of a stack in which checkpoints lie.

    ``layer`` is its leg: the backend or store with the retry and guard around it. ``role`` is ``home`` for whoever
    holds the truth alone, ``replica`` for those that hold it together, ``near`` for copies. ``private`` places are
    the memory of one process: another process's cannot be seen from here.
    """

    name: str
    layer: Layer
    role: Role
    private: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A stack, under the name that may be shown."""

    name: str
    layer: Layer
    warnings: tuple[str, ...] = ()

    @property
    def places(self) -> list[Place]:
        """Where its checkpoints lie, nearest first."""
        return places_of(self.layer)


def open_stack(spec: str, *, allow_import: bool = False) -> Opened:
    """The checkpointer that ``spec`` names; :class:`Failure` or :class:`StackConfigError` when there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpointer = _open(spec, allow_import)
    from locus_tiered.layers.order import StackOrderWarning

    said = tuple(str(each.message) for each in caught if issubclass(each.category, StackOrderWarning))
    layer = as_layer(checkpointer, redact(spec))  # says so when it is none
    if isinstance(layer, Leaf):
        layer = Plain(layer.backend)
    _keep_hands_off(layer)
    return Opened(redact(spec), layer, said)


class _Untouched(Files):
    """A directory's files, where looking neither moves a damaged one aside nor notes that one was used."""

    def quarantine(self, thread_id: str, named: Named) -> Path:
        return self._folder(thread_id) / named.file

    def touch(self, thread_id: str, named: Named) -> None:
        """Nothing."""


def _keep_hands_off(layer: Layer) -> None:
    for each in layer.walk():
        if isinstance(each, DirectoryCheckpointer):
            each._files = _Untouched(each.path, each.durability == "power")


def _open(spec: str, allow_import: bool) -> Any:
    path = Path(spec)
    if path.suffix.lower() in (".yaml", ".yml") and not spec.startswith("tiered:"):
        if not path.is_file():
            what = f"{spec} is a directory" if path.is_dir() else f"there is no file {spec}"
            raise Failure(what, Exit.USAGE, hint="give the path of a stack's YAML file")
        return _load(path, allow_import)
    if spec.startswith("tiered:"):
        return _load(Path(spec.removeprefix("tiered:")), allow_import)
    from locus.memory.registry import get_checkpointer, list_checkpointers

    name, _, rest = spec.partition(":")
    names = [*list_checkpointers(), *(["tiered"] if "tiered" not in list_checkpointers() else [])]
    if name not in names:
        if path.exists():
            raise Failure(
                f"{spec} is neither a YAML file nor the name of a checkpointer",
                Exit.USAGE,
                hint=f"for a directory of the SDK's FileCheckpointer write file:{spec}",
            )
        near = difflib.get_close_matches(name, names, 1)
        raise Failure(
            f"{redact(spec)}: no YAML file, and no checkpointer is called {redact(name)!r}",
            Exit.USAGE,
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"There are {', '.join(sorted(names))}",
        )
    if name == "oci" and "/" not in rest:
        raise Failure("oci needs a bucket and its namespace", Exit.USAGE, hint="write oci:BUCKET/NAMESPACE")
    if name == "redis" and rest.startswith("rediss://"):
        from locus.memory.backends import redis_checkpointer

        return redis_checkpointer(url=rest)  # the registry would put redis:// in front
    try:
        return get_checkpointer(spec)
    except StackConfigError:
        raise
    except ImportError as error:
        raise Failure(
            f"{name} needs a package that is not installed ({error.name or type(error).__name__})",
            Exit.USAGE,
            hint="install the extra of locus-tiered or locus-sdk for it",
        ) from error
    except Exception as error:  # a constructor's own complaint, whose text may show a secret
        raise Failure(
            f"{redact(spec)} cannot be opened ({type(error).__name__})",
            Exit.USAGE,
            hint="what it needs beyond its name goes into a YAML file",
        ) from error


def _load(path: Path, allow_import: bool) -> Any:
    from locus_tiered.config import load_stack

    return load_stack(path, allow_import=allow_import)


def store_of(layer: Layer) -> Layer:
    """The backend's leaf, or the store, at the bottom of a leg."""
    return list(layer.walk())[-1]


def _private(layer: Layer) -> bool:
    from locus.memory.backends.memory import MemoryCheckpointer

    from locus_tiered.stores.memory import BoundedMemoryCheckpointer

    bottom = store_of(layer)
    held = bottom.backend if isinstance(bottom, Leaf) else bottom
    return isinstance(held, MemoryCheckpointer | BoundedMemoryCheckpointer)


def places_of(layer: Layer, role: Role = "home") -> list[Place]:
    """The places below ``layer``, nearest first; what holds the truth comes last."""
    from locus_tiered.layers.cached import CachedCheckpointer

    if isinstance(layer, CachedCheckpointer):
        near = [] if type(layer.near).__name__ == "_Nowhere" else places_of(layer.near, "near")
        return _unique([*near, *places_of(layer.inner, role)])
    if len(layer.members()) > 1:
        below: Role = "near" if role == "near" else "replica"
        return _unique([place for member in layer.members() for place in places_of(member, below)])
    if len(layer.members()) == 1 and any(_parts(each) for each in layer.walk()):
        return places_of(layer.inner, role)
    return [Place(_name(layer), layer, role, _private(layer))]


def _parts(layer: Layer) -> bool:
    """Whether the layer holds more than its leg: several members, or a journal."""
    return len(layer.members()) > 1 or writes_behind(layer)


def _name(layer: Layer) -> str:
    from locus_tiered.layers.names import short_name

    for each in layer.walk():
        plain = each.backend if isinstance(each, Leaf) else each
        if each.name != type(plain).__name__:
            return each.name
    return short_name(layer)


def _unique(places: list[Place]) -> list[Place]:
    taken: dict[str, int] = {}
    result = []
    for place in places:
        taken[place.name] = number = taken.get(place.name, 0) + 1
        name = place.name if number == 1 else f"{place.name}-{number}"
        result.append(Place(name, place.layer, place.role, place.private))
    return result


def journals(layer: Layer) -> list[Any]:
    """The write-behind layers of a stack."""
    try:
        from locus_tiered.layers.write_behind import WriteBehindCheckpointer
    except ModuleNotFoundError:
        return []
    return [each for each in layer.walk() if isinstance(each, WriteBehindCheckpointer)]


def writes_behind(layer: Layer) -> bool:
    """Whether the layer keeps a journal."""
    return any(each is layer for each in journals(layer))
