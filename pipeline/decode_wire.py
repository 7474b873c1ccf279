"""The messages between vtag and its decode child, and the checks that make them safe to read.

A message is a 16-byte prefix (magic, length of the header, length of the body), a JSON
header, and raw little-endian arrays. Nothing is unpickled. The child may have been taken over
by the file that it decodes, so reading believes nothing: lengths are bounded before memory is
taken, the length of a body follows from the header's own numbers, and every field has a type
and a range. What is false raises `WireError`.
"""

from __future__ import annotations

import json
import math
import struct
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from vtag.config import DecoderName
from vtag.records import Frames, Media, Sound

# Everything is one machine, but "native" would tie the format to it.
PREFIX: Final = struct.Struct("<4sIQ")
MAGIC: Final = b"vtg1"

MAX_HEADER_BYTES: Final = 1 << 16
MAX_SIDE_PX: Final = 2048  # vtag's pictures are 256 px by 1024 at most
MAX_PICTURES: Final = 64  # in one message
MAX_TIMES: Final = 1_000_000  # in one message
MAX_BODY_BYTES: Final = 64 << 20
MAX_SAMPLES: Final = 16_000 * 120  # in one message: two minutes of sound
MAX_SECONDS: Final = 1e8  # three years; beyond it a clock is not a clock
MAX_TEXT: Final = 500
DECODERS: Final = tuple(name for name in get_args(DecoderName) if name != "auto")
MAX_WARNINGS: Final = 32

Header = Mapping[str, Any]


class WireError(Exception):
    """A message that can not be true; the text says what is wrong with it."""


@dataclass(frozen=True)
class Message:
    """One message: `kind` and the other fields of the header, and the raw body."""

    header: Header
    body: NDArray[np.uint8]

    @property
    def kind(self) -> str:
        """What the message is about; it decides how the rest is read."""
        return str(self.header.get("kind"))


def pack(header: Header, *arrays: NDArray[Any]) -> list[memoryview]:
    """The parts of one message, to be written one after the other."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    parts = [np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size]
    prefix = PREFIX.pack(MAGIC, len(text), sum(len(part) for part in parts))
    return [memoryview(prefix + text), *parts]


def unpack(read: Callable[[memoryview], None]) -> Message:
    """The next message.

    Args:
        read: fills the whole of the buffer that it is given, or raises EOFError.

    Raises:
        EOFError: the other side is gone.
        WireError: what came is not a message.
    """
    prefix = bytearray(PREFIX.size)
    read(memoryview(prefix))
    magic, header_bytes, body_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError("bytes that are no message")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a message of {header_bytes} + {body_bytes} bytes")
    text = bytearray(header_bytes)
    read(memoryview(text))
    header = _parse(bytes(text))
    expected = _body_bytes(header)
    if body_bytes != expected:
        raise WireError(f"{body_bytes} bytes where its header tells of {expected}")
    body = np.empty(expected, np.uint8)
    if expected:
        read(body.data)
    return Message(header, body)


def _parse(text: bytes) -> Header:
    try:
        header = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as err:
        raise WireError("a header that is not JSON") from err
    if not isinstance(header, dict):
        raise WireError("a header that is not an object")
    return header


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _body_bytes(header: Header) -> int:
    """How long the body of a message must be, from its header alone."""
    if header.get("kind") == "frames":
        pictures, height, width = _shape(header)
        times = whole(header, "times", low=pictures, high=MAX_TIMES)
        size = pictures * height * width * 3 + 8 * pictures + 8 * times
        if size > MAX_BODY_BYTES:
            raise WireError(f"{size} bytes of pictures in one message")
        return size
    if header.get("kind") == "choices":
        return 17 * whole(header, "times", low=1, high=MAX_TIMES)
    if header.get("kind") == "sound":
        return 4 * whole(header, "samples", low=1, high=MAX_SAMPLES)
    return 0


def _shape(header: Header) -> tuple[int, int, int]:
    pictures = whole(header, "pictures", low=1, high=MAX_PICTURES)
    height = whole(header, "height", low=1, high=MAX_SIDE_PX)
    return pictures, height, whole(header, "width", low=1, high=MAX_SIDE_PX)


def pack_frames(frames: Frames) -> list[memoryview]:
    """One message with some pictures."""
    pictures, height, width, _ = frames.pixels.shape
    times = len(frames.seconds)
    header = {"kind": "frames", "pictures": pictures, "height": height, "width": width}
    return pack(
        {**header, "times": times},
        frames.pixels,
        frames.repeats.astype("<i8"),
        frames.seconds.astype("<f8"),
    )


def unpack_frames(message: Message) -> Frames:
    """The pictures of a message; raises WireError when they can not be true."""
    pictures, height, width = _shape(message.header)
    pixels, rest = np.split(message.body, [pictures * height * width * 3])
    repeats, seconds = np.split(rest, [8 * pictures])
    # Copies, because numpy wants 8-byte values at multiples of 8 and the pixels end anywhere.
    repeats_at = np.frombuffer(repeats.tobytes(), "<i8").astype(np.int64)
    seconds_at = np.frombuffer(seconds.tobytes(), "<f8").astype(np.float64)
    if not np.isfinite(seconds_at).all() or (np.abs(seconds_at) > MAX_SECONDS).any():
        raise WireError("times that are no times")
    # Before they are added up: the sum of two huge counts may wrap round to a good one.
    if (repeats_at < 1).any() or (repeats_at > len(seconds_at)).any():
        raise WireError("counts of repeated pictures that are out of range")
    try:
        return Frames(pixels.reshape(pictures, height, width, 3), repeats_at, seconds_at)
    except ValueError as err:
        raise WireError(str(err)) from err


@dataclass(frozen=True)
class Choices:
    """What a video offers to adaptive sampling: pictures that may be asked for.

    Attributes:
        seconds: float64 [n], strictly rising: the times of the grid, and of key frames between.
        on_grid: bool [n], whether a time belongs to the grid.
        is_key: bool [n], whether the picture is decoded from its own packet alone.
        is_cut: bool [n], key frames where the encoder saw a cut: a new shot begins there.
        work_seconds: float64 [n], about what decoding it alone takes on one core.
    """

    seconds: NDArray[np.float64]
    on_grid: NDArray[np.bool_]
    is_key: NDArray[np.bool_]
    is_cut: NDArray[np.bool_]
    work_seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        columns = (self.seconds, self.on_grid, self.is_key, self.is_cut, self.work_seconds)
        shapes = {column.shape for column in columns}
        if shapes != {(len(self.seconds),)} or not self.on_grid.any():
            raise ValueError(f"one flag and one number for each of the times, not {shapes}")
        if (np.diff(self.seconds) <= 0).any():
            raise ValueError("seconds must rise strictly")
        if not ((self.work_seconds >= 0) & (self.work_seconds < np.inf)).all():
            raise ValueError("work takes 0 seconds or more")

    def __len__(self) -> int:
        return len(self.seconds)


def pack_choices(choices: Choices) -> list[memoryview]:
    """One message with all pictures that may be asked for."""
    bits = np.stack([choices.on_grid, choices.is_key, choices.is_cut])
    flags = np.packbits(bits, axis=0, bitorder="little")[0]
    header = {"kind": "choices", "times": len(choices)}
    return pack(header, choices.seconds.astype("<f8"), choices.work_seconds.astype("<f8"), flags)


def unpack_choices(message: Message) -> Choices:
    """The choices of a message; raises WireError when they can not be true."""
    times = whole(message.header, "times", low=1, high=MAX_TIMES)
    seconds, work, flags = np.split(message.body, [8 * times, 16 * times])
    at = seconds.view("<f8").astype(np.float64)
    if not np.isfinite(at).all() or (np.abs(at) > MAX_SECONDS).any():
        raise WireError("times that are no times")
    on_grid, is_key, is_cut = ((flags >> bit & 1) > 0 for bit in range(3))
    try:
        return Choices(at, on_grid, is_key, is_cut, work.view("<f8").astype(np.float64))
    except ValueError as err:
        raise WireError(str(err)) from err


def pack_sound(sound: Sound) -> list[memoryview]:
    """One message with a stretch of sound."""
    header = {"kind": "sound", "samples": len(sound.samples), "start": float(sound.start)}
    return pack(header, sound.samples.astype("<f4"))


def unpack_sound(message: Message) -> Sound:
    """The sound of a message; raises WireError when it can not be true."""
    samples = message.body.view("<f4").astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise WireError("samples that are no numbers")
    return Sound(samples, real(message.header, "start", low=-MAX_SECONDS, high=MAX_SECONDS))


def media_fields(media: Media) -> dict[str, Any]:
    """A `Media` as header fields."""
    return {"media": media.to_dict()}


def unpack_media(header: Header) -> Media:
    """The `Media` of a header; raises WireError when it can not be true."""
    fields = header.get("media")
    if not isinstance(fields, dict):
        raise WireError("no media facts")
    decoder = fields.get("decoder")
    if decoder is not None and decoder not in DECODERS:
        raise WireError("a decoder that does not exist")
    return Media(
        duration=real(fields, "duration", low=0, high=MAX_SECONDS),
        fps=None if fields.get("fps") is None else real(fields, "fps", low=0, high=1e6),
        width=_side(fields, "width"),
        height=_side(fields, "height"),
        video_codec=_name(fields, "video_codec"),
        audio_codec=_name(fields, "audio_codec"),
        has_video=flag(fields, "has_video"),
        has_audio=flag(fields, "has_audio"),
        corrupt_frames=whole(fields, "corrupt_frames", low=0, high=10**12),
        decoder=decoder,
    )


def _side(fields: Header, name: str) -> int | None:
    return None if fields.get(name) is None else whole(fields, name, low=0, high=1 << 20)


def _name(fields: Header, name: str) -> str | None:
    return None if fields.get(name) is None else text_field(fields, name)[:64]


def whole(fields: Header, name: str, *, low: int, high: int) -> int:
    """A whole number of a header; raises WireError outside low..high."""
    value = fields.get(name)
    # bool is an int in Python, and true is no count.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise WireError(f"a field {name} that is out of range")
    return value


def real(fields: Header, name: str, *, low: float, high: float) -> float:
    """A finite number of a header; raises WireError outside low..high."""
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise WireError(f"a field {name} that is out of range")
    number = float(value)
    if not math.isfinite(number):
        raise WireError(f"a field {name} that is no number")
    return number


def flag(fields: Header, name: str) -> bool:
    """A truth value of a header; raises WireError when it is none."""
    value = fields.get(name)
    if not isinstance(value, bool):
        raise WireError(f"a field {name} that is neither true nor false")
    return value


def text_field(fields: Header, name: str) -> str:
    """A text of a header, cleaned; raises WireError when it is none."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise WireError(f"a field {name} that is no text")
    return clean(value)


def texts(fields: Header, name: str) -> tuple[str, ...]:
    """A list of texts of a header, cleaned; raises WireError when it is none or too long."""
    values = fields.get(name)
    if not isinstance(values, list) or len(values) > MAX_WARNINGS:
        raise WireError(f"a field {name} that is no short list")
    return tuple(text_field({name: value}, name) for value in values)


def flags(fields: Header, name: str) -> dict[str, bool]:
    """A small table of truth values, its keys cleaned; raises WireError when it is none."""
    values = fields.get(name)
    if not isinstance(values, dict) or len(values) > MAX_WARNINGS:
        raise WireError(f"a field {name} that is no short table")
    return {clean(key): flag(values, key) for key in values}


def clean(text: str) -> str:
    """One line of at most `MAX_TEXT` characters that a terminal shows and does not obey.

    Control and direction characters, line separators and lone surrogates become U+FFFD.

    >>> clean("a\\nb\\x1b[31m")
    'a\ufffdb\ufffd[31m'
    """
    line = "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text[:MAX_TEXT]
    )
    return line if len(text) <= MAX_TEXT else f"{line} …"
