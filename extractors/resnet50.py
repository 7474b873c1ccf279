"""ResNet-50 as a frozen frame extractor: 2048 numbers from its global average pool.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. Three sets
of weights, see `VARIANTS`; the cards are in extractors/weights/.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.extractors.base import fingerprint_of_parts
from vtag.extractors.batches import Batches
from vtag.extractors.convolution import Activation, Convolution, convolution
from vtag.extractors.devices import checked_device
from vtag.extractors.state import fill
from vtag.weights import find_weights, sha256_of

# Part of every fingerprint. Raise it when the same weights begin to give other rows.
CODE_VERSION: Final = 1

CROP_PX: Final = 224
MEAN: Final = (0.485, 0.456, 0.406)  # RGB of 0..1, ImageNet's, as in torchvision's presets
STD: Final = (0.229, 0.224, 0.225)
CAFFE_MEAN: Final = (123.68, 116.779, 103.939)  # RGB of 0..255, what the 2015 weights were given
CONV1_PADDING_PX: Final = 3


@dataclass(frozen=True)
class Variant:
    """How one set of weights wants its pictures.

    Attributes:
        resize_px: the short side before the centre crop.
        stride_in_1x1: whether a stage's stride of 2 sits in the first 1x1 convolution, as in
            the paper, and not in the 3x3, as in torchvision. With the wrong one, the 2015
            weights lose ten points of top-1.
        border: normalised RGB that the first convolution is padded with. The 2015 weights saw
            Caffe's mean colour there, which is not quite torchvision's.
    """

    resize_px: int
    stride_in_1x1: bool
    border: tuple[float, float, float]


VARIANTS: Final[dict[str, Variant]] = {
    "resnet50": Variant(
        resize_px=256,
        stride_in_1x1=True,
        border=tuple((c / 255 - m) / s for c, m, s in zip(CAFFE_MEAN, MEAN, STD, strict=True)),  # type: ignore[arg-type]
    ),
    "resnet50_v1": Variant(resize_px=256, stride_in_1x1=False, border=(0.0, 0.0, 0.0)),
    "resnet50_v2": Variant(resize_px=232, stride_in_1x1=False, border=(0.0, 0.0, 0.0)),
}


class ResNet50:
    """A `FrameExtractor` (see base.py); rows are 2048 means of rectified maps, so never negative.

    Args:
        name: a key of `VARIANTS`.
        weights: a file to use in place of the known one; its bytes go into the fingerprint.
        device: "cpu", "cuda", "cuda:1", "mps".
        batch_size: pictures at once; None chooses by the device.

    Raises:
        ConfigError: no such variant or device.
        WeightsError: the weights are missing, damaged or of another network.
        EnvironmentProblem: the device is not there.
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
    ) -> None:
        if name not in VARIANTS:
            raise ConfigError(f"no ResNet-50 {name!r}; there are: {', '.join(VARIANTS)}")
        self.name = name
        self.device = checked_device(device)
        self.batches = Batches(batch_size, self.device)
        self._variant = VARIANTS[name]
        path = find_weights(name, path=weights)
        self._weights_sha256 = sha256_of(path)
        self._network = frozen_resnet50(path, self._variant, self.device)

    def fingerprint(self) -> str:
        """12 hex digits that change with the weights, the preprocessing and the code's version."""
        return fingerprint_of_parts(
            {
                "name": self.name,
                "weights": self._weights_sha256,
                "preprocessing": [asdict(self._variant), CROP_PX, MEAN, STD],
                "version": CODE_VERSION,
            }
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Rows float32 [n, 2048] of pictures uint8 [n, 3, H, W]; see `FrameExtractor`."""
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels must be uint8 [n, 3, H, W], got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return self.batches.run(self._rows, pixels, dim=self.dim)

    def _rows(self, pixels: Tensor) -> Tensor:
        cropped = resized_crop(pixels.to(self.device), resize_px=self._variant.resize_px)
        # float16 and not bfloat16: the rows are kept in float16 anyway, and with 8 bits of
        # mantissa a row would differ with the batch size by more than the contract allows.
        fast = self.device.type == "cuda"
        with torch.autocast("cuda", dtype=torch.float16, enabled=fast):
            rows: Tensor = self._network(normalised(cropped))
        return rows

    def __repr__(self) -> str:
        return f"ResNet50({self.name!r}, device={str(self.device)!r}, {self.fingerprint()})"


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
    mean, std = (
        torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD)
    )
    x = pixels.to(torch.float32, memory_format=torch.channels_last)
    return x.mul_(1 / (255 * std)).sub_(mean / std)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the sum with the input (or its projection)."""

    def __init__(
        self, a: Convolution, b: Convolution, c: Convolution, shortcut: Convolution | None
    ) -> None:
        super().__init__()
        self.a, self.b, self.c, self.shortcut = a, b, c, shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = self.b(self.a(x))
        # c may write into what it is given to add: nothing reads x after it.
        out: Tensor = self.c(inner, x if self.shortcut is None else self.shortcut(x))
        return out


class FrozenResNet50(nn.Module):
    """Normalised pictures float32 [n, 3, 224, 224] to rows [n, 2048]."""

    border: Tensor

    def __init__(
        self, stem: Convolution, blocks: list[Bottleneck], border: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.register_buffer("border", torch.tensor(border)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        edge = CONV1_PADDING_PX
        padded = F.pad(x - self.border, (edge, edge, edge, edge)) + self.border
        x = F.max_pool2d(self.stem(padded), kernel_size=3, stride=2, padding=1)
        rows: Tensor = self.blocks(x).mean(dim=(2, 3))
        return rows


def frozen_resnet50(path: Path, variant: Variant, device: torch.device) -> FrozenResNet50:
    """The network in `path` (names of torchvision's `resnet50`) without its classifier.

    Raises:
        WeightsError: the file does not hold a ResNet-50 with 1000 classes.
    """
    from torchvision.models.resnet import resnet50  # here: it costs most of a second

    # On "meta" nothing is allocated and the random initial values cost nothing.
    with torch.device("meta"):
        source = resnet50()
    fill(source, path)
    source.conv1.padding = (0, 0)
    side = CROP_PX + 2 * CONV1_PADDING_PX
    stem = _folded(source, "conv1", "bn1", activation="relu", side=side, device=device)
    blocks, side = [], CROP_PX // 4
    for stage in (source.layer1, source.layer2, source.layer3, source.layer4):
        for block in stage:
            if variant.stride_in_1x1:
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
            blocks.append(_bottleneck(block, side, device))
            side //= block.stride
    return FrozenResNet50(stem, blocks, variant.border).to(device).eval()


def _bottleneck(block: nn.Module, side: int, device: torch.device) -> Bottleneck:
    """torchvision's block with everything folded; `side` is the input's, in pixels."""
    shortcut = None
    if block.downsample is not None:
        shortcut = _folded(
            block, "downsample.0", "downsample.1", activation="none", side=side, device=device
        )
    layers = []
    for i in (1, 2, 3):
        layers.append(
            _folded(block, f"conv{i}", f"bn{i}", activation="relu", side=side, device=device)
        )
        side //= _conv(block, f"conv{i}").stride[0]
    return Bottleneck(layers[0], layers[1], layers[2], shortcut)


def _folded(
    parent: nn.Module,
    conv: str,
    norm: str,
    *,
    activation: Activation,
    side: int,
    device: torch.device,
) -> Convolution:
    behind = parent.get_submodule(norm)
    assert isinstance(behind, nn.BatchNorm2d)
    return convolution(
        _conv(parent, conv), norm=behind, activation=activation, device=device, side=(side, side)
    )


def _conv(parent: nn.Module, name: str) -> nn.Conv2d:
    conv = parent.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv
