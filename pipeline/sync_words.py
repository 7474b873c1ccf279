"""Formats without a signature: streams of packets, each told by a sync word at its start.

A sync word alone is chance (MP3 has eleven bits). What counts is that the next ones lie where the
first says they must.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_JUNK_BYTES: Final = 8192  # before the first packet; FFmpeg looks about as far


def family_by_sync_words(head: bytes) -> str | None:
    """Container family of a file that begins with `head`, or None."""
    return next((family for looks_like, family in _TESTS if looks_like(head)), None)


def _is_mpeg_ts(head: bytes) -> bool:
    """Whether sync bytes 0x47 sit at one of the packet distances (plain, M2TS, with FEC)."""
    for distance in (188, 192, 204):
        packets = min(8, len(head) // distance - 1)
        if packets < 2:
            continue
        # Recordings begin in the middle of a packet, or behind what another program left there.
        last = min(_JUNK_BYTES if packets == 8 else distance, len(head) - packets * distance)
        phase = head.find(b"\x47", 0, last)
        while phase >= 0:
            if all(head[phase + n * distance] == 0x47 for n in range(1, packets + 1)):
                return True
            phase = head.find(b"\x47", phase + 1, last)
    return False


def _is_elementary_video(head: bytes) -> bool:
    """Raw H.264, HEVC, VVC, MPEG-1/2/4, VC-1: a start code and a unit a stream begins with."""
    at = head[:64].find(b"\x00\x00\x01")
    if at < 0 or any(head[:at]) or len(head) < at + 6:
        return False
    code, after = head[at + 3], head[at + 4]
    h264 = code & 0x80 == 0 and code & 0x1F in (6, 7, 9) and (code & 0x60 or code & 0x1F != 7)
    hevc = code in (0x40, 0x42, 0x46) and after == 1
    vvc = code == 0x00 and after in (0x71, 0x79, 0xA1)
    others = code in (0xB3, 0xB0, 0xB5, 0xB6, 0x0F, 0x20)
    return bool(h264 or hevc or vvc or others)


def _is_program_stream(head: bytes) -> bool:
    """MPEG-PS whose first pack header is missing: a video, sound or system packet comes first."""
    return head[:3] == b"\x00\x00\x01" and len(head) > 6 and head[3] in (0xBB, 0xBD, 0xC0, 0xE0)


def _is_dv(head: bytes) -> bool:
    """A DIF header block, then a subcode block 80 bytes later (SMPTE 314M, table 5)."""
    return (
        len(head) > 480
        and head[:3] == b"\x1f\x07\x00"
        and head[3] in (0x3F, 0xBF)
        and head[80] & 0xE0 == 0x20
    )


def _is_obu(head: bytes) -> bool:
    """A raw AV1 stream: a temporal delimiter with its size, then a sequence header."""
    return head[:3] in (b"\x12\x00\x0a", b"\x12\x00\x0b")


def _is_mxf(head: bytes) -> bool:
    """A partition pack key, with up to 64 KiB of run-in before it (SMPTE 377-1, 6.5)."""
    return b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01" in head


def _is_adts(head: bytes) -> bool:
    return _chained(head, _adts_bytes)


def _is_loas(head: bytes) -> bool:
    return _chained(head, _loas_bytes)


def _is_mpeg_audio(head: bytes) -> bool:
    return _chained(head, _mpeg_audio_bytes)


def _chained(head: bytes, length_at: Callable[[bytes, int], int]) -> bool:
    """Whether somewhere three frames follow each other, each as long as its header says.

    Junk may come before the first (padding, a cut). A file that ends sooner may have fewer,
    but then the frames must begin at its first byte and fill it.
    """
    for start in _sync_places(head):
        at, frames = start, 0
        while frames < 3 and at + 7 <= len(head) and (size := length_at(head, at)):
            at += size
            frames += 1
        if frames == 3 or (frames and start == 0 and at >= len(head)):
            return True
    return False


def _sync_places(head: bytes) -> list[int]:
    return [at for at in range(len(head) - 7) if head[at] in (0xFF, 0x56)]


def _adts_bytes(head: bytes, at: int) -> int:
    """Length of the ADTS frame at `at`, 0 if there is none (ISO 13818-7, 6.2)."""
    if head[at] != 0xFF or head[at + 1] & 0xF6 != 0xF0 or (head[at + 2] >> 2) & 0xF > 12:
        return 0
    size = (head[at + 3] & 3) << 11 | head[at + 4] << 3 | head[at + 5] >> 5
    return size if size > 7 else 0


def _loas_bytes(head: bytes, at: int) -> int:
    """Length of the LOAS frame at `at`, 0 if there is none (ISO 14496-3, 1.7.2)."""
    if head[at] != 0x56 or head[at + 1] & 0xE0 != 0xE0:
        return 0
    return ((head[at + 1] & 0x1F) << 8 | head[at + 2]) + 3


# kbit/s by [MPEG-1 layer I, II, III; MPEG-2 layer I, II and III] (ISO 11172-3 and 13818-3).
_KBITS: Final = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES_HZ: Final = (44100, 48000, 32000)


def _mpeg_audio_bytes(head: bytes, at: int) -> int:
    """Length of the MPEG audio frame at `at`, 0 if there is none (ISO 11172-3, 2.4.2.3)."""
    version, layer = head[at + 1] >> 3 & 3, 4 - (head[at + 1] >> 1 & 3)
    bits, rate = head[at + 2] >> 4, head[at + 2] >> 2 & 3
    if head[at] != 0xFF or head[at + 1] & 0xE0 != 0xE0:
        return 0
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return 0
    mpeg1 = version == 3
    hz = _RATES_HZ[rate] >> (0 if mpeg1 else 1 if version == 2 else 2)
    kbits = _KBITS[(layer - 1) if mpeg1 else (3 if layer == 1 else 4)][bits - 1]
    padding = head[at + 2] >> 1 & 1
    if layer == 1:
        return (12 * kbits * 1000 // hz + padding) * 4
    return (144 if mpeg1 or layer == 2 else 72) * kbits * 1000 // hz + padding


_TESTS: Final[tuple[tuple[Callable[[bytes], bool], str], ...]] = (
    (_is_mpeg_ts, "mpegts"),
    (_is_dv, "dv"),
    (_is_obu, "elementary"),
    (_is_program_stream, "mpegps"),
    (_is_elementary_video, "elementary"),
    (_is_mxf, "mxf"),
    (_is_adts, "aac"),
    (_is_mpeg_audio, "mp3"),
    (_is_loas, "aac"),
)
