"""Messages of the decode child: what goes in comes out, and nothing else does harm."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtag.decode_wire import (
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX,
    Choices,
    Message,
    WireError,
    clean,
    flags,
    media_fields,
    pack,
    pack_choices,
    pack_frames,
    pack_sound,
    real,
    texts,
    unpack,
    unpack_choices,
    unpack_frames,
    unpack_media,
    unpack_sound,
    whole,
)
from vtag.records import Frames, Media, Sound


def receive(data: bytes) -> Message:
    """Unpacks bytes as if they came through a pipe that ends after them."""
    rest = memoryview(data)

    def read(buffer: memoryview) -> None:
        nonlocal rest
        if len(rest) < len(buffer):
            raise EOFError
        buffer[:] = rest[: len(buffer)]
        rest = rest[len(buffer) :]

    return unpack(read)


def message(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return PREFIX.pack(MAGIC, len(text), len(body)) + text + body


@given(
    pictures=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 9), data=st.data()
)
def test_frames_round_trip(pictures: int, height: int, width: int, data: st.DataObject) -> None:
    counts = st.lists(st.integers(1, 4), min_size=pictures, max_size=pictures)
    repeats = np.array(data.draw(counts), np.int64)
    rng = np.random.default_rng(pictures * 100 + height * 10 + width)
    pixels = rng.integers(0, 256, (pictures, height, width, 3), np.uint8)
    seconds = np.cumsum(rng.random(int(repeats.sum())) + 0.01)
    # A view that is not contiguous, as decoders give them.
    sent = Frames(np.repeat(pixels, 2, axis=2)[:, :, ::2], repeats, seconds)
    got = unpack_frames(receive(b"".join(pack_frames(sent))))
    np.testing.assert_array_equal(got.pixels, pixels)
    np.testing.assert_array_equal(got.repeats, repeats)
    np.testing.assert_array_equal(got.seconds, seconds)
    assert got.pixels.flags.writeable  # torch warns of arrays that are not


def test_sound_and_media_round_trip() -> None:
    samples = np.linspace(-1, 1, 1001, dtype=np.float32)
    got = unpack_sound(receive(b"".join(pack_sound(Sound(samples, -0.25)))))
    np.testing.assert_array_equal(got.samples, samples)
    assert got.start == -0.25
    media = Media(
        duration=1.5, fps=29.97, width=1080, height=1920, video_codec="hevc", audio_codec="aac",
        has_video=True, has_audio=True, corrupt_frames=3, decoder="pyav",
    )  # fmt: skip
    sent = b"".join(pack({"kind": "media", **media_fields(media)}))
    assert unpack_media(receive(sent).header) == media
    nothing = Media(duration=0.0)
    assert unpack_media(receive(message(media_fields(nothing))).header) == nothing


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_choices_round_trip(times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    on_grid, is_key, is_cut = rng.random((3, times)) < 0.5
    on_grid[rng.integers(times)] = True
    work = rng.random(times)
    sent = Choices(np.cumsum(rng.random(times) + 0.01) - 5, on_grid, is_key, is_cut, work)
    got = unpack_choices(receive(b"".join(pack_choices(sent))))
    for name in vars(sent):
        np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))


@pytest.mark.parametrize(
    ("seconds", "work", "flags_sent", "what"),
    [
        ([0.0, 0.0], [1, 1], [1, 1], "rise strictly"),
        ([0.0, 1.0], [1, -1], [1, 1], "0 seconds or more"),
        ([0.0, 1.0], [1, np.nan], [1, 1], "0 seconds or more"),
        ([0.0, 1.0], [1, 1], [2, 6], "one flag"),
        ([0.0, np.nan], [1, 1], [1, 1], "no times"),
        ([0.0, 1e300], [1, 1], [1, 1], "no times"),
    ],
)
def test_choices_that_can_not_be_true(
    seconds: list[float], work: list[float], flags_sent: list[int], what: str
) -> None:
    body = np.array(seconds, "<f8").tobytes() + np.array(work, "<f8").tobytes()
    sent = message({"kind": "choices", "times": 2}, body + bytes(flags_sent))
    with pytest.raises(WireError, match=what):
        unpack_choices(receive(sent))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for bytes_sent in (data, PREFIX.pack(MAGIC, max(len(data) - 8, 0), 8) + data):
        try:
            got = receive(bytes_sent)
        except (EOFError, WireError):
            continue
        assert isinstance(got.header, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["frames", "sound", "media", "error"])},
        optional=dict.fromkeys(
            [
                "pictures",
                "height",
                "width",
                "times",
                "samples",
                "start",
                "media",
                "text",
                "warnings",
            ],
            json_values | st.integers(-2, 3),
        ),
    ),
    st.binary(max_size=64),
)
def test_any_header_is_understood_or_an_error(header: dict[str, object], body: bytes) -> None:
    try:
        got = receive(message(header, body))
        for read in (unpack_media, lambda h: texts(h, "warnings"), lambda h: flags(h, "media")):
            try:
                read(got.header)
            except WireError:
                continue
        if got.kind == "frames":
            unpack_frames(got)
        if got.kind == "sound":
            unpack_sound(got)
    except (EOFError, WireError):
        return


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (
            {"kind": "frames", "pictures": 64, "height": 2048, "width": 2048, "times": 64},
            "bytes of",
        ),
        ({"kind": "frames", "pictures": 1, "height": 2049, "width": 1, "times": 1}, "height"),
        ({"kind": "frames", "pictures": 2, "height": 1, "width": 1, "times": 1}, "times"),
        ({"kind": "frames", "pictures": 1.0, "height": 1, "width": 1, "times": 1}, "pictures"),
        ({"kind": "sound", "samples": 0, "start": 0}, "samples"),
        ({"kind": "sound", "samples": 10**9, "start": 0}, "samples"),
        (["kind"], "not an object"),
    ],
)
def test_headers_that_can_not_be_true(header: object, what: str) -> None:
    with pytest.raises(WireError, match=what):
        receive(message(header))


def test_lengths_are_checked_before_memory_is_taken() -> None:
    for lengths in ((MAX_HEADER_BYTES + 1, 0), (0, 1 << 62)):
        with pytest.raises(WireError, match="a message of"):
            receive(PREFIX.pack(MAGIC, *lengths))


def test_numbers_of_a_header() -> None:
    assert whole({"n": 3}, "n", low=0, high=3) == 3
    assert real({"x": 3}, "x", low=0, high=3) == 3.0
    for value in (4, -1, True, "3", None, 10**400, float("nan"), float("inf")):
        with pytest.raises(WireError):
            whole({"n": value}, "n", low=0, high=3)
        with pytest.raises(WireError):
            real({"n": value}, "n", low=0, high=3)
    with pytest.raises(WireError, match="not JSON"):
        receive(message({"start": float("nan")}))


def test_texts_are_cleaned() -> None:
    # Escape sequences, line ends, a change of writing direction, half a surrogate pair.
    assert (
        clean("a\x1b[2Jb\r\nc\u2028d\u202ee\ud800f")
        == "a\ufffd[2Jb\ufffd\ufffdc\ufffdd\ufffde\ufffdf"
    )
    assert clean("café 日本 🐕") == "café 日本 🐕"
    assert len(clean("x" * 10_000)) < 510
    with pytest.raises(WireError):
        texts({"w": ["x"] * 33}, "w")
    with pytest.raises(WireError):
        texts({"w": [1]}, "w")
