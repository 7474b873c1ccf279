"""What the learning commands are given: labelled clips, YouTube-8M shards, models by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vtag.errors import ConfigError
from vtag.records import Features

if TYPE_CHECKING:
    from vtag.dataset import Dataset
    from vtag.dataset_items import Item
    from vtag.head import Head
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
    from vtag.dataset_streams import check_file_streams, check_fit, with_streams
    from vtag.train_config import check_streams

    if not args.data and not args.corrections:
        raise ConfigError("nothing to learn from: name DATA, or --corrections FILE")
    data = Path(args.data or "")
    shards = shards_of(data) if args.data else []
    if shards:
        if args.corrections:
            raise ConfigError("--corrections are of clips, and YouTube-8M shards hold none")
        held_out = shards_of(Path(args.validation_data)) if args.validation_data else []
        return youtube8m_dataset(
            shards,
            held_out,
            vocabulary=vocabulary_of(args),
            held_out=0.0 if held_out else args.validation,
            seed=args.seed or 0,
        )
    items = read_items(data) if args.data else ()
    items, notes = _corrected(args, items)
    if args.streams:
        items = with_streams(items, args.streams.split(","))
    # Before the model is loaded and features are made.
    check_items(items)
    dims = check_file_streams(items)
    if args.preset and not args.start:
        check_streams(args.preset, dims)
    with open_pipeline() as pipeline:
        chosen = _chosen_streams(args, pipeline, dims)
        if args.start:
            check_fit(dims, pipeline.head.file_streams, pipeline.head.info.name)
        every = progress([item.path for item in items], pipeline)

        def features_for(path: Path) -> Mapping[str, Features]:
            return {stream: rows for stream, rows in every(path).items() if stream in chosen}

        dataset = build_dataset(
            items,
            features_for,
            content_id=pipeline.content_id,
            validation=args.validation,
            seed=args.seed or 0,
            sampling=pipeline.sampling.fingerprint(),
        )
    return replace(dataset, notes=(*notes, *dataset.notes))


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


def stream_notes(items: Sequence[Item], head: Head) -> list[str]:
    """What to know of streams that only the clips have, or only the model."""
    there = {stream for item in items for stream in item.features}
    ignored = sorted(there - set(head.file_streams))
    return [
        *(
            f"the model {head.info.name} does not read {stream} rows; left out"
            for stream in ignored
        ),
        *head.notes(there),
    ]


def _corrected(
    args: argparse.Namespace, items: tuple[Item, ...]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The clips as `--corrections` says, and what to know of that."""
    from vtag.cli_flags import open_cache
    from vtag.content_id import ContentIds
    from vtag.corrections import read_corrections
    from vtag.dataset_corrections import corrected_items

    if not args.corrections:
        return items, ()
    files = [Path(name) for name in args.corrections]
    content_ids = ContentIds(None if args.no_cache else open_cache(args).root)
    return corrected_items(
        items,
        read_corrections(files),
        content_id=content_ids.of,
        folders=[Path(), *(file.parent for file in files)],
    )


def _chosen_streams(
    args: argparse.Namespace, pipeline: Pipeline, of_files: Collection[str]
) -> set[str]:
    """Streams to learn from; those of the clips must be rows that the pipeline makes."""
    of_clips = set(pipeline.head.extractor_names)
    there = of_clips | set(of_files)
    wanted = set(args.streams.split(",")) if args.streams else there
    if not wanted <= there:
        raise ConfigError(
            f"no stream {min(wanted - there)!r}; the model {pipeline.head.info.name} and the table "
            f"have {', '.join(sorted(there))}"
        )
    if not wanted & of_clips:
        raise ConfigError(
            f"{', '.join(sorted(wanted))} alone can not be learnt from: a model tags what it sees "
            f"or hears; add {' or '.join(sorted(of_clips))}"
        )
    return wanted
