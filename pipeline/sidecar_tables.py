"""Records as one long table, CSV or Parquet: a row per tag and segment.

A tag without segments has one row without times; a video without tags, and a failed one, has
one row without a tag, so that counting paths counts videos.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vtag.errors import EnvironmentProblem, OutputError
from vtag.sidecar_change import tags_of
from vtag.storage import open_regular, reason, write_whole

Cell = str | float | None
Row = dict[str, Cell]

TEXT_COLUMNS: Final = (
    "path",
    "id",
    "status",
    "error",
    "label_id",
    "label",
    "categories",
    "source",
    "model",
)
COLUMNS: Final = (
    "path",
    "id",
    "status",
    "error",
    "duration",
    "label_id",
    "label",
    "score",
    "threshold",
    "categories",
    "source",
    "start",
    "end",
    "segment_score",
    "model",
)
# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection"), with the
# full-width forms; and the guard itself, so that taking one off always gives the text back.
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠'")
_ROWS_PER_CHUNK: Final = 20_000
_MAKER: Final = b"vtag"  # the key of the table's own metadata in Parquet


def rows(record: Mapping[str, Any], *, min_score: float, max_tags: int | None) -> Iterator[Row]:
    """The rows of one record, `COLUMNS` each.

    Raises:
        ValueError: the record is not as docs/record.md says.
    """
    media, model, error = (record.get(name) or {} for name in ("media", "model", "error"))
    if not all(isinstance(one, dict) for one in (media, model, error)):
        raise ValueError("media, model or error is no object")
    duration = media.get("duration")
    if isinstance(duration, bool) or not isinstance(duration, int | float | None):
        raise ValueError(f"the duration is a number of seconds, not {duration!r:.80}")
    of_record: Row = dict.fromkeys(COLUMNS) | {
        "path": record["path"],
        "id": _text(record.get("id")),
        "status": record["status"],
        "error": _text(error.get("code")),
        "duration": None if duration is None else float(duration),
        "model": _text(model.get("fingerprint")),
    }
    tags = [tag for tag in tags_of(record) if tag.score >= min_score][:max_tags]
    for tag in tags:
        of_tag = of_record | {
            "label_id": tag.id,
            "label": tag.name,
            "score": tag.score,
            "threshold": tag.threshold,
            "categories": " > ".join(reversed(tag.categories)),
            "source": "+".join(tag.sources),
        }
        for segment in tag.segments:
            times: Row = {
                "start": segment.start,
                "end": segment.end,
                "segment_score": segment.score,
            }
            yield of_tag | times
        if not tag.segments:
            yield of_tag
    if not tags:
        yield of_record


def guarded(cell: str) -> str:
    """The text as a cell of a CSV file that no spreadsheet runs.

    One that begins like a formula, or with the guard, gets an apostrophe in front: a reader
    has the text back by taking one apostrophe off, if there is one.
    """
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def csv_chunks(found: Iterable[Row]) -> Iterator[bytes]:
    """The table as CSV (RFC 4180, UTF-8): texts quoted, numbers not."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(COLUMNS)
    yield _drain(buffer)
    for n, row in enumerate(found, start=1):
        cells = (row[name] for name in COLUMNS)
        writer.writerow([guarded(c) if isinstance(c, str) else c for c in cells])
        if n % _ROWS_PER_CHUNK == 0:
            yield _drain(buffer)
    yield _drain(buffer)


def parquet_chunks(found: Iterable[Row]) -> Iterator[bytes]:
    """The table as Parquet, in row groups of bounded size.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    kinds = [(n, arrow.string() if n in TEXT_COLUMNS else arrow.float64()) for n in COLUMNS]
    schema = arrow.schema(kinds, metadata={_MAKER: b"1"})
    sink = _Sink()
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        waiting: list[Row] = []
        for row in found:
            # Arrow's strings are UTF-8, which undecodable bytes of a file name are not.
            waiting.append({n: _utf8(c) if isinstance(c, str) else c for n, c in row.items()})
            if len(waiting) == _ROWS_PER_CHUNK:
                writer.write_table(arrow.Table.from_pylist(waiting, schema))
                waiting = []
                yield sink.drain()
        writer.write_table(arrow.Table.from_pylist(waiting, schema))
    yield sink.drain()


def write_table(
    path: Path, kind: str, table: Callable[[], Iterable[Row]], *, dry_run: bool
) -> bool:
    """Writes the table, and returns whether the file is another one than before.

    Args:
        kind: "csv" or "parquet".
        table: gives the rows, the same each time.
        dry_run: only tell.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        OutputError: the file is none that vtag wrote, or can not be written.
    """
    chunks = csv_chunks if kind == "csv" else parquet_chunks
    try:
        if path.is_symlink() or path.exists():
            _check_own(path, kind)
            if _holds(path, chunks(table())):
                return False
        if not dry_run:
            write_whole(path, chunks(table()), mode=None)
    except OSError as err:
        raise OutputError(
            f"{path}: can not be written ({reason(err)}); choose another folder with --out"
        ) from err
    return True


def _check_own(path: Path, kind: str) -> None:
    if path.is_symlink():
        raise OutputError(
            f"{path}: is a symbolic link, which vtag does not follow; remove the link, or choose "
            f"another folder with --out"
        )
    with open_regular(path) as file:
        if kind == "csv":
            head = next(csv_chunks(()))
            own = file.read(len(head)) == head
        else:
            arrow, parquet = _pyarrow()
            try:
                own = _MAKER in (parquet.read_schema(file).metadata or {})
            except arrow.ArrowInvalid:
                own = False
    if not own:
        raise OutputError(
            f"{path}: is no table of vtag and was left as it is; move it away, "
            f"or choose another folder with --out"
        )


def _holds(path: Path, chunks: Iterable[bytes]) -> bool:
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)


class _Sink(io.RawIOBase):
    """A file that only grows, and whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def drain(self) -> bytes:
        """What came since the last time."""
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole


def _pyarrow() -> tuple[Any, Any]:
    try:
        # By name: type checks must not depend on whether the extra is installed.
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as err:
        raise EnvironmentProblem(
            "Parquet needs pyarrow, which is not installed: pip install 'vtag[parquet]'"
        ) from err


def _drain(buffer: io.StringIO) -> bytes:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return _utf8(text).encode()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _text(value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"a text was expected, not {value!r:.80}")
    return value
