"""What a network learns from: samples with feature rows and labels, on their sides of the split."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vtag.dataset_items import DatasetError, Item, Split, check_items
from vtag.dataset_split import merge_copies, split_items
from vtag.dataset_streams import check_file_streams, file_features
from vtag.errors import MediaError
from vtag.models.labels import Label, LabelSet
from vtag.records import Features
from vtag.tfrecord import RawRecord, read_record_at, read_records
from vtag.youtube8m import Video, VocabularyEntry, parse_video

log = logging.getLogger(__name__)

Rows: TypeAlias = Mapping[str, NDArray[np.float16]]
MEMORY_BYTES: Final = 1 << 30  # of rows kept in memory; what is beyond is loaded again each time
MADE_BY_YOUTUBE8M: Final = {
    "visual": "youtube8m-inception3-pca@2016",
    "audio": "youtube8m-vggish@2017",
}


@dataclass(frozen=True)
class Sample:
    """One clip to learn from.

    Attributes:
        name: for messages and reports: its path, or the id of a YouTube-8M video.
        labels: positions in `Dataset.label_ids`, rising.
        load: gives its rows, stream to float16 [T, D]; a stream that it lacks is left out.
        group: samples of one group are as good as copies; "" for a group of its own.
    """

    name: str
    labels: tuple[int, ...]
    load: Callable[[], Rows] = field(repr=False, compare=False)
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples with features of one kind.

    Attributes:
        label_ids, label_names: in the order of the network's outputs.
        dims: stream to its row size D.
        made_by: stream to the fingerprint of what made its rows.
        sampling: fingerprint of the sampling settings; "" where there are none.
        train, validation, test: no clip on two sides; test may be empty.
        aligned: whether all streams of a sample have the same T and the same times.
        notes: what the owner should know: skipped clips, merged copies, rare labels.
    """

    label_ids: tuple[str, ...]
    label_names: tuple[str, ...]
    dims: Mapping[str, int]
    made_by: Mapping[str, str]
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    sampling: str = ""
    aligned: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.train or not self.validation:
            raise DatasetError(
                [f"no clip is in the split {'validation' if self.train else 'train'!r}"]
            )
        if len(self.label_ids) != len(self.label_names) or not self.label_ids:
            raise DatasetError(["a dataset needs labels, each with an id and a name"])
        try:
            # A model would refuse such labels too, but only when it is trained.
            LabelSet(map(Label, self.label_ids, self.label_names))
        except ValueError as err:
            raise DatasetError([str(err)]) from err
        if not self.dims:
            raise DatasetError(["no clip has a stream that can be learnt from"])

    def fingerprint(self) -> str:
        """12 hex digits over labels, streams, and which sample is on which side."""
        digest = hashlib.sha256()
        sides = (self.train, self.validation, self.test)
        for part in (self.label_ids, sorted(self.dims.items()), sorted(self.made_by.items())):
            digest.update(repr(part).encode())
        for side in sides:
            digest.update(repr([(sample.name, sample.labels) for sample in side]).encode())
        return digest.hexdigest()[:12]

    def positives(self) -> NDArray[np.float32]:
        """Training samples per label, float32 [C]."""
        counts = np.zeros(len(self.label_ids), np.float32)
        for sample in self.train:
            counts[list(sample.labels)] += 1
        return counts


def build_dataset(
    items: Sequence[Item],
    features_for: Callable[[Path], Mapping[str, Features]],
    *,
    content_id: Callable[[Path], str],
    validation: float = 0.2,
    seed: int = 0,
    sampling: str = "",
    memory_bytes: int = MEMORY_BYTES,
) -> Dataset:
    """The dataset of labelled clips. All that can be checked is checked before features are made.

    Args:
        features_for: rows per stream of a clip; called once per clip, and again later for clips
            that do not fit into memory, so it should remember (`vtag.features` with a cache).
            A clip for which it raises MediaError is left out, with a note.
        content_id: hash of a clip's bytes; copies of one clip count once.
        validation, seed: see `split_items`; not used where the items have splits.
        memory_bytes: bound of the rows kept in memory.

    Raises:
        DatasetError: see `check_items`, `check_file_streams`, `merge_copies`, `split_items`; or
            rows that hold NaN or do not fit each other, a clip without any stream, a label that no
            training clip is left for. Lists all problems.
    """
    check_items(items)
    check_file_streams(items)
    merged = merge_copies(items, {item.path: content_id(item.path) for item in items})
    split = split_items(merged.items, validation=validation, seed=seed)
    labels = sorted({label for item in split for label in item.labels})
    at = {label: index for index, label in enumerate(labels)}
    store = _FeatureStore(features_for, memory_bytes)
    sides: dict[Split | None, list[Sample]] = {"train": [], "validation": [], "test": []}
    notes = [*merged.notes, *_rare_labels(split)]
    for item in split:
        try:
            load = store.take(item)
        except MediaError as err:
            log.warning("left out: %s", err)
            notes.append(f"left out: {err}")
            continue
        known = tuple(sorted(at[label] for label in item.labels))
        sides[item.split].append(Sample(str(item.path), known, load, item.group or ""))
    problems = [*store.problems, *_lost_labels(sides, labels)]
    if problems:
        raise DatasetError(problems)
    return Dataset(
        label_ids=tuple(labels),
        label_names=tuple(labels),
        dims=store.dims,
        # A stream that no clip has is not learnt from, whatever would have made its rows.
        made_by={stream: store.made_by[stream] for stream in store.dims},
        train=tuple(sides["train"]),
        validation=tuple(sides["validation"]),
        test=tuple(sides["test"]),
        sampling=sampling,
        notes=tuple(notes),
    )


def youtube8m_dataset(
    train: Sequence[Path],
    validation: Sequence[Path],
    *,
    vocabulary: Sequence[VocabularyEntry] | None = None,
    test: Sequence[Path] = (),
    held_out: float = 0.0,
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
) -> Dataset:
    """The dataset of YouTube-8M shards, frame-level or video-level.

    Args:
        train, validation, test: TFRecord files. A video that is also in an earlier list is left
            out of the later one, with a note.
        held_out: share of the videos of `train` that are moved to validation, decided by a hash
            of `seed` and the video's id: the same whatever the shards' order and number.
        vocabulary: names the classes and says how many there are; without it there are as many
            as the highest class number asks for, named by their numbers.
        memory_bytes: bound of the rows kept in memory; beyond it plain shards are read again
            by offset.

    Raises:
        DatasetError: class numbers outside the vocabulary, rows that do not fit each other, gzip
            shards beyond `memory_bytes`, an empty side.
        MediaError: a shard can not be read.
    """
    reader = _ShardReader(memory_bytes)
    sides = [reader.samples(paths) for paths in (train, validation, test)]
    if reader.problems:
        raise DatasetError(reader.problems)
    if not 0 <= held_out < 1:
        raise DatasetError([f"the share held out must be 0 to below 1, got {held_out}"])
    kept, moved = _held_out(sides[0], held_out, seed)
    sides[:2] = [kept, (*sides[1], *moved)]
    highest = max((max(s.labels, default=-1) for side in sides for s in side), default=-1)
    ids, names = _classes(vocabulary, highest)
    return Dataset(
        label_ids=ids,
        label_names=names,
        dims=reader.dims,
        made_by={stream: MADE_BY_YOUTUBE8M[stream] for stream in reader.dims},
        train=sides[0],
        validation=sides[1],
        test=sides[2],
        aligned=True,
        notes=tuple(reader.notes),
    )


class _RowCheck:
    """What rows of one dataset must agree in; collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.dims: dict[str, int] = {}

    def check(self, name: str, rows: Rows) -> None:
        for stream, values in rows.items():
            dim = self.dims.setdefault(stream, values.shape[1])
            if values.shape[1] != dim:
                self.problems.append(
                    f"{name}: {stream} rows have {values.shape[1]} columns, others have {dim}"
                )
            elif not np.isfinite(values).all():
                self.problems.append(
                    f"{name}: {stream} rows hold NaN or infinity; remove the clip, or clear its "
                    "features from the cache"
                )
        if not rows:
            self.problems.append(f"{name}: has no stream with a single row; remove the clip")


class _FeatureStore(_RowCheck):
    """Rows of clips, in memory up to a bound."""

    def __init__(
        self, features_for: Callable[[Path], Mapping[str, Features]], memory_bytes: int
    ) -> None:
        super().__init__()
        self._features_for = features_for
        self._left = memory_bytes
        self.made_by: dict[str, str] = {}

    def take(self, item: Item) -> Callable[[], Rows]:
        """How to load the rows of a clip, after a look at them."""
        features = self._features_of(item)
        for stream, one in features.items():
            made_by = self.made_by.setdefault(stream, one.made_by)
            if one.made_by != made_by and len(one.rows):
                self.problems.append(
                    f"{item.path}: {stream} rows were made by {one.made_by}, others by {made_by}"
                )
        rows = _present(features)
        self.check(str(item.path), rows)
        size = sum(values.nbytes for values in rows.values())
        if size <= self._left:
            self._left -= size
            return partial(_same, rows)
        return lambda: _present(self._features_of(item))

    def _features_of(self, item: Item) -> dict[str, Features]:
        return {**self._features_for(item.path), **file_features(item)}


class _ShardReader(_RowCheck):
    """Samples of TFRecord files, in memory up to a bound."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__()
        self._left = memory_bytes
        self._seen: set[str] = set()
        self.notes: list[str] = []

    def samples(self, paths: Sequence[Path]) -> tuple[Sample, ...]:
        """All videos of some shards that were not in earlier ones."""
        found = []
        for path in paths:
            repeated = 0
            for record in read_records(path):
                video = parse_video(path, record)
                if video.id in self._seen:
                    repeated += 1
                    continue
                self._seen.add(video.id)
                found.append(Sample(video.id, video.labels, self._load(path, record, video)))
            if repeated:
                self.notes.append(f"{path}: {repeated} videos are in an earlier file; left out")
        return tuple(found)

    def _load(self, path: Path, record: RawRecord, video: Video) -> Callable[[], Rows]:
        rows = _half(video)
        self.check(f"{path}: video {video.id}", rows)
        size = sum(values.nbytes for values in rows.values())
        if size <= self._left:
            self._left -= size
            return partial(_same, rows)
        if record.offset < 0 and not self.problems:
            self.problems.append(
                f"{path}: gzip files can not be read out of order and this one does not fit into "
                "memory; unpack it with gunzip"
            )
        return lambda: _half(
            parse_video(
                path,
                RawRecord(record.number, record.offset, read_record_at(path, record.offset)),
            )
        )


def _held_out(
    samples: Sequence[Sample], share: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """The samples that stay, and about that share of them that leave."""

    def leaves(sample: Sample) -> bool:
        digest = hashlib.sha256(f"{seed}:{sample.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    return (
        tuple(sample for sample in samples if not leaves(sample)),
        tuple(sample for sample in samples if leaves(sample)),
    )


def _same(rows: Rows) -> Rows:
    return rows


def _present(features: Mapping[str, Features]) -> Rows:
    return {stream: one.rows for stream, one in features.items() if len(one.rows)}


def _half(video: Video) -> Rows:
    return {s: rows.astype(np.float16) for s, rows in video.rows.items() if rows.size}


def _rare_labels(items: Sequence[Item]) -> list[str]:
    counts = Counter(label for item in items for label in item.labels)
    checked = {label for i in items if i.split == "validation" for label in i.labels}
    return [
        f"label {label!r} has {counts[label]} clip{'s' * (counts[label] > 1)}, none of them in "
        "validation: what it learns is not checked"
        for label in sorted(counts)
        if label not in checked
    ]


def _lost_labels(
    sides: Mapping[Split | None, Sequence[Sample]], labels: Sequence[str]
) -> list[str]:
    learnt = {label for sample in sides["train"] for label in sample.labels}
    return [
        f"label {label!r} has no usable training clip; add clips or remove the label"
        for at, label in enumerate(labels)
        if at not in learnt
    ]


def _classes(
    vocabulary: Sequence[VocabularyEntry] | None, highest: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and names, each unique, of all class numbers from 0."""
    if vocabulary is None:
        numbers = tuple(str(number) for number in range(highest + 1))
        return numbers, numbers
    entries = {entry.index: entry for entry in vocabulary}
    count = max(entries, default=-1) + 1
    if highest >= count:
        raise DatasetError([f"class {highest} is not in the vocabulary of {count} classes"])
    # The vocabulary has holes, and some of its names stand for several entities.
    ids = [entries[n].id if n in entries else f"class-{n}" for n in range(count)]
    names = [entries[n].name if n in entries else f"class {n}" for n in range(count)]
    times = Counter(name.casefold() for name in names)
    unique = [
        f"{name} ({kind})" if times[name.casefold()] > 1 else name
        for name, kind in zip(names, ids, strict=True)
    ]
    return tuple(ids), tuple(unique)
