"""Batch normalisation over the real rows of a padded batch."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

# TF-slim's defaults as the 2017 entry left them (frame_level_models.py, WILLOW code): epsilon
# 0.001 and moving-average decay 0.999, which is a momentum of 0.001 in PyTorch's sense.
BATCH_NORM_EPS: Final = 1e-3
BATCH_NORM_MOMENTUM: Final = 1e-3


class MaskedBatchNorm(nn.Module):
    """Rows normalised per column with the statistics of the real rows only.

    Padding would pull mean and variance towards whatever the padding holds, and a model trained
    on long clips would then score short ones differently.

    While training, a batch with fewer than two real rows is normalised by the running
    statistics and does not change them: one row has no variance, and would always come out as
    the bias alone.

    Shape:
        rows: float [..., D]
        mask: bool  [...], True where a row is real; None where all are
        out:  float [..., D]; what stands at padding is not defined
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, dim: int, *, eps: float = BATCH_NORM_EPS, momentum: float = BATCH_NORM_MOMENTUM
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._batch_statistics(rows, mask)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return rows * scale + (self.bias - mean * scale)

    def _batch_statistics(self, rows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [D] of the real rows; moves the running ones towards them."""
        flat = rows.flatten(0, -2)
        if mask is None:
            mask = torch.ones(rows.shape[:-1], dtype=torch.bool, device=rows.device)
        real = mask.flatten().unsqueeze(-1)
        count = real.sum()
        mean = flat.masked_fill(~real, 0).sum(dim=0) / count.clamp(min=1)
        var = (flat - mean).masked_fill(~real, 0).square().sum(dim=0) / count.clamp(min=1)
        enough = count >= 2
        with torch.no_grad():
            # where() and not if: the count lives on the device, and reading it would wait for it.
            step = torch.where(enough, self.momentum, 0.0).to(mean.dtype)
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.detach(), step)
            self.running_var.lerp_(unbiased.detach(), step)
        return (
            torch.where(enough, mean, self.running_mean),
            torch.where(enough, var, self.running_var),
        )

    def extra_repr(self) -> str:
        return f"{len(self.bias)}, eps={self.eps}, momentum={self.momentum}"


def set_batch_norm_momentum(net: nn.Module, momentum: float) -> None:
    """Sets how fast the running statistics of all batch norms of `net` follow the batches.

    The paper's 0.001 needs thousands of steps. A fine-tune of some hundred steps wants 0.05 to
    0.1; otherwise evaluation still normalises by the statistics of before.
    """
    for module in net.modules():
        if isinstance(module, MaskedBatchNorm):
            module.momentum = momentum
