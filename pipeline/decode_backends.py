"""The decoders that the decode child works with, as one table. Imported in the child only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final, Literal

import numpy as np

from vtag import decode, sound
from vtag.config import Sampling
from vtag.decode_report import DecodeReport
from vtag.decode_wire import Choices
from vtag.decode_worker import Backends, Look
from vtag.errors import EnvironmentProblem
from vtag.plan import Plan
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


# Reads the pictures of a plan with the decoder of that name.
Read = Callable[[decode.Probe, Plan, Any, DecodeReport], Iterator[Frames]]


def _choose(probe: decode.Probe, sampling: Sampling, report: DecodeReport) -> str:
    return decode.choose_decoder(probe, sampling, report=report)


def _read(
    probe: decode.Probe, plan: Plan, decoder: Literal["decord", "pyav"], report: DecodeReport
) -> Iterator[Frames]:
    return decode.read_frames(probe, plan, decoder=decoder, report=report)


def _frames(
    probe: decode.Probe, sampling: Sampling, decoder: str, report: DecodeReport, *, read: Read
) -> Iterator[Frames]:
    return read(probe, decode.plan(probe, sampling), decoder, report)


def _choices(probe: decode.Probe, sampling: Sampling, *, read: Read) -> tuple[Choices, Look]:
    found = decode.candidates(probe, sampling)

    def look_at(places: Sequence[int], decoder: str, report: DecodeReport) -> Iterator[Frames]:
        return read(probe, found.some(np.array(places, np.int64)), decoder, report)

    columns = (found.on_grid, found.is_key, found.is_cut, found.work_seconds)
    return Choices(found.plan.seconds, *columns), look_at


def _sound(probe: decode.Probe, report: DecodeReport) -> Iterator[Sound]:
    return sound.read_sound(probe, window_seconds=SOUND_WINDOW_SECONDS, report=report)


BACKENDS: Final = Backends(
    probe=decode.probe,
    choose=_choose,
    frames=partial(_frames, read=_read),
    sound=_sound,
    choices=partial(_choices, read=_read),
    has_decord=_load_decord(),
)


def torchcodec_on(device: str) -> Backends:
    """The decoders with torchcodec for the pictures, wherever it can be trusted.

    Imports torch and torchcodec now: later their libraries would count as the video's.

    Args:
        device: "cpu", or "cuda:N".

    Raises:
        EnvironmentProblem: torchcodec can not be loaded.
    """
    # torch wants a folder for compiled networks; there are none here, and nothing may be written.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath(os.sep)
    try:
        from vtag import decode_torchcodec
    except (ImportError, OSError, RuntimeError) as err:
        said = str(err).strip().partition("\n")[0].rstrip(".")
        raise EnvironmentProblem(
            f"torchcodec can not be loaded ({said}): it needs FFmpeg's shared libraries (Debian: "
            "apt install ffmpeg) and the release that goes with this torch; or leave out "
            "--decoder torchcodec"
        ) from err
    if device != "cpu" and decode_torchcodec.BUILD.endswith("+cpu"):
        raise EnvironmentProblem(
            f"torchcodec {decode_torchcodec.BUILD} was built without CUDA: install its build for "
            "CUDA, as its README says, or leave out --decoder torchcodec"
        )

    def choose(probe: decode.Probe, _: Sampling, report: DecodeReport) -> str:
        reason = decode_torchcodec.why_not_torchcodec(probe)
        if reason:
            report.warn(f"torchcodec was asked for but PyAV was used: {reason}")
        return "pyav" if reason else "torchcodec"

    def read(
        probe: decode.Probe, plan: Plan, decoder: str, report: DecodeReport
    ) -> Iterator[Frames]:
        if decoder == "torchcodec":
            return decode_torchcodec.read_frames_torchcodec(probe, plan, device=device)
        return decode.read_frames(probe, plan, decoder="pyav", report=report)

    return replace(
        BACKENDS,
        choose=choose,
        frames=partial(_frames, read=read),
        choices=partial(_choices, read=read),
    )
