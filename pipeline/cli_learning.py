"""`vtag train`, `vtag eval` and `vtag extract`: the commands around features and learning."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtag.errors import ConfigError, MediaError
from vtag.records import Features
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.dataset import Dataset
    from vtag.tagger import Pipeline

Item = TypeVar("Item")
# Spelled out, because `vtag.train_config` brings torch and this is needed for `--help`.
PRESET_NAMES = ("small-data", "paper", "nextvlad", "blog")
SHARD_SUFFIXES = (".tfrecord", ".tfrecord.gz")


def train_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Labelled clips in, a model folder out."""
    from vtag.models.checkpoint import load_checkpoint
    from vtag.signals import stop_on_signals
    from vtag.tagger import resolve_device
    from vtag.train import train
    from vtag.train_config import default_preset, preset

    out = Path(args.out)
    with stop_on_signals() as stop:
        dataset = _dataset(args, open_pipeline)
        for note in dataset.notes:
            _say(f"note: {note}")
        changes = {
            name: getattr(args, name)
            for name in ("epochs", "batch_size", "learning_rate", "seed", "patience")
            if getattr(args, name) is not None
        }
        if args.single_label:
            changes["output"] = "single_label"
            changes["loss"] = _cross_entropy()
        config = preset(args.preset or default_preset(dataset), **changes)
        start = load_checkpoint(Path(args.start)) if args.start else None
        _say(
            f"training {config.preset} on {len(dataset.train)} clips, validating on "
            f"{len(dataset.validation)}, {len(dataset.label_ids)} labels"
        )
        result = train(
            config,
            dataset,
            out,
            start=start,
            device=resolve_device(args.device),
            resume=args.resume,
            should_stop=stop,
        )
    if result is None:
        _say("stopped; the same command with --resume goes on")
        return stop.exit_status
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
    for line in result.report.advice:
        print(f"\n{line}")
    print(f"\nmodel: {printable(str(out))} ({result.fingerprint}); report: {out / 'report.html'}")
    return 0


def eval_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Labelled clips against a model's scores."""
    from vtag.dataset_items import check_items, read_items
    from vtag.score_model import score_model

    items = read_items(Path(args.data))
    if args.split:
        items = tuple(item for item in items if item.split == args.split)
        if not items:
            raise ConfigError(f"{args.data}: no clip is in the split {args.split!r}")
    check_items(items)
    with open_pipeline() as pipeline:
        paths = {item.path: item for item in items}
        features = _with_progress(paths, pipeline, args)
        figures = score_model(pipeline.head, items, features, k=args.k)
    for line in figures.left_out:
        _say(f"left out: {printable(line)}")
    if args.json:
        found = {"clips": figures.clips, "values": dict(figures.values)}
        print(json.dumps({**found, "intervals": dict(figures.intervals)}))
    else:
        print(f"{figures.clips} clips:")
        _print_figures(figures.values, figures.intervals)
    return 1 if figures.left_out else 0


def extract_command(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> int:
    """Features only: into the cache, and one .npz per file where asked."""
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
                _say(f"{printable(str(err))} [{err.code}]")
                continue
            done += 1
            if args.out:
                import io

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
    _say(f"{done + failed} inputs, {done} with features, {failed} failed")
    return 1 if failed else 0


def add_commands(
    command: Callable[..., argparse.ArgumentParser], flags: Callable[..., None]
) -> None:
    """Adds the three parsers; `command(name, run, help)` makes one, `flags` adds shared flags."""
    train = command("train", train_command, "teach your own tags from labelled clips")
    train.add_argument(
        "data",
        metavar="DATA",
        help="a folder per tag, a .csv or .jsonl table (path, labels, split, group), "
        "or a folder of YouTube-8M TFRecords",
    )
    train.add_argument("--out", required=True, metavar="MODEL", help="folder for the model")
    train.add_argument("--preset", choices=PRESET_NAMES, help="default: by the number of clips")
    train.add_argument("--start", metavar="MODEL", help="fine-tune this model folder")
    train.add_argument("--single-label", action="store_true", help="exactly one tag per clip")
    train.add_argument("--epochs", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--patience", type=int)
    train.add_argument("--seed", type=int)
    train.add_argument("--validation", type=float, default=0.2, help="share held out (0.2)")
    train.add_argument("--validation-data", metavar="DIR", help="TFRecords to validate on")
    train.add_argument("--vocabulary", metavar="CSV", help="YouTube-8M's vocabulary.csv")
    train.add_argument("--resume", action="store_true", help="go on with a stopped training")
    train.add_argument("--batch-size", type=int, help="clips per step")
    flags(train, batch_size=False)

    evaluate = command("eval", eval_command, "measure a model on labelled clips")
    evaluate.add_argument("data", metavar="DATA", help="as for train")
    evaluate.add_argument("--split", choices=["train", "validation", "test"])
    evaluate.add_argument("--k", type=int, default=20, help="for GAP@k and mAP@k")
    evaluate.add_argument("--json", action="store_true")
    flags(evaluate)

    extract = command("extract", extract_command, "make features only, into the cache")
    extract.add_argument("inputs", nargs="+", metavar="FOLDER|FILE")
    extract.add_argument("--out", metavar="DIR", help="also write one .npz per file there")
    flags(extract)


def _dataset(args: argparse.Namespace, open_pipeline: Callable[[], Pipeline]) -> Dataset:
    from vtag.dataset import build_dataset, youtube8m_dataset
    from vtag.dataset_items import check_items, read_items
    from vtag.youtube8m import read_vocabulary

    data = Path(args.data)
    shards = _shards(data)
    if shards:
        held_out = _shards(Path(args.validation_data)) if args.validation_data else []
        if not held_out:
            count = max(1, round(args.validation * len(shards)))
            if count >= len(shards):
                raise ConfigError(
                    f"{data}: one shard can not be both learnt from and validated on; "
                    "name others with --validation-data"
                )
            shards, held_out = shards[:-count], shards[-count:]
        vocabulary = read_vocabulary(Path(args.vocabulary)) if args.vocabulary else None
        return youtube8m_dataset(shards, held_out, vocabulary=vocabulary)
    items = read_items(data)
    check_items(items)  # before the model is loaded and features are made
    with open_pipeline() as pipeline:
        return build_dataset(
            items,
            _with_progress({item.path: item for item in items}, pipeline, args),
            content_id=pipeline.content_id,
            validation=args.validation,
            seed=args.seed or 0,
            sampling=pipeline.sampling.fingerprint(),
        )


def _shards(folder: Path) -> list[Path]:
    if folder.is_file() and folder.name.endswith(SHARD_SUFFIXES):
        return [folder]
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.name.endswith(SHARD_SUFFIXES))


def _with_progress(
    paths: Iterable[Path], pipeline: Pipeline, args: argparse.Namespace
) -> Callable[[Path], Mapping[str, Features]]:
    """`pipeline.features` that moves a bar once per clip."""
    from tqdm import tqdm

    total = len(list(paths))
    shown = sys.stderr.isatty() and not args.quiet
    bar = tqdm(total=total, unit="clip", disable=not shown, file=sys.stderr, desc="features")
    seen: set[Path] = set()

    def features_for(path: Path) -> Mapping[str, Features]:
        streams = pipeline.features(path).streams
        if path not in seen:
            seen.add(path)
            bar.update()
            if len(seen) == total:
                bar.close()
        return streams

    return features_for


def _bar(items: Iterable[Item], args: argparse.Namespace) -> Iterable[Item]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not args.quiet
    bar: Iterable[Item] = tqdm(items, unit="file", disable=not shown, file=sys.stderr)
    return bar


def _cross_entropy() -> object:
    from vtag.models.losses import LossConfig

    return LossConfig(kind="cross_entropy")


def _print_figures(
    values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> None:
    for name, value in values.items():
        low, high = intervals.get(name, (None, None))
        span = "" if low is None else f"  ({low:.3f} to {high:.3f})"
        print(f"  {name:<20} {value:.3f}{span}")


def _say(text: str) -> None:
    print(f"vtag: {text}", file=sys.stderr)
