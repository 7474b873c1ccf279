"""The Parquet form of a part: records as lines of JSON, and columns that are asked for alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from vtag.errors import EnvironmentProblem
from vtag.records import stamp_of


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise EnvironmentProblem(
            "Parquet needs the package pyarrow; pip install 'vtag[parquet]'"
        ) from err
    return pyarrow, pyarrow.parquet


def as_parquet(lines: list[bytes]) -> bytes:
    """A file of these records; raises EnvironmentProblem without pyarrow, like all of these."""
    pyarrow, parquet = _pyarrow()
    rows = []
    for line in lines:
        fields = json.loads(line)
        error = fields.get("error") or {}
        rows.append(
            {
                "id": fields["id"],
                "path": _utf8_or_none(fields["path"]),
                "status": fields["status"],
                "stamp": stamp_of(fields),
                "error_code": error.get("code"),
                "record": line.decode(),
            }
        )
    columns = ("id", "path", "status", "stamp", "error_code", "record")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), out, compression="zstd")
    return out.getvalue()


def lines_of_parquet(data: bytes) -> Iterator[bytes]:
    """The records of a file."""
    _, parquet = _pyarrow()
    table = parquet.read_table(io.BytesIO(data), columns=["record"])
    for text in table.column("record").to_pylist():
        yield text.encode()


def keys_of_parquet(data: bytes) -> Iterator[tuple[str, str | None, str, str | None]]:
    """Path, id, status and stamp of each record; the records are not read, where that will do."""
    _, parquet = _pyarrow()
    table = parquet.read_table(io.BytesIO(data), columns=["path", "id", "status", "stamp"])
    if table.column("path").null_count:
        for line in lines_of_parquet(data):
            fields = json.loads(line)
            yield fields["path"], fields["id"], fields["status"], stamp_of(fields)
        return
    for row in table.to_pylist():
        yield row["path"], row["id"], row["status"], row["stamp"]


def _utf8_or_none(path: str) -> str | None:
    """A name that is no UTF-8 has no place in a column; the record keeps it in escapes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return None
    return path
