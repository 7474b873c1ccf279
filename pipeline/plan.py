"""Which pictures of a video are looked at, and which decoder gets them.

A picture at time t is the last one shown at or before t, as a player would show it when paused
there. Times are computed each on its own (i / rate), never added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vtag.config import FRAME_SIDE_PX, Moments, Sampling
from vtag.decode_report import DecodeReport
from vtag.packet_table import KEY, PacketTable
from vtag.probe import Probe

# What one core decodes, pixels a second, in pictures that others are predicted from (docs/
# decoding.md says where it was measured). Only their order of size matters: whether decoding
# takes long enough for the choice to be felt.
_PIXELS_PER_SECOND: Final = {"h264": 370e6, "hevc": 310e6, "vp9": 470e6, "vp8": 470e6}
_OTHER_PIXELS_PER_SECOND: Final = 750e6  # the MPEG codecs before H.264
# A picture that no other needs has few bits: so much of the time of one that others need.
_DROPPABLE_COST: Final = 0.6
_SHOWN_COST: Final = 1.0  # scaling a wanted picture and turning it into RGB, likewise
_WORTH_SECONDS: Final = 0.1  # a saving below this is not noticed
_WORTH_RATIO: Final = 1.15
_PERIOD_SHARE: Final = 0.9  # a key frame that comes before so much of its period marks a cut
# decord returns all pictures at once. 150 MB is what one clip may hold in memory.
_DECORD_BYTES: Final = 150_000_000
# It also keeps decoded pictures in a queue: 786 MB for 8K in HEVC of 10 bits, PyAV 311 MB.
_DECORD_PX: Final = 4096 * 2304


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

    def part(self, places: slice | NDArray[np.int64]) -> Plan:
        """Some of the times."""
        return replace(
            self,
            seconds=self.seconds[places],
            pictures=self.pictures[places],
            packets=self.packets[places],
            ticks=self.ticks[places],
        )

    def in_batches(self, most: int) -> Iterator[PlannedPictures]:
        """The pictures, each once, in order of showing; `most` of them at a time."""
        pictures, firsts, repeats = np.unique(self.pictures, return_index=True, return_counts=True)
        for start in range(0, len(pictures), most):
            some = slice(start, start + most)
            begin, counts = int(firsts[start]), repeats[some].astype(np.int64)
            seconds = self.seconds[begin : begin + int(counts.sum())]
            yield PlannedPictures(pictures[some], self.ticks[firsts[some]], counts, seconds)


@dataclass(frozen=True)
class PlannedPictures:
    """Some pictures of a plan, without repetition.

    Attributes:
        pictures: int64 [n], strictly rising: their places in order of showing.
        ticks: int64 [n], when each is shown, in ticks of the stream.
        repeats: int64 [n], how many times of the plan each serves.
        seconds: float64 [sum of repeats], these times.
    """

    pictures: NDArray[np.int64]
    ticks: NDArray[np.int64]
    repeats: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pictures)


def plan(probe: Probe, sampling: Sampling) -> Plan:
    """The times at which a video is looked at; none for a file without pictures.

    `uniform`: the first picture's time + i / frames_per_second while before the end, at least
    one. If that is more than max_frames, max_frames times evenly over the whole length instead.
    `keyframes`: the times of the shown key frames, thinned evenly to max_frames.
    `adaptive`: as `uniform`; which of these times are looked at is found out on the way.
    `Moments`: the given times, each once; one before the first picture is that picture's.
    """
    table = probe.table
    if not len(table.shown):
        nothing = np.zeros(0, np.int64)
        return Plan(np.zeros(0), nothing, nothing, nothing)
    if isinstance(sampling, Moments):
        given = np.asarray(sampling.times[: sampling.max_frames], np.float64)
        return _plan_at(probe, np.unique((given - probe.first_picture_seconds).clip(min=0)))
    if sampling.mode == "keyframes":
        keys = np.flatnonzero(table.flags[table.shown] & KEY)
        if len(keys):
            return _key_plan(probe, keys, sampling.max_frames)
        # A cut from the middle of a group has no shown key frame: one picture stands for it.
        sampling = Sampling(frames_per_second=sampling.frames_per_second, max_frames=1)
    return _uniform_plan(probe, sampling)


@dataclass(frozen=True)
class Candidates:
    """The pictures among which adaptive sampling chooses: those of the grid, and key frames.

    Attributes:
        plan: all of them, in order of time. Its times on the grid are those of `uniform`.
        on_grid: bool [n], whether a time belongs to the grid.
        is_key: bool [n], whether the picture is a key frame.
        is_cut: bool [n], key frames that come before their period is over: the encoder saw a cut.
        work_seconds: float64 [n], what decoding one of them alone would take by the packet table.
    """

    plan: Plan
    on_grid: NDArray[np.bool_]
    is_key: NDArray[np.bool_]
    is_cut: NDArray[np.bool_]
    work_seconds: NDArray[np.float64]

    def some(self, places: NDArray[np.int64]) -> Plan:
        """The plan for some of them."""
        return replace(self.plan.part(places), key_only=bool(self.is_key[places].all()))


def candidates(probe: Probe, sampling: Sampling) -> Candidates:
    """The grid of `uniform`, and between its times the key frames, thinned to one per step."""
    grid, table = _uniform_plan(probe, sampling), probe.table
    if table.counted or table.jumps:  # read as a whole anyway: nothing is cheap
        nothing = np.zeros(len(grid), dtype=bool)
        return Candidates(grid, ~nothing, nothing, nothing, np.zeros(len(grid)))
    keys = _key_plan(probe, np.flatnonzero(table.flags[table.shown] & KEY), len(table))
    step = np.searchsorted(grid.seconds, keys.seconds, side="right")
    # The first key frame of each step; none where the grid shows a key frame of it anyway.
    taken = np.isin(keys.pictures, grid.pictures)
    _, firsts = np.unique(step, return_index=True)
    extra = firsts[~np.isin(step[firsts], step[taken])]
    seconds, firsts = np.unique(
        np.concatenate([grid.seconds, keys.seconds[extra]]), return_index=True
    )
    pictures = np.concatenate([grid.pictures, keys.pictures[extra]])[firsts]
    merged = _plan_of(probe, pictures, seconds)
    return Candidates(
        plan=merged,
        on_grid=firsts < len(grid),
        is_key=(table.flags[merged.packets] & KEY) > 0,
        is_cut=np.isin(merged.packets, _cuts(table)),
        work_seconds=_seconds_alone(probe, merged.packets),
    )


def _uniform_plan(probe: Probe, sampling: Sampling) -> Plan:
    table = probe.table
    length = float((table.end - table.shown_ticks[0]) * table.time_base)
    # The tiny slack keeps a picture's end at 3.0000000001 s from making a fourth second.
    count = max(1, math.ceil(length * sampling.frames_per_second - 1e-6))
    if count > sampling.max_frames:
        count = sampling.max_frames
        after_first = np.arange(count) * (length / count)
    else:
        after_first = np.arange(count) / sampling.frames_per_second
    return _plan_at(probe, np.asarray(after_first, np.float64))


def _plan_at(probe: Probe, after_first: NDArray[np.float64]) -> Plan:
    """The pictures shown at these seconds after the first picture, which rise strictly."""
    table = probe.table
    tick = float(table.time_base)
    # Containers round times to their tick (Matroska: 1 ms): half a tick late is not late.
    slack = min(tick / 2, 0.001) + 1e-9
    shown_after = (table.shown_ticks - table.shown_ticks[0]) * tick
    pictures = np.searchsorted(shown_after, after_first + slack, side="right") - 1
    seconds = np.asarray(probe.first_picture_seconds + after_first, np.float64)
    return _plan_of(probe, pictures, seconds)


def _seconds_alone(probe: Probe, packets: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [n]: what the walk takes for one picture alone, from its key frame on."""
    table = probe.table
    references = np.concatenate([[0], np.cumsum(~table.droppable)])
    starts = table.group_starts[np.searchsorted(table.group_starts, packets, side="right") - 1]
    decoded = references[packets] - references[starts] + 1
    return np.asarray((decoded + _SHOWN_COST) * _picture_seconds(probe), np.float64)


def _cuts(table: PacketTable) -> NDArray[np.int64]:
    """int64 [k]: key packets that follow the one before sooner than the period of key frames.

    The period is the longest distance; a tenth less is rounding and not a cut.
    """
    starts = table.group_starts
    lengths = np.diff(starts)
    if not len(lengths):
        return starts[:0]
    early: NDArray[np.int64] = starts[1:][lengths < _PERIOD_SHARE * lengths.max()]
    return early


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
    memory at once; PyAV where it was not, where the packets say that decord would take 1.15 times
    as long or more and a tenth of a second more, for key frames only (measured: decord takes 1.2
    to 5 times as long for them), for `adaptive`, which asks for pictures piece by piece, and for
    pictures beyond 4K. A decoder that was asked for by name is used, except that decord never gets
    a file on which it would give wrong pictures: PyAV does, with a warning in `report`.
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
    piecemeal = wanted.key_only or sampling.mode == "adaptive"
    large = probe.size[0] * probe.size[1] > _DECORD_PX
    return "pyav" if piecemeal or large or _decord_wastes(probe, wanted) else "decord"


def _long_side(probe: Probe) -> int:
    short, long = sorted(probe.size)
    return min(4 * FRAME_SIDE_PX, math.ceil(FRAME_SIDE_PX * long / short))


def _decord_wastes(probe: Probe, wanted: Plan) -> bool:
    cost = predicted_seconds(probe, wanted)
    saved = cost["decord"] - cost["pyav"]
    return saved >= _WORTH_SECONDS and cost["decord"] > _WORTH_RATIO * cost["pyav"]


def _picture_seconds(probe: Probe) -> float:
    """CPU seconds for one picture that others are predicted from."""
    rate = _PIXELS_PER_SECOND.get(str(probe.media.video_codec), _OTHER_PIXELS_PER_SECOND)
    return probe.size[0] * probe.size[1] / rate


def predicted_seconds(probe: Probe, wanted: Plan) -> dict[Literal["decord", "pyav"], float]:
    """CPU seconds that each decoder would need for a plan, by the packet table.

    Pictures decoded, weighed by their kind, plus pictures converted, each by the pixels of a
    picture and the codec's rate. Right in proportion, not to the second: a busy core or more
    bits a pixel move both alike.
    """
    decord, walk = predicted_decodes(probe.table, wanted)
    picture = _picture_seconds(probe)
    shown = len(np.unique(wanted.packets)) * _SHOWN_COST
    return {
        "decord": (walk + (decord - walk) * _DROPPABLE_COST + shown) * picture,
        "pyav": (walk + shown) * picture,
    }


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
