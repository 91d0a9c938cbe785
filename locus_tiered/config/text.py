"""YAML text as plain values, with the line and column of each.

The loader is PyYAML's safe one, stopped half-way: it composes nodes, which know where they stand, and the values
are made here. What differs from ``yaml.safe_load``: words such as ``off`` and ``no`` are text (YAML 1.2, as editors
read it), every tag but ``!!str`` is a mistake, and so is a key that is written twice. Anchors, aliases and merge keys
work, within bounds: a text of 256 KiB, 32 levels, 10,000 values after aliases were followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

from locus_tiered.config.mistakes import Mistakes, Path, Place

__all__ = ["MOST_TEXT", "Unreadable", "read_mapping", "read_text"]

MOST_TEXT = 256 * 1024
_MOST_VALUES = 10_000
_MOST_LEVELS = 32

_PLAIN = "?"  # the tag of a plain scalar, which is judged here
_TEXT, _LIST, _MAPPING = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))

# The core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_WHOLE = re.compile(r"[-+]?[0-9]{1,30}")
_BASED = re.compile(r"0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


class Unreadable(Exception):
    """The text has no values at all: it is not YAML, or too much. Never shows what stands in it."""

    def __init__(self, message: str, place: Place | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.place, self.hint = message, place, hint


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


class _Composer(yaml.SafeLoader):
    """Composes nodes, no deeper than allowed, and leaves plain scalars to be judged later."""

    levels = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        if self.levels >= _MOST_LEVELS or self.nodes > 2 * _MOST_VALUES:  # keys are nodes, too
            place = _place(self.peek_event().start_mark)  # type: ignore[no-untyped-call]
            raise Unreadable(f"more than {_MOST_LEVELS} levels or {_MOST_VALUES:,} values", place)
        self.levels += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.levels -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _TEXT
        return _LIST if kind is yaml.SequenceNode else _MAPPING


def _compose(text: str) -> yaml.Node | None:
    composer = _Composer(text)
    try:
        node: yaml.Node | None = composer.get_single_node()
        return node
    finally:
        composer.dispose()


def _why(error: yaml.YAMLError, text: str) -> Unreadable:
    """What PyYAML found, without what it quotes from the text."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        at = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        return Unreadable("a character that YAML does not allow", at, "write it as an escape in double quotes")
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = None if mark is None else _place(mark)
    problem = str(getattr(error, "problem", None) or "something that is not YAML")
    if "undefined alias" in problem:
        return Unreadable("an alias (*) without its anchor (&)", place, "put text that begins with * in quotes")
    if "tag" in problem:
        return Unreadable("a tag (!)", place, "tags are not allowed; put text that begins with ! in quotes")
    if "single document" in str(getattr(error, "context", "")):
        return Unreadable("a second document begins here", place, "one file is one stack: leave out the ---")
    lines = text.splitlines()
    hint = None
    if place is not None and place.line <= len(lines) and "${" in lines[place.line - 1]:
        hint = 'put "${...}" in quotes'
    if hint is None and "mapping values" in problem:
        hint = 'a value with ": " in it needs quotes; otherwise look at the indentation'
    if r"'\t'" in problem:
        return Unreadable("this is not YAML: a tab", place, "indent with spaces")
    problem = problem.replace("'<stream end>'", "the end of the text")
    problem = re.sub(r"'([^']*)'", lambda quoted: quoted[0] if len(quoted[1]) < 2 else "something else", problem)
    return Unreadable(f"this is not YAML: {problem}", place, hint)


def read_text(text: str, mistakes: Mistakes) -> Any:
    """The values of ``text``; where they stand is told to ``mistakes``. Raises :class:`Unreadable`."""
    if len(text) > MOST_TEXT:
        raise Unreadable(f"more than {MOST_TEXT // 1024} KiB of text, which no stack needs")
    trouble: Unreadable | None = None
    node: yaml.Node | None = None
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        trouble = _why(error, text)  # raised below: no context, whose text would quote the file
    except (ValueError, OverflowError, IndexError):  # an escape such as \UFFFFFFFF, a directive such as %YAML 1
        trouble = Unreadable("this is not YAML: an escape or a directive that means nothing")
    if trouble is not None:
        raise trouble
    return None if node is None else _Reader(mistakes).value(node, (), 0)


class _Reader:
    """Makes values of nodes; each path gets the place where it is written, for an alias that of its anchor."""

    def __init__(self, mistakes: Mistakes) -> None:
        self._mistakes = mistakes
        self._count = 0

    def _bound(self, node: yaml.Node, level: int) -> None:
        self._count += 1
        if self._count > _MOST_VALUES or level > _MOST_LEVELS:
            raise Unreadable(
                f"more than {_MOST_VALUES:,} values or {_MOST_LEVELS} levels, once aliases are followed",
                _place(node.start_mark),
            )

    def value(self, node: yaml.Node, path: Path, level: int) -> Any:
        """The value of one node."""
        self._bound(node, level)
        self._mistakes.values.setdefault(path, _place(node.start_mark))
        if node.tag not in (_PLAIN, _TEXT, _LIST, _MAPPING):
            self._mistakes.add("a tag (!) is not allowed here", path, 'put text that begins with "!" in quotes')
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, level)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, (*path, place), level + 1) for place, each in enumerate(node.value)]
        return _scalar(node) if node.tag == _PLAIN else node.value

    def _mapping(self, node: yaml.MappingNode, path: Path, level: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in self._pairs(node, path, level):
            name = str(key.value)
            if not path and name.startswith("x-"):
                continue  # a place for anchors
            self._mistakes.keys[(*path, name)] = _place(key.start_mark)
            result[name] = self.value(value, (*path, name), level + 1)
        return result

    def _pairs(self, node: yaml.MappingNode, path: Path, level: int) -> list[tuple[yaml.Node, yaml.Node]]:
        """Keys with values, what is merged in last: what is written here wins, then the first that is merged."""
        self._bound(node, level)
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        merges: yaml.Node | None = None
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._mistakes.add("a key must be a word", path, place=_place(key.start_mark))
                continue
            is_merge = key.tag == _PLAIN and key.value == "<<"
            first = merges if is_merge else own[key.value][0] if key.value in own else None
            if first is not None:
                self._mistakes.add(
                    f"the key {str(key.value)[:60]!r} is written twice",
                    (*path, str(key.value)),
                    f"it is on line {first.start_mark.line + 1} too; one of them must go",
                    place=_place(key.start_mark),
                )
            elif is_merge:
                merges = key
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            else:
                own[key.value] = (key, value)
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self._mistakes.add("<< takes a mapping, or a list of them", path, place=_place(source.start_mark))
                continue
            for key, value in self._pairs(source, path, level + 1):
                self._bound(key, level)
                own.setdefault(key.value, (key, value))
        return list(own.values())


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if len(text) <= 60 and _FLOAT.fullmatch(text) else text


def read_mapping(given: Mapping[Any, Any], mistakes: Mistakes) -> Any:
    """A copy of what a program gave, which holds nothing but what a file could hold. Raises :class:`Unreadable`."""
    count = 0

    def value(of: Any, path: Path) -> Any:
        nonlocal count
        count += 1
        if count > _MOST_VALUES or len(path) > _MOST_LEVELS:
            raise Unreadable(f"more than {_MOST_VALUES:,} values or {_MOST_LEVELS} levels")
        if of is None or isinstance(of, bool | int | float | str):
            return of
        if isinstance(of, os.PathLike):
            return str(os.fspath(of))
        if isinstance(of, Mapping):
            found = {}
            for key, each in of.items():
                if not isinstance(key, str):
                    mistakes.add(f"a key must be a string, not a {type(key).__name__}", path)
                elif path or not key.startswith("x-"):
                    found[key] = value(each, (*path, key))
            return found
        if isinstance(of, list | tuple):
            return [value(each, (*path, place)) for place, each in enumerate(of)]
        mistakes.add(f"a stack file can hold no {type(of).__name__}", path)
        return None

    return value(given, ())
