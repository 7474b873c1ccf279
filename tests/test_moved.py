"""Renamed, moved, copied and deleted files between two runs on one output."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from vtag.moved import Library, is_under, record_from
from vtag.records import (
    Corrected,
    Evidence,
    Failure,
    Media,
    ModelInfo,
    Record,
    Segment,
    Tag,
)
from vtag.results import ResultsWriter, read_records
from vtag.run import Summary, run

TAG = Tag(
    id="n1",
    name="dog",
    score=0.75,
    threshold=0.5,
    categories=("animal",),
    sources=("visual", "audio"),
    segments=(Segment(0.0, 1.5, 0.8),),
    evidence=(Evidence(1.0, 0.25),),
)
WHOLE = Record(
    path="a.mp4",
    status="ok",
    id="sha256:a",
    media=Media(duration=2.0, fps=25.0, width=4, height=2, video_codec="h264", has_video=True),
    tags=(TAG,),
    model=ModelInfo(name="m", fingerprint="f", labels=3),
    timing={"total": 1.0},
    warnings=("damaged",),
    corrections=Corrected(time="2026-01-01T00:00:00+00:00", removed=(TAG,), added=("n1",)),
)


class CountingPipeline:
    """Tags a file by its text, and counts how often it had to."""

    def __init__(self) -> None:
        self.tagged: list[str] = []

    def content_id(self, path: Path) -> str:
        return f"sha256:{path.read_text()}"

    def try_tag(self, path: str, content_id: str) -> Record:
        self.tagged.append(path)
        tag = Tag(id="t", name=content_id, score=0.9, threshold=0.5)
        return Record(path=path, status="ok", id=content_id, tags=(tag,), timing={"decode": 1.0})


def go(out: Path, *inputs: Path, pipeline: CountingPipeline | None = None) -> Summary:
    """One run of these files, as `vtag run FOLDER`; the folder is that of the first one."""
    summary = Summary()
    with ResultsWriter(out) as results:
        library = Library(results)
        pipeline = pipeline or CountingPipeline()
        list(
            run(
                pipeline,  # type: ignore[arg-type]
                [str(path) for path in inputs],
                library,
                summary,
                workers=1,
                earlier=library.earlier,
            )
        )
        gone = library.gone([str(inputs[0].parent)])
        summary.moved = library.forget(gone.moved)
        summary.deleted = len(gone.deleted)
    return summary


def tags_of(out: Path) -> dict[str, list[str]]:
    """Path -> names of its tags; fails if a path has two records."""
    found: dict[str, list[str]] = {}
    for fields in read_records(out):
        name = Path(fields["path"]).name
        assert name not in found
        found[name] = [tag["name"] for tag in fields["tags"]]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_text(name)
    return folder


def test_a_record_survives_its_json() -> None:
    fields = json.loads(json.dumps(WHOLE.to_dict()))
    assert record_from(fields) == WHOLE
    failure = Failure(code="empty", stage="open", message="", retryable=False)
    failed = Record(path="x", status="failed", error=failure)
    assert record_from(json.loads(json.dumps(failed.to_dict()))) == failed
    assert record_from({**fields, "tags": [{**fields["tags"][0], "new": 1}]}) == WHOLE
    for broken in ({"tags": 3}, {"media": {}}, {"status": "failed"}, {"tags": [{}]}):
        assert record_from({**fields, **broken}) is None


def test_a_renamed_file_keeps_its_tags_without_decoding(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    go(out, *sorted(folder.iterdir()))
    (folder / "b.mp4").rename(folder / "z.mp4")
    pipeline = CountingPipeline()
    summary = go(out, *sorted(folder.iterdir()), pipeline=pipeline)
    assert pipeline.tagged == []
    assert (summary.tagged, summary.repeated, summary.skipped, summary.cached) == (1, 1, 2, 0)
    assert (summary.moved, summary.deleted) == (1, 0)
    assert tags_of(out) == {
        "a.mp4": ["sha256:a"],
        "c.mp4": ["sha256:c"],
        "z.mp4": ["sha256:b"],
    }


def test_a_copy_has_a_record_of_its_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    pipeline = CountingPipeline()
    summary = go(out, *sorted(folder.iterdir()), pipeline=pipeline)
    assert len(pipeline.tagged) == 3
    assert (summary.inputs, summary.tagged, summary.repeated) == (4, 4, 1)
    assert tags_of(out)["copy.mp4"] == tags_of(out)["a.mp4"] == ["sha256:a"]
    assert all(fields["timing"] != {} or "copy" in fields["path"] for fields in read_records(out))


def test_two_files_that_change_their_names(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    go(out, *sorted(folder.iterdir()))
    (folder / "a.mp4").rename(folder / "x")
    (folder / "b.mp4").rename(folder / "a.mp4")
    (folder / "x").rename(folder / "b.mp4")
    pipeline = CountingPipeline()
    summary = go(out, *sorted(folder.iterdir()), pipeline=pipeline)
    assert pipeline.tagged == []
    assert (summary.moved, summary.deleted) == (0, 0)
    assert tags_of(out) == {
        "a.mp4": ["sha256:b"],
        "b.mp4": ["sha256:a"],
        "c.mp4": ["sha256:c"],
    }


def test_the_old_name_leaves_also_if_the_run_before_was_killed(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.jsonl"
    go(out, *sorted(folder.iterdir()))
    (folder / "b.mp4").rename(folder / "z.mp4")
    with ResultsWriter(out) as results:  # killed before it tidied up
        library = Library(results)
        record = library.earlier(str(folder / "z.mp4"), "sha256:b")
        assert record is not None
        library.write(record)
    assert len(tags_of(out)) == 4
    assert go(out, *sorted(folder.iterdir())).moved == 1
    assert sorted(tags_of(out)) == ["a.mp4", "c.mp4", "z.mp4"]


def test_a_file_from_another_folder_leaves_its_old_record(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "t.jsonl", tmp_path / "other"
    other.mkdir()
    go(out, *sorted(folder.iterdir()))
    (folder / "b.mp4").rename(other / "b2.mp4")
    assert go(out, other / "b2.mp4").moved == 1
    assert sorted(tags_of(out)) == ["a.mp4", "b2.mp4", "c.mp4"]


def test_the_same_folder_in_another_spelling_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.jsonl"
    monkeypatch.chdir(folder.parent)
    short = [Path(folder.name, name) for name in sorted(os.listdir(folder))]
    go(out, *short)
    assert go(out, *sorted(folder.iterdir())).moved == 3
    paths = {json.loads(line)["path"] for line in out.read_text().splitlines()}
    assert paths == {str(path) for path in folder.iterdir()}
    both = go(out, *short, *sorted(folder.iterdir()))  # who asks for both gets both
    assert both.moved == 0
    assert len(out.read_text().splitlines()) == 6


def test_deleted_files_are_told_and_keep_their_records(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    go(out, *sorted(folder.iterdir()))
    (folder / "c.mp4").unlink()
    assert go(out, *sorted(folder.iterdir())).deleted == 1
    assert sorted(tags_of(out)) == ["a.mp4", "b.mp4", "c.mp4"]


def test_what_is_gone_everywhere_was_not_moved(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "t.jsonl", tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "b.mp4", other / "copy.mp4")
    go(out, *sorted(folder.iterdir()))
    go(out, other / "copy.mp4")
    shutil.rmtree(other)
    (folder / "b.mp4").unlink()
    summary = go(out, *sorted(folder.iterdir()))  # does not look into the other folder
    assert (summary.moved, summary.deleted) == (0, 1)
    assert sorted(tags_of(out)) == ["a.mp4", "b.mp4", "c.mp4", "copy.mp4"]


def test_what_this_run_did_not_look_at_is_not_deleted(folder: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "t.jsonl", tmp_path / "videos2"
    other.mkdir()
    (other / "d.mp4").write_text("d")
    go(out, *sorted(folder.iterdir()))
    shutil.rmtree(folder)
    summary = go(out, other / "d.mp4")  # its name begins with that of the other folder
    assert (summary.moved, summary.deleted) == (0, 0)
    folder.mkdir()  # a disk that is not mounted: the folder is there, and empty
    with ResultsWriter(out) as results:
        assert Library(results).gone([str(folder)]).deleted == ()


def test_a_changed_file_is_not_taken_for_its_old_self(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.jsonl"
    go(out, *sorted(folder.iterdir()))
    (folder / "b.mp4").write_text("new")
    pipeline = CountingPipeline()
    go(out, *sorted(folder.iterdir()), pipeline=pipeline)
    assert pipeline.tagged == [str(folder / "b.mp4")]
    assert tags_of(out)["b.mp4"] == ["sha256:new"]
    # And the old content, which comes back under another name, is tagged: its record is gone.
    (folder / "old.mp4").write_text("b")
    go(out, *sorted(folder.iterdir()), pipeline=pipeline)
    assert tags_of(out)["old.mp4"] == ["sha256:b"]


def test_a_failed_record_is_not_repeated(tmp_path: Path) -> None:
    failure = Failure(code="corrupt", stage="open", message="", retryable=False)
    with ResultsWriter(tmp_path / "t.jsonl") as results:
        results.write(Record(path="a", status="failed", id="sha256:a", error=failure))
        assert Library(results).earlier("b", "sha256:a") is None


def test_the_place_of_a_content_is_right_after_a_rewrite(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "t.jsonl") as results:
        for n in range(20):
            results.write(Record(path=f"p{n}" * (n + 1), status="ok", id=f"sha256:{n}"))
            assert results.of_content(f"sha256:{n}") is not None
        results.drop(lambda fields: fields["id"] in ("sha256:3", "sha256:11"))
        for n in range(20):
            found = results.of_content(f"sha256:{n}")
            assert (found or {}).get("id") == (None if n in (3, 11) else f"sha256:{n}")


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("videos/a", "videos", True),
        ("videos2/a", "videos", False),
        ("a/b", ".", True),
        ("../b", ".", False),
        ("/a/b", ".", False),
        ("/a/b", "/", True),
        ("/a", "/a", False),
    ],
)
def test_what_is_in_a_folder(path: str, root: str, expected: bool) -> None:
    assert is_under(path.replace("/", os.sep), root.replace("/", os.sep)) is expected
