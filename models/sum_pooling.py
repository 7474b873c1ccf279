"""Sum over time: longer clips give longer vectors."""

from __future__ import annotations

from torch import Tensor

from vtag.models.pooling import Pooling, zero_padding


class SumPooling(Pooling):
    """Sum of the real rows, [B, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        return zero_padding(rows, mask).sum(dim=1)
