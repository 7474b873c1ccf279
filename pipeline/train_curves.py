"""The curves of a training as an SVG picture for the report, and as a PNG for everything else."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from PIL import Image, ImageDraw, ImageFont

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


def curves_png(history: Sequence[Mapping[str, float]], best_epoch: int, *, scale: int = 2) -> bytes:
    """The picture of `curves_svg` as a PNG file.

    Args:
        scale: px per unit of the SVG.
    """
    step = _LEFT + _WIDTH + _RIGHT
    size = (step * len(_PANELS) * scale, (_TOP + _HEIGHT + _BOTTOM) * scale)
    image = Image.new("RGB", size, "#fff")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12 * scale)

    for n, (title, lines) in enumerate(_PANELS):
        plot = _Plot.of(lines, history)
        left = _LEFT + step * n

        def at(x: float, y: float, left: int = left) -> tuple[float, float]:
            return (left + x) * scale, (_TOP + y) * scale

        draw.text(at(0, -26), title, fill="#000", font=font)
        for mark in plot.marks:
            y = plot.y(mark)
            draw.line([at(0, y), at(_WIDTH, y)], fill="#ddd", width=scale)
            draw.text(at(-8, y), f"{mark:.4g}", fill="#000", font=font, anchor="rm")
        for epoch in _epoch_marks(len(history)):
            draw.text(
                at(plot.x(epoch), _HEIGHT + 6), str(epoch), fill="#000", font=font, anchor="ma"
            )
        draw.text(at(_WIDTH / 2, _HEIGHT + 24), "epoch", fill="#000", font=font, anchor="ma")
        kept = plot.x(best_epoch + 1)
        draw.line([at(kept, 0), at(kept, _HEIGHT)], fill="#777", width=scale)
        draw.text(at(kept, -2), "kept", fill="#555", font=font, anchor="mb")
        names_at = _spread([plot.y(history[-1][key]) for key, _, _ in lines])
        for (key, name, colour), name_y in zip(lines, names_at, strict=True):
            points = [at(plot.x(e), plot.y(row[key])) for e, row in enumerate(history, start=1)]
            draw.line(points, fill=colour, width=2 * scale, joint="curve")
            x, y = points[-1]
            r = 3 * scale
            draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
            label = f"{name} {history[-1][key]:.3g}"
            draw.text((x + 8 * scale, (_TOP + name_y) * scale), label, colour, font, anchor="lm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers from `low` or below to `high` or above."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Plot:
    """Where epochs and values lie in a panel, in units of the SVG."""

    marks: list[float]
    epochs: int

    @classmethod
    def of(
        cls, lines: Sequence[tuple[str, str, str]], history: Sequence[Mapping[str, float]]
    ) -> _Plot:
        values = [row[key] for key, _, _ in lines for row in history]
        return cls(ticks(min(values), max(values)), len(history))

    def x(self, epoch: float) -> float:
        return (epoch - 1) / max(1, self.epochs - 1) * _WIDTH

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return _HEIGHT - (value - low) / (high - low) * _HEIGHT


def _panel(
    title: str,
    lines: Sequence[tuple[str, str, str]],
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
) -> str:
    plot = _Plot.of(lines, history)
    x, y, marks = plot.x, plot.y, plot.marks
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
