"""What the models of a stack file cannot say: one type per tier, who may be written behind, who needs a journal.

All rules look at what was written, whole or broken, so that everything is found at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from locus_tiered.config import traps
from locus_tiered.config.mistakes import Mistakes, Path, did_you_mean
from locus_tiered.config.models import JournalConfig, LegConfig, ReplicatedConfig, TierConfig
from locus_tiered.config.registry import TierType
from locus_tiered.config.variables import Variables
from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.units import parse_seconds

__all__ = ["check", "legs"]

_BESIDE = tuple(TierConfig.model_fields)
_BESIDE_REPLICA = tuple(LegConfig.model_fields)


def _items(data: Any, key: str, path: Path) -> Iterator[tuple[Any, Path]]:
    found = data.get(key) if isinstance(data, dict) else None
    if isinstance(found, list):
        yield from ((each, (*path, key, place)) for place, each in enumerate(found))


def legs(data: Any) -> Iterator[tuple[Any, Path]]:
    """Everything that is written where a tier or a replica belongs, and where."""
    for tier, path in _items(data, "tiers", ()):
        yield tier, path
        if isinstance(tier, dict):
            yield from _items(tier.get("replicated"), "replicas", (*path, "replicated"))


class _Rules:
    def __init__(self, types: Mapping[str, TierType], mistakes: Mistakes, variables: Variables) -> None:
        self._types, self._mistakes, self._variables = types, mistakes, variables

    # -- a tier or a replica -------------------------------------------------------------------------

    def leg(self, leg: Any, path: Path) -> None:
        """One type, and nothing that is neither an option beside it nor inside it."""
        replica = len(path) > 2
        beside = _BESIDE_REPLICA if replica else _BESIDE
        names = set(self._types) | (set() if replica else {"replicated"})
        if isinstance(leg, str):
            if leg not in names:
                shown = self._variables.show(leg, path)
                self._mistakes.add(f"{shown} is not a type of store", path, self._meant(leg, names))
            else:
                self._options(leg, None, path, ())
            return
        if not isinstance(leg, dict):
            return
        kinds = [key for key in leg if key in names]
        unknown = [key for key in leg if key not in names and key not in beside]
        for key in unknown[:100]:
            self._unknown(key, leg, kinds, names, beside, path)
        if not kinds and not unknown:
            self._mistakes.add("names no store", path, f"one of {', '.join(sorted(names))}")
        for key in kinds[1:]:
            self._mistakes.add(
                f"a second store beside {kinds[0]}", (*path, key), "a dash before each: every tier has one", key=True
            )
        for kind in kinds:
            self._options(kind, leg[kind], path, unknown)

    def _unknown(
        self, key: str, leg: Mapping[str, Any], kinds: list[str], names: set[str], beside: tuple[str, ...], path: Path
    ) -> None:
        where = (*path, key)
        if key == "type" and isinstance(leg[key], str) and leg[key] in names:
            hint: str | None = f"write - {leg[key]}: {{...}}"
        elif len(kinds) == 1 and key in self._allowed(kinds[0]):
            hint = f"it is an option of {kinds[0]}: indent it below, or write {kinds[0]}: {{{key}: ...}}"
        elif key in _BESIDE:
            hint = "it belongs to the tier, not to a replica"
        elif key == "replicated":
            hint = "replicas cannot be replicated again"
        elif "." in key:
            hint = "a dotted path needs load_stack(..., allow_import=True); or call register_tier_type()"
        else:
            hint = self._meant(key, names | set(beside))
        self._mistakes.add(f"unknown key {key[:60]!r}", where, hint, key=True)

    def _meant(self, word: str, known: set[str]) -> str | None:
        kind, colon, _ = word.partition(":")
        if colon and kind in self._types:  # the SDK's short form
            return f"write {self._types[kind].example or kind}"
        return did_you_mean(word, known)

    def _allowed(self, kind: str) -> set[str]:
        model = ReplicatedConfig if kind == "replicated" else self._types[kind].options
        return {field.alias or name for name, field in model.model_fields.items()}

    def _options(self, kind: str, options: Any, path: Path, misplaced: Collection[str]) -> None:
        model = ReplicatedConfig if kind == "replicated" else self._types[kind].options
        where = (*path, kind)
        if options is None:  # the models take it for no options
            for name, field in model.model_fields.items():
                option = field.alias or name
                if field.is_required() and option not in misplaced:
                    self._mistakes.add(f"{option} is missing", (*where, option))
        if kind == "replicated":
            return
        tier_type = self._types[kind]
        if options is not None and not isinstance(options, dict):
            hint = f"write {tier_type.example}" if tier_type.example else "write its options as a mapping"
            self._mistakes.add(f"{kind} takes options", where, traps.short(kind, options) or hint)
            return
        options = options or {}
        allowed = self._allowed(kind)
        for key in options:
            if key in _BESIDE and key not in allowed:
                message = f"{key} belongs to the tier, beside {kind}, not inside it"
                self._mistakes.add(message, (*where, key), key=True)
        for key, problem, spelling in traps.options(kind, options):
            self._mistakes.add(problem, (*where, key) if key else where, spelling, key=key not in allowed)

    # -- the whole -----------------------------------------------------------------------------------

    def stack(self, data: Mapping[str, Any]) -> None:
        """The tiers as a list, and their journal."""
        tiers = data.get("tiers")
        if tiers is None or tiers == []:
            self._mistakes.add("a stack needs at least one tier", ("tiers",), "list them nearest first, home last")
        if not isinstance(tiers, list):
            return
        for leg, path in legs(data):
            if not self._mistakes.full:
                self.leg(leg, path)
        self._names(tiers, ("tiers",))
        behind: Path | None = None
        for place, tier in enumerate(tiers):
            if not isinstance(tier, dict):
                continue
            where: Path = ("tiers", place)
            if tier.get("write") == "behind":
                if place == len(tiers) - 1:
                    behind = (*where, "write")
                else:
                    self._mistakes.add(
                        "only home, the last tier, can be written behind",
                        (*where, "write"),
                        "leave it out: near tiers hold copies, and a save does not fail with them",
                    )
            elif tier.get("ack") in ("turn", "journal"):
                self._mistakes.add("ack is for a tier with write: behind", (*where, "ack"), "add write: behind")
            self._replicated(tier, where, data.get("journal") is not None and tier.get("write") != "behind")
        self._journal(data, tiers, behind)

    def _names(self, legs_: list[Any], path: Path) -> None:
        taken: set[str] = set()
        for place, leg in enumerate(legs_):
            name = leg.get("name") if isinstance(leg, dict) else None
            if isinstance(name, str):
                if name in taken:
                    self._mistakes.add("this name is taken", (*path, place, "name"), "names tell members apart")
                taken.add(name)

    def _replicated(self, tier: Mapping[str, Any], path: Path, has_journal: bool) -> None:
        replicated = tier.get("replicated")
        if not isinstance(replicated, dict):
            return
        for key in ("retry", "guard"):
            if tier.get(key) not in (None, False):
                why = "around all replicas it would write again to those that are well"
                self._mistakes.add(f"{key} belongs to each replica", (*path, key), why, key=True)
        replicas = replicated.get("replicas")
        where: Path = (*path, "replicated")
        if not isinstance(replicas, list):
            return
        self._names(replicas, (*where, "replicas"))
        if len(replicas) < 2:
            self._mistakes.add("replication needs at least two replicas", (*where, "replicas"))
        quorum = replicated.get("write_quorum", "majority")
        if len(replicas) == 2 and quorum == "majority" and not has_journal and replicated.get("journal") is None:
            self._mistakes.add(
                "two replicas with a majority need a journal: a save is one vote plus a durable hint",
                where,
                "add journal: ./hints, or write_quorum: all",
                key=True,
            )
        if isinstance(quorum, int) and not isinstance(quorum, bool) and quorum > len(replicas):
            self._mistakes.add(
                f"a quorum of {quorum} among {len(replicas)} replicas", (*where, "write_quorum"), "at most all of them"
            )

    def _journal(self, data: Mapping[str, Any], tiers: list[Any], behind: Path | None) -> None:
        journal = data.get("journal")
        if journal is None:
            if behind is not None:
                hint = "write journal: {path: ./journal} beside tiers"
                self._mistakes.add("write: behind needs a journal", behind, hint)
            return
        if behind is not None:
            self._times(journal)
            return
        hints = any(isinstance(tier, dict) and isinstance(tier.get("replicated"), dict) for tier in tiers)
        if not hints:
            hint = "put 'write: behind' at the last tier, or leave the journal out"
            self._mistakes.add("nothing uses the journal", ("journal",), hint, key=True)
        elif isinstance(journal, dict) and len(journal) > 1:
            self._mistakes.add(
                "without write: behind the journal keeps hints for replicas, and takes only a path",
                ("journal",),
                "write journal: ./journal",
                key=True,
            )

    def _times(self, journal: Any) -> None:
        if isinstance(journal, dict) and ("linger" in journal or "max_lag" in journal):
            try:
                linger, lag = (_seconds(journal, name) for name in ("linger", "max_lag"))
            except StackConfigError:
                return  # the models say so
            if linger > lag:
                message = "linger is more than max_lag: what lingers would make every save wait"
                self._mistakes.add(message, ("journal",), "make max_lag the larger one", key=True)


def _seconds(journal: Mapping[str, Any], name: str) -> float:
    return parse_seconds(journal.get(name, JournalConfig.model_fields[name].default), name)


def check(data: Mapping[str, Any], types: Mapping[str, TierType], mistakes: Mistakes, variables: Variables) -> None:
    """Note every rule that ``data`` breaks."""
    _Rules(types, mistakes, variables).stack(data)
