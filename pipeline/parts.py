"""Results as parts: whole objects in a folder that many workers write, here or in a bucket.

    part-00003of00064-20260102T030405123456-9f2c11d07a3b-00001-8d5e0f1c2b3a4958.jsonl
         shard       attempt (when it began, and   number  beginning of the part's SHA-256
                     a drawn number)
    _shards/00003of00064.json   which shard of which plan, and its counts when it came to its end

A part is put as one object: it is there whole or not at all, and its name tells whether it has
all its bytes. Parts are never changed. What a run that died had not yet put is done again; an
input that has two records loses one in `vtag merge`. So no lock is needed, and none would work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Final, Literal

from vtag.done_index import DoneIndex
from vtag.errors import OutputError
from vtag.part_parquet import as_parquet, keys_of_parquet, lines_of_parquet
from vtag.record_lines import checked_record, line_of, to_line
from vtag.records import Record
from vtag.remote_folder import Folder, open_folder
from vtag.shards import Shard, ShardIdentity
from vtag.stdout_results import Counts

log = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet"]

MARKS: Final = "_shards/"
_PART: Final = re.compile(
    r"part-(\d{5,})of(\d{5,})-([0-9T]+-[0-9a-f]+)-(\d{5,})-([0-9a-f]{16})\.(jsonl|parquet)"
)


@dataclass(frozen=True)
class PartName:
    """What the name of a part says. Sorted, the later ones are the newer ones."""

    attempt: str
    number: int
    shard: Shard
    digest: str
    suffix: str
    text: str

    @classmethod
    def parse(cls, text: str) -> PartName | None:
        """The parts of a name; None if it is none of a part."""
        found = _PART.fullmatch(text)
        if found is None:
            return None
        index, count, attempt, number, digest, suffix = found.groups()
        if not 1 <= int(index) <= int(count):
            return None
        shard = Shard(int(index), int(count))
        return cls(attempt, int(number), shard, digest, suffix, text)

    @property
    def age(self) -> tuple[str, int, str]:
        """Grows with the time of writing, and is never equal for two parts."""
        return (self.attempt, self.number, self.text)


class PartWriter:
    """Writes records as parts; one per process, any number of threads.

    A part is put when it has `max_records` or `max_bytes`, with the first record that comes
    `max_seconds` after the part's first, and on `close`. Until then its records are in memory:
    they are what a death costs.

    Args:
        folder: s3://, gs://, file:// or a local path.
        identity: which shard of what this is.
        kind: "jsonl", or "parquet" with the columns id, path, status, stamp, error_code and
            record (the line of JSON).
    """

    def __init__(
        self,
        folder: str | Folder,
        identity: ShardIdentity,
        *,
        kind: Format = "jsonl",
        max_records: int = 1000,
        max_bytes: int = 16 << 20,
        max_seconds: float = 60.0,
    ) -> None:
        self.folder = open_folder(folder) if isinstance(folder, str) else folder
        self.identity = identity
        self._kind: Format = kind
        self._max = (max_records, max_bytes, max_seconds)
        now = datetime.now(timezone.utc)
        self._attempt = f"{now:%Y%m%dT%H%M%S%f}-{os.urandom(6).hex()}"
        self._number = 0
        self._lines: list[bytes] = []
        self._bytes = 0
        self._since = 0.0
        self._guard = threading.Lock()

    def write(self, record: Record) -> None:
        """Adds the record of one input.

        Raises:
            OutputError: a part could not be put; its records are tried again with the next.
        """
        self.write_line(to_line(record))

    def write_line(self, line: bytes) -> None:
        """Adds a record as `vtag.record_lines.to_line` gave it; raises like `write`."""
        with self._guard:
            self._since = self._since if self._lines else time.monotonic()
            self._lines.append(line)
            self._bytes += len(line)
            records, size, seconds = self._max
            if (
                len(self._lines) >= records
                or self._bytes >= size
                or time.monotonic() - self._since >= seconds
            ):
                self._put()

    def flush(self) -> None:
        """Puts what is waiting."""
        with self._guard:
            self._put()

    def close(self) -> None:
        """`flush`; the writer can still be used."""
        self.flush()

    def _put(self) -> None:
        if not self._lines:
            return
        data = b"".join(self._lines) if self._kind == "jsonl" else as_parquet(self._lines)
        digest = hashlib.sha256(data).hexdigest()[:16]
        shard = _shard_word(self.identity.shard)
        name = f"part-{shard}-{self._attempt}-{self._number:05d}-{digest}.{self._kind}"
        try:
            self.folder.put(name, data)
        except OSError as err:
            raise _cannot_write(self.folder, err) from err
        self._number += 1
        self._lines.clear()
        self._bytes = 0


class PartResults:
    """Parts as the output of one run (`vtag.run.Results`): resumed, and marked at its end.

    Args:
        folder: s3://, gs://, file:// or a local path.
        identity: which shard of what this is; all of one folder are of one plan and model.

    Raises:
        OutputError: the folder can not be read or written, a part in it is damaged, or it holds
            another plan, division or model.
    """

    def __init__(self, folder: str, identity: ShardIdentity, *, kind: Format = "jsonl") -> None:
        self.folder = open_folder(folder)
        self.identity = identity
        self._index = read_done(self.folder, identity)
        self._found = self._index.ok + self._index.failed
        self._written = 0
        self._writer = PartWriter(self.folder, identity, kind=kind)
        _put_mark(self.folder, identity, None)

    @property
    def counts(self) -> Counts:
        """How many inputs have a record by now."""
        return Counts(self._index.ok, self._index.failed, self._found, self._written)

    def done(self, path: str, content_id: str | None) -> bool:
        """Whether this input, with this content (None: any), has its record."""
        return self._index.done(path, content_id)

    def done_as(self, path: str, stamp: str | None) -> bool:
        """Whether this remote input has its record."""
        return self._index.done_as(path, stamp)

    def failed(self, path: str) -> bool:
        """Whether the record of this path is a failed one."""
        return self._index.is_failed(path)

    def write(self, record: Record) -> None:
        """Adds the record of one input; raises OutputError."""
        self._writer.write(record)
        stamp = record.source.stamp if record.source else None
        self._index.add(record.path, record.id, failed=not record.ok, stamp=stamp)
        self._written += 1

    def of_content(self, content_id: str) -> dict[str, Any] | None:
        """None: parts are not searched for a content."""
        return None

    def each(self) -> Iterator[dict[str, Any]]:
        """Every record in the parts of this shard, the oldest first."""
        for name in parts_of(self.folder, self.identity.shard):
            yield from read_part(self.folder, name)

    def amend(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> int:
        """How many records were changed: those for which `change` gave a new one.

        Parts are never changed. A new record goes into a part of its own, and is the newer one
        for whoever reads them.

        Raises:
            OutputError: a part can not be read or put, or a record is damaged.
        """
        newest: dict[str, dict[str, Any] | None] = {}
        try:
            for fields in self.each():
                path = fields["path"]
                if fields["status"] == "ok":  # it counts, whatever failed after it
                    after = change(fields)
                    if after is not None or path in newest:
                        newest[path] = after
        except OSError as err:
            raise OutputError(f"{self.folder.name}: can not be read ({_why(err)})") from err
        except ValueError as err:
            raise OutputError(f"{self.folder.name}: a record can not be changed ({err})") from err
        changed = [fields for fields in newest.values() if fields is not None]
        for fields in changed:
            self._writer.write_line(line_of(fields))
        self._writer.flush()
        return len(changed)

    def drop(self, predicate: Callable[[dict[str, Any]], bool]) -> int:
        """How many inputs are no longer done: those whose newest record fits.

        Their records stay in their parts; the ones that follow take their place.
        """
        newest = {fields["path"]: predicate(fields) for fields in self.each()}
        gone = [path for path, fits in newest.items() if fits]
        for path in gone:
            self._index.remove(path)
        return len(gone)

    def complete(self, counts: dict[str, Any]) -> None:
        """Marks the shard as one that came to its end; what is waiting is put before."""
        self._writer.flush()
        mark_complete(self.folder, self.identity, counts)

    def close(self) -> None:
        """Puts what is waiting."""
        self._writer.close()

    def __enter__(self) -> PartResults:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except OutputError as err:
            if error is None:
                raise
            log.warning("%s", err)  # the run ends with its own error


def read_done(folder: str | Folder, identity: ShardIdentity) -> DoneIndex:
    """What the parts of this shard hold.

    Raises:
        OutputError: like `PartResults`.
    """
    folder = open_folder(folder) if isinstance(folder, str) else folder
    index = DoneIndex()
    try:
        for mark in read_marks(folder):
            _refuse_other(folder, mark, identity)
        for name in parts_of(folder, identity.shard):
            if name.suffix == "parquet":
                for path, content_id, status, stamp in keys_of_parquet(_bytes_of(folder, name)):
                    index.add(path, content_id, failed=status == "failed", stamp=stamp)
            else:
                for fields in read_part(folder, name):
                    index.add_fields(fields)
    except OSError as err:
        raise OutputError(
            f"{folder.name}: can not be read ({_why(err)}); check the name and the credentials"
        ) from err
    return index


def mark_complete(folder: str | Folder, identity: ShardIdentity, counts: dict[str, Any]) -> None:
    """Writes that a shard came to its end.

    Args:
        counts: of the run; "inputs" is how many inputs the shard has.

    Raises:
        OutputError: it can not be written.
    """
    _put_mark(open_folder(folder) if isinstance(folder, str) else folder, identity, counts)


def read_marks(folder: Folder) -> list[dict[str, Any]]:
    """The marks of all shards that were begun, as `{identity…, "complete", "counts"}`.

    Raises:
        OutputError: one is damaged.
        OSError: the folder can not be read.
    """
    found = []
    for stat in folder.list(MARKS):
        try:
            fields = json.loads(folder.read(stat.key))
            ShardIdentity.from_dict(fields)
        except (ValueError, RecursionError) as err:
            raise OutputError(f"{folder.name}/{stat.key}: damaged ({err}); delete it") from err
        found.append(fields)
    return found


def parts_of(folder: Folder, shard: Shard | None = None) -> list[PartName]:
    """The parts of a shard, or all, the oldest first; raises OSError."""
    beginning = "part-" if shard is None else f"part-{_shard_word(shard)}-"
    names = (PartName.parse(stat.key) for stat in folder.list(beginning))
    return sorted((name for name in names if name is not None), key=lambda name: name.age)


def read_part(folder: Folder, name: PartName) -> Iterator[dict[str, Any]]:
    """The records of a part, as JSON objects.

    Raises:
        OutputError: it is damaged.
        OSError: it can not be read.
    """
    for line in read_part_lines(folder, name):
        yield checked_record(f"{folder.name}/{name.text}", line)


def read_part_lines(folder: Folder, name: PartName) -> Iterator[bytes]:
    """The records of a part as lines; raises like `read_part`."""
    data = _bytes_of(folder, name)
    if name.suffix == "parquet":
        yield from lines_of_parquet(data)
    else:
        yield from data.splitlines(keepends=True)


def _bytes_of(folder: Folder, name: PartName) -> bytes:
    data = folder.read(name.text)
    if hashlib.sha256(data).hexdigest()[:16] != name.digest:
        raise OutputError(
            f"{folder.name}/{name.text}: not the bytes that were written; delete it and run "
            f"shard {name.shard} again"
        )
    return data


def _put_mark(folder: Folder, identity: ShardIdentity, counts: dict[str, Any] | None) -> None:
    fields = {"vtag": 1, **identity.to_dict(), "complete": counts is not None, "counts": counts}
    try:
        folder.put(f"{MARKS}{_shard_word(identity.shard)}.json", json.dumps(fields).encode())
    except OSError as err:
        raise _cannot_write(folder, err) from err


def _refuse_other(folder: Folder, mark: dict[str, Any], identity: ShardIdentity) -> None:
    other = ShardIdentity.from_dict(mark)
    differs = [
        what
        for what, theirs, ours in (
            ("another number of shards", other.shard.count, identity.shard.count),
            ("other inputs", other.plan, identity.plan),
            ("another model", other.model, identity.model),
        )
        if theirs != ours
    ]
    if differs:
        raise OutputError(
            f"{folder.name}: holds shard {other.shard} of {' and '.join(differs)}; "
            "choose another --out"
        )


def _shard_word(shard: Shard) -> str:
    return f"{shard.index:05d}of{shard.count:05d}"


def _cannot_write(folder: Folder, error: OSError) -> OutputError:
    return OutputError(
        f"{folder.name}: results can not be written ({_why(error)}); check the credentials and "
        "run the same command again: it goes on where this one stopped"
    )


def _why(error: OSError) -> str:
    return error.strerror or str(error)
