"""NeXtVLAD: NetVLAD over groups of an expanded row, at a fraction of the parameters."""

from __future__ import annotations

from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.pooling import Pooling, normal_parameter, require_at_least_one, zero_padding
from vtag.models.soft_assignment import per_cluster_unit


class NeXtVLAD(Pooling):
    """Residuals of low-dimensional groups, summed per cluster: [B, λD·K/G].

    ẋ = FC(x) ∈ R^λD is cut into G groups x̃_g; α_g = σ(FC ẋ); α_gk = softmax_k BN(ẋ W)_gk;
    V[j, k] = Σ_t,g α_g α_gk (x̃_g[j] - c_k[j]), centres shared by the groups. Each cluster is
    scaled to length 1, and batch norm takes the place of the second scaling (arXiv 1811.05014
    eq. 3-6 and its code). With one group and one real row a single summand is left, which
    skips the scaling per cluster as in NetVLAD.
    """

    def __init__(
        self, dim: int, *, clusters: int = 128, groups: int = 8, expansion: int = 2
    ) -> None:
        require_at_least_one("nextvlad", clusters=clusters, groups=groups, expansion=expansion)
        wide = expansion * dim
        if wide % groups:
            raise ConfigError(
                f"pooling 'nextvlad': {groups} groups do not divide {expansion} x {dim} columns"
            )
        super().__init__(dim, wide // groups * clusters)
        self.groups = groups
        self.expand = nn.Linear(dim, wide)
        self.attend = nn.Linear(wide, groups)
        self.weight = normal_parameter(wide, groups * clusters, std=wide**-0.5)
        self.norm = MaskedBatchNorm(groups * clusters)
        self.centres = normal_parameter(wide // groups, clusters, std=wide**-0.5)
        self.out_norm = MaskedBatchNorm(self.out_dim)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        wide = self.expand(zero_padding(rows, mask))  # [B, T, λD]
        shares = self.norm(wide @ self.weight, mask).unflatten(-1, (self.groups, -1))
        attention = zero_padding(self.attend(wide).sigmoid(), mask)  # [B, T, G]
        share = (shares.softmax(dim=-1) * attention.unsqueeze(-1)).flatten(1, 2)  # [B, T·G, K]
        parts = wide.unflatten(-1, (self.groups, -1)).flatten(1, 2)  # [B, T·G, λD/G]
        vlad = parts.transpose(1, 2) @ share - self.centres * share.sum(dim=1, keepdim=True)
        vlad = per_cluster_unit(vlad, mask.sum(dim=1) * self.groups).flatten(1)
        something = mask.any(dim=1)
        return zero_padding(self.out_norm(vlad, something), something)
