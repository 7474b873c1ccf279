"""What a finished training leaves: thresholds, figures, and the model folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vtag.batches import truth_of
from vtag.dataset import Dataset, Sample
from vtag.errors import OutputError
from vtag.evaluate import (
    METRICS,
    average_precision_per_label,
    best_f1_thresholds,
    bootstrap_interval,
    expected_calibration_error,
    f1_at,
)
from vtag.models.checkpoint import Checkpoint, save_checkpoint
from vtag.models.labels import Label, LabelSet
from vtag.models.readout import Kind, OutputGroup, Readout
from vtag.models.tagger_net import TaggerNet
from vtag.records import Stream
from vtag.storage import reason, write_whole
from vtag.train_advice import advice
from vtag.train_config import TrainConfig
from vtag.train_curves import curves_png
from vtag.train_report import (
    Confusion,
    LabelFigures,
    Report,
    Side,
    model_card,
    report_html,
)
from vtag.train_state import Progress

HISTORY_FILE: Final = "history.jsonl"
CURVES_FILE: Final = "curves.png"
MAX_CONFUSIONS: Final = 20
REPORT_FILE: Final = "report.html"

# Fewer positives say too little about one label's threshold; it gets the one of all together.
MIN_POSITIVES: Final = 3
WINDOW_FRAMES: Final = 5  # seconds at the usual one frame a second: a segment of YouTube-8M
MAX_BOOTSTRAP_PAIRS: Final = 200_000  # 200 resamplings of more take minutes
BOOTSTRAP_ROUNDS: Final = 200

ScoresOf = Callable[[TaggerNet, Sequence[Sample]], tuple[NDArray[np.float32], float]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished training.

    Attributes:
        folder: of the model, its card, history, curves and report.
        fingerprint: of the model.
        report: all figures that the report shows.
    """

    folder: Path
    fingerprint: str
    report: Report


def finish(
    net: TaggerNet,
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    *,
    progress: Progress,
    scores_of: ScoresOf,
    kept: TaggerNet | None = None,
) -> TrainResult:
    """Fits thresholds on the validation clips and writes the model folder.

    Args:
        net: with its best weights.
        kept: the network that is written and tested where it is another one than `net`: one
            that has learnt from the validation clips too.
        scores_of: probabilities [N, C] and mean loss of samples.

    Raises:
        OutputError: the folder can not be written.
    """
    scores, _ = scores_of(net, dataset.validation)
    truth = truth_of(dataset.validation, len(dataset.label_ids))
    thresholds = fitted_thresholds(scores, truth)
    sides = [_side("validation", scores, truth, thresholds)]
    if dataset.test:
        test_scores, _ = scores_of(kept or net, dataset.test)
        test_truth = truth_of(dataset.test, len(dataset.label_ids))
        sides.append(_side("test", test_scores, test_truth, thresholds))
    report = Report(
        name=out.name,
        config=config,
        network=net.config,
        parameters=sum(p.numel() for p in net.parameters()),
        clips=_clips(dataset),
        streams={
            s: f"{d} columns by {dataset.made_by.get(s, '?')}" for s, d in dataset.dims.items()
        },
        history=tuple(progress.history),
        best_epoch=progress.best_epoch + 1,
        sides=tuple(sides),
        labels=_figures(dataset, scores, truth, thresholds),
        confusions=confusions(dataset.label_names, scores, truth),
        advice=advice(progress.history, progress.best_epoch, len(dataset.validation)),
        notes=dataset.notes,
    )
    fingerprint = save_checkpoint(out, _checkpoint(kept or net, dataset, report))
    history = "".join(json.dumps(row) + "\n" for row in progress.history)
    _write(out / HISTORY_FILE, history.encode())
    _write(out / CURVES_FILE, curves_png(progress.history, progress.best_epoch))
    _write(out / REPORT_FILE, report_html(report).encode())
    return TrainResult(folder=out, fingerprint=fingerprint, report=report)


def fitted_thresholds(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Threshold of each label with the best F1, float64 [C] in 0.0001..1.

    A label with fewer than `MIN_POSITIVES` positives takes the best threshold over all pairs.
    """
    common = best_f1_thresholds(scores.reshape(-1, 1), truth.reshape(-1, 1))[0]
    own = best_f1_thresholds(scores, truth)
    fitted = np.where(truth.sum(axis=0) >= MIN_POSITIVES, own, common)
    return np.clip(fitted.round(6), 1e-4, 1)


def confusions(
    names: Sequence[str], scores: NDArray[np.float32], truth: NDArray[np.bool_]
) -> tuple[Confusion, ...]:
    """What was most often taken for what: clips whose best-scored label is not one of theirs.

    A clip with several labels counts once for each.
    """
    best = scores.argmax(axis=1)
    wrong = ~truth[np.arange(len(truth)), best]
    pairs = Counter(
        (int(label), int(best[clip]))
        for clip in np.flatnonzero(wrong)
        for label in np.flatnonzero(truth[clip])
    )
    return tuple(
        Confusion(true=names[label], said=names[said], clips=clips)
        for (label, said), clips in pairs.most_common(MAX_CONFUSIONS)
    )


def _checkpoint(net: TaggerNet, dataset: Dataset, report: Report) -> Checkpoint:
    stream: Stream = "visual" if "visual" in dataset.dims else "audio"
    labels = LabelSet(
        Label(id=kind, name=figures.name, threshold=figures.threshold, stream=stream)
        for kind, figures in zip(dataset.label_ids, report.labels, strict=True)
    )
    kind: Kind = "softmax" if net.single_label else "sigmoid"
    readout = Readout(
        labels=labels,
        groups=(OutputGroup(outputs=len(labels), stream=stream, kind=kind),),
        window_frames=WINDOW_FRAMES,
        pool="network",
    )
    return Checkpoint(
        net=net,
        labels=labels.to_list(),
        name=report.name,
        extractors=dict(dataset.made_by),
        sampling=dataset.sampling,
        readout=readout.to_dict(),
        card=model_card(report),
    )


def _clips(dataset: Dataset) -> dict[str, int]:
    return {
        "training": len(dataset.train),
        "validation": len(dataset.validation),
        "test": len(dataset.test),
    }


def _side(
    name: str,
    scores: NDArray[np.float32],
    truth: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> Side:
    figures = {key: metric(scores, truth) for key, metric in METRICS.items()}
    figures["f1"] = f1_at(scores, truth, thresholds)
    figures["calibration_error"] = expected_calibration_error(scores, truth)
    intervals = {}
    if scores.size <= MAX_BOOTSTRAP_PAIRS:
        intervals = {
            key: bootstrap_interval(METRICS[key], scores, truth, rounds=BOOTSTRAP_ROUNDS)
            for key in ("gap", "map")
        }
    return Side(name, figures, intervals)


def _figures(
    dataset: Dataset,
    scores: NDArray[np.float32],
    truth: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> tuple[LabelFigures, ...]:
    precision = average_precision_per_label(scores, truth)
    chosen = scores >= thresholds
    right = (chosen & truth).sum(axis=0)
    return tuple(
        LabelFigures(
            name=name,
            train_clips=int(dataset.positives()[at]),
            checked_clips=int(truth[:, at].sum()),
            average_precision=None if np.isnan(precision[at]) else float(precision[at]),
            threshold=float(thresholds[at]),
            found=int(right[at]),
            wrong=int(chosen[:, at].sum() - right[at]),
        )
        for at, name in enumerate(dataset.label_names)
    )


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content, mode=None)
    except OSError as err:
        raise OutputError(f"{path}: can not be written ({reason(err)})") from err
