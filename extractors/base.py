"""The two contracts that every extractor keeps.

An extractor is a frozen network with its preprocessing. It is made with its weights or not at
all, may be called from several threads at once, and changes nothing outside itself.
tests/test_extractors.py holds every entry of `vtag.extractors.EXTRACTORS` to what is said here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor


class FrameExtractor(Protocol):
    """Turns pictures into rows."""

    @property
    def name(self) -> str:
        """The key in `EXTRACTORS`."""

    @property
    def dim(self) -> int:
        """D, the length of a row."""

    @property
    def stream(self) -> Literal["visual"]:
        """What it reads."""

    @property
    def device(self) -> torch.device:
        """Where the network runs."""

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """One row for each picture, in order, float32 [n, D] on the CPU and without gradient.

        A row depends on its own picture only, not on its neighbours, their number or the
        batch size (1e-4 of its norm on the CPU).

        Args:
            pixels: uint8 [n, 3, H, W], RGB, on the CPU, n >= 0, any H and W; a short side of 256
                costs no resizing, and a [n, H, W, 3] array seen through `permute` no copy.

        Raises:
            ValueError: `pixels` is something else.
            EnvironmentProblem: the device has not even memory for one picture.
        """


class SoundExtractor(Protocol):
    """Turns sound into rows, one for each window of 15 600 samples, every 15 360 samples."""

    @property
    def name(self) -> str:
        """The key in `EXTRACTORS`."""

    @property
    def dim(self) -> int:
        """D, the length of a row."""

    @property
    def stream(self) -> Literal["audio"]:
        """What it reads."""

    @property
    def device(self) -> torch.device:
        """Where the network runs."""

    @property
    def rate_hz(self) -> int:
        """The only sampling rate it takes."""

    @property
    def window_samples(self) -> int:
        """How much sound one row is made of."""

    @property
    def hop_samples(self) -> int:
        """From the start of a row's window to the next row's."""

    @property
    def hop_seconds(self) -> float:
        """The same in seconds."""

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version."""

    def __call__(self, wave: Tensor) -> Tensor:
        """One row for each whole window, in order, float32 [S, D] on the CPU, without gradient.

        Sound that is shorter than one window is filled up with zeros to one; a rest behind
        the last whole window is left out; no sample gives no row.

        Args:
            wave: float32 [N] in [-1, 1], mono, at `rate_hz`, on the CPU.

        Raises:
            ValueError: `wave` is something else.
            EnvironmentProblem: the device has not even memory for one window.
        """


def fingerprint_of_parts(parts: Mapping[str, object]) -> str:
    """12 hex digits that change when any value of `parts` (plain JSON values) does."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
