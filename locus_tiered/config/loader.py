"""``load_stack``: a checkpointer from a YAML file, a text or a mapping.

The way of a stack: text to values with places, references replaced, rules and models looked at together, then built.
Every mistake on that way is collected, and all are raised at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from locus_tiered.config import problems, rules
from locus_tiered.config.builders import Builder
from locus_tiered.config.mistakes import Mistakes, Path
from locus_tiered.config.models import StackConfig, stack_model
from locus_tiered.config.registry import TierType, own_type, tier_types
from locus_tiered.config.text import MOST_TEXT, Unreadable, read_mapping, read_text
from locus_tiered.config.variables import Variables
from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.layer import Layer

__all__ = ["Source", "check", "load"]

_DOTTED = re.compile(r"[A-Za-z_][\w.]*[.:][A-Za-z_]\w*")

Source = str | os.PathLike[str] | Mapping[str, Any]


def _is_text(source: str) -> bool:
    """Whether a string is a stack rather than the name of a file."""
    return "\n" in source or ": " in source or source.lstrip().startswith("{") or source.rstrip().endswith(":")


def _content(file: FilePath) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_TEXT + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "not the name of a file"
        missing = isinstance(error, FileNotFoundError)
        hint = _near(file) if missing else None
        raised = StackConfigError(f"this stack file cannot be read: {problem}", file=str(file)[:300], hint=hint)
    else:
        if len(raw) > MOST_TEXT:
            raised = StackConfigError(f"more than {MOST_TEXT // 1024} KiB, which is no stack", file=str(file)[:300])
        else:
            try:
                return raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = raw[: error.start].count(b"\n") + 1
                raised = StackConfigError("this is not UTF-8 text", file=str(file)[:300], line=line)
    raise raised


def _near(file: FilePath) -> str | None:
    try:
        names = [each.name for each in file.parent.iterdir() if each.suffix in (".yaml", ".yml", ".json")]
    except (OSError, ValueError):
        return None
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"did you mean {str(file.parent / close[0])!r}?" if close else None


class Loading:
    """One stack on its way."""

    def __init__(self, source: Source, env: Mapping[str, str] | None, allow_import: bool) -> None:
        self._allow_import = allow_import
        self._base: FilePath | None = None
        self._mistakes = Mistakes()
        text: str | None = None
        if isinstance(source, Mapping):
            pass
        elif isinstance(source, str) and _is_text(source):
            self._mistakes.file, text = "<text>", source.removeprefix("\ufeff")
        elif isinstance(source, str | os.PathLike) and str(source):
            file = FilePath(source)
            self._mistakes.file, text = str(file), _content(file)
            # Not resolved: what a link such as a mounted ConfigMap leads to may be gone tomorrow.
            self._base = file.absolute().parent
        else:
            raise StackConfigError(
                f"a {type(source).__name__} is not a stack", hint="pass a path, a text, or a mapping"
            )
        self._variables = Variables(os.environ if env is None else env, self._base or FilePath(), self._mistakes)
        self._data = self._read(source if isinstance(source, Mapping) else text)
        self._types = tier_types()
        self.config = self._validated()

    def _read(self, source: Mapping[str, Any] | str | None) -> dict[str, Any]:
        trouble: Unreadable | None = None
        data: Any = None
        try:
            if isinstance(source, Mapping):
                data = read_mapping(source, self._mistakes)
            else:
                data = read_text(source or "", self._mistakes)
        except Unreadable as error:
            trouble = error
        if trouble is not None:
            self._mistakes.add(trouble.message, (), trouble.hint, place=trouble.place)
        elif not isinstance(data, dict):
            what = "nothing in it" if data is None else "no mapping at the top"
            self._mistakes.add(f"there is {what}", (), 'a stack begins with "tiers:"')
        self._raise_if_wrong(early=True, unless=isinstance(data, dict) and trouble is None)
        expanded = self._variables.expand(data)
        return expanded if isinstance(expanded, dict) else {}

    def _validated(self) -> StackConfig:
        self._import_types()
        model = stack_model(tuple(self._types.values()))
        rules.check(self._data, self._types, self._mistakes, self._variables)
        config: StackConfig | None = None
        try:
            config = model.model_validate(self._data)
        except ValidationError as error:
            problems.note(error, self._data, model, self._mistakes, self._variables)
        except RecursionError:
            self._mistakes.add("too deep to be read", ())
        self._raise_if_wrong()
        assert config is not None
        return config

    def _import_types(self) -> None:
        """Types that are dotted paths, where that is allowed."""
        if not self._allow_import:
            return
        for leg, path in rules.legs(self._data):
            for key in [leg] if isinstance(leg, str) else list(leg) if isinstance(leg, dict) else []:
                if _DOTTED.fullmatch(key) and key not in self._types:
                    where = path if isinstance(leg, str) else (*path, key)
                    found = self._imported(key, where)
                    if found is not None:
                        self._types[key] = found

    def _imported(self, dotted: str, path: Path) -> TierType | None:
        module, _, name = dotted.replace(":", ".").rpartition(".")
        try:
            factory = getattr(importlib.import_module(module), name)
            if not callable(factory):
                raise TypeError("it cannot be called")
        except Exception as error:  # noqa: BLE001 - importing runs anybody's code
            what = self._variables.scrub(f"{type(error).__name__}: {error}")
            self._mistakes.add(f"cannot be imported: {what}", path, key=True)
            return None
        return own_type(dotted, factory, None)

    def build(self) -> Layer:
        """The stack."""
        builder = Builder(self._types, self._base, self._mistakes, self._variables)
        stack = builder.stack(self.config)
        self._raise_if_wrong(cause=builder.cause)
        assert stack is not None
        return stack

    def _raise_if_wrong(self, *, cause: BaseException | None = None, early: bool = False, unless: bool = False) -> None:
        error = None if early and unless else self._mistakes.error()
        if error is not None:
            raise error from cause


def check(source: Source, *, env: Mapping[str, str] | None = None, allow_import: bool = False) -> StackConfig:
    """What a stack file says, checked and not built; raises as :func:`load` does."""
    return Loading(source, env, allow_import).config


def load(source: Source, *, env: Mapping[str, str] | None = None, allow_import: bool = False) -> Layer:
    """See :func:`locus_tiered.load_stack`."""
    return Loading(source, env, allow_import).build()
