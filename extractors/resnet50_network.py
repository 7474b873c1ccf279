"""ResNet-50's layers: batch norms folded in, for whichever runtime is to run them.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. Three sets
of weights, see `VARIANTS`; the cards are in extractors/weights/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtag.extractors.convolution import Convolution, convolution
from vtag.extractors.state import fill

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


@dataclass(frozen=True)
class FoldedBlock:
    """Convolutions 1x1, 3x3, 1x1, each with bias, and the shortcut's where it is none itself."""

    a: nn.Conv2d
    b: nn.Conv2d
    c: nn.Conv2d
    shortcut: nn.Conv2d | None


@dataclass(frozen=True)
class FoldedResNet50:
    """The network as 53 convolutions with bias; a rectifier follows each and each sum.

    The stem has no padding: what it is padded with is `Variant.border`.
    """

    stem: nn.Conv2d
    blocks: tuple[FoldedBlock, ...]


def folded_resnet50(path: Path, variant: Variant) -> FoldedResNet50:
    """The network in `path` (names of torchvision's `resnet50`) without its classifier.

    Raises:
        WeightsError: the file does not hold a ResNet-50 with 1000 classes.
    """
    # On "meta" nothing is allocated and the random initial values cost nothing.
    with torch.device("meta"):
        source = _Unfolded()
    fill(source, path)
    source.eval()
    source.conv1.padding = (0, 0)
    blocks = []
    for stage in (source.layer1, source.layer2, source.layer3, source.layer4):
        for block in stage:
            assert isinstance(block, _UnfoldedBlock)
            if variant.stride_in_1x1:
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
            a, b, c = (_folded(block, f"conv{i}", f"bn{i}") for i in (1, 2, 3))
            projects = hasattr(block, "downsample")
            shortcut = _folded(block, "downsample.0", "downsample.1") if projects else None
            blocks.append(FoldedBlock(a, b, c, shortcut))
    return FoldedResNet50(_folded(source, "conv1", "bn1"), tuple(blocks))


def _folded(parent: nn.Module, conv: str, norm: str) -> nn.Conv2d:
    before, behind = parent.get_submodule(conv), parent.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(behind, nn.BatchNorm2d)
    return fuse_conv_bn_eval(before, behind)


class _UnfoldedBlock(nn.Module):
    """The layers of one block under torchvision's names."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if stride > 1 or width_in != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )


class _Unfolded(nn.Module):
    """The layers under the names of torchvision's `resnet50`, which the files of weights have.

    Not that one itself: importing it takes a second and 130 MB, for names alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, blocks=3, stride=1)
        self.layer2 = self._stage(256, 128, blocks=4, stride=2)
        self.layer3 = self._stage(512, 256, blocks=6, stride=2)
        self.layer4 = self._stage(1024, 512, blocks=3, stride=2)
        self.fc = nn.Linear(2048, 1000)

    @staticmethod
    def _stage(width_in: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
        first = _UnfoldedBlock(width_in, width, stride)
        return nn.Sequential(
            first, *(_UnfoldedBlock(4 * width, width, 1) for _ in range(blocks - 1))
        )


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


def frozen_resnet50(
    folded: FoldedResNet50, variant: Variant, device: torch.device
) -> FrozenResNet50:
    """The same layers as torch runs them fastest on `device`."""
    side = CROP_PX + 2 * CONV1_PADDING_PX
    stem = convolution(folded.stem, activation="relu", device=device, side=(side, side))
    blocks, side = [], CROP_PX // 4
    for block in folded.blocks:
        layers = []
        shortcut = None
        if block.shortcut is not None:
            shortcut = convolution(
                block.shortcut, activation="none", device=device, side=(side, side)
            )
        for conv in (block.a, block.b, block.c):
            layers.append(convolution(conv, activation="relu", device=device, side=(side, side)))
            side //= conv.stride[0]
        blocks.append(Bottleneck(layers[0], layers[1], layers[2], shortcut))
    return FrozenResNet50(stem, blocks, variant.border).to(device).eval()
