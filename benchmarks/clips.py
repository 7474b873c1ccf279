"""The clips that the benchmarks decode, made with PyAV: codecs, groups of pictures, sizes, sound.

A camera pans over photographs (stills of the sample videos, a cut every 7 s) with fine texture,
moving things and grain on them, so that neither decoding nor the tags are trivial. Long clips
are short ones joined without coding them again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.stream import AudioStream
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

FPS: Final = 25
SAMPLES: Final = Path(__file__).parent.parent / "sample_videos"
SECONDS_PER_PHOTO: Final = 7


@dataclass(frozen=True)
class Recipe:
    """One kind of clip."""

    name: str
    encoder: str
    suffix: str
    gop: int
    megabits_at_720: float
    options: dict[str, str]


_X264 = "keyint={0}:min-keyint={0}:scenecut=0:bframes=3:ref=3:threads=1"
_X265 = "keyint={0}:min-keyint={0}:scenecut=0:bframes=3:open-gop=0:log-level=none:pools=1"
_VP9 = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
RECIPES: Final = (
    Recipe("H.264, GOP 30", "libx264", "mp4", 30, 2.5,
           {"preset": "faster", "x264-params": _X264.format(30)}),
    Recipe("H.264, GOP 250", "libx264", "mp4", 250, 2.5,
           {"preset": "faster", "x264-params": _X264.format(250)}),
    Recipe("H.264, no B, GOP 60", "libx264", "mp4", 60, 2.5,
           {"preset": "faster", "x264-params": _X264.format(60).replace("bframes=3", "bframes=0")}),
    Recipe("HEVC, GOP 30", "libx265", "mp4", 30, 1.8,
           {"preset": "superfast", "x265-params": _X265.format(30)}),
    Recipe("HEVC, GOP 250", "libx265", "mp4", 250, 1.8,
           {"preset": "superfast", "x265-params": _X265.format(250)}),
    Recipe("VP9, GOP 128", "libvpx-vp9", "webm", 128, 1.8, _VP9),
    Recipe("MPEG-4, GOP 12", "mpeg4", "mp4", 12, 4.0, {}),
)  # fmt: skip
BY_NAME: Final = {recipe.name: recipe for recipe in RECIPES}


def texture(width: int, height: int) -> Pixels:
    """uint8 [height, width, 3]: coarse and fine cells of random colours."""
    draw = np.random.default_rng(0)
    ground = np.zeros((height, width, 3))
    for cell in (256, 64, 16, 4):
        rows, columns = -(-height // cell), -(-width // cell)
        fine = np.repeat(np.repeat(draw.normal(0, 18, (rows, columns, 3)), cell, 0), cell, 1)
        ground += fine[:height, :width]
    return np.clip(ground + 128, 0, 255).astype(np.uint8)


def photograph(number: int, width: int, height: int) -> Pixels:
    """uint8 [height, width, 3]: a still of a sample video, with texture that enlarging lacks."""
    paths = sorted(SAMPLES.glob("*.mp4"))
    with av.open(str(paths[number % len(paths)])) as container:
        still = next(islice(container.decode(video=0), 30, None))
        large = still.to_ndarray(format="rgb24", width=width, height=height)
    cells = np.random.default_rng(number).normal(0, 7, (-(-height // 3), -(-width // 3), 1))
    fine = np.repeat(np.repeat(cells, 3, 0), 3, 1)[:height, :width]
    return np.clip(large + fine, 0, 255).astype(np.uint8)


def scene(
    width: int, height: int, count: int, *, first_photo: int | None = None
) -> Iterator[Pixels]:
    """Pictures of a camera that pans over a ground, things that move, and grain.

    Args:
        first_photo: the ground is a photograph, another one every `SECONDS_PER_PHOTO`; None: one
            textured ground.
    """
    draw = np.random.default_rng(0)
    size = (width + 800, height + 400)
    ground = texture(*size)
    patch = ground[:120, :120].copy()
    grain = draw.integers(0, 7, (8, height, width, 1), dtype=np.uint8)
    spots = draw.uniform(0, 1, (12, 4))
    for number in range(count):
        if first_photo is not None and number % (SECONDS_PER_PHOTO * FPS) == 0:
            ground = photograph(first_photo + number // (SECONDS_PER_PHOTO * FPS), *size)
        x = int(400 + 390 * np.sin(number / 90))
        y = int(200 + 190 * np.sin(number / 70))
        picture = ground[y : y + height, x : x + width].copy()
        side = min(120, height // 4)
        for at_x, at_y, speed_x, speed_y in spots if first_photo is None else spots[:3]:
            left = int((at_x * width + number * 12 * (speed_x - 0.5)) % (width - side))
            top = int((at_y * height + number * 12 * (speed_y - 0.5)) % (height - side))
            picture[top : top + side, left : left + side] = patch[:side, :side]
        yield np.minimum(picture, 248) + grain[number % 8]


def make_clip(
    folder: Path,
    recipe: Recipe,
    height: int,
    seconds: int,
    *,
    sound: bool = False,
    first_photo: int | None = None,
) -> Path:
    """The clip of a recipe; one that is there already is used again."""
    name = "".join(c if c.isalnum() else "-" for c in recipe.name)
    kind = ("" if first_photo is None else f"-photos{first_photo}") + ("-sound" if sound else "")
    path = folder / f"{name}-{height}-{seconds}{kind}.{recipe.suffix}"
    if path.exists():
        return path
    width = height * 16 // 9 // 2 * 2
    unfinished = path.with_stem("unfinished")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(recipe.encoder, rate=FPS, options=recipe.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = recipe.gop
        stream.codec_context.bit_rate = round(recipe.megabits_at_720 * 1e6 * (height / 720) ** 1.5)
        stream.codec_context.max_b_frames = 2 if recipe.encoder == "mpeg4" else 3
        track = None
        if sound:
            codec, rate_hz = ("libopus", 48_000) if recipe.suffix == "webm" else ("aac", 44_100)
            track = container.add_stream(codec, rate=rate_hz, layout="stereo")
            assert isinstance(track, AudioStream)
            track.bit_rate = 128_000
        heard = 0
        pictures = scene(width, height, seconds * FPS, first_photo=first_photo)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            if track is not None:
                # It ends 0.06 s early: with the encoder's delay, joined clips do not overlap.
                until = min(number + 1, seconds * FPS - 1.5) / FPS
                for piece in noises(heard, round(until * track.rate), track.rate):
                    heard += piece.samples
                    container.mux(track.encode(piece))
        for either in (stream, track):
            if either is not None:
                container.mux(either.encode(None))
    return unfinished.rename(path)


def noises(start: int, end: int, rate_hz: int) -> Iterator[av.AudioFrame]:
    """Samples `start` to `end` of stereo sound: a gliding tone, beats, and noise."""
    if end <= start:
        return
    seconds = np.arange(start, end) / rate_hz
    tone = np.sin(2 * np.pi * (300 * seconds + 90 * np.sin(seconds)))
    beat = np.exp(-8 * (seconds % 0.5)) * np.random.default_rng(start).normal(0, 1, len(seconds))
    wave = np.clip(0.2 * tone + 0.2 * beat, -1, 1)
    stereo = np.stack([wave, 0.8 * wave], axis=1).reshape(1, -1) * 32767
    frame = av.AudioFrame.from_ndarray(stereo.astype(np.int16), format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
    yield frame


def joined(path: Path, *, seconds: int, times: int) -> Path:
    """A clip of `seconds` so many times in a row, its packets copied; one there already is used."""
    target = path.with_stem(f"{path.stem}-x{times}")
    if target.exists():
        return target
    unfinished = path.with_stem("unfinished")
    with av.open(str(path)) as source, av.open(str(unfinished), "w") as container:
        streams = {s.index: container.add_stream_from_template(s) for s in source.streams}
        packets = [
            (bytes(p), p.pts, p.dts, p.is_keyframe, p.time_base, p.stream.index)
            for p in source.demux()
            if p.size
        ]
        last: dict[int, int] = defaultdict(lambda: -(1 << 62))
        for turn in range(times):
            for data, pts, dts, is_key, time_base, index in packets:
                late = round(seconds * turn / time_base)
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.time_base = pts + late, dts + late, time_base
                if copy.dts <= last[index]:
                    raise SystemExit(f"{path}: its end overlaps its own start; make it shorter")
                last[index] = copy.dts
                copy.is_keyframe, copy.stream = is_key, streams[index]
                container.mux(copy)
    return unfinished.rename(target)


def numbered_copies(path: Path, folder: Path, count: int) -> list[Path]:
    """Copies of an MP4 that decode alike and are different contents: each ends in its number."""
    folder.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes()
    copies = []
    for number in range(count):
        copy = folder / f"clip{number:05}.mp4"
        if not copy.exists():
            # A box of type "free": 16 bytes that every reader skips.
            copy.write_bytes(data + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
        copies.append(copy)
    return copies
