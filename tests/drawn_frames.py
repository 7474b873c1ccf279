"""Pictures that tests and golden scripts draw by formula, so that no picture has to be kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def drawn_frames(height: int = 256, width: int = 340) -> NDArray[np.uint8]:
    """uint8 [4, H, W, 3], RGB: waves, a coloured disc, squares, and grain from a fixed rule."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.stack([x / 9, y / 13, (x + y) / 21], axis=-1)
    waves = 127.5 + 100 * np.sin(waves)
    inside = np.hypot(x - width / 2, y - height / 2) < height / 4
    disc = np.where(inside[..., None], [220.0, 60.0, 30.0], [40.0, 90.0, 200.0])
    squares = (x // 32 + y // 32) % 2
    squares = squares[..., None] * [255.0, 230.0, 0.0]
    # A multiplicative hash and not a random generator: those may change between versions.
    grain = (x + 1) * (y + 1)
    grain = np.stack([grain * 7919 % 256, grain * 104729 % 256, grain * 1299709 % 256], axis=-1)
    return np.stack([waves, disc, squares, grain]).astype(np.uint8)
