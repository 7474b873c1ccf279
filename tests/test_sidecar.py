"""`vtag sidecar` on folders: which file, what is printed, what is never touched."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_calls import FAULTS, Fault, FaultyCalls, calls_in_place, for_every_call
from sidecar_samples import BEACH, DIGIKAM, DOG, HOSTILE, MOVIE, PLAIN, record

from vtag.cli_sidecar import FORMATS, add_sidecar_command
from vtag.errors import ConfigError, OutputError
from vtag.sidecar import BESIDE, TABLES, SidecarConfig, latest_records, write_sidecars
from vtag.sidecar_files import look, put
from vtag.sidecar_xml import Unmergeable
from vtag.storage import PART_NAME

VIDEO = b"the video itself"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    return folder


@pytest.fixture
def sidecar(library: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command as `vtag sidecar tags.jsonl …` would, in a folder with nothing in it."""
    elsewhere = library.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"vtag {name}")
        parser.set_defaults(command=run)
        parser.add_argument("-q", "--quiet", action="store_true")
        parsers.append(parser)
        return parser

    parsers: list[argparse.ArgumentParser] = []
    add_sidecar_command(command)

    def run(*flags: str) -> int:
        args = parsers[0].parse_args([str(library / "tags.jsonl"), *flags])
        status: int = args.command(args)
        return status

    return run


def put_video(path: Path) -> Path:
    path.write_bytes(VIDEO)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def put_records(library: Path, *records: dict[str, Any]) -> None:
    lines = "".join(json.dumps(fields) + "\n" for fields in records)
    (library / "tags.jsonl").write_text(lines, "ascii")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "tags.jsonl"
    }


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_in_and_out_of_a_folder_of_all_kinds(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("own.mp4", "both.mp4", "shared.mov", "photo.mov", "fresh.mkv", "$(touch x)\n.mp4"):
        put_video(library / name)
    (library / "own.mp4.xmp").write_text(DIGIKAM)
    (library / "both.mp4.xmp").write_text(DIGIKAM)
    (library / "both.xmp").write_text(DIGIKAM)
    (library / "shared.xmp").write_text(DIGIKAM)
    (library / "shared.srt").write_text("subtitles")
    (library / "photo.xmp").write_text(DIGIKAM)
    (library / "photo.jpg").write_text("a live photo has a video beside it")
    (library / "own.nfo").write_text(MOVIE)
    before = contents(library)
    names = sorted(name for name in before if name.endswith((".mp4", ".mov", ".mkv")))
    put_records(library, *(record(name, DOG, HOSTILE) for name in names))

    flags = ("--format", "xmp,nfo", "--format", "vtt")
    assert sidecar(*flags, "--dry-run") == 0
    assert contents(library) == before
    told = capsys.readouterr()
    assert "\x1b" not in told.out
    assert f"would change\t{library / 'own.nfo'}\t+a<b>" in told.out
    assert "+vtag/animal/mammal/dog" in told.out

    assert sidecar(*flags) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 13
    assert (
        "18 files: 9 created, 4 changed, 0 deleted, 0 unchanged, 5 not needed, 0 failed" in told.err
    )
    after = contents(library)
    assert set(after) - set(before) == {
        "fresh.mkv.xmp", "photo.mov.xmp", "$(touch x)\n.mp4.xmp",
        *(f"{name}.vtag.vtt" for name in names),
    }  # fmt: skip
    assert {name for name in before if after[name] != before[name]} == {
        "own.mp4.xmp", "both.mp4.xmp", "shared.xmp", "own.nfo",
    }  # fmt: skip
    assert {(library / name).stat().st_mtime for name in names} == {1_000_000_000}

    untouched = states(library)
    assert sidecar(*flags) == 0
    assert states(library) == untouched
    assert "0 created, 0 changed, 0 deleted, 13 unchanged, 5 not needed" in capsys.readouterr().err

    assert sidecar(*flags, "--remove") == 0
    assert contents(library) == before
    assert "9 deleted" in capsys.readouterr().err


def test_a_sidecar_made_later_takes_the_tags_over(library: Path) -> None:
    video = put_video(library / "clip.mp4")
    (library / "clip.xmp").write_text(DIGIKAM)
    run = lambda: [  # noqa: E731
        (o.what, o.path.name)
        for o in write_sidecars([record(video, DOG)], SidecarConfig(), folders=[library])
    ]
    assert run() == [("changed", "clip.xmp")]
    (library / "clip.mp4.xmp").write_text(DIGIKAM)
    assert run() == [("changed", "clip.mp4.xmp"), ("changed", "clip.xmp")]
    assert (library / "clip.xmp").read_text() == DIGIKAM
    assert run() == [("unchanged", "clip.mp4.xmp")]


@pytest.mark.parametrize(("said", "name"), [("MP4", "clip.xmp"), ("jpg", "clip.mp4.xmp")])
def test_a_shared_sidecar_says_whose_it_is(library: Path, said: str, name: str) -> None:
    video = put_video(library / "clip.mp4")
    (library / "clip.jpg").touch()
    statement = f'xmlns:p="http://ns.adobe.com/photoshop/1.0/" p:SidecarForExtension="{said}" '
    text = DIGIKAM.replace('rdf:about=""', statement + 'rdf:about=""')
    (library / "clip.xmp").write_text(text)
    (outcome,) = write_sidecars([record(video, DOG)], SidecarConfig(), folders=[library])
    assert outcome.path.name == name


def test_an_nfo_of_two_videos_is_left(library: Path) -> None:
    for name in ("clip.mp4", "clip.mkv"):
        put_video(library / name)
    (library / "clip.nfo").write_text(MOVIE)
    config = SidecarConfig(formats=("nfo",))
    (outcome,) = write_sidecars([record("clip.mp4", DOG)], config, folders=[library])
    assert (outcome.what, outcome.path.name) == ("failed", "clip.nfo")
    assert "clip.mkv" in outcome.why
    assert (library / "clip.nfo").read_text() == MOVIE


def test_an_nfo_is_made_and_goes(library: Path, sidecar: Callable[..., int]) -> None:
    put_video(library / "clip.mp4")
    put_records(library, record("clip.mp4", DOG))
    before = contents(library)
    assert sidecar("--format", "nfo") == 0
    assert contents(library) == before
    assert sidecar("--format", "nfo", "--create-nfo") == 0
    assert b"<title>clip</title>" in (library / "clip.nfo").read_bytes()
    assert sidecar("--format", "nfo", "--remove") == 0
    assert contents(library) == before


def test_what_is_gone_or_broken_is_told_and_the_rest_done(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good.mp4", "broken.mp4", "linked.mp4", "pipe.mp4", "odd.mp4", "bad.mp4"):
        put_video(library / name)
    (library / "broken.mp4.xmp").write_text("<x")
    (library / "secret").write_text(DIGIKAM)
    (library / "linked.mp4.xmp").symlink_to(library / "secret")
    os.mkfifo(library / "pipe.mp4.xmp")
    put_records(
        library,
        record("broken.mp4", DOG),
        record("linked.mp4", DOG),
        record("pipe.mp4", DOG),
        record("odd.mp4", tags=[{"name": 3}]),
        record("bad.mp4", status="failed"),
        record("gone\x1b[2J.mp4", DOG),
        record("nul\0.mp4", DOG),
        record("lone\ud800.mp4", DOG),
        record(".", DOG),
        record("good.mp4", DOG),
    )
    assert sidecar() == 1
    told = capsys.readouterr()
    assert told.out == f"created\t{library / 'good.mp4.xmp'}\n"
    assert "\x1b" not in told.err
    assert re.search(r"broken\.mp4\.xmp: is no well-formed XML \(line 1", told.err)
    assert re.search(
        r"linked\.mp4\.xmp: is a symbolic link, .*; put the file itself there, or remove", told.err
    )
    assert "pipe.mp4.xmp: is no regular file; move it away" in told.err
    assert "odd.mp4: the record of odd.mp4 is damaged" in told.err
    assert told.err.count("is gone") == 4
    assert told.err.endswith(
        "vtag: 10 files: 1 created, 0 changed, 0 deleted, 0 unchanged, 0 not needed, "
        "4 videos gone, 1 without tags by the run, 4 failed\n"
    )
    assert (library / "secret").read_text() == DIGIKAM
    assert (library / "broken.mp4.xmp").read_text() == "<x"


def test_no_folder_is_made_for_results_that_are_not_there(
    library: Path, sidecar: Callable[..., int], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="can not be read"):
        sidecar("--format", "csv", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_remove_takes_out_every_format_and_leaves_tables(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    put_video(library / "clip.mp4")
    put_video(library / "film.mp4")
    (library / "film.nfo").write_text(MOVIE)
    put_records(library, record("clip.mp4", DOG), record("film.mp4", BEACH))
    before = contents(library)
    assert sidecar("--format", "xmp,nfo,vtt,csv") == 0
    table = {"tags.csv": (library / "tags.csv").read_bytes()}
    assert len(contents(library)) == len(before) + 5
    capsys.readouterr()
    assert sidecar("--remove", "--dry-run") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert sidecar("--remove", "--format", "csv") == 0  # nothing beside the videos
    assert "a table is left as it is, delete it yourself if you want (csv)" in (
        capsys.readouterr().err
    )
    assert len(contents(library)) == len(before) + 5
    assert sidecar("--remove") == 0
    assert contents(library) == before | table
    assert "a table" not in capsys.readouterr().err
    assert sidecar("--format", "xmp,csv") == 0
    assert sidecar("--remove", "--format", "xmp,csv,parquet", "--out", "nowhere") == 0
    assert "(csv, parquet)" in capsys.readouterr().err
    assert contents(library) == before | table


def test_what_others_made_is_no_obstacle_to_remove(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --format nobody asked about these files, and there is nothing of vtag in them."""
    for name in ("odd.mp4", "two.mp4", "two.mkv", "link.mp4", "ours.mp4", "ours.mkv"):
        put_video(library / name)
    (library / "odd.nfo").write_text("https://example.org/movie")
    (library / "odd.mp4.vtag.vtt").write_text("WEBVTT\n\nby somebody")
    (library / "odd.mp4.xmp").write_bytes("<x".encode("utf-16"))
    (library / "two.nfo").write_text(MOVIE)
    (library / "elsewhere.nfo").write_text(MOVIE)
    (library / "link.nfo").symlink_to("elsewhere.nfo")
    (library / "link.mp4.xmp").symlink_to("nothing")
    put_records(library, *(record(name) for name in ("odd.mp4", "two.mp4", "link.mp4")))
    before = contents(library)
    assert sidecar("--remove") == 0
    assert contents(library) == before
    # What bears vtag's name is told, whatever keeps it from being taken out.
    (library / "elsewhere.nfo").write_text(MOVIE.replace("<tag>", '<tag source="vtag">'))
    (library / "ours.NFO").write_bytes((library / "elsewhere.nfo").read_bytes())
    (library / "odd.mp4.xmp").write_bytes("<vtag".encode("utf-16"))
    put_records(library, record("link.mp4"), record("ours.mp4"), record("odd.mp4"))
    capsys.readouterr()
    assert sidecar("--remove") == 1
    told = capsys.readouterr().err
    assert "link.nfo: is a symbolic link" in told
    assert "odd.mp4.xmp: is no well-formed XML" in told
    assert "ours.NFO: is that of ours.mp4 and of ours.mkv alike" in told


def test_no_tags_take_earlier_ones_out(library: Path) -> None:
    video = put_video(library / "clip.mp4")
    for tags, what in [((), "nothing"), ((DOG,), "created"), ((), "deleted")]:
        (outcome,) = write_sidecars([record(video, *tags)], SidecarConfig(), folders=[library])
        assert outcome.what == what
    assert contents(library) == {"clip.mp4": VIDEO}


def test_which_tags(library: Path) -> None:
    video = put_video(library / "clip.mp4")
    records = [record(video, BEACH, DOG, HOSTILE)]

    def added(**settings: Any) -> tuple[str, ...]:
        config = SidecarConfig(dry_run=True, **settings)
        (outcome,) = write_sidecars(records, config, folders=[library])
        return outcome.change.added

    assert added(max_tags=1) == ("vtag/seashore",)  # the first: what is implied stands last
    assert added(min_score=0.7) == ("vtag/animal/mammal/dog", "vtag/seashore")
    assert len(added()) == 3


def test_a_label_can_not_turn_the_terminal_around(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    put_video(library / "clip.mp4")
    put_records(library, record("clip.mp4", replace(BEACH, name="a\u202eb")))
    assert sidecar("--dry-run") == 0
    assert capsys.readouterr().out.endswith("\t+vtag/a\\u202eb\n")


def test_where_relative_paths_begin(
    library: Path, sidecar: Callable[..., int], tmp_path: Path
) -> None:
    here, base = Path.cwd(), tmp_path / "base"
    base.mkdir()
    put_records(library, record("clip.mp4", DOG))
    for folder, flags in [(library, ()), (here, ()), (base, ("--base", str(base)))]:
        put_video(folder / "clip.mp4")  # in this order: the last one goes before
        assert sidecar(*flags) == 0
        assert (folder / "clip.mp4.xmp").exists()
    assert sidecar("--base", str(tmp_path)) == 1


def test_tables_hold_what_is_gone_too(
    library: Path, sidecar: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    put_records(library, record("gone.mp4", BEACH), record("=x.mp4"), record("gone.mp4", DOG))
    assert sidecar("--format", "csv") == 0
    lines = (library / "tags.csv").read_text().splitlines()
    assert len(lines) == 4  # the head, one without tags, two segments of the later record
    assert any(line.startswith('"\'=x.mp4"') for line in lines)
    assert "1 created" in capsys.readouterr().err
    assert sidecar("--format", "csv", "-q") == 0
    assert capsys.readouterr() == ("", "")
    out = tmp_path / "out"
    deep = out / "new"
    assert sidecar("--format", "csv", "--out", str(deep), "--dry-run") == 0
    assert capsys.readouterr().out == f"would create\t{deep / 'tags.csv'}\n"
    assert not out.exists()
    assert sidecar("--format", "csv", "--out", str(deep)) == 0
    assert (deep / "tags.csv").read_text().splitlines() == lines
    out = deep / "tags.csv"
    with pytest.raises(ConfigError, match="is no folder"):
        sidecar("--format", "csv", "--out", str(out))
    with pytest.raises(OutputError, match=r"tags\.csv/new: can not be made"):
        sidecar("--format", "csv", "--out", str(out / "new"))
    (library / "tags.csv").unlink()
    (library / "tags.csv").symlink_to(deep / "tags.csv")
    with pytest.raises(OutputError, match=r"is a symbolic link.*remove the link"):
        sidecar("--format", "csv")
    (library / "tags.csv").unlink()
    put_records(library, record("x.mp4", tags=3))
    with pytest.raises(OutputError, match=r"the record of x\.mp4 is damaged"):
        sidecar("--format", "csv")


@pytest.mark.parametrize(
    "settings",
    [
        {"formats": ("xml",)},
        {"formats": ()},
        {"remove": True, "orphans": True},
        {"min_score": 1.5},
        {"min_score": float("nan")},
        {"max_tags": 0},
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SidecarConfig(**settings)


def test_the_formats_of_the_command_are_those_that_there_are() -> None:
    assert (*BESIDE, *TABLES) == FORMATS


def test_a_file_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4.xmp"
    seen = look(path)
    path.write_text("by another program")
    for data in (b"new", None):
        with pytest.raises(Unmergeable, match="another program"):
            put(seen, data)
    assert path.read_text() == "by another program"
    assert look(path).data == b"by another program"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_is_whole_whatever_fails(library: Path, fault: Fault) -> None:
    """Each system call in turn fails; the sidecar is the old one or the new one."""
    video = put_video(library / "clip.mp4")
    path = library / "clip.mp4.xmp"
    records = [record(video, DOG)]

    def run() -> None:
        list(write_sidecars(records, SidecarConfig(), folders=[library]))

    def prepare() -> None:
        for one in library.glob(".vtag-*"):  # what a crash may leave, under that name only
            one.unlink()
        path.write_text(DIGIKAM)

    prepare()
    run()
    new = path.read_text()

    def check(raised: BaseException | None) -> None:
        assert path.read_text() in (DIGIKAM, new)
        names = {one.name for one in library.iterdir() if not PART_NAME.fullmatch(one.name)}
        assert names == {"clip.mp4", "clip.mp4.xmp"}

    met = for_every_call(fault, prepare=prepare, act=run, check=check, expected=OutputError)
    assert met > 0


def test_a_full_disk_ends_the_run(library: Path) -> None:
    records = [record(put_video(library / name), DOG) for name in ("a.mp4", "b.mp4")]
    with (
        calls_in_place(FaultyCalls("disk stays full", 0)),
        pytest.raises(OutputError, match=r"a\.mp4\.xmp: .*no space left"),
    ):
        list(write_sidecars(records, SidecarConfig(), folders=[library]))
    assert sorted(one.name for one in library.iterdir()) == ["a.mp4", "b.mp4"]


def test_the_later_record_of_a_path_counts(library: Path) -> None:
    put_records(library, record("a", DOG), record("b", DOG), record("a", BEACH))
    found = [
        (r["path"], len(r["tags"][0]["segments"])) for r in latest_records(library / "tags.jsonl")
    ]
    assert found == [("b", 2), ("a", 1)]


# -- orphans --------------------------------------------------------------------------------


@pytest.fixture
def moved(library: Path, sidecar: Callable[..., int]) -> dict[str, bytes]:
    """bird.mp4, with sidecars of all kinds, is vogel.mp4 now, and the records say so.

    Returns what the folder holds.
    """
    put_video(library / "bird.mp4")
    put_records(library, record("bird.mp4", DOG))
    assert sidecar("--format", "xmp,nfo,vtt", "--create-nfo") == 0
    (library / "bird.mp4").rename(library / "vogel.mp4")
    put_records(library, record("vogel.mp4", DOG))
    return contents(library)


ORPHANS = {"bird.mp4.xmp", "bird.mp4.vtag.vtt", "bird.nfo"}


def test_sidecars_of_a_moved_video_are_told(
    library: Path,
    sidecar: Callable[..., int],
    moved: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(moved) == {*ORPHANS, "vogel.mp4"}
    capsys.readouterr()
    assert sidecar() == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("vtag: 2 files: 1 created, 0 changed, 0 deleted,")
    assert ", 1 without their video, " in told[0]
    assert told[1].startswith("vtag: 1 sidecars of vtag are left of videos that were moved")
    assert "--orphans" in told[1]
    assert set(contents(library)) == {*moved, "vogel.mp4.xmp"}
    assert sidecar("--format", "xmp,nfo,vtt") == 0
    assert ", 3 without their video, " in capsys.readouterr().err


def test_orphans_go_alone_and_with_remove(
    library: Path,
    sidecar: Callable[..., int],
    moved: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sidecar() == 0
    capsys.readouterr()
    assert sidecar("--orphans", "--dry-run") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in told] == [
        ["would delete", str(library / name)] for name in sorted(ORPHANS)
    ]
    assert set(contents(library)) == {*moved, "vogel.mp4.xmp"}
    assert sidecar("--orphans", "--format", "vtt") == 0
    assert set(contents(library)) == {*moved, "vogel.mp4.xmp"} - {"bird.mp4.vtag.vtt"}
    assert sidecar("--orphans") == 0
    assert set(contents(library)) == {"vogel.mp4", "vogel.mp4.xmp"}
    for name in ORPHANS:
        (library / name).write_bytes(moved[name])
    assert sidecar("--remove") == 0
    assert contents(library) == {"vogel.mp4": VIDEO}


def test_an_orphan_is_also_found_before_the_record_is_renewed(
    library: Path, sidecar: Callable[..., int], moved: dict[str, bytes]
) -> None:
    (library / "vogel.mp4").unlink()
    put_records(library, record("bird.mp4", DOG), record("nul\0/x.mp4"), record("no/x.mp4"))
    assert sidecar("--remove") == 1  # the video is gone: told as ever
    assert contents(library) == {}


@pytest.mark.parametrize(
    "name", ["bird.mp4.xmp", "bird.mp4.vtag.vtt", "bird.nfo", "by hand.mp4.xmp", "by hand.nfo"]
)
def test_what_holds_anything_of_others_is_no_orphan(
    library: Path, sidecar: Callable[..., int], moved: dict[str, bytes], name: str
) -> None:
    theirs = {
        "bird.mp4.xmp": moved["bird.mp4.xmp"].replace(
            b"</rdf:RDF>", b'<rdf:Description rdf:about="" xmlns:x="u:x" x:y="1"/></rdf:RDF>'
        ),
        "bird.mp4.vtag.vtt": moved["bird.mp4.vtag.vtt"] + b"\n00:01.000 --> 00:02.000\nmine\n",
        "bird.nfo": moved["bird.nfo"].replace(b"</movie>", b"<plot>mine</plot></movie>"),
        "by hand.mp4.xmp": DIGIKAM.encode(),
        "by hand.nfo": b"<movie>\n  <title>by hand</title>\n</movie>\n",
    }[name]
    (library / name).write_bytes(theirs)
    assert sidecar("--orphans") == 0
    assert contents(library) == {"vogel.mp4": VIDEO, name: theirs}


@pytest.mark.parametrize("still", ["bird.mp4", "bird.mp4.part", "bird.mkv", "bird.mp4/"])
def test_what_may_be_about_something_is_no_orphan(
    library: Path, sidecar: Callable[..., int], moved: dict[str, bytes], still: str
) -> None:
    if still.endswith("/"):
        (library / still).mkdir()
    elif still == "bird.mp4":
        (library / still).symlink_to("a disk that is not there")
    else:
        put_video(library / still)
    left = {"bird.mkv": {"bird.nfo"}, "bird.mp4": ORPHANS}.get(still, ORPHANS - {"bird.nfo"})
    if still == "bird.mp4/":
        left = ORPHANS
    assert sidecar("--orphans") == 0
    assert set(contents(library)) & ORPHANS == left


def test_orphans_elsewhere_and_behind_links_stay(
    library: Path, sidecar: Callable[..., int], moved: dict[str, bytes]
) -> None:
    other = library / "other"
    other.mkdir()  # holds no video of the records
    for name in ORPHANS:
        (library / name).rename(other / name)
    (library / "bird.mp4.xmp").symlink_to(other / "bird.mp4.xmp")
    before = contents(library)
    assert sidecar("--remove") == 0
    assert contents(library) == before


def test_orphans_of_a_folder_with_two_names_are_told_once(
    library: Path, moved: dict[str, bytes]
) -> None:
    records = [record("vogel.mp4"), record(f"../{library.name}/vogel.mp4")]
    found = list(write_sidecars(records, SidecarConfig(), folders=[library]))
    assert [o.path.name for o in found if o.what == "orphan"] == ["bird.mp4.xmp"]


# -- with the programs of others ------------------------------------------------------------

exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None,
    reason="exiftool is not installed (Debian: libimage-exiftool-perl)",
)


def tell(path: Path) -> dict[str, Any]:
    """What exiftool reads in a file: values by group and name, single ones as lists too."""
    done = subprocess.run(
        ["exiftool", "-json", "-G1", "-struct", str(path)], capture_output=True, check=True
    )
    (found,) = json.loads(done.stdout)
    return {k: v if isinstance(v, list) else [v] for k, v in found.items()}


@exiftool
def test_exiftool_reads_it_rewrites_it_and_vtag_still_takes_its_tags_out(library: Path) -> None:
    video = put_video(library / "clip.mp4")
    path = library / "clip.mp4.xmp"
    path.write_text(PLAIN)
    before = tell(path)
    records = [record(video, DOG, BEACH, HOSTILE)]

    def run(**settings: Any) -> str:
        (outcome,) = write_sidecars(records, SidecarConfig(**settings), folders=[library])
        return outcome.what

    assert run() == "changed"
    found = tell(path)
    assert found["XMP-dc:Subject"][:3] == ["Ferien & Meer", "dog", "seashore"]
    assert found["XMP-digiKam:TagsList"][:3] == [
        "Ferien/Meer", "vtag/animal/mammal/dog", "vtag/seashore",
    ]  # fmt: skip
    assert found["XMP-lr:HierarchicalSubject"][:2] == ["vtag|animal|mammal|dog", "vtag|seashore"]
    assert found["XMP-xmp:Rating"] == [4]
    assert "ExifTool:Warning" not in found

    rewrite = ["exiftool", "-q", "-overwrite_original", "-XMP-xmp:Rating=5", str(path)]
    subprocess.run(rewrite, check=True, capture_output=True)
    assert run() == "unchanged"
    assert run(remove=True) == "changed"
    left = tell(path)
    ours = ("XMP-dc", "XMP-digiKam", "XMP-lr", "XMP-vtag", "XMP-xmp")
    assert {k: v for k, v in left.items() if k.startswith(ours)} == {
        k: v for k, v in before.items() if k.startswith(ours)
    } | {"XMP-xmp:Rating": [5]}


@exiftool
def test_exiftool_takes_what_vtag_makes_for_a_valid_file(library: Path) -> None:
    video = put_video(library / "clip.mp4")
    list(write_sidecars([record(video, DOG, HOSTILE)], SidecarConfig(), folders=[library]))
    found = tell(library / "clip.mp4.xmp")
    assert found["File:FileType"] == ["XMP"]
    assert len(found["XMP-dc:Subject"]) == 2
    check = subprocess.run(
        ["exiftool", "-validate", "-warning", "-a", str(library / "clip.mp4.xmp")],
        capture_output=True,
        check=True,
        text=True,
    )
    assert re.search(r"Validate\s*: OK", check.stdout)


@pytest.mark.skipif(shutil.which("exiv2") is None, reason="exiv2 is not installed")
@pytest.mark.parametrize("there", [False, True])
def test_exiv2_rewrites_it_as_digikam_does(library: Path, there: bool) -> None:
    video = put_video(library / "clip.mp4")
    path = library / "clip.mp4.xmp"
    if there:
        path.write_text(PLAIN)
    records = [record(video, DOG, BEACH)]

    def run(**settings: Any) -> str:
        (outcome,) = write_sidecars(records, SidecarConfig(**settings), folders=[library])
        return outcome.what

    assert run() == ("changed" if there else "created")
    rewrite = ["exiv2", "-M", "set Xmp.xmp.Rating 5", str(path)]
    subprocess.run(rewrite, check=True, capture_output=True)
    rewritten = path.read_text()
    assert run() == "unchanged"
    assert run(remove=True) == "changed"
    shown = subprocess.run(
        ["exiv2", "-PXkv", str(path)], check=True, capture_output=True, text=True
    ).stdout
    values = dict(line.split(maxsplit=1) for line in shown.splitlines())
    theirs = {"Xmp.dc.subject": "Ferien & Meer, dog", "Xmp.digiKam.TagsList": "Ferien/Meer"}
    theirs["Xmp.odd.thing"] = "a > b"
    assert values == {"Xmp.xmp.Rating": "5"} | (theirs if there else {})
    assert "vtag:added" in rewritten
