"""What the learning commands are given: labelled clips, YouTube-8M shards, models by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vtag.errors import ConfigError
from vtag.records import Features

if TYPE_CHECKING:
    from vtag.dataset import Dataset
    from vtag.tagger import Pipeline
    from vtag.youtube8m import VocabularyEntry

FeaturesFor = Callable[[Path], Mapping[str, Features]]
SHARD_SUFFIXES: Final = (".tfrecord", ".tfrecord.gz")


def dataset_of(
    args: argparse.Namespace,
    open_pipeline: Callable[[], Pipeline],
    *,
    progress: Callable[[Iterable[Path], Pipeline], FeaturesFor],
) -> Dataset:
    """The dataset that `vtag train` was given, with its features.

    Args:
        progress: gives the features of the clips and tells how far that has come.

    Raises:
        DatasetError: it can not be learnt from; lists all problems.
    """
    from vtag.dataset import build_dataset, youtube8m_dataset
    from vtag.dataset_items import check_items, read_items

    data = Path(args.data)
    shards = shards_of(data)
    if shards:
        held_out = shards_of(Path(args.validation_data)) if args.validation_data else []
        return youtube8m_dataset(
            shards,
            held_out,
            vocabulary=vocabulary_of(args),
            held_out=0.0 if held_out else args.validation,
            seed=args.seed or 0,
        )
    items = read_items(data)
    check_items(items)  # before the model is loaded and features are made
    with open_pipeline() as pipeline:
        chosen = _chosen_streams(args, pipeline)
        every = progress([item.path for item in items], pipeline)

        def features_for(path: Path) -> Mapping[str, Features]:
            return {stream: rows for stream, rows in every(path).items() if stream in chosen}

        return build_dataset(
            items,
            features_for,
            content_id=pipeline.content_id,
            validation=args.validation,
            seed=args.seed or 0,
            sampling=pipeline.sampling.fingerprint(),
        )


def shards_of(source: Path) -> list[Path]:
    """The TFRecord files of a folder, or the one that is named; none where there are none."""
    if source.is_file() and source.name.endswith(SHARD_SUFFIXES):
        return [source]
    if not source.is_dir():
        return []
    return sorted(file for file in source.iterdir() if file.name.endswith(SHARD_SUFFIXES))


def vocabulary_of(args: argparse.Namespace) -> Sequence[VocabularyEntry] | None:
    """What `--vocabulary` names; None without it."""
    from vtag.youtube8m import read_vocabulary

    return read_vocabulary(Path(args.vocabulary)) if args.vocabulary else None


def model_folder(name: str) -> Path:
    """The folder of a model that is embedded under this name, or is this folder."""
    import vtag.models
    from vtag.head import embedded_models

    if name in embedded_models():
        return Path(vtag.models.__file__).parent / "weights" / name
    if not Path(name).is_dir():
        raise ConfigError(
            f"no model {name!r}: it is neither a folder nor one of the embedded models "
            f"({', '.join(embedded_models()) or 'none'})"
        )
    return Path(name)


def _chosen_streams(args: argparse.Namespace, pipeline: Pipeline) -> set[str]:
    there = set(pipeline.head.extractors)
    wanted = set(args.streams.split(",")) if args.streams else there
    if not wanted <= there:
        raise ConfigError(
            f"no stream {min(wanted - there)!r}; the model {pipeline.head.info.name} reads "
            f"{', '.join(sorted(there))}"
        )
    return wanted
