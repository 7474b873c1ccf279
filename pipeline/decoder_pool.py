"""Decode children for many threads, and the memory that they take together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import LifoQueue
from typing import Final

from vtag.cores import usable_cores
from vtag.decode_process import DecoderProcess
from vtag.records import Media
from vtag.room import Room

# What a decoder keeps per pixel of its pictures: up to 16 of them to refer to, and those in work.
# Measured at 17 to 21 bytes for H.264 and HEVC of 10 bits, 1080p to 8K; other codecs keep less.
_BYTES_PER_PX: Final = 20
_PX_HD, _PX_4K, _PX_8K = 1920 * 1080, 3840 * 2160, 7680 * 4320


class DecoderPool:
    """Decode children that are lent to one thread at a time, and made when none is free.

    Every core may decode a video in 4K, or one of them a video in 8K beside HD ones: what the
    decoders hold together is `room.max_bytes` at most, however many videos are in work.

    Args:
        backends: as `DecoderProcess` wants it.
    """

    def __init__(self, backends: str) -> None:
        self._backends = backends
        self._idle: LifoQueue[DecoderProcess] = LifoQueue()
        self._all: list[DecoderProcess] = []
        cores = usable_cores()
        self.room = Room(_BYTES_PER_PX * max(cores * _PX_4K, _PX_8K + (cores - 1) * _PX_HD))

    @contextmanager
    def lend(self) -> Iterator[DecoderProcess]:
        """A child that nobody else uses inside the `with`."""
        if self._idle.empty():
            decoder = DecoderProcess(backends=self._backends)
            self._all.append(decoder)
        else:
            decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    @contextmanager
    def memory_for(self, media: Media) -> Iterator[None]:
        """Memory to decode the pictures of a file with; waits until the others leave so much."""
        pixels = (media.width or 0) * (media.height or 0)
        with self.room.reserved(_BYTES_PER_PX * pixels):
            yield

    def close(self) -> None:
        """Ends all children, also those that are at work."""
        for decoder in self._all:
            decoder.close()
        self._all.clear()
        self._idle = LifoQueue()
