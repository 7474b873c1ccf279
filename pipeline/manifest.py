"""Manifests: tables of inputs, one a row, each name meant literally.

    .txt      one address or path a line; empty lines and lines that begin with # are passed over
    .csv      a first line of column names
    .jsonl    one object a line
    .parquet  needs pyarrow

Columns: uri (or path), and where known size (bytes), duration (seconds), etag, modified (seconds
since the epoch); others are passed over. `vtag plan` writes such tables, and a file of results
is one too. A manifest in remote storage names remote objects only: whoever can write there must
not make this machine read its own files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from vtag.errors import ConfigError, EnvironmentProblem, OutputError
from vtag.remote import RemoteSettings, store_for
from vtag.remote_errors import RemoteError
from vtag.shards import Shard, assign, name_hash, weights_of
from vtag.sources import Source
from vtag.storage import reason, write_whole
from vtag.uris import Uri, parse

FORMATS: Final = (".txt", ".csv", ".jsonl", ".parquet")
COLUMNS: Final = ("uri", "size", "duration", "etag", "modified")
_MAX_LINE_BYTES: Final = 64 << 20  # a file of results has long lines
_BATCH_ROWS: Final = 10_000


@dataclass(frozen=True)
class Plan:
    """What has to be known of a whole manifest to divide it; some 24 bytes a row.

    Attributes:
        fingerprint: the same for the same rows in any order.
        hashes: uint64 [N] of the public names.
        sizes: float64 [N] bytes, NaN where not told.
        durations: float64 [N] seconds, NaN where not told.
    """

    fingerprint: str
    hashes: NDArray[np.uint64]
    sizes: NDArray[np.float64]
    durations: NDArray[np.float64]

    def shards(self, count: int) -> NDArray[np.int32] | None:
        """The shard of each row, int32 [N], from 0; None when nothing is known of their sizes."""
        weights = weights_of(self.sizes, self.durations)
        return None if weights is None else assign(self.hashes, weights, count)


class Manifest:
    """One manifest, local or remote.

    Args:
        where: its path or address; the suffix says how it is written.

    Raises:
        ConfigError: a suffix that is none of `FORMATS`.
    """

    def __init__(self, where: str, settings: RemoteSettings | None = None) -> None:
        parsed = parse(where)
        self._remote = parsed if isinstance(parsed, Uri) else None
        self.name = self._remote.public if self._remote is not None else str(parsed)
        self._path = None if self._remote is not None else Path(str(parsed))
        self._settings = settings
        self._copy: Path | None = None
        self._plan: Plan | None = None
        self.suffix = os.path.splitext(self.name.partition("?")[0])[1].lower()
        if self.suffix not in FORMATS:
            raise ConfigError(f"{self.name}: a manifest ends in {', '.join(FORMATS)}")

    def rows(self) -> Iterator[Source]:
        """Each row in order, one at a time.

        Raises:
            ConfigError: it can not be read, or a row makes no sense; the message has its number.
        """
        number = 0
        try:
            for number, row in self._numbered():  # noqa: B007  the messages below have it
                source = Source.from_row(row)
                if self._remote is not None and source.remote is None:
                    raise ConfigError("a manifest in remote storage names remote objects only")
                yield source
        except ConfigError as err:
            raise ConfigError(f"{self.name}: row {number}: {err}") from err
        except (ValueError, csv.Error, RecursionError) as err:
            raise ConfigError(f"{self.name}: row {number + 1} is damaged ({err})") from err
        except OSError as err:
            raise ConfigError(f"{self.name}: can not be read ({reason(err)})") from err

    def plan(self) -> Plan:
        """What is known of all rows; read once.

        Raises:
            ConfigError: like `rows`, or an input is named twice.
        """
        if self._plan is None:
            self._plan = self._read_plan()
        return self._plan

    def sources(self, shard: Shard | None = None) -> Iterator[Source]:
        """The rows of a shard, or all.

        With sizes or durations the shards are alike in work, else in number (`vtag.shards`).
        Every shard of one manifest and count computes the same division.

        Raises:
            ConfigError: like `plan`.
        """
        plan = self.plan()  # a row that makes no sense is told before the first is tagged
        shards = plan.shards(shard.count) if shard is not None and shard.count > 1 else None
        number = -1
        for number, source in enumerate(self.rows()):
            if number >= len(plan.hashes) or plan.hashes[number] != name_hash(source.path):
                raise ConfigError(f"{self.name}: was changed while it was read")
            if shard is None:
                yield source
            elif shards is not None:
                if shards[number] == shard.index - 1:
                    yield source
            elif shard.holds(source.path):
                yield source
        if number + 1 != len(plan.hashes):
            raise ConfigError(f"{self.name}: was changed while it was read")

    def _read_plan(self) -> Plan:
        hashes, sizes, durations, words = _Column("Q"), _Column("d"), _Column("d"), _Column("Q")
        for source in self.rows():
            hashes.add(name_hash(source.path))
            sizes.add(float("nan") if source.size is None else float(source.size))
            durations.add(float("nan") if source.duration is None else source.duration)
            words.add(name_hash(json.dumps([source.path, source.size, source.duration])))
        plan_hashes = hashes.array(np.uint64)
        self._refuse_doubles(plan_hashes)
        digest = hashlib.sha256(np.sort(words.array(np.uint64)).astype("<u8").tobytes())
        return Plan(
            f"manifest:{digest.hexdigest()[:16]}",
            plan_hashes,
            sizes.array(np.float64),
            durations.array(np.float64),
        )

    def _refuse_doubles(self, hashes: NDArray[np.uint64]) -> None:
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(same):
            first, second = sorted(int(order[place]) for place in (same[0], same[0] + 1))
            raise ConfigError(
                f"{self.name}: rows {first + 1} and {second + 1} name the same input"
                + (f", and {len(same) - 1} more are named twice" if len(same) > 1 else "")
            )

    def _numbered(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        readers: dict[str, Callable[[IO[bytes]], Iterator[Mapping[str, Any]]]] = {
            ".txt": _text_rows,
            ".csv": _csv_rows,
            ".jsonl": _json_rows,
            ".parquet": _parquet_rows,
        }
        with self._opened() as file:
            yield from enumerate(map(_with_uri, readers[self.suffix](file)), start=1)

    def _opened(self) -> IO[bytes]:
        if self._path is not None:
            return self._path.open("rb")
        if self._copy is None:
            self._copy = self._fetched()
        return self._copy.open("rb")

    def _fetched(self) -> Path:
        """A copy of a remote manifest among the temporary files, removed with this object."""
        assert self._remote is not None
        descriptor, name = tempfile.mkstemp(prefix="vtag-manifest-")
        weakref.finalize(self, Path(name).unlink, missing_ok=True)
        try:
            store = store_for(self._remote, self._settings)
            with open(descriptor, "wb") as copy:
                for block in store.blocks(self._remote, store.stat(self._remote)):
                    copy.write(block)
        except RemoteError as err:
            raise ConfigError(f"can not be read: {err.what}") from err
        return Path(name)


def write_manifest(path: Path, sources: Iterable[Source]) -> int:
    """How many rows were written to `path`: all of them, or the file is as it was.

    For its owner only, since an address may hold a signature.

    Raises:
        ConfigError: a suffix that is none of `FORMATS`, or a name that a .txt can not hold.
        OutputError: it can not be written.
    """
    suffix = path.suffix.lower()
    counted = _Counted(sources)
    try:
        if suffix == ".parquet":
            _write_parquet(path, counted)
        elif suffix in _WRITERS:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _in_blocks(_WRITERS[suffix](counted)))
        else:
            raise ConfigError(f"{path}: a manifest ends in {', '.join(FORMATS)}")
    except OSError as err:
        raise OutputError(f"{path}: can not be written ({reason(err)})") from err
    return counted.count


class _Counted:
    """The sources, counted as they go by."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = sources
        self.count = 0

    def __iter__(self) -> Iterator[Source]:
        for source in self._sources:
            self.count += 1
            yield source


class _Column:
    """Numbers that come one by one, 8 bytes each."""

    def __init__(self, code: str) -> None:
        import array

        self._values: array.array[Any] = array.array(code)

    def add(self, value: float) -> None:
        self._values.append(value)

    def array(self, kind: type[Any]) -> NDArray[Any]:
        return np.array(self._values, dtype=kind)


def _with_uri(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if row.get("uri") in (None, "") and isinstance(row.get("path"), str):
        facts = row.get("source")  # a file of results
        known = facts if isinstance(facts, dict) else {}
        media = row.get("media")
        seconds = media.get("duration") if isinstance(media, dict) else row.get("duration")
        return {**row, **known, "uri": row["path"], "duration": seconds}
    return row


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise ValueError("longer than any row")
        yield line


def _text_rows(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in _lines(file):
        text = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        if text.strip() and not text.startswith(b"#"):
            yield {"uri": os.fsdecode(text)}


def _json_rows(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in _lines(file):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            yield row


def _csv_rows(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    raw = (line.removeprefix(b"\xef\xbb\xbf") for line in _lines(file))
    reader = csv.DictReader((line.decode("utf-8", "surrogateescape") for line in raw), strict=True)
    if not {"uri", "path"} & set(reader.fieldnames or []):
        raise ConfigError("the first line names the columns, and one of them is uri")
    yield from reader


def _parquet_rows(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    parquet = _pyarrow_parquet()
    table = parquet.ParquetFile(file)
    names = [name for name in ("path", *COLUMNS) if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        yield from batch.to_pylist()


def _text_lines(sources: Iterable[Source]) -> Iterator[bytes]:
    for source in sources:
        name = os.fsencode(source.uri)
        if b"\n" in name or b"\r" in name or name.startswith(b"#") or not name.strip():
            raise ConfigError(f"{source.path!r}: a .txt can not hold this name; write .jsonl")
        yield name + b"\n"


def _json_lines(sources: Iterable[Source]) -> Iterator[bytes]:
    for source in sources:
        yield (
            json.dumps({k: v for k, v in source.to_row().items() if v is not None}).encode() + b"\n"
        )


def _csv_lines(sources: Iterable[Source]) -> Iterator[bytes]:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for source in sources:
        row = source.to_row()
        writer.writerow(["" if row[name] is None else row[name] for name in COLUMNS])
        yield buffer.getvalue().encode("utf-8", "surrogateescape")
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


_WRITERS: Final[dict[str, Callable[[Iterable[Source]], Iterator[bytes]]]] = {
    ".txt": _text_lines,
    ".jsonl": _json_lines,
    ".csv": _csv_lines,
}


def _in_blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    block: list[bytes] = []
    for line in lines:
        block.append(line)
        if len(block) >= _BATCH_ROWS:
            yield b"".join(block)
            block.clear()
    yield b"".join(block)


def _write_parquet(path: Path, sources: Iterable[Source]) -> None:
    parquet = _pyarrow_parquet()
    import pyarrow

    kinds = [pyarrow.string(), pyarrow.int64(), *[pyarrow.float64()], pyarrow.string()]
    schema = pyarrow.schema(list(zip(COLUMNS, [*kinds, pyarrow.float64()], strict=True)))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".vtag-{os.getpid()}-{os.urandom(8).hex()}.part")
    try:
        with parquet.ParquetWriter(part, schema) as writer:
            rows: list[dict[str, Any]] = []
            for source in sources:
                rows.append(source.to_row())
                if len(rows) >= _BATCH_ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows.clear()
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        os.chmod(part, 0o600)
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise EnvironmentProblem(
            "Parquet needs the package pyarrow; pip install 'vtag[parquet]'"
        ) from err
    return pyarrow.parquet
