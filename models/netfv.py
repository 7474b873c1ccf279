"""NetFV: a learnable Fisher vector."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from vtag.errors import ConfigError
from vtag.models.pooling import Pooling, normal_parameter, require_at_least_one, zero_padding
from vtag.models.soft_assignment import (
    AssignmentNorm,
    SoftAssignment,
    flat_unit,
    per_cluster_unit,
)

MIN_SPREAD: Final = 1e-6  # added to s², so that no cluster gets a spread of 0 (WILLOW code)
COUPLED_SCALE: Final = 0.01  # centres = 0.01 W when they are tied to the assignment (WILLOW code)

NetFVCentres = Literal["separate", "coupled"]
SecondOrderNorm = Literal["global", "intra"]


class NetFV(Pooling):
    """First and second order differences from each cluster, summed: [B, 2·D·K].

    FV1[j, k] = Σ_t a_k(x_t) (x_t[j] - c_k[j]) / σ_k[j]
    FV2[j, k] = Σ_t a_k(x_t) (((x_t[j] - c_k[j]) / σ_k[j])² - 1),  σ = s² + 1e-6
    (arXiv 1706.06905 and its code; s ~ N(1, 1/√D).)

    Args:
        centres: "coupled" takes 0.01 W of the assignment instead of parameters of its own.
        second_order: how FV2 is scaled. The authors' code flattens it before the scaling per
            cluster, so that one never happens: "global", the published behaviour. "intra"
            scales each cluster, as FV1.
    """

    def __init__(
        self,
        dim: int,
        *,
        clusters: int = 64,
        assignment: AssignmentNorm = "batch",
        centres: NetFVCentres = "separate",
        second_order: SecondOrderNorm = "global",
    ) -> None:
        require_at_least_one("netfv", clusters=clusters)
        if centres not in ("separate", "coupled") or second_order not in ("global", "intra"):
            raise ConfigError(
                "pooling 'netfv': centres must be separate or coupled and second_order global "
                f"or intra, got {centres!r} and {second_order!r}"
            )
        super().__init__(dim, 2 * dim * clusters)
        self.second_order = second_order
        self.assign = SoftAssignment(dim, clusters, assignment)
        self.spread = normal_parameter(dim, clusters, std=dim**-0.5, mean=1.0)
        separate = centres == "separate"
        self.centres = normal_parameter(dim, clusters, std=dim**-0.5) if separate else None

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        rows = zero_padding(rows, mask)
        centres = COUPLED_SCALE * self.assign.weight if self.centres is None else self.centres
        sigma = self.spread.square() + MIN_SPREAD
        share = self.assign(rows, mask)  # [B, T, K]
        total = share.sum(dim=1, keepdim=True)  # [B, 1, K]
        first = rows.transpose(1, 2) @ share  # Σ a x, [B, D, K]
        second = rows.square().transpose(1, 2) @ share  # Σ a x²
        fv1 = (first - centres * total) / sigma
        fv2 = (total * centres.square() + second - 2 * centres * first) / sigma.square() - total
        summands = mask.sum(dim=1)
        if self.second_order == "intra":
            fv2 = per_cluster_unit(fv2, summands)
        return torch.cat([flat_unit(per_cluster_unit(fv1, summands)), flat_unit(fv2)], dim=-1)
