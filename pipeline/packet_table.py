"""When every picture of a video is shown, read from its packets without decoding one.

Headers lie about duration, frame rate and number of frames; packets do not. All arithmetic is in
ticks of the stream's time base, so times never drift.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

KEY: Final = 1  # decoding can start here
DISCARD: Final = 2  # decoded but not shown: outside the edit list
NO_PTS: Final = 4  # the container gave no presentation time

# MPEG transport and program streams are cut and joined as they are, and their clock jumps at the
# joints. Elsewhere a gap means that a picture really stands for so long.
LARGEST_GAP_SECONDS: Final = 10.0

Ticks = NDArray[np.int64]


class PacketLog:
    """Collects packets in the order of decoding, 17 bytes each."""

    def __init__(self) -> None:
        self.pts = array("q")
        self.dts = array("q")
        self.flags = array("B")
        self.last_duration = 0

    def __len__(self) -> int:
        return len(self.flags)

    def add(
        self, pts: int | None, dts: int | None, duration: int | None, *, key: bool, discard: bool
    ) -> None:
        """One packet; `None` where the container says nothing."""
        flags = (KEY if key else 0) | (DISCARD if discard else 0) | (NO_PTS if pts is None else 0)
        if dts is None:
            dts = pts if pts is not None else (self.dts[-1] + (duration or 1) if self.dts else 0)
        self.pts.append(dts if pts is None else pts)
        self.dts.append(dts)
        self.flags.append(flags)
        self.last_duration = duration or 0


@dataclass(frozen=True)
class PacketTable:
    """All video packets of a file, and the order in which their pictures are shown.

    Attributes:
        ticks: int64 [n], when each packet's picture is shown, decode order, jumps removed.
        flags: uint8 [n], `KEY`, `DISCARD`, `NO_PTS`.
        time_base: seconds per tick.
        last_duration: ticks that the last packet's picture is shown, 0 if unknown.
        counted: no packet of this file says when its picture is shown, so `ticks` are only
            the slots that pictures fill in order of output.
        jumps: the clock jumped, so raw times do not equal `ticks`.
        starts_anywhere: a broadcast format, cut without regard to key frames.
    """

    ticks: Ticks
    flags: NDArray[np.uint8]
    time_base: Fraction
    last_duration: int
    counted: bool
    jumps: bool
    starts_anywhere: bool

    def __len__(self) -> int:
        return len(self.ticks)

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """int64 [m]: numbers of the packets whose pictures are shown, in order of showing.

        Not shown are pictures outside the edit list, and pictures that belong before the key
        frame at which the file begins: what they were predicted from is not there.
        """
        first = self.first_key
        visible = (self.flags & DISCARD) == 0
        visible[:first] = False
        if first < len(self):
            late = self.ticks < self.ticks[first]
            # Only up to the next key frame: a later packet with an early time is an oddity.
            later_keys = np.flatnonzero(self.flags[first + 1 :] & KEY)
            end = first + 1 + int(later_keys[0]) if len(later_keys) else len(self)
            visible[first + 1 : end] &= ~late[first + 1 : end]
        numbers = np.flatnonzero(visible)
        return numbers[np.argsort(self.ticks[numbers], kind="stable")]

    @cached_property
    def first_key(self) -> int:
        """Number of the packet at which decoding starts."""
        if not self.starts_anywhere:
            return 0  # files are written from a key frame on, flagged or not
        keys = np.flatnonzero(self.flags & KEY)
        return int(keys[0]) if len(keys) else 0

    @cached_property
    def shown_ticks(self) -> Ticks:
        """int64 [m], rising: when each shown picture appears."""
        return self.ticks[self.shown]

    @cached_property
    def step(self) -> int:
        """Ticks that a picture usually stands: the median, at least 1."""
        if len(self.shown) < 2:
            return max(1, self.last_duration)
        return max(1, int(np.median(np.diff(self.shown_ticks))))

    @cached_property
    def end(self) -> int:
        """Tick at which the last shown picture goes."""
        if not len(self.shown):
            return 0
        is_last = self.shown[-1] == len(self) - 1
        stands = self.last_duration if is_last and self.last_duration > 0 else self.step
        return int(self.shown_ticks[-1]) + stands

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """int64 [g]: packets at which a group of pictures starts; the first packet always does."""
        keys = np.flatnonzero(self.flags & KEY)
        return keys if len(keys) and keys[0] == 0 else np.concatenate([[0], keys])

    @cached_property
    def leading(self) -> NDArray[np.bool_]:
        """bool [n]: shown before the key frame that precedes it in decode order (open GOP)."""
        numbers = np.arange(len(self))
        place = np.searchsorted(self.group_starts, numbers, side="right") - 1
        owner = self.group_starts[place]
        early: NDArray[np.bool_] = self.ticks < self.ticks[owner]
        return early & (numbers > owner)

    @cached_property
    def droppable(self) -> NDArray[np.bool_]:
        """bool [n]: probably no reference for others: shown early, and before what follows it.

        Containers do not tell. A B picture comes late in decode order and early on screen; the
        one from which others are predicted is followed by pictures shown before it.
        """
        if len(self) < 2:
            return np.zeros(len(self), dtype=bool)
        late = self.ticks < np.maximum.accumulate(self.ticks)
        before_next = np.append(self.ticks[:-1] < self.ticks[1:], True)
        return np.asarray(late & before_next)

    @cached_property
    def constant_rate(self) -> bool:
        """Whether all shown pictures stand equally long, within one tick of rounding."""
        if len(self.shown) < 3:
            return True
        count = len(self.shown)
        span = int(self.shown_ticks[-1] - self.shown_ticks[0])
        even = self.shown_ticks[0] + np.round(np.arange(count) * (span / (count - 1)))
        return bool(np.abs(self.shown_ticks - even).max() <= 1)


def build_table(log: PacketLog, *, time_base: Fraction, family: str) -> PacketTable:
    """The table of all logged packets."""
    dts = np.frombuffer(log.dts, dtype=np.int64) if len(log) else np.zeros(0, np.int64)
    pts = np.frombuffer(log.pts, dtype=np.int64) if len(log) else np.zeros(0, np.int64)
    flags = np.frombuffer(log.flags, dtype=np.uint8) if len(log) else np.zeros(0, np.uint8)
    broadcast = family in ("mpegts", "mpegps", "elementary")
    # AVI has no presentation times at all: what FFmpeg reports as such is a guess that is
    # wrong for H.264 with B pictures (measured: pictures come out as 1, 3, 4, 2).
    counted = family == "avi" or bool((flags & NO_PTS).any() and family not in ("mpegts", "mpegps"))
    shifts = np.zeros(len(dts), np.int64)
    if family in ("mpegts", "mpegps"):
        shifts = _jumps(dts, largest=int(LARGEST_GAP_SECONDS / time_base))
    return PacketTable(
        ticks=np.sort(dts) if counted else pts + shifts,
        flags=flags,
        time_base=time_base,
        last_duration=log.last_duration,
        counted=counted,
        jumps=bool(shifts.any()),
        starts_anywhere=broadcast,
    )


def _jumps(dts: Ticks, *, largest: int) -> Ticks:
    """int64 [n]: what to add to each time so that decode times rise without large gaps."""
    if len(dts) < 2:
        return np.zeros(len(dts), np.int64)
    steps = np.diff(dts)
    wrong = (steps < 0) | (steps > largest)
    usual = int(np.median(steps[~wrong])) if (~wrong).any() else 1
    return np.concatenate([[0], np.cumsum(np.where(wrong, usual - steps, 0))]).astype(np.int64)
