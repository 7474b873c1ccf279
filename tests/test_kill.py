"""The real command, killed with SIGKILL at random moments: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from media import draw_clip

CLIPS = 24
KILLS = 30


class Process(NamedTuple):
    """A process, told from a later one of the same number by when it began."""

    pid: int
    begun: int


def command(folder: Path, out: Path, cache: Path) -> list[str]:
    vtag = [sys.executable, "-m", "vtag"]
    return [*vtag, "run", str(folder), "--out", str(out), "--cache", str(cache), "--quiet"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short clips, some broken, two of the same content, in nested folders."""
    folder = tmp_path_factory.mktemp("library")
    for n in range(CLIPS):
        path = folder / f"part{n % 3}" / f"clip {n}.mp4"
        path.parent.mkdir(exist_ok=True)
        draw_clip(path, seconds=1 + n / 10, fps=10, size=(96, 64))
    (folder / "copy.mp4").write_bytes((folder / "part0" / "clip 0.mp4").read_bytes())
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mkv").write_bytes(b"")
    whole = (folder / "part1" / "clip 1.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def essence(line: str) -> str:
    """A record without what may differ between two runs: the time that it took."""
    record = json.loads(line)
    record.pop("timing")
    return json.dumps(record, sort_keys=True)


def test_thirty_kills_lose_and_double_nothing(library: Path, tmp_path: Path) -> None:
    quiet = tmp_path / "quiet.jsonl"
    undisturbed = subprocess.run(command(library, quiet, tmp_path / "cache1"), timeout=300)
    assert undisturbed.returncode == 1  # some of the files are broken
    expected = Counter(map(essence, quiet.read_text().splitlines()))
    assert len(expected) == CLIPS + 4

    rng = random.Random(2026)
    kills = 0
    attempt = 0
    children: set[Process] = set()
    while kills < KILLS:
        # A fresh output now and then, since a finished one leaves nothing to kill.
        out = tmp_path / f"killed{attempt}.jsonl"
        cache = tmp_path / f"cache_of_{attempt}"
        attempt += 1
        while kills < KILLS:
            have = len(out.read_bytes().splitlines()) if out.exists() else 0
            run = subprocess.Popen(command(library, out, cache), stderr=subprocess.DEVNULL)
            children |= kill_at(run, out, have + rng.randrange(0, 6), rng.uniform(0, 0.3))
            if run.wait(timeout=120) != -signal.SIGKILL:
                break
            kills += 1
        final = subprocess.run(command(library, out, cache), timeout=300)
        assert final.returncode in (0, 1)
        assert Counter(map(essence, out.read_text().splitlines())) == expected
    # Else the next line would prove nothing.
    assert len(children) >= KILLS / 3
    assert survivors(children, wait_seconds=5) == []


def kill_at(
    run: subprocess.Popen[bytes], out: Path, records: int, then_seconds: float
) -> set[Process]:
    """Kills the run a moment after the output has so many lines, unless it ended before.

    Returns the children that it had in its last moment.
    """
    deadline = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < deadline:
        if out.exists() and out.read_bytes().count(b"\n") >= records:
            time.sleep(then_seconds)
            children = children_of(run.pid)
            run.kill()
            return children
        time.sleep(0.01)
    return set()


def children_of(parent: int) -> set[Process]:
    """The processes that a process started and that are alive."""
    found = set()
    for entry in Path("/proc").iterdir():
        fields = fields_of(int(entry.name)) if entry.name.isdigit() else None
        if fields is not None and int(fields[1]) == parent:
            found.add(Process(int(entry.name), int(fields[19])))
    return found


def fields_of(pid: int) -> list[str] | None:
    """What /proc/PID/stat says behind the name (state, parent, …); None without the process.

    One that has ended and only waits to be reaped does not count.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if fields[0] != "Z" else None


def survivors(processes: set[Process], *, wait_seconds: float) -> list[Process]:
    """Those that are still there after a while, told from others by when they began."""
    deadline = time.monotonic() + wait_seconds
    while True:
        alive = [p for p in processes if (f := fields_of(p.pid)) and int(f[19]) == p.begun]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def test_a_child_that_lives_on_would_be_noticed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        children = {c for c in children_of(os.getpid()) if c.pid == child.pid}
        assert survivors(children, wait_seconds=0) == list(children) != []
    finally:
        child.kill()
    assert survivors(children, wait_seconds=5) == []
    child.wait()
