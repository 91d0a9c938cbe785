"""The figures of ``bench`` as a small SVG picture, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from locus_tiered.cli.answers import BenchRow

__all__ = ["amount", "ratio_told", "svg"]

_WIDTH, _LEFT, _RIGHT = 760, 290, 110
_ROW, _BAR, _TOP = 56, 16, 64
_COLOURS = {"alone": "#8a94a6", "stack": "#2f7d5b"}


def amount(value: float, unit: str) -> str:
    """A value in three digits, with its unit."""
    digits = 0 if value >= 100 or unit == "calls" else 1 if value >= 10 else 2
    unit = unit[:-1] if unit == "calls" and value == 1 else unit
    return f"{value:,.{digits}f} {unit}"


def ratio_told(ratio: float | None) -> str:
    """``0.35 x``, or ``1/12`` where that says more."""
    if ratio is None:
        return ""
    return f"{ratio:.2f} x" if ratio >= 0.1 else f"1/{1 / ratio:.0f}" if ratio > 0 else "0 x"


def svg(rows: Sequence[BenchRow], *, title: str, caption: str) -> str:
    """Two bars per row, the longer one as long as there is room; values beside them."""
    height = _TOP + _ROW * len(rows) + 40
    room = _WIDTH - _LEFT - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for place, (side, label) in enumerate((("alone", "home alone"), ("stack", "stack"))):
        x = _LEFT + 130 * place
        parts.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{_COLOURS[side]}"/>')
        parts.append(f'<text x="{x + 18}" y="49">{label}</text>')
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number
        longest = max(row.alone, row.stack) or 1.0
        told = ratio_told(row.ratio)
        parts.append(f'<text x="16" y="{y + 18}">{escape(row.what)}</text>')
        parts.append(f'<text x="16" y="{y + 36}" fill="#5b6472">{escape(told)}</text>')
        for line, (side, value) in enumerate((("alone", row.alone), ("stack", row.stack))):
            top, length = y + 4 + line * (_BAR + 4), max(1.0, room * value / longest)
            parts.append(
                f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[side]}" rx="2"/>'
            )
            shown = escape(amount(value, row.unit))
            parts.append(f'<text x="{_LEFT + length + 6:.1f}" y="{top + 13}">{shown}</text>')
    parts.append(f'<text x="16" y="{height - 14}" fill="#5b6472">{escape(caption)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
