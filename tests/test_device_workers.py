"""A worker process per device: one record for each video, whoever dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from media import draw_clip
from test_kill import children_of, survivors

from vtag import device_workers
from vtag.cli_devices import devices_of
from vtag.device_workers import MAX_LOST, ManyDevices
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.stream import in_order

Open = Callable[..., ManyDevices]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a pipeline over scripted workers."""
    monkeypatch.setattr(device_workers, "WORKER_MODULE", "scripted_device_worker")
    opened: list[ManyDevices] = []

    def open_many(*devices: str, workers: int = 4) -> ManyDevices:
        flags = {"diary": str(tmp_path / "diary")}
        opened.append(ManyDevices(devices, flags, workers=workers, torch_threads=1))
        return opened[-1]

    yield open_many
    for pipeline in opened:
        pipeline.close()


def tag_all(pipeline: ManyDevices, paths: list[str], workers: int = 4) -> dict[str, str]:
    """Status or error code of each path."""
    records = in_order(lambda path: pipeline.try_tag(path, "sha256:1"), paths, workers=workers)
    return {r.path: r.error.code if r.error else r.status for r in records}


def begun(folder: Path) -> Counter[str]:
    """How often each path was given to a worker."""
    return Counter(
        line.split(" ", 1)[1]
        for line in (folder / "diary").read_text(errors="surrogateescape").splitlines()
    )


def test_both_devices_work_and_each_video_is_done_once(scripted: Open, tmp_path: Path) -> None:
    paths = [f"clip {n}" for n in range(30)]
    with scripted("one", "two") as pipeline:
        assert tag_all(pipeline, paths) == dict.fromkeys(paths, "ok")
    devices = {line.split()[0] for line in (tmp_path / "diary").read_text().splitlines()}
    assert devices == {"one", "two"}
    assert begun(tmp_path) == Counter(paths)


def test_a_video_that_kills_its_workers_costs_one_record(scripted: Open, tmp_path: Path) -> None:
    paths = [f"clip {n}" for n in range(12)]
    paths[3:3] = ["poison a"]
    paths[7:7] = ["poison b"]
    with scripted("one", "two") as pipeline:
        found = tag_all(pipeline, paths)
    poisons = {"poison a": "worker_lost", "poison b": "worker_lost"}
    assert found == dict.fromkeys(paths, "ok") | poisons
    count = begun(tmp_path)
    # A worker may die of the one before it has begun the other.
    assert all(1 < count[path] <= MAX_LOST for path in poisons)


def test_a_bug_in_a_worker_is_raised_here_with_its_text(scripted: Open) -> None:
    with scripted("one", "two") as pipeline, pytest.raises(RuntimeError, match="bug 1"):
        pipeline.try_tag("bug 1", "sha256:1")


def test_log_lines_of_workers_are_logged_here(
    scripted: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted("one", "two") as pipeline, caplog.at_level(logging.WARNING):
        pipeline.try_tag("loud 1", "sha256:1")
    assert [(r.name, r.getMessage()) for r in caplog.records] == [("vtag.x", "seen loud 1")]


@pytest.mark.parametrize(
    ("device", "words"), [("gone", "no such device"), ("mute", "ended before it was ready")]
)
def test_a_device_that_does_not_start_ends_the_run(scripted: Open, device: str, words: str) -> None:
    before = {child.pid for child in children_of(os.getpid())}
    with pytest.raises(EnvironmentProblem, match=words):
        scripted("one", device)
    assert {child.pid for child in children_of(os.getpid())} <= before


def test_names_of_files_that_are_no_text_survive(scripted: Open) -> None:
    name = os.fsdecode(b"clip \xff\xfe.mp4")
    with scripted("one", "two") as pipeline:
        assert pipeline.try_tag(name, "sha256:1").path == name


def test_what_device_names_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of("cpu") == ["cpu"]
    assert devices_of("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices_of("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(EnvironmentProblem, match="no CUDA device"):
        devices_of("all")
    for text in ("cpu,", "auto,cpu", "all,cpu", ",", ",cpu"):
        with pytest.raises(ConfigError, match="several devices"):
            devices_of(text)


def test_a_run_on_two_devices_outlives_the_kill_of_a_worker(tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "tags.jsonl"
    folder.mkdir()
    for n in range(10):
        draw_clip(folder / f"{n}.mp4", seconds=2 + n / 5, fps=5, size=(96, 64))
    (folder / "text.mp4").write_text("no video\n" * 50)
    command = [sys.executable, "-m", "vtag", "run", str(folder), "--out", str(out)]
    options = ["--device", "cpu,cpu", "--cache", str(tmp_path / "cache"), "--workers", "2"]
    run = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    workers = set()
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and run.poll() is None:
        workers = {c for c in children_of(run.pid) if is_worker(c.pid)}
        if len(workers) == 2 and out.exists() and out.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.01)
    victim = min(workers)
    os.kill(victim.pid, signal.SIGKILL)
    _, said = run.communicate(timeout=240)
    assert run.returncode == 1, said  # of the text file
    records = [json.loads(line) for line in out.read_text().splitlines()]
    expected = {str(path) for path in folder.iterdir()}
    assert Counter(r["path"] for r in records) == Counter(expected)
    assert [r["path"] for r in records if r["status"] == "failed"] == [str(folder / "text.mp4")]
    assert survivors(workers, wait_seconds=10) == []


def is_worker(pid: int) -> bool:
    try:
        return b"cli_device_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
