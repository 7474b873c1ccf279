"""Parts and merging: one record per input, and nothing missing without a word."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import Fault, Server, s3_server

from vtag.cli import main
from vtag.errors import ConfigError, OutputError
from vtag.manifest import Manifest, write_manifest
from vtag.merge import merge
from vtag.parts import PartName, PartResults, PartWriter, mark_complete, parts_of, read_done
from vtag.records import Failure, ModelInfo, Record, SourceFacts
from vtag.remote_folder import open_folder
from vtag.results import ResultsWriter
from vtag.shard_mark import mark_path, read_mark, write_mark
from vtag.shards import Shard, ShardIdentity
from vtag.sources import Source

MODEL = ModelInfo("m", "f1", 3)


def record(path: str, *, ok: bool = True, content: str = "c", etag: str | None = None) -> Record:
    error = None if ok else Failure(code="corrupt", stage="video", message="bad", retryable=False)
    source = SourceFacts(size=3, etag=etag, modified=None) if etag else None
    return Record(
        path=path,
        status="ok" if ok else "failed",
        id=f"sha256:{content}",
        error=error,
        model=MODEL,
        source=source,
        warnings=(content,),
    )


def identity(index: int = 1, count: int = 1, plan: str = "inputs:x") -> ShardIdentity:
    return ShardIdentity(Shard(index, count), plan, "f1")


def shard_file(
    folder: Path, index: int, count: int, records: list[Record], *, complete: bool = True, **of: Any
) -> str:
    out = folder / f"tags-{index}.jsonl"
    with ResultsWriter(out, model_fingerprint="f1") as results:
        for each in records:
            results.write(each)
    paths = {each.path for each in records}
    counts = {"inputs": of.pop("inputs", len(paths))} if complete else None
    write_mark(out, identity(index, count, **of), counts)
    return str(out)


def merged(outputs: list[str], out: Path, **options: Any) -> list[dict[str, Any]]:
    merge(outputs, out, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def three(folder: Path) -> list[str]:
    return [shard_file(folder, i, 3, [record(f"v{i}.mp4"), record(f"w{i}.mp4")]) for i in (1, 2, 3)]


def test_whole_shards_make_one_file(tmp_path: Path) -> None:
    found = merged(three(tmp_path), tmp_path / "all.jsonl")
    assert [r["path"] for r in found] == [f"{c}{i}.mp4" for i in (1, 2, 3) for c in "vw"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    outputs = [shard_file(tmp_path, i, 9, [record(f"v{i}")]) for i in (1, 5, 9)]
    with pytest.raises(ConfigError, match=r"missing shards: 2-4, 6-8 of 9"):
        merge(outputs, tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()
    result = merge(outputs, tmp_path / "all.jsonl", partial=True)
    assert (result.records, result.shards) == (3, 3)
    assert "2-4, 6-8" in result.missing[0]


def test_unfinished_shards_are_named(tmp_path: Path) -> None:
    outputs = three(tmp_path)[:2]
    outputs.append(shard_file(tmp_path, 3, 3, [record("x")], complete=False))
    with pytest.raises(ConfigError, match=r"unfinished shards: 3 of 3"):
        merge(outputs, tmp_path / "all.jsonl")


def test_a_shard_that_is_there_twice_is_named(tmp_path: Path) -> None:
    outputs = three(tmp_path)
    (tmp_path / "again").mkdir()
    outputs.append(shard_file(tmp_path / "again", 2, 3, [record("v2.mp4")]))
    with pytest.raises(ConfigError, match=r"shard 2/3 is there twice: .*tags-2.* and .*again"):
        merge(outputs, tmp_path / "all.jsonl")


def test_shards_that_share_an_input_are_refused(tmp_path: Path) -> None:
    outputs = [
        shard_file(tmp_path, 1, 2, [record("a"), record("both")]),
        shard_file(tmp_path, 2, 2, [record("b"), record("both")]),
    ]
    with pytest.raises(ConfigError, match="1 inputs have records in two shards, the first is both"):
        merge(outputs, tmp_path / "all.jsonl")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (identity(2, 4), "another number of shards"),
        (identity(2, 3, "inputs:y"), "another plan"),
        (ShardIdentity(Shard(2, 3), "inputs:x", "f2"), "another model"),
    ],
)
def test_shards_of_different_divisions_are_refused(
    tmp_path: Path, other: ShardIdentity, message: str
) -> None:
    outputs = three(tmp_path)
    mark_path(Path(outputs[1])).unlink()
    write_mark(Path(outputs[1]), other, {"inputs": 2})
    with pytest.raises(ConfigError, match=message):
        merge(outputs, tmp_path / "all.jsonl")


def test_a_shard_without_its_mark_is_not_taken_for_anything(tmp_path: Path) -> None:
    outputs = three(tmp_path)
    mark_path(Path(outputs[1])).unlink()
    with pytest.raises(ConfigError, match=r"tags-2.jsonl: does not say which shard it is"):
        merge(outputs, tmp_path / "all.jsonl")


def test_lost_records_are_noticed_by_the_count(tmp_path: Path) -> None:
    outputs = three(tmp_path)
    lines = Path(outputs[2]).read_text().splitlines(keepends=True)
    Path(outputs[2]).write_text(lines[0])
    with pytest.raises(ConfigError, match=r"tags-3.jsonl: 2 inputs were done, and 1 records"):
        merge(outputs, tmp_path / "all.jsonl")


def test_outputs_without_shards_are_only_joined(tmp_path: Path) -> None:
    for name, records in (
        ("a", [record("x", ok=False), record("y", content="old")]),
        ("b", [record("x", content="now ok"), record("y", ok=False), record("z", ok=False)]),
        ("c", [record("y", content="new"), record("z", ok=False, content="last")]),
    ):
        with ResultsWriter(tmp_path / name) as results:
            for each in records:
                results.write(each)
    found = merged([str(tmp_path / n) for n in "abc"], tmp_path / "all.jsonl")
    assert {r["path"]: (r["status"], r["warnings"][0]) for r in found} == {
        "x": ("ok", "now ok"),
        "y": ("ok", "new"),
        "z": ("failed", "last"),
    }


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12), min_size=1, max_size=4
    )
)
def test_the_record_that_counts_is_the_newest_of_the_best(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[tuple[int, bool]]]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    serial = 0
    expected: dict[str, tuple[bool, int]] = {}
    for number, rows in enumerate(files):
        lines = []
        for input_number, ok in rows:
            serial += 1
            path = f"input {input_number}"
            lines.append(json.dumps(record(path, ok=ok, content=str(serial)).to_dict()))
            if ok or not expected.get(path, (False, 0))[0]:
                expected[path] = (ok, serial)
        (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    outputs = [str(folder / f"{number}.jsonl") for number in range(len(files))]
    found = merged(outputs, folder / "all.jsonl")
    assert {r["path"]: (r["status"] == "ok", int(r["warnings"][0])) for r in found} == expected
    assert len(found) == len(expected)
    before = (folder / "all.jsonl").read_bytes()
    merge(outputs, folder / "all.jsonl")
    assert (folder / "all.jsonl").read_bytes() == before


def test_a_plan_tells_what_is_missing_and_what_is_too_much(tmp_path: Path) -> None:
    write_manifest(tmp_path / "plan.jsonl", [Source(f"s3://b/{n}", size=n) for n in range(9)])
    with ResultsWriter(tmp_path / "tags.jsonl") as results:
        for n in (0, 1, 2, 3, 77):
            results.write(record(f"s3://b/{n}"))
    manifest = Manifest(str(tmp_path / "plan.jsonl"))
    with pytest.raises(ConfigError) as caught:
        merge([str(tmp_path / "tags.jsonl")], tmp_path / "all.jsonl", manifest=manifest)
    assert "5 inputs have no record: s3://b/4, s3://b/5, s3://b/6, s3://b/7, s3://b/8" in str(
        caught.value
    )
    assert "1 records are of no row, the first is s3://b/77" in str(caught.value)


def test_another_plan_than_that_of_the_shards_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "plan.jsonl", [Source("a", size=1)])
    manifest = Manifest(str(tmp_path / "plan.jsonl"))
    out = shard_file(tmp_path, 1, 1, [record("a")], plan="manifest:other")
    with pytest.raises(ConfigError, match="another plan"):
        merge([out], tmp_path / "all.jsonl", manifest=manifest)
    mark_path(Path(out)).unlink()
    write_mark(Path(out), identity(plan=manifest.plan().fingerprint), {"inputs": 1})
    assert merge([out], tmp_path / "all.jsonl", manifest=manifest).records == 1


def test_results_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    for name, model in (("a", "f1"), ("b", "f2")):
        fields = {**record(name).to_dict(), "model": {"name": "m", "fingerprint": model}}
        (tmp_path / name).write_text(json.dumps(fields) + "\n")
    with pytest.raises(ConfigError, match="merge results of one model"):
        merge([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "all.jsonl")


def test_several_shards_may_follow_each_other_into_one_file(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    for index in (1, 2):
        with ResultsWriter(out) as results:
            results.write(record(f"v{index}"))
        write_mark(out, identity(index, 2), {"inputs": 1})
    assert [mark["index"] for mark in read_mark(out)] == [1, 2]
    assert merge([str(out)], tmp_path / "all.jsonl").records == 2
    with pytest.raises(OutputError, match="another number of shards"):
        write_mark(out, identity(1, 3), None)
    with pytest.raises(OutputError, match="other inputs"):
        write_mark(out, identity(1, 2, "inputs:z"), None)


def test_a_last_line_that_was_cut_off_is_passed_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "tags.jsonl"
    with ResultsWriter(out, model_fingerprint="f1") as results:
        results.write(record("a"))
        results.write(record("b"))
    out.write_bytes(out.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert [r["path"] for r in merged([str(out)], tmp_path / "all.jsonl")] == ["a"]
    told = {r.getMessage() for r in caplog.records}
    assert told == {f"{out}: the last line is torn and was passed over"}


def test_damage_is_told_and_never_merged(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{broken\n" * 2)
    with pytest.raises(OutputError, match="a: line 1"):
        merge([str(tmp_path / "a")], tmp_path / "all.jsonl")
    with pytest.raises(ConfigError, match="no such output"):
        merge([str(tmp_path / "none")], tmp_path / "all.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="holds no parts"):
        merge([str(tmp_path / "folder")], tmp_path / "all.jsonl")
    out = shard_file(tmp_path, 1, 1, [record("a")])
    mark_path(Path(out)).write_text("{")
    with pytest.raises(OutputError, match=r"shard.json: damaged"):
        merge([out], tmp_path / "all.jsonl")


# -- parts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with s3_server() as made:
        yield made


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "parts")
    server: Server = request.getfixturevalue("one_server")
    server.faults = []
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://library/{tmp_path.name}"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_resume_and_merge(folder: str, tmp_path: Path, kind: Any) -> None:
    with PartResults(folder, identity(), kind=kind) as results:
        results.write(record("s3://b/1", content="one", etag="e1"))
        results.write(record("odd\udcff.mp4", ok=False, content="two"))
    with PartResults(folder, identity(), kind=kind) as again:
        assert (again.counts.ok, again.counts.failed, again.counts.written) == (1, 1, 0)
        assert again.done("s3://b/1", "sha256:one")
        assert not again.done("s3://b/1", "sha256:other")
        assert again.done_as("s3://b/1", "e1:3:")
        assert not again.done_as("s3://b/1", "e2:3:")
        assert not again.done_as("s3://b/2", "e1:3:")
        assert again.failed("odd\udcff.mp4")
        assert again.drop(lambda fields: fields["status"] == "failed") == 1
        assert not again.done("odd\udcff.mp4", None)
        again.write(record("odd\udcff.mp4", content="three"))
        again.complete({"inputs": 2})
    found = merged([folder], tmp_path / "all.jsonl")
    assert {r["path"]: r["id"] for r in found} == {
        "s3://b/1": "sha256:one",
        "odd\udcff.mp4": "sha256:three",
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_in_parts_are_amended_by_newer_ones(folder: str, tmp_path: Path, kind: Any) -> None:
    def change(fields: dict[str, Any]) -> dict[str, Any] | None:
        said = {"sha256:one": ["new"], "sha256:four": ["newer"]}.get(fields["id"])
        return None if said is None or fields["warnings"] == said else fields | {"warnings": said}

    with PartResults(folder, identity(), kind=kind) as results:
        results.write(record("a", content="one"))
        results.write(record("b", content="two"))
        results.write(record("c", content="one"))
    with PartResults(folder, identity(), kind=kind) as results:
        results.write(record("a", content="three"))  # replaced: what was said was of another
        results.write(record("c", content="one", ok=False))
    with PartResults(folder, identity(), kind=kind) as results:
        assert results.amend(change) == 1
        results.write(record("d", content="four"))
    with PartResults(folder, identity(), kind=kind) as results:
        assert results.amend(change) == 1
        assert results.amend(change) == 0
        assert (results.counts.ok, results.counts.failed) == (4, 0)
        results.complete({"inputs": 4})
    found = merged([folder], tmp_path / "all.jsonl")
    assert {r["path"]: r["warnings"] for r in found} == {
        "a": ["three"],
        "b": ["two"],
        "c": ["new"],
        "d": ["newer"],
    }


def test_many_writers_of_one_shard_make_one_output(folder: str, tmp_path: Path) -> None:
    # As the workers of an engine do: parts under one identity, some inputs done twice.
    writers = [PartWriter(folder, identity(), max_records=3) for _ in range(4)]
    rng = random.Random(1)
    for n in range(40):
        for writer in rng.sample(writers, rng.choice([1, 1, 2])):
            writer.write(record(f"v{n}"))
    for writer in writers:
        writer.close()
    mark_complete(folder, identity(), {"inputs": 40})
    assert read_done(folder, identity()).ok == 40
    assert sorted(r["path"] for r in merged([folder], tmp_path / "all.jsonl")) == sorted(
        f"v{n}" for n in range(40)
    )


def test_a_folder_is_of_one_division(folder: str) -> None:
    PartResults(folder, identity(1, 4)).close()
    PartResults(folder, identity(2, 4)).close()
    for other, message in (
        (identity(1, 5), "another number of shards"),
        (identity(1, 4, "inputs:y"), "other inputs"),
        (ShardIdentity(Shard(1, 4), "inputs:x", "f2"), "another model"),
    ):
        with pytest.raises(OutputError, match=message):
            PartResults(folder, other)


def test_shards_in_one_folder_are_missed_and_told(folder: str, tmp_path: Path) -> None:
    for index in (1, 3):
        with PartResults(folder, identity(index, 4)) as results:
            results.write(record(f"v{index}"))
            if index == 1:
                results.complete({"inputs": 1})
    with pytest.raises(ConfigError, match=r"missing shards: 2, 4 of 4; unfinished shards: 3 of 4"):
        merge([folder], tmp_path / "all.jsonl")


def test_a_part_that_was_lost_or_damaged_is_noticed(folder: str, tmp_path: Path) -> None:
    with PartResults(folder, identity()) as results:
        results.write(record("a"))
        results._writer.flush()
        results.write(record("b"))
        results.complete({"inputs": 2})
    where = open_folder(folder)
    first, second = parts_of(where)
    data = where.read(second.text)
    where.put(second.text, data.replace(b'"b"', b'"x"'))
    with pytest.raises(OutputError, match="not the bytes that were written"):
        merge([folder], tmp_path / "all.jsonl")
    with pytest.raises(OutputError, match="run shard 1/1 again"):
        PartResults(folder, identity())
    where.delete(second.text)
    with pytest.raises(ConfigError, match="2 inputs were done, and 1 records are there"):
        merge([folder], tmp_path / "all.jsonl")
    assert first.shard == Shard(1, 1)


def test_a_part_that_could_not_be_put_is_put_with_the_next(
    one_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in one_server.environment.items():
        monkeypatch.setenv(name, value)
    writer = PartWriter("s3://library/later", identity(), max_records=1)
    one_server.faults = [Fault("PUT", "later", status=403, code="AccessDenied")]
    with pytest.raises(OutputError, match="can not be written"):
        writer.write(record("a"))
    one_server.faults = [Fault("PUT", "later", status=503, code="SlowDown")]
    writer.write(record("b"))
    assert read_done("s3://library/later", identity()).ok == 2


def test_names_of_parts_sort_by_age_and_others_are_no_parts() -> None:
    name = "part-00003of00064-20260102T030405123456-9f2c11d07a3b-00001-8d5e0f1c2b3a4958.jsonl"
    parsed = PartName.parse(name)
    assert parsed is not None
    assert (parsed.shard, parsed.number) == (Shard(3, 64), 1)
    later = PartName.parse(name.replace("20260102", "20260103"))
    assert later is not None
    assert later.age > parsed.age
    for other in (f"{name}.part", name.replace("00003", "00065"), "tags.jsonl", f"x{name}"):
        assert PartName.parse(other) is None


def test_the_command_merges_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = three(tmp_path)
    out, counts = str(tmp_path / "all.jsonl"), tmp_path / "counts.json"
    assert main(["merge", *outputs, "--out", out, "--summary-json", str(counts)]) == 0
    assert "6 records of 3 shards (6 ok, 0 failed; 0 replaced by newer ones)" in (
        capsys.readouterr().err
    )
    assert json.loads(counts.read_text())["records"] == 6
    assert main(["merge", *outputs[:2], "--out", out]) == 2
    assert "missing shards: 3 of 3" in capsys.readouterr().err
    assert main(["merge", *outputs[:2], "--out", out, "--partial"]) == 1
    assert main(["merge", str(tmp_path / "tags-*.jsonl"), "--out", out]) == 0
    assert main(["merge", *outputs, "--out", "s3://b/x"]) == 2
    os.remove(outputs[0])
    assert main(["merge", *outputs, "--out", out]) == 2
