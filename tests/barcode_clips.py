"""Clips of many kinds with a bar code in each picture: which picture was seen can be read off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media import draw_clip, read_barcode

from vtag.records import Frames

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}


def even(seconds: float = 4.0, fps: float = 25.0) -> list[float]:
    return [number / fps for number in range(round(seconds * fps))]


VFR = np.round(np.sort(np.random.default_rng(1).uniform(0, 4, 60)), 3).tolist()
VFR = sorted({0.0, *VFR})


def vfr(path: Path) -> tuple[Path, Sequence[float]]:
    return draw_clip(path / "c.mp4", times=VFR), VFR


def clip(name: str, **arguments: object) -> Callable[[Path], tuple[Path, Sequence[float]]]:
    """A clip of pictures that are shown evenly, and when each is shown."""
    fps = float(arguments.get("fps", 25))  # type: ignore[arg-type]
    seconds = float(arguments.get("seconds", 4.0))  # type: ignore[arg-type]

    def draw(folder: Path) -> tuple[Path, Sequence[float]]:
        return draw_clip(folder / name, **arguments), even(seconds, fps)  # type: ignore[arg-type]

    return draw


CLIPS: dict[str, Callable[[Path], tuple[Path, Sequence[float]]]] = {
    "h264": clip("c.mp4"),
    "29.97": clip("c.mp4", fps=Fraction(30000, 1001)),
    "vfr": vfr,
    "open gop": clip("c.mp4", bframes=3, options=OPEN_GOP),
    "long gop": clip("c.mp4", seconds=10, gop=250),
    "intra": clip("c.mp4", gop=1, bframes=0),
    "fragmented": clip("c.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}),
    "matroska": clip("c.mkv", fps=30),
    "ts": clip("c.ts", tone_hz=440.0),
    "ts mpeg2": clip("c.ts", codec="mpeg2video", tone_hz=440.0),
    "ps mpeg2": clip("c.mpg", codec="mpeg2video", tone_hz=440.0),
    "avi mpeg4": clip("c.avi", codec="mpeg4"),
    "avi h264": clip("c.avi"),
    "flv": clip("c.flv"),
    "wmv": clip("c.wmv", codec="wmv2", bframes=0),
    "hevc": clip("c.mp4", codec="libx265"),
    "hevc layers": clip(
        "c.mp4",
        codec="libx265",
        options={"x265-params": "log-level=none:temporal-layers=3:open-gop=0"},
    ),
    "vp9": clip("c.webm", codec="libvpx-vp9"),
    "vp8": clip("c.webm", codec="libvpx"),
    "av1": clip(
        "c.mp4", codec="libsvtav1", size=(160, 128), seconds=3, options={"preset": "8", "crf": "25"}
    ),
    "mjpeg": clip("c.mov", codec="mjpeg", pix_fmt="yuvj420p"),
    "gif": clip("c.gif", codec="gif", pix_fmt="rgb8"),
    "10 bit": clip("c.mp4", codec="libx265", pix_fmt="yuv420p10le"),
    "gray": clip("c.mkv", codec="ffv1", pix_fmt="gray"),
    "alpha": clip("c.mov", codec="qtrle", pix_fmt="argb", bframes=0),
    "odd size": clip("c.mkv", codec="ffv1", pix_fmt="yuv420p", size=(161, 97)),
    "turned 90": clip("c.mp4", rotation=90),
    "turned 180": clip("c.mp4", rotation=180),
    "turned 270": clip("c.mp4", rotation=270),
    "mirrored": clip("c.mp4", mirrored=True),
    # No key frame but the first: a band of each picture is coded anew, until all of it was.
    "gradual": clip(
        "c.mp4",
        fps=10,
        seconds=6,
        bframes=0,
        options={"x264-params": "intra-refresh=1:keyint=30:scenecut=0"},
    ),
    "two seconds late": clip("c.mp4", start=2.0),
}


def numbers(frames: Frames) -> list[int]:
    """The bar code at each sampled time."""
    return [
        read_barcode(p)
        for p, n in zip(frames.pixels, frames.repeats, strict=True)
        for _ in range(n)
    ]


def expected_numbers(shown: Sequence[float], at: Sequence[float], slack: float) -> list[int]:
    """The last picture shown at or before each time, looked for one by one."""
    found = []
    for time in at:
        number = 0
        for candidate, begins in enumerate(shown):
            if begins <= time + slack:
                number = candidate
        found.append(number)
    return found


def drawn_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Sequence[float]]]:
    """Gives the clip of a name and when each of its pictures is shown; draws it the first time."""
    drawn: dict[str, tuple[Path, Sequence[float]]] = {}

    def get(name: str) -> tuple[Path, Sequence[float]]:
        if name not in drawn:
            drawn[name] = CLIPS[name](tmp_path_factory.mktemp("clip"))
        return drawn[name]

    return get


def joined(batches: Sequence[Frames]) -> Frames:
    """All batches as one."""
    return Frames(
        np.concatenate([b.pixels for b in batches]),
        np.concatenate([b.repeats for b in batches]),
        np.concatenate([b.seconds for b in batches]),
    )
