"""Frozen networks that turn frames or sound into feature rows.

To add one: write `extractors/<name>.py` with a class that keeps the contract in `base.py`, put
it in the table below and its weights into `vtag.weights.SOURCES`. tests/test_extractors.py then
runs on it by itself.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Protocol

from vtag.config import BackendName, PrecisionName
from vtag.errors import ConfigError
from vtag.extractors.base import FrameExtractor, SoundExtractor
from vtag.extractors.compute import choose_compute
from vtag.extractors.devices import checked_device
from vtag.extractors.resnet50 import ResNet50
from vtag.extractors.resnet50_network import VARIANTS
from vtag.extractors.vggish import VGGish
from vtag.extractors.vggish_small import VGGishSmall

__all__ = ["EXTRACTORS", "FrameExtractor", "SoundExtractor", "build_extractor"]


class Factory(Protocol):
    """Makes an extractor with its weights, or raises."""

    def __call__(
        self, *, weights: Path | None, device: str, batch_size: int | None
    ) -> FrameExtractor | SoundExtractor: ...


EXTRACTORS: Final[dict[str, Factory]] = {
    "resnet50": partial(ResNet50, "resnet50"),
    "resnet50_v1": partial(ResNet50, "resnet50_v1"),
    "resnet50_v2": partial(ResNet50, "resnet50_v2"),
    "vggish": VGGish,
    "vggish_small": VGGishSmall,
}


def build_extractor(
    name: str,
    *,
    device: str = "cpu",
    weights: Path | None = None,
    batch_size: int | None = None,
    backend: BackendName = "torch",
    precision: PrecisionName = "auto",
) -> FrameExtractor | SoundExtractor:
    """The extractor called `name`, with its weights, ready to be called.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps".
        weights: a file to use in place of the known one.
        batch_size: items at once; None chooses by the device.
        backend, precision: how pictures are computed, see `choose_compute`; sound is a
            thirtieth of the work and stays in torch and fp32.

    Raises:
        ConfigError: no such extractor or device, or the device does not compute so.
        WeightsError: the weights are missing, damaged or of another network.
        EnvironmentProblem: the device or OpenVINO is not there.
    """
    if name not in EXTRACTORS:
        raise ConfigError(f"no extractor {name!r}; there are: {', '.join(EXTRACTORS)}")
    if name in VARIANTS:
        return ResNet50(
            name,
            weights=weights,
            device=device,
            batch_size=batch_size,
            backend=backend,
            precision=precision,
        )
    # Also where nothing is seen: the same choice is right or wrong whatever the model reads.
    choose_compute(checked_device(device), backend=backend, precision=precision)
    return EXTRACTORS[name](weights=weights, device=device, batch_size=batch_size)
