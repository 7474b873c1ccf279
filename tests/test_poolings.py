"""The contract of vtag.models.pooling over the whole table, and every formula against loops."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import slow_formulas as slow
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vtag.errors import ConfigError, WeightsError
from vtag.models import POOLINGS, PoolingConfig, build_pooling, pooling_options
from vtag.models.attention_pooling import AttentionPooling
from vtag.models.batch_norm import MaskedBatchNorm, set_batch_norm_momentum
from vtag.models.codebook import VLAD, BagOfWords, CodebookPooling, fit_codebook
from vtag.models.dbof import DBoF
from vtag.models.max_pooling import MaxPooling
from vtag.models.mean_pooling import MeanPooling
from vtag.models.netfv import NetFV
from vtag.models.netvlad import NetRVLAD, NetVLAD
from vtag.models.nextvlad import NeXtVLAD
from vtag.models.pooling import Pooling
from vtag.models.recurrent import GRUPooling, LSTMPooling
from vtag.models.soft_assignment import SoftAssignment
from vtag.models.soft_dbow import GatedSoftDBoW, SoftDBoW
from vtag.models.sum_pooling import SumPooling


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def build(kind: str, dim: int = 8, size: int = 4) -> Pooling:
    """The pooling with its counts set small, batch norms that do something, codebooks fitted."""
    wanted = {"clusters": size, "cells": size, "heads": 2, "groups": 2, "layers": 2}
    options = {name: wanted[name] for name in pooling_options(kind) if name in wanted}
    pooling = build_pooling(PoolingConfig(kind, **options), dim)
    for module in pooling.modules():
        if isinstance(module, MaskedBatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    if isinstance(pooling, CodebookPooling):
        pooling.fit(torch.randn(50, dim), seed=1)
    return pooling.eval()


def all_real(rows: Tensor) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool)


def some_batch(dim: int = 8) -> tuple[Tensor, Tensor]:
    """Eight items of different lengths: 1, 2, none, all real, and some with gaps."""
    rows = torch.randn(8, 9, dim)
    mask = torch.rand(8, 9) < 0.6
    mask[0] = torch.arange(9) < 1
    mask[1] = torch.arange(9) < 2
    mask[2] = False
    mask[3] = True
    return rows, mask


@pytest.mark.parametrize("kind", sorted(POOLINGS))
class TestEveryPooling:
    @pytest.mark.parametrize(("dim", "size"), [(2, 1), (8, 4), (6, 9)])
    def test_width_is_out_dim(self, kind: str, dim: int, size: int) -> None:
        pooling = build(kind, dim, size)
        rows, mask = some_batch(dim)
        assert pooling(rows, mask).shape == (8, pooling.out_dim)

    @pytest.mark.parametrize("junk", [1e3, float("nan"), float("inf")])
    @pytest.mark.parametrize("training", [False, True])
    def test_padding_changes_nothing(self, kind: str, junk: float, training: bool) -> None:
        pooling = build(kind).train(training)
        before = {name: value.clone() for name, value in pooling.state_dict().items()}
        rows, mask = some_batch()
        outs = []
        for filler in (0.0, junk):
            pooling.load_state_dict(before)
            outs.append(pooling(rows.masked_fill(~mask.unsqueeze(-1), filler), mask))
        torch.testing.assert_close(outs[1], outs[0])

    def test_more_padding_changes_nothing(self, kind: str) -> None:
        pooling = build(kind)
        rows, mask = some_batch()
        longer = torch.cat([rows, torch.full((8, 5, 8), 1e3)], dim=1)
        wider = torch.cat([mask, torch.zeros(8, 5, dtype=torch.bool)], dim=1)
        torch.testing.assert_close(pooling(longer, wider), pooling(rows, mask))

    def test_gaps_are_skipped(self, kind: str) -> None:
        pooling = build(kind)
        rows, mask = some_batch()
        for item in range(8):
            real = rows[item][mask[item]].unsqueeze(0)
            out = pooling(rows[item : item + 1], mask[item : item + 1])
            torch.testing.assert_close(out, pooling(real, all_real(real)))

    def test_order_counts_only_where_it_says_so(self, kind: str) -> None:
        pooling = build(kind)
        rows = torch.randn(3, 6, 8)
        turned = pooling(rows.flip(1), all_real(rows))
        same = torch.allclose(turned, pooling(rows, all_real(rows)), atol=1e-5)
        assert same != pooling.order_matters

    def test_nothing_real_gives_zeros(self, kind: str) -> None:
        pooling = build(kind)
        nothing = torch.zeros(2, 5, dtype=torch.bool)
        for training in (False, True):
            out = pooling.train(training)(torch.full((2, 5, 8), float("nan")), nothing)
            assert out.tolist() == [[0.0] * pooling.out_dim] * 2

    def test_items_with_nothing_do_not_count_in_training(self, kind: str) -> None:
        pooling = build(kind).train()
        before = {name: value.clone() for name, value in pooling.state_dict().items()}
        rows, mask = some_batch()
        some = mask.any(dim=1)
        together = pooling(rows, mask)[some]
        pooling.load_state_dict(before)
        torch.testing.assert_close(pooling(rows[some], mask[some]), together)

    def test_no_rows_at_all_give_zeros(self, kind: str) -> None:
        pooling = build(kind)
        out = pooling(torch.zeros(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool))
        assert out.tolist() == [[0.0] * pooling.out_dim] * 2

    def test_one_row_is_told_from_another(self, kind: str) -> None:
        pooling = build(kind, size=4 if kind == "bow" else 16)
        rows = torch.randn(40, 1, 8)
        out = pooling(rows, all_real(rows))
        assert out.isfinite().all()
        # A bag of hard words knows no more than 4 different rows; the others know all 40.
        assert len(out.unique(dim=0)) == (4 if kind == "bow" else 40)

    def test_gradients_are_finite(self, kind: str) -> None:
        pooling = build(kind).train()
        rows, mask = some_batch()
        rows.requires_grad_()
        out = pooling(rows, mask)
        assert out.requires_grad == (kind != "bow")
        if kind == "bow":
            return
        (out * torch.randn_like(out)).sum().backward()
        gradients = {"rows": rows.grad, **{n: p.grad for n, p in pooling.named_parameters()}}
        for name, gradient in gradients.items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name
        assert rows.grad is not None
        assert rows.grad[~mask].abs().sum() == 0

    def test_every_weight_learns_from_single_rows(self, kind: str) -> None:
        # Clustering degenerates with one row: scaled per cluster, the assignment cancels out
        # and never learns. `per_cluster_unit` says how that is avoided.
        pooling = build(kind).train()
        rows = torch.randn(16, 1, 8)
        out = pooling(rows, all_real(rows))
        # Recurrent weights have no earlier state to work on; one row has a weight of 1.
        idle = {"lstm": "weight_hh", "gru": "weight_hh", "attention": ""}.get(kind)
        for name, parameter in pooling.named_parameters():
            if idle is None or idle not in name:
                gradient = torch.autograd.grad(out.pow(3).sum(), parameter, retain_graph=True)[0]
                assert gradient.abs().max() > 1e-7, name

    def test_batch_of_one_equals_batch_of_eight(self, kind: str) -> None:
        pooling = build(kind)
        rows, mask = some_batch()
        alone = [pooling(rows[item : item + 1], mask[item : item + 1]) for item in range(8)]
        torch.testing.assert_close(torch.cat(alone), pooling(rows, mask))

    def test_same_call_same_bits_and_no_harm_to_its_input(self, kind: str) -> None:
        pooling = build(kind)
        rows, mask = some_batch()
        kept = rows.clone()
        assert torch.equal(pooling(rows, mask), pooling(rows, mask))
        assert torch.equal(rows, kept)

    def test_batch_of_one_can_be_trained(self, kind: str) -> None:
        pooling = build(kind).train()
        rows = torch.randn(1, 1, 8)
        assert pooling(rows, all_real(rows)).isfinite().all()

    def test_float64_stays_float64(self, kind: str) -> None:
        pooling = build(kind).double()
        rows, mask = some_batch()
        assert pooling(rows.double(), mask).dtype == torch.float64


def test_the_constructors_take_the_fields_of_the_config() -> None:
    known = set(inspect.signature(PoolingConfig).parameters) - {"kind"}
    for kind in POOLINGS:
        assert set(pooling_options(kind)) <= known, kind


class TestConfig:
    @pytest.mark.parametrize("kind", sorted(POOLINGS))
    def test_comes_back_from_json(self, kind: str) -> None:
        config = PoolingConfig(kind, **dict.fromkeys(set(pooling_options(kind)) & {"clusters"}, 3))
        assert PoolingConfig.from_dict(config.to_dict()) == config

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"kind": "vladnet"}, "no pooling 'vladnet'; there are: mean, max"),
            ({"kind": "mean", "clusters": 2}, "'mean' has no option 'clusters'; it has: none"),
            ({"kind": "netvlad", "cells": 2}, "no option 'cells'; it has: clusters, assignment"),
            ({"kind": "netvlad", "clusters": 0}, "clusters is a whole number 1 to 65536, got 0"),
            ({"kind": "netvlad", "clusters": True}, "clusters is a whole number"),
            ({"kind": "netvlad", "clusters": "9"}, "clusters is a whole number"),
            ({"kind": "lstm", "layers": 17}, "layers is a whole number 1 to 16, got 17"),
            ({"kind": "netvlad", "assignment": "hard"}, "no assignment 'hard'; there are: batch"),
            ({"kind": "soft_dbow", "with_max": 1}, "with_max is true or false"),
            ({"kind": "netvlad", "k": 1}, "unknown key 'k'; the keys are: kind, clusters"),
            ({"clusters": 1}, "no 'kind'"),
        ],
    )
    def test_refuses(self, settings: dict[str, object], complaint: str) -> None:
        with pytest.raises(ConfigError) as refused:
            PoolingConfig.from_dict(settings)
        assert complaint in str(refused.value)

    def test_groups_must_divide(self) -> None:
        with pytest.raises(ConfigError, match="3 groups do not divide 2 x 8 columns"):
            build_pooling(PoolingConfig("nextvlad", groups=3), 8)


# Reference values worked out with numpy in float64, batch norm left out.
ROWS = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
WEIGHT = [[1.0, -1.0], [0.5, 0.5]]
CENTRES = [[0.1, 0.2], [0.3, 0.4]]


def golden(pooling: Pooling) -> Tensor:
    """Sets the weights of the reference and pools its three rows, in float64."""
    pooling = pooling.double().eval()
    values = {"assign.weight": WEIGHT, "centres": CENTRES, "spread": [[1.0, 1.0], [1.0, 1.0]]}
    with torch.no_grad():
        for name, parameter in pooling.named_parameters():
            parameter.copy_(torch.tensor(values.get(name, [0.0]), dtype=torch.float64))
    rows = torch.tensor([ROWS], dtype=torch.float64)
    return pooling(rows, all_real(rows))[0]


class TestGoldenValues:
    def test_soft_assignment(self) -> None:
        assign = SoftAssignment(2, 2, "bias").double()
        with torch.no_grad():
            assign.weight.copy_(torch.tensor(WEIGHT))
            assert assign.bias is not None
            assign.bias.zero_()
        rows = torch.tensor([ROWS], dtype=torch.float64)
        share = assign(rows, all_real(rows))[0]
        want = [[0.880797, 0.119203], [0.5, 0.5], [0.880797, 0.119203]]
        torch.testing.assert_close(share, torch.tensor(want).double(), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("pooling", "want"),
        [
            (NetVLAD(2, clusters=2, assignment="bias"), [0.643031, 0.190753, 0.294127, 0.680891]),
            (NetRVLAD(2, clusters=2, assignment="bias"), [0.556519, 0.254069, 0.436218, 0.659885]),
            (SoftDBoW(2, clusters=2, assignment="bias"), [0.950615, 0.310374]),
            (
                NetFV(2, clusters=2, assignment="bias"),
                # σ = 1 + 1e-6, so the first half is NetVLAD's output to six digits
                [
                    *(0.643031, 0.190753, 0.294127, 0.680891),
                    *(-0.442094, -0.301491, -0.802304, -0.264509),
                ],
            ),
        ],
        ids=["netvlad", "netrvlad", "soft_dbow", "netfv"],
    )
    def test_pooling(self, pooling: Pooling, want: list[float]) -> None:
        out = golden(pooling)
        torch.testing.assert_close(out, torch.tensor(want).double(), atol=2e-6, rtol=0)


def norm_by_hand(norm: MaskedBatchNorm, values: Tensor) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    return (values - norm.running_mean) * scale + norm.bias


def folded(assign: SoftAssignment) -> tuple[Tensor, Tensor]:
    """Weight and bias [K] that give the assignment's logits with its batch norm in evaluation."""
    assert assign.norm is not None
    zero = torch.zeros(assign.weight.shape[1])
    bias = norm_by_hand(assign.norm, zero)
    return assign.weight * (norm_by_hand(assign.norm, zero + 1) - bias), bias


@torch.no_grad()
def shares(assign: SoftAssignment, rows: Tensor) -> Tensor:
    return slow.soft_assignment(rows, *folded(assign))


class TestAgainstLoops:
    rows: Tensor

    @pytest.fixture(autouse=True)
    def drawn(self) -> Iterator[None]:
        self.rows = torch.randn(7, 8)
        with torch.no_grad():
            yield

    def check(self, pooling: Pooling, want: Tensor) -> None:
        batch = self.rows.unsqueeze(0)
        out = pooling(batch, all_real(batch))[0]
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-4)

    def test_mean_sum_max(self) -> None:
        total = torch.stack([sum(row[j] for row in self.rows) for j in range(8)])
        self.check(SumPooling(8), total)
        self.check(MeanPooling(8), total / 7)
        self.check(MaxPooling(8), slow.column_max(self.rows))

    def test_netvlad(self) -> None:
        pooling = build("netvlad")
        assert isinstance(pooling, NetVLAD)
        share = shares(pooling.assign, self.rows)
        sums = slow.residual_sums(self.rows, share, pooling.centres)
        self.check(pooling, slow.d_major(sums, per_cluster=True))

    def test_netvlad_reduces_its_rows_first(self) -> None:
        torch.manual_seed(4)
        reduced, rows = NetVLAD(7, clusters=3, assignment="bias", reduce=4), torch.randn(2, 5, 7)
        plain, mask = NetVLAD(4, clusters=3, assignment="bias"), torch.ones(2, 5, dtype=torch.bool)
        state = reduced.state_dict()
        matrix = state.pop("reduce")
        plain.load_state_dict(state)
        assert reduced.out_dim == 12
        torch.testing.assert_close(reduced(rows, mask), plain(rows @ matrix, mask))

    def test_netrvlad(self) -> None:
        pooling = build("netrvlad")
        assert isinstance(pooling, NetRVLAD)
        share = shares(pooling.assign, self.rows)
        sums = slow.residual_sums(self.rows, share, torch.zeros(8, 4))
        self.check(pooling, slow.d_major(sums, per_cluster=True))

    def test_one_row_keeps_its_shares(self) -> None:
        # Without the scaling per cluster: a_k (x - c_k), of unit length as a whole.
        pooling = build("netvlad")
        assert isinstance(pooling, NetVLAD)
        self.rows = self.rows[:1]
        share = shares(pooling.assign, self.rows)
        sums = slow.residual_sums(self.rows, share, pooling.centres)
        self.check(pooling, slow.d_major(sums, per_cluster=False))

    @pytest.mark.parametrize("second_order", ["global", "intra"])
    @pytest.mark.parametrize("centres", ["separate", "coupled"])
    def test_netfv(self, second_order: str, centres: str) -> None:
        config = {"kind": "netfv", "clusters": 4, "second_order": second_order, "centres": centres}
        pooling = build_pooling(PoolingConfig.from_dict(config), 8).eval()
        assert isinstance(pooling, NetFV)
        at = 0.01 * pooling.assign.weight if pooling.centres is None else pooling.centres
        share = shares(pooling.assign, self.rows)
        intra = second_order == "intra"
        self.check(pooling, slow.net_fv(self.rows, share, at, pooling.spread, intra=intra))

    def test_soft_dbow(self) -> None:
        pooling = SoftDBoW(8, clusters=4, with_max=True).eval()
        share = shares(pooling.assign, self.rows)
        halves = [slow.unit(share.sum(0)), slow.unit(slow.column_max(share))]
        self.check(pooling, torch.cat(halves))

    def test_gated_soft_dbow(self) -> None:
        pooling = build("gated_soft_dbow")
        assert isinstance(pooling, GatedSoftDBoW)
        share = shares(pooling.assign, self.rows)
        largest = slow.unit(slow.column_max(share))
        logits = torch.zeros(4)
        for k in range(4):
            for j in range(8):
                logits[k] += (largest @ pooling.reduce[:, j]) * pooling.expand[j, k]
        gate = 1 / (1 + (-norm_by_hand(pooling.norm, logits)).exp())
        self.check(pooling, slow.unit(gate * share.sum(0)))

    @pytest.mark.parametrize("activation", ["relu6", "glu"])
    def test_dbof(self, activation: str) -> None:
        config = PoolingConfig.from_dict({"kind": "dbof", "clusters": 4, "activation": activation})
        pooling = build_pooling(config, 8).eval()
        assert isinstance(pooling, DBoF)
        words = []
        for row in self.rows * 5:  # wide enough that some values pass 6
            word = norm_by_hand(pooling.norm, row @ pooling.weight)
            glu = activation == "glu"
            words.append(word[:4] / (1 + (-word[4:]).exp()) if glu else word.clamp(0, 6))
        stacked = torch.stack(words)
        halves = [slow.unit(stacked.sum(0) / 7), slow.unit(slow.column_max(stacked))]
        self.rows = self.rows * 5
        self.check(pooling, torch.cat(halves))

    def test_bag_of_words_and_vlad(self) -> None:
        bow, vlad = build("bow"), build("vlad")
        assert isinstance(bow, BagOfWords)
        assert isinstance(vlad, VLAD)
        for pooling in (bow, vlad):
            share = torch.zeros(7, 4)
            for t in range(7):
                far = [float((self.rows[t] - centre).norm()) for centre in pooling.codebook]
                share[t, far.index(min(far))] = 1
            if pooling is bow:
                self.check(bow, slow.unit(share.sum(0)))
            else:
                sums = slow.residual_sums(self.rows, share, vlad.codebook.T)
                self.check(vlad, slow.d_major(sums, per_cluster=True))

    def test_lstm(self) -> None:
        pooling = build("lstm")
        assert isinstance(pooling, LSTMPooling)
        self.check(pooling, slow.lstm_last(self.rows, pooling.rnn))

    def test_gru(self) -> None:
        pooling = build("gru")
        assert isinstance(pooling, GRUPooling)
        self.check(pooling, slow.gru_last(self.rows, pooling.rnn))

    def test_nextvlad(self) -> None:
        pooling = build("nextvlad")  # 2 groups of 8 columns, 4 clusters
        assert isinstance(pooling, NeXtVLAD)
        sums = torch.zeros(8, 4)
        for row in self.rows:
            wide = pooling.expand.weight @ row + pooling.expand.bias
            logits = norm_by_hand(pooling.norm, wide @ pooling.weight)
            for g in range(2):
                part = wide[g * 8 : g * 8 + 8]
                attention = (pooling.attend.weight[g] @ wide + pooling.attend.bias[g]).sigmoid()
                powers = logits[g * 4 : g * 4 + 4].exp()
                for k in range(4):
                    share = attention * powers[k] / powers.sum()
                    sums[:, k] += share * (part - pooling.centres[:, k])
        for k in range(4):
            sums[:, k] = slow.unit(sums[:, k])
        self.check(pooling, norm_by_hand(pooling.out_norm, sums.flatten()))

    def test_attention(self) -> None:
        pooling = build("attention")
        assert isinstance(pooling, AttentionPooling)
        scores = torch.zeros(7, 2)
        for t in range(7):
            content = (pooling.content.weight @ self.rows[t] + pooling.content.bias).tanh()
            gate = (pooling.gate.weight @ self.rows[t] + pooling.gate.bias).sigmoid()
            scores[t] = (content * gate) @ pooling.score
        want = torch.zeros(2, 8)
        for head in range(2):
            for t in range(7):
                want[head] += scores[t, head].exp() / scores[:, head].exp().sum() * self.rows[t]
        self.check(pooling, want.flatten())


class TestInitialisation:
    def test_spread_of_the_papers_weights(self) -> None:
        # N(0, 1/√D) with D = 64: 0.125, estimated here from 64 000 values (± 0.3 %).
        pooling = NetVLAD(64, clusters=1000)
        for weight in (pooling.assign.weight, pooling.centres):
            assert weight.std().item() == pytest.approx(0.125, rel=0.02)
        spread = NetFV(64, clusters=1000).spread
        assert spread.mean().item() == pytest.approx(1, abs=0.005)
        assert spread.std().item() == pytest.approx(0.125, rel=0.02)

    def test_lstm_starts_by_remembering(self) -> None:
        rnn = LSTMPooling(3, cells=5, layers=2).rnn
        for layer in range(2):
            bias = getattr(rnn, f"bias_ih_l{layer}") + getattr(rnn, f"bias_hh_l{layer}")
            assert bias[5:10].tolist() == [1.0] * 5


class _LargestTensor(TorchDispatchMode):
    """Notes the number of values of the largest tensor that any operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        self.values = max([self.values, *(t.untyped_storage().nbytes() // 4 for t in tensors)])
        return out


@pytest.mark.parametrize("kind", ["netvlad", "netrvlad", "netfv", "vlad"])
def test_no_tensor_holds_every_row_for_every_cluster(kind: str) -> None:
    # [B, T, K, D] would be 2·300·64·2048 values (315 MB); [B, T, D] is the largest needed,
    # forwards and backwards.
    pooling = build_pooling(PoolingConfig(kind, clusters=64), 2048).eval()
    if isinstance(pooling, CodebookPooling):
        pooling.fitted.fill_(1)
    rows = torch.randn(2, 300, 2048, requires_grad=True)
    mask = all_real(rows)
    with _LargestTensor() as seen:
        pooled = pooling(rows, mask)
        torch.autograd.backward(pooled.square().sum() + (pooled * pooled.detach().cos()).sum())
    assert rows.grad is not None
    assert rows.grad.shape == rows.shape
    assert rows.numel() <= seen.values <= 2 * rows.numel()


class TestMaskedBatchNorm:
    def test_equals_torch_on_the_real_rows(self) -> None:
        ours, theirs = MaskedBatchNorm(5), nn.BatchNorm1d(5, eps=1e-3, momentum=1e-3)
        for _ in range(3):
            rows, mask = torch.randn(4, 6, 5) * 3 + 1, torch.rand(4, 6) < 0.5
            out = ours(rows.masked_fill(~mask.unsqueeze(-1), 1e3), mask)
            torch.testing.assert_close(out[mask], theirs(rows[mask]))
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        rows = torch.randn(4, 5)
        torch.testing.assert_close(ours.eval()(rows), theirs.eval()(rows))

    def test_gradient_equals_torch(self) -> None:
        ours, theirs = MaskedBatchNorm(5), nn.BatchNorm1d(5, eps=1e-3)
        rows = torch.randn(9, 5)
        upstream = torch.randn(9, 5)
        got, want = (rows.clone().requires_grad_() for _ in range(2))
        (ours(got) * upstream).sum().backward()
        (theirs(want) * upstream).sum().backward()
        torch.testing.assert_close(got.grad, want.grad)

    @pytest.mark.parametrize("real", [0, 1])
    def test_too_few_rows_leave_the_statistics_alone(self, real: int) -> None:
        norm = MaskedBatchNorm(2)
        rows = torch.tensor([[3.0, 4.0], [float("nan"), 1e3]])
        out = norm(rows, torch.arange(2) < real)
        assert norm.running_mean.tolist() == [0, 0]
        assert norm.running_var.tolist() == [1, 1]
        # By the running statistics, mean 0 and variance 1: x / sqrt(1.001).
        torch.testing.assert_close(out[:real], rows[:real] / 1.001**0.5)

    def test_momentum_can_be_set_for_a_whole_network(self) -> None:
        net = nn.Sequential(NetVLAD(2, clusters=2), MaskedBatchNorm(3))
        set_batch_norm_momentum(net, 0.1)
        norms = [m for m in net.modules() if isinstance(m, MaskedBatchNorm)]
        assert [norm.momentum for norm in norms] == [0.1, 0.1]


class TestCodebook:
    def test_finds_the_groups_that_were_drawn(self) -> None:
        middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
        rows = (middles.unsqueeze(1) + 0.1 * torch.randn(3, 40, 2)).flatten(0, 1)
        for seed in range(5):
            found = fit_codebook(rows, clusters=3, seed=seed)
            order = torch.cdist(middles, found).argmin(dim=1)
            torch.testing.assert_close(found[order], middles, atol=0.1, rtol=0)

    def test_centres_are_the_means_of_their_rows(self) -> None:
        rows = torch.randn(200, 3)
        found = fit_codebook(rows, clusters=6, seed=0)
        nearest = torch.cdist(rows, found).argmin(dim=1)
        means = torch.stack([rows[nearest == k].mean(dim=0) for k in range(6)])
        torch.testing.assert_close(found, means, atol=1e-5, rtol=0)

    def test_same_seed_same_centres(self) -> None:
        rows = torch.randn(100, 3)
        assert torch.equal(*(fit_codebook(rows, clusters=5, seed=3) for _ in range(2)))

    def test_more_clusters_than_different_rows(self) -> None:
        assert fit_codebook(torch.ones(10, 2), clusters=3, seed=0).tolist() == [[1, 1]] * 3

    def test_refuses_too_few_rows_and_bad_values(self) -> None:
        with pytest.raises(ConfigError, match="4 clusters need as many rows"):
            fit_codebook(torch.randn(3, 2), clusters=4, seed=0)
        with pytest.raises(ConfigError, match="not finite"):
            fit_codebook(torch.full((9, 2), float("nan")), clusters=4, seed=0)

    @pytest.mark.parametrize("kind", ["bow", "vlad"])
    def test_unfitted_is_an_error_and_the_state_says_fitted(self, kind: str) -> None:
        pooling = build_pooling(PoolingConfig(kind, clusters=2), 3)
        rows = torch.randn(1, 4, 3)
        with pytest.raises(WeightsError, match="not fitted"):
            pooling(rows, all_real(rows))
        fitted = build(kind, 3, 2)
        pooling.load_state_dict(fitted.state_dict())
        assert torch.equal(pooling(rows, all_real(rows)), fitted(rows, all_real(rows)))
