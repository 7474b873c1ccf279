"""ResNet-50 as an OpenVINO graph, in fp32 or int8. OpenVINO comes with the extra `openvino`.

The graph is written down and not converted: it takes a tenth of a second, needs no tracing and
no calibration on the user's machine, and is the same on every one.

int8 is uniform and affine as in Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018: unsigned activations per tensor, signed
weights per output channel; OpenVINO reads it from FakeQuantize operations around each convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vtag.extractors.int8_ranges import Int8Ranges
from vtag.extractors.openvino_silent import openvino as ov
from vtag.extractors.openvino_silent import opset13 as op
from vtag.extractors.resnet50_network import (
    CONV1_PADDING_PX,
    CROP_PX,
    MEAN,
    STD,
    FoldedBlock,
    FoldedResNet50,
    Variant,
)

Floats = NDArray[np.float32]

LEVELS: Final = 256
# Processors without VNNI add two products of 8 bits in 16: 255 times two weights that sum to more
# than this overflows, silently: 4 of 50 pictures got other rows there, by up to 3 % of their norm.
MAX_PAIR: Final = 32767 / 255


def resnet50_graph(
    folded: FoldedResNet50, variant: Variant, ranges: Int8Ranges | None = None
) -> ov.Model:
    """Crops uint8 [n, 224, 224, 3] to rows float32 [n, 2048]; int8 inside if there are `ranges`.

    What a picture is normalised by goes into the first convolution, so that padding is by zeros.
    In int8 the stem and the first block stay in fp32: a twelfth of the work, two thirds of the
    error (1 - cosine of features 0.0023 with them, 0.0008 without, 50 photographs and frames).
    """
    pixels = op.parameter([-1, CROP_PX, CROP_PX, 3], ov.Type.u8)
    kernel, bias, offset = _stem_of_pixels(folded.stem, variant)
    x = op.transpose(op.convert(pixels, "f32"), op.constant(np.array([0, 3, 1, 2])))
    x = op.subtract(x, op.constant(offset))
    pad, stride = CONV1_PADDING_PX, folded.stem.stride[0]
    x = op.relu(_convolved(x, kernel, bias, stride=stride, pad=pad, quantise=False))
    x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    for at, block in enumerate(folded.blocks):
        x = _block(x, block, {} if ranges is None else ranges.blocks[at])
    rows = op.reduce_mean(x, op.constant(np.array([2, 3])), False)
    return ov.Model([rows], [pixels], "resnet50")


def _stem_of_pixels(stem: nn.Conv2d, variant: Variant) -> tuple[Floats, Floats, Floats]:
    """Kernel and bias for (pixels - offset), padded with zeros, and that offset [1, 3, 1, 1].

    With p the pixels, b the border's colour and * the convolution:
    w * pad((p / 255 - mean) / std) = w / (255 std) * pad0(p - 255 (mean + b std)) + sum(w b).
    """
    mean, std, border = (np.array(v, np.float32) for v in (MEAN, STD, variant.border))
    weight, bias = _arrays(stem)
    bias = bias + (weight * border[None, :, None, None]).sum(axis=(1, 2, 3))
    offset = 255 * (mean + border * std)
    return weight / (255 * std)[None, :, None, None], bias, offset[None, :, None, None]


def _block(x: ov.Node, block: FoldedBlock, ranges: Mapping[str, float]) -> ov.Node:
    """1x1, 3x3, 1x1 and the sum with the input (or its projection); fp32 where no range is."""
    quantise = "a" in ranges
    inner = op.relu(_of_module(x, block.a, quantise=quantise))
    inner = _fake_quantised(inner, ranges.get("a"))
    inner = op.relu(_of_module(inner, block.b, quantise=quantise))
    inner = _fake_quantised(inner, ranges.get("b"))
    inner = _of_module(inner, block.c, quantise=quantise)
    if block.shortcut is not None:
        x = _of_module(x, block.shortcut, quantise=quantise)
        x = _fake_quantised(x, ranges.get("shortcut"), kind="signed")
    return _fake_quantised(op.relu(op.add(inner, x)), ranges.get("end"))


def _of_module(x: ov.Node, conv: nn.Conv2d, *, quantise: bool) -> ov.Node:
    weight, bias = _arrays(conv)
    pad = int(conv.padding[0])
    return _convolved(x, weight, bias, stride=conv.stride[0], pad=pad, quantise=quantise)


def _convolved(
    x: ov.Node, weight: Floats, bias: Floats, *, stride: int, pad: int, quantise: bool
) -> ov.Node:
    kernel = _quantised_weight(weight) if quantise else op.constant(weight)
    out = op.convolution(x, kernel, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])
    return op.add(out, op.constant(bias.reshape(1, -1, 1, 1)))


def _fake_quantised(
    x: ov.Node, magnitude: float | None, *, kind: Literal["unsigned", "signed"] = "unsigned"
) -> ov.Node:
    """`x` rounded to 256 levels between 0 (or the negative) and `magnitude`, if there is one."""
    if magnitude is None:
        return x
    low = 0.0 if kind == "unsigned" else -magnitude * 128 / 127
    ends = [op.constant(np.full((1, 1, 1, 1), end, np.float32)) for end in (low, magnitude)]
    return op.fake_quantize(x, *ends, *ends, LEVELS)


def _quantised_weight(weight: Floats) -> ov.Node:
    """`weight` as whole numbers of 8 bits times a step per output channel."""
    step = weight_steps(weight).reshape(-1, 1, 1, 1)
    rounded = np.clip(np.round(weight / step), -127, 127) * step
    ends = [op.constant(end * step) for end in (np.float32(-128), np.float32(127))]
    return op.fake_quantize(op.constant(rounded.astype(np.float32)), *ends, *ends, LEVELS)


def weight_steps(weight: Floats) -> Floats:
    """The smallest step of each output channel, float32 [C_out], that can not overflow.

    Kernels for 8 bits multiply groups of four neighbouring input channels and add them in
    pairs, the first two and the last two. So it is the sum of a pair that must stay small, and
    a large weight beside a small one keeps nearly all of its bits.
    """
    out, channels = weight.shape[:2]
    padded = np.zeros((out, channels + channels % 2, *weight.shape[2:]), np.float32)
    padded[:, :channels] = weight
    largest = np.abs(weight).reshape(out, -1).max(axis=1) / 127
    for part in (np.maximum(padded, 0), np.maximum(-padded, 0)):
        pairs = (part[:, 0::2] + part[:, 1::2]).reshape(out, -1).max(axis=1)
        # One less: each of the two may be rounded up by a half.
        largest = np.maximum(largest, pairs / (MAX_PAIR - 1))
    steps: Floats = np.maximum(largest, np.float32(1e-12)).astype(np.float32)
    return steps


def _arrays(conv: nn.Conv2d) -> tuple[Floats, Floats]:
    assert conv.bias is not None
    with torch.no_grad():
        return conv.weight.contiguous().numpy(), conv.bias.numpy()
