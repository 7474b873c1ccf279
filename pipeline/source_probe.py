"""How long a video is, from a few small reads: the head of an MP4's index, of a Matroska's info.

For planning only. Every other fact of a record comes from the packets; this number comes from a
header, may lie, and costs some hundred kilobytes of an object of gigabytes. Nothing of FFmpeg
runs here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

Read = Callable[[int, int], bytes]  # bytes [start, end); fewer where the object ends

_HEAD_BYTES: Final = 1 << 14
_MAX_BOXES: Final = 64
_MAX_SECONDS: Final = 10.0 * 365 * 86400

_EBML: Final = 0x1A45DFA3
_SEGMENT: Final = 0x18538067
_INFO: Final = 0x1549A966
_TIMESTAMP_SCALE: Final = 0x2AD7B1
_DURATION: Final = 0x4489


def duration_of(read: Read, size: int) -> float | None:
    """Seconds as the header says; None where it does not, or is of another kind."""
    head = read(0, min(size, _HEAD_BYTES))
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot"):
        found = _of_mp4(read, head, size)
    elif head[:4] == _EBML.to_bytes(4, "big"):
        found = _of_matroska(head)
    else:
        found = None
    return found if found is not None and 0 < found < _MAX_SECONDS else None


def _of_mp4(read: Read, head: bytes, size: int) -> float | None:
    """From the movie header box (ISO/IEC 14496-12, 8.2.2), wherever the index lies."""
    place = 0
    for _ in range(_MAX_BOXES):
        if place + 8 > size:
            return None
        here = place + 256 <= len(head)
        box = head[place:] if here else read(place, min(size, place + _HEAD_BYTES))
        length, kind = int.from_bytes(box[:4], "big"), box[4:8]
        if length == 1:
            length = int.from_bytes(box[8:16], "big")
        elif length == 0:
            length = size - place
        if kind == b"moov":
            return _movie_header(box)
        if length < 8:
            return None
        place += length
    return None


def _movie_header(moov: bytes) -> float | None:
    place = moov.find(b"mvhd", 8)
    if place < 0:
        return None
    fields = moov[place + 4 :]
    layout, start = (">IQ", 20) if fields[:1] == b"\x01" else (">II", 12)
    try:
        ticks_per_second, ticks = struct.unpack_from(layout, fields, start)
    except struct.error:
        return None
    unknown = (1 << (64 if layout == ">IQ" else 32)) - 1
    if not ticks_per_second or ticks == unknown:
        return None
    return float(ticks / ticks_per_second)


def _of_matroska(head: bytes) -> float | None:
    """From the segment's Info element (RFC 9559, 5.1.2), if it is near the beginning."""
    place, end = 0, len(head)
    scale, duration = 1_000_000, None
    for _ in range(_MAX_BOXES):
        element = _element(head, place)
        if element is None:
            break
        kind, body, length = element
        if kind in (_SEGMENT, _INFO):
            place = body  # go inside
            continue
        data = head[body : min(end, body + length)]
        if kind == _TIMESTAMP_SCALE:
            scale = int.from_bytes(data, "big")
        elif kind == _DURATION and len(data) in (4, 8):
            (duration,) = struct.unpack(">f" if len(data) == 4 else ">d", data)
        place = body + length
    return None if duration is None else float(duration) * scale / 1e9


def _element(data: bytes, place: int) -> tuple[int, int, int] | None:
    """Kind, beginning of the body, and length of an EBML element (RFC 8794, 4)."""
    if place >= len(data) or not data[place]:
        return None
    width = 9 - data[place].bit_length()
    kind = int.from_bytes(data[place : place + width], "big")
    place += width
    if place >= len(data) or not data[place]:
        return None
    width = 9 - data[place].bit_length()
    length = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return kind, place + width, length
