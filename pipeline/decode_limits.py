"""How much time and memory one file may cost; known to the parent and to its decode child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vtag.records import Media

_REFERENCE_PX_PER_SECOND: Final = 1920 * 1080 * 30
_MAX_PIXEL_RATE: Final = 64.0  # 8K at 60 pictures a second is 32 times the reference


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """How much a file may cost.

    Every stage (open, pictures, sound) has a deadline of its own, which counts only while the
    parent waits for the child: a parent that is busy with the last pictures takes nothing
    away. It is the larger of the floor and `deadline_per_media_second` x duration, plus the
    time that reading the file once takes from a slow disk.

    Attributes:
        deadline_floor_seconds: no stage is given up earlier.
        deadline_per_media_second: seconds of waiting per second of a video of 1920x1080 at 30
            pictures a second; bigger and faster pictures get more in proportion, smaller ones
            no less. HEVC of that size was measured at 0.26 s on one core, so 2 leaves room for
            a core that is eight times slower or shared, and 8K at 60 gets 64 s per second.
        deadline_ceiling_seconds: no stage gets more, whatever the file says about its length.
        read_bytes_per_second: the slowest disk or network that is waited for.
        start_seconds: how long a new child may take to load its libraries.
        memory_bytes: address space that decoding may take, above what the libraries map. 8K
            was measured at 0.6 to 0.7 GB (HEVC of 10 bits, H.264 with 8 reference pictures).
        resident_bytes: a child that holds so much more between two files than before the first
            is replaced.
        files_per_child: a child is replaced after so many, against slow leaks in decoders.
    """

    deadline_floor_seconds: float = 30.0
    deadline_per_media_second: float = 2.0
    deadline_ceiling_seconds: float = 86_400.0
    read_bytes_per_second: float = 10e6
    start_seconds: float = 120.0
    memory_bytes: int = 1400 << 20
    resident_bytes: int = 512 << 20
    files_per_child: int = 300

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def open_seconds(self, size: int) -> float:
        """Deadline for opening a file of so many bytes; its packets are all read for it."""
        return self._capped(self.deadline_floor_seconds + size / self.read_bytes_per_second)

    def pictures_seconds(self, size: int, media: Media) -> float:
        """Deadline for the pictures of a file."""
        pixel_rate = (media.width or 0) * (media.height or 0) * (media.fps or 0)
        factor = min(max(pixel_rate / _REFERENCE_PX_PER_SECOND, 1.0), _MAX_PIXEL_RATE)
        return self._for(size, media.duration * factor)

    def sound_seconds(self, size: int, media: Media) -> float:
        """Deadline for the sound of a file."""
        return self._for(size, media.duration)

    def _for(self, size: int, media_seconds: float) -> float:
        work = max(self.deadline_floor_seconds, self.deadline_per_media_second * media_seconds)
        return self._capped(work + size / self.read_bytes_per_second)

    def _capped(self, seconds: float) -> float:
        return min(seconds, self.deadline_ceiling_seconds)
