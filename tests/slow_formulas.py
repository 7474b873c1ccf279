"""The formulas of the poolings and heads, one term at a time. Slow, and easy to check by eye.

They see one item without padding. Their own numbers come from the goldens in the tests, which
were worked out with numpy in float64 apart from this project.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(vector: Tensor) -> Tensor:
    length = math.sqrt(sum(float(v) ** 2 for v in vector))
    return vector / length if length else vector


def soft_assignment(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """softmax_k(x W + b), [T, K]."""
    share = torch.zeros(len(rows), weight.shape[1], dtype=rows.dtype)
    for t in range(len(rows)):
        powers = [
            math.exp(float(rows[t] @ weight[:, k]) + float(bias[k])) for k in range(len(bias))
        ]
        for k in range(len(bias)):
            share[t, k] = powers[k] / sum(powers)
    return share


def d_major(columns: Tensor, *, per_cluster: bool) -> Tensor:
    """[D, K] with unit clusters, then of unit length as a whole, cluster index fastest."""
    columns = columns.clone()
    if per_cluster:
        for k in range(columns.shape[1]):
            columns[:, k] = unit(columns[:, k])
    dim, clusters = columns.shape
    return unit(torch.stack([columns[j, k] for j in range(dim) for k in range(clusters)]))


def residual_sums(rows: Tensor, share: Tensor, centres: Tensor) -> Tensor:
    """Σ_t a_k(x_t) (x_t[j] - c_k[j]), [D, K]."""
    sums = torch.zeros_like(centres)
    for k in range(centres.shape[1]):
        for t in range(len(rows)):
            sums[:, k] += share[t, k] * (rows[t] - centres[:, k])
    return sums


def net_fv(rows: Tensor, share: Tensor, centres: Tensor, spread: Tensor, *, intra: bool) -> Tensor:
    sigma = spread * spread + 1e-6
    first, second = torch.zeros_like(centres), torch.zeros_like(centres)
    for k in range(centres.shape[1]):
        for t in range(len(rows)):
            z = (rows[t] - centres[:, k]) / sigma[:, k]
            first[:, k] += share[t, k] * z
            second[:, k] += share[t, k] * (z * z - 1)
    halves = [d_major(first, per_cluster=True), d_major(second, per_cluster=intra)]
    return torch.cat(halves)


def column_max(rows: Tensor) -> Tensor:
    return torch.stack([max(row[k] for row in rows) for k in range(rows.shape[1])])


def lstm_last(rows: Tensor, rnn: torch.nn.LSTM) -> Tensor:
    """c of all layers, then h of all layers, after the last row."""
    cells, hiddens = [], []
    inputs = list(rows)
    for layer in range(rnn.num_layers):
        w_in, w_hid = getattr(rnn, f"weight_ih_l{layer}"), getattr(rnn, f"weight_hh_l{layer}")
        bias = getattr(rnn, f"bias_ih_l{layer}") + getattr(rnn, f"bias_hh_l{layer}")
        h = c = torch.zeros(rnn.hidden_size)
        outputs = []
        for x in inputs:
            i, f, g, o = (w_in @ x + w_hid @ h + bias).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        inputs = outputs
        cells.append(c)
        hiddens.append(h)
    return torch.cat(cells + hiddens)


def gru_last(rows: Tensor, rnn: torch.nn.GRU) -> Tensor:
    """h of all layers after the last row."""
    hiddens = []
    inputs = list(rows)
    for layer in range(rnn.num_layers):
        w_in, w_hid = getattr(rnn, f"weight_ih_l{layer}"), getattr(rnn, f"weight_hh_l{layer}")
        b_in, b_hid = getattr(rnn, f"bias_ih_l{layer}"), getattr(rnn, f"bias_hh_l{layer}")
        h = torch.zeros(rnn.hidden_size)
        outputs = []
        for x in inputs:
            r_in, z_in, n_in = (w_in @ x + b_in).chunk(3)
            r_hid, z_hid, n_hid = (w_hid @ h + b_hid).chunk(3)
            r, z = (r_in + r_hid).sigmoid(), (z_in + z_hid).sigmoid()
            h = (1 - z) * (n_in + r * n_hid).tanh() + z * h
            outputs.append(h)
        inputs = outputs
        hiddens.append(h)
    return torch.cat(hiddens)


def mixture(hidden: Tensor, gates: Tensor, experts: Tensor, bias: Tensor, labels: int) -> Tensor:
    """p_v = Σ_{m≤M} gate_vm σ(expert_vm), [C], for one hidden vector; in float64.

    gates [C·(M + 1), H], experts [C·M, H], bias [C·M], label-major.
    """
    hidden, gates, experts, bias = (t.double() for t in (hidden, gates, experts, bias))
    count = len(experts) // labels
    scores = torch.zeros(labels, dtype=torch.float64)
    for v in range(labels):
        powers = [math.exp(gates[v * (count + 1) + m] @ hidden) for m in range(count + 1)]
        for m in range(count):
            at = v * count + m
            expert = 1 / (1 + math.exp(-(experts[at] @ hidden + bias[at])))
            scores[v] += powers[m] / sum(powers) * expert
    return scores
