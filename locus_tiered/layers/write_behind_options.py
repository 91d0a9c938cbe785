"""The options of a write-behind layer, checked."""

from __future__ import annotations

from typing import Literal

from locus_tiered.core.errors import StackConfigError, shorten
from locus_tiered.core.units import positive_seconds

__all__ = ["Ack", "OnFarOutage", "check_ack", "check_exclusive", "check_on_outage", "check_times"]

Ack = Literal["far", "turn", "journal"]
OnFarOutage = Literal["fail", "journal"]


def check_ack(ack: object) -> Ack:
    """``ack=`` as given by a user, or :class:`StackConfigError`."""
    if ack in ("far", "turn", "journal"):
        return ack
    raise StackConfigError(f"ack={shorten(ack)}", hint='write "turn", "journal" or "far"')


def check_on_outage(on_outage: object) -> OnFarOutage:
    """``on_outage=`` of a write-behind layer, or :class:`StackConfigError`."""
    if on_outage in ("fail", "journal"):
        return on_outage
    raise StackConfigError(f"on_outage={shorten(on_outage)}", hint='write "fail" or "journal"')


def check_exclusive(exclusive: object) -> bool:
    """``exclusive=`` as given by a user, or :class:`StackConfigError`: what only looks true would drop a safeguard."""
    if isinstance(exclusive, bool):
        return exclusive
    raise StackConfigError(f"exclusive={shorten(exclusive)}", hint="write True or False")


def check_times(linger: object, max_lag: object, drain_timeout: object) -> tuple[float, float, float]:
    """The three times in seconds, or :class:`StackConfigError`."""
    if not isinstance(linger, int | float) or isinstance(linger, bool) or not 0 <= linger < float("inf"):
        raise StackConfigError(f"linger={shorten(linger)} must be a number of seconds, 0 or more")
    lag = positive_seconds(max_lag, "max_lag")  # type: ignore[arg-type]
    drain = positive_seconds(drain_timeout, "drain_timeout")  # type: ignore[arg-type]
    if lag is None or drain is None:
        raise StackConfigError("max_lag and drain_timeout must be numbers of seconds above 0", hint="leave them out")
    if linger > lag:
        raise StackConfigError(
            f"linger={linger:g} is more than max_lag={lag:g}: what lingers would make every save wait",
            hint="make max_lag the larger one",
        )
    return float(linger), lag, drain
