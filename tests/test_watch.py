"""A folder that grows: what is complete is told once, whatever the system says or forgets."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from media import draw_clip

import vtag.watch
import vtag.watch_events
from vtag.discover import Shard
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.watch import WatchConfig, Watcher

SAMPLES = Path(__file__).parent.parent / "sample_videos"
POLLED = WatchConfig(settle_seconds=5, poll_seconds=1)
# Not longer: the events themselves are to be seen, not the walk that makes up for lost ones.
TOLD = WatchConfig(settle_seconds=0.2, rescan_seconds=3600)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def polled(folder: Path, clock: Clock, **options: object) -> Watcher:
    return Watcher([str(folder)], POLLED, clock=clock, **options)  # type: ignore[arg-type]


def names(watcher: Watcher) -> list[str]:
    return [Path(path).name for path in watcher.ready()]


def age(path: Path, seconds: float) -> None:
    """Sets the date of a file back; its status stays young, as with a copy that keeps dates."""
    then = time.time() - seconds
    os.utime(path, (then, then))


class TestSettling:
    def test_a_new_file_is_told_once_and_after_its_time(self, folder: Path) -> None:
        clock = Clock()
        with polled(folder, clock) as watcher:
            assert names(watcher) == []
            (folder / "a.mp4").write_bytes(b"x")
            clock.now += 1
            assert names(watcher) == []
            clock.now += 4.9
            assert names(watcher) == []
            clock.now += 0.1
            assert names(watcher) == ["a.mp4"]
            clock.now += 100
            assert names(watcher) == []

    def test_a_file_that_grows_waits_until_it_stops(self, folder: Path) -> None:
        clock = Clock()
        with polled(folder, clock) as watcher:
            for size in range(1, 5):
                (folder / "a.mp4").write_bytes(b"x" * size)
                assert names(watcher) == []
                clock.now += 4
            clock.now += 5
            assert names(watcher) == ["a.mp4"]

    def test_a_change_without_a_walk_in_between_is_seen(self, folder: Path) -> None:
        clock = Clock()
        config = WatchConfig(settle_seconds=5, poll_seconds=100)
        (folder / "a.mp4").write_bytes(b"x")
        with Watcher([str(folder)], config, clock=clock) as watcher:
            assert names(watcher) == []
            (folder / "a.mp4").write_bytes(b"xx")
            clock.now += 6
            assert names(watcher) == []  # changed meanwhile: its time begins again
            clock.now += 6
            assert names(watcher) == ["a.mp4"]

    def test_a_changed_file_is_told_again(self, folder: Path) -> None:
        clock = Clock()
        (folder / "a.mp4").write_bytes(b"x")
        with polled(folder, clock) as watcher:
            names(watcher)
            clock.now += 5
            assert names(watcher) == ["a.mp4"]
            (folder / "a.mp4").write_bytes(b"other")
            clock.now += 1
            assert names(watcher) == []
            clock.now += 5
            assert names(watcher) == ["a.mp4"]

    def test_old_files_are_told_at_once_when_watching_begins(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "old.mp4").write_bytes(b"x")
        # As an hour later: the date of the status can not be set back.
        later = time.time() + 3600
        monkeypatch.setattr(vtag.watch.time, "time", lambda: later)
        with polled(folder, Clock()) as watcher:
            assert names(watcher) == ["old.mp4"]

    def test_a_copy_that_keeps_its_old_date_has_to_settle(self, folder: Path) -> None:
        (folder / "a.mp4").write_bytes(b"x")
        age(folder / "a.mp4", 10_000)
        clock = Clock()
        with polled(folder, clock) as watcher:
            assert names(watcher) == []
            clock.now += 5
            assert names(watcher) == ["a.mp4"]

    def test_a_file_renamed_into_place_is_told_by_its_last_name(self, folder: Path) -> None:
        clock = Clock()
        with polled(folder, clock) as watcher:
            for suffix in (".part", ".tmp", ".crdownload"):
                shutil.copy(SAMPLES / "dog.mp4", folder / f"{suffix[1:]}.mp4{suffix}")
            names(watcher)
            clock.now += 6
            assert names(watcher) == []
            for suffix in (".part", ".tmp", ".crdownload"):
                name = f"{suffix[1:]}.mp4"
                (folder / f"{name}{suffix}").rename(folder / name)
            clock.now += 1
            assert names(watcher) == []
            clock.now += 5
            assert sorted(names(watcher)) == ["crdownload.mp4", "part.mp4", "tmp.mp4"]

    def test_what_could_not_be_used_comes_again(self, folder: Path) -> None:
        clock = Clock()
        (folder / "a.mp4").write_bytes(b"x")
        with polled(folder, clock) as watcher:
            names(watcher)
            clock.now += 5
            (path,) = watcher.ready()
            watcher.again(path)
            assert names(watcher) == []
            clock.now += 5
            assert names(watcher) == ["a.mp4"]

    def test_a_deleted_file_is_named_and_may_come_back(self, folder: Path) -> None:
        clock = Clock()
        (folder / "a.mp4").write_bytes(b"x")
        with polled(folder, clock) as watcher:
            names(watcher)
            clock.now += 5
            assert names(watcher) == ["a.mp4"]
            (folder / "a.mp4").unlink()
            clock.now += 1
            assert names(watcher) == []
            assert watcher.gone() == [str(folder / "a.mp4")]
            assert watcher.gone() == []
            (folder / "a.mp4").write_bytes(b"x")
            clock.now += 1
            names(watcher)
            clock.now += 5
            assert names(watcher) == ["a.mp4"]

    def test_a_missing_disk_is_no_deletion(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Clock()
        (folder / "a.mp4").write_bytes(b"x")
        with polled(folder, clock) as watcher:
            names(watcher)
            clock.now += 5
            assert names(watcher) == ["a.mp4"]
            folder.rename(folder.with_name("unmounted"))
            for _ in range(3):
                clock.now += 5
                assert names(watcher) == []
            assert watcher.gone() == []
            assert caplog.text.count("the folder is gone") == 1
            folder.with_name("unmounted").rename(folder)
            clock.now += 5
            assert names(watcher) == []  # it is as it was

    def test_only_the_files_of_the_shard(self, folder: Path) -> None:
        for n in range(20):
            (folder / f"{n}.mp4").write_bytes(b"x")
        told = []
        for index in (1, 2):
            clock = Clock()
            with polled(folder, clock, shard=Shard(index, 2)) as watcher:
                names(watcher)
                clock.now += 5
                told.append(names(watcher))
        assert sorted(told[0] + told[1]) == sorted(f"{n}.mp4" for n in range(20))
        assert all(told)


class TestEvents:
    """With the real library and the real system."""

    @staticmethod
    def until(watcher: Watcher, enough: Callable[[list[str]], bool]) -> list[str]:
        found: list[str] = []
        deadline = time.monotonic() + 60
        while not enough(found):
            assert time.monotonic() < deadline, f"only {found}"
            found += watcher.ready()
            watcher.wait(0.02)
        return found

    def test_new_files_new_folders_and_moves_are_told(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with Watcher(["videos"], TOLD) as watcher:
            assert list(watcher.ready()) == []
            (folder / "a.mp4").write_bytes(b"x")
            (folder / "new" / "deep").mkdir(parents=True)
            (folder / "new" / "deep" / "b.mp4").write_bytes(b"x")
            outside = tmp_path / "outside"
            outside.mkdir()
            (outside / "c.mp4").write_bytes(b"x")
            outside.rename(folder / "moved in")
            found = self.until(watcher, lambda found: len(found) >= 3)
            expected = ["videos/a.mp4", "videos/moved in/c.mp4", "videos/new/deep/b.mp4"]
            assert sorted(found) == expected
            (folder / "new").rename(folder / "renamed")
            found = self.until(watcher, lambda found: len(found) >= 1)
            assert found == ["videos/renamed/deep/b.mp4"]
            assert watcher.gone() == ["videos/new/deep/b.mp4"]
            (folder / "renamed" / "deep" / "later.mp4").write_bytes(b"x")
            found = self.until(watcher, lambda found: len(found) >= 1)
            assert found == ["videos/renamed/deep/later.mp4"]

    def test_what_the_library_warns_itself_of_is_not_shown(self, folder: Path) -> None:
        # A folder in a new folder is found by its parent's walk and by its own event.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Watcher([str(folder)], TOLD) as watcher:
                list(watcher.ready())
                text = "Callback with id '1' already exists for watch. It will be Overwritten."
                warnings.warn_explicit(text, RuntimeWarning, "inotify.py", 1, "watchdog.observers")

    def test_the_current_folder_has_names_as_in_a_run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        with Watcher(["."], TOLD) as watcher:
            list(watcher.ready())
            Path("a.mp4").write_bytes(b"x")
            assert self.until(watcher, bool) == ["a.mp4"]

    def test_to_read_a_file_is_no_change(self, folder: Path) -> None:
        (folder / "a.mp4").write_bytes(b"x")
        with Watcher([str(folder)], TOLD) as watcher:
            self.until(watcher, bool)
            time.sleep(0.2)
            watcher._take_events()
            (folder / "a.mp4").read_bytes()
            time.sleep(0.3)
            assert watcher._events is not None
            assert watcher._events.take() == []
            assert list(watcher.ready()) == []

    def test_lost_events_are_made_up_for_by_a_walk(self, folder: Path) -> None:
        with Watcher([str(folder)], TOLD) as watcher:
            list(watcher.ready())
            assert watcher._events is not None
            # Nobody listens for a moment; then the library complains, as it does when the
            # system's queue was full.
            watcher._events._observer.unschedule_all()
            (folder / "a.mp4").write_bytes(b"x")
            time.sleep(0.1)
            assert watcher._events.take() == []
            logging.getLogger("watchdog.test").warning("Inotify queue overflowed")
            assert self.until(watcher, bool) == [str(folder / "a.mp4")]

    def test_a_flood_of_events_is_made_up_for_by_a_walk(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vtag.watch_events.SystemEvents, "MAX_WAITING", 3)
        with Watcher([str(folder)], TOLD) as watcher:
            list(watcher.ready())
            for n in range(30):
                (folder / f"{n}.mp4").write_bytes(b"x")
            time.sleep(0.2)
            assert len(self.until(watcher, lambda found: len(found) >= 30)) == 30

    @pytest.mark.parametrize("call", ["__init__", "schedule", "start"])
    def test_no_room_for_watches_is_one_warning_and_walking(
        self,
        call: str,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        # By whichever call the library finds it: instances are made first, watches later.
        import watchdog.observers

        def fail(self: object, *args: object, **options: object) -> None:
            raise OSError(28, "inotify watch limit reached")

        monkeypatch.setattr(watchdog.observers.Observer, call, fail)
        monkeypatch.setattr(vtag.watch, "POLL_SECONDS", 0.05)
        (folder / "a.mp4").write_bytes(b"x")
        with Watcher([str(folder)], TOLD) as watcher:
            assert not watcher.told_by_system
            assert self.until(watcher, bool) == [str(folder / "a.mp4")]
        assert [record.message for record in caplog.records] == [
            "the system can not tell of changes (inotify watch limit reached); "
            "the folders are walked every 0 s instead"
        ]

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
    def test_folders_below_that_are_not_watched_are_noticed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        # The library passes over them without a word. Here it never hears of them.
        import watchdog.observers

        for n in range(3):
            (folder / str(n)).mkdir()
        real = watchdog.observers.Observer.schedule

        def flat(self: object, handler: object, path: str, *, recursive: bool) -> object:
            return real(self, handler, path, recursive=False)

        with Watcher([str(folder)], TOLD) as watcher:
            list(watcher.ready())
            assert watcher.told_by_system
            assert watcher._events is not None
            assert watcher._events.watched_folders() == 4
        monkeypatch.setattr(watchdog.observers.Observer, "schedule", flat)
        monkeypatch.setattr(vtag.watch, "POLL_SECONDS", 0.05)
        with Watcher([str(folder)], TOLD) as watcher:
            list(watcher.ready())
            assert not watcher.told_by_system
            (folder / "1" / "a.mp4").write_bytes(b"x")
            assert self.until(watcher, bool) == [str(folder / "1" / "a.mp4")]
        assert "only 1 of 4 folders" in caplog.text
        assert len(caplog.records) == 1

    def test_the_library_is_named_when_it_is_missing(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "watchdog.observers", None)
        with pytest.raises(EnvironmentProblem, match=r"pip install 'vtag\[watch\]'.*--watch-poll"):
            Watcher([str(folder)])
        Watcher([str(folder)], POLLED).close()


def test_only_folders_can_be_watched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        Watcher([str(tmp_path / "none")], POLLED)


@pytest.mark.parametrize("config", [{"settle_seconds": -1}, {"poll_seconds": 0}])
def test_times_that_make_no_sense(config: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        WatchConfig(**config)


# -- the real command ---------------------------------------------------------------------------


def start(tmp_path: Path, *flags: str, settle: str = "0.3") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vtag", "run", "videos", "--out", "tags.jsonl", "--watch"]
    return subprocess.Popen(
        [*command, "--watch-settle", settle, "--workers", "1", *flags],
        cwd=tmp_path,
        env={**os.environ, "VTAG_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def paths(tmp_path: Path) -> list[str]:
    out = tmp_path / "tags.jsonl"
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    return [json.loads(line)["path"] for line in lines]


def wait_for(tmp_path: Path, *expected: str) -> None:
    deadline = time.monotonic() + 240
    while not set(expected) <= set(paths(tmp_path)):
        assert time.monotonic() < deadline, f"{expected} not in {paths(tmp_path)}"
        time.sleep(0.05)


def test_watching_a_folder_of_all_kinds_of_changes(folder: Path, tmp_path: Path) -> None:
    draw_clip(folder / "first.mp4", seconds=1)
    whole = draw_clip(tmp_path / "whole.mp4", seconds=2, fps=12).read_bytes()
    run = start(tmp_path, "--list-deleted", "--summary-json", "counts.json")
    try:
        wait_for(tmp_path, "videos/first.mp4")
        with open(folder / "slow.mp4", "wb", buffering=0) as file:
            for begin in range(0, len(whole), len(whole) // 6 + 1):
                file.write(whole[begin : begin + len(whole) // 6 + 1])
                time.sleep(0.1)
        (folder / "new").mkdir()
        part = folder / "new" / "loaded.mp4.part"
        part.write_bytes(draw_clip(tmp_path / "b.mp4", seconds=1, fps=9).read_bytes())
        part.rename(folder / "new" / "loaded.mp4")
        wait_for(tmp_path, "videos/slow.mp4", "videos/new/loaded.mp4")
        (folder / "first.mp4").rename(folder / "new" / "renamed.mp4")
        (folder / "new" / "loaded.mp4").unlink()
        wait_for(tmp_path, "videos/new/renamed.mp4")
    finally:
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "Traceback" not in stderr
    assert "watching videos" in stderr
    assert "deleted: videos/new/loaded.mp4" in stderr
    # Of each input one record; the one of the old name has left.
    expected = ["videos/new/loaded.mp4", "videos/new/renamed.mp4", "videos/slow.mp4"]
    assert sorted(paths(tmp_path)) == expected
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["inputs"], counts["tagged"], counts["repeated"]) == (4, 4, 1)
    assert (counts["moved"], counts["deleted"], counts["failed"]) == (1, 1, 0)
    assert counts["cached"] == 0  # slow.mp4 was read when it was complete, and only then


def test_killed_in_the_middle_nothing_is_lost_or_doubled(folder: Path, tmp_path: Path) -> None:
    expected = set()
    for n in range(9):
        if n % 3 == 0:
            run = start(tmp_path, "--watch-poll", "0.3", settle="0.1")
        draw_clip(folder / f"{n}.mp4", seconds=1, fps=10 + n)
        expected.add(f"videos/{n}.mp4")
        if n % 3 == 1:
            wait_for(tmp_path, f"videos/{n - 1}.mp4")
            (folder / "0.mp4").rename(folder / f"moved{n}.mp4") if n == 4 else None
        if n % 3 == 2:
            time.sleep(0.1 * n)
            run.kill()
            run.communicate(timeout=60)
            assert run.returncode == -signal.SIGKILL
    expected = (expected - {"videos/0.mp4"}) | {"videos/moved4.mp4"}
    run = start(tmp_path, "--watch-poll", "0.3", settle="0.1")
    try:
        # All may be there already; signals are heard once it watches.
        assert run.stderr is not None
        assert any("watching" in line for line in run.stderr)
        wait_for(tmp_path, *expected)
    finally:
        run.terminate()
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 143, stderr
    assert sorted(paths(tmp_path)) == sorted(expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.mp4", "--watch"], "is no folder"),
        ([".", "--watch", "--limit", "3"], "--limit"),
        ([".", "--watch-poll", "0"], "0.05"),
        ([".", "--watch", "--watch-settle", "-1"], "settles"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vtag.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["run", *words, "--out", "t.jsonl", "--no-cache"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert not Path("t.jsonl").exists()
