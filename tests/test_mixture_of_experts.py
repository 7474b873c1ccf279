"""Heads against the paper's numbers, loops, and where float32 would give out."""

from __future__ import annotations

import math

import pytest
import slow_formulas as slow
import torch
from torch import Tensor, nn

from vtag.models.mixture_of_experts import LinearHead, MixtureOfExperts, MLPMixture


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(13)


def float64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class TestMixtureOfExperts:
    def test_golden_value(self) -> None:
        # Worked out with numpy in float64; V = 2, M = 2, weights given as [H, …].
        head = MixtureOfExperts(2, 2, experts=2).double()
        gates = float64([0.1, 0.4, -0.2, 0, 0.3, 0.5], [0.2, -0.1, 0.6, 0.3, -0.4, 0.1])
        experts = float64([0.3, -0.2, 0.1, 0.4], [0.5, 0.1, -0.3, 0.2])
        with torch.no_grad():
            head.gates.weight.copy_(gates.T)
            head.experts.weight.copy_(experts.T)
            head.experts.bias.copy_(float64([0.1, -0.1, 0.2, 0])[0])
        out = head(float64([1, -0.5]))
        want = float64([0.373481, 0.361150])
        torch.testing.assert_close(out.present.exp(), want, atol=2e-6, rtol=0)
        torch.testing.assert_close(out.to_output().sigmoid(), want, atol=2e-6, rtol=0)

    @pytest.mark.parametrize("experts", [1, 2, 5])
    def test_equals_the_sum_over_experts(self, experts: int) -> None:
        head = MixtureOfExperts(6, 3, experts=experts)
        nn.init.normal_(head.experts.bias)
        hidden = torch.randn(4, 6) * 2
        out = head(hidden)
        for item in range(4):
            want = slow.mixture(
                hidden[item],
                head.gates.weight.detach(),
                head.experts.weight.detach(),
                head.experts.bias.detach(),
                labels=3,
            )
            torch.testing.assert_close(out.present[item].exp().double(), want, atol=1e-6, rtol=0)
            assert out.absent is not None
            torch.testing.assert_close(out.absent[item].exp().double(), 1 - want, atol=1e-6, rtol=0)

    def test_low_rank_gates_are_the_product_of_their_factors(self) -> None:
        low, full = MixtureOfExperts(6, 3, gate_rank=2), MixtureOfExperts(6, 3)
        assert low.reduce is not None
        full.experts.load_state_dict(low.experts.state_dict())
        with torch.no_grad():
            full.gates.weight.copy_(low.gates.weight @ low.reduce.weight)
        hidden = torch.randn(4, 6)
        torch.testing.assert_close(low(hidden).to_output(), full(hidden).to_output())

    def test_closed_dummy_keeps_log_odds_up_to_50(self) -> None:
        # One hidden unit carries the log-odds; the dummy's gate logit is -60.
        head = MixtureOfExperts(1, 1, experts=2, gate_bias=True)
        with torch.no_grad():
            head.experts.weight.fill_(1)
            head.gates.weight.fill_(0)
            head.gates.bias.copy_(torch.tensor([0.3, -0.2, -60.0]))
        logits = torch.linspace(-50, 50, 101).unsqueeze(1)
        torch.testing.assert_close(head(logits).to_output(), logits, atol=1e-4, rtol=0)

    def test_open_dummy_says_absent(self) -> None:
        # All experts are sure (p = 1), the dummy takes 3/4 of the gate: p = 1/4.
        head = MixtureOfExperts(1, 1, experts=1, gate_bias=True)
        with torch.no_grad():
            head.experts.weight.fill_(1)
            head.gates.weight.fill_(0)
            head.gates.bias.copy_(torch.tensor([0.0, math.log(3)]))
        torch.testing.assert_close(
            head(torch.tensor([[80.0]])).to_output(), torch.tensor([[-math.log(3)]])
        )

    def test_extreme_inputs_stay_finite_with_gradients(self) -> None:
        head = MixtureOfExperts(4, 3)
        hidden = (torch.randn(5, 4) * 1e3).requires_grad_()
        out = head(hidden).to_output()
        nn.functional.binary_cross_entropy_with_logits(out, torch.rand(5, 3)).backward()
        assert out.isfinite().all()
        assert hidden.grad is not None
        assert hidden.grad.isfinite().all()

    def test_half_precision_is_mixed_in_float32(self) -> None:
        head = MixtureOfExperts(4, 3)
        hidden = torch.randn(5, 4)
        want = head(hidden).to_output()
        out = head.bfloat16()(hidden.bfloat16()).to_output()
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, want, atol=0.05, rtol=0.05)

    def test_published_parameter_count(self) -> None:
        # 3862 labels at H = 1024: H·V·3 gates, H·V·2 experts, V·2 biases (19.8 M).
        with torch.device("meta"):
            head = MixtureOfExperts(1024, 3862)
        count = sum(p.numel() for p in head.parameters())
        assert count == 1024 * 3862 * 5 + 2 * 3862


def mlp_by_hand(head: MLPMixture, x: Tensor) -> tuple[list[float], Tensor]:
    """Expert weights, and each expert's logits [M, C], for one hidden vector [H]."""
    gates = head.gates.weight @ x + head.gates.bias
    if head.squash == "sigmoid":
        gates = 1 / (1 + (-gates).exp())
    powers = [math.exp(g) for g in gates]
    logits = []
    for m in range(len(powers)):
        inner = (x @ head.inner[m] + head.inner_bias[m, 0]).clamp(min=0)
        logits.append(inner @ head.outer[m] + head.outer_bias[m, 0])
    return [p / sum(powers) for p in powers], torch.stack(logits)


@pytest.mark.parametrize("squash", ["none", "sigmoid"])
class TestMLPMixture:
    def make(self, squash: str, mix: str, output: str) -> MLPMixture:
        head = MLPMixture(5, 4, experts=3, cells=6, squash=squash, mix=mix, output=output)  # type: ignore[arg-type]
        for parameter in head.parameters():
            nn.init.normal_(parameter)
        return head.requires_grad_(False).eval()

    def test_single_label_mean_of_probabilities(self, squash: str) -> None:
        head, x = self.make(squash, "probability", "single_label"), torch.randn(5)
        weights, logits = mlp_by_hand(head, x)
        want = sum(w * z.exp() / z.exp().sum() for w, z in zip(weights, logits, strict=True))
        torch.testing.assert_close(head(x.unsqueeze(0)).to_output()[0].exp(), want)

    def test_single_label_geometric_mean(self, squash: str) -> None:
        head, x = self.make(squash, "log", "single_label"), torch.randn(5)
        weights, logits = mlp_by_hand(head, x)
        want = torch.ones(4)
        for w, z in zip(weights, logits, strict=True):
            want = want * (z.exp() / z.exp().sum()) ** w
        assert want.sum() < 0.999  # a geometric mean of different experts loses mass
        torch.testing.assert_close(head(x.unsqueeze(0)).to_output()[0].exp(), want / want.sum())

    def test_multi_label_mean_of_probabilities(self, squash: str) -> None:
        head, x = self.make(squash, "probability", "multi_label"), torch.randn(5)
        weights, logits = mlp_by_hand(head, x)
        want = sum(w / (1 + (-z).exp()) for w, z in zip(weights, logits, strict=True))
        torch.testing.assert_close(head(x.unsqueeze(0)).to_output()[0].sigmoid(), want)

    def test_multi_label_geometric_mean(self, squash: str) -> None:
        head, x = self.make(squash, "log", "multi_label"), torch.randn(5)
        weights, logits = mlp_by_hand(head, x)
        yes, no = torch.ones(4), torch.ones(4)
        for w, z in zip(weights, logits, strict=True):
            yes, no = yes / (1 + (-z).exp()) ** w, no / (1 + z.exp()) ** w
        torch.testing.assert_close(head(x.unsqueeze(0)).to_output()[0], (yes / no).log())


def test_log_mixing_of_two_opposed_experts_is_normalised() -> None:
    # [.7 .2 .1] and [.1 .2 .7] half and half: √.07, .2, √.07 sum to .729 before it.
    head = MLPMixture(1, 3, experts=2, cells=1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.outer_bias[:, 0] = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log()
    out = head(torch.zeros(1, 1)).to_output().exp()[0]
    want = torch.tensor([0.07**0.5, 0.2, 0.07**0.5])
    assert want.sum().item() == pytest.approx(0.729, abs=5e-4)
    torch.testing.assert_close(out, want / want.sum())


@pytest.mark.parametrize(("experts", "low", "high"), [(2, 0.269, 0.731), (8, 0.050, 0.280)])
def test_squashed_gates_never_choose(experts: int, low: float, high: float) -> None:
    # 1 / (1 + (n-1)e) and e / (e + n - 1): the reason why `squash` can be turned off.
    head = MLPMixture(1, 1, experts=experts, mix="probability", output="multi_label")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.gates.bias.fill_(-1e4)
        head.gates.bias[0] = 1e4
        head.outer_bias.fill_(-1e4)
        head.outer_bias[0] = 1e4  # the chosen expert says 1, all others 0
        assert head(torch.zeros(1, 1)).present.exp().item() == pytest.approx(high, abs=5e-4)
        head.gates.bias.neg_()  # now all but that one are chosen
        assert head(torch.zeros(1, 1)).present.exp().item() == pytest.approx(low, abs=5e-4)


@pytest.mark.parametrize("output", ["multi_label", "single_label"])
def test_linear_head_is_regression(output: str) -> None:
    head, x = LinearHead(5, 3, output=output), torch.randn(2, 5)  # type: ignore[arg-type]
    logits = x @ head.experts.weight.T + head.experts.bias
    want = logits if output == "multi_label" else logits - logits.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(head(x).to_output(), want)


@pytest.mark.parametrize(
    "head",
    [
        LinearHead(40, 3, dropout=0.5),
        MixtureOfExperts(40, 3, dropout=0.5),
        MLPMixture(40, 3, dropout=0.5),
    ],
    ids=["linear", "moe", "mlp_moe"],
)
def test_dropout_works_in_training_only(head: nn.Module) -> None:
    x = torch.randn(4, 40)
    assert not torch.equal(head.train()(x).present, head(x).present)
    assert torch.equal(head.eval()(x).present, head(x).present)


def test_the_l2_term_counts_weights_and_no_biases() -> None:
    low = MixtureOfExperts(4, 3, gate_rank=2, gate_bias=True)
    assert low.reduce is not None
    for got, want in zip(
        low.regularised(), [low.gates.weight, low.reduce.weight, low.experts.weight], strict=True
    ):
        assert got is want
    mlp = MLPMixture(4, 3)
    wanted = {id(weight) for weight in (mlp.gates.weight, mlp.inner, mlp.outer)}
    assert {id(weight) for weight in mlp.regularised()} == wanted
