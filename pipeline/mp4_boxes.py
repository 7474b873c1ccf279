"""The box tree of an MP4, MOV, 3GP or HEIC file, as far as it explains a failure.

FFmpeg says "Invalid data" alike for a file whose index was cut off, for one that is encrypted
and for noise. Boxes are defined in ISO/IEC 14496-12; the walk reads headers only and skips what
they hold, so its cost does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_MAX_BOXES: Final = 100_000  # a fragmented file has two per fragment; more is a trap
_TO_SAMPLE_ENTRIES: Final = (b"trak", b"mdia", b"minf", b"stbl")

# Sample entries of protected tracks: Common Encryption (ISO/IEC 23001-7), FairPlay, Audible.
_LOCKED_VIDEO: Final = frozenset({b"encv", b"drmi"})
_LOCKED_SOUND: Final = frozenset({b"enca", b"drms", b"p608", b"aavd"})


@dataclass(frozen=True)
class Mp4Facts:
    """What the boxes say, whether or not FFmpeg can open the file."""

    has_index: bool  # a moov box (or a meta box of pictures) that lies wholly in the file
    has_media: bool  # an mdat box
    cut_short: bool  # the last box says that it is longer than the file
    locked_video: bool  # the first sample entry of some video track is encrypted
    locked_sound: bool


def mp4_facts(path: Path) -> Mp4Facts:
    """Facts from the boxes of a file whose family is "mp4".

    Raises:
        OSError: the file can not be read.
    """
    kinds: set[bytes] = set()
    locked: set[bytes] = set()
    cut_short = False
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        for kind, start, stop in _boxes(file, 0, end):
            kinds.add(kind if stop <= end else b"cut:" + kind)
            cut_short = cut_short or stop > end
            if kind == b"moov" and stop <= end:
                locked |= _sample_entries(file, start, stop)
    return Mp4Facts(
        has_index=b"moov" in kinds or b"meta" in kinds,
        has_media=bool(kinds & {b"mdat", b"cut:mdat"}),
        cut_short=cut_short,
        locked_video=bool(locked & _LOCKED_VIDEO),
        locked_sound=bool(locked & _LOCKED_SOUND),
    )


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte after the header, and end of each box in [start, end)."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        header = file.read(16)
        size, body = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, body = int.from_bytes(header[8:16], "big"), 16
        elif size == 0:
            size = end - start
        if size < body:
            return
        yield header[4:8], start + body, start + size
        start += size


def _sample_entries(file: BinaryIO, start: int, end: int) -> set[bytes]:
    """First sample entry of every track in moov: the codec, or "encv" where it is encrypted."""
    found: set[bytes] = set()
    places = [(start, end, 0)]
    while places:
        start, end, depth = places.pop()
        for kind, body, stop in _boxes(file, start, end):
            if depth < len(_TO_SAMPLE_ENTRIES) and kind == _TO_SAMPLE_ENTRIES[depth]:
                places.append((body, min(stop, end), depth + 1))
            elif depth == len(_TO_SAMPLE_ENTRIES) and kind == b"stsd":
                file.seek(body + 8)  # version, flags, number of entries
                found.add(file.read(8)[4:8])
    return found
