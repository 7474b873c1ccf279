"""What a network is trained to lower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vtag.errors import ConfigError
from vtag.models.log_probabilities import OutputKind
from vtag.models.setting_checks import require_choice
from vtag.models.tagger_net import TaggerNet

LossKind = Literal["bce", "balanced_bce", "focal", "cross_entropy"]
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss.

    Attributes:
        kind: "bce" is the paper's; "balanced_bce" weighs each label by the inverse of its
            effective number of examples (Cui et al. 2019, arXiv 1901.05555); "focal" plays down
            what is already right (Lin et al. 2017, arXiv 1708.02002); "cross_entropy" is for
            networks of one label per item.
        over_labels: "sum" as in the paper, or "mean"; always averaged over items.
        focus: γ of focal loss.
        balance: β of balanced_bce; 0 weighs all labels alike, near 1 by inverse frequency.
        expert_l2: λ of λ/2 ‖·‖² on the weights of the head and its gates: 1e-6 for the
            clustering models of the 2017 entry, 1e-8 for its bags of words and LSTM.

    Raises:
        ConfigError: a field makes no sense.
    """

    kind: LossKind = "bce"
    over_labels: Reduction = "sum"
    focus: float = 2.0
    balance: float = 0.999
    expert_l2: float = 1e-6

    def __post_init__(self) -> None:
        require_choice("loss", "kind", self.kind, get_args(LossKind))
        require_choice("loss", "over_labels", self.over_labels, get_args(Reduction))
        if self.focus < 0 or self.expert_l2 < 0 or not 0 <= self.balance < 1:
            raise ConfigError(
                "loss: focus and expert_l2 are 0 or more and balance is 0 to below 1, got "
                f"{self.focus}, {self.expert_l2} and {self.balance}"
            )


def check_loss(loss: LossConfig, output: OutputKind) -> None:
    """Refuses a loss that does not go with what the network gives.

    Raises:
        ConfigError: cross-entropy for multi_label, or another loss for single_label.
    """
    if (loss.kind == "cross_entropy") != (output == "single_label"):
        fits = "cross_entropy" if output == "single_label" else "bce, balanced_bce or focal"
        raise ConfigError(f"loss {loss.kind!r} does not go with a {output} network; take {fits}")


def loss_of(
    scores: Tensor,
    targets: Tensor,
    loss: LossConfig,
    *,
    known: Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """The loss of a batch, a scalar, without the L2 term.

    Args:
        scores: float [B, C], log-odds, or log-probabilities for cross_entropy.
        targets: float [B, C] in 0..1 (soft targets of a teacher too); for cross_entropy also
            int64 [B], the index of the label.
        known: bool [B, C], False where nobody said whether the label applies; None where all
            are known. Not for cross_entropy.
        positives: float [C], examples per label in the training set; for balanced_bce.

    Raises:
        ConfigError: balanced_bce without `positives`, or cross_entropy with `known`.
    """
    if loss.kind == "cross_entropy":
        if known is not None:
            raise ConfigError("loss 'cross_entropy' can not leave labels unknown")
        return functional.cross_entropy(scores, targets)
    each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    if loss.kind == "focal":
        wrong = targets * (-scores).sigmoid() + (1 - targets) * scores.sigmoid()
        each = each * wrong**loss.focus
    if loss.kind == "balanced_bce":
        if positives is None:
            raise ConfigError("loss 'balanced_bce' needs the number of examples per label")
        each = each * effective_number_weights(positives, loss.balance)
    if known is not None:
        each = each.masked_fill(~known, 0)
    per_item = each.sum(dim=1)
    if loss.over_labels == "mean":
        per_item = per_item / (each.shape[1] if known is None else known.sum(dim=1).clamp(min=1))
    return per_item.mean()


def effective_number_weights(positives: Tensor, balance: float) -> Tensor:
    """Weights [C] proportional to (1 - β) / (1 - βⁿ), with a mean of 1 (arXiv 1901.05555 eq. 2).

    A label without examples weighs as much as one with a single example.
    """
    count = positives.clamp(min=1).double()
    weights = (1 - balance) / (1 - torch.as_tensor(balance, dtype=torch.double) ** count)
    return (weights / weights.mean()).to(torch.get_default_dtype()).to(positives.device)


def expert_l2(net: TaggerNet, loss: LossConfig) -> Tensor:
    """λ/2 ‖·‖² of the head's weights and its gates', a scalar to be added to the loss."""
    squares = [weight.square().sum() for weight in net.head.regularised()]
    return loss.expert_l2 / 2 * torch.stack(squares).sum()
