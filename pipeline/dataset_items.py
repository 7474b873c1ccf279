"""Labelled clips as a person keeps them: a folder per tag, or a table; and what is wrong with them.

    clips/dog/a.mp4, clips/dog/b.mp4, clips/rain/c.mp4      a folder per tag
    path,labels,split,group                                  CSV, labels separated by |
    {"path": "a.mp4", "labels": ["dog", "rain"]}             JSON lines, "dog|rain" works too

`split` is train, validation or test; `group` names what must not be torn apart (clips of one
recording, one person, one camera). Both are optional, as is their column. `features.<stream>`
names a file with rows of a further stream of the clip, see `vtag.dataset_streams`; blank where it
has none.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from vtag.discover import Discovery, find_inputs
from vtag.errors import ConfigError

Split = Literal["train", "validation", "test"]

TABLE_SUFFIXES: Final = (".csv", ".jsonl")
STREAMS_OF_CLIPS: Final = ("visual", "audio")  # made from the clip itself
_COLUMNS: Final = {"path", "labels", "split", "group"}
_FEATURES: Final = "features."  # and the name of a stream: a column


class DatasetError(ConfigError):
    """The labelled clips can not be learnt from.

    Attributes:
        problems: one line each, all that was found; the error's text is the first of them.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One labelled clip.

    Attributes:
        path: of the clip.
        labels: names, sorted; none for a clip that shows nothing of what is to be learnt.
        split: None leaves it to `split_items`.
        group: clips of one group stay on one side; None for a group of its own.
        where: how an error message names it.
        features: stream to the file of its rows, for streams that do not come from the clip.
    """

    path: Path
    labels: tuple[str, ...]
    split: Split | None = None
    group: str | None = None
    where: str = ""
    features: Mapping[str, Path] = field(default_factory=dict, hash=False)


def read_items(source: Path) -> tuple[Item, ...]:
    """The labelled clips of a folder per tag, or of a .csv or .jsonl table.

    Paths in a table are relative to the table.

    Raises:
        DatasetError: the source is missing, empty, or a line can not be understood; lists all.
    """
    if source.is_dir():
        return tuple(_of_folder(source))
    if not source.is_file():
        raise DatasetError(
            [f"{source}: no such folder or table; name a folder with a folder per tag, or a table"]
        )
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise DatasetError([f"{source}: a table must be named .csv or .jsonl"])
    problems: list[str] = []
    items = []
    for line, row in _rows(source):
        try:
            items.append(_item(source, line, row))
        except ValueError as err:
            problems.append(f"{source}: line {line}: {err}")
    if not items and not problems:
        problems.append(f"{source}: holds no clip")
    if problems:
        raise DatasetError(problems)
    return tuple(items)


def check_items(
    items: Sequence[Item], *, known: Iterable[str] | None = None, to_learn: bool = True
) -> None:
    """Returns when nothing is wrong that can be seen without opening a clip.

    Args:
        known: the only labels there may be; None allows any.
        to_learn: False for clips that a model is only measured on: those need not be of several
            labels, nor of every split.

    Raises:
        DatasetError: files that are missing, a path that is listed twice, unknown labels, labels
            of two kinds, nothing to tell apart, or splits without clips; lists all.
    """
    if not items:
        raise DatasetError(["no clip to learn from"])
    problems = [
        *(f"{i.where}: {i.path}: no such file" for i in items if not i.path.is_file()),
        *_listed_twice(items),
        *_unknown_labels(items, known),
        *_labels_of_two_kinds(items),
        *(_nothing_to_tell_apart(items) if to_learn else ()),
        *(_incomplete_splits(items) if to_learn else ()),
        *(_never_learnt(items) if to_learn else ()),
    ]
    if problems:
        raise DatasetError(problems)


def _never_learnt(items: Sequence[Item]) -> list[str]:
    """Labels whose clips are all set aside."""
    learnt = {label for i in items if i.split in ("train", None) for label in i.labels}
    set_aside = {label for item in items for label in item.labels} - learnt
    return [
        f"label {label!r} has clips for validation or test only; give it some to learn from"
        for label in sorted(set_aside)
    ]


def _of_folder(root: Path) -> Iterator[Item]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DatasetError([f"{root}: has no sub-folder; make one per tag and put its clips there"])
    labels_of: dict[Path, list[str]] = defaultdict(list)
    for folder in folders:
        paths = list(find_inputs([folder], Discovery()))
        if not paths:
            raise DatasetError([f"{folder}: holds no video or sound file"])
        for path in paths:
            # A link in two tag folders is one clip with two tags.
            labels_of[Path(os.path.realpath(path))].append(folder.name)
    for clip, labels in labels_of.items():
        yield Item(path=clip, labels=tuple(sorted(set(labels))), where=str(root))


def _rows(source: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if source.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                columns = set(reader.fieldnames or ())
                missing = {"path", "labels"} - columns
                if missing:
                    raise DatasetError([f"{source}: no column {', '.join(sorted(missing))}"])
                _check_stream_columns(source, columns)
                for cells in reader:
                    yield reader.line_num, {k: v for k, v in cells.items() if _is_known(k)}
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_row(source, number, line)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DatasetError([f"{source}: can not be read ({err})"]) from err


def _is_known(column: str | None) -> bool:
    return column in _COLUMNS or (column or "").startswith(_FEATURES)


def _check_stream_columns(source: Path, columns: Iterable[str]) -> None:
    problems = []
    for column in sorted(column for column in columns if column.startswith(_FEATURES)):
        try:
            _stream_of(column)
        except ValueError as err:
            problems.append(f"{source}: {err}")
    if problems:
        raise DatasetError(problems)


def _stream_of(column: str) -> str:
    """The stream that a column such as "features.text" names; ValueError for a bad name."""
    name = column.removeprefix(_FEATURES)
    if name in STREAMS_OF_CLIPS:
        raise ValueError(
            f"column {column!r}: {name} rows are made from the clip; take another name"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"column {column!r}: a stream is named by a-z, 0-9 and _")
    return name


def _json_row(source: Path, number: int, line: str) -> Mapping[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise DatasetError([f"{source}: line {number}: not JSON ({err})"]) from err
    if not isinstance(row, dict):
        raise DatasetError([f"{source}: line {number}: not a JSON object"])
    return row


def _item(source: Path, line: int, row: Mapping[str, object]) -> Item:
    path, labels = row.get("path"), row.get("labels")
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise ValueError(f"path must be text, got {path!r}")
    if isinstance(labels, str):
        labels = [label for label in labels.split("|") if label.strip()]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels must be text or a list of texts, got {labels!r}")
    names = tuple(sorted({label.strip() for label in labels}))
    if "" in names:
        raise ValueError("a label has no name")
    features = {}
    for column in sorted(key for key in row if key.startswith(_FEATURES)):
        file = row[column] or ""
        if not isinstance(file, str) or "\0" in file:
            raise ValueError(f"{column} must be the path of a file, got {file!r}")
        if file.strip():
            features[_stream_of(column)] = source.parent / file.strip()
    split, group = row.get("split") or None, row.get("group") or None
    if split is not None and split not in get_args(Split):
        raise ValueError(f"split must be {', '.join(get_args(Split))} or nothing, got {split!r}")
    return Item(
        path=source.parent / path.strip(),
        labels=names,
        split=split,  # type: ignore[arg-type]  # one of the three, see above
        group=None if group is None else str(group),
        where=f"{source}: line {line}",
        features=features,
    )


def _listed_twice(items: Sequence[Item]) -> Iterator[str]:
    seen: dict[str, Item] = {}
    for item in items:
        first = seen.setdefault(os.path.abspath(item.path), item)
        if first is not item:
            yield f"{item.where}: {item.path} is there already ({first.where})"


def _unknown_labels(items: Sequence[Item], known: Iterable[str] | None) -> Iterator[str]:
    if known is None:
        return
    names = set(known)
    for item in items:
        for label in item.labels:
            if label not in names:
                yield f"{item.where}: label {label!r} is not one of the {len(names)} known ones"


def _labels_of_two_kinds(items: Sequence[Item]) -> Iterator[str]:
    """Labels that differ by case or blanks only, and numbers among names."""
    names = sorted({label for item in items for label in item.labels})
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[" ".join(name.replace("_", " ").split()).casefold()].append(name)
    for variants in alike.values():
        if len(variants) > 1:
            written = " and ".join(repr(name) for name in variants)
            yield f"labels {written} look like one label written in two ways; use one of them"
    numbers = [name for name in names if name.isdecimal()]
    if numbers and len(numbers) < len(names):
        other = next(name for name in names if not name.isdecimal())
        yield (
            f"labels are of two kinds, numbers ({numbers[0]}) and names ({other!r}); use one kind"
        )


def _nothing_to_tell_apart(items: Sequence[Item]) -> Iterator[str]:
    counts = Counter(label for item in items for label in item.labels)
    if not counts:
        yield "no clip has a label"
    for label, count in sorted(counts.items()):
        if count == len(items):
            yield (
                f"every clip has the label {label!r}: there is nothing to tell it from; "
                "add clips that do not have it"
            )


def _incomplete_splits(items: Sequence[Item]) -> Iterator[str]:
    given = Counter(item.split for item in items)
    if set(given) == {None}:
        return
    if None in given:
        item = next(item for item in items if item.split is None)
        yield f"{item.where}: has no split, others have; fill the column for all clips or for none"
    if not given["train"]:
        yield "no clip is in the split 'train'"
