"""What a network is trained to lower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from vtag.errors import ConfigError
from vtag.models.log_probabilities import OutputKind
from vtag.models.setting_checks import require_choice
from vtag.models.tagger_net import TaggerNet

LossKind = Literal["bce", "balanced_bce", "focal", "cross_entropy", "balanced_cross_entropy"]
OF_ONE_LABEL: Final = ("cross_entropy", "balanced_cross_entropy")
OF_CLASS_WEIGHTS: Final = ("balanced_bce", "balanced_cross_entropy")
Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss.

    Attributes:
        kind: "bce" is the paper's; "balanced_bce" weighs each label by the inverse of its
            effective number of examples (Cui et al. 2019, arXiv 1901.05555); "focal" plays down
            what is already right (Lin et al. 2017, arXiv 1708.02002); "cross_entropy" is for
            networks of one label per item; "balanced_cross_entropy" weighs items by their label
            as "balanced_bce" does.
        over_labels: "sum" as in the paper, or "mean"; always averaged over items.
        focus: γ of focal loss.
        balance: β of the balanced losses; 0 weighs all labels alike, near 1 by inverse frequency.
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
    if (loss.kind in OF_ONE_LABEL) != (output == "single_label"):
        one = " or ".join(OF_ONE_LABEL)
        fits = one if output == "single_label" else "bce, balanced_bce or focal"
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
        positives: float [C], examples per label in the training set; for the balanced losses.

    Raises:
        ConfigError: a balanced loss without `positives`, or cross_entropy with `known`.
    """
    if loss.kind in OF_CLASS_WEIGHTS and positives is None:
        raise ConfigError(f"loss {loss.kind!r} needs the number of examples per label")
    if loss.kind in OF_ONE_LABEL:
        if known is not None:
            raise ConfigError(f"loss {loss.kind!r} can not leave labels unknown")
        weights = None
        if loss.kind == "balanced_cross_entropy" and positives is not None:
            weights = effective_number_weights(positives, loss.balance).to(scores)
        return functional.cross_entropy(scores, targets, weight=weights)
    each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    if loss.kind == "focal":
        wrong = targets * (-scores).sigmoid() + (1 - targets) * scores.sigmoid()
        each = each * wrong**loss.focus
    if loss.kind == "balanced_bce" and positives is not None:
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
