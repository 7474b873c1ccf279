"""Scores of heard labels that mean something: their calibration, and from which score they count.

A label that a handful of held-out recordings have gets a modest score, and its threshold from all
such labels together: what its own recordings know of the rest of the world is little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

PRECISION: Final = 0.8
LOWEST: Final = 0.3
HIGHEST: Final = 0.98
# Fewer recordings than this say little about a label alone: all such labels together say from
# which score it counts, and its own record can only raise that.
ENOUGH_RECORDINGS: Final = 20
PRIOR_SOUNDS: Final = 4.0  # sounds at that precision that a rare label is taken to have had
# Spread of a label's slope and offset around those of all labels together.
SLOPE_SPREAD: Final = 0.3
OFFSET_SPREAD: Final = 1.0
ROUNDS: Final = 30


@dataclass(frozen=True)
class Platt:
    """Per label: calibrated log-odds = slope * log-odds + offset."""

    slope: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def none(cls, labels: int) -> Platt:
        """The scaling that changes nothing."""
        return cls(np.ones(labels), np.zeros(labels))

    def __call__(self, log_odds: Floats) -> Floats:
        """Probabilities [N, C] of log-odds [N, C]."""
        shifted = np.clip(log_odds * self.slope + self.offset, -60, 60)
        return (1 / (1 + np.exp(-shifted))).astype(np.float32)


def fit_platt(log_odds: Floats, chances: Floats, weight: Floats) -> Platt:
    """Platt's scaling (1999) of each label, shrunk to the one of all labels together.

    Newton's method on the likelihood with a normal prior around the common slope and offset.

    Args:
        log_odds: [N, C].
        chances: [N, C], that the label is right.
        weight: [N]; how much each sound counts.
    """
    flat = np.repeat(weight, log_odds.shape[1])
    common = _newton(log_odds.ravel(), chances.ravel(), flat, (1.0, 0.0), (1e3, 1e3))
    found = [
        _newton(log_odds[:, c], chances[:, c], weight, common, (SLOPE_SPREAD, OFFSET_SPREAD))
        for c in range(log_odds.shape[1])
    ]
    slopes, offsets = np.array(found).T
    return Platt(np.maximum(slopes, 0.1), offsets)


def _newton(
    x: Floats, y: Floats, weight: Floats, prior: tuple[float, float], spread: tuple[float, float]
) -> tuple[float, float]:
    both, centre = np.stack([x, np.ones_like(x)]).astype(np.float64), np.array(prior)
    precision, at = 1 / np.square(spread), np.array(prior)
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(at @ both, -60, 60)))
        slope = both @ (weight * (p - y)) + precision * (at - centre)
        curve = (both * (weight * p * (1 - p))) @ both.T + np.diag(precision)
        step = np.linalg.solve(curve, slope)
        at = at - np.clip(step, -1, 1)
    return float(at[0]), float(at[1])


def careful_threshold(scores: Floats, hits: Bools, weight: Floats) -> float:
    """The lowest threshold with precision 0.8 had there been one more sound above it, a wrong one.

    So four recordings that are right without a wrong one are the least that gives a threshold.

    Args:
        scores: [N] of one label, by a calibration that did not see the sounds.
        hits: [N], whether the label is right.
        weight: [N], 1 for a whole recording.
    """
    return _lowest(scores, hits, weight, wanted=PRECISION, right=0.0, sounds=1.0, least=LOWEST)


def group_threshold(scores: Floats, hits: Bools, weight: Floats) -> float:
    """The lowest threshold at which rare labels together, [N, C], have their precision."""
    each = np.repeat(weight, scores.shape[1])
    return _lowest(
        scores.ravel(), hits.ravel(), each, wanted=PRECISION, right=0.0, sounds=1.0,
        least=LOWEST,
    )  # fmt: skip


def rare_threshold(scores: Floats, hits: Bools, weight: Floats, group: float) -> float:
    """The group's threshold, or a higher one if the label's own sounds, [N], speak against it."""
    inside = scores >= group
    if not inside.any():
        return group
    right = PRIOR_SOUNDS * PRECISION
    if (right + (hits * weight)[inside].sum()) / (PRIOR_SOUNDS + weight[inside].sum()) >= PRECISION:
        return group
    return _lowest(
        scores, hits, weight, wanted=PRECISION, right=right, sounds=PRIOR_SOUNDS, least=group
    )


def _lowest(
    scores: Floats,
    hits: Bools,
    weight: Floats,
    *,
    wanted: float,
    right: float,
    sounds: float,
    least: float,
) -> float:
    """The lowest threshold with the precision wanted, `right` of `sounds` more counted in."""
    order = np.argsort(-scores, kind="stable")
    precision = (right + np.cumsum((hits * weight)[order])) / (sounds + np.cumsum(weight[order]))
    good = np.flatnonzero(precision >= wanted)
    if not len(good):
        return HIGHEST
    last = good[-1]
    lower = float(scores[order[last + 1]]) if last + 1 < len(order) else 0.0
    between = (float(scores[order[last]]) + lower) / 2
    return float(np.clip(between, least, HIGHEST))


def cross_calibrated(
    log_odds: Floats, chances: Floats, weight: Floats, part: NDArray[np.intp]
) -> Floats:
    """Probabilities [N, C] of each sound, by the calibration of the other parts' recordings.

    Args:
        part: [N], which part of the recordings a sound is of.
    """
    scores = np.zeros_like(log_odds)
    for one in np.unique(part):
        there = part == one
        platt = fit_platt(log_odds[~there], chances[~there], weight[~there])
        scores[there] = platt(log_odds[there])
    return scores


def calibration_error(scores: Floats, chances: Floats, bins: int = 15) -> float:
    """Expected calibration error over all pairs of a sound and a label that score 0.1 or more."""
    inside = scores >= 0.1
    score, chance = scores[inside], chances[inside]
    at = np.minimum((score * bins).astype(int), bins - 1)
    gaps = [abs(float((score - chance)[at == one].sum())) for one in range(bins)]
    return sum(gaps) / max(len(score), 1)
