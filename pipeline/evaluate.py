"""Metrics of tagging: pure functions of scores and labels, as google/youtube-8m defines them.

Everywhere: `scores` float [N, C], higher is surer; `labels` [N, C], above 0 means that clip n
has tag c. N clips, C labels. Nothing to count (no clip, no positive) gives 0.

Ties. The published code orders equal scores by an accident of its heap. Here the items of
one tie enter a ranking together: each is counted at the precision reached after the whole
tie, so that no metric depends on the order of clips or labels. Only a cut through a tie
(the top k of a clip, a list cut at n) needs an order: the lower index is kept. Without ties
the values are those of the published code to the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Callable[[npt.ArrayLike, npt.ArrayLike], float]

TOP_K: Final = 20  # the YouTube-8M challenges read the best 20 labels of a video


def hit_at_one(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of clips whose best-scored label is right; the first one wins a tie."""
    values, truth = _checked(scores, labels)
    if not values.size:
        return 0.0
    best = values.argmax(axis=1)
    return float(truth[np.arange(len(truth)), best].mean())


def perr(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Precision at equal recall rate: precision of the best g labels of a clip that has g.

    Mean over all clips. Only scores above 0 can be hits; a clip without labels counts 0
    (`eval_util.calculate_precision_at_equal_recall_rate` of google/youtube-8m).
    """
    values, truth = _checked(scores, labels)
    if not values.size:
        return 0.0
    order = np.argsort(-values, axis=1, kind="stable")
    wanted = truth.sum(axis=1)  # [N]
    hit = np.take_along_axis(truth & (values > 0), order, axis=1)
    hit &= np.arange(values.shape[1]) < wanted[:, None]
    return float((hit.sum(axis=1) / np.maximum(wanted, 1)).mean())


def gap_at_k(scores: npt.ArrayLike, labels: npt.ArrayLike, k: int = TOP_K) -> float:
    """Global average precision: one ranking of the k best (clip, label) pairs of every clip.

    The denominator is all positives, also those outside every top k: a clip with more than
    k labels can not reach 1.
    """
    values, truth = _checked(scores, labels)
    top, hits, _ = _top_pairs(values, truth, k)
    groups = np.zeros(len(top), dtype=np.intp)
    positives = np.array([truth.sum()], dtype=np.float64)
    return float(_ranked_precision(top, hits, groups, positives)[0])


def mean_average_precision(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    k: int | None = TOP_K,
    *,
    empty: Literal["drop", "zero"] = "drop",
) -> float:
    """Mean over labels of the average precision of each label's ranking.

    Args:
        k: only pairs among the k best of their clip enter, as the YouTube-8M code has it;
            None ranks every clip for every label.
        empty: labels without a positive are left out of the mean ("drop", the published code
            since 2018) or count 0 ("zero", the code of 2017 and the WILLOW entry). The two
            can not be compared.
    """
    values = average_precision_per_label(scores, labels, k)
    if empty == "zero":
        values = np.nan_to_num(values, nan=0.0)
    elif empty != "drop":
        raise ValueError(f"empty must be 'drop' or 'zero', got {empty!r}")
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else 0.0


def average_precision_per_label(
    scores: npt.ArrayLike, labels: npt.ArrayLike, k: int | None = None
) -> Floats:
    """Average precision of every label, float64 [C]; NaN where a label has no positive.

    Args:
        k: as for `mean_average_precision`.
    """
    values, truth = _checked(scores, labels)
    top, hits, at = _top_pairs(values, truth, values.shape[1] if k is None else k)
    positives = truth.sum(axis=0).astype(np.float64)
    found = _ranked_precision(top, hits, at, positives)
    return np.where(positives > 0, found, np.nan)


def average_precision_at_n(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    n: int | None = None,
    *,
    total_positives: int | None = None,
) -> float:
    """Average precision of one list [N], cut at its n best; the denominator is min(positives, n).

    Args:
        total_positives: how many positives there are in all, where the list holds only some.
    """
    values, truth = _checked(np.atleast_2d(np.asarray(scores)), np.atleast_2d(np.asarray(labels)))
    kept = np.argsort(-values[0], kind="stable")[:n]
    positives = float(truth.sum() if total_positives is None else total_positives)
    if n is not None:
        positives = min(positives, n)
    found = _ranked_precision(
        values[0][kept],
        truth[0][kept],
        np.zeros(len(kept), dtype=np.intp),
        np.array([positives], dtype=np.float64),
    )
    return float(found[0])


def segment_map_at_k(
    ranked: Mapping[int, Sequence[str]],
    ratings: Mapping[int, Mapping[str, bool]],
    k: int = 100_000,
) -> float:
    """MAP@K of the 2019 challenge, in which only some segments were rated for each class.

    A class' list is cut at k first, then segments that nobody rated for it are removed, then
    ranks are counted; the denominator is the number of positive ratings. Mean over the classes
    of `ranked` that have a positive rating: the published script ends with a KeyError on the
    others. A segment that is listed twice counts at its first place.

    Args:
        ranked: class to segment ids ("id:start"), surest first.
        ratings: class to segment id to whether a person found the class in the segment.
    """
    found: list[float] = []
    for label, segments in ranked.items():
        rated = ratings.get(label, {})
        positives = sum(rated.values())
        if positives == 0:
            continue
        known = [rated[segment] for segment in dict.fromkeys(segments[:k]) if segment in rated]
        hits = np.array(known, dtype=bool)
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        found.append(float(precision[hits].sum() / positives))
    return float(np.mean(found)) if found else 0.0


def f1_at(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    *,
    average: Literal["micro", "macro"] = "micro",
) -> float:
    """F1 of the tags whose score is at least their threshold.

    Args:
        thresholds: one number, or one per label [C].
        average: over all pairs ("micro"), or mean over the labels that have a positive.
    """
    values, truth = _checked(scores, labels)
    chosen = values >= np.asarray(thresholds, dtype=np.float64)
    right, given, true = (m.sum(axis=0) for m in (chosen & truth, chosen, truth))
    if average == "micro":
        return float(2 * right.sum() / max(1, given.sum() + true.sum()))
    if average != "macro":
        raise ValueError(f"average must be 'micro' or 'macro', got {average!r}")
    rated = true > 0
    return float((2 * right[rated] / (given[rated] + true[rated])).mean()) if rated.any() else 0.0


def expected_calibration_error(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Mean gap between what scores promise and what comes true, over all (clip, label) pairs.

    Equal-width bins on [0, 1], each weighted by its pairs (Guo et al., arXiv 1706.04599, eq. 3,
    applied to every label as a yes-or-no question).

    Raises:
        ValueError: a score is outside 0..1, so that it promises nothing.
    """
    values, truth = _checked(scores, labels)
    if not values.size:
        return 0.0
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"scores must be 0..1, got {values.min()} to {values.max()}")
    at = np.minimum((values.ravel() * bins).astype(np.intp), bins - 1)
    gap = np.bincount(at, values.ravel(), bins) - np.bincount(at, truth.ravel(), bins)
    return float(np.abs(gap).sum() / values.size)


def bootstrap_interval(
    metric: Metric,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Lower and upper end of the percentile interval of a metric under resampling of clips."""
    values, truth = _checked(scores, labels)
    if not len(values):
        return 0.0, 0.0
    random = np.random.default_rng(seed)
    draws = [
        metric(values[rows], truth[rows])
        for rows in (random.integers(0, len(values), len(values)) for _ in range(rounds))
    ]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def best_f1_thresholds(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, default: float = 0.5
) -> Floats:
    """Threshold of each label with the best F1, float64 [C]; `default` without a positive.

    Half-way between the last score that counts and the next lower one (or 0): on few clips
    the gap between them is wide and the middle is the fairest guess.
    """
    found = []
    for cuts in _cuts_per_label(scores, labels):
        f1 = 2 * cuts.hits / (cuts.taken + cuts.positives)
        found.append(cuts.threshold(int(f1.argmax())) if cuts.positives else default)
    return np.array(found, dtype=np.float64)


def precision_thresholds(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, precision: float, unreachable: float = 1.0
) -> Floats:
    """Threshold of each label with the best recall at `precision` or better, float64 [C].

    Where no threshold reaches that precision the answer is `unreachable`: the tag stays silent.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1, got {precision}")
    found = []
    for cuts in _cuts_per_label(scores, labels):
        usable = np.where(cuts.hits / cuts.taken >= precision, cuts.hits, 0)
        found.append(cuts.threshold(int(usable.argmax())) if usable.any() else unreachable)
    return np.array(found, dtype=np.float64)


# Name to function, for reports and for the command line.
METRICS: Final[dict[str, Metric]] = {
    "gap": gap_at_k,
    "map": mean_average_precision,
    "hit_at_one": hit_at_one,
    "perr": perr,
}


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape:
        raise ValueError(
            f"scores and labels must both be [N, C], got {values.shape} and {truth.shape}"
        )
    if np.isnan(values).any():
        raise ValueError("scores hold NaN; the network that made them is broken")
    return values, truth > 0


def _top_pairs(
    values: Floats, truth: NDArray[np.bool_], k: int
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """Score, hit and label index of the k best pairs of every clip, flat [N * min(k, C)]."""
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    if k >= values.shape[1]:
        at = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    else:
        at = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(values, at, axis=1).ravel(),
        np.take_along_axis(truth, at, axis=1).ravel(),
        at.ravel().astype(np.intp),
    )


def _ranked_precision(
    values: Floats, hits: NDArray[np.bool_], groups: NDArray[np.intp], positives: Floats
) -> Floats:
    """Average precision of every group's ranking, float64 [G]; 0 where `positives` is 0."""
    if not len(values):
        return np.zeros(len(positives))
    order = np.lexsort((-values, groups))
    values, hits, groups = values[order], hits[order], groups[order]
    new_group = np.r_[True, groups[1:] != groups[:-1]]
    start = np.maximum.accumulate(np.where(new_group, np.arange(len(values)), 0))
    before: NDArray[np.int64] = (
        np.cumsum(hits) - hits
    )  # hits ahead of each item, all groups together
    # Every item of a tie is counted where its tie ends.
    last = np.r_[new_group[1:] | (values[1:] != values[:-1]), True]
    ends = np.flatnonzero(last)
    end = ends[np.searchsorted(ends, np.arange(len(values)))]
    precision = (before[end] + hits[end] - before[start]) / (end - start + 1)
    gained = np.bincount(groups, weights=precision * hits, minlength=len(positives))
    found: Floats = np.divide(
        gained, positives, out=np.zeros(len(positives)), where=np.asarray(positives) > 0
    )
    return found


@dataclass(frozen=True)
class _Cuts:
    """What each distinct score of one label gives as a threshold, from the highest down."""

    scores: Floats
    hits: Floats  # positives at or above
    taken: Floats  # clips at or above
    positives: int

    def threshold(self, at: int) -> float:
        """Half-way between the score at `at` and the next lower one (or 0)."""
        here = self.scores[at]
        below = self.scores[at + 1] if at + 1 < len(self.scores) else min(0.0, here)
        middle = float((here + below) / 2)
        # Two neighbouring floats have no middle: the lower one would let the next score in.
        return middle if middle > below else float(here)


def _cuts_per_label(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Iterator[_Cuts]:
    values, truth = _checked(scores, labels)
    for column, true in zip(values.T, truth.T, strict=True):
        order = np.argsort(-column, kind="stable")
        ordered, hits = column[order], np.cumsum(true[order])
        last = np.flatnonzero(
            np.r_[ordered[1:] != ordered[:-1], np.ones(min(1, len(ordered)), bool)]
        )
        yield _Cuts(
            ordered[last],
            hits[last].astype(np.float64),
            (last + 1).astype(np.float64),
            int(true.sum()),
        )
