"""A small network with VGGish's input and output, for machines without a graphics card.

A chain of inverted bottlenecks (Sandler et al., "MobileNetV2", CVPR 2018) with squeeze and
excitation in the later half (Howard et al., "Searching for MobileNetV3", ICCV 2019) over the
same 96x64 log-mel picture; the last layer gives 128 numbers without activation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn

from vtag.extractors.base import fingerprint_of_parts
from vtag.extractors.batches import Batches
from vtag.extractors.convolution import Activation, convolution
from vtag.extractors.devices import checked_device
from vtag.extractors.log_mel import (
    BANDS,
    HOP_SAMPLES,
    RATE_HZ,
    SEGMENT_FRAMES,
    WINDOW_SAMPLES,
    log_mel_segments,
)
from vtag.extractors.state import fill
from vtag.weights import find_weights, sha256_of

# Part of every fingerprint. Raise it when the same weights begin to give other rows.
CODE_VERSION: Final = 1


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: trained as three, run as one after `freeze`."""

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out)
        self.activation = activation
        self.stride = stride

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        if residual is not None:
            out = out + residual
        if self.activation == "relu":
            return nn.functional.relu(out)
        return nn.functional.hardswish(out) if self.activation == "hardswish" else out


class SqueezeExcite(nn.Module):
    """Each map times a factor in (0, 1) that is made from the means of all maps."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        factors = self.excite(nn.functional.relu(self.squeeze(x.mean(dim=(2, 3)))))
        return x * nn.functional.hardsigmoid(factors)[:, :, None, None]


class InvertedBottleneck(nn.Module):
    """1x1 to four times the maps, depthwise 3x3, 1x1 back; the input is added where it fits."""

    def __init__(
        self, channels: int, out: int, *, stride: int, excited: bool, activation: Activation
    ) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = ConvNorm(channels, wide, kernel=1, activation=activation)
        self.depthwise = ConvNorm(
            wide, wide, kernel=3, stride=stride, groups=wide, activation=activation
        )
        self.excite = SqueezeExcite(wide, wide // 8) if excited else nn.Identity()
        self.project = ConvNorm(wide, out, kernel=1, activation="none")
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        inner = self.excite(self.depthwise(self.expand(x)))
        out: Tensor = self.project(inner, x if self.adds else None)
        return out


class VGGishSmallNet(nn.Module):
    """The network to train and to run.

    Shape:
        log_mel: float32 [S, 96, 64] (time, band)
        out: float32 [S, 128], before any activation
    """

    def __init__(self) -> None:
        super().__init__()
        self.bands = nn.BatchNorm1d(BANDS)  # every band brought to mean 0 and spread 1
        self.stem = ConvNorm(1, 16, kernel=3, stride=2, activation="hardswish")  # 48x32
        self.blocks = nn.Sequential(
            *_stage(16, 24, blocks=2, excited=False, activation="relu"),  # 24x16
            *_stage(24, 64, blocks=3, excited=True, activation="hardswish"),  # 12x8
            *_stage(64, 192, blocks=4, excited=True, activation="hardswish"),  # 6x4
            ConvNorm(192, 1024, kernel=1, activation="hardswish"),
        )
        # Mean for what goes on all the time, maximum for what happens once.
        self.embedding = nn.Linear(2 * 1024, 128)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.bands(log_mel.transpose(1, 2)).transpose(1, 2)[:, None]
        maps = self.blocks(self.stem(x))
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        rows: Tensor = self.embedding(pooled)
        return rows


def _stage(
    channels: int, out: int, *, blocks: int, excited: bool, activation: Activation
) -> list[nn.Module]:
    """Blocks of which the first halves the picture."""
    first = InvertedBottleneck(channels, out, stride=2, excited=excited, activation=activation)
    rest = [
        InvertedBottleneck(out, out, stride=1, excited=excited, activation=activation)
        for _ in range(blocks - 1)
    ]
    return [first, *rest]


def freeze(network: VGGishSmallNet, device: torch.device) -> VGGishSmallNet:
    """The same network with every `ConvNorm` folded; it can not be trained any more."""
    network.requires_grad_(False).eval()
    side = (SEGMENT_FRAMES, BANDS)
    for name, module in list(network.named_modules()):
        if not isinstance(module, ConvNorm):
            continue
        parent, _, leaf = name.rpartition(".")
        folded = convolution(
            module.conv, norm=module.norm, activation=module.activation, device=device, side=side
        )
        setattr(network.get_submodule(parent), leaf, folded)
        side = (side[0] // module.stride, side[1] // module.stride)
    return network.to(device)


class VGGishSmall:
    """A `SoundExtractor` (see base.py).

    Args:
        weights: a file to use in place of the known one; its bytes go into the fingerprint.
        device: "cpu", "cuda", "cuda:1", "mps".
        batch_size: segments at once; None chooses by the device.

    Raises:
        ConfigError: no such device.
        WeightsError: the weights are missing, damaged or of another network.
        EnvironmentProblem: the device is not there.
    """

    name: Final = "vggish_small"
    dim: Final = 128
    stream: Final[Literal["audio"]] = "audio"
    rate_hz: Final = RATE_HZ
    window_samples: Final = WINDOW_SAMPLES
    hop_samples: Final = HOP_SAMPLES
    hop_seconds: Final = HOP_SAMPLES / RATE_HZ

    def __init__(
        self, *, weights: Path | None = None, device: str = "cpu", batch_size: int | None = None
    ) -> None:
        self.device = checked_device(device)
        self.batches = Batches(batch_size, self.device)
        path = find_weights(self.name, path=weights)
        self._weights_sha256 = sha256_of(path)
        with torch.device("meta"):
            network = VGGishSmallNet()
        fill(network, path)
        self._network = freeze(network, self.device)

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version."""
        return fingerprint_of_parts(
            {"name": self.name, "weights": self._weights_sha256, "version": CODE_VERSION}
        )

    def __call__(self, wave: Tensor) -> Tensor:
        """Rows float32 [S, 128] of sound float32 [N]; see `SoundExtractor`."""
        return self.batches.run(self._rows, log_mel_segments(wave), dim=self.dim)

    def _rows(self, segments: Tensor) -> Tensor:
        rows: Tensor = self._network(segments.to(self.device))
        return rows

    def __repr__(self) -> str:
        return f"VGGishSmall(device={str(self.device)!r}, {self.fingerprint()})"
