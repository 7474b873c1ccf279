"""The commands around features and learning: train, eval, extract, export, average, ensemble."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtag.cli_flags import add_corrections_flag
from vtag.cli_learning_data import (
    dataset_of,
    model_folder,
    shards_of,
    stream_notes,
    vocabulary_of,
)
from vtag.cli_progress import say
from vtag.errors import ConfigError, MediaError
from vtag.records import Features
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.dataset import Dataset
    from vtag.dataset_items import DatasetError
    from vtag.models.checkpoint import Checkpoint
    from vtag.score_model import Figures
    from vtag.tagger import Pipeline
    from vtag.train_config import TrainConfig
    from vtag.train_result import TrainResult

Item = TypeVar("Item")
# Spelled out, because `vtag.train_config` brings torch and this is needed for `--help`.
PRESET_NAMES = ("small-data", "medium", "paper", "nextvlad", "blog")


def train_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Labelled clips in, a model folder out."""
    from vtag.dataset_items import DatasetError
    from vtag.signals import stop_on_signals
    from vtag.tagger import resolve_device
    from vtag.train import check_places, startable, train

    out = Path(args.out)
    check_places(out, resume=args.resume)
    with stop_on_signals() as stop:
        start = _checkpoint(args.start)
        teacher = _checkpoint(args.teacher)
        if start is not None:
            startable(start)  # before features are made
            args.model = args.start  # its features are needed, not those of the default model
        try:
            dataset = dataset_of(args, open_pipeline, progress=_progress(args))
        except DatasetError as err:
            return _say_problems(err)
        for note in dataset.notes:
            say(f"note: {note}")
        config = _train_config(args, dataset, start)
        say(
            f"training {config.preset} on {len(dataset.train)} clips, validating on "
            f"{len(dataset.validation)}, {len(dataset.label_ids)} labels"
        )
        result = train(
            config,
            dataset,
            out,
            start=start,
            teacher=teacher,
            device=resolve_device(args.device),
            resume=args.resume,
            should_stop=stop,
        )
    if stop():
        say("stopped; the same command with --resume goes on")
        return stop.exit_status
    if result is not None:  # else another process of torchrun tells it
        _print_result(result)
    return 0


def eval_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Labelled clips against a model's scores."""
    from vtag.dataset_items import DatasetError
    from vtag.kaggle import write_video_submission

    try:
        figures = _figures(args, open_pipeline)
    except DatasetError as err:
        return _say_problems(err)
    for line in figures.left_out:
        say(f"left out: {printable(line)}")
    if args.submission:
        write_video_submission(Path(args.submission), figures.names, figures.scores)
        say(f"submission: {printable(args.submission)}")
    if args.json:
        found = {"clips": figures.clips, "values": dict(figures.values)}
        print(json.dumps({**found, "intervals": dict(figures.intervals)}))
    else:
        print(f"{figures.clips} clips:")
        _print_figures(figures.values, figures.intervals)
    return 1 if figures.left_out else 0


def _figures(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> Figures:
    from vtag.dataset_items import check_items, read_items
    from vtag.head import load_head
    from vtag.score_model import score_model, score_shards

    shards = shards_of(Path(args.data))
    if shards:
        return score_shards(load_head(args.model), shards, vocabulary_of(args), k=args.k)
    if args.submission:
        raise ConfigError(f"{args.data}: a submission is of YouTube-8M shards, not of own clips")
    items = read_items(Path(args.data))
    if args.split:
        items = tuple(item for item in items if item.split == args.split)
        if not items:
            raise ConfigError(f"{args.data}: no clip is in the split {args.split!r}")
    elif learnt := sum(item.split == "train" for item in items):
        say(
            f"note: {learnt} of these {len(items)} clips are marked for training; figures flatter "
            "on what was learnt (--split test, or validation, leaves them out)"
        )
    check_items(items, to_learn=False)
    with open_pipeline() as pipeline:
        for note in stream_notes(items, pipeline.head):
            say(f"note: {note}")
        features = _progress(args)([item.path for item in items], pipeline)
        return score_model(
            pipeline.head, items, features, k=args.k, only_given=args.only_given_labels
        )


def export_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """A model as one ONNX file, compared with the model itself before it is kept."""
    from vtag.export_onnx import export_onnx

    difference = export_onnx(model_folder(args.name), Path(args.onnx))
    say(f"{printable(args.onnx)}: written; largest difference from torch {difference:.1e}")
    return 0


def average_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """The mean of the weights of several models of one training, as a model."""
    from dataclasses import replace

    from vtag.models.checkpoint import load_checkpoint, save_checkpoint
    from vtag.models.combine import average_checkpoints

    out = _place_for_combined(args)
    mean = average_checkpoints([load_checkpoint(model_folder(name)) for name in args.names])
    fingerprint = save_checkpoint(out, replace(mean, name=out.name))
    say(f"{printable(args.out)}: mean of {len(args.names)} models ({fingerprint})")
    return 0


def ensemble_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Several models as one that gives the weighted mean of their scores."""
    from vtag.models.checkpoint import load_checkpoint, save_checkpoint
    from vtag.models.combine import ensemble_checkpoints

    out = _place_for_combined(args)
    members = [load_checkpoint(model_folder(name)) for name in args.names]
    made = ensemble_checkpoints(members, name=out.name, weights=_weights(args.weights))
    fingerprint = save_checkpoint(out, made)
    say(f"{printable(args.out)}: ensemble of {len(args.names)} models ({fingerprint})")
    return 0


def _place_for_combined(args: argparse.Namespace) -> Path:
    """`--out`; raises ConfigError where a model that was trained, or is combined, lies there."""
    from vtag.train_result import REPORT_FILE

    out = Path(args.out)
    members = {os.path.realpath(name) for name in args.names}
    if os.path.realpath(out) in members or (out / REPORT_FILE).exists():
        raise ConfigError(f"{out}: is a trained model; name a new folder")
    return out


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError as err:
        raise ConfigError(f"--weights are numbers such as 2,1, got {text!r}") from err


def extract_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Features only: into the cache, and one .npz per file where asked."""
    import io

    import numpy as np

    from vtag.discover import Discovery, find_inputs
    from vtag.storage import write_whole

    failed = done = 0
    with open_pipeline() as pipeline:
        for path in _bar(find_inputs(args.inputs, Discovery()), args):
            try:
                clip = pipeline.features(path)
            except MediaError as err:
                failed += 1
                say(f"{printable(str(err))} [{err.code}]")
                continue
            done += 1
            if args.out:
                buffer = io.BytesIO()
                arrays: dict[str, Any] = {}
                for stream, features in clip.streams.items():
                    arrays |= {stream: features.rows, f"{stream}_seconds": features.seconds}
                np.savez(buffer, **arrays)
                target = Path(args.out) / f"{clip.content_id.removeprefix('sha256:')}.npz"
                target.parent.mkdir(parents=True, exist_ok=True)
                write_whole(target, buffer.getvalue(), mode=None)
                print(
                    json.dumps({"path": str(path), "id": clip.content_id, "features": str(target)})
                )
    say(f"{done + failed} inputs, {done} with features, {failed} failed")
    return 1 if failed else 0


def add_commands(
    command: Callable[..., argparse.ArgumentParser], flags: Callable[..., None]
) -> None:
    """Adds the parsers; `command(name, run, help)` makes one, `flags` adds shared flags."""
    train = command("train", train_command, "teach your own tags from labelled clips")
    train.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="a folder per tag, a .csv or .jsonl table (path, labels, split, group, "
        "features.NAME: a .npy or .npz file per clip), "
        "or a folder of YouTube-8M TFRecords",
    )
    train.add_argument("--out", required=True, metavar="MODEL", help="folder for the model")
    add_corrections_flag(train, "learn from what you corrected in the report, with or without DATA")
    train.add_argument("--preset", choices=PRESET_NAMES, help="default: by the number of clips")
    train.add_argument("--start", metavar="MODEL", help="fine-tune this model folder")
    kinds = train.add_mutually_exclusive_group()
    kinds.add_argument(
        "--single-label",
        action="store_true",
        default=None,
        help="a clip has exactly one tag (default: if every clip given has)",
    )
    kinds.add_argument("--multi-label", dest="single_label", action="store_false")
    train.add_argument(
        "--class-weights", action="store_true", help="rare tags count more than frequent ones"
    )
    train.add_argument("--teacher", metavar="MODEL", help="learn from this model's scores too")
    train.add_argument(
        "--streams", metavar="visual,audio", help="learn from these only (default: all there are)"
    )
    train.add_argument("--epochs", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--patience", type=int)
    train.add_argument("--seed", type=int)
    train.add_argument(
        "--validation", type=float, default=0.2, metavar="SHARE", help="held out (default: 0.2)"
    )
    train.add_argument("--validation-data", metavar="DIR", help="TFRecords to validate on")
    train.add_argument("--vocabulary", metavar="CSV", help="YouTube-8M's vocabulary.csv")
    train.add_argument("--resume", action="store_true", help="go on with a stopped training")
    train.add_argument("--batch-size", type=int, help="clips per step")
    flags(train, batch_size=False)

    evaluate = command("eval", eval_command, "measure a model on labelled clips")
    evaluate.add_argument("data", metavar="DATA", help="as for train")
    evaluate.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        help="only the clips that the table marks so (default: all)",
    )
    evaluate.add_argument("--k", type=int, default=20, help="for GAP@k and mAP@k")
    evaluate.add_argument("--json", action="store_true")
    evaluate.add_argument(
        "--only-given-labels",
        action="store_true",
        help="leave out labels that no clip has: for a model that knows more than the table says",
    )
    evaluate.add_argument("--vocabulary", metavar="CSV", help="YouTube-8M's vocabulary.csv")
    evaluate.add_argument(
        "--submission", metavar="FILE", help="also write the scores as a Kaggle submission"
    )
    flags(evaluate)

    extract = command("extract", extract_command, "make features only, into the cache")
    extract.add_argument("inputs", nargs="+", metavar="FOLDER|FILE")
    extract.add_argument("--out", metavar="DIR", help="also write one .npz per file there")
    flags(extract)

    export = command("export", export_command, "write a model as an ONNX file")
    export.add_argument("name", metavar="MODEL", help="a folder, or the name of an embedded model")
    export.add_argument("--onnx", required=True, metavar="FILE")

    average = command("average", average_command, "average the weights of models of one training")
    average.add_argument("names", nargs="+", metavar="MODEL")
    average.add_argument("--out", required=True, metavar="MODEL")

    ensemble = command(
        "ensemble", ensemble_command, "make one model of several: the weighted mean of their scores"
    )
    ensemble.add_argument("names", nargs="+", metavar="MODEL")
    ensemble.add_argument("--weights", metavar="2,1", help="one per model (default: equal)")
    ensemble.add_argument("--out", required=True, metavar="MODEL")


def _progress(
    args: argparse.Namespace,
) -> Callable[[Iterable[Path], Pipeline], Callable[[Path], Mapping[str, Features]]]:
    """Makes `pipeline.features` move a bar once per clip."""
    from tqdm import tqdm

    def watch(
        paths: Iterable[Path], pipeline: Pipeline
    ) -> Callable[[Path], Mapping[str, Features]]:
        waiting = set(paths)
        shown = sys.stderr.isatty() and not args.quiet
        bar = tqdm(total=len(waiting), unit="clip", disable=not shown, file=sys.stderr)

        def features_for(path: Path) -> Mapping[str, Features]:
            streams = pipeline.features(path).streams
            if path in waiting:
                waiting.discard(path)
                bar.update()
                if not waiting:
                    bar.close()
            return streams

        return features_for

    return watch


def _train_config(
    args: argparse.Namespace, dataset: Dataset, start: Checkpoint | None
) -> TrainConfig:
    from vtag.models.losses import LossConfig
    from vtag.train_config import default_preset, preset

    name = args.preset or default_preset(dataset)
    single = args.single_label
    if single is None and start is not None:
        single = start.config.output == "single_label"
    elif single is None:
        single = name not in ("paper", "nextvlad") and all(
            len(s.labels) == 1 for s in (*dataset.train, *dataset.validation, *dataset.test)
        )
    changes = {
        key: getattr(args, key)
        for key in ("epochs", "batch_size", "learning_rate", "seed", "patience")
        if getattr(args, key) is not None
    }
    kind = ("balanced_" if args.class_weights else "") + ("cross_entropy" if single else "bce")
    loss = LossConfig(kind=kind, expert_l2=preset(name).loss.expert_l2)  # type: ignore[arg-type]
    output = "single_label" if single else "multi_label"
    return preset(name, output=output, loss=loss, **changes)


def _checkpoint(model: str | None) -> Checkpoint | None:
    from vtag.models.checkpoint import load_checkpoint

    return None if model is None else load_checkpoint(model_folder(model))


def _print_result(result: TrainResult) -> None:
    for side in result.report.sides:
        print(f"{side.name}:")
        _print_figures(side.figures, side.intervals)
    print(f"\n{'label':<32} {'clips':>6} {'AP':>6} {'threshold':>10}")
    for label in result.report.weakest_first():
        precision = "-" if label.average_precision is None else f"{label.average_precision:.3f}"
        print(
            f"{printable(label.name):<32} {label.train_clips:>6} {precision:>6} "
            f"{label.threshold:>10.2f}"
        )
    for confusion in result.report.confusions[:5]:
        true, said = printable(confusion.true), printable(confusion.said)
        print(f"taken for {said}: {confusion.clips} of {true}")
    for line in result.report.advice:
        print(f"\n{line}")
    print(
        f"\nmodel: {printable(str(result.folder))} ({result.fingerprint}); "
        f"report: {printable(str(result.folder / 'report.html'))}"
    )


def _say_problems(err: DatasetError) -> int:
    """Every problem on a line of its own; the exit status of wrong usage."""
    for problem in err.problems:
        say(printable(problem))
    return 2


def _bar(items: Iterable[Item], args: argparse.Namespace) -> Iterable[Item]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not args.quiet
    bar: Iterable[Item] = tqdm(items, unit="file", disable=not shown, file=sys.stderr)
    return bar


def _print_figures(
    values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> None:
    for name, value in values.items():
        low, high = intervals.get(name, (None, None))
        span = "" if low is None else f"  ({low:.3f} to {high:.3f})"
        print(f"  {name:<20} {value:.3f}{span}")
