"""A stack from what its file says, layers in the order of the design: the timeout inside the retry, both around one
backend, tiers above, tracing outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar

from locus.memory.checkpointer import BaseCheckpointer
from pydantic import BaseModel, ValidationError

from locus_tiered.config.fields import Section
from locus_tiered.config.mistakes import Mistakes, Path
from locus_tiered.config.models import (
    BreakerConfig,
    GuardConfig,
    LegConfig,
    ReplicatedConfig,
    RetryConfig,
    StackConfig,
    TimeoutConfig,
)
from locus_tiered.config.registry import TierType
from locus_tiered.config.variables import Variables
from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.layer import Layer, as_layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.logs import logger_for
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.layers.guarded import GuardedCheckpointer, Timeouts
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.retrying import RetryingCheckpointer
from locus_tiered.layers.said import spelled
from locus_tiered.layers.tiered import Tier, TieredCheckpointer
from locus_tiered.layers.traced import TracedCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer

__all__ = ["Builder"]

logger = logger_for(__name__)

T = TypeVar("T")


def _given(section: BaseModel, *without: str) -> dict[str, Any]:
    """The options that were written, as a constructor takes them."""
    return {name: getattr(section, name) for name in section.model_fields_set if name not in without}


def _retry(inner: BaseCheckpointer, config: RetryConfig) -> RetryingCheckpointer:
    options = _given(config, "budget")
    if config.budget is not None:
        options["budget"] = RetryBudget(config.budget.ratio, config.budget.burst)
    return RetryingCheckpointer(inner, **options)


def _timeout(config: TimeoutConfig | float | None) -> Timeouts | dict[str, float] | float | None:
    if not isinstance(config, TimeoutConfig):
        return config
    given = _given(config)
    rest = {name: given.pop(name) for name in ("others", "save_per_mib") if name in given}
    if not rest:
        return given
    return Timeouts(by_operation={**Timeouts().by_operation, **given}, **rest)


def _breaker(config: BreakerConfig | None) -> BreakerPolicy | None:
    if config is None:
        return None
    options = _given(config)
    if "failures" in options:
        options["in_a_row"] = options.pop("failures")
    return BreakerPolicy(**options)


def _guard(inner: BaseCheckpointer, config: GuardConfig) -> GuardedCheckpointer:
    options = _given(config)
    if "timeout" in options:
        options["timeout"] = _timeout(options["timeout"])
    if "breaker" in options:
        options["breaker"] = _breaker(options["breaker"])
    return GuardedCheckpointer(inner, **options)


class Builder:
    """Builds one stack.

    Args:
        types: What a tier may be.
        base: What relative paths are relative to; ``None``: the working directory.
        mistakes: Who is told of what cannot be built.
        variables: Who keeps what came from a reference out of messages.
    """

    def __init__(
        self, types: Mapping[str, TierType], base: FilePath | None, mistakes: Mistakes, variables: Variables
    ) -> None:
        self._types, self._base = types, base
        self._mistakes, self._variables = mistakes, variables
        self.cause: BaseException | None = None
        """What a factory of the user's raised, when it shows no secret."""

    def stack(self, config: StackConfig) -> Layer | None:
        """The outermost layer, or ``None`` once mistakes are noted."""
        legs = [
            self._leg(tier, ("tiers", place), self._hints(config, place)) for place, tier in enumerate(config.tiers)
        ]
        if any(leg is None for leg in legs):
            return None
        self._warn_of_a_home_that_forgets(config)
        return self._made(lambda: self._stack(config, [leg for leg in legs if leg is not None]), ("tiers",))

    def _hints(self, config: StackConfig, place: int) -> FilePath | None:
        """Where the journal of the stack has the hints of a replicated tier: each tier must have its own.

        Those of the tier nearest to home are the journal's own: they stay where they are when another tier is added.
        """
        if config.journal is None or config.tiers[-1].write == "behind":
            return None
        path: FilePath = self._path(config.journal.path)
        replicated = [each for each, tier in enumerate(config.tiers) if tier.chosen()[0] == "replicated"]
        if place not in replicated or place == replicated[-1]:
            return path
        tier = config.tiers[place]
        return path / f"{spelled(tier.name or f'tier-{place + 1}')}.tier"

    def _stack(self, config: StackConfig, legs: Sequence[BaseCheckpointer]) -> Layer:
        options = _given(config, "version", "trace", "journal", "tiers")
        tiers: list[BaseCheckpointer | Tier] = [
            leg if tier.name is None else Tier(leg, name=tier.name)
            for tier, leg in zip(config.tiers, legs, strict=True)
        ]
        home = config.tiers[-1]
        if home.write == "behind":
            tiers[-1] = self._behind(legs[-1], config, options)
        stack: Layer = TieredCheckpointer(*tiers, **options)
        if config.trace is not None:
            stack = TracedCheckpointer(stack, **_given(config.trace))
        return stack

    def _behind(self, leg: BaseCheckpointer, config: StackConfig, options: dict[str, Any]) -> BaseCheckpointer | Tier:
        """Home behind its journal. With nothing but a path that is the stack's own affair."""
        home, journal = config.tiers[-1], config.journal
        assert journal is not None
        path, ack = self._path(journal.path), home.ack or "turn"
        more = _given(journal, "path")
        if not more:
            options["journal"] = path
            return Tier(leg, name=home.name, write="behind", ack=ack)
        if config.latest == "exclusive":
            more["exclusive"] = True  # as the stack would have it
        written = WriteBehindCheckpointer(leg, journal=path, ack=ack, **more)
        return written if home.name is None else Tier(written, name=home.name)

    # -- one store and its layers --------------------------------------------------------------------

    def _leg(self, config: LegConfig, path: Path, journal: FilePath | None = None) -> BaseCheckpointer | None:
        kind, options = config.chosen()
        where = (*path, kind)
        if kind == "replicated":
            assert isinstance(options, ReplicatedConfig)
            return self._replicated(options, where, journal)
        tier_type = self._types[kind]
        store = self._made(lambda: _checked(tier_type.make(**self._arguments(options, tier_type)), kind), where)
        if store is None:
            return None
        if config.guard is not None or config.retry is not None:
            # A tier's name goes to its outermost layer; errors come from the innermost.
            store = _called(store, config.name or kind)
        if (guard := config.guard) is not None:
            store = self._made(lambda inner=store: _guard(inner, guard), (*path, "guard"))  # type: ignore[misc]
        if store is not None and (retry := config.retry) is not None:
            store = self._made(lambda inner=store: _retry(inner, retry), (*path, "retry"))  # type: ignore[misc]
        return store

    def _replicated(self, config: ReplicatedConfig, path: Path, journal: FilePath | None) -> BaseCheckpointer | None:
        legs = [self._leg(each, (*path, "replicas", place)) for place, each in enumerate(config.replicas)]
        replicas = [leg for leg in legs if leg is not None]
        if len(replicas) < len(legs):
            return None
        options = _given(config, "replicas", "journal")
        if config.journal is not None:
            journal = self._path(config.journal)
        if journal is not None:
            options["journal"] = journal
        if any(each.name is not None for each in config.replicas):
            options["names"] = _names(config.replicas)

        return self._made(lambda: ReplicatedCheckpointer(*replicas, **options), path)

    def _arguments(self, options: BaseModel | None, tier_type: TierType) -> dict[str, Any]:
        """The options as keyword arguments; a user's own model gives its defaults, too."""
        if options is None:
            options = tier_type.options()
        if isinstance(options, Section):
            fields = type(options).model_fields
            found = {fields[name].alias or name: value for name, value in _given(options).items() if name in fields}
        else:
            found = {name: getattr(options, name) for name in type(options).model_fields}
        found |= options.model_extra or {}
        return {
            name: self._path(value, as_text=not tier_type.foreign) if isinstance(value, FilePath) else value
            for name, value in found.items()
        }

    def _path(self, path: FilePath, *, as_text: bool = False) -> Any:
        found = path.expanduser()
        if self._base is not None:
            found = self._base / found
        return str(found) if as_text else found

    # -- what cannot be built ------------------------------------------------------------------------

    def _made(self, make: Callable[[], T], path: Path) -> T | None:
        """What ``make`` answers; or ``None``, once it is noted why not."""
        try:
            return make()
        except StackConfigError as error:
            message, hint = str(error), None
        except ValidationError as error:
            # Of the SDK's own models: its text has the values.
            found = (each["msg"].removeprefix("Value error, ") for each in error.errors(include_input=False))
            message, hint = "; ".join(found), None
        except ImportError as error:
            message, hint = f"needs the package {error.name or 'of its driver'}", "install it"
        except Exception as error:  # noqa: BLE001 - a factory is anybody's
            message, hint = f"cannot be built: {type(error).__name__}: {error}", None
            if not self._variables.shows(f"{error!r} {error}"):
                self.cause = error
        self._mistakes.add(self._variables.scrub(message), path, hint, key=True)
        return None

    def _warn_of_a_home_that_forgets(self, config: StackConfig) -> None:
        kind, options = config.tiers[-1].chosen()
        if kind in ("memory", "sdk-memory"):
            logger.warning("home, the last tier, is memory: the stack forgets everything when the process ends")
        elif kind == "directory" and options is not None and getattr(options, "max_bytes", None) is not None:
            logger.warning("home, the last tier, is a directory with max_bytes: it forgets what is least recently used")


def _called(store: BaseCheckpointer, name: str) -> Layer:
    if not isinstance(store, Layer):
        return Leaf(store, name=name)
    if store.name == type(store).__name__:
        store.name = name
    return store


def _checked(made: Any, kind: str) -> BaseCheckpointer:
    as_layer(made, kind)
    return made  # type: ignore[no-any-return]


def _names(replicas: Sequence[LegConfig]) -> list[str]:
    """A name for each: those that were given, and types, counted where they are taken."""
    taken = {each.name for each in replicas if each.name is not None}
    names = []
    for each in replicas:
        name, number = each.name or each.chosen()[0], 2
        while each.name is None and name in taken:
            name, number = f"{each.chosen()[0]}-{number}", number + 1
        taken.add(name)
        names.append(name)
    return names
