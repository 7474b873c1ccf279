"""Corrections: read, applied to records new and old, and learnt from."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from media import draw_clip
from report_library import content_id, write_results

from vtag.cli import main
from vtag.content_id import ContentIds
from vtag.corrections import Corrector, read_corrections
from vtag.dataset_corrections import corrected_items
from vtag.dataset_items import Item
from vtag.errors import ConfigError, OutputError
from vtag.models.labels import Label, LabelSet
from vtag.records import Evidence, Media, ModelInfo, Record, Segment, Tag
from vtag.results import ResultsWriter, read_records
from vtag.sidecar_change import tags_of

LABELS = LabelSet(
    [
        Label("n1", "dog", parents=("n9",), threshold=0.6),
        Label("n2", "cat", parents=("n9",)),
        Label("n9", "animal", threshold=0.3, members=("n1", "n2")),
    ]
)
DOG = Tag(
    id="n1",
    name="dog",
    score=0.9,
    threshold=0.6,
    categories=("animal",),
    sources=("visual",),
    segments=(Segment(0.0, 2.0, 0.9),),
    evidence=(Evidence(1.0, 0.5),),
)
ANIMAL = Tag(id="n9", name="animal", score=0.95, threshold=0.3, sources=("visual",))
RECORD = Record(
    path="a.mp4",
    status="ok",
    id="sha256:aa",
    media=Media(duration=2.0),
    tags=(ANIMAL, DOG),
    model=ModelInfo("m", "f1", 3),
)


def line(**changes: Any) -> dict[str, Any]:
    fields = {"vtag_corrections": 1, "id": "sha256:aa", "path": "a.mp4", "wrong": [], "added": []}
    return fields | {"time": "2026-11-24T10:00:00.000Z"} | changes


def corrector(tmp_path: Path, *lines: dict[str, Any]) -> Corrector:
    return Corrector(read_corrections([write_results(tmp_path / "c.jsonl", lines)]), LABELS)


class TestReading:
    def test_the_later_one_counts_whatever_the_order(self, tmp_path: Path) -> None:
        early = line(wrong=["n1"], time="2026-11-24T10:00:00Z")
        late = line(added=["cat"], time="2026-11-24T13:00:00+01:00")  # noon in UTC
        other = line(id="sha256:bb", wrong=["n2"])
        for order in ([early, late, other], [late, other, early]):
            found = read_corrections([write_results(tmp_path / "c.jsonl", order)])
            assert found["sha256:aa"].wrong == ()
            assert found["sha256:aa"].added == ("cat",)
            assert found["sha256:bb"].wrong == ("n2",)
        first = write_results(tmp_path / "1.jsonl", [late])
        second = write_results(tmp_path / "2.jsonl", [early])
        assert read_corrections([first, second])["sha256:aa"].added == ("cat",)

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"vtag_corrections": 2}, "schema 2"),
            ({"id": None}, "id is a text"),
            ({"wrong": "n1"}, "wrong is a list"),
            ({"added": [" "]}, "1 to 200 characters"),
            ({"added": ["x" * 201]}, "1 to 200 characters"),
            ({"added": ["a\x00b"]}, "control characters"),
            ({"time": "yesterday"}, "yesterday"),
            ({"time": "2026-11-24T10:00:00"}, "no zone"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, tmp_path: Path, fields: dict[str, Any], why: str
    ) -> None:
        path = write_results(tmp_path / "c.jsonl", [line(), line(**fields)])
        with pytest.raises(ConfigError, match=f"line 2 .*{why}"):
            read_corrections([path])

    def test_results_are_no_corrections(self, tmp_path: Path) -> None:
        path = write_results(tmp_path / "tags.jsonl", [RECORD.to_dict()])
        with pytest.raises(ConfigError, match="vtag_corrections"):
            read_corrections([path])
        with pytest.raises(ConfigError, match="can not be read"):
            read_corrections([tmp_path / "missing.jsonl"])


class TestApplying:
    def test_wrong_ones_go_and_added_ones_come(self, tmp_path: Path) -> None:
        said = line(wrong=["n1"], added=["Cat", "beach  ball"])
        after = corrector(tmp_path, said).apply(RECORD)
        assert [(t.id, t.name, t.score) for t in after.tags] == [
            ("n2", "cat", 1.0),
            ("beach ball", "beach ball", 1.0),
            ("n9", "animal", 0.95),
        ]
        cat = after.tags[0]
        assert (cat.threshold, cat.categories, cat.sources) == (0.5, ("animal",), ())
        assert after.corrections is not None
        assert after.corrections.removed == (DOG,)
        assert after.corrections.added == ("n2", "beach ball")
        # Readers of schema 1 take it: the sidecars' is the strictest of them.
        fields = json.loads(json.dumps(after.to_dict()))
        assert [t.name for t in tags_of(fields)] == ["cat", "beach ball", "animal"]

    def test_it_is_about_the_content_and_not_the_name(self, tmp_path: Path) -> None:
        said = corrector(tmp_path, line(wrong=["n1"]))
        renamed = Record(path="b.mp4", status="ok", id="sha256:aa", tags=(DOG,))
        other = Record(path="a.mp4", status="ok", id="sha256:bb", tags=(DOG,))
        assert said.apply(renamed).tags == ()
        assert said.apply(other) is other

    def test_what_is_there_is_not_added_twice(self, tmp_path: Path) -> None:
        said = corrector(tmp_path, line(added=["DOG", "animal", "dog"]))
        assert said.apply(RECORD) is RECORD

    def test_old_records_change_as_new_ones_do(self, tmp_path: Path) -> None:
        said = corrector(tmp_path, line(wrong=["n1"], added=["cat"]))
        old = json.loads(json.dumps(RECORD.to_dict()))
        new = json.loads(json.dumps(said.apply(RECORD).to_dict()))
        assert said.amend(old) == new
        assert said.amend(new) is None  # a second time nothing happens

    def test_the_order_of_the_model_comes_back(self, tmp_path: Path) -> None:
        # A breed before the kinds above it, which are surer.
        order = [("n3", 0.6), ("n1", 0.9), ("n9", 0.95), ("n5", 0.7)]
        tags = tuple(replace(DOG, id=one, score=score) for one, score in order)
        old = json.loads(json.dumps(replace(RECORD, tags=tags).to_dict()))
        said = corrector(tmp_path, line(wrong=["n3", "n9"], added=["cat"]))
        new = said.amend(old)
        assert new is not None
        assert [tag["id"] for tag in new["tags"]] == ["n2", "n1", "n5"]
        assert said.amend(new) is None
        assert corrector(tmp_path, line(time="2026-11-26T00:00:00Z")).amend(new) == old

    def test_a_later_correction_replaces_the_earlier_one(self, tmp_path: Path) -> None:
        first = corrector(tmp_path, line(wrong=["n1"], added=["cat"]))
        fields = first.amend(json.loads(json.dumps(RECORD.to_dict())) | {"of the future": 1})
        assert fields is not None
        later = corrector(tmp_path, line(wrong=["n9"], time="2026-11-25T00:00:00Z"))
        after = later.amend(fields)
        assert after is not None
        assert [t["id"] for t in after["tags"]] == ["n1"]
        assert after["tags"][0] == json.loads(json.dumps(asdict(DOG)))
        assert after["of the future"] == 1
        # Nothing is wrong any more: the record is the model's again.
        taken_back = corrector(tmp_path, line(time="2026-11-26T00:00:00Z"))
        assert taken_back.amend(after) == json.loads(json.dumps(RECORD.to_dict())) | {
            "of the future": 1
        }

    def test_a_file_of_results_is_rewritten_whole(self, tmp_path: Path) -> None:
        out = tmp_path / "tags.jsonl"
        others = [Record(path=f"{n}.mp4", status="ok", id=f"sha256:{n}") for n in range(3)]
        with ResultsWriter(out) as results:
            for one in (others[0], RECORD, *others[1:]):
                results.write(one)
        before = out.read_bytes().splitlines()
        with ResultsWriter(out) as results:
            assert results.amend(corrector(tmp_path, line(wrong=["n1"])).amend) == 1
            assert results.done("a.mp4", "sha256:aa")
            results.write(Record(path="new.mp4", status="ok", id="sha256:n"))
        after = out.read_bytes().splitlines()
        assert [after[0], *after[2:4]] == [before[0], *before[2:]]
        assert len(list(read_records(out))) == 5
        assert json.loads(after[1])["corrections"]["removed"][0]["id"] == "n1"

    def test_a_damaged_record_stops_it_and_nothing_changes(self, tmp_path: Path) -> None:
        fields = RECORD.to_dict() | {"tags": [{"id": 1}]}
        out = write_results(tmp_path / "tags.jsonl", [fields])
        before = out.read_bytes()
        said = corrector(tmp_path, line(wrong=["n1"]))
        with ResultsWriter(out) as results, pytest.raises(OutputError, match=r"a\.mp4.*damaged"):
            results.amend(said.amend)
        assert out.read_bytes() == before


class TestLearning:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("a", "b", "c"):
            (tmp_path / f"{name}.mp4").write_bytes(name.encode())
        return tmp_path

    def items(self, folder: Path, *lines: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
        given = [
            Item(path=folder / "a.mp4", labels=("dog", "grass")),
            Item(path=folder / "b.mp4", labels=("cat",)),
        ]
        found = read_corrections([write_results(folder / "c.jsonl", lines)])
        items, notes = corrected_items(
            given, found, content_id=ContentIds(None).of, folders=[folder / "elsewhere", folder]
        )
        return {item.path.name: item.labels for item in items}, notes

    def of(self, name: str) -> str:
        return "sha256:" + hashlib.sha256(name.encode()).hexdigest()

    def test_clips_that_are_there_get_other_labels(self, folder: Path) -> None:
        said = line(
            id=self.of("a"), path="old name", wrong=["n1"], wrong_names=["dog"], added=["cat"]
        )
        labels, notes = self.items(folder, said)
        assert labels == {"a.mp4": ("cat", "grass"), "b.mp4": ("cat",)}
        assert len(notes) == 1

    def test_corrected_clips_come_in(self, folder: Path) -> None:
        said = line(id=self.of("c"), path="c.mp4", added=["bird"], kept=["cat", "never learnt"])
        labels, _ = self.items(folder, said)
        assert labels["c.mp4"] == ("bird", "cat")

    def test_one_with_wrong_tags_only_shows_what_not_to_tag(self, folder: Path) -> None:
        said = line(id=self.of("c"), path="c.mp4", wrong=["cat"], kept=["sofa"])
        labels, _ = self.items(folder, said)
        assert labels["c.mp4"] == ()

    def test_another_content_under_the_name_is_left_out(self, folder: Path) -> None:
        said = line(id=self.of("another"), path="c.mp4", added=["bird"])
        labels, notes = self.items(folder, said)
        assert set(labels) == {"a.mp4", "b.mp4"}
        assert "left out: c.mp4" in notes[0]

    def test_what_was_taken_back_is_nothing(self, folder: Path) -> None:
        labels, notes = self.items(folder, line(id=self.of("c"), path="c.mp4"))
        assert set(labels) == {"a.mp4", "b.mp4"}
        assert notes == ()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(8):
        size = (160, 96) if number % 2 else (96, 160)
        draw_clip(folder / f"{number}.mp4", seconds=1, fps=10 + number, size=size)
    return folder


class TestCommands:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "own cache"))

    def test_run_applies_them_to_new_and_old_records(
        self, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one, two = clips / "0.mp4", clips / "1.mp4"
        out, file = str(tmp_path / "tags.jsonl"), str(tmp_path / "c.jsonl")
        write_results(
            tmp_path / "c.jsonl",
            [line(id=content_id(p), added=["golden retriever"]) for p in (one, two)],
        )
        assert main(["run", str(one), "--out", out, "--threshold", "0", "--top-k", "3"]) == 0
        (plain,) = read_records(Path(out))
        flags = ["--threshold", "0", "--top-k", "3", "--corrections", file]
        assert main(["run", str(one), str(two), "--out", out, *flags]) == 0
        assert "1 earlier records changed" in capsys.readouterr().err
        for fields in read_records(Path(out)):
            assert fields["tags"][0]["name"] == "golden retriever"
            assert fields["tags"][0]["id"].startswith("n")  # the model knows it
            assert fields["corrections"]["added"] == [fields["tags"][0]["id"]]
        nothing = [line(id=content_id(p), time="2027-01-01T00:00:00Z") for p in (one, two)]
        write_results(tmp_path / "c.jsonl", nothing)
        assert main(["run", str(one), str(two), "--out", out, *flags]) == 0
        assert next(iter(read_records(Path(out)))) == plain

    def test_train_learns_from_corrections_alone(self, clips: Path, tmp_path: Path) -> None:
        shutil.copytree(clips, tmp_path / "clips")
        lines = [
            line(
                id=content_id(path),
                path=f"clips/{path.name}",
                added=["wide" if int(path.stem) % 2 else "tall"],
            )
            for path in clips.glob("*.mp4")
        ]
        file = write_results(tmp_path / "c.jsonl", lines)
        made = tmp_path / "model"
        command = ["train", "--corrections", str(file), "--out", str(made), "--epochs", "1", "-q"]
        assert main(command) == 0
        labels = json.loads((made / "labels.json").read_text())
        assert [label["name"] for label in labels] == ["tall", "wide"]

    def test_train_without_anything_is_told_so(self, tmp_path: Path) -> None:
        assert main(["train", "--out", str(tmp_path / "model")]) == 2

    def test_a_bad_file_starts_nothing(self, clips: Path, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text("{}\n")
        out = tmp_path / "tags.jsonl"
        flags = ["--corrections", str(tmp_path / "c.jsonl")]
        assert main(["run", str(clips), "--out", str(out), *flags]) == 2
        assert not out.exists()
