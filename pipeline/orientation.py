"""How decoded pictures must be turned and mirrored to stand as a player shows them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from numpy.typing import NDArray

_MATRIX_BYTES = 36  # nine 32-bit numbers


@dataclass(frozen=True)
class Orientation:
    """First rows and columns change places, then the sides that are named."""

    transposed: bool = False
    left_is_right: bool = False
    top_is_bottom: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> Orientation:
        """That of a decoded picture: from its container's track header or its own EXIF data."""
        try:
            data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV has no name for another kind of side data on this frame
            return cls.from_turn(frame.rotation)
        return cls.from_matrix(bytes(data)) if isinstance(data, SideData) else cls()

    @classmethod
    def from_turn(cls, degrees: float) -> Orientation:
        """From degrees counter-clockwise, rounded to quarter turns; nonsense is ignored."""
        quarters = round(degrees / 90) % 4 if -360 <= degrees <= 360 else 0
        return cls(quarters % 2 == 1, quarters >= 2, quarters in (1, 2))

    @classmethod
    def from_matrix(cls, data: bytes) -> Orientation:
        """From a display matrix in the machine's byte order, rounded to quarter turns.

        (ISO/IEC 14496-12, 6.2.2: a stored point (p, q) is shown at (a p + c q, b p + d q).)
        A matrix that shows nothing is ignored, as players do.
        """
        if len(data) < _MATRIX_BYTES:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", data[:_MATRIX_BYTES])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @property
    def is_upright(self) -> bool:
        """Whether nothing needs to be done."""
        return self == Orientation()

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """[H, W, ...] as shown."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.left_is_right:
            pixels = pixels[:, ::-1]
        if self.top_is_bottom:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)
