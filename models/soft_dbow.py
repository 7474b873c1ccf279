"""Soft-DBoW and its gated form: a learnable bag of words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import (
    Pooling,
    masked_max,
    normal_parameter,
    require_at_least_one,
    zero_padding,
)
from vtag.models.soft_assignment import AssignmentNorm, SoftAssignment


class SoftDBoW(Pooling):
    """How much of each word the rows hold: [B, K] of length 1 (arXiv 1706.06905 and its code).

    S[k] = Σ_t a_k(x_t). With `with_max` the largest share per word, scaled to length 1 as well,
    stands behind it: [B, 2·K].
    """

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 4096,
        assignment: AssignmentNorm = "batch",
        with_max: bool = False,
    ) -> None:
        require_at_least_one("soft_dbow", clusters=clusters)
        super().__init__(dim, 2 * clusters if with_max else clusters)
        self.with_max = with_max
        self.assign = SoftAssignment(dim, clusters, assignment)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        share = self.assign(zero_padding(rows, mask), mask)
        words = functional.normalize(share.sum(dim=1), dim=-1)
        if not self.with_max:
            return words
        return torch.cat([words, functional.normalize(masked_max(share, mask), dim=-1)], dim=-1)


class GatedSoftDBoW(Pooling):
    """Soft-DBoW whose words are gated by their own maxima: [B, K] of length 1.

    s = Σ_t a(x_t), m = L2(max_t a(x_t)), gate = σ(BN(m R Q)), out = L2(gate ∘ s), with R
    [K, D] and Q [D, K]: a gate of rank D instead of a K x K matrix (WILLOW code). R ~ N(0,
    1/√K), Q ~ N(0, 1/√D), each by the size of what it reads.
    """

    def __init__(
        self, dim: int, *, clusters: int = 4096, assignment: AssignmentNorm = "batch"
    ) -> None:
        require_at_least_one("gated_soft_dbow", clusters=clusters)
        super().__init__(dim, clusters)
        self.assign = SoftAssignment(dim, clusters, assignment)
        self.reduce = normal_parameter(clusters, dim, std=clusters**-0.5)
        self.expand = normal_parameter(dim, clusters, std=dim**-0.5)
        self.norm = MaskedBatchNorm(clusters)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        share = self.assign(zero_padding(rows, mask), mask)
        largest = functional.normalize(masked_max(share, mask), dim=-1)
        # Items without a row are kept out of the statistics, as padding is.
        gate = self.norm(largest @ self.reduce @ self.expand, mask.any(dim=1)).sigmoid()
        return functional.normalize(gate * share.sum(dim=1), dim=-1)
