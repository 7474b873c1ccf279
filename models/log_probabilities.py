"""Scores in log space: what heads hand to the gating behind them.

Probabilities in float32 saturate at 1 from log-odds of 17 on; their logarithms do not. A label
that is nearly sure keeps its order, and the loss its gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

OutputKind = Literal["multi_label", "single_label"]


class LogProbabilities(NamedTuple):
    """Logarithms of the probabilities of all labels, [B, C] each.

    Attributes:
        present: log p.
        absent: log (1 - p). None for single_label, where the labels share one unit of
            probability and `present` is all there is.
    """

    present: Tensor
    absent: Tensor | None

    def to_output(self) -> Tensor:
        """Log-odds log p - log (1 - p) for multi_label; log-probabilities for single_label.

        Log-probabilities are normalised here, whatever the gates behind the head did to their
        sum: otherwise a network could push all of them to 0, which is probability 1 for every
        label and a negative log-likelihood of 0, by closing gates.
        """
        if self.absent is None:
            return self.present.log_softmax(dim=-1)
        return self.present - self.absent


def from_logits(logits: Tensor, output: OutputKind) -> LogProbabilities:
    """Logistic (multi_label) or softmax (single_label) log-probabilities of logits [..., C]."""
    logits = at_least_float32(logits)
    if output == "single_label":
        return LogProbabilities(logits.log_softmax(dim=-1), None)
    return LogProbabilities(functional.logsigmoid(logits), functional.logsigmoid(-logits))


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened: it has no room for the log-probability of a rare label."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
