"""Records as lines of a JSONL file: one object a line, UTF-8, the last line maybe torn.

What counts as torn is narrow on purpose: `--out` may name a file by mistake, and what is no
file of results must never be cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from vtag.errors import ConfigError, OutputError
from vtag.records import SCHEMA, Record
from vtag.storage import reason

log = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 64 << 20  # a file without line ends must not fill the memory

_BEGINNING: Final = b'{"schema"'


@dataclass(frozen=True)
class Line:
    """One whole record of a file.

    Attributes:
        start: bytes before it.
        raw: its bytes, with the line end unless it is the last line and lacks it.
    """

    start: int
    raw: bytes
    record: dict[str, Any]


@dataclass(frozen=True)
class TornTail:
    """The rest of a record that was being written when the writer died.

    Attributes:
        start: bytes before it: so long is the file without it.
    """

    start: int


def to_line(record: Record) -> bytes:
    """The record as one line of UTF-8 that ends in a newline.

    A file name of undecodable bytes (lone surrogates, PEP 383) has no UTF-8: such a record
    is written in ASCII with escapes, from which JSON readers get the same name back.

    Raises:
        ValueError: a number is not finite, or the line is longer than readers accept.
    """
    return line_of(record.to_dict())


def line_of(fields: dict[str, Any]) -> bytes:
    """The JSON object of a record as one line; see `to_line`."""
    try:
        line = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        line = json.dumps(fields, ensure_ascii=True, allow_nan=False).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the record of {fields['path']} takes {len(line)} bytes")
    return line


def lines(path: Path, file: BinaryIO) -> Iterator[Line | TornTail]:
    """Each record of the file in order, then the torn rest of one if there is any.

    A last record that lacks only its newline is whole. Empty lines are passed over.

    Raises:
        OutputError: a line is damaged and is not the torn last one, is no record, or is a
            record of another schema. The message has the number of the line.
        OSError: the file can not be read.
    """
    start = 0
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise _not_results(path, number, "longer than any record")
        if raw.strip():
            try:
                fields = json.loads(raw.decode(), parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as err:
                # A line that has its end is the last only if nothing follows. One that has
                # none is, whatever another process may have added since.
                is_last = not raw.endswith(b"\n") or not file.read(1)
                if is_last and _looks_torn(raw, follows_records=start > 0):
                    yield TornTail(start)
                    return
                raise _not_results(path, number, f"damaged ({err})") from err
            yield Line(start, raw, _checked(path, number, fields))
        start += len(raw)


def checked_record(name: str, raw: bytes) -> dict[str, Any]:
    """The record of one line of a file of this name.

    Raises:
        OutputError: it is damaged or no record of this schema.
    """
    try:
        fields = json.loads(raw.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise OutputError(f"{name}: holds a line that is damaged ({err})") from err
    return _checked(name, "one line", fields)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Each record of a file of results, as the JSON object of its line.

    A torn last line (a run was killed, or is writing just now) is passed over. While a run
    replaces the record of a changed input, both may be in the file: the later one counts.

    Raises:
        ConfigError: there is no such file, or it can not be read.
        OutputError: a line is damaged or no record; the message has its number.
    """
    try:
        with path.open("rb") as file:
            for line in lines(path, file):
                if isinstance(line, TornTail):
                    log.warning("%s: the last line is torn and was passed over", path)
                else:
                    yield line.record
    except OSError as err:
        raise ConfigError(
            f"{path}: can not be read ({reason(err)}); name a file that `vtag run` wrote"
        ) from err


def _looks_torn(raw: bytes, *, follows_records: bool) -> bool:
    """Whether these bytes can be the beginning of a record.

    After a power cut some file systems leave zeros where data had been promised.
    """
    begins = raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)
    return begins or (follows_records and not raw.strip(b"\0\n"))


def _checked(path: Path | str, number: int | str, fields: object) -> dict[str, Any]:
    if not isinstance(fields, dict) or "schema" not in fields:
        raise _not_results(path, number, "not a record of vtag")
    if fields["schema"] != SCHEMA:
        raise OutputError(
            f"{path}: line {number} is a record of schema {fields['schema']!r:.20}, this version "
            f"of vtag writes schema {SCHEMA}; choose another --out"
        )
    fits = (
        isinstance(fields.get("path"), str)
        and isinstance(fields.get("id"), str | None)
        and fields.get("status") in ("ok", "failed")
    )
    if not fits:
        raise _not_results(path, number, "not a record of vtag")
    return fields


def _not_results(path: Path | str, number: int | str, why: str) -> OutputError:
    return OutputError(
        f"{path}: line {number} is {why}; repair or delete that line, or choose another file"
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
