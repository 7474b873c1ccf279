"""Entries that are stored beside the work: found at once, bounded, and whole after a kill."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from faulty_calls import FaultyCalls

from vtag import storage
from vtag.cache import CacheEntry, FeatureCache
from vtag.cache_writer import CacheWriter
from vtag.records import Features

INFO = {"warnings": []}


def entry(seed: int, rows: int = 10) -> CacheEntry:
    values = np.random.default_rng(seed).random((rows, 16)).astype(np.float16)
    return CacheEntry(Features(values, np.arange(rows, dtype=np.float64), "x@1"), INFO)


def key(seed: int) -> str:
    return FeatureCache.key(f"sha256:{seed}", "x@1", "rule")


class SlowCache(FeatureCache):
    """Stores nothing until it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may = threading.Event()
        self.writers: set[int] = set()

    def put(self, key: str, entry: CacheEntry) -> None:
        self.writers.add(threading.get_ident())
        assert self.may.wait(20)
        super().put(key, entry)


def rows_of(found: CacheEntry | None) -> list[list[float]]:
    assert found is not None
    return found.features.rows.tolist()


def test_what_waits_is_found_and_what_was_flushed_is_on_the_disk(tmp_path: Path) -> None:
    cache = SlowCache(tmp_path)
    writer = CacheWriter(cache)
    for seed in range(5):
        writer.put(key(seed), entry(seed))
    assert cache.info().entries == 0
    for seed in range(5):
        assert rows_of(writer.get(key(seed))) == rows_of(entry(seed))
    assert writer.get(key(9)) is None
    cache.may.set()
    writer.flush()
    assert cache.info().entries == 5
    assert threading.get_ident() not in cache.writers
    for seed in range(5):
        assert rows_of(FeatureCache(tmp_path).get(key(seed))) == rows_of(entry(seed))


def test_a_slow_disk_holds_the_work_up_before_memory_fills(tmp_path: Path) -> None:
    cache = SlowCache(tmp_path)
    one = entry(0).features.rows.nbytes + entry(0).features.seconds.nbytes
    writer = CacheWriter(cache, waiting_bytes=3 * one)
    taken: list[int] = []

    def work() -> None:
        for seed in range(8):
            writer.put(key(seed), entry(seed))
            taken.append(seed)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.5)
    assert taken == [0, 1, 2]  # three fit, the fourth waits
    cache.may.set()
    thread.join(20)
    writer.flush()
    assert cache.info().entries == 8


def test_an_entry_that_is_larger_than_the_bound_is_stored(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    writer = CacheWriter(cache, waiting_bytes=10)
    for seed in range(3):
        writer.put(key(seed), entry(seed, rows=100))
    writer.flush()
    assert cache.info().entries == 3


def test_a_disk_that_is_full_is_said_once_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CacheWriter(FeatureCache(tmp_path), waiting_bytes=1)
    monkeypatch.setattr(storage, "system", FaultyCalls("disk stays full", 0))
    with caplog.at_level(logging.WARNING):
        for seed in range(20):
            writer.put(key(seed), entry(seed))
        writer.flush()
    assert [r.getMessage() for r in caplog.records if "no longer kept" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1
    assert writer.get(key(3)) is None


def test_a_read_only_cache_takes_nothing(tmp_path: Path) -> None:
    writer = CacheWriter(FeatureCache(tmp_path, read_only=True))
    writer.put(key(0), entry(0))
    writer.flush()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_parent_stores_what_it_was_given(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_writer import SlowCache, CacheWriter, FeatureCache, entry, key
cache = SlowCache(Path(sys.argv[1]))
writer = CacheWriter(cache)
writer.put(key(0), entry(0))
child = os.fork()
if child == 0:
    cache.may = threading.Event()
    cache.may.set()
    assert writer.get(key(0)) is None
    writer.put(key(1), entry(1))
    writer.flush()
    assert FeatureCache(Path(sys.argv[1])).get(key(1)) is not None
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert FeatureCache(Path(sys.argv[1])).get(key(0)) is None
cache.may.set()
writer.flush()
assert FeatureCache(Path(sys.argv[1])).get(key(0)) is not None
"""
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)


def test_the_interpreter_does_not_exit_before_all_is_stored(tmp_path: Path) -> None:
    run_writer(tmp_path, count=30, then="")
    assert FeatureCache(tmp_path).info().entries == 30


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    run_writer(tmp_path, count=200, then="os.kill(os.getpid(), 9)", status=-signal.SIGKILL)
    cache = FeatureCache(tmp_path)
    assert cache.verify() == []
    assert cache.info().entries < 200  # else nothing was under way when it died


def run_writer(folder: Path, *, count: int, then: str, status: int = 0) -> None:
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_writer import CacheWriter, FeatureCache, entry, key
writer = CacheWriter(FeatureCache(Path(sys.argv[1])))
for seed in range({count}):
    writer.put(key(seed), entry(seed))
{then}
"""
    command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)]
    assert subprocess.run(command, timeout=120).returncode == status, json.dumps(command)
