"""Manifests: what is read is what was written, and what makes no sense is told by its row."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import s3_server

from vtag.errors import ConfigError
from vtag.manifest import FORMATS, Manifest, write_manifest
from vtag.shards import Shard
from vtag.sources import Source

ROWS = [
    Source("s3://b/a.mp4", size=10, duration=1.5, etag="e1", modified=1700000000.25),
    Source('s3://b/with, comma and "quotes".mp4', size=0),
    Source("https://h/x.mp4?X-Amz-Signature=abc&v=2", etag="e2"),
    Source("videos/ü 日本.mp4", duration=2.0),
    Source("/abs/line.mp4"),
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_back_what_it_holds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    assert write_manifest(path, ROWS) == len(ROWS)
    found = list(Manifest(str(path)).rows())
    expected = [Source(row.uri) for row in ROWS] if suffix == ".txt" else ROWS
    assert found == expected
    assert path.stat().st_mode & 0o077 == 0  # it may hold signatures


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda t: f"d/{t}")


@settings(max_examples=40)
@given(st.lists(st.tuples(NAMES, st.none() | st.integers(0, 1 << 50)), max_size=5))
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_any_names_survive(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[tuple[str, int | None]]
) -> None:
    sources = [Source(name, size=size) for name, size in rows if "\0" not in name]
    path = tmp_path_factory.mktemp("m") / f"m{suffix}"
    write_manifest(path, sources)
    assert list(Manifest(str(path)).rows()) == sources


def test_undecodable_names_survive_in_text(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes(b"\xef\xbb\xbfa.mp4\r\n\n# note\nb\xff.mp4\n")
    assert [s.path for s in Manifest(str(tmp_path / "m.txt")).rows()] == ["a.mp4", "b\udcff.mp4"]


def test_a_file_of_results_is_a_manifest(tmp_path: Path) -> None:
    record = {"schema": 1, "path": "s3://b/a.mp4", "media": {"duration": 7.5}, "tags": []}
    record["source"] = {"size": 9, "etag": "e", "modified": 1.5}
    (tmp_path / "tags.jsonl").write_text(json.dumps(record) + "\n")
    expected = Source("s3://b/a.mp4", size=9, duration=7.5, etag="e", modified=1.5)
    assert list(Manifest(str(tmp_path / "tags.jsonl")).rows()) == [expected]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "name,size\na.mp4,1\n", "names the columns"),
        ("m.csv", "uri,size\na.mp4,1\nb.mp4,many\n", "row 2: size"),
        ("m.csv", 'uri\n"a\n', "damaged"),
        ("m.jsonl", '{"uri": "a"}\n{"uri": \n', "row 2 is damaged"),
        ("m.jsonl", '{"uri": "a"}\n[]\n', "row 2 is damaged"),
        ("m.jsonl", '{"size": 3}\n', "row 1: a row without a uri"),
        ("m.jsonl", '{"uri": "zip://x::s3://b/k"}\n', "row 1: .*not spoken"),
        ("m.txt", "a.mp4\nfilecache::s3://b/k\n", "row 2: .*chains"),
        ("m.txt", "a.mp4\nmemory://b/k\n", "row 2: .*not spoken"),
        ("m.xlsx", "", "a manifest ends in"),
        ("m.parquet", "not parquet", "m.parquet"),
    ],
)
def test_a_damaged_manifest_is_refused_by_its_row(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(Manifest(str(tmp_path / name)).rows())


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        list(Manifest(str(tmp_path / "m.txt")).rows())


def test_a_text_can_not_hold_every_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write \.jsonl"):
        write_manifest(tmp_path / "m.txt", [Source("a\nb.mp4")])
    assert list(tmp_path.iterdir()) == []


def test_an_input_named_twice_is_refused_with_both_rows(tmp_path: Path) -> None:
    rows = ["https://h/a?sig=1", "b", "c", "https://h/a?sig=2"]
    (tmp_path / "m.txt").write_text("\n".join(rows))
    with pytest.raises(ConfigError, match="rows 1 and 4 name the same input"):
        Manifest(str(tmp_path / "m.txt")).plan()


def test_a_remote_manifest_names_remote_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for key, body in (
            ("good.jsonl", b'{"uri": "s3://library/a.mp4", "size": 3}\n'),
            ("evil.txt", b"s3://library/a.mp4\n/etc/passwd\n"),
            ("evil.csv", b"uri\nfile:///etc/passwd\n"),
        ):
            server.client.put_object(Bucket="library", Key=key, Body=body)
        good = Manifest("s3://library/good.jsonl")
        assert [s.size for s in good.sources()] == [3]
        for name, row in (("evil.txt", 2), ("evil.csv", 1)):
            with pytest.raises(ConfigError, match=f"row {row}: .*remote objects only"):
                list(Manifest(f"s3://library/{name}").sources())
        with pytest.raises(ConfigError, match="no such object"):
            Manifest("s3://library/none.txt").plan()


def rows_of(count: int, seed: int = 1) -> list[Source]:
    rng = random.Random(seed)
    return [Source(f"s3://b/{n}.mp4", size=int(rng.paretovariate(1.1) * 1e6)) for n in range(count)]


def written(path: Path, rows: list[Source]) -> Manifest:
    write_manifest(path, rows)
    return Manifest(str(path))


def test_shards_divide_a_manifest_evenly_and_alike_whatever_its_order(tmp_path: Path) -> None:
    rows = rows_of(400)
    first = written(tmp_path / "a.jsonl", rows)
    random.Random(5).shuffle(rows)
    second = written(tmp_path / "b.csv", rows)
    assert first.plan().fingerprint == second.plan().fingerprint
    sizes = []
    seen: list[str] = []
    for index in range(1, 9):
        mine = list(first.sources(Shard(index, 8)))
        assert {s.path for s in mine} == {s.path for s in second.sources(Shard(index, 8))}
        sizes.append(sum((s.size or 0) + (1 << 20) for s in mine))
        seen += [s.path for s in mine]
    assert sorted(seen) == sorted(s.path for s in rows)
    biggest = max((s.size or 0) + (1 << 20) for s in rows)
    assert max(sizes) <= max(biggest, 1.01 * np.mean(sizes))


def test_the_plan_tells_other_rows_and_other_sizes_apart(tmp_path: Path) -> None:
    rows = rows_of(5)
    words = {written(tmp_path / "a.jsonl", rows).plan().fingerprint}
    words.add(written(tmp_path / "b.jsonl", rows[:-1]).plan().fingerprint)
    words.add(written(tmp_path / "c.jsonl", [*rows[:-1], Source(rows[-1].uri)]).plan().fingerprint)
    assert len(words) == 3


def test_without_sizes_names_decide_as_in_a_folder(tmp_path: Path) -> None:
    manifest = written(tmp_path / "m.txt", rows_of(60))
    for index in (1, 2, 3):
        shard = Shard(index, 3)
        expected = [s.path for s in rows_of(60) if shard.holds(s.path)]
        assert [s.path for s in manifest.sources(shard)] == expected


def test_a_manifest_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    manifest = written(path, rows_of(6))
    manifest.plan()
    write_manifest(path, rows_of(7))
    with pytest.raises(ConfigError, match="was changed"):
        list(manifest.sources(Shard(1, 2)))
