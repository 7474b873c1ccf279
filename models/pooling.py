"""What every pooling promises, and what several of them share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vtag.errors import ConfigError


class Pooling(nn.Module):
    """One vector for any number of rows.

    The contract, kept for every entry of `vtag.models.POOLINGS` by tests/test_poolings.py:

    - `forward(rows, mask)` takes float [B, T, D] and bool [B, T] (True: a real row) and gives
      float [B, out_dim];
    - what stands at padding, NaN included, changes nothing;
    - an item without any real row gives zeros, and finite gradients;
    - the order of the rows changes nothing, unless `order_matters`;
    - an item gives the same vector whatever it is batched with (in evaluation).

    Attributes:
        out_dim: length of the vector.
        order_matters: whether the order of the rows is part of what is pooled.
    """

    order_matters: ClassVar[bool] = False

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.out_dim = out_dim

    def __call__(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Float [B, out_dim] for rows float [B, T, D] and mask bool [B, T]."""
        pooled: Tensor = super().__call__(rows, mask)
        return pooled


def zero_padding(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows with zeros at padding. masked_fill and not a product: NaN times 0 is NaN."""
    return rows.masked_fill(~mask.unsqueeze(-1), 0)


def masked_max(rows: Tensor, mask: Tensor) -> Tensor:
    """Largest value per column over the real rows: [B, T, D] to [B, D]; zeros without any."""
    if rows.shape[1] == 0:
        return rows.new_zeros(rows.shape[0], rows.shape[2])
    lowest = torch.finfo(rows.dtype).min
    largest = rows.masked_fill(~mask.unsqueeze(-1), lowest).amax(dim=1)
    return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0)


def normal_parameter(*shape: int, std: float, mean: float = 0.0) -> nn.Parameter:
    """A parameter drawn from N(mean, std²)."""
    return nn.Parameter(torch.empty(*shape).normal_(mean, std))


def require_at_least_one(kind: str, **counts: int) -> None:
    """Refuses counts below 1.

    Raises:
        ConfigError: names the pooling, the setting and its value.
    """
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"pooling {kind!r}: {name} must be 1 or more, got {count}")
