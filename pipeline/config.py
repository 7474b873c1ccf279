"""Settings: frozen, checked when made, with a fingerprint that goes into cache keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal, SupportsIndex, get_args

from vtag.errors import ConfigError

SamplingMode = Literal["uniform", "keyframes", "adaptive"]
DecoderName = Literal["auto", "decord", "pyav", "torchcodec"]
BackendName = Literal["auto", "torch", "openvino"]  # what runs the picture network
PrecisionName = Literal["auto", "fp32", "fp16", "bf16", "int8"]

# Part of every sampling fingerprint. Raise it when the same settings begin to pick other
# frames or other pixels, so that no feature of the old rule is served for the new one.
SAMPLING_VERSION: Final = 1

FRAME_SIDE_PX: Final = 256  # short side of every decoded frame; the networks crop 224 from it


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ConfigError(f"{name} is a whole number, got {value!r}")
    return value.__index__()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How much of a video is looked at.

    Changing any field changes `fingerprint()`, and with it every feature-cache key.

    Raises:
        ConfigError: a field makes no sense.
    """

    frames_per_second: float = 1.0  # YouTube-8M samples one frame a second
    max_frames: int = 300  # a longer video is covered evenly by so many frames, not cut off
    mode: SamplingMode = "uniform"
    decoder: DecoderName = "auto"

    def __post_init__(self) -> None:
        # One setting, one fingerprint: 1, 1.0 and numpy's are the same.
        object.__setattr__(self, "frames_per_second", float(self.frames_per_second))
        object.__setattr__(self, "max_frames", _whole("max frames", self.max_frames))
        if not 0 < self.frames_per_second <= 1000:
            raise ConfigError(
                f"frames per second must be above 0 and at most 1000, got {self.frames_per_second}"
            )
        if not 1 <= self.max_frames <= 100_000:
            raise ConfigError(f"max frames must be 1 to 100000, got {self.max_frames}")
        if self.mode not in get_args(SamplingMode):
            raise ConfigError(
                f"no sampling {self.mode!r}; there are: {', '.join(get_args(SamplingMode))}"
            )
        if self.decoder not in get_args(DecoderName):
            raise ConfigError(
                f"no decoder {self.decoder!r}; there are: {', '.join(get_args(DecoderName))}"
            )

    def fingerprint(self) -> str:
        """12 hex digits that change exactly when a setting (or the sampling rule) does.

        >>> Sampling().fingerprint() == Sampling(max_frames=10).fingerprint()
        False
        """
        text = json.dumps({**asdict(self), "version": SAMPLING_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Moments(Sampling):
    """Given times instead of a rule: for pictures that people look at, never for features.

    Attributes:
        times: seconds on the video's clock; the first `max_frames` of them count.
    """

    times: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which labels of a video become its tags.

    Args:
        top_k: so many at most, the best ones; None for all.
        threshold: replaces every label's own threshold; 0 takes every label. Tags then come by
            score alone; without it, what a more specific tag implies comes behind.
        min_score: nothing below becomes a tag, whatever its threshold.
        thresholds: id or name of a label to a threshold of its own, which goes before
            `threshold`.
    """

    top_k: int | None = 20
    threshold: float | None = None
    min_score: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.top_k is not None:
            object.__setattr__(self, "top_k", _whole("top k", self.top_k))
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top k must be 1 or more, got {self.top_k}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"a threshold is between 0 and 1, got {self.threshold}")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"min score is between 0 and 1, got {self.min_score}")
        object.__setattr__(self, "thresholds", dict(self.thresholds))
        for label, threshold in self.thresholds.items():
            if not 0 <= threshold <= 1:
                raise ConfigError(f"the threshold of {label!r} is between 0 and 1, got {threshold}")
