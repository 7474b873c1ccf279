"""The classifiers: mixture of experts of the paper, of the founding blog post, and one linear."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtag.models.log_probabilities import (
    LogProbabilities,
    OutputKind,
    at_least_float32,
    from_logits,
)
from vtag.models.pooling import normal_parameter

GateSquash = Literal["none", "sigmoid"]
MixingSpace = Literal["probability", "log"]


class Head(nn.Module):
    """Hidden vector float [B, H] to `LogProbabilities` of [B, C]."""

    def __call__(self, hidden: Tensor) -> LogProbabilities:
        """Log-probabilities [B, C] of hidden vectors [B, H]."""
        scores: LogProbabilities = super().__call__(hidden)
        return scores

    def regularised(self) -> list[Tensor]:
        """The weights that the L2 term of the loss counts."""
        raise NotImplementedError


class LinearHead(Head):
    """Logistic regression for multi_label, softmax regression for single_label."""

    def __init__(
        self, hidden: int, labels: int, *, output: OutputKind = "multi_label", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.output: OutputKind = output
        self.dropout = nn.Dropout(dropout)
        self.experts = _xavier_linear(hidden, labels)

    def forward(self, hidden: Tensor) -> LogProbabilities:
        return from_logits(self.experts(self.dropout(hidden)), self.output)

    def regularised(self) -> list[Tensor]:
        return [self.experts.weight]


class MixtureOfExperts(Head):
    """M logistic experts per label, mixed by gates of its own (arXiv 1706.06905 code; 1609.08675).

    p_v = Σ_{m≤M} gate_vm σ(F·E_vm + e_vm), gates a softmax over M + 1 logits F·G_v. The last
    gate belongs to a dummy expert that always says 0, so the gates can say "absent" too.
    Computed as log p = logsumexp_m(log gate_m + log σ(e_m)) and log (1 - p) likewise from
    log σ(-e_m) and the dummy gate.

    Args:
        gate_bias: the paper has none. A warm start needs one, to close the dummy gate.
        gate_rank: G as a product of two factors of this rank (`moe_low_rank_gating`).
        dropout: on the input, for experts and gates alike.

    Index of label v and expert m in the weights: v·M + m, and v·(M + 1) + m for the gates.
    """

    def __init__(
        self,
        hidden: int,
        labels: int,
        *,
        experts: int = 2,
        gate_bias: bool = False,
        gate_rank: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.mixtures = experts
        self.dropout = nn.Dropout(dropout)
        reads = hidden if gate_rank is None else gate_rank
        self.reduce = None if gate_rank is None else _xavier_linear(hidden, reads, bias=False)
        self.gates = _xavier_linear(reads, labels * (experts + 1), bias=gate_bias)
        self.experts = _xavier_linear(hidden, labels * experts)

    def forward(self, hidden: Tensor) -> LogProbabilities:
        hidden = self.dropout(hidden)
        reads = hidden if self.reduce is None else self.reduce(hidden)
        # Not by len(hidden): a batch size that is read here would be exported as a constant.
        logits = at_least_float32(self.gates(reads)).reshape(-1, self.labels, self.mixtures + 1)
        log_gates = logits.log_softmax(dim=-1)  # [B, C, M + 1]
        expert = at_least_float32(self.experts(hidden)).reshape(-1, self.labels, self.mixtures)
        real, dummy = log_gates[..., :-1], log_gates[..., -1:]
        present = torch.logsumexp(real + functional.logsigmoid(expert), dim=-1)
        absent = torch.cat([real + functional.logsigmoid(-expert), dummy], dim=-1)
        return LogProbabilities(present, torch.logsumexp(absent, dim=-1))

    def regularised(self) -> list[Tensor]:
        gates = [self.gates.weight] + ([] if self.reduce is None else [self.reduce.weight])
        return [*gates, self.experts.weight]


class MLPMixture(Head):
    """Experts Linear-ReLU-Linear under one gate vector for all labels: the blog post's mixture.

    Differs from the paper's in that the gates are shared by the labels, and that there is no
    dummy expert.

    Args:
        cells: hidden size of each expert; the post has 64.
        squash: "sigmoid" squashes the gate logits before their softmax, as the post does. It
            holds every weight in [1/(1 + (n-1)e), e/(e + n - 1)]: no expert ever has its own way.
        mix: "log" averages the experts' log-probabilities, as the post does: a geometric mean,
            normalised here, as [.7 .2 .1] and [.1 .2 .7] would else sum to .73. For multi_label
            that is the mean of their log-odds. "probability" averages probabilities.
        dropout: behind each fully connected layer but the last.
    """

    def __init__(
        self,
        hidden: int,
        labels: int,
        *,
        experts: int = 4,
        cells: int = 64,
        output: OutputKind = "single_label",
        squash: GateSquash = "sigmoid",
        mix: MixingSpace = "log",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.output: OutputKind = output
        self.squash = squash
        self.mix = mix
        self.dropout = nn.Dropout(dropout)
        self.gates = _xavier_linear(hidden, experts)
        self.inner = normal_parameter(experts, hidden, cells, std=(2 / hidden) ** 0.5)  # He 2015
        self.inner_bias = nn.Parameter(torch.zeros(experts, 1, cells))
        self.outer = normal_parameter(experts, cells, labels, std=cells**-0.5)
        self.outer_bias = nn.Parameter(torch.zeros(experts, 1, labels))

    def forward(self, hidden: Tensor) -> LogProbabilities:
        gates = at_least_float32(self.gates(hidden))
        log_weight = (gates.sigmoid() if self.squash == "sigmoid" else gates).log_softmax(dim=-1)
        log_weight = log_weight.T.unsqueeze(-1)  # [M, B, 1]
        inner = self.dropout(torch.relu(hidden @ self.inner + self.inner_bias))  # [M, B, cells]
        logits = at_least_float32(inner @ self.outer + self.outer_bias)  # [M, B, C]
        if self.mix == "log":
            # Per item, an expert's log-probabilities are its logits less one number (and for
            # multi_label its log-odds are its logits): normalising at the end takes that away.
            return from_logits((log_weight.exp() * logits).sum(dim=0), self.output)
        scores = from_logits(logits, self.output)
        present = torch.logsumexp(log_weight + scores.present, dim=0)
        if scores.absent is None:
            return LogProbabilities(present, None)
        return LogProbabilities(present, torch.logsumexp(log_weight + scores.absent, dim=0))

    def regularised(self) -> list[Tensor]:
        return [self.gates.weight, self.inner, self.outer]


def _xavier_linear(in_dim: int, out_dim: int, *, bias: bool = True) -> nn.Linear:
    """Weights Xavier-uniform, bias 0: TF-slim's default for these layers."""
    # Made on meta and then given its values once: nn.Linear would draw others first.
    linear = nn.Linear(in_dim, out_dim, bias=bias, device="meta")
    linear.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_dim, in_dim)))
    if bias:
        linear.bias = nn.Parameter(torch.zeros(out_dim))
    return linear
