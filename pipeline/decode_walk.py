"""Which packets are decoded for a few wanted pictures, and where the decoder starts afresh.

Plain arithmetic on the packet table; `decode_pyav` carries it out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vtag.packet_table import PacketTable

SKIP: Final = 0  # roles of packets in the walk
REFERENCE: Final = 1
WANTED: Final = 2


def walk_roles(table: PacketTable, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    """uint8 [n]: what the walk does with each packet: `SKIP`, `REFERENCE` or `WANTED`.

    Pictures that lead a key frame (open group) need what came before it. If one is wanted, the
    group before is decoded to its end and the decoder carries on; else they are not decoded.
    """
    roles = np.zeros(len(table), np.uint8)
    is_wanted = np.zeros(len(table), dtype=bool)
    is_wanted[wanted] = True
    starts = table.group_starts
    ends = np.append(starts[1:], len(table))
    group = np.searchsorted(starts, np.flatnonzero(is_wanted), side="right") - 1
    for place in np.unique(group):
        start, end = int(starts[place]), int(ends[place])
        mine = is_wanted[start:end]
        leading = table.leading[start:end]
        last = int(np.flatnonzero(mine)[-1]) + 1
        joined = bool((mine & leading).any())
        fill = np.where(leading & (not joined), SKIP, REFERENCE)[:last]
        roles[start : start + last] = np.maximum(roles[start : start + last], fill)
        if joined and place > 0:
            before = slice(int(starts[place - 1]), start)
            others = ~table.leading[before] | (roles[before] > SKIP)
            roles[before] = np.maximum(roles[before], np.where(others, REFERENCE, SKIP))
    roles[is_wanted] = WANTED
    return roles


def drain_points(table: PacketTable, roles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """bool [n]: packets after which the decoder is emptied and starts afresh.

    That is after the last packet sent of each group, unless the next group carries on from it.
    """
    stops = np.zeros(len(table), dtype=bool)
    sent = np.flatnonzero(roles)
    group = np.searchsorted(table.group_starts, sent, side="right") - 1
    last_of_group = np.append(group[1:] != group[:-1], True)
    carries_on = np.zeros(len(sent), dtype=bool)
    for at in np.flatnonzero(last_of_group[:-1]):
        mine = sent[group == group[at + 1]]
        carries_on[at] = bool(table.leading[mine].any())
    stops[sent[last_of_group & ~carries_on]] = True
    return stops
