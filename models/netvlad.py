"""NetVLAD, and NetRVLAD: the same without centres."""

from __future__ import annotations

from torch import Tensor

from vtag.models.pooling import Pooling, normal_parameter, require_at_least_one, zero_padding
from vtag.models.soft_assignment import (
    AssignmentNorm,
    SoftAssignment,
    flat_unit,
    per_cluster_unit,
)


class NetVLAD(Pooling):
    """What is left of the rows after their cluster centres, summed per cluster: [B, D·K].

    V[j, k] = Σ_t a_k(x_t) (x_t[j] - c_k[j]), each cluster scaled to length 1, then the whole.
    (arXiv 1511.07247 eq. 4; NetVLAD of arXiv 1706.06905 and its code, centres ~ N(0, 1/√D).)
    An item with one real row skips the scaling per cluster: see `per_cluster_unit`.

    Args:
        reduce: rows are first projected to so many columns by a learned matrix, as Jégou et al.
            (PAMI 2012) do by PCA before VLAD: D·K is then `reduce`·K. None takes them as they are.
    """

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 64,
        assignment: AssignmentNorm = "batch",
        reduce: int | None = None,
    ) -> None:
        require_at_least_one("netvlad", clusters=clusters)
        inner = dim if reduce is None else reduce
        require_at_least_one("netvlad", reduce=inner)
        super().__init__(dim, inner * clusters)
        self.reduce = None if reduce is None else normal_parameter(dim, inner, std=dim**-0.5)
        self.assign = SoftAssignment(inner, clusters, assignment)
        self.centres = normal_parameter(inner, clusters, std=inner**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        rows = zero_padding(rows, mask)
        if self.reduce is not None:
            rows = rows @ self.reduce
        share = self.assign(rows, mask)  # [B, T, K]
        # Σ_t a_tk (x_t - c_k) = Σ_t a_tk x_t - c_k Σ_t a_tk. The left side needs [B, T, K, D]:
        # 5 GB for 32 five-minute videos at K = 64 and D = 2048.
        vlad = rows.transpose(1, 2) @ share - self.centres * share.sum(dim=1, keepdim=True)
        return flat_unit(per_cluster_unit(vlad, mask.sum(dim=1)))


class NetRVLAD(Pooling):
    """Rows summed per cluster, without residuals: [B, D·K] (arXiv 1706.06905, "LightVLAD").

    R[j, k] = Σ_t a_k(x_t) x_t[j], each cluster scaled to length 1, then the whole. Saves the
    D·K centres. An item with one real row skips the scaling per cluster.
    """

    def __init__(
        self, dim: int, *, clusters: int = 64, assignment: AssignmentNorm = "batch"
    ) -> None:
        require_at_least_one("netrvlad", clusters=clusters)
        super().__init__(dim, dim * clusters)
        self.assign = SoftAssignment(dim, clusters, assignment)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        rows = zero_padding(rows, mask)
        sums = rows.transpose(1, 2) @ self.assign(rows, mask)
        return flat_unit(per_cluster_unit(sums, mask.sum(dim=1)))
