"""ResNet-50 as a frozen frame extractor: 2048 numbers from its global average pool.

torch runs it, or OpenVINO on a CPU, or a captured graph on a GPU; see `compute` for which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtag.config import BackendName, PrecisionName
from vtag.cores import usable_cores
from vtag.errors import ConfigError
from vtag.extractors.base import fingerprint_of_parts
from vtag.extractors.batches import Batches
from vtag.extractors.compute import FLOATS, choose_compute
from vtag.extractors.cuda_network import CudaSlot
from vtag.extractors.devices import checked_device
from vtag.extractors.int8_ranges import Int8Ranges, load_ranges
from vtag.extractors.resnet50_network import (
    CROP_PX,
    MEAN,
    STD,
    VARIANTS,
    FoldedResNet50,
    FrozenResNet50,
    folded_resnet50,
    frozen_resnet50,
)
from vtag.extractors.slots import SlotPasses
from vtag.weights import find_weights, sha256_of

# Part of every fingerprint. Raise it when the same weights begin to give other rows.
CODE_VERSION: Final = 1


class ResNet50:
    """A `FrameExtractor` (see base.py); rows are 2048 means of rectified maps, so never negative.

    Args:
        name: a key of `VARIANTS`.
        weights: a file to use in place of the known one; its bytes go into the fingerprint.
        device: "cpu", "cuda", "cuda:1", "mps".
        batch_size: pictures at once; None chooses by the device.
        backend: "torch", "openvino" (CPU only), or "auto", see `choose_compute`.
        precision: "fp32", on a CPU "int8", on a CUDA device "fp16" or "bf16", or "auto".

    Raises:
        ConfigError: no such variant or device, or the device does not compute so.
        WeightsError: the weights are missing, damaged or of another network.
        EnvironmentProblem: the device or OpenVINO is not there.
    """

    dim: Final = 2048
    stream: Final[Literal["visual"]] = "visual"

    def __init__(
        self,
        name: str = "resnet50",
        *,
        weights: Path | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
        backend: BackendName = "torch",
        precision: PrecisionName = "auto",
    ) -> None:
        if name not in VARIANTS:
            raise ConfigError(f"no ResNet-50 {name!r}; there are: {', '.join(VARIANTS)}")
        self.name = name
        self.device = checked_device(device)
        self.compute = choose_compute(self.device, backend=backend, precision=precision)
        self.batches = Batches(batch_size, self.device)
        self._variant = VARIANTS[name]
        path = find_weights(name, path=weights)
        self._weights_sha256 = sha256_of(path)
        self._ranges: Int8Ranges | None = None
        if self.compute.precision == "int8":
            self._ranges = load_ranges(name, weights_sha256=self._weights_sha256)
        self._run = self._runner(folded_resnet50(path, self._variant))

    def _runner(self, folded: FoldedResNet50) -> Callable[[Tensor], Tensor]:
        """What turns crops uint8 [n, 3, 224, 224] on the CPU into rows."""
        if self.compute.backend == "openvino":
            from vtag.extractors.openvino_network import OpenVinoNetwork
            from vtag.extractors.openvino_resnet50 import resnet50_graph

            graph = resnet50_graph(folded, self._variant, self._ranges)
            return self._batched(OpenVinoNetwork(graph, cores=usable_cores()))
        network = frozen_resnet50(folded, self._variant, self.device)
        dtype = FLOATS[self.compute.precision]
        # The weights are channels_last already, see `Convolution`.
        of_crops = CropsNetwork(network.to(dtype), dtype).to(self.device)
        if self.device.type != "cuda":
            return self._batched(lambda crops: of_crops(crops.to(self.device)))

        def slot(size: int) -> CudaSlot:
            return CudaSlot(
                of_crops,
                device=self.device,
                size=size,
                picture=(CROP_PX, CROP_PX),
                precise=dtype == torch.float32,
            )

        passes = SlotPasses(slot, self.batches)
        return lambda crops: passes.run(crops, dim=self.dim)

    def _batched(self, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda crops: self.batches.run(network, crops, dim=self.dim)

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version.

        Where the precision changes rows, "+" and its name follow, so that no row of one is
        served for another; `vtag.records.network_of` cuts that off again.
        """
        network = fingerprint_of_parts(
            {
                "name": self.name,
                "weights": self._weights_sha256,
                "preprocessing": [asdict(self._variant), CROP_PX, MEAN, STD],
                "version": CODE_VERSION,
            }
        )
        if self._ranges is not None:
            return f"{network}+int8-{self._ranges.fingerprint()}"
        precision = self.compute.precision
        return network if precision == "fp32" else f"{network}+{precision}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Rows float32 [n, 2048] of pictures uint8 [n, 3, H, W]; see `FrameExtractor`."""
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels must be uint8 [n, 3, H, W], got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return self._run(resized_crop(pixels, resize_px=self._variant.resize_px))

    def __repr__(self) -> str:
        return f"ResNet50({self.name!r}, device={str(self.device)!r}, {self.fingerprint()})"


class CropsNetwork(nn.Module):
    """Crops uint8 [n, 3, 224, 224] to rows [n, 2048] of `dtype`.

    Makes no tensor out of Python's numbers on the way: a recorded graph could not.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: FrozenResNet50, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        scale, shift = scale_and_shift()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, crops: Tensor) -> Tensor:
        rows: Tensor = self.network(_affine(crops, self.scale, self.shift).to(self.dtype))
        return rows


def resized_crop(pixels: Tensor, *, resize_px: int) -> Tensor:
    """The central 224x224 of pictures [n, 3, H, W] whose short side was brought to `resize_px`.

    Antialiased bilinear, rounded to uint8, as torchvision's presets resize tensors.
    """
    height, width = pixels.shape[2:]
    short = min(height, width)
    if short != resize_px:
        height, width = height * resize_px // short, width * resize_px // short
        resized = F.interpolate(
            pixels.float(), (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        pixels = resized.round_().clamp_(0, 255).to(torch.uint8)
    # round() to even at a half, as torchvision's center_crop does.
    top, left = round((height - CROP_PX) / 2), round((width - CROP_PX) / 2)
    return pixels[:, :, top : top + CROP_PX, left : left + CROP_PX]


def normalised(pixels: Tensor) -> Tensor:
    """(pixels / 255 - mean) / std as float32, channels last, of uint8 [n, 3, H, W]."""
    scale, shift = scale_and_shift()
    return _affine(pixels, scale.to(pixels.device), shift.to(pixels.device))


def scale_and_shift() -> tuple[Tensor, Tensor]:
    """1 / (255 std) and mean / std, float32 [3, 1, 1]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return 1 / (255 * std), mean / std


def _affine(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = pixels.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(scale).sub_(shift)
