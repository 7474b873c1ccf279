"""Classical bag of words and VLAD: a codebook by k-means, fitted once and then frozen."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from vtag.errors import ConfigError, WeightsError
from vtag.models.pooling import Pooling, require_at_least_one, zero_padding
from vtag.models.soft_assignment import flat_unit

MAX_ROUNDS: Final = 50  # Lloyd's rounds; training rows settle in 10 to 30


def fit_codebook(rows: Tensor, *, clusters: int, seed: int) -> Tensor:
    """Centres float32 [K, D] of rows float [N, D] by k-means, the same for the same seed.

    Starts as k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's rounds until no row moves.
    A cluster that lost all its rows starts again at the row that lies farthest from its centre.

    Raises:
        ConfigError: fewer rows than clusters, or a row that is not finite.
    """
    require_at_least_one("codebook", clusters=clusters)
    if rows.ndim != 2 or len(rows) < clusters:
        raise ConfigError(f"{clusters} clusters need as many rows [N, D], got {tuple(rows.shape)}")
    rows = rows.float()
    if not rows.isfinite().all():
        raise ConfigError("the rows for the codebook hold values that are not finite")
    random = torch.Generator(device="cpu").manual_seed(seed)
    centres = _spread_start(rows, clusters, random)
    nearest = torch.full((len(rows),), -1, device=rows.device)
    for _ in range(MAX_ROUNDS):
        distance, now = torch.cdist(rows, centres).min(dim=1)
        if torch.equal(now, nearest):
            break
        nearest = now
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        count = torch.bincount(nearest, minlength=clusters).unsqueeze(-1)
        centres = sums / count.clamp(min=1)
        empty = (count == 0).squeeze(-1)
        centres[empty] = rows[distance.argsort(descending=True)[: int(empty.sum())]]
    return centres


def _spread_start(rows: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """K rows, each drawn with a chance that grows with its squared distance from those before."""
    picked = [int(torch.randint(len(rows), (1,), generator=random))]
    squared = (rows - rows[picked[0]]).square().sum(dim=1)
    while len(picked) < clusters:
        chance = squared.cpu().double()
        # By hand, as torch.multinomial takes at most 2^24 rows.
        draw = torch.rand(1, generator=random, dtype=torch.float64) * chance.sum()
        at = int(torch.searchsorted(chance.cumsum(0), draw).clamp(max=len(rows) - 1))
        picked.append(at)
        squared = torch.minimum(squared, (rows - rows[at]).square().sum(dim=1))
    return rows[picked].clone()


class CodebookPooling(Pooling):
    """Hard assignment to the nearest of K frozen centres; `fit` makes them."""

    codebook: Tensor
    fitted: Tensor

    def __init__(self, dim: int, out_dim: int, clusters: int) -> None:
        super().__init__(dim, out_dim)
        self.clusters = clusters
        self.register_buffer("codebook", torch.zeros(clusters, dim))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.uint8))

    def fit(self, rows: Tensor, *, seed: int = 0) -> None:
        """Fits the codebook on training rows float [N, D]; see `fit_codebook`."""
        self.codebook.copy_(fit_codebook(rows, clusters=self.clusters, seed=seed))
        self.fitted.fill_(1)

    def nearest(self, rows: Tensor, mask: Tensor) -> Tensor:
        """One-hot assignment, float [B, T, K], zero at padding; rows have zeros at padding.

        Raises:
            WeightsError: the codebook was never fitted.
        """
        if not self.fitted:
            raise WeightsError(
                f"the codebook of {type(self).__name__} is not fitted: call fit() with training "
                "rows, or load a trained model"
            )
        # ‖x - c‖² without ‖x‖², which is the same for all centres. As one matrix product, so
        # that an item gets the same answer whatever it is batched with.
        distance = self.codebook.square().sum(dim=1) - 2 * rows @ self.codebook.T
        one_hot = functional.one_hot(distance.argmin(dim=-1), self.clusters)
        return zero_padding(one_hot.to(rows.dtype), mask)


class BagOfWords(CodebookPooling):
    """How many rows fall to each word: [B, K] of length 1. Nothing in it learns by gradient."""

    def __init__(self, dim: int, *, clusters: int = 256) -> None:
        require_at_least_one("bow", clusters=clusters)
        super().__init__(dim, clusters, clusters)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        counts = self.nearest(zero_padding(rows, mask), mask).sum(dim=1)
        return functional.normalize(counts, dim=-1)


class VLAD(CodebookPooling):
    """Residuals from the nearest centre, summed per centre: [B, D·K] of length 1.

    Jégou et al. 2010, with each cluster scaled to length 1 first (Arandjelović and Zisserman
    2013): NetVLAD in the limit of a hard assignment. One real row is no special case, as its
    one non-empty cluster says where it fell.
    """

    def __init__(self, dim: int, *, clusters: int = 64) -> None:
        require_at_least_one("vlad", clusters=clusters)
        super().__init__(dim, dim * clusters, clusters)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        rows = zero_padding(rows, mask)
        share = self.nearest(rows, mask)
        vlad = rows.transpose(1, 2) @ share - self.codebook.T * share.sum(dim=1, keepdim=True)
        return flat_unit(functional.normalize(vlad, dim=1))
