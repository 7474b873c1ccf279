"""The table's arithmetic on packets written down by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from vtag.decode_walk import REFERENCE, SKIP, WANTED, walk_roles
from vtag.packet_table import PacketLog, PacketTable, build_table

# I P B b b  P B b b  as x264 orders a group with three B pictures, one of them a reference.
PYRAMID = [0, 4, 2, 1, 3, 8, 6, 5, 7]


def table_of(
    pts: list[int | None],
    *,
    keys: tuple[int, ...] = (0,),
    discards: tuple[int, ...] = (),
    dts: list[int] | None = None,
    family: str = "mp4",
    duration: int = 1,
) -> PacketTable:
    log = PacketLog()
    for number, time in enumerate(pts):
        decode = dts[number] if dts else number - 2
        log.add(time, decode, duration, key=number in keys, discard=number in discards)
    return build_table(log, time_base=Fraction(1, 10), family=family)


def test_pictures_are_shown_in_order_of_time() -> None:
    table = table_of(PYRAMID)
    assert table.shown.tolist() == [0, 3, 2, 4, 1, 7, 6, 8, 5]
    assert table.shown_ticks.tolist() == list(range(9))
    assert table.end == 9
    assert table.constant_rate


def test_pictures_outside_the_edit_list_are_not_shown() -> None:
    table = table_of([-2, -1, 0, 1, 2], discards=(0, 1))
    assert table.shown.tolist() == [2, 3, 4]


def test_only_the_pictures_no_other_needs_are_droppable() -> None:
    # The two b of each group; B and P are references.
    assert np.flatnonzero(table_of(PYRAMID).droppable).tolist() == [3, 4, 7, 8]


def test_leading_pictures_of_an_open_group() -> None:
    # The key frame shown at 6 is followed by two pictures shown before it.
    table = table_of([0, 3, 1, 2, 6, 4, 5, 9, 7, 8], keys=(0, 4))
    assert np.flatnonzero(table.leading).tolist() == [5, 6]


def test_leading_pictures_at_the_start_of_the_file_are_not_shown() -> None:
    table = table_of([2, 0, 1, 5, 3, 4, 8, 6, 7], keys=(0, 6))
    assert table.shown_ticks.tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_a_broadcast_that_starts_inside_a_group_is_shown_from_its_first_key_frame() -> None:
    pts: list[int | None] = [3, 1, 2, 6, 4, 5]
    assert table_of(pts, keys=(3,), family="mpegts").shown_ticks.tolist() == [6]
    # A file is written from a key frame on, whether or not its index says so.
    assert table_of(pts, keys=(3,)).shown_ticks.tolist() == [3, 4, 5, 6]


def test_a_jump_of_a_broadcast_clock_is_taken_out() -> None:
    # 10 ticks are a second; 5000 ticks forward and back are cuts, 30 (3 s) is a real pause.
    dts = [0, 1, 2, 5000, 5001, 5, 6, 36]
    table = table_of(list(dts), dts=dts, family="mpegts", keys=tuple(range(8)))
    assert table.jumps
    assert table.ticks.tolist() == [0, 1, 2, 3, 4, 5, 6, 36]
    assert not table_of(list(dts), dts=dts, family="matroska").jumps


def test_avi_pictures_fill_slots_in_order_of_output() -> None:
    # What a container without presentation times reports as such is a guess; not used.
    table = table_of([1, 4, 2, 3], dts=[0, 1, 2, 3], family="avi")
    assert table.counted
    assert table.shown_ticks.tolist() == [0, 1, 2, 3]
    assert table_of([0, None, 2], family="matroska").counted


def test_variable_rate_is_seen_and_rounding_to_a_tick_is_not() -> None:
    assert table_of([0, 33, 67, 100, 133, 167, 200]).constant_rate  # 30 per second in ms
    assert not table_of([0, 33, 67, 110, 133, 167, 200]).constant_rate


def test_the_walk_stops_after_the_last_wanted_picture_of_a_group() -> None:
    table = table_of([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], keys=(0, 5))
    roles = walk_roles(table, np.array([2]))
    assert roles.tolist() == [REFERENCE] * 2 + [WANTED] + [SKIP] * 7


def test_the_walk_decodes_the_group_before_only_for_a_wanted_leading_picture() -> None:
    table = table_of([0, 3, 1, 2, 6, 4, 5, 9, 7, 8], keys=(0, 4))
    led = walk_roles(table, np.array([6]))
    assert led.tolist() == [REFERENCE] * 6 + [WANTED] + [SKIP] * 3
    other = walk_roles(table, np.array([8]))
    # 5 and 6 lead the key frame, so after a fresh start they could not be decoded.
    assert other.tolist() == [SKIP] * 4 + [REFERENCE, SKIP, SKIP, REFERENCE, WANTED, SKIP]
