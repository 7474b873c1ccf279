"""What decoding noticed on the way: damaged pieces and things to tell the owner of the file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DecodeReport:
    """Filled while frames and sound are read; complete when the iterators are exhausted.

    Attributes:
        warnings: one line each, for the record.
        damaged_video: numbers of the video packets that could not be decoded, or not cleanly.
        damaged_audio: how many sound packets could not be decoded.
    """

    warnings: list[str] = field(default_factory=list)
    damaged_video: set[int] = field(default_factory=set)
    damaged_audio: int = 0

    @property
    def corrupt_frames(self) -> int:
        """Damaged packets or pictures met so far, for `Media.corrupt_frames`."""
        return len(self.damaged_video) + self.damaged_audio

    def warn(self, text: str) -> None:
        """Adds a warning once, however often it comes up."""
        if text not in self.warnings:
            self.warnings.append(text)
