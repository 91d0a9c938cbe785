"""What was measured, and what was allowed: :class:`Figure` and :class:`Budget`, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Budget", "Figure", "Unit", "show"]

Unit = Literal["us", "ms", "MiB", "requests"]

_PART = 0.2  # ratios below it are shown as 1/n


def show(value: float, unit: Unit) -> str:
    """A measured value in three digits, with its unit; requests are counted, and need none."""
    if unit == "requests":
        return f"{value:g}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def _times(ratio: float) -> str:
    """A ratio, as a part of one where it is small."""
    if ratio >= _PART:
        return f"{ratio:.2f} x"
    return f"1/{1 / ratio:.{1 if ratio > 0.1 else 0}f}" if ratio > 0 else "0 x"


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that is allowed.

    ``ratio``: of the stack's figure to the SDK's. ``difference``: of the stack's figure above the SDK's, in the
    figure's unit. ``value``: of the stack's figure itself, in its unit.
    """

    kind: Literal["ratio", "difference", "value"]
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured line.

    ``sdk`` is what ``against`` costs alone, ``stack`` what the stack costs, both medians, in ``unit``.
    ``ratio`` and ``difference`` are medians over the rounds, hence not exactly those of the two medians;
    ``None`` where the two were not measured in pairs. ``details`` are further numbers, for the JSON only.
    """

    what: str
    unit: Unit
    stack: float
    against: str | None = None
    sdk: float | None = None
    ratio: float | None = None
    difference: float | None = None
    budget: Budget | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> float | None:
        """The number that the budget is about."""
        if self.budget is None:
            return None
        return {"ratio": self.ratio, "difference": self.difference, "value": self.stack}[self.budget.kind]

    @property
    def within(self) -> bool | None:
        """Whether the budget was kept; ``None`` where there is none."""
        judged = self.judged
        return None if self.budget is None or judged is None else judged <= self.budget.most

    def comparison(self) -> str:
        """The comparison as the table shows it: a difference where the budget is about one, else a ratio."""
        if self.budget is not None and self.budget.kind == "difference" and self.difference is not None:
            return f"{'+' if self.difference >= 0 else ''}{show(self.difference, self.unit)}"
        if self.ratio is None:
            return ""
        return _times(self.ratio)

    def allowance(self) -> str:
        """The budget as the table shows it."""
        match self.budget:
            case None:
                return ""
            case Budget("ratio", most):
                return f"1/{1 / most:g}" if most < _PART else f"{most:g} x"
            case Budget("difference", most):
                return f"+{most:g} {self.unit}"
            case Budget(_, most):
                return f"{most:g}" if self.unit == "requests" else f"{most:g} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        budget = None if self.budget is None else {"kind": self.budget.kind, "most": self.budget.most}
        return {
            "what": self.what,
            "against": self.against,
            "unit": self.unit,
            "sdk": self.sdk,
            "stack": self.stack,
            "ratio": self.ratio,
            "difference": self.difference,
            "budget": budget,
            "within": self.within,
            "details": dict(self.details),
        }
