"""Sampled pictures with decord, on the files for which `Probe.decord_fit` holds.

decord decodes nothing that was not asked for in one call: its background thread reads ahead
without bound between calls, so there is one `get_batch` and then the reader is gone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vtag.errors import MediaError
from vtag.picture import picture_size
from vtag.plan import Plan
from vtag.probe import Probe
from vtag.records import Frames

_LOG_PREFIX: Final = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_CHECK: Final = re.compile(r"Check failed: .*\(\S+ vs\. \S+\) (?=\S)")


def read_frames_decord(probe: Probe, plan: Plan, *, batch: int) -> Iterator[Frames]:
    """Batches of pictures in order of time. All of them are in memory at once.

    Raises:
        MediaError: decoder_misbehaved where decord counts or times the pictures differently
            from the packets; corrupt where it gives up. PyAV may still read the file.
    """
    import decord

    batches = list(plan.in_batches(batch))
    if not batches:
        return
    width, height = picture_size(probe)
    decord.logging.set_level(decord.logging.QUIET)  # what it has to say comes as an exception
    try:
        reader = decord.VideoReader(
            os.path.realpath(probe.path),
            ctx=decord.cpu(0),
            width=width,
            height=height,
            num_threads=1,
        )
        times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        _refuse_other_times(probe, times)
        wanted = np.concatenate([some.pictures for some in batches])
        pixels = reader.get_batch(wanted.tolist()).asnumpy()
        del reader
    except (decord.DECORDError, RuntimeError, IndexError) as err:
        raise MediaError(
            f"{probe.path}: decord can not decode it ({_readable(err)})",
            code="corrupt",
            stage="video",
        ) from err
    for some, start in zip(batches, range(0, len(pixels), batch), strict=True):
        yield Frames(pixels[start : start + batch], some.repeats, some.seconds)


def _readable(err: Exception) -> str:
    """What decord says, without the times and source files that its messages begin with.

    "[06:53:52] /github/…/threaded_decoder.cc:218: Check failed: a >= 0 (-1 vs. 0) Error sending
    packet." would make two runs differ; its last words are for people.
    """
    lines = [line for line in str(err).splitlines() if line.strip()]
    said = _LOG_PREFIX.sub("", lines[0] if lines else "").strip()
    said = _CHECK.sub("", said)
    return said or type(err).__name__


def _refuse_other_times(probe: Probe, times: NDArray[np.float64]) -> None:
    """Compares decord's times of all pictures (seconds after the first) with the packets'."""
    table = probe.table
    base = float(table.time_base)
    expected = (table.shown_ticks - table.shown_ticks[0]) * base
    if len(times) != len(expected):
        said = f"decord counts {len(times)} pictures, the packets {len(expected)}"
    elif np.abs(times - times[0] - expected).max() > table.step * base / 2:
        said = "decord shows the pictures at other times than the packets"
    else:
        return
    raise MediaError(f"{probe.path}: {said}", code="decoder_misbehaved", stage="video")
