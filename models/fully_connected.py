"""The layer that takes the pooled vector to the hidden size."""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn
from torch.nn import functional

from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import normal_parameter

BIAS_STD: Final = 0.01  # WILLOW code

FullyConnectedKind = Literal["linear", "batch_norm", "batch_norm_relu6"]


class FullyConnected(nn.Module):
    """Hidden vector [B, H] of a pooled vector [B, P], followed by dropout.

    "linear" is x W + b, as in every published clustering run of the 2017 entry;
    "batch_norm_relu6" is relu6(BN(x W)), its flag default and the block of the founding blog
    post; "batch_norm" is BN(x W), as in NeXtVLAD.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kind: FullyConnectedKind = "linear",
        dropout: float = 0.0,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.weight = normal_parameter(out_dim, in_dim, std=in_dim**-0.5 if std is None else std)
        self.bias = normal_parameter(out_dim, std=BIAS_STD) if kind == "linear" else None
        self.norm = None if kind == "linear" else MaskedBatchNorm(out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = functional.linear(pooled, self.weight, self.bias)
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.kind == "batch_norm_relu6":
            hidden = functional.relu6(hidden)
        dropped: Tensor = self.dropout(hidden)
        return dropped
