"""The part of the default head that says "none of these", apart from the network it goes into.

A gated NetVLAD beside the mean path: rows are reduced and soft-assigned to a few clusters, what
is left of them after the centres goes with the mean through one layer, gated units, and one
logit. It is fitted here as a small module (tools/fit_base_head.py) and then copied into the
network (tools/make_base_head.py), where it reads the same rows in the same chain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtag.models.codebook import fit_codebook
from vtag.models.context_gating import ContextGating
from vtag.models.mixture_of_experts import MixtureOfExperts
from vtag.models.netvlad import NetVLAD
from vtag.models.tagger_net import TaggerNet

ROW: Final = 2048
CLUSTERS: Final = 8
REDUCED: Final = 64
UNITS: Final = 24
RANK: Final = 8  # of the gates
SHARPNESS: Final = 2.0  # of the first soft assignment
NO_INFLUENCE: Final = -60.0  # of the first "none"


class NonePath(nn.Module):
    """Logit of "none of these", [B], from rows float [B, T, 2048] without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.netvlad = NetVLAD(ROW, clusters=CLUSTERS, assignment="bias", reduce=REDUCED)
        self.units = nn.Linear(ROW + CLUSTERS * REDUCED, UNITS)
        self.squeeze = nn.Linear(UNITS, RANK, bias=False)
        self.gates = nn.Linear(RANK, UNITS)
        self.none = nn.Linear(UNITS, 1)
        with torch.no_grad():
            self.units.weight.mul_(0.3)
            self.none.weight.zero_()
            self.none.bias.fill_(NO_INFLUENCE)

    def forward(self, rows: Tensor) -> Tensor:
        real = torch.ones(rows.shape[:2], dtype=torch.bool)
        pooled = torch.cat([rows.mean(dim=1), self.netvlad(rows, real)], dim=1)
        units = self.units(pooled)
        gated = units * torch.sigmoid(self.gates(self.squeeze(units)))
        logit: Tensor = self.none(gated)
        return logit.squeeze(1)

    @torch.no_grad()
    def start(self, rows: Tensor, *, none: float, seed: int = 0) -> None:
        """Puts the clusters where rows [N, 2048] lie: PCA to unit variance, then k-means.

        Args:
            none: first value of the logit, the same for all rows.
        """
        centred = rows - rows.mean(dim=0)
        _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
        scale = spread[:REDUCED] / len(rows) ** 0.5
        self.netvlad.reduce.copy_((axes[:REDUCED] / scale.unsqueeze(1)).T)  # type: ignore[union-attr]
        reduced = rows @ self.netvlad.reduce  # type: ignore[operator]
        centres = fit_codebook(reduced, clusters=CLUSTERS, seed=seed)
        self.netvlad.centres.copy_(centres.T)
        # exp(-α ‖x - c‖²) in shares: 2α c·x - α ‖c‖².
        alpha = SHARPNESS / REDUCED
        self.netvlad.assign.weight.copy_(2 * alpha * centres.T)
        bias = self.netvlad.assign.bias
        if bias is None:
            raise AssertionError("the assignment was built with a bias")
        bias.copy_(-alpha * centres.square().sum(dim=1))
        self.none.bias.fill_(none)

    def write(self, file: Path, **others: NDArray[np.generic]) -> None:
        """Saves the weights, and what belongs to them, as npz."""
        arrays = {name: tensor.detach().numpy() for name, tensor in self.state_dict().items()}
        np.savez(file, **arrays, **others)

    @classmethod
    def read(cls, arrays: dict[str, NDArray[np.generic]]) -> NonePath:
        """The inverse of `write`."""
        path = cls()
        names = path.state_dict().keys()
        path.load_state_dict({name: torch.from_numpy(arrays[name]) for name in names})
        return path.eval()


@torch.no_grad()
def put_into(net: TaggerNet, path: NonePath, *, units: slice, output: int) -> None:
    """Copies the path into a warm-started network: its hidden `units`, its output `output`.

    Hidden units and outputs besides these are not changed, and do not hear the path.
    """
    stack = net.stacks[0]
    (pooling,) = [p for p in stack.poolings if isinstance(p, NetVLAD)]  # type: ignore[union-attr]
    pooling.load_state_dict(path.netvlad.state_dict())
    if net.fc is None or net.fc.bias is None or not isinstance(net.gate_hidden, ContextGating):
        raise AssertionError("the network has an FC layer with a bias, and context gating")
    mean, vlad = net.pooled_columns("visual", "mean"), net.pooled_columns("visual", "netvlad")
    net.fc.weight[units] = 0
    net.fc.weight[units, mean] = path.units.weight[:, :ROW]
    net.fc.weight[units, vlad] = path.units.weight[:, ROW:]
    net.fc.bias[units] = path.units.bias
    gates = net.gate_hidden.logits
    if gates.expand is None or gates.bias is None:
        raise AssertionError("the gates have a rank and a bias")
    gates.weight.zero_()
    gates.weight[units] = path.squeeze.weight.T
    gates.expand[:, units] = path.gates.weight.T
    gates.bias[units] = path.gates.bias
    if not isinstance(net.head, MixtureOfExperts) or net.head.mixtures != 1:
        raise AssertionError("the network has one expert for each output")
    net.head.experts.weight[output] = 0
    net.head.experts.weight[output, units] = path.none.weight[0]
    net.head.experts.bias[output] = path.none.bias[0]
