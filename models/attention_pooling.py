"""Gated attention pooling: a learnt weighted mean of the rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtag.models.pooling import Pooling, normal_parameter, require_at_least_one, zero_padding


class AttentionPooling(Pooling):
    """Weighted means of the rows, one per head: [B, heads·D].

    Weights are softmax over the real rows of w·(tanh(V x) ∘ σ(U x)) (Ilse et al. 2018, arXiv
    1802.04712 eq. 9). With w = 0 it is the mean.
    """

    def __init__(self, dim: int, *, heads: int = 4, cells: int = 128) -> None:
        require_at_least_one("attention", heads=heads, cells=cells)
        super().__init__(dim, heads * dim)
        self.content = nn.Linear(dim, cells)
        self.gate = nn.Linear(dim, cells)
        self.score = normal_parameter(cells, heads, std=cells**-0.5)

    def weights(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Share of each row in each head, [B, T, heads]: sums to 1 over real rows, or is 0."""
        rows = zero_padding(rows, mask)
        score = (self.content(rows).tanh() * self.gate(rows).sigmoid()) @ self.score
        # The lowest finite number and not -inf: a softmax over -inf alone is NaN, here and in
        # its gradient.
        score = score.masked_fill(~mask.unsqueeze(-1), torch.finfo(score.dtype).min)
        return zero_padding(score.softmax(dim=1), mask)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights(rows, mask)
        return (weights.transpose(1, 2) @ zero_padding(rows, mask)).flatten(1)
