"""DBoF, the frame-level baseline of YouTube-8M: deep bag of frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vtag.errors import ConfigError
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import (
    Pooling,
    masked_max,
    normal_parameter,
    require_at_least_one,
    zero_padding,
)

DBoFActivation = Literal["relu6", "glu"]


class DBoF(Pooling):
    """Mean and maximum over time of a sparse projection: [B, 2·K], two halves of length 1.

    relu6(BN(x W)) per row, W ~ N(0, 1/√D) (google/youtube-8m; arXiv 1706.06905 code). "glu"
    projects to 2·K columns and lets the second half gate the first through a sigmoid.
    """

    def __init__(
        self, dim: int, *, clusters: int = 1024, activation: DBoFActivation = "relu6"
    ) -> None:
        require_at_least_one("dbof", clusters=clusters)
        if activation not in ("relu6", "glu"):
            raise ConfigError(f"pooling 'dbof': activation is relu6 or glu, got {activation!r}")
        super().__init__(dim, 2 * clusters)
        self.activation = activation
        columns = 2 * clusters if activation == "glu" else clusters
        self.weight = normal_parameter(dim, columns, std=dim**-0.5)
        self.norm = MaskedBatchNorm(columns)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        words = self.norm(zero_padding(rows, mask) @ self.weight, mask)
        words = functional.relu6(words) if self.activation == "relu6" else functional.glu(words)
        count = mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = zero_padding(words, mask).sum(dim=1) / count
        halves = [functional.normalize(half, dim=-1) for half in (mean, masked_max(words, mask))]
        return torch.cat(halves, dim=-1)
