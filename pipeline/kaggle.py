"""Files of the YouTube-8M challenges on Kaggle, written and read.

2017 and 2018, one line per video: `VideoId,LabelConfidencePairs` and `id,label score label …`.
2019, one line per class: `Class,Segments` and `class,id:start id:start …`, surest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vtag.errors import ConfigError, OutputError
from vtag.evaluate import TOP_K
from vtag.storage import reason, write_whole

VIDEO_HEADER: Final = "VideoId,LabelConfidencePairs"
SEGMENT_HEADER: Final = "Class,Segments"


def write_video_submission(
    path: Path, ids: Sequence[str], scores: npt.ArrayLike, *, top: int = TOP_K
) -> None:
    """Writes the `top` best labels of every video, surest first; whole or not at all.

    Args:
        scores: float [N, C] in 0..1; the column is the label's number. Six decimals are kept.

    Raises:
        ConfigError: the number of ids is not N, or an id can not stand in such a file.
        OutputError: the file can not be written.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(ids):
        raise ConfigError(f"{path}: {len(ids)} ids for scores of shape {list(values.shape)}")
    for name in ids:
        _refuse_separators(path, name)
    best = np.argsort(-values, axis=1, kind="stable")[:, :top]
    lines = (
        f"{name}," + " ".join(f"{label} {row[label]:.6f}" for label in at)
        for name, row, at in zip(ids, values, best, strict=True)
    )
    _write_lines(path, VIDEO_HEADER, lines)


def read_video_submission(path: Path) -> Iterator[tuple[str, dict[int, float]]]:
    """Video id and score of each listed label, line by line, in the order of the file.

    Raises:
        ConfigError: the file is missing or a line is not of this format; names the line.
    """
    for number, name, rest in _lines(path, VIDEO_HEADER):
        words = rest.split()
        try:
            pairs = {
                int(label): float(score)
                for label, score in zip(words[::2], words[1::2], strict=True)
            }
        except ValueError:
            raise ConfigError(f"{path}: line {number}: not pairs of label and score") from None
        if 2 * len(pairs) != len(words):
            raise ConfigError(f"{path}: line {number}: a label is listed twice")
        yield name, pairs


def write_segment_submission(path: Path, ranked: Mapping[int, Sequence[str]]) -> None:
    """Writes the segments of every class, surest first; whole or not at all.

    Args:
        ranked: class number to segments "id:start", start in whole seconds.

    Raises:
        ConfigError: a segment can not stand in such a file.
        OutputError: the file can not be written.
    """
    for segments in ranked.values():
        for segment in segments:
            _refuse_separators(path, segment)
    lines = (f"{label}," + " ".join(ranked[label]) for label in sorted(ranked))
    _write_lines(path, SEGMENT_HEADER, lines)


def read_segment_submission(path: Path) -> dict[int, tuple[str, ...]]:
    """Class number to its segments "id:start", surest first.

    Raises:
        ConfigError: the file is missing or a line is not of this format; names the line.
    """
    ranked: dict[int, tuple[str, ...]] = {}
    for number, label, rest in _lines(path, SEGMENT_HEADER):
        if not label.isdecimal():
            raise ConfigError(f"{path}: line {number}: class {label!r} is not a number")
        if int(label) in ranked:
            raise ConfigError(f"{path}: line {number}: class {label} is listed twice")
        ranked[int(label)] = tuple(rest.split())
    return ranked


def _refuse_separators(path: Path, name: str) -> None:
    if not name or "," in name or name.split() != [name]:
        raise ConfigError(f"{path}: {name!r} holds a comma or a space and can not be written")


def _lines(path: Path, header: str) -> Iterator[tuple[int, str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(file, start=1):
                # The published segment script leaves the newline on the last id of a line.
                text = line.strip()
                if not text or (number == 1 and text == header):
                    continue
                name, comma, rest = text.partition(",")
                if not comma or not name:
                    raise ConfigError(f"{path}: line {number}: not of the form {header}")
                yield number, name, rest
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: can not be read ({err})") from err


def _write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    text = (f"{line}\n".encode() for line in chain([header], lines))
    try:
        write_whole(path, text, mode=None, through_symlink=True)
    except OSError as err:
        raise OutputError(f"{path}: can not be written ({reason(err)})") from err
