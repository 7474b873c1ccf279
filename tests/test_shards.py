"""How inputs are divided; and what that does to a job of a thousand workers, simulated."""

from __future__ import annotations

import importlib.util
import sys
from itertools import permutations, product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vtag.errors import ConfigError
from vtag.shards import Shard, ShardIdentity, assign, name_hash, plan_of_names, weights_of

Seconds = NDArray[np.float64]


def hashes_of(count: int) -> NDArray[np.uint64]:
    return np.array([name_hash(f"video {n}") for n in range(count)], np.uint64)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40), st.integers(1, 9))
def test_the_division_is_that_of_the_slow_rule(weights: list[float], count: int) -> None:
    hashes, values = hashes_of(len(weights)), np.array(weights)
    loads = [0.0] * count
    expected = {}
    for place in sorted(range(len(weights)), key=lambda p: (-weights[p], hashes[p])):
        shard = loads.index(min(loads))
        loads[shard] += weights[place]
        expected[place] = shard
    assert assign(hashes, values, count).tolist() == [expected[p] for p in range(len(weights))]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(2, 3))
@settings(max_examples=30)
def test_no_shard_has_more_than_four_thirds_of_the_best(weights: list[int], count: int) -> None:
    values = np.array(weights, float)
    best = min(
        np.bincount(list(way), values, minlength=count).max()
        for way in product(range(count), repeat=len(weights))
    )
    loads = np.bincount(assign(hashes_of(len(weights)), values, count), values, minlength=count)
    assert loads.max() <= (4 / 3 - 1 / (3 * count)) * best + 1e-9


def test_the_order_of_the_rows_does_not_matter() -> None:
    hashes, weights = hashes_of(5), np.array([3.0, 3.0, 3.0, 1.0, 1.0])
    first = assign(hashes, weights, 2)
    for order in permutations(range(5)):
        places = np.array(order)
        assert assign(hashes[places], weights[places], 2).tolist() == first[places].tolist()


def test_durations_count_only_where_all_are_known() -> None:
    nan = float("nan")
    sizes, some = np.array([1e6, nan, 3e6]), np.array([10.0, nan, 30.0])
    by_size = weights_of(sizes, some)
    assert by_size is not None
    assert by_size.tolist() == [1e6 + 2**20, 2e6 + 2**20, 3e6 + 2**20]
    by_time = weights_of(sizes, np.array([1.0, 2.0, 3.0]))
    assert by_time is not None
    assert by_time.tolist() == [2.0, 3.0, 4.0]
    assert weights_of(np.full(3, nan), some) is None


def test_an_identity_survives_json_and_nothing_else_passes_for_one() -> None:
    identity = ShardIdentity(Shard(2, 5), "manifest:ab", "model")
    assert ShardIdentity.from_dict(identity.to_dict()) == identity
    for bad in (None, [], {}, {"index": 9, "count": 5, "plan": "", "model": ""}, {"index": "x"}):
        with pytest.raises(ValueError, match="names no shard"):
            ShardIdentity.from_dict(bad)


def test_the_same_names_are_the_same_plan_in_any_order() -> None:
    assert plan_of_names(["a", "b"]) == plan_of_names(["b", "a"]) != plan_of_names(["ab"])


def test_a_shard_is_written_from_one() -> None:
    assert str(Shard.parse("3/8")) == "3/8"
    with pytest.raises(ConfigError):
        Shard.parse("0/8")


# -- a thousand workers -------------------------------------------------------------------------
#
# Videos whose lengths are log-normal (median 4 minutes, mean 8: as in a mixed library), workers
# of which some are slow, machines that die and come back. Only the division is ours: a shard
# that dies is started again by whoever runs the array, and goes on after its last record.


def loaded_model() -> ModuleType:
    """benchmarks/scale_model.py, which makes the tables of docs/scale.md with the same code."""
    path = Path(__file__).parent.parent / "benchmarks" / "scale_model.py"
    spec = importlib.util.spec_from_file_location("scale_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_model"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


model = loaded_model()
WORKERS = 1000
VIDEOS = 100_000


def efficiency(
    division: str, per_worker: int, *, slow: bool = False, dying: bool = False, seed: int = 7
) -> float:
    """Useful work by all the time that all workers are held until the last shard ends."""
    rng = np.random.default_rng(seed)
    job = model.Job(WORKERS, shards_per_worker=per_worker, division=division, start_seconds=0.0)
    work = model.library_of(rng, VIDEOS) * 0.02
    ideal, end = model.ideal_and_end(work, job, slow=slow, dying=dying, rng=rng)
    return float(ideal / end)


def test_division_by_size_beats_division_by_name() -> None:
    assert efficiency("size", 1) > 0.8
    assert efficiency("hash", 1) < 0.6
    # Names get better with more shards, since the lengths average less but the tail is shared.
    assert efficiency("hash", 1) < efficiency("hash", 10) < efficiency("size", 10) + 0.05


def test_a_slow_worker_halves_a_job_unless_shards_outnumber_workers() -> None:
    alone = efficiency("size", 1, slow=True)
    many = efficiency("size", 10, slow=True)
    assert alone < 0.55
    assert many > 0.85


def test_losing_machines_costs_a_restart_and_not_a_shard() -> None:
    for division in ("hash", "size"):
        calm = efficiency(division, 10)
        stormy = efficiency(division, 10, dying=True)
        assert stormy > 0.6 * calm
    # Without the records that were kept a death would cost the shard anew, half of it on average.
    assert efficiency("size", 1, dying=True) > 0.55


def test_the_simulation_conserves_the_work() -> None:
    rng = np.random.default_rng(3)
    work = model.library_of(rng, 20_000)
    for division in ("hash", "size"):
        for count in (1, 17, WORKERS):
            loads = model.divided(work, count, division, rng)
            assert loads.sum() == pytest.approx(work.sum())
    finish = model.finish
    assert finish(np.array([5.0, 3.0, 2.0]), np.ones(2)) == 5.0
    assert finish(np.array([5.0, 3.0, 3.0]), np.ones(2)) == 6.0
    assert finish(np.array([4.0]), np.array([0.5])) == 8.0
    assert finish(np.array([4.0]), np.ones(1), deaths=np.array([2.0]), restart=10) == 14.0
