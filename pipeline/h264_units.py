"""What the key packets of an H.264 stream begin with, read from their NAL unit headers.

An IDR picture is complete at once. Other packets that containers flag as key frames may be
points from which a picture builds up over a second (gradual refresh): a decoder that starts
there shows nothing, or grey, until it is there. ISO/IEC 14496-10, 7.3.1 and 7.4.1.
"""

from __future__ import annotations

from typing import Final

_IDR: Final = 5
_SLICES: Final = frozenset({1, 2, 5})
_MAX_UNITS: Final = 32  # parameter sets and messages before the first slice


def length_bytes(extradata: bytes | None) -> int:
    """How many bytes say how long a unit is; 0 for a stream with start codes instead.

    (avcC box: ISO/IEC 14496-15, 5.3.3.1.)
    """
    if not extradata or len(extradata) < 7 or extradata[0] != 1:
        return 0
    return (extradata[4] & 3) + 1


def begins_with_idr(packet: memoryview, length_bytes: int) -> bool:
    """Whether the first slice of a packet is that of an IDR picture."""
    at = 0
    for _ in range(_MAX_UNITS):
        header = at + length_bytes
        if header >= len(packet):
            return False
        kind = packet[header] & 0x1F
        if kind in _SLICES:
            return kind == _IDR
        at = header + int.from_bytes(packet[at:header], "big")
    return False
