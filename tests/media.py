"""Draws the clips that the tests decode, so that every expected number is known beforehand.

Each picture carries its own number as a bar code that survives scaling and lossy coding
(`read_barcode`), above a strip in the colour of its second (`SECOND_COLOURS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

COLUMNS, ROWS, NUMBER_BITS = 8, 2, 12  # 12 bits of number, 4 of check sum
BARCODE_SHARE = 2 / 3  # of the height, from the top
SECOND_COLOURS = ((200, 40, 40), (40, 180, 40), (40, 60, 200), (190, 180, 40), (150, 60, 170))

_SOUND_CODECS = {
    ".webm": "libopus",
    ".avi": "libmp3lame",
    ".mp3": "libmp3lame",
    ".mpg": "mp2",
    ".wav": "pcm_s16le",
    ".flac": "flac",
}
_WITHOUT_BFRAMES = ("libvpx", "libvpx-vp9", "libsvtav1", "mjpeg", "ffv1", "gif", "rawvideo")
_QUIET = {
    "libx265": ("x265-params", "log-level=none"),
    "libsvtav1": ("preset", "12"),
    "libx264": ("preset", "veryfast"),
    "libvpx-vp9": ("cpu-used", "8"),
    "libvpx": ("cpu-used", "8"),
}


def draw_frame(number: int, colour: Sequence[int], size: tuple[int, int]) -> Pixels:
    """uint8 [H, W, 3]: the number as black and white blocks, the colour below them."""
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    bits = number & 0xFFF | _check_sum(number) << NUMBER_BITS
    for place in range(COLUMNS * ROWS):
        pixels[_block(place, width, height)] = 235 if bits >> place & 1 else 20
    return pixels


def read_barcode(pixels: Pixels) -> int:
    """The number drawn into a picture of any size, or -1 where it holds no valid bar code."""
    height, width = pixels.shape[:2]
    bits = 0
    for place in range(COLUMNS * ROWS):
        rows, columns = _block(place, width, height)
        inner = pixels[_middle(rows), _middle(columns)]
        bits |= int(inner.mean() > 128) << place
    number, check = bits & 0xFFF, bits >> NUMBER_BITS
    return number if check == _check_sum(number) else -1


def _check_sum(number: int) -> int:
    return (number ^ number >> 4 ^ number >> 8 ^ 0b1010) & 0xF


def _block(place: int, width: int, height: int) -> tuple[slice, slice]:
    row, column = divmod(place, COLUMNS)
    tall, wide = height * BARCODE_SHARE / ROWS, width / COLUMNS
    return (
        slice(round(row * tall), round((row + 1) * tall)),
        slice(round(column * wide), round((column + 1) * wide)),
    )


def _middle(part: slice) -> slice:
    margin = (part.stop - part.start) // 4
    return slice(part.start + margin, part.stop - margin)


def draw_clip(
    path: Path,
    *,
    seconds: float = 4.0,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (160, 96),
    codec: str | None = "libx264",
    gop: int = 12,
    bframes: int = 2,
    times: Sequence[float] | None = None,
    start: float = 0.0,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    mirrored: bool = False,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tone_hz: float | None = None,
    sound_codec: str | None = None,
    sound_start: float = 0.0,
    sound_seconds: float | None = None,
    sound_gap: tuple[float, float] | None = None,
    layout: str = "mono",
    rate_hz: int = 48_000,
) -> Path:
    """A clip at `path`; the suffix says which container. Returns the path.

    Args:
        codec: of the pictures; None for sound only.
        times: when each picture is shown (variable frame rate); else evenly at `fps`.
        start: seconds by which all pictures are late.
        rotation: degrees clockwise by which a player must turn the pictures; they are stored
            turned the other way, so that they come out upright.
        mirrored: whether the pictures are stored with left and right exchanged, and a player
            must do it again.
        pixel_aspect: width of a pixel by its height, where it is not square.
        tone_hz: a sine of amplitude 0.5 on every channel; None for no sound.
        sound_gap: (from, length) in seconds of the wave: not stored; the rest keeps its time.
    """
    given_times = times if times is not None else _even(seconds, float(fps))
    rate = Fraction(fps).limit_denominator(1001)
    base = 1 / rate if times is None else Fraction(1, 1000)
    sound_codec = sound_codec or _SOUND_CODECS.get(path.suffix, "aac")
    with av.open(str(path), "w", options=container_options or {}) as container:
        # A container's header names all streams, so all are added before the first packet.
        video = sound = None
        if codec is not None:
            quiet = dict([_QUIET[codec]]) if codec in _QUIET else {}
            video = container.add_stream(codec, rate=rate, options={**quiet, **(options or {})})
            video.width, video.height = size if rotation % 180 == 0 else size[::-1]
            video.pix_fmt = pix_fmt
            video.codec_context.gop_size = gop
            video.codec_context.time_base = base
            video.codec_context.thread_count = 1
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if codec not in _WITHOUT_BFRAMES:
                video.codec_context.max_b_frames = bframes
        if tone_hz is not None:
            sound = container.add_stream(sound_codec, rate=rate_hz, layout=layout)
        if video is not None:
            ticks = [round((time + start) / base) for time in given_times]
            colours = [SECOND_COLOURS[int(time + 1e-6) % 5] for time in given_times]
            for number, (tick, colour) in enumerate(zip(ticks, colours, strict=True)):
                pixels = np.rot90(draw_frame(number, colour, size), rotation // 90)
                pixels = pixels[:, ::-1] if mirrored else pixels
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame = frame.reformat(format=pix_fmt)
                frame.pts, frame.time_base = tick, base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if sound is not None and tone_hz is not None:
            length = sound_seconds if sound_seconds is not None else seconds
            _mux_tone(container, sound, tone(tone_hz, length, rate_hz), sound_start, sound_gap)
    if rotation or mirrored:
        _write_matrix(path, (-1, 0, 0, 1) if mirrored else _TURNS[rotation])
    return path


def _even(seconds: float, fps: float) -> list[float]:
    return [number / fps for number in range(round(seconds * fps))]


def tone(hz: float, seconds: float, rate_hz: int, *, start: float = 0.0) -> NDArray[np.float32]:
    """float32 [N]: a sine of amplitude 0.5, as heard from `start` on."""
    t = start + np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def _mux_tone(
    container: OutputContainer,
    stream: AudioStream,
    wave: NDArray[np.float32],
    start: float,
    gap: tuple[float, float] | None,
) -> None:
    context = stream.codec_context
    rate_hz, layout = context.sample_rate, context.layout
    size = context.frame_size or 1024
    shaper = av.AudioResampler(context.format.name, layout.name, rate_hz)
    for begin in range(0, len(wave), size):
        if gap is not None and gap[0] <= begin / rate_hz < gap[0] + gap[1]:
            continue
        part = np.repeat(wave[None, begin : begin + size], layout.nb_channels, axis=0)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout.name)
        frame.rate = rate_hz
        for shaped in shaper.resample(frame):
            shaped.pts = begin + round(start * rate_hz)
            shaped.time_base = Fraction(1, rate_hz)
            container.mux(stream.encode(shaped))
    container.mux(stream.encode(None))


# a, b, c, d of the display matrix for degrees clockwise.
_TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def _write_matrix(path: Path, shown: tuple[int, int, int, int]) -> None:
    """Writes the matrix of the first track header (ISO/IEC 14496-12, 8.3.2) of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes from version to the matrix
    a, b, c, d = (value << 16 for value in shown)
    matrix = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    for place, value in enumerate(matrix):
        data[at + 4 * place : at + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)


def trim(source: Path, path: Path, *, begin: float) -> Path:
    """A copy from `begin` on without re-encoding, as `ffmpeg -ss … -c copy` makes it.

    It starts at the key frame before `begin`; an edit list hides what comes too early.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        shift = round(begin / stream.time_base)
        first = max(i for i, p in enumerate(packets) if p.is_keyframe and p.pts <= shift)
        for packet in packets[first:]:
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            new.mux(packet)
    return path


def join(sources: Iterable[Path], path: Path) -> Path:
    """Transport streams one behind the other, byte by byte: their clock jumps at the joint."""
    path.write_bytes(b"".join(source.read_bytes() for source in sources))
    return path


def truncate(path: Path, share: float) -> Path:
    """Cuts a file to a share of its length, in place."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flip_bytes(path: Path, *, count: int, seed: int = 0, first: float = 0.1) -> Path:
    """Inverts `count` bytes of an MP4 at places drawn from `seed`, in place.

    Only behind the share `first` of the media data: what is damaged is the stream, not the index.
    """
    data = bytearray(path.read_bytes())
    kind = data.index(b"mdat")
    begin, size = kind + 4, int.from_bytes(data[kind - 4 : kind], "big")
    end = min(len(data), kind - 4 + size)
    places = np.random.default_rng(seed).integers(begin + int((end - begin) * first), end, count)
    for place in places:
        data[place] ^= 0xFF
    path.write_bytes(data)
    return path
