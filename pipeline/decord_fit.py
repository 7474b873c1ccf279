"""Which files decord can be trusted with.

decord 0.6 numbers pictures and bundles an FFmpeg of 2018. It was measured to be seconds off on
variable frame rate, out of order on edit lists, two pictures off on open groups, wrong on AVI with
B pictures, endless on transport streams, and all or nothing on damage. The packet table tells
these files apart without decoding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np

from vtag.orientation import Orientation
from vtag.packet_table import PacketTable
from vtag.records import Media

# Codecs that FFmpeg 4.1 decodes, and containers, that it was measured on.
_CODECS: Final = frozenset({"h264", "hevc", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video"})
_FAMILIES: Final = frozenset({"mp4", "matroska"})


def why_not_decord(
    path: Path,
    family: str,
    media: Media,
    table: PacketTable,
    *,
    first_size: tuple[int, int],
    orientation: Orientation,
    gradual_starts: int,
) -> str:
    """Why decord would give wrong pictures; empty if it can be trusted.

    Args:
        first_size: of the first picture as decoded, (0, 0) if it could not be.
        gradual_starts: key packets at which a picture only begins to build up.
    """
    if not media.has_video:
        return "no video"
    if family not in _FAMILIES:
        return f"container {family}"
    if media.video_codec not in _CODECS:
        return f"codec {media.video_codec}"
    if 0 in first_size:
        return "the first picture can not be decoded"
    if not orientation.is_upright:  # scaled after turning, 37 dB from PyAV's; never mirrored
        return "turned or mirrored"
    if not _is_utf8(path):
        return "its name is no text"
    if max(first_size) > 4 * min(first_size):
        return "extreme shape"
    reason = _why_not_by_times(table)
    if not reason and gradual_starts:  # measured: the picture of 4.3 s for that of 3 s
        return "key frames without an IDR picture"
    return reason


def _is_utf8(path: Path) -> bool:
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_not_by_times(table: PacketTable) -> str:
    if len(table) < 2:
        return "a single picture"
    if len(table.shown) != len(table):
        return "edit list"
    if table.counted or table.ticks.min() < 0:
        return "pictures without a time"
    if not table.constant_rate:
        return "variable frame rate"
    if table.leading.any():
        return "open group of pictures"
    if len(np.unique(table.ticks)) != len(table):
        return "two pictures at one time"
    return ""
