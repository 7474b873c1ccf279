"""A real Ray of two machines' raylets on this one: what can be killed is, and records counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from media import draw_clip
from s3_server import Fault, Server, s3_server
from test_kill import Process, children_of, essence, fields_of, survivors
from test_remote_run import essence as essence_elsewhere

pytest.importorskip("ray", reason="the extra [ray]")
pytestmark = pytest.mark.xdist_group("ray")

TESTS = Path(__file__).parent
STORE_BYTES = 100 << 20
CLIPS = 10
# Ray's own monitor would end workers because of what other processes of the machine hold.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "15",
}


class TwoNodes:
    """A cluster with the driver's node and another one, a core each.

    The other also has a GPU that is none: what runs on it runs on the CPU.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False}
        )
        self._node = node
        self.address: str = self._cluster.address
        self.find_other()

    def lose_other(self) -> None:
        """The second machine is gone, with all that ran on it."""
        self._cluster.remove_node(self._other, allow_graceful=False)

    def find_other(self) -> None:
        """It comes back, if it was lost."""
        if not self._cluster.worker_nodes:
            self._other = self._cluster.add_node(**self._node, num_gpus=1)

    def workers(self) -> set[Process]:
        """The processes that tag just now."""
        nodes = [self._cluster.head_node, *self._cluster.worker_nodes]
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        found = {process for raylet in raylets for process in children_of(raylet)}
        return {p for p in found if b"tag_rows" in _command_line(p.pid)}

    def shutdown(self) -> None:
        self._cluster.shutdown()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Server]:
    with s3_server() as made:
        yield made


@pytest.fixture(scope="module")
def cluster(bucket: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        # The nodes reach the storage by what their environment says, as anywhere.
        spool = str(tmp_path_factory.mktemp("spool"))
        everywhere = {**QUIET_RAY, **bucket.environment, "VTAG_SPOOL_DIR": spool}
        for name, value in everywhere.items():
            patch.setenv(name, value)
        # Workers import what the scripted tagger is made of.
        patch.setenv("PYTHONPATH", str(TESTS))
        found = TwoNodes()
        try:
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, files that are none, and a name that is no UTF-8."""
    folder = tmp_path_factory.mktemp("library")
    for n in range(CLIPS):
        draw_clip(folder / f"clip {n}.mp4", seconds=1 + n / 4, fps=10, size=(96, 64), tone_hz=440.0)
    whole = (folder / "clip 1.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mkv").write_bytes(b"")
    draw_clip(folder / "odd.mp4", seconds=2.1, fps=10, size=(96, 64))
    (folder / "odd.mp4").rename(folder / os.fsdecode(b"n\xffme.mp4"))
    return folder


@pytest.fixture(scope="module")
def expected(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """The records of a run on this machine without Ray."""
    out = tmp_path_factory.mktemp("local") / "tags.jsonl"
    assert subprocess.run(command(library, out), timeout=300).returncode == 1
    found = Counter(map(essence, out.read_text().splitlines()))
    assert len(found) == CLIPS + 4
    return found


def command(library: Path, out: Path, *flags: str) -> list[str]:
    vtag = [sys.executable, "-m", "vtag", "run", str(library), "--out", str(out)]
    return [*vtag, "--no-cache", "--max-frames", "8", *flags]


@contextmanager
def on_ray(
    cluster: TwoNodes, library: Path, out: Path, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    """The command, under way on a whole cluster; ended with the `with` at the latest."""
    cluster.find_other()
    ray = ["--engine", "ray", "--ray-address", cluster.address]
    with subprocess.Popen(
        command(library, out, *ray, *flags), stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            yield run
        finally:
            run.kill()


def words_of(run: subprocess.Popen[str]) -> str:
    """What it says until its end."""
    return run.communicate(timeout=240)[1]


def lines_of(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def wait_until(true: Callable[[], object], run: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not true():
        assert run.poll() is None, f"ended before, {run.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lost_worker_and_a_lost_machine_cost_no_record(
    cluster: TwoNodes, library: Path, tmp_path: Path, expected: Counter[str]
) -> None:
    out = tmp_path / "tags.jsonl"
    with on_ray(cluster, library, out) as run:
        wait_until(lambda: lines_of(out) >= 2 and cluster.workers(), run)
        victim = min(cluster.workers())
        decoders = children_of(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: lines_of(out) >= 4, run)
        cluster.lose_other()
        assert lines_of(out) < CLIPS, "lost too late to prove anything"
        words = words_of(run)
    assert run.returncode == 1, words
    assert Counter(map(essence, out.read_text().splitlines())) == expected
    assert f"vtag: {CLIPS + 4} inputs, {CLIPS + 1} tagged (0 from cache), 3 failed" in words
    assert survivors(decoders, wait_seconds=5) == []


def test_a_killed_driver_goes_on_where_it_was(
    cluster: TwoNodes, library: Path, tmp_path: Path, expected: Counter[str]
) -> None:
    out, counts = tmp_path / "tags.jsonl", tmp_path / "summary.json"
    with on_ray(cluster, library, out) as first:
        wait_until(lambda: lines_of(out) >= 3, first)
    had = lines_of(out)
    assert had < CLIPS
    with on_ray(cluster, library, out, "--summary-json", str(counts)) as second:
        words = words_of(second)
    assert second.returncode == 1, words
    assert Counter(map(essence, out.read_text().splitlines())) == expected
    summary = json.loads(counts.read_text())
    assert summary["skipped"] == had
    assert summary["tagged"] + summary["failed"] == CLIPS + 4 - had


@pytest.mark.slow
def test_networks_apart_from_decoding_give_the_same_records(
    cluster: TwoNodes, library: Path, tmp_path: Path, expected: Counter[str]
) -> None:
    out = tmp_path / "tags.jsonl"
    apart = ["--gpus", "1", "--device", "cpu", "--decoders", "1", "--actors", "2"]
    with on_ray(cluster, library, out, *apart) as run:
        words = words_of(run)
    assert run.returncode == 1, words
    assert Counter(map(essence, out.read_text().splitlines())) == expected


@pytest.mark.slow
def test_a_stopped_run_ends_soon_and_says_how_to_go_on(
    cluster: TwoNodes, library: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tags.jsonl"
    with on_ray(cluster, library, out) as run:
        wait_until(lambda: lines_of(out) >= 1, run)
        run.terminate()
        began = time.monotonic()
        words = words_of(run)
    assert run.returncode == 143, words
    assert time.monotonic() - began < 20
    assert "run the same command again to go on" in words


def test_from_a_bucket_to_a_bucket_by_the_documented_commands(
    cluster: TwoNodes, bucket: Server, library: Path, tmp_path: Path, expected: Counter[str]
) -> None:
    held = [file for file in library.iterdir() if file.name.isascii()]
    for file in held:
        bucket.client.put_object(
            Bucket="library", Key=f"videos/{file.name}", Body=file.read_bytes()
        )
    videos, parts, cache = (f"s3://library/{name}" for name in ("videos", "tags", "cache"))

    def lie(path: str) -> bool:
        found = bucket.client.list_objects_v2(Bucket="library", Prefix=path)
        return found["KeyCount"] > 0

    def tag(counts: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "vtag", "run", videos, "--out", parts, "--cache", cache),
            *("--engine", "ray", "--ray-address", cluster.address, "--max-frames", "8"),
            *("--summary-json", str(counts)),
        ]

    def summary(counts: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(counts.read_text())
        return found

    cluster.find_other()
    first = subprocess.Popen(tag(tmp_path / "1.json"), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: lie("cache/") and cluster.workers(), first)
    os.kill(min(cluster.workers()).pid, signal.SIGKILL)
    first.kill()
    first.communicate(timeout=60)

    bucket.faults = [
        Fault("GET", "videos/", times=3, status=500),
        Fault("GET", "videos/", times=1, cut=500),
        Fault("PUT", "tags/", times=1, status=503, code="SlowDown"),
    ]
    with subprocess.Popen(tag(tmp_path / "2.json"), stderr=subprocess.PIPE, text=True) as second:
        wait_until(cluster.workers, second)
        cluster.lose_other()
        words = words_of(second)
    assert second.returncode == 1, words
    assert not any(fault.times for fault in bucket.faults)
    done = summary(tmp_path / "2.json")
    assert done["inputs"] == len(held)
    assert done["tagged"] + done["failed"] + done["skipped"] == len(held)

    third = subprocess.run(tag(tmp_path / "3.json"), timeout=240)
    assert third.returncode == 1  # some are failures, as before
    assert summary(tmp_path / "3.json")["skipped"] == len(held)

    merged = tmp_path / "tags.jsonl"
    merge = [sys.executable, "-m", "vtag", "merge", parts, "--out", str(merged)]
    assert subprocess.run(merge, timeout=240).returncode == 1  # some records are failures

    wanted = Counter(essence_elsewhere(line) for line in expected.elements() if r"\u" not in line)
    assert sum(wanted.values()) == len(held)
    assert Counter(map(essence_elsewhere, merged.read_text().splitlines())) == wanted


def test_what_ends_hangs_or_breaks_workers_costs_its_own_record_only(
    cluster: TwoNodes, tmp_path: Path
) -> None:
    folder, out = tmp_path / "inputs", tmp_path / "tags.jsonl"
    folder.mkdir()
    names = ["kill0", "bug0", "hang0", *(f"fine{n}" for n in range(20))]
    for name in names:
        (folder / f"{name}.mp4").write_text(json.dumps({"decord": "sleep", "pyav": "sleep"}))
    run = subprocess.run(
        [sys.executable, str(TESTS / "scripted_tagger.py"), cluster.address, str(folder), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(Path(r["path"]).stem for r in found) == sorted(names)
    errors = {Path(r["path"]).stem: r["error"] for r in found if r["status"] == "failed"}
    assert {name: error["code"] for name, error in errors.items()} == {
        "kill0": "worker_lost",
        "bug0": "worker_error",
        "hang0": "decode_timeout",
    }
    assert "RuntimeError: a bug of two lines" in errors["bug0"]["message"]
    begun = Counter(note.name.split()[0] for note in (tmp_path / "tags.attempts").iterdir())
    assert begun["kill0"] == 3
    summary = json.loads(run.stdout.splitlines()[-1])  # Ray speaks of lost workers before
    assert (summary["inputs"], summary["tagged"], summary["failed"]) == (23, 20, 3)


def test_no_process_of_the_runs_is_left(cluster: TwoNodes) -> None:
    deadline = time.monotonic() + 20
    while cluster.workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert {fields_of(p.pid)[0] for p in cluster.workers() if fields_of(p.pid)} == set()  # type: ignore[index]
