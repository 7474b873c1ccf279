"""The command as a user runs it: exit status, stdout, stderr, files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from media import draw_clip, truncate

from vtag import ConfigError
from vtag.cli import main
from vtag.cli_flags import parse_size

SAMPLES = Path(__file__).parent.parent / "sample_videos"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "own cache"))


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a new user may have: 5 files that can be seen, 4 that can not, 2 that are no media."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "nested folder" / "déjà vu").mkdir(parents=True)
    draw_clip(folder / "nested folder" / "déjà vu" / "日本 clip.mp4", seconds=1)
    draw_clip(folder / "UPPER.MP4", seconds=1, fps=20)
    draw_clip(folder / "silent.mkv", seconds=1)
    draw_clip(folder / "with sound.mov", seconds=1, tone_hz=440.0)
    truncate(
        draw_clip(folder / "cut.mp4", seconds=4, container_options={"movflags": "faststart"}), 0.6
    )
    draw_clip(folder / "sound only.m4a", codec=None, tone_hz=440.0, seconds=1)
    (folder / "text.mp4").write_text("these are words\n" * 20)
    (folder / "empty.mp4").write_bytes(b"")
    truncate(draw_clip(folder / "no index.mp4", seconds=2), 0.5)
    (folder / "notes.txt").write_text("notes")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def vtag(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtag", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def records(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    by_name = {Path(line["path"]).name: line for line in lines}
    assert len(by_name) == len(lines)
    return by_name


class TestRun:
    def test_an_odd_folder_gives_one_record_per_file(
        self, odd_folder: Path, tmp_path: Path
    ) -> None:
        out, counts = tmp_path / "tags.jsonl", tmp_path / "counts.json"
        run = vtag("run", odd_folder, "--out", out, "--summary-json", counts)
        assert run.returncode == 1
        assert run.stdout == ""
        assert "Traceback" not in run.stderr
        found = records(out)
        statuses = {name: r["error"]["code"] for name, r in found.items() if r["status"] != "ok"}
        assert statuses == {
            "text.mp4": "not_media",
            "empty.mp4": "empty",
            "no index.mp4": "truncated",
        }
        assert len(found) == 9
        assert found["cut.mp4"]["media"]["sampled_frames"] >= 2
        summary = json.loads(counts.read_text())
        assert summary["inputs"] == 9 == summary["tagged"] + summary["failed"]
        assert summary["ignored"] == 2
        assert f"9 inputs, {summary['tagged']} tagged (0 from cache)" in run.stderr

        again = vtag("run", odd_folder, "--out", out)
        assert again.returncode == 1  # the failed ones are still failed
        assert f"9 already done ({summary['failed']} of them failed" in again.stderr
        assert "another --out" in again.stderr  # more flags would change nothing in this one
        assert "another --out" not in run.stderr
        assert records(out) == found

        other = tmp_path / "again.jsonl"
        warm = vtag("run", odd_folder, "--out", other)
        assert f"{summary['tagged']} tagged ({summary['tagged']} from cache)" in warm.stderr
        assert all("decode" not in r["timing"] for r in records(other).values())

    def test_retry_failed_does_only_the_failed_ones(self, tmp_path: Path) -> None:
        out, late = tmp_path / "t.jsonl", tmp_path / "late.mp4"
        good = draw_clip(tmp_path / "good.mp4", seconds=1)
        assert vtag("run", good, late, "--out", out).returncode == 1
        assert records(out)["late.mp4"]["error"]["code"] == "vanished"
        draw_clip(late, seconds=1)
        run = vtag("run", good, late, "--out", out, "--retry-failed")
        assert run.returncode == 0
        assert "1 tagged" in run.stderr
        assert "1 already done" in run.stderr
        assert [r["status"] for r in records(out).values()] == ["ok", "ok"]

    def test_a_replaced_file_is_tagged_again_and_has_one_record(self, tmp_path: Path) -> None:
        out, clip = tmp_path / "t.jsonl", tmp_path / "clip.mp4"
        draw_clip(clip, seconds=1)
        vtag("run", clip, "--out", out)
        before = records(out)["clip.mp4"]["id"]
        draw_clip(clip, seconds=2)
        assert "1 tagged" in vtag("run", clip, "--out", out).stderr
        assert records(out)["clip.mp4"]["id"] != before

    def test_a_torn_last_line_is_repaired(self, tmp_path: Path) -> None:
        out, clip = tmp_path / "t.jsonl", draw_clip(tmp_path / "a.mp4", seconds=1)
        other = draw_clip(tmp_path / "b.mp4", seconds=1, fps=5)
        vtag("run", clip, other, "--out", out)
        whole = out.read_bytes()
        out.write_bytes(whole[:-40])
        assert vtag("run", clip, other, "--out", out).returncode == 0
        assert sorted(records(out)) == ["a.mp4", "b.mp4"]

    def test_data_goes_to_stdout_and_words_to_stderr(self, tmp_path: Path) -> None:
        clip = draw_clip(tmp_path / "-odd\nname.mp4", seconds=1)
        run = vtag("run", "--out", "-", clip)
        (line,) = run.stdout.splitlines()
        assert json.loads(line)["path"] == str(clip)
        assert "1 tagged" in run.stderr

    def test_a_reader_that_goes_away_is_no_error_message(self, tmp_path: Path) -> None:
        for n in range(3):
            draw_clip(tmp_path / f"{n}.mp4", seconds=1)
        line = f"{sys.executable} -m vtag run {tmp_path} --out - --quiet | head -n 1 | wc -l"
        run = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=120)
        assert run.stdout.strip() == "1"
        assert run.stderr == ""

    def test_sigterm_keeps_what_is_done_and_says_how_to_go_on(self, tmp_path: Path) -> None:
        folder = tmp_path / "many"
        folder.mkdir()
        for n in range(60):
            draw_clip(folder / f"{n}.mp4", seconds=1 + n / 100, fps=100, size=(64, 48), gop=99)
        out = tmp_path / "t.jsonl"
        command = [sys.executable, "-m", "vtag", "run", folder, "--out", out, "--workers", "1"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=20)
        assert child.returncode == 143
        assert "run the same command again to go on" in stderr
        assert 2 <= len(records(out)) < 60
        assert vtag("run", folder, "--out", out).returncode == 0
        assert len(records(out)) == 60

    def test_two_runs_on_one_output(self, tmp_path: Path) -> None:
        from vtag.run_lock import RunLock

        clip, out = draw_clip(tmp_path / "a.mp4", seconds=1), tmp_path / "t.jsonl"
        with RunLock(out):
            run = vtag("run", clip, "--out", out)
        assert run.returncode == 3
        assert str(os.getpid()) in run.stderr
        assert len(run.stderr.splitlines()) == 1

    def test_nothing_to_tag_is_not_success(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        run = vtag("run", tmp_path / "empty", "--out", tmp_path / "t.jsonl")
        assert run.returncode == 1
        assert "no video or sound file" in run.stderr


class TestTag:
    def test_a_table_for_people(self) -> None:
        run = vtag("tag", SAMPLES / "dog.mp4")
        assert run.returncode == 0
        assert run.stderr == ""
        first = run.stdout.splitlines()[1].split()
        assert first[:2] == ["German", "shepherd"]
        assert "seen" in first
        assert "\x1b" not in run.stdout  # not a terminal

    def test_json_is_the_same_record_as_that_of_a_run(self, tmp_path: Path) -> None:
        out = tmp_path / "t.jsonl"
        vtag("run", SAMPLES / "dog.mp4", "--out", out)
        (expected,) = records(out).values()
        found = json.loads(vtag("tag", "--json", SAMPLES / "dog.mp4").stdout)
        for record in (expected, found):
            record.pop("timing")
        assert found == expected

    def test_threshold_zero_and_top_k(self) -> None:
        clip = SAMPLES / "coffee.mp4"
        found = json.loads(vtag("tag", clip, "--json", "--threshold", "0", "--top-k", "7").stdout)
        assert len(found["tags"]) == 7

    def test_a_bad_file_is_one_line_with_its_code(self, tmp_path: Path) -> None:
        (tmp_path / "x.mp4").write_text("words " * 50)
        run = vtag("tag", tmp_path / "x.mp4", SAMPLES / "dog.mp4")
        assert run.returncode == 1
        assert "German shepherd" in run.stdout  # the next clip is tagged all the same
        assert "[not_media]" in run.stderr
        assert len(run.stderr.splitlines()) == 1
        failed = json.loads(vtag("tag", tmp_path / "x.mp4", "--json").stdout)
        assert (failed["status"], failed["error"]["code"]) == ("failed", "not_media")

    def test_a_terminal_without_signs_gets_a_table_too(self) -> None:
        plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        run = vtag("tag", SAMPLES / "dog.mp4", env=plain)
        assert run.returncode == 0
        assert re.search(r"German shepherd +#+-* \d\.\d\d", run.stdout)


def test_schedulers_may_ask_for_another_status(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("words " * 50)
    out, counts = tmp_path / "t.jsonl", tmp_path / "deep" / "counts.json"
    command = ("run", tmp_path, "--out", out, "--no-cache", "--summary-json", counts)
    assert vtag(*command).returncode == 1
    assert json.loads(counts.read_text())["failed"] == 1
    assert vtag(*command, "--failed-ok").returncode == 0
    (tmp_path / "b.mp4").write_text("words " * 51)
    stopped = vtag(*command, "--failed-ok", "--fail-fast")
    assert stopped.returncode == 4
    assert "stopped: 1 of 2 inputs failed" in stopped.stderr


def test_the_last_lines_say_what_failed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("words " * 50)
    (tmp_path / "b.mp4").write_text("words " * 51)
    (tmp_path / "c.mp4").write_bytes(b"")
    run = vtag("run", tmp_path, "--out", tmp_path / "t.jsonl")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "vtag: failed: 2 not_media, 1 empty"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["run", "a", "--out", "t.jsonl", "--device", "cuda:9"], 3, "cuda"),
        (["run", "a", "--out", "t.jsonl", "--device", "toaster"], 2, "toaster"),
        (["run", "a", "--out", "t.jsonl", "--model", "nope"], 3, "vtag-base"),
        (["run", "a", "--out", "t.jsonl", "--frames-per-second", "0"], 2, "frames per second"),
        (["run", "a", "--out", "t.jsonl", "--max-failures", "lots"], 2, "lots"),
        (["run", "a", "--out", "t.jsonl", "--shard", "3/2"], 2, "3/2"),
        (["run", "a", "--out", "t.parquet"], 2, "--out-format parquet"),
        (["merge", "a", "--out", "t.parquet"], 2, "sidecar tags.jsonl --format parquet"),
        (["run", "a", "--out", "t.jsonl", "--summary-json", "./t.jsonl"], 2, "another file"),
        (["run", "a", "--out", "t.jsonl", "--summary-json", "-"], 2, "--summary-json"),
        (["run", "a", "--out", "t.jsonl", "--batch-size", "none"], 2, "--batch-size"),
        (["run", "a", "--out", "t.jsonl", "--workers", "-1"], 2, "--workers is 1 or more"),
        (["run", "a", "--out", "t.jsonl", "--limit", "0"], 2, "--limit is 1 or more"),
        (["tag", "."], 1, "vtag run FOLDER --out tags.jsonl"),
        (["tag", "https://example.org/a.mp4"], 1, "vtag run ADDRESS --out tags.jsonl"),
        (["sidecar", "none.jsonl"], 2, "name a file that `vtag run` wrote"),
        (["cache", "prune"], 2, "--max-size"),
        (["models", "info", "nope"], 3, "vtag-base"),
        (["labels", "--model", "nope"], 3, "vtag-base"),
    ],
)
def test_wrong_use_is_one_line_and_its_status(
    arguments: list[str],
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == status
    stderr = capsys.readouterr().err
    assert says in stderr
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "t.jsonl").exists()


def test_labels_are_listed_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "--search", "retriever"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["n02099601", "golden retriever"] in [row[:2] for row in rows]
    assert main(["labels", "--search", "dalmation"]) == 1
    assert "did you mean dalmatian" in capsys.readouterr().err


def test_models_are_listed_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "vtag-base\tmodel" in capsys.readouterr().out
    assert main(["models", "info", "vtag-base"]) == 0
    first = capsys.readouterr().out.splitlines()[0].split()
    assert main(["models", "info", "vtag-base", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert first == ["model", "vtag-base", f"({about['fingerprint']})"]


def test_cache_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clip = draw_clip(tmp_path / "a.mp4", seconds=1)
    assert vtag("tag", clip).returncode == 0
    assert main(["cache"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] >= 1
    assert main(["cache", "verify"]) == 0
    assert main(["cache", "prune", "--max-size", "1G"]) == 0
    assert main(["cache", "clear"]) == 0
    capsys.readouterr()
    main(["cache", "info"])
    assert json.loads(capsys.readouterr().out)["entries"] == 0


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "model vtag-base" in out
    assert "decode child" in out
    assert "frames a second and core" in out
    assert "settings: " in out
    assert re.search(r"watchdog \d", out)


def test_doctor_names_extras_that_there_are() -> None:
    from vtag.doctor import EXTRAS

    project = (SAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8")
    for extra in EXTRAS:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_doctor_tells_of_settings_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vtag.toml").write_text("devise = 1")
    assert main(["doctor"]) == 3
    assert "[problem] vtag.toml:1: no setting 'devise'" in capsys.readouterr().out


def test_a_moved_file_keeps_its_tags_and_a_deleted_one_is_listed(tmp_path: Path) -> None:
    out, folder = tmp_path / "t.jsonl", tmp_path / "videos"
    folder.mkdir()
    for n in range(3):
        draw_clip(folder / f"{n}.mp4", seconds=1, fps=10 + n)
    vtag("run", folder, "--out", out, "--no-cache")
    before = records(out)
    (folder / "1.mp4").rename(folder / "renamed.mp4")
    (folder / "2.mp4").unlink()
    run = vtag("run", folder, "--out", out, "--no-cache", "--list-deleted")
    assert run.returncode == 0
    assert "1 tagged (0 from cache, 1 known by content), 0 failed, 1 already done" in run.stderr
    assert "1 moved; 1 deleted" in run.stderr
    assert f"deleted: {folder / '2.mp4'}" in run.stderr
    after = records(out)
    assert sorted(after) == ["0.mp4", "2.mp4", "renamed.mp4"]
    same = ("id", "tags", "media", "model", "warnings")
    assert [after["renamed.mp4"][key] for key in same] == [before["1.mp4"][key] for key in same]
    vtag("run", folder, "--out", out, "--no-cache", "--forget-deleted")
    assert sorted(records(out)) == ["0.mp4", "renamed.mp4"]


def test_failures_of_what_is_no_input_any_more_leave(tmp_path: Path) -> None:
    out, disk = tmp_path / "t.jsonl", tmp_path / "disk"
    away = vtag("run", disk, "--out", out, "--no-cache")  # not mounted
    assert away.returncode == 1
    assert list(records(out)) == ["disk"]
    disk.mkdir()
    clip = draw_clip(disk / "a.mp4", seconds=1)
    vtag("run", disk / "typo.mp4", "--out", out, "--no-cache")
    assert sorted(records(out)) == ["disk", "typo.mp4"]
    assert vtag("run", disk, "--out", out, "--no-cache").returncode == 0
    assert sorted(records(out)) == ["a.mp4"]
    # What may only be away for a while stays.
    clip.unlink()
    draw_clip(disk / "b.mp4", seconds=2)
    vtag("run", disk, "--out", out, "--no-cache")
    assert sorted(records(out)) == ["a.mp4", "b.mp4"]


def test_who_comes_back_with_other_flags_is_told_that_records_stay(tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "t.jsonl"
    folder.mkdir()
    for n in range(2):
        draw_clip(folder / f"{n}.mp4", seconds=1, fps=10 + n)
    command = ("run", folder, "--out", out, "--no-cache")
    assert "records stay" not in vtag(*command).stderr
    assert "nothing was new, and records stay as they were made" in vtag(*command).stderr
    draw_clip(folder / "2.mp4", seconds=1, fps=13)
    said = vtag(*command, "--threshold", "0.01").stderr
    assert "2 records stay as they were made, without --threshold; another --out" in said
    (tmp_path / "vtag.toml").write_text("threshold = 0.02")  # as it is always
    kept = vtag(*command, env={**os.environ, "VTAG_CONFIG": str(tmp_path / "vtag.toml")}).stderr
    assert "without --threshold" not in kept


def test_colours_are_off_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtag.cli import _colour

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert _colour()
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only when it is not empty
    assert _colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not _colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not _colour()


@pytest.mark.parametrize(
    ("text", "size"),
    [("10G", 10**10), ("500M", 5 * 10**8), ("1.5k", 1500), ("7", 7), ("2GB", 2 * 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1M", "infG", "ten"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)
