"""Runs a command and says what it took: wall and CPU time, memory of its whole process tree."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Measured:
    """What one run of a command took.

    Attributes:
        wall_seconds: from start to end.
        first_line_seconds: until the first line on stdout; the whole time if there was none.
        cpu_seconds: of all its processes.
        largest_mb: peak resident memory of its largest process.
        tree_mb: highest sum over its processes at one time. Pages that processes share (the
            libraries' code) are counted in each.
        output: its stdout.
    """

    wall_seconds: float
    first_line_seconds: float
    cpu_seconds: float
    largest_mb: float
    tree_mb: float
    output: str


def measured(command: Sequence[str]) -> Measured:
    """Runs it; ends the benchmark with the last lines of its stderr where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    lines: list[str] = []
    first = None
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        memory = _TreeMemory(process.pid)
        memory.start()
        assert process.stdout is not None
        for line in process.stdout:
            first = first or time.perf_counter() - started
            lines.append(line)
        status = process.wait()
        wall = time.perf_counter() - started
        memory.stop()
        if status != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\nended with {status}:\n{said.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall, first or wall, cpu, memory.largest_mb, memory.tree_mb, "".join(lines))


class _TreeMemory(threading.Thread):
    """Looks at a process and its descendants until it is stopped; zeros where there is no /proc."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.largest_mb = self.tree_mb = 0.0

    def run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            now, peaks = 0.0, [0.0]
            for pid in (self._pid, *descendants(self._pid)):
                status = _status(pid)
                now += status.get("VmRSS", 0.0)
                peaks.append(status.get("VmHWM", 0.0))
            self.largest_mb = max(self.largest_mb, *peaks)
            self.tree_mb = max(self.tree_mb, now)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def descendants(pid: int) -> list[int]:
    """Process ids of the children of a process, their children, and so on.

    Without those that have not begun a program of their own: their memory is their parent's.
    """
    found: list[int] = []
    words = _words_of(pid)
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:  # ended in the meantime
            continue
        for child in children:
            if _words_of(child) != words:
                found += [child, *descendants(child)]
    return found


def _words_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def cpu_seconds_of(pids: Sequence[int]) -> float:
    """CPU seconds so far of running processes, without their children."""
    ticks = 0
    for pid in pids:
        # The name in brackets may hold spaces: what counts begins behind it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, float]:
    """The lines of /proc/PID/status that are sizes, in MB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if "kB" in line}
