"""How much each row belongs to each cluster: the first half of all learnable poolings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import normal_parameter, zero_padding

AssignmentNorm = Literal["batch", "bias"]


class SoftAssignment(nn.Module):
    """softmax over clusters of BN(x W), zero at padding (arXiv 1706.06905, WILLOW code).

    Batch norm stands for the bias of the formula; `norm="bias"` has the plain bias. Weights are
    drawn from N(0, 1/√D); they are not tied to the cluster centres.

    Shape:
        rows: float [B, T, D], zeros at padding
        mask: bool  [B, T]
        out:  float [B, T, K], sums to 1 over K at real rows
    """

    def __init__(self, dim: int, clusters: int, norm: AssignmentNorm = "batch") -> None:
        super().__init__()
        self.weight = normal_parameter(dim, clusters, std=dim**-0.5)
        self.norm = MaskedBatchNorm(clusters) if norm == "batch" else None
        self.bias = normal_parameter(clusters, std=dim**-0.5) if norm == "bias" else None

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        logits = rows @ self.weight
        if self.norm is not None:
            logits = self.norm(logits, mask)
        if self.bias is not None:
            logits = logits + self.bias
        # Padding is silenced after the softmax: that one runs over clusters, so a row of -inf
        # would turn into NaN instead of into nothing.
        return zero_padding(logits.softmax(dim=-1), mask)


def per_cluster_unit(columns: Tensor, summands: Tensor) -> Tensor:
    """Columns [B, D, K] with each cluster's D values scaled to length 1 (intra-normalisation).

    An item whose sums have one summand only (`summands` [B], the number of rows summed) is
    left as it is. There a column is a_k (x - c_k), so its unit vector no longer holds a_k: the
    assignment would neither count nor learn, and NetRVLAD would give K copies of x / ‖x‖.
    Without the scaling the clusters keep their shares.
    """
    scaled = functional.normalize(columns, dim=1)
    return torch.where((summands > 1).view(-1, 1, 1), scaled, columns)


def flat_unit(columns: Tensor) -> Tensor:
    """[B, D, K] as unit vectors [B, D·K], cluster index fastest as in the paper's code."""
    return functional.normalize(columns.flatten(1), dim=-1)
