"""Convolutions of frozen networks: batch norm folded in, sum and activation in the same pass.

On x86 CPUs the weights are laid out once as oneDNN wants them, and the operator that
`torch.compile` would choose is called: a third less time than the same network in plain torch, for
a twentieth of a second at start and no compiler. Elsewhere it is `conv2d`.
"""

from __future__ import annotations

import platform
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation = Literal["none", "relu", "hardswish"]


class Convolution(nn.Module):
    """activation(conv(x) [+ residual]), without gradient.

    Shape:
        x: float32 [n, C_in, H, W]
        residual: like the output; may be overwritten
        out: float32 [n, C_out, H', W']
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation) -> None:
        super().__init__()
        self.conv = conv.requires_grad_(False)
        conv.weight.data = conv.weight.contiguous(memory_format=torch.channels_last)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out: Tensor = self.conv(x)
        if residual is not None:
            out = out.add_(residual)
        if self.activation == "relu":
            return out.relu_()
        return F.hardswish(out) if self.activation == "hardswish" else out


class PackedConvolution(Convolution):
    """The same with oneDNN's own weight layout; keeps no second copy of the weights."""

    def __init__(self, conv: nn.Conv2d, activation: Activation, *, side: tuple[int, int]) -> None:
        super().__init__(conv, activation)
        self._geometry = (
            [int(p) for p in conv.padding],
            list(conv.stride),
            list(conv.dilation),
            conv.groups,
        )
        padding, stride, dilation, groups = self._geometry
        # The layout is chosen for this input size and works, slower, for any other.
        size = [8, conv.in_channels, *side]
        self._weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            conv.weight.to_mkldnn(), padding, stride, dilation, groups, size
        )
        self._bias = conv.bias
        del self.conv

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        operators = torch.ops.mkldnn
        if residual is None:
            out: Tensor = operators._convolution_pointwise(
                x, self._weight, self._bias, *self._geometry, self.activation, [], ""
            )
            return out
        after = None if self.activation == "none" else self.activation
        out = operators._convolution_pointwise_(
            residual, x, self._weight, self._bias, *self._geometry, "add", 1.0, after, [], ""
        )
        return out


def convolution(
    conv: nn.Conv2d,
    *,
    norm: nn.BatchNorm2d | None = None,
    activation: Activation,
    device: torch.device,
    side: tuple[int, int],
) -> Convolution:
    """`conv`, then `norm` by its running statistics, then `activation`, as fast as `device` can.

    Args:
        side: H and W of the usual input, in pixels.
    """
    if norm is not None:
        conv = fuse_conv_bn_eval(conv.eval(), norm.eval())
    if device.type == "cpu" and packs():
        return PackedConvolution(conv, activation, side=side)
    return Convolution(conv, activation).to(device)


def packs() -> bool:
    """Whether this torch build has the packed operators on this processor."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    )
