"""The packets of a video with their numbers, leaving out long stretches that nobody needs.

Reading on costs 2 to 4 us a packet and the packet's bytes; a seek costs 40 us and the reading of
a buffer, whatever it leaps over. So it pays from some ten packets on, and the work on a long
video follows from the pictures that are wanted and not from its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vtag.container import INDEXED, packets_of
from vtag.decode_report import DecodeReport
from vtag.packet_table import KEY
from vtag.probe import Probe

# Measured on 720p of 2.5 Mb/s (docs/decoding.md): even at 15 to 25 packets.
WORTH_PACKETS: Final = 24
# So many packets are read on from where a seek landed before it counts as missed.
_PATIENCE_PACKETS: Final = 2000


class SeekMissed(Exception):
    """The packet that a seek was for did not come."""


def leaps(probe: Probe, needed: NDArray[np.bool_]) -> dict[int, int]:
    """Number of the next packet to the number of the one to seek to, for stretches worth it.

    Only to key packets of files with an index, whose packets are told apart by their times.

    Args:
        needed: bool [n], which packets are sent to the decoder.
    """
    table = probe.table
    if probe.family not in INDEXED or table.counted or table.jumps:
        return {}
    if len(np.unique(table.ticks)) != len(table):
        return {}
    sent = np.flatnonzero(needed)
    before = np.concatenate([[-1], sent[:-1]])
    worth = (sent - before > WORTH_PACKETS) & ((table.flags[sent] & KEY) > 0)
    return {int(b) + 1: int(s) for b, s in zip(before[worth], sent[worth], strict=True)}


def numbered_packets(
    container: InputContainer,
    stream: VideoStream,
    probe: Probe,
    report: DecodeReport,
    *,
    over: dict[int, int],
) -> Iterator[tuple[int, Packet[Stream]]]:
    """The stream's packets, numbered as in the table; a read error is a warning and the end.

    Args:
        over: what `leaps` gave; empty reads every packet.

    Raises:
        SeekMissed: read again without leaps.
    """
    number, at_end = 0, False
    while not at_end:
        failures: list[av.error.FFmpegError] = []
        packets = packets_of(container, stream, failures=failures)
        while number in over:
            target = over[number]
            yield target, _sought(container, stream, probe, target, packets)
            number = target + 1
        at_end = True
        for packet in packets:
            yield number, packet
            number += 1
            if number in over:
                at_end = False
                break
    for err in failures:
        report.warn(f"the pictures could not be read to their end: {err.strerror}")


def _sought(
    container: InputContainer,
    stream: VideoStream,
    probe: Probe,
    target: int,
    packets: Iterator[Packet[Stream]],
) -> Packet[Stream]:
    """The key packet of that number, told by its time."""
    tick = int(probe.table.ticks[target])
    try:
        _seek(container, tick, stream)
    except av.error.FFmpegError as err:
        raise SeekMissed(f"no seek to {tick}: {err.strerror}") from err
    for _, packet in zip(range(_PATIENCE_PACKETS), packets, strict=False):
        if packet.pts == tick and packet.is_keyframe:
            return packet
        if packet.dts is not None and packet.dts > tick:
            break
    raise SeekMissed(f"a seek to {tick} missed the packet")


def _seek(container: InputContainer, where: int, stream: VideoStream) -> None:
    container.seek(where, stream=stream)
