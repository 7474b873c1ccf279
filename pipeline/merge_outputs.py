"""What is merged: files of results and folders of parts, and what they say of their shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from vtag.errors import ConfigError, OutputError
from vtag.parts import PartName, parts_of, read_marks, read_part_lines
from vtag.record_lines import TornTail, lines
from vtag.remote_folder import Folder, open_folder
from vtag.shard_mark import read_mark
from vtag.shards import Shard
from vtag.storage import open_regular, reason
from vtag.uris import Uri, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """One file of records.

    Attributes:
        name: for messages.
        shard: whose records it holds, if it says so; None in a file of several shards.
        read: gives its lines, oldest first.
    """

    name: str
    shard: Shard | None
    read: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Output:
    """What one run or several wrote to one place: a file or a folder of parts.

    Attributes:
        marks: of its shards; empty when it says nothing of shards.
        pieces: its files, the oldest first.
    """

    name: str
    marks: Sequence[dict[str, Any]]
    pieces: Sequence[Piece]

    @property
    def is_parts(self) -> bool:
        """Whether it is a folder, whose records can be told apart by shard."""
        return any(piece.shard is not None for piece in self.pieces)


def output_of(name: str) -> Output:
    """The output at a path or an address.

    Raises:
        ConfigError: there is none.
        OutputError: it can not be read, or what it says of its shards is damaged.
    """
    parsed = parse(name)
    if isinstance(parsed, str) and not os.path.isdir(parsed):
        path = Path(parsed)
        if not path.exists():
            raise ConfigError(f"{path}: there is no such output")
        return Output(str(path), read_mark(path), [Piece(str(path), None, _lines_of(path))])
    folder = open_folder(name)
    shown = parsed.public if isinstance(parsed, Uri) else parsed
    try:
        marks, parts = read_marks(folder), parts_of(folder)
    except OSError as err:
        raise OutputError(f"{shown}: can not be read ({err.strerror or err})") from err
    if not marks and not parts:
        raise ConfigError(f"{shown}: holds no parts of results")
    pieces = [Piece(f"{shown}/{p.text}", p.shard, _lines_of_part(folder, p)) for p in parts]
    return Output(shown, marks, pieces)


def _lines_of(path: Path) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        try:
            with BufferedReader(open_regular(path)) as file:
                for line in lines(path, file):
                    if isinstance(line, TornTail):
                        log.warning("%s: the last line is torn and was passed over", path)
                    elif line.raw.strip():
                        yield line.raw
        except OSError as err:
            raise ConfigError(f"{path}: can not be read ({reason(err)})") from err

    return read


def _lines_of_part(folder: Folder, part: PartName) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        try:
            yield from read_part_lines(folder, part)
        except OSError as err:
            raise OutputError(
                f"{folder.name}/{part.text}: can not be read ({err.strerror or err})"
            ) from err

    return read
