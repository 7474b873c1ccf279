"""From pictures and sound, as they come from a decoder, to rows of features."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vtag.extractors.base import FrameExtractor, SoundExtractor
from vtag.records import Features, Frames, Sound
from vtag.shared_batches import SharedFrames, SharedSounds, done


class FrameRows:
    """Collects pictures into batches and turns them into rows as they come."""

    def __init__(self, extractor: FrameExtractor | SoundExtractor | None) -> None:
        self._extractor = extractor
        self._rows = _RowsToCome()
        self._seconds: list[np.ndarray[Any, np.dtype[np.float64]]] = []

    def add(self, frames: Frames) -> None:
        """Runs the network on some pictures; one that serves several times runs once."""
        if self._extractor is None:
            return
        # [n, H, W, 3] seen as [n, 3, H, W]: this is channels_last, nothing is copied.
        pixels = torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)
        self._rows.add(_submitted(self._extractor, pixels), torch.from_numpy(frames.repeats))
        self._seconds.append(frames.seconds)

    def features(self, made_by: str) -> Features:
        """All rows so far."""
        assert self._extractor is not None
        return _stack(self._rows.all(), self._seconds, self._extractor.dim, made_by)


class SoundRows:
    """Cuts a stream of sound into the extractor's windows, whatever pieces it comes in.

    The rows are those of the whole sound at once: a window is taken when all its samples are
    there, and the next one starts one hop later.
    """

    # 64 windows are a minute of sound: enough for the dense layers to be worth their memory
    # traffic, and 4 MB at most.
    _BATCH: Final = 64

    def __init__(self, extractor: FrameExtractor | SoundExtractor | None) -> None:
        self._extractor: Any = extractor
        self._waiting = np.zeros(0, np.float32)
        self._start: float | None = None
        self._rows = _RowsToCome()
        self._taken = 0

    def add(self, sound: Sound) -> None:
        """Takes the next piece of the sound."""
        if self._extractor is None:
            return
        if self._start is None:
            self._start = sound.start
        self._waiting = np.concatenate([self._waiting, sound.samples])
        hop, window = self._extractor.hop_samples, self._extractor.window_samples
        while len(self._waiting) >= (self._BATCH - 1) * hop + window:
            self._take(self._BATCH)

    def _take(self, windows: int) -> None:
        hop, window = self._extractor.hop_samples, self._extractor.window_samples
        piece = self._waiting[: (windows - 1) * hop + window]
        self._rows.add(_submitted(self._extractor, torch.from_numpy(piece.copy())))
        self._waiting = self._waiting[windows * hop :].copy()
        self._taken += windows

    def features(self, made_by: str) -> Features:
        """All rows; the rest shorter than a window is dropped, unless it is all there is."""
        hop, window = self._extractor.hop_samples, self._extractor.window_samples
        whole = 1 + (len(self._waiting) - window) // hop if len(self._waiting) >= window else 0
        if whole:
            self._take(whole)
        elif not self._taken and len(self._waiting):
            self._rows.add(_submitted(self._extractor, torch.from_numpy(self._waiting)))
        rows = self._rows.all()
        count = sum(len(some) for some in rows)
        step = hop / self._extractor.rate_hz
        seconds = (self._start or 0.0) + np.arange(count, dtype=np.float64) * step
        return _stack(rows, [seconds], self._extractor.dim, made_by)


class _RowsToCome:
    """Rows in the order in which they were asked for, whenever they come."""

    def __init__(self) -> None:
        self._there: list[Tensor] = []
        self._to_come: deque[tuple[Future[Tensor], Tensor | None]] = deque()

    def add(self, rows: Future[Tensor], repeats: Tensor | None = None) -> None:
        """The next rows, each as often as `repeats` says."""
        self._to_come.append((rows, repeats))
        self._take(lambda: self._to_come[0][0].done())

    def all(self) -> list[Tensor]:
        """float16 [n, D] each; waits for what has not come."""
        self._take(lambda: True)
        return self._there

    def _take(self, may: Callable[[], bool]) -> None:
        while self._to_come and may():
            answer, repeats = self._to_come.popleft()
            rows = answer.result()
            if repeats is not None:
                rows = rows.repeat_interleave(repeats, dim=0)
            self._there.append(rows.half())


def _submitted(extractor: Any, items: Tensor) -> Future[Tensor]:
    """The rows to come: at once from a network of this thread, later from a shared one."""
    if isinstance(extractor, SharedFrames | SharedSounds):
        return extractor.submit(items)
    return done(extractor(items))


def _stack(
    rows: list[Tensor],
    seconds: list[np.ndarray[Any, np.dtype[np.float64]]],
    dim: int,
    made_by: str,
) -> Features:
    if not rows:
        return Features(np.zeros((0, dim), np.float16), np.zeros(0, np.float64), made_by)
    return Features(torch.cat(rows).numpy(), np.concatenate(seconds), made_by)
