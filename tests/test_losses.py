"""Losses against their formulas in float64, and pairs that are refused."""

from __future__ import annotations

import math

import pytest
import torch

from vtag.errors import ConfigError
from vtag.models.losses import (
    LossConfig,
    check_loss,
    effective_number_weights,
    expert_l2,
    loss_of,
)
from vtag.models.presets import paper_config
from vtag.models.tagger_net import TaggerNet

SCORES = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 4.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, 1.0]])  # 0.3: a teacher's soft target


def each(item: int, label: int, focus: float = 0.0) -> float:
    """-y (1-p)^γ' log p - (1-y) …, with the distance |y - p| that focal loss raises to γ."""
    p = 1 / (1 + math.exp(-float(SCORES[item, label])))
    y = float(TARGETS[item, label])
    wrong = y * (1 - p) + (1 - y) * p
    return -(y * math.log(p) + (1 - y) * math.log(1 - p)) * wrong**focus


def test_bce_is_summed_over_labels_and_averaged_over_items() -> None:
    want = sum(each(i, v) for i in range(2) for v in range(3)) / 2
    assert loss_of(SCORES, TARGETS, LossConfig()).item() == pytest.approx(want, rel=1e-6)
    mean = loss_of(SCORES, TARGETS, LossConfig(over_labels="mean"))
    assert mean.item() == pytest.approx(want / 3, rel=1e-6)


def test_focal_plays_down_what_is_right() -> None:
    want = sum(each(i, v, focus=2) for i in range(2) for v in range(3)) / 2
    got = loss_of(SCORES, TARGETS, LossConfig(kind="focal", focus=2))
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_unknown_labels_cost_nothing() -> None:
    known = torch.tensor([[True, False, True], [True, True, False]])
    pairs = [(0, 0), (0, 2), (1, 0), (1, 1)]
    want = sum(each(i, v) for i, v in pairs) / 2
    assert loss_of(SCORES, TARGETS, LossConfig(), known=known).item() == pytest.approx(want)
    mean = loss_of(SCORES, TARGETS, LossConfig(over_labels="mean"), known=known)
    assert mean.item() == pytest.approx(want / 2)


def test_balanced_weighs_labels_by_their_effective_number() -> None:
    positives = torch.tensor([1.0, 10.0, 0.0])
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in (1, 10, 1)]
    weights = [w / (sum(raw) / 3) for w in raw]
    got = effective_number_weights(positives, 0.9)
    assert got.tolist() == pytest.approx(weights, rel=1e-6)
    want = sum(weights[v] * each(i, v) for i in range(2) for v in range(3)) / 2
    loss = LossConfig(kind="balanced_bce", balance=0.9)
    assert loss_of(SCORES, TARGETS, loss, positives=positives).item() == pytest.approx(want)
    assert effective_number_weights(positives, 0.0).tolist() == [1, 1, 1]
    with pytest.raises(ConfigError, match="needs the number of examples"):
        loss_of(SCORES, TARGETS, loss)


def test_cross_entropy_of_log_probabilities() -> None:
    log_p = SCORES.log_softmax(dim=1)
    loss = LossConfig(kind="cross_entropy")
    want = -(log_p[0, 2] + log_p[1, 0]).item() / 2
    assert loss_of(log_p, torch.tensor([2, 0]), loss).item() == pytest.approx(want)
    one_hot = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    assert loss_of(log_p, one_hot, loss).item() == pytest.approx(want)
    with pytest.raises(ConfigError, match="unknown"):
        loss_of(log_p, one_hot, loss, known=one_hot > 0)


def test_saturated_scores_keep_their_gradient() -> None:
    # From probabilities in float32 the loss would be capped and its gradient 0 from 17 on.
    scores = torch.tensor([[40.0]], requires_grad=True)
    loss_of(scores, torch.zeros(1, 1), LossConfig()).backward()
    assert scores.grad is not None
    assert scores.grad.item() == pytest.approx(1)


def test_l2_is_half_lambda_times_the_squares() -> None:
    net = TaggerNet(paper_config(3, visual_dim=4, audio_dim=2, clusters=2, hidden=5))
    weights = [net.head.gates.weight, net.head.experts.weight]  # type: ignore[union-attr]
    want = 0.05 * sum(float(v) ** 2 for w in weights for v in w.detach().flatten())  # type: ignore[union-attr, operator]
    assert expert_l2(net, LossConfig(expert_l2=0.1)).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("bce", "single_label"),
        ("focal", "single_label"),
        ("balanced_bce", "single_label"),
        ("cross_entropy", "multi_label"),
    ],
)
def test_loss_and_output_must_go_together(kind: str, output: str) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}' does not go with a {output} network; take"):
        check_loss(LossConfig(kind=kind), output)  # type: ignore[arg-type]
    other = "multi_label" if output == "single_label" else "single_label"
    check_loss(LossConfig(kind=kind), other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"kind": "hinge"}, {"focus": -1.0}, {"balance": 1.0}, {"expert_l2": -1e-6}]
)
def test_refuses_nonsense(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="loss: "):
        LossConfig(**change)  # type: ignore[arg-type]
