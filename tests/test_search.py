"""Searching: the same answers as looking at every record, whatever happened to the files."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from search_library import (
    append,
    as_text,
    drawn_query,
    drawn_records,
    record,
    slow_scores,
    slow_together,
    tag,
    write,
)

import vtag.search_index as search_index
from vtag import ConfigError
from vtag.errors import CacheError, EnvironmentProblem, OutputError
from vtag.search import search
from vtag.search_index import forget_indexes, index_path
from vtag.search_tables import TABLES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "indexes"


def paths(query: str, library: Path, folder: Path, **options: Any) -> list[str]:
    return [hit.path for hit in search(query, [library], folder=folder, limit=None, **options).hits]


class TestAnswers:
    @pytest.mark.parametrize("seed", range(3))
    def test_as_looking_at_every_record(self, seed: int, tmp_path: Path, folder: Path) -> None:
        records = drawn_records(seed, 40)
        library = write(tmp_path / "t.jsonl", *records)
        rng = random.Random(seed)
        matched = 0
        for _ in range(100):
            query = drawn_query(rng)
            text = as_text(query)
            found = search(text, [library], folder=folder, limit=None)
            scores = {hit.path: hit.score for hit in found.hits}
            assert scores == pytest.approx(slow_scores(query, records), abs=1e-4), text
            assert found.total == len(found.hits)
            assert [h.score for h in found.hits] == sorted(scores.values(), reverse=True)
            matched += 0 < len(scores) < len(records)
        assert matched > 30  # or the queries asked nothing

    @pytest.mark.parametrize("seed", range(1))
    def test_together_as_trying_every_moment(self, seed: int, tmp_path: Path, folder: Path) -> None:
        records = drawn_records(seed, 25)
        library = write(tmp_path / "t.jsonl", *records)
        rng = random.Random(seed + 100)
        matched = 0
        for _ in range(80):
            query = drawn_query(rng)
            text = as_text(query)
            found = set(paths(text, library, folder, together=True))
            assert found == slow_together(query, records), text
            matched += 0 < len(found) < len(records)
        assert matched > 20

    def test_best_first_and_the_whole_name_before_a_part(
        self, tmp_path: Path, folder: Path
    ) -> None:
        library = write(
            tmp_path / "t.jsonl",
            record("hot.mp4", tag("hot dog", 0.99)),
            record("unsure.mp4", tag("dog", 0.6)),
            record("sure.mp4", tag("dog", 0.9)),
            record("my dog.mp4"),
            record("kind.mp4", tag("golden retriever", 0.8)),
        )
        expected = ["sure.mp4", "kind.mp4", "unsure.mp4", "my dog.mp4", "hot.mp4"]
        assert paths("dog", library, folder) == expected
        found = search("dog", [library], folder=folder, limit=2)
        assert [hit.path for hit in found.hits] == expected[:2]
        assert found.total == 5

    def test_a_hit_has_the_tags_that_were_asked_for_at_the_times_that_fit(
        self, tmp_path: Path, folder: Path
    ) -> None:
        library = write(
            tmp_path / "t.jsonl",
            record(
                "a.mp4",
                tag("beach", 0.95, (0, 60)),
                tag("dog", 0.9, (2, 10), (50, 55), source="visual+audio"),
                tag("Café", 0.8, (1, 2)),
            ),
        )
        (hit,) = search("dog beach after:20 NOT path:zzz", [library], folder=folder).hits
        assert hit.to_dict() == {
            "score": 0.9,
            "path": "a.mp4",
            "id": "sha256:a.mp4",
            "library": str(library),
            "status": "ok",
            "duration": 60.0,
            "matches": [
                {
                    "id": "n4",
                    "name": "beach",
                    "score": 0.95,
                    "sources": ["visual"],
                    "segments": [{"start": 0, "end": 60, "score": 0.95}],
                },
                {
                    "id": "n1",
                    "name": "dog",
                    "score": 0.9,
                    "sources": ["visual", "audio"],
                    "segments": [{"start": 50, "end": 55, "score": 0.9}],
                },
            ],
        }

    def test_two_times_are_about_one_segment(self, tmp_path: Path, folder: Path) -> None:
        library = write(
            tmp_path / "t.jsonl",
            record("around.mp4", tag("dog", 0.9, (0, 10), (50, 60))),
            record("within.mp4", tag("dog", 0.9, (0, 10), (25, 26))),
        )
        assert paths("dog after:20 before:30", library, folder) == ["within.mp4"]

    def test_together_says_when(self, tmp_path: Path, folder: Path) -> None:
        library = write(
            tmp_path / "t.jsonl",
            record("never.mp4", tag("dog", 0.9, (0, 5)), tag("beach", 0.9, (5, 9))),
            record("once.mp4", tag("dog", 0.9, (0, 8)), tag("beach", 0.9, (6, 60))),
        )
        (hit,) = search("dog beach", [library], folder=folder, together=True).hits
        assert (hit.path, hit.together, hit.start) == ("once.mp4", ((6.0, 8.0),), 6.0)
        (hit,) = search("beach NOT dog", [library], folder=folder, together=True, limit=1).hits
        assert hit.together == ((5.0, 9.0),)
        # One after the other without a gap is one.
        (_, hit) = search("dog OR beach", [library], folder=folder, together=True).hits
        assert (hit.path, hit.together) == ("once.mp4", ((0.0, 60.0),))
        (hit, _) = search("dog OR beach", [library], folder=folder, together=True).hits
        assert (hit.path, hit.together) == ("never.mp4", ((0.0, 9.0),))
        # To the end of the video, not for ever.
        (hit,) = search("path:once -beach", [library], folder=folder, together=True).hits
        assert hit.together == ((0.0, 6.0),)

    def test_a_tag_that_two_words_name_counts_by_the_better_one(
        self, tmp_path: Path, folder: Path
    ) -> None:
        tags = [tag("hot dog", 0.8), tag("dog", 0.7)]
        library = write(tmp_path / "t.jsonl", record("a", *tags))
        for query in ('"hot dog" OR dog', 'dog OR "hot dog"'):
            (hit,) = search(query, [library], folder=folder).hits
            assert [match.name for match in hit.matches] == ["hot dog", "dog"]

    def test_a_tag_that_a_record_has_twice_is_one(self, tmp_path: Path, folder: Path) -> None:
        twice = [tag("dog", 0.5, (5, 6), source="audio"), tag("dog", 0.9, (1, 2))]
        library = write(tmp_path / "t.jsonl", record("a", *twice))
        (hit,) = search("dog source:heard after:5", [library], folder=folder).hits
        (match,) = hit.matches
        assert (match.score, match.sources) == (0.9, ("visual", "audio"))
        assert [(s.start, s.end) for s in match.segments] == [(5, 6)]

    def test_a_tag_that_a_person_added_is_found_by_that(self, tmp_path: Path, folder: Path) -> None:
        corrections = {"time": "2026-01-01T00:00:00+00:00", "removed": [], "added": ["x cat"]}
        mine = {**tag("cat", 1.0), "sources": []}
        library = write(
            tmp_path / "t.jsonl",
            {**record("mine", mine, tag("dog")), "corrections": corrections},
            record("model", tag("cat"), tag("dog")),
        )
        for query, found in [
            ("source:person", ["mine"]),
            ("cat source:person", ["mine"]),
            ("dog source:person", []),
            ("cat NOT source:person", ["model"]),
            ("source:seen cat", ["model"]),
            ("cat (source:seen OR source:person)", ["mine", "model"]),
        ]:
            assert paths(query, library, folder) == found, query
        (hit,) = search("cat source:person", [library], folder=folder).hits
        assert hit.matches[0].sources == ()  # as in the record

    def test_several_libraries_are_one(self, tmp_path: Path, folder: Path) -> None:
        first = write(tmp_path / "1.jsonl", record("a", tag("dog", 0.5)), record("b", tag("dog")))
        second = write(tmp_path / "2.jsonl", record("c", tag("dog", 0.7)))
        found = search("dog", [first, second, first], folder=folder, limit=2)
        assert [(hit.path, hit.library) for hit in found.hits] == [("b", first), ("c", second)]
        assert found.total == 3

    @pytest.mark.parametrize(
        "text", ['"', "*", "NEAR(a b)", "a^b", "{name}:x", "x' OR '1'='1", "NOT", "\0", "%_", "🐕"]
    )
    def test_what_is_an_operator_elsewhere_is_text_here(
        self, text: str, tmp_path: Path, folder: Path
    ) -> None:
        name = f"{text} zebra"
        library = write(tmp_path / "t.jsonl", record(name, tag(name)), record("other", tag("dog")))
        assert paths("zebra", library, folder) == [name]
        quoted = f'tag:"{name}"'.replace('""', '"').replace("\0", " ")
        if text != '"':
            assert paths(quoted, library, folder) == [name]

    def test_names_that_are_no_unicode(self, tmp_path: Path, folder: Path) -> None:
        odd = ["a\udcff dog.mp4", "b\ud800\0 dog.mp4", "日本 dog.mp4"]
        library = write(tmp_path / "t.jsonl", *(record(name) for name in odd))
        assert paths("dog", library, folder) == odd
        assert paths("日本", library, folder) == odd[2:]


class TestUpToDate:
    def read_lines(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Paths of the records that are read from now on."""
        real, read = search_index.lines, []

        def watched(path: Path, file: Any) -> Iterator[Any]:
            for line in real(path, file):
                read.append(line.record["path"])
                yield line

        monkeypatch.setattr(search_index, "lines", watched)
        return read

    def test_only_what_is_new_is_read(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = self.read_lines(monkeypatch)
        library = write(tmp_path / "t.jsonl", record("a", tag("dog")))
        assert paths("dog", library, folder) == ["a"]
        append(library, record("b", tag("dog", 0.5)), record("c", tag("zebra")))
        assert paths("dog", library, folder) == ["a", "b"]
        append(library, record("d", tag("zebra", 0.5)))
        assert paths("zebra", library, folder) == ["c", "d"]
        append(library, record("e", tag("zebra", 0.4)))
        assert paths("zebra", library, folder) == ["c", "d", "e"]
        assert read == ["a", "b", "c", "d", "e"]

    def test_a_later_record_of_a_path_replaces_the_earlier(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vtag.search_tables._BATCH", 3)
        first = [record(f"{n}.mp4", tag("dog"), tag("beach", 0.5)) for n in range(7)]
        library = write(tmp_path / "t.jsonl", *first, record("2.mp4", tag("beach", 0.8)))
        others = [f"{n}.mp4" for n in range(7) if n != 2]
        assert paths("dog", library, folder) == others
        assert paths("beach", library, folder) == ["2.mp4", *others]
        append(library, record("0.mp4", tag("Café")), record("2.mp4", failed=True))
        assert paths("dog", library, folder) == others[1:]
        assert paths("beach OR status:failed", library, folder) == ["2.mp4", *others[1:]]
        assert paths("path:mp4 cafe", library, folder) == ["0.mp4"]
        assert len(paths("path:mp4", library, folder)) == 7

    def changed(self, how: str, library: Path) -> None:
        text = library.read_text()
        middle = len(text) // 2
        cows = text[:middle] + text[middle:].replace('"dog"', '"cow"', 1)
        if how == "cut":
            os.truncate(library, text.index("\n") + 1)
        elif how == "replaced":
            write(library.with_suffix(".new"), record("new", tag("dog"))).replace(library)
        elif how == "replaced by a longer one":
            library.with_suffix(".new").write_text(cows + json.dumps(record("new")) + "\n")
            library.with_suffix(".new").replace(library)
        elif how == "written over":  # same inode, same size, same ends
            library.write_text(cows)
        elif how == "written over and longer":
            library.write_text(text.replace('"dog"', '"cow"') + text.replace('"0"', '"zero"'))
        elif how == "a line taken out":
            library.write_text("".join(text.splitlines(keepends=True)[1:]))
        else:
            write(library)

    @pytest.mark.parametrize(
        "how",
        [
            "cut",
            "replaced",
            "replaced by a longer one",
            "written over",
            "written over and longer",
            "a line taken out",
            "emptied",
        ],
    )
    def test_a_file_that_is_another_is_read_anew(
        self, how: str, tmp_path: Path, folder: Path
    ) -> None:
        everything = [record(str(n), tag("dog")) for n in range(60)]
        library = write(tmp_path / "t.jsonl", *everything)
        assert library.stat().st_size > 4 * search_index._EDGE_BYTES
        assert len(paths("dog", library, folder)) == 60
        self.changed(how, library)
        last = {r["path"]: r for r in map(json.loads, library.read_text().splitlines())}
        for name in ("dog", "cow"):
            expected = {path for path, r in last.items() if name in str(r["tags"])}
            assert set(paths(name, library, folder)) == expected

    def test_a_torn_last_line_waits_until_it_is_whole(self, tmp_path: Path, folder: Path) -> None:
        library = write(tmp_path / "t.jsonl", record("a", tag("dog")))
        line = json.dumps(record("b", tag("dog"))) + "\n"
        with library.open("a") as file:
            file.write(line[:40])
        assert paths("dog", library, folder) == ["a"]
        with library.open("a") as file:
            file.write(line[40:-1])  # whole, but for its end
        assert paths("dog", library, folder) == ["a", "b"]
        with library.open("a") as file:
            file.write("\n")
        append(library, record("c", tag("dog")))
        assert paths("dog", library, folder) == ["a", "b", "c"]

    def test_zeros_of_a_power_cut_after_indexed_lines_are_torn(
        self, tmp_path: Path, folder: Path
    ) -> None:
        library = write(tmp_path / "t.jsonl", record("a", tag("dog")))
        paths("dog", library, folder)
        with library.open("ab") as file:
            file.write(bytes(100))
        assert paths("dog", library, folder) == ["a"]

    @pytest.mark.parametrize(
        "bad",
        [
            '{"schema": 2}',
            "[]",
            "no JSON",
            json.dumps(record("x", {"name": "dog"})),
            json.dumps(record("x", tag("dog"))).replace("0.9", "1e999"),
            json.dumps(record("x", tag("dog"))).replace("visual", "smelled"),
            json.dumps({**record("x"), "tags": 3}),
            json.dumps({**record("x"), "corrections": {"added": 3}}),
        ],
    )
    def test_a_damaged_line_is_an_error_and_what_was_indexed_stays(
        self, bad: str, tmp_path: Path, folder: Path
    ) -> None:
        library = write(tmp_path / "t.jsonl", record("a", tag("dog")))
        paths("dog", library, folder)
        good = library.read_text()
        library.write_text(f"{good}{bad}\n{good}")
        with pytest.raises(OutputError, match=r"line 2|record of x"):
            search("dog", [library], folder=folder)
        library.write_text(good)
        assert paths("dog", library, folder) == ["a"]


class TestIndex:
    @pytest.fixture
    def library(self, tmp_path: Path) -> Path:
        records = drawn_records(1, 80)
        return write(tmp_path / "t.jsonl", *records)

    @pytest.mark.parametrize("damage", ["zeros", "empty", "half", "text", "page", "no table"])
    def test_a_damaged_one_is_made_again(
        self, damage: str, library: Path, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = search("dog OR beach", [library], folder=folder, limit=None)
        index = index_path(library, folder)
        raw = index.read_bytes()
        if damage == "no table":
            import sqlite3

            with sqlite3.connect(index) as database:
                database.execute("DROP TABLE postings")
            database.close()
        else:
            index.write_bytes(
                {
                    "zeros": bytes(len(raw)),
                    "empty": b"",
                    "half": raw[: len(raw) // 2],
                    "text": b"not a database at all" * 500,
                    "page": raw[:4096] + bytes(4096) + raw[8192:],
                }[damage]
            )
        with caplog.at_level(logging.WARNING):
            assert search("dog OR beach", [library], folder=folder, limit=None) == before
        assert ("made anew" in caplog.text) == (damage != "empty")
        caplog.clear()
        assert search("dog OR beach", [library], folder=folder, limit=None) == before
        assert caplog.text == ""

    def test_stopped_on_the_way_it_is_as_before(
        self, library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = search("dog", [library], folder=folder, limit=None)
        real = search_index.lines

        def stopping(path: Path, file: Any) -> Iterator[Any]:
            yield from list(real(path, file))[:2]
            raise KeyboardInterrupt

        append(library, *(record(f"n{n}", tag("zebra")) for n in range(5)))
        with monkeypatch.context() as patched:
            patched.setattr(search_index, "lines", stopping)
            with pytest.raises(KeyboardInterrupt):
                search("dog", [library], folder=folder)
        assert search("dog", [library], folder=folder, limit=None) == before
        assert len(paths("zebra", library, folder)) == 5

    def test_processes_at_once(self, library: Path, folder: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from vtag.search import search\n"
            "found = search('dog', [Path(sys.argv[1])], folder=Path(sys.argv[2]), limit=None)\n"
            "print([hit.path for hit in found.hits])"
        )
        command = [sys.executable, "-c", code, str(library), str(folder)]
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        answers = [process.communicate(timeout=60) for process in running]
        expected = str(paths("dog", library, folder)) + "\n"
        assert answers == [(expected, "")] * 3

    def test_one_that_is_held_too_long_is_said(
        self, library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sqlite3
        from contextlib import closing

        paths("dog", library, folder)
        append(library, record("n", tag("dog")))
        monkeypatch.setattr(search_index, "BUSY_SECONDS", 0.05)
        with closing(sqlite3.connect(index_path(library, folder), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CacheError, match="another process"):
                search("dog", [library], folder=folder)
        assert "n" in paths("dog", library, folder)

    def test_where_nothing_can_be_written_it_is_made_in_memory(
        self, library: Path, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = paths("dog", library, folder)
        taken = tmp_path / "taken"
        taken.write_text("a file")
        assert paths("dog", library, taken) == expected
        assert "in memory" in caplog.text
        assert taken.read_text() == "a file"

    def test_without_fts5_it_is_said(
        self, library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TABLES, "text_words", "fts5_that_is_not_there(text)")
        with pytest.raises(EnvironmentProblem, match="has no full-text search"):
            search("dog", [library], folder=folder)

    def test_it_can_be_forgotten(self, library: Path, folder: Path) -> None:
        expected = paths("dog", library, folder)
        assert (folder.stat().st_mode & 0o777) == 0o700  # names of files are in it
        assert forget_indexes(folder) == 1
        assert list(folder.iterdir()) == []
        assert paths("dog", library, folder) == expected

    @pytest.mark.parametrize("kind", ["absent", "folder", "pipe"])
    def test_what_is_no_file_of_results(self, kind: str, tmp_path: Path, folder: Path) -> None:
        path = tmp_path / "t.jsonl"
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        with pytest.raises(ConfigError, match=str(path)):
            search("dog", [path], folder=folder)
