"""The report's folder, links, data and thumbnails, without a browser."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import draw_clip, read_barcode
from PIL import Image
from report_library import HOSTILE_NAMES, failure, record, tag, write_results

from vtag.cli import main
from vtag.config import Moments
from vtag.decode import plan, probe
from vtag.errors import ConfigError, OutputError
from vtag.report import ReportConfig, ReportDone, write_report
from vtag.report_entries import MAX_MOMENTS, entries_of, link_to, shown
from vtag.report_page import label_names, script_of
from vtag.report_thumbnails import CELL_HEIGHT_PX, names_of
from vtag.run_lock import RunLock

CLIP_FPS = 25


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s whose picture n carries the number n as a bar code."""
    return draw_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=4, size=(320, 192))


@pytest.fixture
def library(tmp_path: Path, clip: Path) -> Path:
    """`videos/a.mp4` with two tags, a broken one, one that is gone; the results beside them."""
    (tmp_path / "videos").mkdir()
    shutil.copy(clip, tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "broken.mp4").write_bytes(clip.read_bytes()[:3000])
    tags = [tag("one", 0.9, moments=[0.4, 2.0]), tag("two", 0.7, moments=[3.2])]
    write_results(
        tmp_path / "tags.jsonl",
        [
            record(tmp_path / "videos" / "a.mp4", tags),
            record(tmp_path / "videos" / "broken.mp4", tags),
            record("videos/gone.mp4", tags),
            failure("videos/text.mp4", "not_media"),
        ],
    )
    return tmp_path


def report(library: Path, **changes: Any) -> ReportDone:
    given = {"results": (library / "tags.jsonl",), "out": library / "report", "workers": 1}
    return write_report(ReportConfig(**given | changes))


def data_of(folder: Path, kind: str) -> Any:
    """What the data file hands to the page, as a JSON reader sees it."""
    text = (folder / "data" / f"{kind}-000.js").read_text("ascii")
    found = re.fullmatch(rf'vtagData\("{kind}",0,(.*)\);\n', text)
    assert found is not None
    return json.loads(found[1])


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestLinks:
    @given(name=st.binary(min_size=1, max_size=60).filter(lambda b: not set(b) & {0, 47}))
    def test_every_name_comes_back(self, name: bytes) -> None:
        if name in (b".", b".."):
            return
        video = Path("/lib/a b") / os.fsdecode(name)
        link = link_to(video, Path("/lib/reports/x#1"))
        # What is left is plain: no scheme, no query, no fragment, nothing to escape in HTML.
        assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", link)
        assert unquote_to_bytes(link) == b"../../a b/" + name

    def test_a_name_with_a_colon_is_no_scheme(self) -> None:
        assert link_to(Path("/r/javascript:alert(1)"), Path("/r")) == "javascript%3Aalert%281%29"

    @pytest.mark.parametrize(
        ("text", "seen"),
        [
            ("plain é 日本 🐈\u200d⬛", "plain é 日本 🐈\u200d⬛"),
            ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
            (os.fsdecode(b"\xff.mp4"), "\\xff.mp4"),
            ("\u202e4pm.exe", "\\u202e4pm.exe"),
            ("\u2028", "\\u2028"),
        ],
    )
    def test_what_is_shown_of_a_name(self, text: str, seen: str) -> None:
        assert shown(text) == seen

    def test_the_report_and_the_videos_may_be_anywhere(self, library: Path) -> None:
        out = library / "deep" / "er" / "report"
        report(library, out=out, thumbnails=False)
        link = data_of(out, "rows")[0][3]
        assert link == "../../../videos/a.mp4"
        assert (out / link).resolve() == (library / "videos" / "a.mp4").resolve()


class TestData:
    @given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=6))
    def test_data_is_inert_and_comes_back(self, value: object) -> None:
        script = script_of("rows", 3, value)
        assert script.isascii()
        assert "<" not in script
        assert json.loads(script.removeprefix('vtagData("rows",3,').removesuffix(");\n")) == value

    def test_the_page_holds_no_data_and_no_inline_script(self, library: Path) -> None:
        report(library, title='"><script>alert(1)</script>', thumbnails=False)
        page = (library / "report" / "index.html").read_text()
        assert (
            re.findall(r"<script(?! src=\"(?:static|data)/[a-z0-9_-]+\.js\" defer></script>)", page)
            == []
        )
        assert not re.search(r"\s(?:style|on\w+)=", page)
        assert "a.mp4" not in page
        assert "default-src 'none'" in page
        assert "unsafe" not in page

    def test_of_two_results_the_later_counts(self, library: Path) -> None:
        later = record(library / "videos" / "a.mp4", [tag("three")])
        more = write_results(library / "more.jsonl", [later])
        report(library, results=(library / "tags.jsonl", more), thumbnails=False)
        rows, tags = data_of(library / "report", "rows"), data_of(library / "report", "tags")
        assert len(rows) == 4
        (row,) = (row for row in rows if row[2].endswith("a.mp4"))
        assert [tags[at][1] for at in row[10][::4]] == ["three"]

    def test_a_moved_video_is_shown_once(self, library: Path) -> None:
        old = record(library / "videos" / "a.mp4") | {"path": "before/a.mp4"}
        new = record(library / "videos" / "a.mp4")
        results = write_results(library / "moved.jsonl", [old, new])
        (entry,) = entries_of([results], base=None)
        assert entry.video == library / "videos" / "a.mp4"

    def test_copies_have_keys_of_their_own(self, library: Path) -> None:
        shutil.copy(library / "videos" / "a.mp4", library / "videos" / "b.mp4")
        both = [record(library / "videos" / name, [tag("x")]) for name in ("a.mp4", "b.mp4")]
        results = write_results(library / "tags.jsonl", both)
        one, two = entries_of([results], base=None)
        assert two.key == f"{one.key}-2"
        assert report(library).pictured == 1
        posters = [row[7] for row in data_of(library / "report", "rows")]
        assert posters[0] == posters[1] != 0

    @pytest.mark.parametrize(
        "damage",
        [
            {"tags": [{"id": 3}]},
            {"tags": [tag("x") | {"evidence": 3}]},
            {"warnings": 3},
            {"media": "x"},
            {"model": [1]},
            {"corrections": 1},
            {"corrections": {"added": 1}},
            {"status": "failed", "error": {"code": []}},
        ],
    )
    def test_a_damaged_record_is_named(self, library: Path, damage: dict[str, Any]) -> None:
        write_results(library / "tags.jsonl", [record("a.mp4") | damage])
        with pytest.raises(OutputError, match=r"the record of a\.mp4 is damaged"):
            report(library)
        assert not (library / "report").exists()

    def test_labels_of_the_model_that_tagged(self, library: Path) -> None:
        entries = entries_of([library / "tags.jsonl"], base=None)
        names = label_names(None, entries)
        assert "golden retriever" in names
        assert names == sorted(set(names), key=str.casefold)
        with pytest.raises(ConfigError, match="no model of this name"):
            label_names("no such model", entries)


class TestThumbnails:
    def test_they_show_the_very_pictures(self, library: Path) -> None:
        done = report(library)
        assert (done.videos, done.failed, done.gone, done.pictured) == (4, 1, 1, 1)
        (failed,) = done.unpictured
        assert failed.entry.path.endswith("broken.mp4")
        row = data_of(library / "report", "rows")[0]
        folder = library / "report" / "thumbnails"
        # drawn by the test: picture n is shown from n / 25 s on
        poster = pixels(folder / row[7])
        assert read_barcode(poster) == round(0.4 * CLIP_FPS)
        strip = pixels(folder / row[8])
        assert strip.shape == (CELL_HEIGHT_PX, 3 * 180, 3)  # 320x192 at a height of 108
        cells = [strip[:, at * 180 : (at + 1) * 180] for at in range(3)]
        assert [read_barcode(cell) for cell in cells] == [10, 50, 80]  # 0.4, 2.0, 3.2 s
        # each tag points at the cell of its strongest moment
        assert row[10][3::4] == [0, 2]

    def test_they_are_small_and_few(self, library: Path) -> None:
        many = [tag(f"t{n}", 0.9, moments=[n * 0.1, n * 0.1 + 2]) for n in range(40)]
        write_results(library / "tags.jsonl", [record(library / "videos" / "a.mp4", many)])
        report(library)
        pictures = list((library / "report" / "thumbnails").rglob("*.jpg"))
        assert len(pictures) == 2
        assert sum(picture.stat().st_size for picture in pictures) < 120_000
        assert len(data_of(library / "report", "rows")[0][9]) <= MAX_MOMENTS
        for picture in pictures:
            with Image.open(picture) as image:
                assert not image.getexif()

    def test_a_second_report_makes_none_again(self, library: Path) -> None:
        report(library)
        before = contents(library / "report" / "thumbnails")
        inode = next((library / "report" / "thumbnails").rglob("*p.jpg")).stat().st_ino
        # the file is renamed, and the broken one is whole now
        os.rename(library / "videos" / "a.mp4", library / "videos" / "renamed.mp4")
        again = [json.loads(line) for line in (library / "tags.jsonl").read_text().splitlines()]
        again[0]["path"] = str(library / "videos" / "renamed.mp4")
        write_results(library / "tags.jsonl", again)
        done = report(library)
        assert (done.pictured, done.reused) == (0, 1)
        assert contents(library / "report" / "thumbnails") == before
        assert next((library / "report" / "thumbnails").rglob("*p.jpg")).stat().st_ino == inode

    def test_pictures_outlive_their_video(self, library: Path) -> None:
        report(library)
        os.unlink(library / "videos" / "a.mp4")
        done = report(library)
        assert done.gone == 2
        row = data_of(library / "report", "rows")[0]
        assert (library / "report" / "thumbnails" / row[7]).is_file()
        assert row[3] == 0

    def test_none_are_made_where_none_are_wanted(self, library: Path) -> None:
        assert report(library, thumbnails=False).pictured == 0
        assert list((library / "report" / "thumbnails").rglob("*.jpg")) == []
        assert report(library).pictured == 1

    def test_names_are_made_of_the_content(self, library: Path) -> None:
        evil = record("x.mp4", [tag("t")]) | {"id": "../../../etc/passwd"}
        (entry,) = entries_of([write_results(library / "evil.jsonl", [evil])], base=None)
        assert re.fullmatch(
            r"[0-9a-f]{2}/[0-9a-f]{24}-[0-9a-f]{8}p\.jpg", names_of(entry).poster or ""
        )

    @pytest.mark.parametrize("decoder", ["pyav", "decord"])
    def test_moments_are_planned_as_asked(self, clip: Path, decoder: str) -> None:
        wanted = Moments(times=(3.2, 0.4, 0.41, 99.0, 0.4), max_frames=4, decoder=decoder)  # type: ignore[arg-type]
        found = plan(probe(clip), wanted)
        assert found.pictures.tolist() == [10, 10, 80, 99]
        assert found.seconds.tolist() == pytest.approx([0.4, 0.41, 3.2, 99.0])


class TestFolder:
    def test_the_new_one_takes_the_place_of_the_old_one(self, library: Path) -> None:
        report(library)
        write_results(library / "tags.jsonl", [record("only.mp4")])
        report(library)
        assert len(data_of(library / "report", "rows")) == 1
        assert sorted(path.name for path in library.iterdir()) == ["report", "tags.jsonl", "videos"]

    def test_a_folder_of_others_is_left_alone(self, library: Path) -> None:
        with pytest.raises(ConfigError, match="not a report of vtag"):
            report(library, out=library / "videos")
        assert (library / "videos" / "a.mp4").is_file()
        (library / "file").write_text("mine")
        with pytest.raises(ConfigError, match="not a folder"):
            report(library, out=library / "file")
        (library / "link").symlink_to(library / "videos")
        with pytest.raises(ConfigError, match="not a folder"):
            report(library, out=library / "link")

    def test_files_that_were_put_into_a_report_are_not_lost(self, library: Path) -> None:
        report(library, thumbnails=False)
        for name in ("notes.txt", "data/mine.csv", "thumbnails/ab/photo.jpg"):
            mine = library / "report" / name
            mine.parent.mkdir(exist_ok=True)
            mine.write_text("mine")
            with pytest.raises(ConfigError, match=re.escape(name)):
                report(library)
            assert mine.read_text() == "mine"
            mine.unlink()
            if "ab" in name:
                mine.parent.rmdir()
        assert report(library).videos == 4

    def test_an_empty_folder_will_do(self, library: Path) -> None:
        (library / "report").mkdir()
        assert report(library, thumbnails=False).videos == 4

    @pytest.mark.parametrize("function", ["rename", "mkdir", "link"])
    def test_whole_or_as_it_was_when_the_disk_fails(
        self, library: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        (library / "videos" / "broken.mp4").unlink()  # it would be tried again each time
        real: Callable[..., Any] = getattr(os, function)
        for k in range(1, 12):
            calls = 0
            report(library)
            before = contents(library / "report")

            def failing(*given: Any, _k: int = k, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == _k:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*given, **more)

            with monkeypatch.context() as patch:
                patch.setattr(os, function, failing)
                said = _said(lambda: report(library, title="another"))
            left = sorted(path.name for path in library.iterdir())
            assert left == ["report", "tags.jsonl", "videos"]
            if calls < k:
                break  # it was called less often than that: nothing failed
            # a link that can not be made is a copy, a folder that is there needs no making
            assert "no space left" in said or function != "rename"
            if said:
                assert contents(library / "report") == before
        else:
            pytest.fail("the failing call was always reached")
        assert said == ""
        assert b"another" in contents(library / "report")["index.html"]

    def test_what_a_killed_run_left_is_put_right(
        self, library: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report(library, thumbnails=False)
        before = contents(library / "report")
        # Killed while it was writing, and killed between the two renames.
        shutil.copytree(library / "report", library / f".vtag-1-{'a' * 16}.part")
        os.rename(library / "report", library / f".vtag-2-{'b' * 16}.old.part")
        other = library / f".vtag-3-{'c' * 16}.part"  # of somebody else's: not this report's
        other.mkdir()
        (other / "report.json").write_text('{"vtag_report": 1, "for": "00"}')
        monkeypatch.setattr(Path, "write_text", _full)  # so that no new one comes to be
        with pytest.raises(OutputError, match="no space left"):
            report(library)
        monkeypatch.undo()
        assert contents(library / "report") == before
        assert sorted(path.name for path in library.glob(".vtag*")) == [other.name]

    def test_one_writer_at_a_time(self, library: Path) -> None:
        with RunLock(library / "report"), pytest.raises(OutputError):
            report(library)


def _said(work: Callable[[], object]) -> str:
    """What an OutputError says, nothing without one."""
    try:
        work()
    except OutputError as err:
        return str(err)
    return ""


def _full(*given: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestCommand:
    def test_it_says_what_it_did(self, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = library / "out"
        assert main(["report", str(library / "tags.jsonl"), "--out", str(out)]) == 0
        said = capsys.readouterr()
        assert said.out == f"{out / 'index.html'}\n"
        assert "3 videos, 1 could not be tagged, 1 are gone, 1 new thumbnails" in said.err
        assert "broken.mp4" in said.err

    @pytest.mark.parametrize(
        "flags", [["--workers", "0"], ["--model", "nothing"], ["missing.jsonl"]]
    )
    def test_wrong_usage(self, library: Path, flags: list[str]) -> None:
        results = str(library / "tags.jsonl")
        assert main(["report", results, *flags, "--out", str(library / "out")]) == 2
        assert not (library / "out").exists()

    def test_hostile_names_from_end_to_end(self, library: Path, clip: Path) -> None:
        videos = os.fsencode(library / "videos")
        paths = [Path(os.fsdecode(os.path.join(videos, name))) for name in HOSTILE_NAMES]
        for path in paths:
            shutil.copyfile(clip, path)
        results = write_results(library / "evil.jsonl", [record(path) for path in paths])
        done = report(library, results=(results,))
        assert (done.gone, done.pictured) == (0, 1)
        links = [row[3] for row in data_of(library / "report", "rows")]
        assert [unquote_to_bytes(link) for link in links] == [
            b"../videos/" + n for n in HOSTILE_NAMES
        ]
