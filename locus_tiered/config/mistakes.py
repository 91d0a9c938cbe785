"""All that is wrong with a stack file, collected, and told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from locus_tiered.core.errors import StackConfigError

__all__ = ["Mistakes", "Path", "Place", "did_you_mean", "path_text"]

_MOST = 100

Path = tuple[str | int, ...]
"""Where a value is: ``("tiers", 2, "s3", "bucket")``."""


class Place(NamedTuple):
    """A line and a column, from 1."""

    line: int
    column: int


def path_text(path: Path) -> str:
    """``tiers[2].s3.bucket``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part[:60]}" if text else part[:60]
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint that names what was probably meant, or what there is when that is little."""
    names = sorted(set(known))
    plain = {name.lower().replace("-", "_"): name for name in names}
    close = difflib.get_close_matches(word[:80].lower().replace("-", "_"), plain, n=1, cutoff=0.6)
    if close:
        return f"did you mean {plain[close[0]]!r}?"
    return f"there is {', '.join(names)}" if names and len(names) <= 20 else None


@dataclass
class Mistakes:
    """What is wrong so far, and where everything stands."""

    file: str | None = None
    keys: dict[Path, Place] = field(default_factory=dict)
    """Where keys are written."""
    values: dict[Path, Place] = field(default_factory=dict)
    """Where values begin."""
    found: list[StackConfigError] = field(default_factory=list)
    more: bool = False
    """Whether there are others that were left out."""
    _paths: set[Path] = field(default_factory=set)
    _texts: set[str] = field(default_factory=set)

    def add(
        self, message: str, path: Path, hint: str | None = None, *, place: Place | None = None, key: bool = False
    ) -> None:
        """Note one. ``key``: it is the key that is wrong; otherwise the value, or whatever is nearest to it."""
        self._paths.add(path)
        if self.full:
            self.more = True
            return
        at = place or (self.keys.get(path) if key else None)
        nearest = path
        while at is None and (at := self.values.get(nearest) or self.keys.get(nearest)) is None and nearest:
            nearest = nearest[:-1]
        line, column = at or (None, None)
        text = path_text(path) or None
        error = StackConfigError(message, hint=hint, file=self.file, line=line, column=column, path=text)
        if str(error) not in self._texts:
            self._texts.add(str(error))
            self.found.append(error)

    @property
    def full(self) -> bool:
        """Whether nobody would read one more."""
        return len(self.found) >= _MOST

    def knows(self, path: Path) -> bool:
        """Whether something is noted at ``path``, or at what it is a part of."""
        return any(path[:length] in self._paths for length in range(1, len(path) + 1))

    def error(self) -> StackConfigError | None:
        """One error for all, in the order of the file."""
        found = sorted(self.found, key=lambda each: (each.line or 0, each.column or 0))
        if len(found) <= 1:
            return found[0] if found else None
        first = found[0]
        where = f" in {self.file}" if self.file else ""
        lines = "".join(f"\n  {each}" for each in found)
        count = f"{len(found)} mistakes{' and more' if self.more else ''}"
        error = StackConfigError(f"{count}{where}:{lines}", mistakes=found)
        error.file, error.line, error.column = first.file, first.line, first.column
        error.path, error.hint = first.path, first.hint
        return error
