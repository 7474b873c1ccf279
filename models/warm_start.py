"""A linear classifier written into a network, exactly: where training then starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from vtag.errors import ConfigError
from vtag.models.context_gating import OPEN_GATE, ContextGating, SqueezeExciteGating
from vtag.models.fully_connected import FullyConnected
from vtag.models.mixture_of_experts import LinearHead, MixtureOfExperts
from vtag.models.tagger_net import TaggerNet

GATE_NOISE: Final = 0.01  # spread of the gate logits of a unit hidden vector


def warm_start_linear(
    net: TaggerNet,
    stream: str,
    weight: Tensor,
    bias: Tensor,
    *,
    open_gate: float = OPEN_GATE,
    seed: int = 0,
) -> None:
    """Makes `net` score mean over time of `stream` @ weight.T + bias; see `warm_start_linears`.

    Args:
        weight: float [C, D], the linear classifier on rows of that stream.
        bias: float [C].
    """
    warm_start_linears(net, {stream: weight}, bias, open_gate=open_gate, seed=seed)


@torch.no_grad()
def warm_start_linears(
    net: TaggerNet,
    weights: Mapping[str, Tensor],
    bias: Tensor,
    *,
    open_gate: float = OPEN_GATE,
    seed: int = 0,
) -> None:
    """Makes `net` score Σ_s mean over time of stream s @ weights[s].T + bias, to rounding.

    The classifier W [C, D] is split as U S Vᵀ: √S Vᵀ goes into the first rows of the FC layer,
    at the mean-pooled columns of its streams, and U √S into every expert. All other columns of
    those rows are 0. Hidden units beyond the rank keep their first weights, and the experts do
    not hear them yet: they are free to learn. Gates are open; of the mixture's gates the dummy's
    is closed, and the others differ by a little noise, as equal experts under equal gates would
    stay equal for ever.

    Args:
        weights: per stream float [C, D]; each stream needs a "mean" pooling of its own.
        bias: float [C].
        open_gate: pre-activation of the gates. 60 is exact, and passes no gradient to them; 6
            (σ = 0.9975) is nearly exact and lets them learn.

    Raises:
        ConfigError: the network can not hold it: no mean path, input norm, an FC layer that is
            not linear or narrower than the rank, a gate without bias, another kind of head.
    """
    for stream in weights:
        if net.config.stream(stream).input_norm != "none":
            raise ConfigError(f"a warm start needs input_norm 'none' in stream {stream!r}")
    warm_start_pooled(net, weights, bias, open_gate=open_gate, seed=seed)


@torch.no_grad()
def warm_start_pooled(
    net: TaggerNet,
    weights: Mapping[str, Tensor],
    bias: Tensor,
    *,
    open_gate: float = OPEN_GATE,
    seed: int = 0,
) -> None:
    """As `warm_start_linears`, for a classifier of what the "mean" poolings give.

    That is the mean of the rows behind the stream's input norm, so any norm goes.
    """
    if not weights:
        raise ConfigError("a warm start needs the weights of one stream at least")
    fc, head = _require_room(net)
    joint = torch.cat([weight.detach().double().cpu() for weight in weights.values()], dim=1)
    columns = [_mean_columns(net, stream, weight) for stream, weight in weights.items()]
    if joint.shape[0] != net.config.labels or bias.shape != (net.config.labels,):
        raise ConfigError(
            f"the network has {net.config.labels} labels, the classifier "
            f"{tuple(joint.shape)} weights and {tuple(bias.shape)} biases"
        )
    left, size, right = torch.linalg.svd(joint, full_matrices=False)
    rank = int((size > size.max() * max(joint.shape) * torch.finfo(torch.float32).eps / 10).sum())
    if rank > fc.weight.shape[0]:
        raise ConfigError(
            f"the classifier has rank {rank}, more than the {fc.weight.shape[0]} hidden units: "
            "make the network wider"
        )
    root = size[:rank].sqrt()
    fc.weight[:rank] = 0
    fc.weight[:rank, torch.cat(columns)] = (root.unsqueeze(-1) * right[:rank]).to(fc.weight)
    if fc.bias is None:
        raise AssertionError("a linear FC layer has a bias")
    fc.bias[:rank] = 0
    _hold_gates(net, open_gate)
    _fill_experts(head, left[:, :rank] * root, bias.detach().double().cpu())
    if isinstance(head, MixtureOfExperts):
        _close_dummy(head, seed)


@torch.no_grad()
def start_classifier(
    head: LinearHead | MixtureOfExperts, weight: Tensor, bias: Tensor, *, seed: int = 0
) -> None:
    """Makes a head score hidden @ weight.T + bias: every expert holds it, the dummy is closed.

    Args:
        weight: float [C, H].
        bias: float [C].

    Raises:
        ConfigError: the mixture's gates have no bias to close the dummy with.
    """
    if isinstance(head, MixtureOfExperts) and head.gates.bias is None:
        raise ConfigError("a warm start needs head.gate_bias, to close the dummy expert's gate")
    _fill_experts(head, weight.detach().double().cpu(), bias.detach().double().cpu())
    if isinstance(head, MixtureOfExperts):
        _close_dummy(head, seed)


def _require_room(net: TaggerNet) -> tuple[FullyConnected, LinearHead | MixtureOfExperts]:
    fc, head = net.fc, net.head
    if net.config.fusion != "late" or net.config.joint_l2 or fc is None or fc.kind != "linear":
        raise ConfigError("a warm start needs late fusion, no joint_l2, and an FC layer 'linear'")
    if not isinstance(head, LinearHead | MixtureOfExperts):
        raise ConfigError("a warm start needs head 'moe' or 'linear'")
    if isinstance(head, MixtureOfExperts) and head.gates.bias is None:
        raise ConfigError("a warm start needs head.gate_bias, to close the dummy expert's gate")
    return fc, head


def _mean_columns(net: TaggerNet, stream: str, weight: Tensor) -> Tensor:
    """Indices [D] of the mean-pooled columns of a stream."""
    config = net.config.stream(stream)
    if weight.ndim != 2 or weight.shape[1] != config.dim:
        raise ConfigError(
            f"the classifier of {stream!r} must be [C, {config.dim}], got {tuple(weight.shape)}"
        )
    where = net.pooled_columns(stream, "mean")
    return torch.arange(where.start, where.stop)


def _hold_gates(net: TaggerNet, logit: float) -> None:
    gate = net.gate_hidden
    if isinstance(gate, ContextGating | SqueezeExciteGating) and gate.function is torch.sigmoid:
        gate.logits.hold(logit)
    elif gate is not None:
        raise ConfigError("a warm start needs sigmoid gates on the hidden vector, or none")
    if net.gate_output is not None:
        net.gate_output.logits.hold(logit)


def _fill_experts(head: LinearHead | MixtureOfExperts, left: Tensor, bias: Tensor) -> None:
    """Puts left [C, rank] and bias [C] into every expert of each label."""
    experts = head.experts
    copies = experts.weight.shape[0] // len(left)
    experts.weight.zero_()
    experts.weight[:, : left.shape[1]] = left.repeat_interleave(copies, dim=0).to(experts.weight)
    experts.bias.copy_(bias.repeat_interleave(copies))


def _close_dummy(head: MixtureOfExperts, seed: int) -> None:
    gates = head.gates
    random = torch.Generator(device="cpu").manual_seed(seed)
    noise = torch.randn(gates.weight.shape, generator=random) * GATE_NOISE
    noise = (noise * gates.weight.shape[1] ** -0.5).view(head.labels, -1, gates.weight.shape[1])
    # The experts' gate logits sum to 0, so one of them is never below 0: the dummy at -60 stays
    # closed however large the rows are.
    noise[:, :-1] -= noise[:, :-1].mean(dim=1, keepdim=True)
    noise[:, -1] = 0
    gates.weight.copy_(noise.flatten(0, 1))
    gates.bias.zero_()
    gates.bias.view(head.labels, -1)[:, -1] = -OPEN_GATE
