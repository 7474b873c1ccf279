"""LSTM and GRU: the final state of a recurrent network as the clip's vector."""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from vtag.models.pooling import Pooling, require_at_least_one, zero_padding

FORGET_BIAS: Final = 1.0  # TF's BasicLSTMCell in the WILLOW code


def _packed(rows: Tensor, mask: Tensor) -> PackedSequence:
    """The real rows of each item in their order; an item without any gives one row of zeros."""
    if rows.shape[1] == 0:
        rows, mask = rows.new_zeros(len(rows), 1, rows.shape[2]), mask.new_zeros(len(rows), 1)
    # Real rows to the front: a gap inside a clip must not be read as a row of zeros.
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    rows = zero_padding(rows, mask).gather(1, order.unsqueeze(-1).expand_as(rows))
    lengths = mask.sum(dim=1).clamp(min=1).cpu()
    return pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)


def _states(mask: Tensor, *layers: Tensor) -> Tensor:
    """States [L, B, cells] side by side as [B, …], zeros for items without a real row."""
    state = torch.cat([layer.transpose(0, 1).flatten(1) for layer in layers], dim=-1)
    return state.masked_fill(~mask.any(dim=1, keepdim=True), 0)


class LSTMPooling(Pooling):
    """Final cell and hidden state of all layers: [B, 2·layers·cells].

    The 2017 entry feeds the whole state of 2 x 1024 cells to the classifier (4096 values), with
    forget bias 1. Here: c of all layers, then h of all layers.
    """

    order_matters: ClassVar[bool] = True

    def __init__(self, dim: int, *, cells: int = 1024, layers: int = 2) -> None:
        require_at_least_one("lstm", cells=cells, layers=layers)
        super().__init__(dim, 2 * layers * cells)
        self.rnn = nn.LSTM(dim, cells, num_layers=layers, batch_first=True)
        with torch.no_grad():
            for at in range(layers):
                # Gates lie in the order input, forget, cell, output; the two biases add up.
                getattr(self.rnn, f"bias_ih_l{at}")[cells : 2 * cells] = FORGET_BIAS
                getattr(self.rnn, f"bias_hh_l{at}")[cells : 2 * cells] = 0.0

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        _, (hidden, cell) = self.rnn(_packed(rows, mask))
        return _states(mask, cell, hidden)


class GRUPooling(Pooling):
    """Final state of all layers: [B, layers·cells]; 2 x 1200 in the 2017 entry."""

    order_matters: ClassVar[bool] = True

    def __init__(self, dim: int, *, cells: int = 1200, layers: int = 2) -> None:
        require_at_least_one("gru", cells=cells, layers=layers)
        super().__init__(dim, layers * cells)
        self.rnn = nn.GRU(dim, cells, num_layers=layers, batch_first=True)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        _, hidden = self.rnn(_packed(rows, mask))
        return _states(mask, hidden)
