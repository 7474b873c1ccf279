"""Gates on the hidden vector and on the probabilities, against the paper's numbers and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.context_gating import (
    OPEN_GATE,
    ContextGating,
    GatedLinearUnit,
    GateLogits,
    SqueezeExciteGating,
)
from vtag.models.log_probabilities import LogProbabilities, from_logits
from vtag.models.probability_gating import ProbabilityGating


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def float64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def busy_norms(net: nn.Module) -> nn.Module:
    """Gives the batch norms of `net` statistics and weights that change what goes through."""
    for module in net.modules():
        if isinstance(module, MaskedBatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


class TestContextGating:
    def test_golden_value(self) -> None:
        # Worked out with numpy in float64 from Y = σ(x W) ∘ x.
        gate = ContextGating(3, norm="bias").double()
        with torch.no_grad():
            gate.logits.weight.copy_(float64([0.2, 0.1, 0], [0, 0.3, -0.1], [0.4, 0, 0.5]))
        out = gate(float64([0.5, -1, 2]))
        want = float64([0.355475, -0.437823, 1.50052])
        torch.testing.assert_close(out, want, atol=5e-6, rtol=0)

    @pytest.mark.parametrize("norm", ["batch", "bias", "none"])
    @pytest.mark.parametrize("function", ["sigmoid", "relu", "tanh"])
    def test_each_unit_by_hand(self, norm: str, function: str) -> None:
        gate = busy_norms(ContextGating(4, norm=norm, function=function))  # type: ignore[arg-type]
        assert isinstance(gate, ContextGating)
        if gate.logits.bias is not None:
            nn.init.normal_(gate.logits.bias)
        x = torch.randn(4)
        for unit in range(4):
            z = sum(x[j] * gate.logits.weight[j, unit] for j in range(4))
            if gate.logits.bias is not None:
                z = z + gate.logits.bias[unit]
            if gate.logits.norm is not None:
                bn = gate.logits.norm
                z = (z - bn.running_mean[unit]) / (bn.running_var[unit] + 1e-3) ** 0.5
                z = z * bn.weight[unit] + bn.bias[unit]
            z = torch.as_tensor(z)
            f = {"sigmoid": sigmoid(z), "relu": z.clamp(min=0), "tanh": z.tanh()}[function]
            torch.testing.assert_close(gate(x.unsqueeze(0))[0, unit], f * x[unit])

    def test_without_diagonal_no_unit_gates_itself(self) -> None:
        x = torch.randn(1, 4, requires_grad=True)
        for remove in (True, False):
            logits = GateLogits(4, 4, norm="bias", remove_diagonal=remove)
            jacobian = torch.autograd.functional.jacobian(logits, x)[0, :, 0]
            assert (jacobian.diagonal().abs().max() < 1e-6) == remove
            off = ~torch.eye(4, dtype=torch.bool)
            torch.testing.assert_close(jacobian[off], logits.weight.T[off])

    def test_low_rank_is_the_product_of_its_factors(self) -> None:
        low, full = GateLogits(6, 5, rank=2, norm="bias"), GateLogits(6, 5, norm="bias")
        assert low.expand is not None
        with torch.no_grad():
            full.weight.copy_(low.weight @ low.expand)
        x = torch.randn(3, 6)
        torch.testing.assert_close(low(x), full(x))
        assert sum(p.numel() for p in low.parameters()) == 6 * 2 + 2 * 5 + 5

    def test_rank_and_diagonal_exclude_each_other(self) -> None:
        with pytest.raises(ConfigError, match="full square matrix"):
            GateLogits(4, 4, rank=2, remove_diagonal=True)

    @pytest.mark.parametrize("norm", ["batch", "bias"])
    @pytest.mark.parametrize("rank", [None, 2])
    def test_open_gates_let_everything_through_unchanged(self, norm: str, rank: int | None) -> None:
        gate = busy_norms(ContextGating(5, norm=norm, rank=rank))  # type: ignore[arg-type]
        assert isinstance(gate, ContextGating)
        gate.logits.hold(OPEN_GATE)
        x = torch.randn(7, 5) * 100
        assert torch.equal(gate(x), x)

    @pytest.mark.parametrize("norm", ["batch", "bias"])
    def test_held_gates_give_the_very_logit(self, norm: str) -> None:
        gate = busy_norms(GateLogits(5, 3, norm=norm))  # type: ignore[arg-type]
        assert isinstance(gate, GateLogits)
        gate.hold(1.5)
        assert gate(torch.randn(7, 5)).unique().tolist() == [1.5]

    def test_gates_without_bias_can_not_be_held_open(self) -> None:
        with pytest.raises(ConfigError, match="without bias"):
            GateLogits(3, 3, norm="none").hold(OPEN_GATE)


class TestOtherGates:
    def test_squeeze_excite_by_hand(self) -> None:
        gate = busy_norms(SqueezeExciteGating(6, reduction=3, norm="bias"))
        assert isinstance(gate, SqueezeExciteGating)
        bn, weight = gate.squeeze_norm, gate.logits.weight
        scale = bn.weight / (bn.running_var + 1e-3) ** 0.5
        for x in torch.randn(9, 6):
            sums = [sum(x[j] * gate.squeeze[j, unit] for j in range(6)) for unit in range(2)]
            small = (torch.stack(sums) - bn.running_mean) * scale + bn.bias
            small = small.clamp(min=0)
            z = torch.stack([small[0] * weight[0, j] + small[1] * weight[1, j] for j in range(6)])
            torch.testing.assert_close(gate(x.unsqueeze(0))[0], sigmoid(z) * x)

    def test_squeeze_excite_refuses_a_reduction_to_nothing(self) -> None:
        with pytest.raises(ConfigError, match="1 to its width 4, got 5"):
            SqueezeExciteGating(4, reduction=5)

    def test_glu_gates_a_projection(self) -> None:
        gate = GatedLinearUnit(3)
        nn.init.normal_(gate.bias)
        x = torch.randn(3)
        for unit in range(3):
            value = gate.weight[unit] @ x + gate.bias[unit]
            z = gate.weight[3 + unit] @ x + gate.bias[3 + unit]
            torch.testing.assert_close(gate(x.unsqueeze(0))[0, unit], value * sigmoid(z))


class TestProbabilityGating:
    def test_golden_value(self) -> None:
        # Worked out with numpy in float64 from P' = P ∘ σ(P W), on the golden p of the mixture.
        gate = ProbabilityGating(2, 4, norm="bias").double()
        with torch.no_grad():
            gate.logits.weight.copy_(float64([1, -1], [0.5, 2]))
        p = float64([0.373481, 0.361150])
        out = gate(LogProbabilities(p.log(), (1 - p).log()), torch.zeros(1, 4))
        want = float64([0.237189, 0.211754])
        torch.testing.assert_close(out.present.exp(), want, atol=2e-6, rtol=0)
        assert out.absent is not None
        torch.testing.assert_close(out.absent.exp(), 1 - want, atol=2e-6, rtol=0)
        torch.testing.assert_close(out.to_output().sigmoid(), want, atol=2e-6, rtol=0)

    @pytest.mark.parametrize("source", ["probabilities", "input"])
    @pytest.mark.parametrize("rank", [None, 2])
    def test_equals_the_product_in_float64(self, source: str, rank: int | None) -> None:
        gate = ProbabilityGating(5, 3, source=source, rank=rank)  # type: ignore[arg-type]
        gate = busy_norms(gate).double()  # type: ignore[assignment]
        logits, hidden = torch.randn(8, 5).double() * 3, torch.randn(8, 3).double()
        out = gate(from_logits(logits, "multi_label"), hidden)
        p = sigmoid(logits)
        gated = p * sigmoid(gate.logits(p if source == "probabilities" else hidden))
        torch.testing.assert_close(out.to_output(), (gated / (1 - gated)).log())
        assert (out.present < p.log()).all()

    def test_open_gates_keep_log_odds_up_to_50(self) -> None:
        # In probabilities, float32 is 1 from log-odds of 17 on.
        gate = ProbabilityGating(101, 3)
        gate.logits.hold(OPEN_GATE)
        logits = torch.linspace(-50, 50, 101).unsqueeze(0)
        out = gate.eval()(from_logits(logits, "multi_label"), torch.zeros(1, 3)).to_output()
        torch.testing.assert_close(out, logits, atol=1e-4, rtol=0)

    def test_closing_gates_does_not_fool_a_single_label_loss(self) -> None:
        # The founding post multiplies log-probabilities with gates: gates near 0 push every
        # log-probability to 0, a perfect loss for any label at all. Shown, then shown absent.
        log_p = torch.randn(64, 10).log_softmax(dim=1)
        label = torch.randint(10, (64,))
        honest = nn.functional.nll_loss(log_p, label)
        assert honest > 2
        closed = torch.full((64, 10), -60.0).sigmoid()
        assert nn.functional.nll_loss(closed * log_p, label) < 1e-6

        gate = ProbabilityGating(10, 3)
        gate.logits.hold(-60.0)
        scores = gate.eval()(LogProbabilities(log_p, None), torch.zeros(64, 3)).to_output()
        torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(64))
        torch.testing.assert_close(nn.functional.nll_loss(scores, label), honest)
