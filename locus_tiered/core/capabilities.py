"""What a stack can do, and who in it says so.

An :class:`Explanation` holds one :class:`Verdict` per flag: granted or not, by which member, for which reason.
``CheckpointerCapabilities`` is derived from it, so the flags, the errors and ``explain()`` cannot disagree.

A member has a capability when it **declares and implements** it: one that sets the flag and leaves the base
class's method in place does not have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from locus.core.protocols import CheckpointerCapabilities
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.operations import OPERATIONS

__all__ = ["FLAGS", "METHODS", "SINGLE_DELETES", "Explanation", "Verdict"]

SINGLE_DELETES = "deletes_single_checkpoints"
"""Not a field of ``CheckpointerCapabilities`` but treated like one: agents save iterations only where it holds."""

FLAGS: tuple[str, ...] = (*(field.name for field in fields(CheckpointerCapabilities)), SINGLE_DELETES)

METHODS: Mapping[str, tuple[str, ...]] = {
    flag: tuple(op.name for op in OPERATIONS if op.flag == flag) for flag in FLAGS if flag != SINGLE_DELETES
}
"""Which methods a flag speaks of (none for ``ttl`` and ``persistent_checkpoint_ids``)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a flag holds, and which member of the stack decided that."""

    granted: bool
    member: str
    reason: str

    def __bool__(self) -> bool:
        return self.granted


class Explanation(Mapping[str, Verdict]):
    """One verdict per flag. ``str()`` of it is a table for people."""

    def __init__(self, verdicts: Mapping[str, Verdict]) -> None:
        self._verdicts = {flag: verdicts[flag] for flag in FLAGS}

    def __getitem__(self, flag: str) -> Verdict:
        return self._verdicts[flag]

    def __iter__(self) -> Iterator[str]:
        return iter(self._verdicts)

    def __len__(self) -> int:
        return len(self._verdicts)

    def but(self, **verdicts: Verdict) -> Explanation:
        """The same with some verdicts replaced."""
        return Explanation({**self._verdicts, **verdicts})

    def told_by(self, member: str) -> Explanation:
        """The same as ``member`` of a stack says it, which may have members itself: the names of both."""
        return Explanation(
            {
                flag: verdict if verdict.member == member else replace(verdict, member=f"{member} ({verdict.member})")
                for flag, verdict in self._verdicts.items()
            }
        )

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        """The flags in the SDK's own type."""
        flags = {flag: verdict.granted for flag, verdict in self._verdicts.items() if flag != SINGLE_DELETES}
        return CheckpointerCapabilities(**flags)

    def __str__(self) -> str:
        rows = [
            (flag, "yes" if verdict else "no", verdict.member, verdict.reason)
            for flag, verdict in self._verdicts.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
        )

    @classmethod
    def of_backend(cls, backend: BaseCheckpointer, member: str, masks: Mapping[str, str]) -> Explanation:
        """What a foreign checkpointer has: declared, implemented, and not known to be untrue (``masks``)."""
        declared = backend.capabilities
        verdicts = {}
        for flag in FLAGS:
            if flag == SINGLE_DELETES:
                says = getattr(backend, flag, False) is True
            else:
                says = bool(getattr(declared, flag, False))
            if not says:
                verdicts[flag] = Verdict(False, member, "does not declare it")
            elif flag in masks:
                verdicts[flag] = Verdict(False, member, masks[flag])
            else:
                verdicts[flag] = cls._implemented(type(backend), flag, member)
        return cls(verdicts)

    @staticmethod
    def _implemented(kind: type[BaseCheckpointer], flag: str, member: str) -> Verdict:
        for method in METHODS.get(flag, ()):
            if getattr(kind, method, None) is getattr(BaseCheckpointer, method):
                return Verdict(False, member, f"declares it, but leaves {method}() unimplemented")
        return Verdict(True, member, "declares and implements it")

    @classmethod
    def all_of(cls, members: Iterable[Explanation], flag: str) -> Verdict:
        """Granted when every member grants it; otherwise the veto of the first that does not."""
        verdicts = [explanation[flag] for explanation in members]
        veto = next((verdict for verdict in verdicts if not verdict), None)
        return verdicts[0] if veto is None else replace(veto, reason=f"vetoed: {veto.reason}")

    @classmethod
    def any_of(cls, members: Iterable[Explanation], flag: str) -> Verdict:
        """Granted by the first member that grants it."""
        verdicts = [explanation[flag] for explanation in members]
        return next((verdict for verdict in verdicts if verdict), verdicts[0])
