"""Context gating: a vector weighted by what the whole of it says."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtag.errors import ConfigError
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import normal_parameter

GateFunction = Literal["sigmoid", "relu", "tanh"]
GateNorm = Literal["batch", "bias", "none"]

OPEN_GATE: Final = 60.0  # pre-activation at which a sigmoid is exactly 1 in float32 and float64


class GateLogits(nn.Module):
    """Pre-activations of gates: BN(x W), x W + b, or x W.

    In the authors' code batch norm stands for the bias. W ~ N(0, 1/√n), n the input width.

    Args:
        rank: W as a product of two factors of this rank; None for the full matrix.
        remove_diagonal: leave out diag(W) ∘ x, so that no unit gates itself. Full square W only.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        norm: GateNorm = "batch",
        rank: int | None = None,
        remove_diagonal: bool = False,
    ) -> None:
        super().__init__()
        if remove_diagonal and (rank is not None or in_dim != out_dim):
            raise ConfigError("a gate without its diagonal needs a full square matrix, no rank")
        self.remove_diagonal = remove_diagonal
        middle = out_dim if rank is None else rank
        self.weight = normal_parameter(in_dim, middle, std=in_dim**-0.5)
        self.expand = None if rank is None else normal_parameter(rank, out_dim, std=rank**-0.5)
        self.norm = MaskedBatchNorm(out_dim) if norm == "batch" else None
        self.bias = nn.Parameter(torch.zeros(out_dim)) if norm == "bias" else None

    def forward(self, inputs: Tensor) -> Tensor:
        logits = inputs @ self.weight
        if self.remove_diagonal:
            logits = logits - self.weight.diagonal() * inputs
        if self.expand is not None:
            logits = logits @ self.expand
        if self.norm is not None:
            logits = self.norm(logits)
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def hold(self, logit: float) -> None:
        """Makes every gate give `logit` for every input.

        Raises:
            ConfigError: there is neither a bias nor a batch norm to hold it.
        """
        bias = self.bias if self.norm is None else self.norm.bias
        if bias is None:
            raise ConfigError("gates without bias and batch norm can not be held open")
        (self.weight if self.expand is None else self.expand).zero_()
        bias.fill_(logit)
        if self.norm is not None:
            self.norm.running_mean.zero_()


class ContextGating(nn.Module):
    """Y = f(x W + b) ∘ x, [B, n] to [B, n] (arXiv 1706.06905 eq. 3; f a sigmoid).

    With a sigmoid a gate lies in (0, 1) and can only shrink; relu, which the founding blog post
    offers, has no such bound. Options as in `GateLogits`.
    """

    def __init__(
        self,
        dim: int,
        *,
        function: GateFunction = "sigmoid",
        norm: GateNorm = "batch",
        rank: int | None = None,
        remove_diagonal: bool = False,
    ) -> None:
        super().__init__()
        self.function = {"sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh}[function]
        self.logits = GateLogits(dim, dim, norm=norm, rank=rank, remove_diagonal=remove_diagonal)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.logits(inputs)) * inputs


class SqueezeExciteGating(nn.Module):
    """Y = σ(relu(BN(x W₁)) W₂) ∘ x, with W₁ [n, n/r] (NeXtVLAD, arXiv 1811.05014).

    2 n²/r weights instead of n². The paper's figure has a batch norm before the sigmoid, its
    code has none: `norm` says which ("none" is the code).
    """

    def __init__(self, dim: int, *, reduction: int = 8, norm: GateNorm = "none") -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ConfigError(f"the reduction of a gate is 1 to its width {dim}, got {reduction}")
        self.squeeze = normal_parameter(dim, dim // reduction, std=dim**-0.5)
        self.squeeze_norm = MaskedBatchNorm(dim // reduction)
        self.function = torch.sigmoid
        self.logits = GateLogits(dim // reduction, dim, norm=norm)

    def forward(self, inputs: Tensor) -> Tensor:
        squeezed = torch.relu(self.squeeze_norm(inputs @ self.squeeze))
        gated: Tensor = self.function(self.logits(squeezed)) * inputs
        return gated


class GatedLinearUnit(nn.Module):
    """Y = (x W₁ + b₁) ∘ σ(x W₂ + b₂), [B, n] to [B, n] (Dauphin et al. 2016, arXiv 1612.08083).

    Gates a projection of x and not x itself; the paper compares context gating with it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = normal_parameter(2 * dim, dim, std=dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(2 * dim))

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.glu(functional.linear(inputs, self.weight, self.bias))
