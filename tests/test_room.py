"""Room: never more than there is, and nobody is overtaken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vtag.room import Room


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_many_threads_never_have_more_than_there_is() -> None:
    room, together, most, guard = Room(100), 0, 0, threading.Lock()

    def work(wanted: int) -> None:
        nonlocal together, most
        for _ in range(50):
            with room.reserved(wanted):
                with guard:
                    together += wanted
                    most = max(most, together)
                time.sleep(0)
                with guard:
                    together -= wanted

    threads = [threading.Thread(target=work, args=[n]) for n in (10, 30, 60, 99, 100, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most <= 100
    assert room.used_bytes == 0


def test_what_needs_much_is_not_overtaken() -> None:
    room, order = Room(100), []

    def work(name: str, wanted: int) -> None:
        with room.reserved(wanted):
            order.append(name)

    with room.reserved(50):
        large = threading.Thread(target=work, args=["large", 100])
        large.start()
        until(lambda: len(room._waiting) == 1)
        small = threading.Thread(target=work, args=["small", 10])
        small.start()
        until(lambda: len(room._waiting) == 2)
        assert order == []
    large.join(timeout=20)
    small.join(timeout=20)
    assert order == ["large", "small"]


def test_more_than_there_is_is_had_alone() -> None:
    room = Room(100)
    with room.reserved(5000):
        assert room.used_bytes == 100
    assert room.used_bytes == 0


def test_an_error_inside_gives_the_room_back() -> None:
    room = Room(100)
    with pytest.raises(KeyError), room.reserved(70):
        raise KeyError
    with room.reserved(100):
        pass


def test_room_is_above_nothing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Room(0)
