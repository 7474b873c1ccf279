"""Nearest videos: against cosines written out, and whatever happened to cache and memo."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from search_library import record, write

from vtag.cache import CacheEntry, FeatureCache
from vtag.config import Sampling
from vtag.features import SOUND_RULE
from vtag.records import Features
from vtag.similar import Candidate, candidates_of, direction, nearest

SAMPLING = Sampling()
SIZES = {"visual": 6, "audio": 4}


def drawn(rng: np.random.Generator, stream: str, rows: int) -> Features:
    """Rows as a network with rectifiers makes them: none below zero."""
    numbers = np.maximum(rng.normal(size=(rows, SIZES[stream])), 0).astype(np.float16)
    return Features(numbers, np.arange(rows, dtype=np.float64), f"{stream}@1")


def store(cache: FeatureCache, content_id: str, features: Features, stream: str) -> str:
    rule = SAMPLING.fingerprint() if stream == "visual" else SOUND_RULE
    key = FeatureCache.key(content_id, features.made_by, rule)
    cache.put(key, CacheEntry(features, {}))
    return key


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "memo"


def candidates(count: int) -> list[Candidate]:
    return [Candidate(f"id {number}", f"{number}.mp4", Path("t.jsonl")) for number in range(count)]


def slow_cosine(first: Features, second: Features) -> float:
    """By the definition, number by number."""
    means = [
        [sum(float(row[d]) for row in f.rows) / len(f.rows) for d in range(f.rows.shape[1])]
        for f in (first, second)
    ]
    dot = sum(a * b for a, b in zip(*means, strict=True))
    return dot / (sum(a * a for a in means[0]) * sum(b * b for b in means[1])) ** 0.5


def test_order_and_numbers_are_those_of_the_definition(
    cache: FeatureCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtag.similar._AT_ONCE", 7)  # so that groups meet in the middle
    rng = np.random.default_rng(3)
    clip = {stream: drawn(rng, stream, 5) for stream in SIZES}
    expected: dict[str, dict[str, float]] = {}
    for number in range(30):
        streams = {0: ["visual"], 1: ["audio"], 2: []}.get(number % 5, ["visual", "audio"])
        expected[f"{number}.mp4"] = {}
        for stream in streams:
            features = drawn(rng, stream, int(rng.integers(1, 9)))
            store(cache, f"id {number}", features, stream)
            expected[f"{number}.mp4"][stream] = slow_cosine(clip[stream], features)
    means = {path: sum(c.values()) / len(c) for path, c in expected.items() if c}
    order = sorted(means, key=lambda path: -means[path])
    for _ in ("from the cache", "from the memo"):
        result = nearest(
            clip, candidates(30), cache=cache, sampling=SAMPLING, limit=8, folder=folder
        )
        assert [n.video.path for n in result.found] == order[:8]
        for neighbour in result.found:
            assert neighbour.similarity == pytest.approx(means[neighbour.video.path], abs=1e-3)
            assert dict(neighbour.streams) == pytest.approx(
                expected[neighbour.video.path], abs=1e-3
            )
        assert (result.compared, result.missing) == (len(means), 30 - len(means))


def test_the_same_content_is_one(cache: FeatureCache, folder: Path) -> None:
    features = drawn(np.random.default_rng(1), "visual", 50)
    store(cache, "id 0", features, "visual")
    (found,) = nearest(
        {"visual": features}, candidates(1), cache=cache, sampling=SAMPLING, folder=folder
    ).found
    assert found.similarity == pytest.approx(1, abs=1e-3)
    assert found.similarity <= 1


def test_other_extractors_and_samplings_are_not_compared(cache: FeatureCache, folder: Path) -> None:
    rng = np.random.default_rng(1)
    features = drawn(rng, "visual", 3)
    store(cache, "id 0", features, "visual")
    for clip, sampling in [
        (Features(features.rows, features.seconds, "visual@2"), SAMPLING),
        (features, Sampling(max_frames=7)),
    ]:
        result = nearest(
            {"visual": clip}, candidates(1), cache=cache, sampling=sampling, folder=folder
        )
        assert (result.found, result.missing) == ((), 1)


def test_without_a_common_stream_is_not_without_features(cache: FeatureCache, folder: Path) -> None:
    rng = np.random.default_rng(2)
    clip = {"visual": Features(np.zeros((0, 6), np.float16), np.zeros(0), "visual@1")}
    clip["audio"] = drawn(rng, "audio", 3)
    silent = Features(np.zeros((0, 4), np.float16), np.zeros(0), "audio@1")
    store(cache, "id 0", silent, "audio")
    store(cache, "id 0", drawn(rng, "visual", 3), "visual")
    store(cache, "id 1", drawn(rng, "audio", 3), "audio")
    store(cache, "id 2", drawn(rng, "visual", 3), "visual")  # by a model that does not listen
    for _ in ("from the cache", "from the memo"):
        result = nearest(clip, candidates(4), cache=cache, sampling=SAMPLING, folder=folder)
        assert [n.video.path for n in result.found] == ["1.mp4"]
        assert (result.compared, result.apart, result.missing) == (1, 1, 2)


def test_one_stream_missing_of_two_is_missing(cache: FeatureCache, folder: Path) -> None:
    rng = np.random.default_rng(2)
    clip = {stream: drawn(rng, stream, 3) for stream in SIZES}
    store(cache, "id 0", Features(np.zeros((0, 4), np.float16), np.zeros(0), "audio@1"), "audio")
    result = nearest(clip, candidates(1), cache=cache, sampling=SAMPLING, folder=folder)
    assert (result.compared, result.apart, result.missing) == (0, 0, 1)


def test_a_stream_without_rows_or_of_zeros_has_no_direction() -> None:
    assert direction(Features(np.zeros((0, 4), np.float16), np.zeros(0), "x")) is None
    assert direction(Features(np.zeros((2, 4), np.float16), np.arange(2.0), "x")) is None


def test_the_memo_serves_when_the_cache_is_gone_and_damage_is_computed_again(
    cache: FeatureCache, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(5)
    clip = {"visual": drawn(rng, "visual", 4)}
    kept = {f"id {n}": drawn(rng, "visual", 4) for n in range(9)}
    for content_id, features in kept.items():
        store(cache, content_id, features, "visual")

    def ask() -> list[tuple[str, float]]:
        result = nearest(clip, candidates(9), cache=cache, sampling=SAMPLING, folder=folder)
        return [(n.video.path, n.similarity) for n in result.found]

    first = ask()
    assert len(first) == 9
    cache.clear()
    assert ask() == first
    (memo,) = folder.iterdir()
    memo.write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        assert ask() == []  # nothing to make them of
    assert "made anew" in caplog.text
    for content_id, features in kept.items():
        store(cache, content_id, features, "visual")
    assert ask() == first
    cache.clear()
    assert ask() == first


def test_damaged_numbers_of_the_memo_are_not_used(cache: FeatureCache, folder: Path) -> None:
    import sqlite3

    features = drawn(np.random.default_rng(1), "visual", 3)
    store(cache, "id 0", features, "visual")
    clip = {"visual": features}
    nearest(clip, candidates(1), cache=cache, sampling=SAMPLING, folder=folder)
    (memo,) = folder.iterdir()
    for numbers in (b"short", np.full(6, np.nan, np.float16).tobytes(), bytes(12)):
        with sqlite3.connect(memo) as database:
            database.execute("UPDATE directions SET numbers = ?", (numbers,))
        database.close()
        (found,) = nearest(clip, candidates(1), cache=cache, sampling=SAMPLING, folder=folder).found
        assert found.similarity == pytest.approx(1, abs=1e-3)


def test_candidates_are_the_tagged_records(tmp_path: Path, folder: Path) -> None:
    library = write(
        tmp_path / "t.jsonl",
        record("a.mp4", duration=3.0),
        record("bad.mp4", failed=True),
        {**record("unknown.mp4"), "id": None},
        record("b.mp4", duration=None),
    )
    assert candidates_of([library, library], folder=folder) == [
        Candidate("sha256:a.mp4", "a.mp4", library, 3.0),
        Candidate("sha256:b.mp4", "b.mp4", library, None),
    ]
