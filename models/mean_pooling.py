"""Mean over time: the baseline of YouTube-8M, and the path a linear classifier fits into."""

from __future__ import annotations

from torch import Tensor

from vtag.models.pooling import Pooling, zero_padding


class MeanPooling(Pooling):
    """Mean of the real rows, [B, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(dim=1, keepdim=True).clamp(min=1)
        return zero_padding(rows, mask).sum(dim=1) / count
