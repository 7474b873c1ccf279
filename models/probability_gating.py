"""The second context gating: labels weighted by what the other labels say."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtag.models.context_gating import GateLogits, GateNorm
from vtag.models.log_probabilities import LogProbabilities

GateSource = Literal["probabilities", "input"]


class ProbabilityGating(nn.Module):
    """P' = P ∘ σ(z), in log space (arXiv 1706.06905 and its code, `moe_prob_gating`).

    z is BN(P W), W [C, C], from the probabilities ("probabilities", as published: label to
    label), or BN(F W), W [H, C], from what the classifier reads ("input"). Cost C² or H·C;
    `rank` lowers it for large vocabularies.

    log p' = log p + log σ(z), and 1 - p' = (1 - p) + p σ(-z), so
    log (1 - p') = logaddexp(log (1 - p), log p + log σ(-z)): exact where p' is 1 to the last
    digit. For single_label the gated probabilities no longer sum to 1;
    `LogProbabilities.to_output` normalises them.
    """

    def __init__(
        self,
        labels: int,
        hidden: int,
        *,
        source: GateSource = "probabilities",
        norm: GateNorm = "batch",
        rank: int | None = None,
        remove_diagonal: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.logits = GateLogits(
            labels if source == "probabilities" else hidden,
            labels,
            norm=norm,
            rank=rank,
            remove_diagonal=remove_diagonal,
        )

    def forward(self, scores: LogProbabilities, hidden: Tensor) -> LogProbabilities:
        """Gated scores [B, C] of scores [B, C] and the classifier's input [B, H]."""
        gate = self.logits(scores.present.exp() if self.source == "probabilities" else hidden)
        present = scores.present + functional.logsigmoid(gate)
        if scores.absent is None:
            return LogProbabilities(present, None)
        closed = scores.present + functional.logsigmoid(-gate)
        if torch.onnx.is_in_onnx_export():  # it has no operator for the line below
            absent = torch.logsumexp(torch.stack([scores.absent, closed]), dim=0)
            return LogProbabilities(present, absent)
        return LogProbabilities(present, torch.logaddexp(scores.absent, closed))
