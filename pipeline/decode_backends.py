"""The decoders that the decode child works with, as one table. Imported in the child only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Final, Literal

import numpy as np

from vtag import decode, sound
from vtag.config import Sampling
from vtag.decode_report import DecodeReport
from vtag.decode_wire import Choices
from vtag.decode_worker import Backends, Look
from vtag.records import Frames, Sound

# Long enough that messages cost nothing, short enough (2 MB) that memory stays flat.
SOUND_WINDOW_SECONDS: Final = 30.0


def _load_decord() -> bool:
    """Whether decord is there. Loads it now: later its libraries would count as the video's."""
    try:
        import_module("decord")
    except (ImportError, OSError):  # OSError: a shared library of its own is missing
        return False
    return True


def _choose(
    probe: decode.Probe, sampling: Sampling, report: DecodeReport
) -> Literal["decord", "pyav"]:
    return decode.choose_decoder(probe, sampling, report=report)


def _frames(
    probe: decode.Probe,
    sampling: Sampling,
    decoder: Literal["decord", "pyav"],
    report: DecodeReport,
) -> Iterator[Frames]:
    plan = decode.plan(probe, sampling)
    return decode.read_frames(probe, plan, decoder=decoder, report=report)


def _choices(probe: decode.Probe, sampling: Sampling) -> tuple[Choices, Look]:
    found = decode.candidates(probe, sampling)

    def look_at(
        places: Sequence[int], decoder: Literal["decord", "pyav"], report: DecodeReport
    ) -> Iterator[Frames]:
        some = found.some(np.array(places, np.int64))
        return decode.read_frames(probe, some, decoder=decoder, report=report)

    columns = (found.on_grid, found.is_key, found.is_cut, found.work_seconds)
    return Choices(found.plan.seconds, *columns), look_at


def _sound(probe: decode.Probe, report: DecodeReport) -> Iterator[Sound]:
    return sound.read_sound(probe, window_seconds=SOUND_WINDOW_SECONDS, report=report)


BACKENDS: Final = Backends(
    probe=decode.probe,
    choose=_choose,
    frames=_frames,
    sound=_sound,
    choices=_choices,
    has_decord=_load_decord(),
)
