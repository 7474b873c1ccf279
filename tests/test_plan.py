"""What any plan promises, over packet tables that hypothesis draws."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtag.config import Sampling
from vtag.decode import candidates, plan
from vtag.orientation import Orientation
from vtag.packet_table import KEY, PacketLog, build_table
from vtag.probe import Probe
from vtag.records import Media

# A container may round times to its tick: so much too late is not late.
SLACK_SECONDS = 0.0011


@st.composite
def probes(draw: st.DrawFn) -> Probe:
    """A probed video of 1 to 60 pictures: any gaps, any key frames, stored in any near order."""
    time_base = draw(st.sampled_from([Fraction(1, 1000), Fraction(1, 90_000), Fraction(1, 25)]))
    gaps = draw(st.lists(st.integers(1, 5000), max_size=59))
    ticks = np.cumsum([draw(st.integers(-(10**6), 10**9)), *gaps])
    keys = draw(st.lists(st.booleans(), min_size=len(ticks), max_size=len(ticks)))
    log = PacketLog()
    for number, tick in enumerate(ticks):
        log.add(int(tick), number, 1, key=number == 0 or keys[number], discard=False)
    table = build_table(log, time_base=time_base, family="matroska")
    origin = int(ticks[0]) * time_base - draw(st.fractions(0, 5, max_denominator=100))
    return Probe(
        path=Path("drawn.mkv"),
        family="matroska",
        media=Media(duration=float((table.end - int(ticks[0])) * time_base), has_video=True),
        video_index=0,
        audio_index=None,
        table=table,
        origin=origin,
        orientation=Orientation(),
        size=(64, 48),
        pixel_aspect=Fraction(1),
        decord_reason="",
    )


rates = st.one_of(st.floats(0.01, 100), st.sampled_from([1.0, 2.0, 0.5, 25.0]))


@given(probes(), rates, st.integers(1, 50))
def test_uniform_plans_cover_the_video_evenly(
    probe: Probe, frames_per_second: float, max_frames: int
) -> None:
    sampling = Sampling(frames_per_second=frames_per_second, max_frames=max_frames)
    wanted = plan(probe, sampling)
    first, base = probe.first_picture_seconds, float(probe.table.time_base)
    length = (probe.table.end - int(probe.table.shown_ticks[0])) * base
    steps = np.diff(wanted.seconds)
    assert 1 <= len(wanted) <= max_frames
    assert wanted.seconds[0] == first
    assert (steps > 0).all()
    assert np.allclose(steps, steps[0] if len(steps) else 0, rtol=1e-6, atol=1e-6)
    # The step is the one asked for, or the one that spreads max_frames over the whole length.
    step = max(1 / frames_per_second, length / max_frames)
    assert np.allclose(steps, step, rtol=1e-6, atol=1e-6)
    # No room for another one at the end.
    assert first + length - wanted.seconds[-1] <= step + 1e-5


@given(probes(), rates, st.integers(1, 50))
def test_each_time_gets_the_last_picture_at_or_before_it(
    probe: Probe, frames_per_second: float, max_frames: int
) -> None:
    wanted = plan(probe, Sampling(frames_per_second=frames_per_second, max_frames=max_frames))
    table = probe.table
    shown = [float(int(tick) * table.time_base - probe.origin) for tick in table.shown_ticks]
    assert wanted.pictures[0] == 0
    for time, picture, tick, packet in zip(
        wanted.seconds, wanted.pictures, wanted.ticks, wanted.packets, strict=True
    ):
        assert shown[picture] <= time + SLACK_SECONDS
        assert picture + 1 == len(shown) or shown[picture + 1] > time
        assert tick == table.shown_ticks[picture] == table.ticks[packet]


@settings(max_examples=200)
@given(probes(), st.integers(2, 8))  # few, so that most draws hold more key frames than that
def test_key_frame_plans_hold_key_frames_alone(probe: Probe, max_frames: int) -> None:
    table = probe.table
    wanted = plan(probe, Sampling(mode="keyframes", max_frames=max_frames))
    keys = [n for n in table.shown if table.flags[n] & KEY]
    assert len(wanted) == min(len(keys), max_frames)
    assert set(wanted.packets) <= set(keys)
    assert wanted.packets[0] == keys[0]
    assert (np.diff(wanted.seconds) > 0).all()
    own_times = [float(int(t) * table.time_base - probe.origin) for t in wanted.ticks]
    assert np.allclose(wanted.seconds, own_times, atol=1e-6)
    # Thinned evenly: as many key frames left out between any two, give or take one.
    places = np.diff([keys.index(n) for n in wanted.packets])
    assert not len(places) or places.max() - places.min() <= 1
    # And up to the end.
    assert len(keys) - keys.index(wanted.packets[-1]) <= math.ceil(len(keys) / len(wanted))


@given(probes(), rates, st.integers(1, 50))
def test_candidates_are_the_grid_and_key_frames_between(
    probe: Probe, frames_per_second: float, max_frames: int
) -> None:
    sampling = Sampling(frames_per_second=frames_per_second, max_frames=max_frames)
    grid, found, table = plan(probe, sampling), candidates(probe, sampling), probe.table
    assert (found.plan.seconds[found.on_grid] == grid.seconds).all()
    assert (found.plan.packets[found.on_grid] == grid.packets).all()
    assert (np.diff(found.plan.seconds) > 0).all()
    assert found.is_key[~found.on_grid].all()
    assert (found.is_key == ((table.flags[found.plan.packets] & KEY) > 0)).all()
    # One key frame a step at most, and none where the grid has one.
    between = np.searchsorted(grid.seconds, found.plan.seconds[~found.on_grid], side="right")
    assert len(set(between)) == len(between)
    for place, packet in enumerate(found.plan.packets):
        # Slowly: back to the last key frame, counting what others are predicted from.
        at, work = int(packet), 1
        while at and not table.flags[at] & KEY:
            at -= 1
            work += int(not table.droppable[at])
        # One more for turning it into RGB, at the 750 million pixels a second of other codecs.
        assert found.work_seconds[place] == pytest.approx((work + 1) * 64 * 48 / 750e6)


def test_a_key_frame_before_its_period_is_over_is_a_cut() -> None:
    log = PacketLog()
    starts = {0, 50, 100, 130, 180, 226}  # periods of 50, 50, 30, 50, 46
    for number in range(250):
        log.add(number, number, 1, key=number in starts, discard=False)
    table = build_table(log, time_base=Fraction(1, 25), family="matroska")
    probed = Probe(
        path=Path("drawn.mkv"),
        family="matroska",
        media=Media(duration=10.0, has_video=True),
        video_index=0,
        audio_index=None,
        table=table,
        origin=Fraction(0),
        orientation=Orientation(),
        size=(64, 48),
        pixel_aspect=Fraction(1),
        decord_reason="",
    )
    found = candidates(probed, Sampling())
    assert found.plan.packets[found.is_cut].tolist() == [130]
    assert found.plan.seconds[found.is_cut].tolist() == [5.2]
