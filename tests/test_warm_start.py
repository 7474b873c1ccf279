"""A linear classifier inside a network gives the linear classifier's log-odds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from vtag.errors import ConfigError
from vtag.models import PoolingConfig
from vtag.models.tagger_net import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNet,
    TaggerNetConfig,
)
from vtag.models.warm_start import warm_start_linear, warm_start_linears

POOLINGS = (PoolingConfig("netvlad", clusters=4), PoolingConfig("mean"))
CONFIG = TaggerNetConfig(
    streams=(
        StreamConfig(name="visual", dim=64, poolings=POOLINGS),
        StreamConfig(name="audio", dim=16, poolings=POOLINGS),
    ),
    labels=40,
    hidden=48,
    head=HeadConfig(gate_bias=True),
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(23)


def made_net(**changes: object) -> TaggerNet:
    return TaggerNet(dataclasses.replace(CONFIG, **changes)).eval().requires_grad_(False)  # type: ignore[arg-type]


def rows_and_masks(items: int, frames: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows as a ReLU backbone makes them: 0 and above, far from unit length."""
    rows = {"visual": torch.rand(items, frames, 64) * 3, "audio": torch.randn(items, frames, 16)}
    mask = {name: torch.rand(items, frames) < 0.7 for name in rows}
    mask["visual"][:, 0] = True
    mask["audio"][: items // 2] = False
    return rows, mask


def mean_of(rows: Tensor, mask: Tensor) -> Tensor:
    means = []
    for values, real in zip(rows, mask, strict=True):
        means.append(values[real].mean(dim=0) if real.any() else torch.zeros(rows.shape[2]))
    return torch.stack(means)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": HeadConfig(kind="linear")},
        {"head": HeadConfig(gate_bias=True, experts=4, gate_rank=3)},
        {"gate_hidden": GateConfig(norm="bias"), "gate_output": OutputGateConfig(norm="bias")},
        {
            "gate_hidden": GateConfig(rank=4),
            "gate_output": OutputGateConfig(source="input", rank=4),
        },
        {"gate_hidden": GateConfig(kind="squeeze_excite", norm="bias", reduction=4)},
        {"gate_hidden": None, "gate_output": None},
        {"hidden": 40},
    ],
    ids=["paper", "linear", "experts", "bias", "low rank", "squeezed", "no gates", "just enough"],
)
class TestExact:
    @pytest.mark.parametrize("frames", [1, 2, 20])
    def test_one_stream(self, changes: dict[str, object], frames: int) -> None:
        net = made_net(**changes)
        weight, bias = torch.randn(40, 64), torch.randn(40)
        warm_start_linear(net, "visual", weight, bias)
        rows, mask = rows_and_masks(6, frames)
        want = mean_of(rows["visual"], mask["visual"]) @ weight.T + bias
        assert want.abs().max() > 20  # past where probabilities in float32 are 1
        torch.testing.assert_close(net(rows, mask), want, atol=1e-3, rtol=0)
        alone = net({"visual": rows["visual"]}, {"visual": mask["visual"]})
        torch.testing.assert_close(alone, want, atol=1e-3, rtol=0)

    def test_two_streams(self, changes: dict[str, object]) -> None:
        net = made_net(**changes)
        weights = {"visual": torch.randn(40, 64), "audio": torch.randn(40, 16)}
        bias = torch.randn(40)
        warm_start_linears(net, weights, bias)
        rows, mask = rows_and_masks(6, 5)
        want = bias.clone()
        for name in weights:
            want = want + mean_of(rows[name], mask[name]) @ weights[name].T
        torch.testing.assert_close(net(rows, mask), want, atol=1e-3, rtol=0)


def test_low_rank_needs_no_more_units_than_its_rank() -> None:
    net = made_net(hidden=8)
    weight = torch.randn(40, 8) @ torch.randn(8, 64) * 0.2
    warm_start_linear(net, "visual", weight, torch.zeros(40))
    rows, mask = rows_and_masks(6, 5)
    want = mean_of(rows["visual"], mask["visual"]) @ weight.T
    torch.testing.assert_close(net(rows, mask), want, atol=1e-3, rtol=0)


def test_the_dummy_stays_closed_however_large_the_rows_are() -> None:
    # Hidden values near 1e5: gate logits of the experts all far below -60 would open it, and
    # so would any weight of its own.
    net = made_net()
    weight = torch.randn(40, 64) * 1e-8
    warm_start_linear(net, "visual", weight, torch.zeros(40))
    rows, mask = rows_and_masks(6, 5)
    rows["visual"] *= 1e8
    want = mean_of(rows["visual"], mask["visual"]) @ weight.T
    torch.testing.assert_close(net(rows, mask), want, atol=1e-3, rtol=0)


def test_a_warm_network_learns_on() -> None:
    # Free units, the experts (which must not stay equal), and half-open gates get gradients.
    net = made_net().requires_grad_(True).train()
    weight, bias = torch.randn(40, 64) * 0.1, torch.zeros(40)
    warm_start_linear(net, "visual", weight, bias, open_gate=6)
    rows, mask = rows_and_masks(32, 5)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    targets = (torch.rand(32, 40) < 0.3).float()
    for _ in range(5):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(rows, mask), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    experts = net.head.experts.weight.view(40, 2, 48)  # type: ignore[union-attr, operator]
    assert (experts[:, 0] != experts[:, 1]).any(dim=1).all()
    assert net.fc is not None
    assert net.fc.weight.grad is not None
    assert net.fc.weight.grad[40:].abs().max() > 0
    for gate in (net.gate_hidden, net.gate_output):
        assert gate.logits.weight.grad.abs().max() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden": 39}, "rank 40, more than the 39 hidden units"),
        ({"head": HeadConfig()}, "needs head.gate_bias"),
        ({"head": HeadConfig(kind="mlp_moe")}, "needs head 'moe' or 'linear'"),
        ({"fc": "batch_norm_relu6"}, "FC layer 'linear'"),
        ({"joint_l2": True}, "no joint_l2"),
        ({"gate_hidden": GateConfig(kind="glu")}, "needs sigmoid gates"),
        ({"gate_hidden": GateConfig(function="relu")}, "needs sigmoid gates"),
        ({"gate_hidden": GateConfig(norm="none")}, "can not be held open"),
        ({"labels": 41}, "the network has 41 labels"),
        (
            {"streams": (dataclasses.replace(CONFIG.streams[0], input_norm="l2"),)},
            "needs input_norm 'none' in stream 'visual'",
        ),
        (
            {"streams": (dataclasses.replace(CONFIG.streams[0], poolings=POOLINGS[:1]),)},
            "'visual' has no pooling 'mean'",
        ),
        ({"streams": CONFIG.streams[1:]}, "no stream 'visual'; it has: audio"),
        (
            {"streams": (dataclasses.replace(CONFIG.streams[0], dim=63),)},
            r"must be \[C, 63\], got \(40, 64\)",
        ),
    ],
)
def test_refuses_a_network_without_room(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        warm_start_linear(made_net(**changes), "visual", torch.randn(40, 64), torch.zeros(40))
