"""System calls that fail on purpose, to put in place of `vtag.storage.system`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import pytest

from vtag import storage

Fault = Literal["EIO", "ENOSPC", "disk stays full", "short write", "crash", "crash in a write"]
FAULTS: tuple[Fault, ...] = (
    "EIO",
    "ENOSPC",
    "disk stays full",
    "short write",
    "crash",
    "crash in a write",
)


class Crash(BaseException):
    """The process died here: nothing that runs after it may change the disk."""


class FaultyCalls(storage.SystemCalls):
    """Real calls, of which the k-th (from 0) goes wrong.

    EIO and ENOSPC: that call fails, once. "disk stays full": from that call on nothing can be
    made or written, but files can be cut, closed, renamed and removed. "short write": a write
    takes half of its bytes (and is no error). "crash": nothing of that call and of all that
    follow is done. "crash in a write": half of that write is done and nothing that follows.
    """

    def __init__(self, fault: Fault, at: int) -> None:
        self.fault = fault
        self.at = at
        self.calls = 0

    @property
    def fired(self) -> bool:
        return self.calls > self.at

    def _before(self, name: str) -> bool:
        """Whether the call is to be done by half; raises if it is not to be done."""
        by_half = self.fault in ("short write", "crash in a write")
        if by_half and name != "write" and not self.fired:
            return False  # only writes are counted
        is_it, after = self.calls == self.at, self.calls > self.at
        self.calls += 1
        if self.fault.startswith("crash") and (after or (is_it and not by_half)):
            raise Crash
        if self.fault == "EIO" and is_it:
            raise OSError(errno.EIO, "injected")
        full = self.fault == "disk stays full" and name in ("open", "write", "fsync")
        if (self.fault == "ENOSPC" and is_it) or (full and (is_it or after)):
            raise OSError(errno.ENOSPC, "injected")
        return by_half and is_it

    def open(self, path: Path, flags: int, mode: int) -> int:
        self._before("open")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        if not self._before("write"):
            return super().write(fd, data)
        written = super().write(fd, data[: max(1, len(data) // 2)])
        if self.fault == "crash in a write":
            raise Crash
        return written

    def fsync(self, fd: int) -> None:
        self._before("fsync")
        super().fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        self._before("ftruncate")
        super().ftruncate(fd, size)

    def close(self, fd: int) -> None:
        super().close(fd)  # Linux gives the number back even where close fails
        self._before("close")

    def replace(self, source: Path, target: Path) -> None:
        self._before("replace")
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._before("unlink")
        super().unlink(path)


@contextmanager
def calls_in_place(calls: storage.SystemCalls) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "system", calls)
        yield


def for_every_call(
    fault: Fault,
    *,
    prepare: Callable[[], None],
    act: Callable[[], None],
    check: Callable[[BaseException | None], None],
    expected: type[Exception],
) -> int:
    """Runs `act` with the fault at call 0, 1, 2 … until one run meets no fault; how many met one.

    After each run `check` gets what it raised: None, a Crash or an `expected`.
    """
    for at in count():
        prepare()
        calls = FaultyCalls(fault, at)
        raised: BaseException | None = None
        open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with calls_in_place(calls):
            try:
                act()
            except (expected, Crash) as err:
                raised = err
        if open_before:
            assert len(os.listdir("/proc/self/fd")) == open_before, f"{fault} at {at} leaks a file"
        check(raised)
        if not calls.fired:
            assert raised is None
            return at
    raise AssertionError("not reached")
