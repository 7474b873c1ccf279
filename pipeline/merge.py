"""Many outputs to one: exactly one record per input, or a refusal that says what is missing.

What shards say of themselves (`vtag.shard_mark`, the marks of `vtag.parts`) is checked first:
one plan, one division, every shard there once and come to its end. Then every record is looked
at twice: once to find which one of an input counts, once to write it. Only hashes and places are
kept in between, in a SQLite file, so that memory does not grow with the number of records.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from vtag.errors import ConfigError, OutputError
from vtag.manifest import Manifest
from vtag.merge_outputs import Output, Piece, output_of
from vtag.record_lines import checked_record
from vtag.run_lock import RunLock
from vtag.shards import Shard, ShardIdentity
from vtag.storage import reason, write_whole

_BATCH_ROWS: Final = 5000
_NAMED: Final = 5  # so many inputs are named in a message, the rest counted


@dataclass
class Merged:
    """The counts of a merge. `records == ok + failed`, each input once."""

    records: int = 0
    ok: int = 0
    failed: int = 0
    replaced: int = 0  # records of inputs that had a newer or a better one
    shards: int = 0  # 0 where the outputs say nothing of shards
    missing: list[str] = field(default_factory=list)  # what is not there, when that was allowed


def merge(
    outputs: Sequence[str],
    out: Path,
    *,
    manifest: Manifest | None = None,
    partial: bool = False,
) -> Merged:
    """Writes one file of results out of many.

    An input that has several records keeps the newest that is ok, or the newest failure if none
    is. Later outputs are newer than earlier ones, later lines newer than those before, and parts
    tell their age. The same outputs in the same order give the same file to the byte.

    Args:
        outputs: files of results, and folders of parts.
        out: the file to write; it is replaced whole.
        manifest: what was to be tagged: every row must have its record, and nothing else.
        partial: take what is there; what is missing is told in the result.

    Raises:
        ConfigError: shards are missing, there twice, unfinished, or of different divisions;
            inputs have no record, or records no input.
        OutputError: a file is damaged or can not be written.
    """
    found = [output_of(name) for name in outputs]
    summary = Merged()
    _check_shards(found, manifest, summary, partial=partial)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        RunLock(out),
        tempfile.TemporaryDirectory(prefix=".vtag-merge-", dir=out.parent) as folder,
        closing(sqlite3.connect(Path(folder) / "places.sqlite")) as places,
    ):
        pieces = [piece for output in found for piece in output.pieces]
        seen = _collect(places, pieces)
        _refuse_overlaps(places, found, pieces)
        _check_counts(places, found, pieces, summary, partial=partial)
        if manifest is not None:
            _check_manifest(places, manifest, pieces, summary, partial=partial)
        try:
            write_whole(out, _winners(places, pieces, summary), mode=None)
        except OSError as err:
            raise OutputError(f"{out}: can not be written ({reason(err)})") from err
    summary.replaced = seen - summary.records
    return summary


# -- shards -------------------------------------------------------------------------------------


def _check_shards(
    outputs: Sequence[Output], manifest: Manifest | None, summary: Merged, *, partial: bool
) -> None:
    marked = [output for output in outputs if output.marks]
    if not marked:
        return
    if len(marked) < len(outputs):
        bare = next(output.name for output in outputs if not output.marks)
        raise ConfigError(
            f"{bare}: does not say which shard it is, and {marked[0].name} does; merge outputs of "
            "one kind (a shard's .shard.json must be moved with its file)"
        )
    where: dict[int, str] = {}
    first = ShardIdentity.from_dict(marked[0].marks[0])
    unfinished = []
    for output in marked:
        for mark in output.marks:
            identity = ShardIdentity.from_dict(mark)
            _refuse_other_division(first, marked[0].name, identity, output.name)
            index = identity.shard.index
            if index in where:
                raise ConfigError(
                    f"shard {identity.shard} is there twice: {where[index]} and {output.name}; "
                    "leave one out"
                )
            where[index] = output.name
            if not mark.get("complete"):
                unfinished.append(index)
    if manifest is not None and first.plan.startswith("manifest:"):
        planned = manifest.plan().fingerprint
        if planned != first.plan:
            raise ConfigError(
                f"{manifest.name}: is another plan ({planned}) than that of {marked[0].name} "
                f"({first.plan})"
            )
    summary.shards = len(where)
    absent = [index for index in range(1, first.shard.count + 1) if index not in where]
    complaints = []
    if absent:
        complaints.append(f"missing shards: {_numbers(absent)} of {first.shard.count}")
    if unfinished:
        complaints.append(
            f"unfinished shards: {_numbers(unfinished)} of {first.shard.count} (run them again: "
            "they go on where they stopped)"
        )
    _complain(complaints, summary, partial=partial)


def _refuse_other_division(
    first: ShardIdentity, first_name: str, other: ShardIdentity, name: str
) -> None:
    for what, theirs, ours in (
        ("number of shards", other.shard.count, first.shard.count),
        ("plan", other.plan, first.plan),
        ("model", other.model, first.model),
    ):
        if theirs != ours:
            raise ConfigError(
                f"{name}: has another {what} ({theirs}) than {first_name} ({ours}); merge the "
                "shards of one division"
            )


def _refuse_overlaps(
    places: sqlite3.Connection, outputs: Sequence[Output], pieces: Sequence[Piece]
) -> None:
    """Two shards of one division never have an input in common."""
    if not any(output.marks for output in outputs):
        return
    count, piece, row = places.execute(
        "SELECT count(*), min(piece), row FROM best WHERE owners > 1"
    ).fetchone()
    if count:
        path = _path_at(pieces[piece], row)
        raise ConfigError(
            f"{count} inputs have records in two shards, the first is {path}: the shards overlap, "
            "so they are not of one division of the same inputs"
        )


def _check_counts(
    places: sqlite3.Connection,
    outputs: Sequence[Output],
    pieces: Sequence[Piece],
    summary: Merged,
    *,
    partial: bool,
) -> None:
    """Every shard that came to its end must have as many records as it had inputs."""
    owner_of = _owners(outputs)
    found: dict[int, int] = dict(
        places.execute("SELECT owner, count(*) FROM best GROUP BY owner").fetchall()
    )
    complaints = []
    for number, output in enumerate(outputs):
        promised: dict[int, int] = {}
        for mark in output.marks:
            inputs = (mark.get("counts") or {}).get("inputs", 0)
            shard = ShardIdentity.from_dict(mark).shard
            owner = owner_of[(number, shard if output.is_parts else None)]
            promised[owner] = promised.get(owner, 0) + int(inputs)
        complaints += [
            f"{output.name}: {inputs} inputs were done, and {found.get(owner, 0)} records are there"
            for owner, inputs in promised.items()
            if found.get(owner, 0) < inputs
        ]
    _complain(complaints, summary, partial=partial)


def _check_manifest(
    places: sqlite3.Connection,
    manifest: Manifest,
    pieces: Sequence[Piece],
    summary: Merged,
    *,
    partial: bool,
) -> None:
    lost: list[str] = []
    count = 0
    for batch in _batches(source.path for source in manifest.rows()):
        for path in batch:
            hit = places.execute("UPDATE best SET planned = 1 WHERE key = ?", (_key(path),))
            if hit.rowcount == 0:
                count += 1
                if len(lost) < _NAMED:
                    lost.append(path)
    complaints = []
    if count:
        names = ", ".join(lost) + (", …" if count > len(lost) else "")
        complaints.append(f"{manifest.name}: {count} inputs have no record: {names}")
    extra, piece, row = places.execute(
        "SELECT count(*), min(piece), row FROM best WHERE planned = 0"
    ).fetchone()
    if extra:
        path = _path_at(pieces[piece], row)
        complaints.append(f"{manifest.name}: {extra} records are of no row, the first is {path}")
    _complain(complaints, summary, partial=partial)


def _complain(complaints: list[str], summary: Merged, *, partial: bool) -> None:
    summary.missing += complaints
    if complaints and not partial:
        raise ConfigError("; ".join(complaints) + " (--partial takes what is there)")


def _numbers(indices: list[int]) -> str:
    """`[1, 2, 3, 7]` as "1-3, 7"."""
    groups = groupby(enumerate(sorted(indices)), key=lambda item: item[1] - item[0])
    runs = [[index for _, index in group] for _, group in groups]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# -- records ------------------------------------------------------------------------------------


def _collect(places: sqlite3.Connection, pieces: Sequence[Piece]) -> int:
    """How many records there are; the place of the one that counts is kept for each input."""
    places.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        "CREATE TABLE best (key BLOB PRIMARY KEY, ok INTEGER, piece INTEGER, row INTEGER,"
        " owner INTEGER, owners INTEGER, planned INTEGER) WITHOUT ROWID;"
    )
    seen = 0
    model: tuple[str, str] | None = None
    owners: dict[object, int] = {}
    for number, piece in enumerate(pieces):
        owner = owners.setdefault(_owner_key(piece), len(owners))
        for batch in _batches(enumerate(piece.read())):
            rows = []
            for row, line in batch:
                fields = checked_record(piece.name, line)
                model = _one_model(model, fields, piece.name)
                ok = int(fields["status"] == "ok")
                rows.append((_key(fields["path"]), ok, number, row, owner))
            places.executemany(
                "INSERT INTO best VALUES (?1, ?2, ?3, ?4, ?5, 1, 0) ON CONFLICT (key) DO UPDATE SET"
                " owners = owners + (owner <> ?5),"
                " piece = CASE WHEN ?2 >= ok THEN ?3 ELSE piece END,"
                " row = CASE WHEN ?2 >= ok THEN ?4 ELSE row END,"
                " ok = max(ok, ?2)",
                rows,
            )
            seen += len(rows)
    return seen


def _winners(
    places: sqlite3.Connection, pieces: Sequence[Piece], summary: Merged
) -> Iterator[bytes]:
    """The lines of the records that count, in the order of the pieces."""
    places.execute("CREATE INDEX by_place ON best (piece, row)")
    for number, piece in enumerate(pieces):
        wanted = places.execute("SELECT row, ok FROM best WHERE piece = ? ORDER BY row", (number,))
        chosen = wanted.fetchone()
        for row, line in enumerate(piece.read()):
            if chosen is None:
                break
            if row == chosen[0]:
                summary.records += 1
                summary.ok += chosen[1]
                summary.failed += 1 - chosen[1]
                yield line if line.endswith(b"\n") else line + b"\n"
                chosen = wanted.fetchone()
        if chosen is not None:
            raise OutputError(f"{piece.name}: was changed while it was merged; merge again")


def _owner_key(piece: Piece) -> object:
    """What may have an input alone: a shard of a folder of parts, or a file."""
    return piece.name if piece.shard is None else (piece.name.rpartition("/")[0], piece.shard)


def _owners(outputs: Sequence[Output]) -> dict[tuple[int, Shard | None], int]:
    """The numbers that `_collect` gives, by output and shard; shards without records too."""
    numbers: dict[object, int] = {}
    found: dict[tuple[int, Shard | None], int] = {}
    for number, output in enumerate(outputs):
        for piece in output.pieces:
            found[(number, piece.shard)] = numbers.setdefault(_owner_key(piece), len(numbers))
    free = -1
    for number, output in enumerate(outputs):
        for mark in output.marks:
            place = (number, ShardIdentity.from_dict(mark).shard if output.is_parts else None)
            if place not in found:
                found[place], free = free, free - 1
    return found


def _one_model(
    model: tuple[str, str] | None, fields: dict[str, Any], name: str
) -> tuple[str, str] | None:
    theirs = fields.get("model")
    fingerprint = theirs.get("fingerprint") if isinstance(theirs, dict) else None
    if fingerprint is None:
        return model
    if model is not None and model[0] != fingerprint:
        raise ConfigError(
            f"{name}: holds tags of model {fingerprint!r:.80}, and {model[1]} of {model[0]!r:.80}; "
            "merge results of one model"
        )
    return model or (str(fingerprint), name)


def _key(path: str) -> bytes:
    # 16 bytes: two of 100 million paths meet with a chance of 1e-23.
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _path_at(piece: Piece, wanted: int) -> str:
    for row, line in enumerate(piece.read()):
        if row == wanted:
            return str(checked_record(piece.name, line)["path"])
    return "unknown"


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) >= _BATCH_ROWS:
            yield batch
            batch = []
    yield batch
