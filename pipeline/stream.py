"""Many videos at once, with bounded memory and in a chosen order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Work waiting per worker, so that no worker runs dry while the caller handles a result.
WINDOW_PER_WORKER = 2


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """`map(work, items)` on several threads: lazy, in the order of the items.

    At most `WINDOW_PER_WORKER * workers` items are taken ahead of the caller.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vtag")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= WINDOW_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def as_finished(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
    patience_seconds: float = 10.0,
) -> Iterator[Result]:
    """Results in the order in which they are done, so that one slow item holds up no other.

    `items` is asked again after each result, also when it had no more: what a result showed
    to be left may follow.

    When `stopped` turns true no further item is taken, and what is under way is waited for
    `patience_seconds` at most; the rest is abandoned.
    """
    pending: set[Future[Result]] = set()
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vtag")
    left = patience_seconds
    try:
        while True:
            while not stopped() and len(pending) < WINDOW_PER_WORKER * workers:
                try:
                    pending.add(pool.submit(work, next(source)))
                except StopIteration:
                    break
            if stopped():
                for future in list(pending):
                    if future.cancel():
                        pending.discard(future)
            if not pending or left <= 0:
                return
            # A short wait, so that a signal is noticed while every worker is busy.
            done, pending = wait(pending, timeout=0.25, return_when=FIRST_COMPLETED)
            if stopped() and not done:
                left -= 0.25
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
