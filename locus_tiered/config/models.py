"""What a stack file may say: pydantic models, which are the schema.

:func:`stack_model` completes them with the types of tiers that there are. What a model cannot say (which tier may be
written behind, who needs a journal) is in ``rules.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, create_model

from locus_tiered.config.fields import (
    TIME_SCHEMA,
    Duration,
    Latest,
    Location,
    Name,
    Real,
    Section,
    Short,
    Size,
    Wait,
    Whole,
    toggle,
    wrong,
)
from locus_tiered.config.registry import TierType
from locus_tiered.core.operations import OPERATIONS
from locus_tiered.core.units import parse_bytes
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.layers.guarded import GuardedCheckpointer, Timeouts
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.retrying import RetryingCheckpointer
from locus_tiered.layers.tiered import TieredCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

__all__ = [
    "BreakerConfig",
    "BudgetConfig",
    "DirectoryOptions",
    "GuardConfig",
    "JournalConfig",
    "LegConfig",
    "MemoryOptions",
    "ReplicatedConfig",
    "RetryConfig",
    "StackConfig",
    "TierConfig",
    "TimeoutConfig",
    "TraceConfig",
    "stack_model",
]


def _default(of: Callable[..., Any], name: str) -> Any:
    """The default is the code's, told once."""
    return inspect.signature(of).parameters[name].default


class MemoryOptions(Section):
    """Options of `memory`, our `BoundedMemoryCheckpointer`."""

    max_bytes: Size = parse_bytes(_default(BoundedMemoryCheckpointer, "max_bytes"), "max_bytes")
    """The budget."""
    ttl: Duration | None = None
    """How long a checkpoint is kept; `null`: until its room is needed."""
    policy: Literal["lru", "lfu", "fifo", "rr"] = "lru"
    """What goes first when room is needed: the least recently used, the least often used, the oldest, or any."""


class DirectoryOptions(Section):
    """Options of `directory`, our `DirectoryCheckpointer`."""

    path: Location
    """The directory; made on first use."""
    max_bytes: Size | None = None
    """The budget; `null`: no bound."""
    ttl: Duration | None = None
    """How long a checkpoint is kept; `null`: for ever."""
    durability: Literal["power", "process"] = "power"
    """What an acknowledged save survives: a power cut, or the end of the process (faster; for a near tier)."""


def _operation(value: Any) -> Any:
    names = [kind.name for kind in OPERATIONS]
    if value not in names:
        raise wrong("is not an operation", f"one of {', '.join(names)}")
    return value


_OPERATIONS = {"enum": [kind.name for kind in OPERATIONS]}
OperationName = Annotated[str, BeforeValidator(_operation), WithJsonSchema(_OPERATIONS)]


class BudgetConfig(Section):
    """How many retries an outage may add to the calls."""

    ratio: Real = Field(default=_default(RetryBudget, "ratio"), ge=0, le=1)
    """Retries per call, in the long run."""
    burst: Whole = Field(default=_default(RetryBudget, "burst"), ge=0)
    """Retries at once, after quiet times."""


class RetryConfig(Section):
    """What failed for a moment is tried again: `RetryingCheckpointer`."""

    attempts: Whole = Field(default=_default(RetryingCheckpointer, "attempts"), ge=1)
    """How often altogether, the first included."""
    deadline: Duration = _default(RetryingCheckpointer, "deadline")
    """For the whole operation, pauses included."""
    base: Duration = _default(RetryingCheckpointer, "base")
    """The first pause at most; it doubles with every attempt."""
    throttled_base: Duration = _default(RetryingCheckpointer, "throttled_base")
    """The same after "slow down"."""
    cap: Duration = _default(RetryingCheckpointer, "cap")
    """A pause at most."""
    budget: BudgetConfig | None = None
    """By default one per backend, shared by all stacks that it is in."""
    repeat: list[OperationName] = []
    """Operations to repeat although doing them twice is not doing them once, such as `copy_thread`."""


class TimeoutConfig(Section):
    """Timeouts by operation; what is not named keeps its default."""

    others: Duration = Timeouts().others
    """One attempt of any operation that has no timeout of its own."""
    save_per_mib: Wait = Timeouts().save_per_mib
    """More for each MiB of a save."""


_operations: dict[str, Any] = {
    kind.name: (
        Duration,
        Field(default=Timeouts().by_operation.get(kind.name), description=f"One attempt of `{kind.name}`."),
    )
    for kind in OPERATIONS
}
_Timeouts = create_model("Timeouts", __base__=TimeoutConfig, __doc__=TimeoutConfig.__doc__, **_operations)


class BreakerConfig(Section):
    """When a failing store is left alone, and for how long: `BreakerPolicy`."""

    failures: Whole = Field(default=_default(BreakerPolicy, "in_a_row"), ge=1)
    """So many failures in a row open it (`in_a_row=` in code)."""
    ratio: Real = Field(default=_default(BreakerPolicy, "ratio"), gt=0, le=1)
    """Or so large a part of the calls since the first failure in the window does,"""
    minimum: Whole = Field(default=_default(BreakerPolicy, "minimum"), ge=1)
    """provided there were at least so many calls."""
    window: Duration = _default(BreakerPolicy, "window")
    """How long a failure counts."""
    open_for: Duration = _default(BreakerPolicy, "open_for")
    """How long it stays open at first."""
    longest: Duration = _default(BreakerPolicy, "longest")
    """How long at most, after failed probes."""


def _timeout(value: Any, section: Callable[[Any], Any]) -> Any:
    return None if value is None else section({"others": value}).others


class GuardConfig(Section):
    """A store that hangs or dies does not hang or drown its callers: `GuardedCheckpointer`."""

    timeout: Annotated[
        TimeoutConfig | float | None,
        Short(_timeout, {"type": "null"}, TIME_SCHEMA, of=_Timeouts),
    ] = None
    """By operation, or one for all; `null`: none. Left out: the defaults by operation."""
    breaker: Annotated[BreakerConfig | None, toggle] = BreakerConfig()
    """The circuit breaker; `false`: none."""
    max_concurrency: Whole = Field(default=_default(GuardedCheckpointer, "max_concurrency"), ge=1)
    """Calls under way at once."""
    max_waiting: Whole = Field(default=_default(GuardedCheckpointer, "max_waiting"), ge=0)
    """Calls that may wait beside them."""


class TraceConfig(Section):
    """Spans and metrics through OpenTelemetry: `TracedCheckpointer`."""

    name: Name | None = None
    """`locus.stack`; by default what the stack is called."""
    thread_id: Literal["plain", "hash", "off"] = "plain"
    """How spans show a thread's id."""


def _journal(value: Any, section: Callable[[Any], Any]) -> Any:
    if isinstance(value, str):
        return section({"path": value})
    raise wrong("is neither a path nor a mapping", "write journal: {path: ./journal}")


class JournalConfig(Section):
    """The local journal of what is written behind; only the path is needed."""

    path: Location
    """Its directory, on a local disk."""
    max_pending: Size = parse_bytes(_default(WriteBehindCheckpointer, "max_pending"), "max_pending")
    """Bytes that may be pending before a save waits for home."""
    linger: Wait = _default(WriteBehindCheckpointer, "linger")
    """How long an iteration save waits for the delete that cancels it; no longer than `max_lag`."""
    max_lag: Duration = _default(WriteBehindCheckpointer, "max_lag")
    """How long a save may be pending before new ones wait for home."""
    drain_timeout: Duration = _default(WriteBehindCheckpointer, "drain_timeout")
    """How long a save waits for room, and `close()` for home."""
    on_outage: Literal["fail", "journal"] = "fail"
    """With `ack: turn`, when home does not take a save that it is to acknowledge: fail, or keep it in the journal."""


class LegConfig(Section):
    """A store with its retry and guard: what a tier and a replica have in common."""

    kinds: ClassVar[Mapping[str, str]] = {}
    """By field, the name of the type."""

    name: Name | None = None
    """What errors, spans and `explain()` call it; by default its type."""
    retry: Annotated[RetryConfig | None, toggle] = None
    """Try again what failed for a moment; `true`: with the defaults."""
    guard: Annotated[GuardConfig | None, toggle] = None
    """Timeout, breaker and bulkhead; `true`: with the defaults."""

    def chosen(self) -> tuple[str, BaseModel | None]:
        """The type's name, and its options if there are any."""
        field = next(field for field in self.kinds if field in self.model_fields_set)
        return self.kinds[field], getattr(self, field)


class TierConfig(LegConfig):
    """One tier: exactly one type with its options, and what else is to be said about it."""

    write: Literal["through", "behind"] = "through"
    """Home only. `through`: a save waits for home. `behind`: for the local journal, as `ack` says."""
    ack: Literal["far", "turn", "journal"] | None = None
    """With `write: behind`, what a save waits for; by default `turn`."""


def _quorum(value: Any) -> Any:
    if value in ("majority", "all") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and int(value[:9]) > 0:
        return int(value[:9])
    raise wrong("is not a quorum", "write majority, all, or a number")


class ReplicatedConfig(Section):
    """Several equal stores as one tier: `ReplicatedCheckpointer`."""

    replicas: list[LegConfig]
    """At least two, each a type with its options, `name`, `retry` and `guard`."""
    write_quorum: Annotated[
        Any,
        BeforeValidator(_quorum),
        WithJsonSchema({"anyOf": [{"enum": ["majority", "all"]}, {"type": "integer", "minimum": 1}]}),
    ] = "majority"
    """How many must have a save before it is acknowledged."""
    read: Literal["one", "quorum", "hedged"] = "one"
    """Who is asked."""
    journal: Location | None = None
    """Where hints for replicas that missed a write are kept, on a local disk; `null`: in memory."""
    hint_window: Size = parse_bytes(_default(ReplicatedCheckpointer, "hint_window"), "hint_window")
    """Bytes of hints per replica; beyond, whole threads are marked to be compared instead."""


class StackConfig(Section):
    """A whole stack."""

    version: Literal[1] = 1
    """Of this format."""
    name: Name | None = None
    """What errors, spans and `explain()` call the stack; by default `stack`."""
    latest: Latest = "validate"
    """How the newest is read: `validate` asks home, `exclusive` trusts this process, a duration trusts it so long."""
    on_outage: Literal["raise", "stale"] = "raise"
    """What a read does when home cannot be reached."""
    near_timeout: Duration | None = _default(TieredCheckpointer, "near_timeout")
    """How long a call on a near tier may take; `null`: as long as it takes."""
    trace: Annotated[TraceConfig | None, toggle] = None
    """Tracing; `true`: with the defaults."""
    journal: Annotated[JournalConfig | None, Short(_journal, {"type": "string"})] = None
    """For `write: behind`: a path, or options."""
    tiers: list[TierConfig]
    """Nearest first; the last one is home."""


def _named(value: Any, section: Callable[[Any], Any]) -> Any:
    if isinstance(value, str):
        return section({value: None})
    raise wrong("is not a tier", "write - memory: {max_bytes: 256MiB}, for example")


def _leg(base: type[LegConfig], types: Mapping[str, tuple[type[BaseModel], str]]) -> Any:
    """``base`` with one field per type; ``types`` gives their options and what they are."""
    kinds = {f"kind_{place}": name for place, name in enumerate(types)}
    fields: dict[str, Any] = {
        field: (types[name][0] | None, Field(None, alias=name, description=types[name][1]))
        for field, name in kinds.items()
    }
    model = create_model(base.__name__.replace("Config", ""), __base__=base, __doc__=base.__doc__, **fields)
    model.kinds = kinds
    return Annotated[model, Short(_named, {"enum": sorted(types)})]


def _list_of(model: Any) -> Any:
    return list[model]


@lru_cache(maxsize=16)
def stack_model(types: tuple[TierType, ...]) -> type[StackConfig]:
    """The model of a stack whose tiers may be of ``types``."""
    stores = {each.name: (each.options, each.summary) for each in types}
    replica = _leg(LegConfig, stores)
    replicated = create_model(
        "Replicated",
        __base__=ReplicatedConfig,
        __doc__=ReplicatedConfig.__doc__,
        replicas=(_list_of(replica), Field(description=ReplicatedConfig.model_fields["replicas"].description)),
    )
    tier = _leg(TierConfig, {**stores, "replicated": (replicated, "Several equal stores as one tier")})
    return create_model(
        "Stack",
        __base__=StackConfig,
        __doc__=StackConfig.__doc__,
        tiers=(_list_of(tier), Field(description=StackConfig.model_fields["tiers"].description)),
    )
