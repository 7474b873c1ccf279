"""How good a model is on labelled clips: the figures behind `vtag eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from vtag.dataset import MADE_BY_YOUTUBE8M
from vtag.dataset_items import DatasetError, Item
from vtag.dataset_streams import check_file_streams, check_fit, file_features, with_streams
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
from vtag.youtube8m import Video, VocabularyEntry, read_videos

MAX_BOOTSTRAP_PAIRS: Final = 200_000


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
    only_given: bool = False,
) -> Figures:
    """The figures of a model on labelled clips.

    Args:
        head: the model.
        items: the clips; their labels are ids or names of the model's labels. Streams from files
            that the model does not read are not looked at.
        features_for: rows per stream of a clip; one for which it raises MediaError is left out.
        k: for GAP@k and mAP@k.
        only_given: leave out the labels that no clip has: for a model that knows much more than
            the clips were labelled for, and may be right about it.

    Raises:
        DatasetError: a label is not one of the model's, rows from files do not fit it, or no clip
            can be used.
    """
    columns = _columns(head.labels, items)
    items = with_streams(items, head.file_streams)
    check_fit(check_file_streams(items), head.file_streams, head.info.name)
    places = sorted(set(columns.values())) if only_given else list(range(len(head.labels)))
    rows, truth, left_out, names = [], [], [], []
    for item in items:
        try:
            streams = {**features_for(item.path), **file_features(item)}
        except MediaError as err:
            left_out.append(str(err))
            continue
        rows.append(head.scores(streams)[places])
        wanted = {columns[label] for label in item.labels}
        truth.append([place in wanted for place in places])
        names.append(str(item.path))
    if not rows:
        raise DatasetError(["no clip can be used", *left_out])
    thresholds = np.array([head.labels[place].threshold for place in places])
    found = figures_of(np.stack(rows), np.array(truth), thresholds, k=k)
    return replace(found, left_out=tuple(left_out), names=tuple(names))


def score_shards(
    head: Head,
    shards: Sequence[Path],
    vocabulary: Sequence[VocabularyEntry] | None,
    *,
    k: int = 20,
) -> Figures:
    """The figures of a model that was trained on YouTube-8M, on other shards of it.

    Args:
        vocabulary: tells which label each class number is; None for a model that names its
            labels by class number.

    Raises:
        WeightsError: the model reads other rows than those of YouTube-8M.
        DatasetError: a class that the model does not know, or no video.
        MediaError: a shard can not be read.
    """
    head.check_extractors(MADE_BY_YOUTUBE8M)
    names = {entry.index: entry.id for entry in vocabulary or ()}
    at = {label.id: place for place, label in enumerate(head.labels)}
    unknown: set[int] = set()
    ids, rows, truth = [], [], []
    for shard in shards:
        for video in read_videos(shard):
            wanted = np.zeros(len(head.labels), dtype=bool)
            for number in video.labels:
                place = at.get(names.get(number, str(number)))
                if place is None:
                    unknown.add(number)
                else:
                    wanted[place] = True
            ids.append(video.id)
            truth.append(wanted)
            rows.append(head.scores(_features(video)))
    if unknown:
        raise DatasetError(
            [
                f"the model has no label for class {number}; give the vocabulary of its training"
                for number in sorted(unknown)[:5]
            ]
        )
    if not rows:
        raise DatasetError([f"{shards[0]}: holds no video"])
    thresholds = np.array([label.threshold for label in head.labels])
    found = figures_of(np.stack(rows), np.stack(truth), thresholds, k=k)
    return replace(found, names=tuple(ids))


def _features(video: Video) -> dict[str, Features]:
    return {
        stream: Features(
            rows.astype(np.float16),
            np.arange(len(rows), dtype=np.float64),
            MADE_BY_YOUTUBE8M[stream],
        )
        for stream, rows in video.rows.items()
    }


def figures_of(
    scores: NDArray[np.float32],
    labels: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    *,
    k: int,
) -> Figures:
    """The figures of scores [N, C] against labels [N, C].

    Args:
        thresholds: [C], for F1.
        k: for GAP@k and mAP@k.
    """
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
        # 300 resamplings of more pairs would take minutes.
        intervals={}
        if scores.size > MAX_BOOTSTRAP_PAIRS
        else {
            name: bootstrap_interval(metric, scores, labels, rounds=300)
            for name, metric in metrics.items()
        },
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
