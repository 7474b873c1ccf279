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

import pytest
from media import draw_clip

CLIPS = 24
KILLS = 30


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
    run = subprocess.run(command(library, quiet, tmp_path / "cache1"), timeout=300)
    assert run.returncode == 1  # some of the files are broken
    expected = Counter(map(essence, quiet.read_text().splitlines()))
    assert len(expected) == CLIPS + 4

    rng = random.Random(2026)
    kills = 0
    attempt = 0
    while kills < KILLS:
        # A fresh output now and then, since a finished one leaves nothing to kill.
        out = tmp_path / f"killed{attempt}.jsonl"
        cache = tmp_path / f"cache_of_{attempt}"
        attempt += 1
        while kills < KILLS:
            have = len(out.read_bytes().splitlines()) if out.exists() else 0
            child = subprocess.Popen(command(library, out, cache), stderr=subprocess.DEVNULL)
            kill_at(child, out, have + rng.randrange(0, 6), rng.uniform(0, 0.3))
            if child.wait(timeout=60) != -signal.SIGKILL:
                break
            kills += 1
        final = subprocess.run(command(library, out, cache), timeout=300)
        assert final.returncode in (0, 1)
        assert Counter(map(essence, out.read_text().splitlines())) == expected
    assert leftovers(tmp_path) == []


def kill_at(child: subprocess.Popen[bytes], out: Path, records: int, then_seconds: float) -> None:
    """Kills the run a moment after the output has so many lines, unless it ended before."""
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        if out.exists() and out.read_bytes().count(b"\n") >= records:
            try:
                child.wait(timeout=then_seconds)
            except subprocess.TimeoutExpired:
                child.kill()
            return
        time.sleep(0.01)


def leftovers(folder: Path) -> list[str]:
    """Processes that still have a file of the folder on their command line or open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found
