"""Lengths from headers, by reads that stay small whatever the size of the object."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import draw_clip

from vtag.source_probe import duration_of


class Counted:
    """An object that counts what is read of it, with a hole of many bytes in its middle."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.taken = 0

    def __call__(self, start: int, end: int) -> bytes:
        part = self.data[start:end]
        self.taken += len(part)
        return part


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("b.mp4", {"movflags": "faststart"}), ("c.mov", {}), ("d.mkv", {})],
)
def test_the_length_of_a_drawn_clip(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = draw_clip(tmp_path / name, seconds=3, container_options=options)
    read = Counted(path.read_bytes())
    assert duration_of(read, len(read.data)) == pytest.approx(3.0, abs=0.1)
    assert read.taken <= 3 << 14


def test_of_a_large_object_little_is_read(tmp_path: Path) -> None:
    data = draw_clip(tmp_path / "a.mp4", seconds=3).read_bytes()
    moov = data.index(b"moov") - 4
    # The same file with 50 MB more of pictures before its index.
    padded = data[:moov] + (50_000_008).to_bytes(4, "big") + b"mdat" + bytes(50_000_000)
    read = Counted(padded + data[moov:])
    assert duration_of(read, len(read.data)) == pytest.approx(3.0, abs=0.1)
    assert read.taken < 100_000


@pytest.mark.parametrize("data", [b"", b"RIFF....AVI ", b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3"])
def test_what_does_not_say_is_unknown(data: bytes) -> None:
    assert duration_of(Counted(data), len(data)) is None


@given(st.binary(max_size=200), st.sampled_from([b"\0\0\0\x18ftyp", b"\x1a\x45\xdf\xa3\x84", b""]))
def test_noise_never_does_harm(noise: bytes, head: bytes) -> None:
    data = head + noise
    read = Counted(data)
    found = duration_of(read, len(data))
    assert found is None or found > 0
    assert read.taken <= 70 * (1 << 14)
