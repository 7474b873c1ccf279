"""CSV and Parquet: one row per tag and segment, nothing a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidecar_samples import BEACH, DOG, HOSTILE, record

from vtag import sidecar_tables
from vtag.errors import EnvironmentProblem, OutputError
from vtag.sidecar_tables import COLUMNS, Row, csv_chunks, guarded, rows, write_table

FAILED = record("bad.mp4", status="failed", id=None, media=None, model=None)
FAILED |= {"error": {"code": "corrupt", "stage": "video", "message": "=1", "retryable": False}}


def table_of(
    *records: dict[str, Any], max_tags: int | None = None, min_score: float = 0
) -> list[Row]:
    return [row for r in records for row in rows(r, min_score=min_score, max_tags=max_tags)]


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def test_a_row_per_tag_and_segment() -> None:
    found = table_of(record("a.mp4", DOG, BEACH, replace(DOG, name="bare", score=0.1, segments=())))
    assert [(r["label"], r["start"], r["end"], r["segment_score"]) for r in found] == [
        ("dog", 2.0, 11.5, 0.95),
        ("dog", 60.0, 62.4, 0.7),
        ("seashore", 5.0, 61.0, 0.8),
        ("bare", None, None, None),
    ]
    assert found[0] | {"start": 0, "end": 0, "segment_score": 0} == {
        "path": "a.mp4", "id": "sha256:00", "status": "ok", "error": None, "duration": 62.4,
        "label_id": "n02084071", "label": "dog", "score": 0.93, "threshold": 0.5,
        "categories": "animal > mammal", "source": "visual+audio",
        "start": 0, "end": 0, "segment_score": 0, "model": "f1",
    }  # fmt: skip


def test_every_video_has_a_row() -> None:
    found = table_of(record("none.mp4"), FAILED)
    assert [(r["path"], r["status"], r["error"], r["label"]) for r in found] == [
        ("none.mp4", "ok", None, None),
        ("bad.mp4", "failed", "corrupt", None),
    ]
    bare = {key: value for key, value in record("bare.mp4").items() if key in ("path", "status")}
    (row,) = table_of(bare | {"tags": []})  # what `read_records` lets through
    assert {key: value for key, value in row.items() if value is not None} == {
        "path": "bare.mp4", "status": "ok",
    }  # fmt: skip


def test_the_first_tags_and_those_above_a_score() -> None:
    mixed = record("a", BEACH, DOG, HOSTILE)
    assert {r["label"] for r in table_of(mixed, max_tags=1)} == {"seashore"}  # the first
    assert {r["label"] for r in table_of(mixed, min_score=0.7)} == {"dog", "seashore"}


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "＝1", "'=1", "'", "a=1", "", "1-2"],
)
def test_a_cell_is_no_formula_and_comes_back(cell: str) -> None:
    assert guarded(cell)[:1] not in set("=+-@\t\r\n＝＋－＠")
    assert guarded(cell).removeprefix("'") == cell
    assert (guarded(cell) == cell) == (cell in ("a=1", "", "1-2"))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)))
def test_csv_gives_any_text_back(texts: list[str]) -> None:
    table = [dict.fromkeys(COLUMNS) | {"path": text, "score": 0.1} for text in texts]
    found = read_csv(b"".join(csv_chunks(table)))
    assert [row["path"].removeprefix("'") for row in found] == texts
    assert {row["score"] for row in found} <= {"0.1"}


def test_undecodable_bytes_of_a_name_are_shown() -> None:
    (row,) = read_csv(b"".join(csv_chunks(table_of(record("a\udcff.mp4")))))
    assert row["path"] == "a\\udcff.mp4"


def test_a_table_is_written_once_and_replaced_only_if_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "tags.csv"
    wanted = table_of(record("a.mp4", DOG))
    assert write_table(path, "csv", lambda: wanted, dry_run=True)
    assert not path.exists()
    assert write_table(path, "csv", lambda: wanted, dry_run=False)
    before = path.stat()
    assert not write_table(path, "csv", lambda: wanted, dry_run=False)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert write_table(path, "csv", lambda: wanted[:1], dry_run=False)
    assert len(read_csv(path.read_bytes())) == 1
    path.write_text("my,own,table\n")
    with pytest.raises(OutputError, match="no table of vtag"):
        write_table(path, "csv", lambda: wanted, dry_run=False)
    assert path.read_text() == "my,own,table\n"


def test_a_table_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(next(csv_chunks(())))
    for target in ("target", "dangling"):
        link = tmp_path / f"{target}.csv"
        link.symlink_to(tmp_path / target)
        with pytest.raises(OutputError, match="link"):
            write_table(link, "csv", lambda: table_of(record("a")), dry_run=False)
    assert (tmp_path / "target").read_bytes() == next(csv_chunks(()))


def test_a_million_rows_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_tables, "_ROWS_PER_CHUNK", 10)
    taken = 0

    def table() -> Iterator[Row]:
        nonlocal taken
        for row in table_of(record("a.mp4")) * 100:
            taken += 1
            yield row

    chunks = csv_chunks(table())
    assert [next(chunks).count(b"\n"), taken, next(chunks).count(b"\n"), taken] == [1, 0, 10, 10]
    assert sum(chunk.count(b"\n") for chunk in chunks) == 90


@pytest.mark.parametrize(
    "changes",
    [
        {"tags": None},
        {"tags": ["dog"]},
        {"tags": [{"id": "x", "name": 3, "score": 1, "threshold": 1}]},
        {"tags": [{"id": "x", "name": "x", "score": True, "threshold": 1}]},
        {"tags": [json.loads('{"id": "x", "name": "x", "score": 1e999, "threshold": 1}')]},
        {"tags": [{"id": "x", "name": "x", "score": 1, "threshold": 1, "sources": ["nose"]}]},
        {"tags": [{"id": "x", "name": "x", "score": 1, "threshold": 1, "segments": [3]}]},
        {"media": []} | {"media": [1]},
        {"media": {"duration": "long"}},
        {"model": {"fingerprint": 3}},
    ],
)
def test_a_record_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not|no |too large"):
        table_of(record("a.mp4", **changes))


def test_parquet_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra: parquet)")
    monkeypatch.setattr(sidecar_tables, "_ROWS_PER_CHUNK", 2)
    path = tmp_path / "tags.parquet"
    wanted = table_of(record("=a.mp4", DOG, BEACH), FAILED)
    assert write_table(path, "parquet", lambda: wanted, dry_run=False)
    assert not write_table(path, "parquet", lambda: wanted, dry_run=False)
    assert parquet.read_table(path).to_pylist() == wanted
    odd = table_of(record("a\udcff.mp4"))
    assert write_table(path, "parquet", lambda: odd, dry_run=False)
    assert parquet.read_table(path).column("path").to_pylist() == ["a\\udcff.mp4"]
    for other in (b"PAR1", b"", b"x" * 100):
        path.write_bytes(other)
        with pytest.raises(OutputError, match="no table of vtag"):
            write_table(path, "parquet", lambda: wanted, dry_run=False)


def test_without_pyarrow_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'vtag\[parquet\]'"):
        write_table(tmp_path / "t.parquet", "parquet", list, dry_run=False)
    assert list(tmp_path.iterdir()) == []
