"""YouTube-8M data: videos with labels, frame-level or video-level, and the vocabulary.

Formats: `readers.py` of google/youtube-8m. Features are Inception-v3 (1024) and VGGish (128)
rows of one second each, whitened and quantised: a head that is trained on them can not read
ResNet rows, and the other way round.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from vtag.errors import ConfigError, MediaError
from vtag.records import Stream
from vtag.tf_example import Example, ExampleError, Value, encode_example, parse_example
from vtag.tfrecord import RawRecord, read_records, write_records

Level = Literal["frame", "video"]

# Their name in the file to our stream.
FRAME_FEATURES: Final[dict[str, Stream]] = {"rgb": "visual", "audio": "audio"}
VIDEO_FEATURES: Final[dict[str, Stream]] = {"mean_rgb": "visual", "mean_audio": "audio"}
ID_KEYS: Final = ("id", "video_id")  # since 2018, and in the files of 2017


@dataclass(frozen=True)
class SegmentRating:
    """What a person said about one class in one stretch of a video, in whole seconds."""

    start: int
    end: int
    label: int
    positive: bool


@dataclass(frozen=True)
class Video:
    """One labelled video.

    Attributes:
        id: of the data set, not of YouTube.
        labels: class numbers, rising.
        rows: stream to float32 [T, D]; one row a second, or a single mean row.
        level: whether rows are seconds ("frame") or a mean ("video").
        segments: human ratings of five-second stretches (2019 only).
    """

    id: str
    labels: tuple[int, ...]
    rows: Mapping[Stream, NDArray[np.float32]]
    level: Level
    segments: tuple[SegmentRating, ...] = field(default=())


def read_videos(path: Path, *, verify: bool = True) -> Iterator[Video]:
    """The videos of one TFRecord file, one at a time.

    Args:
        verify: whether checksums are compared.

    Raises:
        MediaError: the file is damaged or holds something else; names the record.
    """
    for record in read_records(path, verify=verify):
        yield parse_video(path, record)


def parse_video(path: Path, record: RawRecord) -> Video:
    """The video in one record of `path`.

    Raises:
        MediaError: the record holds something else; names it.
    """
    try:
        return _video(parse_example(record.data))
    except ExampleError as err:
        raise MediaError(
            f"{path}: record {record.number}: not a YouTube-8M video: {err}", code="corrupt"
        ) from err


def write_videos(path: Path, videos: Iterable[Video]) -> int:
    """Writes videos in the format of 2018, whole or not at all, and gives their number.

    Frame-level rows are quantised to 8 bits as in the original; video-level rows are not.

    Raises:
        OutputError: the file can not be written.
    """
    return write_records(path, (encode_example(_example(video)) for video in videos))


def quantise(rows: npt.ArrayLike) -> NDArray[np.uint8]:
    """The 8 bits that stand for each number in [-2, 2]; what lies outside is clipped."""
    values = np.clip(np.asarray(rows, np.float64), -2, 2)
    return np.rint((values + 2) * (255 / 4)).astype(np.uint8)


def dequantise(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers for quantised ones, 0 for -1.9921875 up to 255 for 2.0078125.

    As `utils.Dequantize` of google/youtube-8m has it, and so 4/512 above the true inverse
    everywhere: models were trained on these very numbers. `quantise` gives the codes back.
    """
    return (codes * np.float32(4 / 255) + np.float32(4 / 512 - 2)).astype(np.float32)


@dataclass(frozen=True)
class VocabularyEntry:
    """One class of YouTube-8M."""

    index: int
    id: str  # Knowledge Graph id, /m/…
    name: str
    verticals: tuple[str, ...]  # of 24 general topics, most fitting first
    train_videos: int  # in how many training videos it occurs; -1 where the file does not say


def read_vocabulary(path: Path) -> tuple[VocabularyEntry, ...]:
    """The classes in `vocabulary.csv` or `segment_vocabulary.csv`, in the order of the file.

    Raises:
        ConfigError: the file is missing, or a line is not of this format; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"Index", "KnowledgeGraphId", "Name"} - set(reader.fieldnames or ())
            if missing:
                raise ConfigError(f"{path}: no column {', '.join(sorted(missing))}")
            entries = tuple(_entry(path, reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise ConfigError(f"{path}: can not be read ({err})") from err
    if len({entry.index for entry in entries}) != len(entries):
        raise ConfigError(f"{path}: an index is there twice")
    return entries


def _entry(path: Path, line: int, row: Mapping[str, str | None]) -> VocabularyEntry:
    index, count = row["Index"] or "", row.get("TrainVideoCount") or "-1"
    if not index.isdecimal() or not count.lstrip("-").isdecimal():
        raise ConfigError(f"{path}: line {line}: index {index!r} or count {count!r} is no number")
    kind = (row["KnowledgeGraphId"] or "").strip()
    return VocabularyEntry(
        index=int(index),
        id=kind,
        # Of the real file's entities one has a blank before its name and some have no name.
        name=(row["Name"] or "").strip() or kind,
        verticals=tuple(v for v in (row.get(f"Vertical{n}") for n in (1, 2, 3)) if v),
        train_videos=int(count),
    )


def _video(example: Example) -> Video:
    key = next((k for k in ID_KEYS if k in example.context), None)
    if key is None:
        raise ExampleError(f"no {' or '.join(ID_KEYS)}; there are: {', '.join(example.context)}")
    if any(name in example.lists for name in FRAME_FEATURES):
        level: Level = "frame"
        rows = {
            stream: _frame_rows(name, example.lists[name])
            for name, stream in FRAME_FEATURES.items()
            if name in example.lists
        }
    else:
        level = "video"
        rows = {
            stream: _mean_row(name, example.context[name])
            for name, stream in VIDEO_FEATURES.items()
            if name in example.context
        }
    if not rows:
        raise ExampleError("neither frames nor means of rgb or audio")
    labels = _integers(example, "labels")
    if labels.size and labels.min() < 0:
        raise ExampleError(f"class number {labels.min()}")
    return Video(
        id=_text(example.context[key]),
        labels=tuple(sorted(set(labels.tolist()))),
        rows=rows,
        level=level,
        segments=_segments(example),
    )


def _frame_rows(name: str, steps: Iterable[Value]) -> NDArray[np.float32]:
    codes = []
    for step in steps:
        if not isinstance(step, tuple) or len(step) != 1:
            raise ExampleError(f"a frame of {name} is not one string of bytes")
        codes.append(step[0])
    if len({len(code) for code in codes}) > 1:
        raise ExampleError(f"frames of {name} differ in size")
    flat = np.frombuffer(b"".join(codes), np.uint8)
    return dequantise(flat.reshape(len(codes), -1) if codes else flat.reshape(0, 0))


def _mean_row(name: str, value: Value) -> NDArray[np.float32]:
    if isinstance(value, tuple) or value.dtype != np.float32 or not len(value):
        raise ExampleError(f"{name} is not a list of floats")
    if not np.isfinite(value).all():
        raise ExampleError(f"{name} holds NaN or infinity")
    return value.astype(np.float32)[None]


def _integers(example: Example, name: str) -> NDArray[np.int64]:
    value = example.context.get(name, ())
    if isinstance(value, tuple):
        if value:
            raise ExampleError(f"{name} is not a list of whole numbers")
        return np.zeros(0, np.int64)
    if value.dtype != np.int64:
        raise ExampleError(f"{name} is not a list of whole numbers")
    return value.astype(np.int64)


def _text(value: Value) -> str:
    if not isinstance(value, tuple) or len(value) != 1:
        raise ExampleError("the id is not one string")
    return value[0].decode("utf-8", "backslashreplace")


def _segments(example: Example) -> tuple[SegmentRating, ...]:
    starts, ends, labels = (
        _integers(example, f"segment_{name}") for name in ("start_times", "end_times", "labels")
    )
    scores = example.context.get("segment_scores", ())
    if not len(starts) == len(ends) == len(labels) == len(scores):
        raise ExampleError("segment lists differ in length")
    return tuple(
        SegmentRating(int(start), int(end), int(label), bool(float(score) > 0))
        for start, end, label, score in zip(starts, ends, labels, scores, strict=True)
    )


def _example(video: Video) -> Example:
    context: dict[str, Value] = {
        "id": (video.id.encode(),),
        "labels": np.array(video.labels, np.int64),
    }
    if video.segments:
        for name, values in (
            ("start_times", [s.start for s in video.segments]),
            ("end_times", [s.end for s in video.segments]),
            ("labels", [s.label for s in video.segments]),
        ):
            context[f"segment_{name}"] = np.array(values, np.int64)
        context["segment_scores"] = np.array([s.positive for s in video.segments], np.float32)
    if video.level == "video":
        means = {n: video.rows[s][0] for n, s in VIDEO_FEATURES.items() if s in video.rows}
        return Example({**context, **means})
    lists = {
        name: [(row.tobytes(),) for row in quantise(video.rows[stream])]
        for name, stream in FRAME_FEATURES.items()
        if stream in video.rows
    }
    return Example(context, lists)
