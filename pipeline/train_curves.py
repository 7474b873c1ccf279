"""The curves of a training as an SVG picture, drawn without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

_WIDTH, _HEIGHT = 380, 240  # px of one panel's plot
_LEFT, _TOP, _BOTTOM, _RIGHT = 56, 34, 44, 130  # px around the plots; names stand at the right

# Blue, orange, green of Okabe and Ito, told apart with any colour vision; names stand at the lines.
_PANELS: Final = (
    (
        "Loss",
        (("train_loss", "training", "#0072b2"), ("validation_loss", "validation", "#d55e00")),
    ),
    ("Validation", (("gap", "GAP@20", "#0072b2"), ("map", "mAP", "#009e73"))),
)


def curves_svg(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """An SVG image of losses and metrics over the epochs, the kept epoch marked.

    Args:
        history: one row per epoch.
        best_epoch: position of the row whose weights were kept.
    """
    step = _LEFT + _WIDTH + _RIGHT
    width = step * len(_PANELS)
    height = _TOP + _HEIGHT + _BOTTOM
    body = "".join(
        f'<g transform="translate({_LEFT + step * n},{_TOP})">'
        f"{_panel(title, lines, history, best_epoch)}</g>"
        for n, (title, lines) in enumerate(_PANELS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Training curves" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{body}</svg>\n'
    )


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from `low` or below to `high` or above."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def _panel(
    title: str,
    lines: Sequence[tuple[str, str, str]],
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
) -> str:
    values = [row[key] for key, _, _ in lines for row in history]
    marks = ticks(min(values), max(values))
    low, high = marks[0], marks[-1]

    def x(epoch: float) -> float:
        return (epoch - 1) / max(1, len(history) - 1) * _WIDTH

    def y(value: float) -> float:
        return _HEIGHT - (value - low) / (high - low) * _HEIGHT

    parts = [f'<text x="0" y="-14" font-weight="bold">{title}</text>']
    for mark in marks:
        parts.append(
            f'<line x1="0" x2="{_WIDTH}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#ddd"/>'
            f'<text x="-8" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:.4g}</text>'
        )
    for epoch in _epoch_marks(len(history)):
        parts.append(
            f'<text x="{x(epoch):.1f}" y="{_HEIGHT + 18}" text-anchor="middle">{epoch}</text>'
        )
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 36}" text-anchor="middle">epoch</text>')
    kept = x(best_epoch + 1)
    parts.append(
        f'<line x1="{kept:.1f}" x2="{kept:.1f}" y1="0" y2="{_HEIGHT}" stroke="#777" '
        f'stroke-dasharray="4 4"/><text x="{kept:.1f}" y="-2" text-anchor="middle" '
        'font-size="10" fill="#555">kept</text>'
    )
    names_at = _spread([y(history[-1][key]) for key, _, _ in lines])
    for (key, name, colour), name_y in zip(lines, names_at, strict=True):
        points = " ".join(f"{x(n):.1f},{y(row[key]):.1f}" for n, row in enumerate(history, start=1))
        # A single epoch has no line: the dot at the end stands for it.
        end = points.split()[-1].split(",")
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{end[0]}" cy="{end[1]}" r="3" fill="{colour}"/>'
            f'<text x="{float(end[0]) + 8:.1f}" y="{name_y + 4:.1f}" fill="{colour}">'
            f"{name} {history[-1][key]:.3g}</text>"
        )
    return "".join(parts)


def _epoch_marks(epochs: int) -> list[int]:
    marks = sorted({round(mark) for mark in ticks(1, epochs)} | {1, epochs})
    inside = [mark for mark in marks if 1 <= mark <= epochs]
    # The last epoch is always named; a mark too close before it would run into it.
    return [m for m in inside if m == epochs or epochs - m > epochs / 12]


def _spread(heights: Sequence[float], apart: float = 14) -> list[float]:
    """The heights, moved down where one would stand on another."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + apart)
    return moved
