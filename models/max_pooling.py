"""Maximum over time: what was seen once is seen."""

from __future__ import annotations

from torch import Tensor

from vtag.models.pooling import Pooling, masked_max


class MaxPooling(Pooling):
    """Largest value per column over the real rows, [B, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        return masked_max(rows, mask)
