"""The linear start, codebooks, refit, teacher and class weights of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from vtag.batches import collate
from vtag.dataset import Dataset, Sample, _held_out
from vtag.errors import ConfigError, WeightsError
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, load_checkpoint
from vtag.models.log_probabilities import OutputKind
from vtag.models.losses import LossConfig, effective_number_weights, loss_of
from vtag.models.net_config import HeadConfig, StreamConfig, TaggerNetConfig
from vtag.models.presets import small_config
from vtag.models.tagger_net import TaggerNet
from vtag.train import train
from vtag.train_config import TrainConfig, default_preset, preset
from vtag.train_result import confusions
from vtag.train_start import PENALTIES, fit_codebooks, fit_linear, start_from_linear

torch.set_num_threads(1)

Rows = Mapping[str, np.ndarray]


def same(rows: Rows) -> Rows:
    return rows


def drawn(count: int, *, seed: int, silent: int = 3, name: str = "clip") -> tuple[Sample, ...]:
    """Clips of three labels whose rows lie around a point of their label; each third is silent."""
    random = np.random.default_rng(seed)
    points = np.random.default_rng(99).standard_normal((3, 10))
    found = []
    for n in range(count):
        rows = {"visual": (points[n % 3] + 0.8 * random.standard_normal((4, 10))).astype("f2")}
        if n % silent:
            rows["audio"] = (3 * points[n % 3, :5] + random.standard_normal((2, 5))).astype("f2")
        found.append(Sample(f"{name}{n}", (n % 3,), partial(same, rows)))
    return tuple(found)


def dataset(train_clips: int = 24, checked: int = 9) -> Dataset:
    return Dataset(
        label_ids=("a", "b", "c"),
        label_names=("a", "b", "c"),
        dims={"visual": 10, "audio": 5},
        made_by={"visual": "eyes@1", "audio": "ears@1"},
        train=drawn(train_clips, seed=1),
        validation=drawn(checked, seed=2, name="check"),
        test=drawn(30, seed=3, name="test"),
    )


class TestLinearFit:
    def ridge(
        self, rows: torch.Tensor, targets: torch.Tensor, penalty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [P, C] and bias [C] by the normal equations."""
        centre, mean = rows.mean(dim=0), targets.mean(dim=0)
        scatter = (rows - centre).T @ (rows - centre)
        ridge = penalty * scatter.trace() * torch.eye(rows.shape[1], dtype=torch.double)
        weight = torch.linalg.solve(scatter + ridge, (rows - centre).T @ (targets - mean))
        return weight, mean - centre @ weight

    def test_it_is_ridge_regression_up_to_slope_and_offset(self) -> None:
        torch.manual_seed(0)
        rows, labels = torch.randn(20, 6).double(), torch.arange(20) % 3
        targets = functional.one_hot(labels).double()
        fit = fit_linear(rows, targets, range(20), output="multi_label")
        weight, bias = self.ridge(rows, targets, fit.penalty)
        slope = fit.weight[0, 0] / weight[0, 0]
        assert slope > 0
        torch.testing.assert_close(fit.weight, slope * weight.T)
        offset = fit.bias - slope * bias
        torch.testing.assert_close(offset, offset[:1].expand(3))

    def test_penalty_and_scale_are_those_of_clips_left_out(self) -> None:
        # The loss of every group by a classifier that was solved for without it, one by one. The
        # centre stays that of all rows: it moves by a share of one clip.
        torch.manual_seed(1)
        rows = torch.randn(18, 30).double()
        labels = torch.arange(18) % 2
        rows[:, 0] += 2.0 * labels
        targets, groups = functional.one_hot(labels).double(), [n // 3 for n in range(18)]
        fit = fit_linear(rows, targets, groups, output="multi_label")
        losses = {}
        for penalty in PENALTIES:
            scale = (rows - rows.mean(dim=0)).square().sum()
            unseen = torch.zeros_like(targets)
            for group in range(6):
                out = torch.tensor(groups) == group
                # An unpenalised bias, as a column that costs nearly nothing.
                ones = torch.ones(18, 1, dtype=torch.double)
                wide = torch.cat([rows - rows.mean(dim=0), ones], dim=1)
                cost = torch.eye(31, dtype=torch.double) * penalty * scale
                cost[-1, -1] = 1e-9
                known = wide[~out]
                weight = torch.linalg.solve(known.T @ known + cost, known.T @ targets[~out])
                unseen[out] = wide[out] @ weight
            slopes = torch.logspace(-2, 3, 200, dtype=torch.double)
            offsets = torch.linspace(-20, 5, 200, dtype=torch.double)
            logits = slopes[:, None, None, None] * unseen + offsets[:, None, None]
            each = functional.binary_cross_entropy_with_logits(
                logits, targets.expand_as(logits), reduction="none"
            )
            losses[penalty] = float(each.mean(dim=(2, 3)).min())
        assert fit.penalty == min(losses, key=losses.__getitem__)
        assert fit.loss == pytest.approx(losses[fit.penalty], rel=2e-3)

    def test_copies_of_a_group_do_not_vouch_for_each_other(self) -> None:
        torch.manual_seed(2)
        rows, targets = torch.randn(10, 40).double(), functional.one_hot(torch.arange(10) % 2)
        twice, both = torch.cat([rows, rows]), torch.cat([targets, targets])
        alone = fit_linear(twice, both, range(20), output="single_label")
        grouped = fit_linear(twice, both, [*range(10), *range(10)], output="single_label")
        # Noise can not be told from a copy's noise; with the copy left out there is nothing.
        assert alone.loss < 0.1
        assert grouped.loss > 0.5

    @pytest.mark.parametrize("output", ["multi_label", "single_label"])
    @pytest.mark.parametrize("alone", [1, 3], ids=["one label", "all labels"])
    def test_a_label_of_one_group_does_not_make_all_unsure(
        self, output: OutputKind, alone: int
    ) -> None:
        # 3 labels far apart, 8 clips each; the last `alone` of them are of one group each.
        torch.manual_seed(3)
        labels = torch.arange(24) // 8
        rows = 0.3 * torch.randn(24, 12).double()
        rows[torch.arange(24), labels] += 3.0
        groups = [
            int(lb) if lb >= 3 - alone else 10 * int(lb) + n % 4 for n, lb in enumerate(labels)
        ]
        fit = fit_linear(rows, functional.one_hot(labels), groups, output=output)
        logits = rows @ fit.weight.T + fit.bias
        scores = logits.softmax(dim=1) if output == "single_label" else logits.sigmoid()
        assert fit.loss < 0.1
        assert float(scores[torch.arange(24), labels].min()) > 0.8


class TestStart:
    def test_an_untrained_network_already_tells_the_labels_apart(self) -> None:
        data = dataset()
        torch.manual_seed(0)
        net = TaggerNet(small_config(3, data.dims, output="single_label"))
        start_from_linear(net, data, frames=8)
        batch = collate(data.test, data, frames=8)
        with torch.no_grad():
            scores = net.eval()(batch.rows, batch.mask)
            seen = {"visual": batch.rows["visual"]}, {"visual": batch.mask["visual"]}
            without_sound = net(*seen)
        truth = batch.labels.argmax(dim=1)
        assert (scores.argmax(dim=1) == truth).float().mean() > 0.9
        assert (without_sound.argmax(dim=1) == truth).float().mean() > 0.8

    def test_codebooks_are_the_means_of_training_rows(self) -> None:
        data = dataset()
        stream = StreamConfig(
            name="visual", dim=10, poolings=(PoolingConfig("vlad", clusters=1),), input_norm="l2"
        )
        net = TaggerNet(TaggerNetConfig(streams=(stream,), labels=3, hidden=8))
        data = replace(data, dims={"visual": 10})
        fit_codebooks(net, data, frames=8, seed=0)
        rows = np.concatenate([s.load()["visual"] for s in data.train]).astype(np.float32)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        (codebook,) = [b for name, b in net.named_buffers() if name.endswith("codebook")]
        np.testing.assert_allclose(codebook[0].numpy(), unit.mean(axis=0), atol=1e-4)

    def test_signed_roots_at_unit_length(self) -> None:
        stream = StreamConfig(
            name="visual", dim=3, poolings=(PoolingConfig("mean"),), input_norm="signed_sqrt_l2"
        )
        net = TaggerNet(
            TaggerNetConfig(streams=(stream,), labels=2, fc="none", hidden=0, gate_hidden=None)
        )
        rows = torch.tensor([[[4.0, -9.0, 0.0]]], requires_grad=True)
        pooled = net.pooled({"visual": rows}, {"visual": torch.ones(1, 1, dtype=torch.bool)})
        want = torch.tensor([[2.0, -3.0, 0.0]]) / 13**0.5
        torch.testing.assert_close(pooled, want, atol=2e-6, rtol=0)
        (slope,) = torch.autograd.grad(pooled.sum(), rows)
        assert slope.isfinite().all()


class TestRefit:
    CONFIG = TrainConfig(
        epochs=6,
        batch_size=8,
        frames=4,
        learning_rate=0.01,
        output="single_label",
        loss=LossConfig(kind="cross_entropy"),
        first_guess="linear",
    )

    def test_it_is_the_training_on_all_clips_for_as_many_epochs(self, tmp_path: Path) -> None:
        data = dataset()
        first = train(self.CONFIG, data, tmp_path / "first")
        refitted = train(replace(self.CONFIG, refit=True), data, tmp_path / "refit")
        assert first is not None
        assert refitted is not None
        best = first.report.best_epoch
        assert refitted.report.best_epoch == best
        all_clips = replace(data, train=(*data.train, *data.validation))
        by_hand = train(
            replace(self.CONFIG, stop_after=best, goal="gap"), all_clips, tmp_path / "hand"
        )
        assert by_hand is not None
        if by_hand.report.best_epoch == best:  # its last weights are the ones it kept
            want = load_checkpoint(tmp_path / "hand").net.state_dict()
            found = load_checkpoint(tmp_path / "refit").net.state_dict()
            assert all(torch.equal(want[name], found[name]) for name in want)
        # Rounded sums: the order of a matrix product is the processor's own.
        figures = pytest.approx(dict(first.report.sides[0].figures), abs=1e-9)
        assert dict(refitted.report.sides[0].figures) == figures
        page = (tmp_path / "refit" / "report.html").read_text()
        assert "trained once more" in page


class TestTeacher:
    def teacher(self, labels: tuple[str, ...] = ("a", "b", "c")) -> Checkpoint:
        torch.manual_seed(5)
        streams = tuple(
            StreamConfig(name=name, dim=dim, poolings=(PoolingConfig("mean"),))
            for name, dim in (("visual", 10), ("audio", 5))
        )
        net = TaggerNet(
            TaggerNetConfig(
                streams=streams, labels=len(labels), hidden=8, head=HeadConfig(kind="linear")
            )
        )
        return Checkpoint(
            net=net.eval(),
            labels=[{"id": label, "name": label} for label in labels],
            name="teacher",
            extractors={"visual": "eyes@1", "audio": "ears@1"},
        )

    def test_with_its_scores_alone_it_is_what_is_learnt(self, tmp_path: Path) -> None:
        # A drawn teacher: its scores have nothing to do with the labels.
        data, teacher = dataset(60), self.teacher()
        config = TrainConfig(epochs=60, batch_size=20, frames=4, frame_sampling="even")
        config = replace(config, learning_rate=0.01, batch_norm_momentum=0.1, teaching=1.0)
        data = replace(data, validation=data.train)
        network = replace(teacher.config, gate_output=None)
        result = train(config, data, tmp_path / "m", network=network, teacher=teacher)
        assert result is not None
        batch = collate(data.train, data, frames=4)
        with torch.no_grad():
            want = teacher.net.probabilities(batch.rows, batch.mask)
        # The last epoch's loss approaches the least that targets of this entropy allow.
        least = functional.binary_cross_entropy(want, want) * 3
        losses = [row["train_loss"] for row in result.report.history]
        assert losses[-1] - float(least) < 0.2 * (losses[0] - float(least))

    def test_other_labels_or_features_are_refused(self, tmp_path: Path) -> None:
        data, config = dataset(), TrainConfig(epochs=1)
        with pytest.raises(ConfigError, match="teacher 'teacher' has other labels"):
            train(config, data, tmp_path / "m", teacher=self.teacher(("a", "b", "d")))
        foreign = replace(self.teacher(), extractors={"visual": "eyes@2"})
        with pytest.raises(WeightsError, match=r"eyes@2.*eyes@1"):
            train(config, data, tmp_path / "m", teacher=foreign)


def test_balanced_cross_entropy_weighs_items_by_their_label() -> None:
    torch.manual_seed(3)
    scores, labels = torch.randn(6, 3).log_softmax(dim=1), torch.tensor([0, 0, 0, 0, 1, 2])
    positives = torch.tensor([400.0, 10.0, 1.0])
    weights = effective_number_weights(positives, 0.99)
    want = sum(-weights[label] * row[label] for row, label in zip(scores, labels, strict=True))
    want /= len(labels)  # targets as probabilities: the mean is over items
    loss = LossConfig(kind="balanced_cross_entropy", balance=0.99)
    targets = functional.one_hot(labels, 3).float()
    torch.testing.assert_close(loss_of(scores, targets, loss, positives=positives), want)
    with pytest.raises(ConfigError, match="needs the number of examples"):
        loss_of(scores, targets, loss)


def test_confusions_are_counted_by_label_and_best_score() -> None:
    scores = np.array([[0.9, 0.1, 0], [0.9, 0.2, 0], [0.1, 0.8, 0], [0.7, 0, 0.2]], np.float32)
    truth = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]], bool)
    found = confusions(("a", "b", "c"), scores, truth)
    assert [(c.true, c.said, c.clips) for c in found] == [("b", "a", 3), ("c", "a", 1)]


def test_videos_held_out_are_decided_by_their_id() -> None:
    samples = drawn(2000, seed=0)
    kept, moved = _held_out(samples, 0.2, 0)
    assert 340 < len(moved) < 460  # 400 ± 3.4 deviations
    assert {s.name for s in kept}.isdisjoint(s.name for s in moved)
    again = _held_out(tuple(reversed(samples)), 0.2, 0)[1]
    assert {s.name for s in again} == {s.name for s in moved}
    assert {s.name for s in _held_out(samples, 0.2, 1)[1]} != {s.name for s in moved}


def test_the_default_preset_grows_with_the_clips() -> None:
    data = dataset()
    assert default_preset(data) == "small-data"
    assert default_preset(replace(data, train=data.train[:1] * 1000)) == "medium"
    assert default_preset(replace(data, train=data.train[:1] * 100_000)) == "nextvlad"
    assert preset("medium").preset == "medium"
