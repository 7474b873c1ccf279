"""How good a model is on labelled clips: the figures behind `vtag eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from vtag.dataset_items import DatasetError, Item
from vtag.errors import MediaError
from vtag.evaluate import (
    bootstrap_interval,
    expected_calibration_error,
    f1_at,
    gap_at_k,
    hit_at_one,
    mean_average_precision,
    perr,
)
from vtag.head import Head
from vtag.models.labels import Label, LabelSet
from vtag.records import Features


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Scores of labelled clips against their labels.

    Attributes:
        clips: how many were scored.
        values: metric to value, all 0 to 1.
        intervals: metric to the ends of its 95 % bootstrap interval.
        left_out: one line for each clip that could not be used.
    """

    clips: int
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    left_out: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), repr=False)
    scores: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0), np.float32), repr=False
    )


def score_model(
    head: Head,
    items: Sequence[Item],
    features_for: Callable[[Path], Mapping[str, Features]],
    *,
    k: int = 20,
) -> Figures:
    """The figures of a model on labelled clips, over the labels that the clips have.

    Args:
        head: the model.
        items: the clips; their labels are ids or names of the model's labels.
        features_for: rows per stream of a clip; one for which it raises MediaError is left out.
        k: for GAP@k and mAP@k.

    Raises:
        DatasetError: a label is not one of the model's, or no clip can be used.
    """
    columns = _columns(head.labels, items)
    places = sorted(set(columns.values()))
    rows, truth, left_out, names = [], [], [], []
    for item in items:
        try:
            streams = features_for(item.path)
        except MediaError as err:
            left_out.append(str(err))
            continue
        rows.append(head.scores(streams)[places])
        wanted = {columns[label] for label in item.labels}
        truth.append([place in wanted for place in places])
        names.append(str(item.path))
    if not rows:
        raise DatasetError(["no clip can be used", *left_out])
    scores, labels = np.stack(rows), np.array(truth)
    thresholds = np.array([head.labels[place].threshold for place in places])
    metrics: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
        f"GAP@{k}": lambda s, t: gap_at_k(s, t, k),
        f"mAP@{k}": lambda s, t: mean_average_precision(s, t, k),
        "mAP": lambda s, t: mean_average_precision(s, t, None),
        "Hit@1": hit_at_one,
        "PERR": perr,
        "F1 (micro)": lambda s, t: f1_at(s, t, thresholds),
        "F1 (macro)": lambda s, t: f1_at(s, t, thresholds, average="macro"),
        "calibration error": expected_calibration_error,
    }
    return Figures(
        clips=len(scores),
        values={name: metric(scores, labels) for name, metric in metrics.items()},
        intervals={
            name: bootstrap_interval(metric, scores, labels, rounds=300)
            for name, metric in metrics.items()
        },
        left_out=tuple(left_out),
        names=tuple(names),
        scores=scores,
    )


def _columns(labels: LabelSet, items: Iterable[Item]) -> dict[str, int]:
    """Each label of the clips to its place among the model's."""
    found: dict[str, int] = {}
    unknown: set[str] = set()
    for item in items:
        for text in item.labels:
            try:
                label: Label = labels.find(text)
            except KeyError:
                unknown.add(text)
            else:
                found[text] = labels.index(label)
    if unknown:
        known = ", ".join(label.name for label in labels[:8])
        raise DatasetError(
            [f"the model has no label {text!r} (it has {known} …)" for text in sorted(unknown)]
        )
    return found
