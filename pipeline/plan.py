"""Which pictures of a video are looked at, and which decoder gets them.

A picture at time t is the last one shown at or before t, as a player would show it when paused
there. Times are computed each on its own (i / rate), never added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vtag.config import FRAME_SIDE_PX, Sampling
from vtag.decode_report import DecodeReport
from vtag.packet_table import KEY, PacketTable
from vtag.probe import Probe

# H.264 pixels that one core decodes in a second, measured at 1080p (134 pictures/s).
_PIXELS_PER_SECOND: Final = 276e6
_WORTH_SECONDS: Final = 2.0  # below this decord's extra work is not noticed
_WORTH_RATIO: Final = 1.5
# decord returns all pictures at once. 150 MB is what one clip may hold in memory.
_DECORD_BYTES: Final = 150_000_000


@dataclass(frozen=True)
class Plan:
    """Sampled times and the picture that serves each.

    Attributes:
        seconds: float64 [n], strictly rising, on vtag's clock.
        pictures: int64 [n], which shown picture serves each: its place in order of showing.
        packets: int64 [n], the number of its packet in order of decoding.
        ticks: int64 [n], when it is shown, in ticks of the stream.
        key_only: every picture is a key frame, so nothing else needs decoding.
    """

    seconds: NDArray[np.float64]
    pictures: NDArray[np.int64]
    packets: NDArray[np.int64]
    ticks: NDArray[np.int64]
    key_only: bool = False

    def __len__(self) -> int:
        return len(self.seconds)


def plan(probe: Probe, sampling: Sampling) -> Plan:
    """The times at which a video is looked at; none for a file without pictures.

    `uniform`: the first picture's time + i / frames_per_second while before the end, at least
    one. If that is more than max_frames, max_frames times evenly over the whole length instead.
    `keyframes`: the times of the shown key frames, thinned evenly to max_frames.
    """
    table = probe.table
    if not len(table.shown):
        nothing = np.zeros(0, np.int64)
        return Plan(np.zeros(0), nothing, nothing, nothing)
    if sampling.mode == "keyframes":
        keys = np.flatnonzero(table.flags[table.shown] & KEY)
        if len(keys):
            return _key_plan(probe, keys, sampling.max_frames)
        # A cut from the middle of a group has no shown key frame: one picture stands for it.
        sampling = Sampling(frames_per_second=sampling.frames_per_second, max_frames=1)
    return _uniform_plan(probe, sampling)


def _uniform_plan(probe: Probe, sampling: Sampling) -> Plan:
    table = probe.table
    tick = float(table.time_base)
    length = float((table.end - table.shown_ticks[0]) * table.time_base)
    # The tiny slack keeps a picture's end at 3.0000000001 s from making a fourth second.
    count = max(1, math.ceil(length * sampling.frames_per_second - 1e-6))
    if count > sampling.max_frames:
        count = sampling.max_frames
        after_first = np.arange(count) * (length / count)
    else:
        after_first = np.arange(count) / sampling.frames_per_second
    # Containers round times to their tick (Matroska: 1 ms): half a tick late is not late.
    slack = min(tick / 2, 0.001) + 1e-9
    shown_after = (table.shown_ticks - table.shown_ticks[0]) * tick
    pictures = np.searchsorted(shown_after, after_first + slack, side="right") - 1
    seconds = np.asarray(probe.first_picture_seconds + after_first, np.float64)
    return _plan_of(probe, pictures, seconds)


def _key_plan(probe: Probe, keys: NDArray[np.int64], most: int) -> Plan:
    table = probe.table
    _, firsts = np.unique(table.shown_ticks[keys], return_index=True)
    keys = keys[firsts]
    if len(keys) > most:
        keys = keys[np.arange(most) * len(keys) // most]
    ticks = table.shown_ticks[keys] - table.shown_ticks[0]
    after_first = np.asarray(ticks * float(table.time_base), np.float64)
    return _plan_of(probe, keys, probe.first_picture_seconds + after_first, key_only=True)


def _plan_of(
    probe: Probe,
    pictures: NDArray[np.int64],
    seconds: NDArray[np.float64],
    *,
    key_only: bool = False,
) -> Plan:
    table = probe.table
    return Plan(
        seconds=seconds,
        pictures=pictures.astype(np.int64),
        packets=table.shown[pictures],
        ticks=table.shown_ticks[pictures],
        key_only=key_only,
    )


def choose_decoder(
    probe: Probe, sampling: Sampling, *, report: DecodeReport | None = None
) -> Literal["decord", "pyav"]:
    """Which decoder to read the pictures with.

    decord where it was measured to be right (`Probe.decord_fit`) and its pictures fit into
    memory at once; PyAV where it was not, where the packets say that decord would decode
    more than 1.5 times as much and that takes seconds, and for key frames only. A decoder
    that was asked for by name is used, except that decord never gets a file on which it would
    give wrong pictures: PyAV does, with a warning in `report`.
    """
    if sampling.decoder == "pyav" or probe.video_index is None:
        return "pyav"
    reason = probe.decord_reason
    if not reason and find_spec("decord") is None:
        reason = "it is not installed"
    wanted = plan(probe, sampling)
    height, width = FRAME_SIDE_PX, _long_side(probe)
    if not reason and len(np.unique(wanted.pictures)) * height * width * 3 > _DECORD_BYTES:
        reason = "too many pictures to hold at once"
    if reason:
        if sampling.decoder == "decord" and report is not None:
            report.warn(f"decord was asked for but PyAV was used: {reason}")
        return "pyav"
    if sampling.decoder == "decord":
        return "decord"
    return "pyav" if wanted.key_only or _decord_wastes(probe, wanted) else "decord"


def _long_side(probe: Probe) -> int:
    short, long = sorted(probe.size)
    return min(4 * FRAME_SIDE_PX, math.ceil(FRAME_SIDE_PX * long / short))


def _decord_wastes(probe: Probe, wanted: Plan) -> bool:
    decord, walk = predicted_decodes(probe.table, wanted)
    seconds = decord * probe.size[0] * probe.size[1] / _PIXELS_PER_SECOND
    return seconds >= _WORTH_SECONDS and decord > _WORTH_RATIO * walk


def predicted_decodes(table: PacketTable, wanted: Plan) -> tuple[int, int]:
    """How many pictures decord and PyAV's walk would decode for a plan.

    Both stop in each group of pictures at the last one wanted; the walk also drops pictures
    that no other needs.
    """
    needed = np.zeros(len(table), dtype=bool)
    needed[wanted.packets] = True
    starts = table.group_starts
    group = np.searchsorted(starts, np.arange(len(table)), side="right") - 1
    last = np.full(len(starts), -1)
    np.maximum.at(last, group[needed], np.flatnonzero(needed))
    read = np.arange(len(table)) <= last[group]
    return int(read.sum()), int((read & (needed | ~table.droppable)).sum())
