"""Many items at once: order, laziness, bounds and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vtag.stream import WINDOW_PER_WORKER, as_finished, in_order


def test_in_order_keeps_the_order_of_the_items() -> None:
    def slow_first(n: int) -> int:
        time.sleep(0.05 if n == 0 else 0)
        return n * n

    assert list(in_order(slow_first, range(20), workers=3)) == [n * n for n in range(20)]


def test_as_finished_lets_nobody_wait_for_a_slow_item() -> None:
    release = threading.Event()

    def work(n: int) -> int:
        if n == 0:
            release.wait(5)
        return n

    results = as_finished(work, range(6), workers=2)
    first = [next(results) for _ in range(5)]
    release.set()
    assert sorted(first) == [1, 2, 3, 4, 5]
    assert list(results) == [0]


@pytest.mark.parametrize("spread", [in_order, as_finished])
def test_items_are_taken_lazily_and_within_the_window(spread: object) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield n

    results = spread(lambda n: n, items(), workers=2)  # type: ignore[operator]
    next(results)
    assert taken <= 2 * WINDOW_PER_WORKER + 1
    results.close()


def test_as_finished_stops_feeding_and_gives_up_on_what_hangs() -> None:
    release, stop = threading.Event(), threading.Event()

    def work(n: int) -> int:
        if n == 1:
            release.wait(30)
        return n

    results = as_finished(work, range(1000), workers=2, stopped=stop.is_set, patience_seconds=0.5)
    seen = [next(results)]
    stop.set()
    started = time.monotonic()
    seen += list(results)
    assert time.monotonic() - started < 5
    assert 1 not in seen
    assert len(seen) < 20
    release.set()


def test_a_bug_in_the_work_reaches_the_caller() -> None:
    def work(n: int) -> float:
        return 1 / n

    with pytest.raises(ZeroDivisionError):
        list(as_finished(work, [1, 0], workers=2))
