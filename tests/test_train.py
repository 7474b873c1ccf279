"""Training: it learns, it stops and goes on, it refuses, and it says what it did."""

from __future__ import annotations

import json
import math
import multiprocessing
import socket
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

import vtag.train_state
from vtag.batches import batches_in_order, truth_of
from vtag.dataset import Dataset, Sample
from vtag.errors import ConfigError, EnvironmentProblem, OutputError, WeightsError
from vtag.evaluate import gap_at_k, mean_average_precision
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, load_checkpoint
from vtag.models.labels import LabelSet
from vtag.models.losses import LossConfig
from vtag.models.net_config import HeadConfig, StreamConfig, TaggerNetConfig
from vtag.models.readout import Readout
from vtag.models.tagger_net import TaggerNet
from vtag.train import train
from vtag.train_advice import advice
from vtag.train_config import TrainConfig, default_preset, network_for, preset
from vtag.train_curves import curves_svg, ticks
from vtag.train_processes import Processes
from vtag.train_result import TrainResult, fitted_thresholds
from vtag.train_run import TrainRun
from vtag.train_state import STATE_FILE, Progress, load_state, save_state

torch.set_num_threads(1)

Rows = Mapping[str, np.ndarray]
CPU = torch.device("cpu")


def same(rows: Rows) -> Rows:
    return rows


def drawn_dataset(
    train: int = 8,
    *,
    labels: int = 4,
    checked: int = 4,
    tested: int = 0,
    seed: int = 0,
    **fields: object,
) -> Dataset:
    """Clips whose rows are pure noise: what is learnt of them is learnt by heart."""
    random = np.random.default_rng(seed)

    def samples(count: int, kind: str) -> tuple[Sample, ...]:
        found = []
        for n in range(count):
            rows = {"visual": random.standard_normal((5, 12)).astype(np.float16)}
            if n % 3:  # every third clip is silent
                rows["audio"] = random.standard_normal((3, 6)).astype(np.float16)
            own = {n % labels, int(random.integers(labels))}
            found.append(Sample(f"{kind}{n}.mp4", tuple(sorted(own)), partial(same, rows)))
        return tuple(found)

    names = tuple(f"label {n}" for n in range(labels))
    return Dataset(
        label_ids=names,
        label_names=names,
        dims={"visual": 12, "audio": 6},
        made_by={"visual": "eyes@1", "audio": "ears@1"},
        train=samples(train, "train"),
        validation=samples(checked, "check"),
        test=samples(tested, "test"),
        **fields,  # type: ignore[arg-type]
    )


def plain_network(labels: int = 4, **fields: object) -> TaggerNetConfig:
    """Without batch norm, dropout and gates."""
    return TaggerNetConfig(
        streams=(
            StreamConfig(
                name="visual",
                dim=12,
                poolings=(
                    PoolingConfig("mean"),
                    PoolingConfig("netvlad", clusters=2, assignment="bias"),
                ),
            ),
            StreamConfig(name="audio", dim=6, poolings=(PoolingConfig("mean"),)),
        ),
        labels=labels,
        hidden=32,
        gate_hidden=None,
        gate_output=None,
        **{"head": HeadConfig(kind="linear"), **fields},  # type: ignore[arg-type]
    )


def finished(result: TrainResult | None) -> TrainResult:
    assert result is not None
    return result


def after(steps: int):  # type: ignore[no-untyped-def]
    """A `should_stop` that says so after so many steps."""
    made = iter(range(1, 10_000))
    return lambda: next(made) >= steps


class TestLearning:
    @pytest.mark.parametrize("name", ["small-data", "paper", "nextvlad", "blog"])
    def test_eight_clips_are_learnt_by_heart_in_200_steps(self, name: str, tmp_path: Path) -> None:
        # Validated on the very clips, so that the scores of the kept weights tell.
        dataset = drawn_dataset(8)
        dataset = replace(dataset, validation=dataset.train)
        config = preset(
            name,
            epochs=200,
            batch_size=8,
            frames=5,
            frame_sampling="even",
            learning_rate=0.01,
            schedule="constant",
            weight_decay=0.0,
            batch_norm_momentum=0.1,
            ema=0.0,
            patience=60,
            goal="map",
        )
        network = without_dropout(small(network_for(config, dataset)))
        result = finished(train(config, dataset, tmp_path / "m", network=network))
        assert result.report.history[-1]["step"] <= 200
        loaded = load_checkpoint(result.folder).net
        (batch,) = batches_in_order(dataset.train, dataset, batch_size=8, frames=5)
        with torch.no_grad():
            scores = loaded.probabilities(batch.rows, batch.mask)
        truth = truth_of(dataset.train, 4)
        assert gap_at_k(scores.numpy(), truth) == 1.0
        # Every label of every clip on the right side of its stored threshold.
        thresholds = [label["threshold"] for label in load_checkpoint(result.folder).labels]
        np.testing.assert_array_equal(scores.numpy() >= thresholds, truth)

    def test_spread_of_the_rows_is_seen_by_netvlad_and_netfv_but_not_by_a_mean(
        self, tmp_path: Path
    ) -> None:
        # Two kinds of clips: rows at +v and -v in equal numbers, v along one axis or another.
        # Their means are the same, so a mean can only guess; which axis it was is order-free.
        random = np.random.default_rng(5)

        def samples(count: int) -> tuple[Sample, ...]:
            found = []
            for n in range(count):
                rows = 0.1 * random.standard_normal((16, 6))
                rows[:, n % 2] += np.tile([1.0, -1.0], 8)
                found.append(
                    Sample(str(n), (n % 2,), partial(same, {"visual": rows.astype(np.float16)}))
                )
            return tuple(found)

        dataset = Dataset(
            label_ids=("a", "b"),
            label_names=("a", "b"),
            dims={"visual": 6},
            made_by={},
            train=samples(60),
            validation=samples(60),
        )
        found = {}
        for kind, options in (
            ("mean", {}),
            ("netvlad", {"clusters": 4}),
            ("netfv", {"clusters": 4}),
        ):
            network = TaggerNetConfig(
                streams=(
                    StreamConfig(name="visual", dim=6, poolings=(PoolingConfig(kind, **options),)),
                ),
                labels=2,
                hidden=16,
                gate_output=None,
            )
            config = TrainConfig(
                epochs=40,
                batch_size=30,
                frames=16,
                frame_sampling="even",
                learning_rate=0.01,
                batch_norm_momentum=0.1,
            )
            result = finished(train(config, dataset, tmp_path / kind, network=network))
            found[kind] = max(row["hit_at_one"] for row in result.report.history)
        assert found["mean"] < 0.75  # the best of 40 looks at 60 coins: 0.5 + 3.9 * 0.065
        assert found["netvlad"] > 0.95
        assert found["netfv"] > 0.95

    def test_one_label_per_clip(self, tmp_path: Path) -> None:
        dataset = drawn_dataset(12, labels=3)
        with pytest.raises(ConfigError, match="has 2 labels; single_label needs exactly one"):
            network_for(single(preset("blog")), dataset)
        train_side = tuple(replace(s, labels=s.labels[:1]) for s in dataset.train)
        dataset = replace(dataset, train=train_side, validation=train_side)
        config = single(preset("blog", epochs=40, batch_size=12, learning_rate=0.01, patience=None))
        network = without_dropout(small(network_for(config, dataset)))
        result = finished(train(config, dataset, tmp_path / "m", network=network))
        assert result.report.sides[0].figures["hit_at_one"] > 0.9
        stored = load_checkpoint(result.folder)
        readout = Readout.from_dict(stored.readout, LabelSet.from_list(stored.labels))
        assert [group.kind for group in readout.groups] == ["softmax"]


def single(config: TrainConfig) -> TrainConfig:
    return replace(config, output="single_label", loss=LossConfig(kind="cross_entropy"))


def without_dropout(network: TaggerNetConfig) -> TaggerNetConfig:
    return replace(
        network,
        dropout_pooled=0.0,
        dropout_hidden=0.0,
        head=replace(network.head, dropout=0.0),
    )


def small(network: TaggerNetConfig) -> TaggerNetConfig:
    """The same design with a narrow layer and few clusters: the tests' clips are few and small."""
    streams = tuple(
        replace(
            stream,
            poolings=tuple(
                p if p.clusters is None else replace(p, clusters=4, groups=p.groups and 2)
                for p in stream.poolings
            ),
        )
        for stream in network.streams
    )
    return replace(network, streams=streams, hidden=64)


class TestStoppingAndGoingOn:
    CONFIG = preset(
        "small-data", epochs=4, batch_size=6, accumulate=2, frames=4, warmup_steps=3, patience=None
    )

    def run(
        self, out: Path, stops: tuple[int, ...], config: TrainConfig | None = None
    ) -> TrainResult:
        config = config or self.CONFIG
        dataset = drawn_dataset(20)
        for n, steps in enumerate(stops):
            assert train(config, dataset, out, resume=n > 0, should_stop=after(steps)) is None
        return finished(train(config, dataset, out, resume=bool(stops)))

    @pytest.mark.parametrize("stops", [(1,), (4,), (6,), (2, 5, 3)])
    def test_a_stopped_training_ends_exactly_as_one_in_one_go(
        self, stops: tuple[int, ...], tmp_path: Path
    ) -> None:
        # 4 steps an epoch: the stops lie inside epochs, at their ends, and follow each other.
        whole = self.run(tmp_path / "whole", ())
        pieces = self.run(tmp_path / "pieces", stops)
        assert whole.report.history == pieces.report.history
        one, other = (load_file(result.folder / "model.safetensors") for result in (whole, pieces))
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
        assert not (tmp_path / "pieces.training").exists()

    def test_the_best_weights_outlive_a_stop(self, tmp_path: Path) -> None:
        # Noise can not be predicted, so the first epochs validate best.
        config = TrainConfig(epochs=8, batch_size=10, frames=5, learning_rate=0.03)
        dataset, network = drawn_dataset(20, checked=16), plain_network()
        whole = finished(train(config, dataset, tmp_path / "whole", network=network))
        best = whole.report.best_epoch
        out = tmp_path / "pieces"
        stop = after(2 * best + 1)
        assert train(config, dataset, out, network=network, should_stop=stop) is None
        pieces = finished(train(config, dataset, out, network=network, resume=True))
        assert best < 7
        assert pieces.report.best_epoch == best
        one, other = (load_file(r.folder / "model.safetensors") for r in (whole, pieces))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_another_seed_is_another_training(self, tmp_path: Path) -> None:
        one = self.run(tmp_path / "one", ())
        other = self.run(tmp_path / "other", (), replace(self.CONFIG, seed=1))
        assert one.report.history[-1] != other.report.history[-1]

    def test_the_callers_random_numbers_are_left_alone(self, tmp_path: Path) -> None:
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        self.run(tmp_path / "m", ())
        assert torch.equal(torch.rand(3), expected)

    def test_going_on_with_something_else_is_refused(self, tmp_path: Path) -> None:
        out, dataset = tmp_path / "m", drawn_dataset(20)
        assert train(self.CONFIG, dataset, out, should_stop=after(2)) is None
        with pytest.raises(ConfigError, match=r"m\.training: an unfinished training; resume it"):
            train(self.CONFIG, dataset, out)
        for config, clips in (
            (replace(self.CONFIG, learning_rate=0.1), dataset),
            (self.CONFIG, drawn_dataset(21)),
        ):
            with pytest.raises(WeightsError, match="other settings, clips or labels"):
                train(config, clips, out, resume=True)

    def test_nothing_to_go_on_with(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no training to go on with"):
            train(self.CONFIG, drawn_dataset(8), tmp_path / "m", resume=True)

    def test_a_damaged_state_is_refused(self, tmp_path: Path) -> None:
        save_state(tmp_path, Progress(), {"a": torch.ones(9)}, belongs_to="x")
        file = tmp_path / STATE_FILE
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(WeightsError, match=r"state\.safetensors: damaged"):
            load_state(tmp_path, belongs_to="x")

    def test_a_state_is_whole_or_the_one_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_state(tmp_path, Progress(step=1), {"a": torch.ones(9)}, belongs_to="x")

        def full(tensors: object, path: Path, head: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(vtag.train_state, "save_file", full)
        with pytest.raises(OutputError, match="no space left on the disk"):
            save_state(tmp_path, Progress(step=2), {"a": torch.zeros(9)}, belongs_to="x")
        progress, tensors = load_state(tmp_path, belongs_to="x")
        assert progress.step == 1
        assert tensors["a"].tolist() == [1] * 9
        assert [p.name for p in tmp_path.iterdir()] == [STATE_FILE]


class TestSteps:
    def run_of(self, config: TrainConfig, processes: Processes = Processes()) -> TrainRun:  # noqa: B008
        return TrainRun(config, drawn_dataset(6), plain_network(), processes, CPU)

    def test_accumulation_gives_the_gradient_of_the_whole_step(self) -> None:
        gradients = []
        for accumulate in (1, 4):
            config = TrainConfig(
                loss=LossConfig(expert_l2=0.5),
                batch_size=6,
                accumulate=accumulate,
                frames=5,
                frame_sampling="even",
                clipping="none",
            )
            run = self.run_of(config)
            run._step(run.dataset.train)
            gradients.append([p.grad for p in run.net.parameters()])
        for one, four in zip(*gradients, strict=True):
            torch.testing.assert_close(one, four)

    def test_the_average_follows_with_its_decay(self) -> None:
        config = TrainConfig(
            batch_size=6, frames=5, ema=0.9, learning_rate=0.1, schedule="constant"
        )
        run = self.run_of(config)
        assert run.average is not None
        expected = run.net.head.experts.weight.detach().clone()  # type: ignore[union-attr, operator]
        for step in range(3):
            run._step(run.dataset.train)
            decay = min(0.9, (1 + step) / (10 + step))
            now = run.net.head.experts.weight.detach()  # type: ignore[union-attr, operator]
            expected = decay * expected + (1 - decay) * now
        torch.testing.assert_close(run.average.head.experts.weight, expected)  # type: ignore[union-attr]

    @pytest.mark.parametrize("kind", ["linear", "moe"])
    def test_the_first_guess_is_each_labels_share(self, kind: str) -> None:
        dataset = drawn_dataset(40)
        network = plain_network(head=HeadConfig(kind=kind, experts=3))  # type: ignore[arg-type]
        run = TrainRun(TrainConfig(first_guess="base_rate"), dataset, network, Processes(), CPU)
        (batch,) = batches_in_order(dataset.train, dataset, batch_size=40, frames=9)
        with torch.no_grad():
            run.net.head.experts.weight.zero_()  # type: ignore[union-attr, operator]
            experts = run.net.head.experts.bias.sigmoid().view(4, -1)  # type: ignore[union-attr, operator]
        shares = (batch.labels.sum(dim=0) + 1) / 42
        torch.testing.assert_close(experts, shares[:, None].expand_as(experts))

    @pytest.mark.parametrize("clipping", ["none", "per_variable", "global"])
    def test_clipping(self, clipping: str) -> None:
        config = TrainConfig(batch_size=6, frames=5, clipping=clipping, clip_norm=1e-3)  # type: ignore[arg-type]
        run = self.run_of(config)
        run._step(run.dataset.train)
        norms = torch.stack([p.grad.norm() for p in run.net.parameters() if p.grad is not None])
        if clipping == "per_variable":
            assert norms.max() == pytest.approx(1e-3, rel=1e-2)
            assert (norms > 0.9e-3).sum() > 3
        elif clipping == "global":
            assert norms.norm() == pytest.approx(1e-3, rel=1e-2)
        else:
            assert norms.max() > 0.01

    def test_a_loss_that_explodes_is_said(self, tmp_path: Path) -> None:
        config = TrainConfig(epochs=60, batch_size=6, learning_rate=1.0, clipping="none")
        run = TrainRun(config, drawn_dataset(6), plain_network(), Processes(), CPU)
        with torch.no_grad():
            run.net.head.experts.weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
        with pytest.raises(ConfigError, match=r"the loss became .* in step 0; lower the learning"):
            run._step(run.dataset.train)

    def test_two_processes_make_the_step_of_one(self, tmp_path: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        children = [
            context.Process(target=_one_of_two, args=(rank, port, tmp_path)) for rank in (0, 1)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(300)
            assert child.exitcode == 0
        alone = finished(train(TWO, drawn_dataset(7), tmp_path / "alone", network=plain_network()))
        together = load_file(tmp_path / "together" / "model.safetensors")
        for name, tensor in load_file(alone.folder / "model.safetensors").items():
            torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


# Seven clips in steps of five and two: uneven shares in both.
TWO = TrainConfig(epochs=3, batch_size=5, frames=5, frame_sampling="even", learning_rate=0.01)


def _one_of_two(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    result = train(TWO, drawn_dataset(7), folder / "together", network=plain_network())
    assert (result is None) == (rank == 1)
    dist.destroy_process_group()


class TestFineTuning:
    def start(self, labels: list[str]) -> Checkpoint:
        torch.manual_seed(3)
        return Checkpoint(
            net=TaggerNet(plain_network(len(labels))),
            labels=[{"id": label, "name": label} for label in labels],
            name="start",
            extractors={"visual": "eyes@1", "audio": "ears@1"},
        )

    def first_weights(self, start: Checkpoint, tmp_path: Path) -> dict[str, torch.Tensor]:
        # A rate of nearly 0: what is saved is what training began with.
        config = TrainConfig(epochs=1, learning_rate=1e-12)
        result = finished(train(config, drawn_dataset(8), tmp_path / "m", start=start))
        return load_file(result.folder / "model.safetensors")

    def test_the_same_labels_keep_the_whole_network(self, tmp_path: Path) -> None:
        start = self.start([f"label {n}" for n in range(4)])
        found = self.first_weights(start, tmp_path)
        for name, tensor in start.net.state_dict().items():
            torch.testing.assert_close(found[name], tensor, atol=1e-9, rtol=0, msg=name)

    @pytest.mark.parametrize("labels", [["a", "b", "c", "d"], ["a", "b"]])
    def test_other_labels_get_a_new_classifier(self, labels: list[str], tmp_path: Path) -> None:
        start = self.start(labels)
        found = self.first_weights(start, tmp_path)
        for name, tensor in start.net.state_dict().items():
            kept = found[name].shape == tensor.shape and torch.allclose(
                found[name], tensor, atol=1e-9, rtol=0
            )
            assert kept == (not name.startswith("head.")) or not tensor.any(), name

    def test_other_features_are_refused(self, tmp_path: Path) -> None:
        start = replace(self.start(["a", "b"]), extractors={"visual": "other@9"})
        with pytest.raises(WeightsError, match=r"trained on visual rows of other@9"):
            train(TrainConfig(), drawn_dataset(8), tmp_path / "m", start=start)


class TestWhatIsWritten:
    @pytest.fixture(scope="class")
    @staticmethod
    def result(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
        dataset = drawn_dataset(
            24, checked=12, tested=6, sampling="s@1", notes=("left out: <b>x</b>.mp4: empty",)
        )
        names = ("<script>alert(1)</script>", "a|b", "label 2", "label 3")
        dataset = replace(dataset, label_names=names, label_ids=("0", "1", "2", "3"))
        config = preset("small-data", epochs=5, batch_size=8, frames=4)
        return finished(train(config, dataset, tmp_path_factory.mktemp("w") / "my model"))

    def test_the_model_loads_with_labels_thresholds_and_readout(self, result: TrainResult) -> None:
        stored = load_checkpoint(result.folder)
        labels = LabelSet.from_list(stored.labels)
        assert [label.id for label in labels] == ["0", "1", "2", "3"]
        readout = Readout.from_dict(stored.readout, labels)
        assert readout.pool == "network"
        assert stored.sampling == "s@1"
        assert stored.extractors == {"visual": "eyes@1", "audio": "ears@1"}
        assert stored.fingerprint == result.fingerprint
        thresholds = [label.threshold for label in labels]
        assert thresholds == [figures.threshold for figures in result.report.labels]

    def test_the_figures_are_those_of_the_stored_model(self, result: TrainResult) -> None:
        dataset = drawn_dataset(24, checked=12, tested=6)
        net = load_checkpoint(result.folder).net
        (batch,) = batches_in_order(dataset.test, dataset, batch_size=6, frames=4)
        with torch.no_grad():
            scores = net.probabilities(batch.rows, batch.mask).numpy()
        truth = truth_of(dataset.test, 4)
        validation, test = result.report.sides
        assert (validation.name, test.name) == ("validation", "test")
        assert test.figures["gap"] == pytest.approx(gap_at_k(scores, truth))
        assert test.figures["map"] == pytest.approx(mean_average_precision(scores, truth))
        low, high = validation.intervals["gap"]
        assert low < validation.figures["gap"] < high

    def test_the_report_shows_them_and_can_not_be_injected(self, result: TrainResult) -> None:
        page = (result.folder / "report.html").read_text()
        for side in result.report.sides:
            for value in side.figures.values():
                assert f"{value:.3f}" in page
        for label in result.report.labels:
            assert f'<td class="n">{label.threshold:.3f}</td>' in page
        assert "Only 12 clips checked the result" in page
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "left out: &lt;b&gt;x&lt;/b&gt;.mp4: empty" in page
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page
        history, best = result.report.history, result.report.best_epoch - 1
        assert curves_svg(history, best).strip() in page
        for confusion in result.report.confusions:
            assert f'<td class="n">{confusion.clips}</td></tr>' in page

    def test_the_picture_is_a_png_with_the_lines_where_the_numbers_are(
        self, result: TrainResult
    ) -> None:
        with Image.open(result.folder / "curves.png") as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape == (2 * 318, 2 * 1132, 3)
        # The last training loss, where its dot is: the left panel's end, at its height.
        losses = [r[k] for r in result.report.history for k in ("train_loss", "validation_loss")]
        marks = ticks(min(losses), max(losses))
        last = result.report.history[-1]["train_loss"]
        x, y = 56 + 380, 34 + 240 - (last - marks[0]) / (marks[-1] - marks[0]) * 240
        near = pixels[round(2 * y) - 4 : round(2 * y) + 5, 2 * x - 4 : 2 * x + 5]
        assert (np.abs(near - (0, 0x72, 0xB2)).sum(axis=-1) < 60).any()

    def test_card_and_history(self, result: TrainResult) -> None:
        card = (result.folder / "README.md").read_text()
        assert "| \\<script\\>alert\\(1\\)\\</script\\> |" in card
        assert "| a\\|b |" in card
        test = result.report.sides[1].figures
        assert (
            f"| GAP@20 | {result.report.sides[0].figures['gap']:.3f} | {test['gap']:.3f} |" in card
        )
        lines = (result.folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(result.report.history)
        assert [row["epoch"] for row in result.report.history] == [1, 2, 3, 4, 5]
        assert [row["step"] for row in result.report.history] == [3, 6, 9, 12, 15]

    def test_a_folder_that_is_no_model_is_refused_before_training(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.txt").write_text("")
        with pytest.raises(OutputError, match="exists and is no vtag model"):
            train(TrainConfig(), drawn_dataset(8), tmp_path)


def test_patience_keeps_the_best_weights_and_ends(tmp_path: Path) -> None:
    # Noise can not be predicted: after the first epochs validation only gets worse.
    dataset = drawn_dataset(16, checked=16)
    config = TrainConfig(epochs=60, batch_size=8, frames=5, learning_rate=0.01, patience=4)
    result = finished(train(config, dataset, tmp_path / "m", network=plain_network()))
    rows, best = result.report.history, result.report.best_epoch
    assert len(rows) == best + 4 < 60
    assert rows[best - 1]["gap"] == max(row["gap"] for row in rows)
    assert result.report.sides[0].figures["gap"] == pytest.approx(rows[best - 1]["gap"])


class TestThresholds:
    def test_labels_with_few_positives_share_one(self) -> None:
        scores = np.array([[0.9, 0.1], [0.8, 0.15], [0.7, 0.12], [0.2, 0.05]], np.float32)
        truth = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
        # Label 0: half-way between 0.7 and 0.2. Label 1 alone would get 0.075, from one clip;
        # over all pairs the best cut takes 0.9, 0.8 and 0.7 (F1 6/7).
        assert fitted_thresholds(scores, truth).tolist() == pytest.approx([0.45, 0.45])

    def test_a_threshold_fits_into_a_label(self) -> None:
        scores, truth = np.full((4, 1), 1e-9, np.float32), np.ones((4, 1), bool)
        assert fitted_thresholds(scores, truth).tolist() == [1e-4]


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"preset": "big"}, "no preset 'big'; there are: small-data, medium, paper"),
            ({"epochs": 0}, "epochs must be 1 or more"),
            ({"batch_size": 2.5}, "batch_size must be 1 or more, got 2.5"),
            ({"learning_rate": math.nan}, "learning rate must be above 0"),
            ({"accumulate": 64}, "a step of 32 clips has no 64 parts"),
            ({"ema": 1.0}, "ema 0 to below 1"),
            ({"weight_decay": -1}, "weight decay must be 0 to 1"),
            ({"patience": 0}, "patience must be 1 epoch"),
            ({"batch_norm_momentum": 0.0}, "batch norm's momentum"),
            ({"seed": -1}, "the seed must be"),
            ({"output": "single_label"}, "loss 'bce' does not go with a single_label"),
        ],
    )
    def test_nonsense_is_refused(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TrainConfig(**fields)  # type: ignore[arg-type]

    def test_presets(self) -> None:
        # method: Adam 2e-4, 0.8 per 4 M examples, clipping per variable, batch 80, L2 1e-6.
        paper = preset("paper", seed=3)
        assert (paper.learning_rate, paper.batch_size, paper.clipping, paper.seed) == (
            2e-4,
            80,
            "per_variable",
            3,
        )
        assert paper.loss.expert_l2 == 1e-6
        with pytest.raises(ConfigError, match="no preset 'papr'"):
            preset("papr")
        with pytest.raises(ConfigError, match="no training setting 'epoch'"):
            preset("paper", epoch=3)
        assert default_preset(drawn_dataset(8)) == "small-data"

    def test_staircase_counts_examples(self) -> None:
        config = preset("paper")
        # 4 M examples are 50 000 steps of 80.
        rates = [config.learning_rate_at(step, 10**6) for step in (0, 49_999, 50_000, 100_000)]
        assert rates == pytest.approx([2e-4, 2e-4, 1.6e-4, 1.28e-4])

    def test_cosine_rises_and_falls(self) -> None:
        config = TrainConfig(learning_rate=0.1, warmup_steps=10)
        rates = [config.learning_rate_at(step, 110) for step in (0, 4, 9, 10, 60, 110)]
        assert rates == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.05, 0.0])

    def test_networks_fit_the_streams_that_are_there(self) -> None:
        dataset = drawn_dataset(8)
        assert not network_for(preset("paper"), dataset).joint_l2
        assert network_for(preset("paper"), replace(dataset, aligned=True)).joint_l2
        seen = replace(dataset, dims={"visual": 12})
        for name in ("small-data", "paper", "nextvlad", "blog"):
            network = network_for(preset(name), seen)
            assert [(s.name, s.dim) for s in network.streams] == [("visual", 12)]

    def test_what_does_not_fit_is_refused_before_training(self, tmp_path: Path) -> None:
        dataset = drawn_dataset(8)
        with pytest.raises(ConfigError, match="the network is for 7 labels"):
            train(TrainConfig(), dataset, tmp_path / "m", network=plain_network(7))
        wide = replace(dataset, dims={"visual": 13, "audio": 6})
        with pytest.raises(
            ConfigError, match="reads visual rows of 12 columns, the dataset has 13"
        ):
            train(TrainConfig(), wide, tmp_path / "m", network=plain_network())
        with pytest.raises(EnvironmentProblem, match="device 'gpu' can not be used"):
            train(TrainConfig(), dataset, tmp_path / "m", device="gpu")
        with pytest.raises(EnvironmentProblem, match="take precision float32"):
            train(TrainConfig(precision="bfloat16"), dataset, tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    def test_more_processes_than_clips(self) -> None:
        with pytest.raises(ConfigError, match="9 processes need 9 clips in a step"):
            TrainRun(TrainConfig(), drawn_dataset(8), plain_network(), Processes(0, 9), CPU)


class TestAdvice:
    @staticmethod
    def rows(train_losses: list[float], losses: list[float]) -> list[dict[str, float]]:
        return [
            {"train_loss": a, "validation_loss": b}
            for a, b in zip(train_losses, losses, strict=True)
        ]

    def test_overfitting_is_told_with_its_numbers(self) -> None:
        (text,) = advice(self.rows([1, 0.5, 0.2, 0.1], [1, 0.8, 0.9, 1.2]), 2, 500)
        assert text.startswith("The network overfits: after epoch 2")
        assert "(training loss 0.5 to 0.1)" in text
        assert "(validation loss 0.8 to 1.2)" in text
        assert "epoch 3 were kept" in text

    def test_a_rise_of_both_losses_is_no_overfitting(self) -> None:
        assert advice(self.rows([1, 0.5, 0.9], [1, 0.8, 1.2]), 1, 500) == ()

    def test_a_small_rise_is_nothing(self) -> None:
        assert advice(self.rows([1, 0.5, 0.4], [1, 0.8, 0.82]), 1, 500) == ()

    def test_still_falling_and_few_clips(self) -> None:
        falling, few = advice(self.rows([1, 0.5], [1, 0.8]), 1, 7)
        assert "more epochs may help" in falling
        assert "Only 7 clips" in few


class TestCurves:
    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (0.31, 0.58, [0.3, 0.4, 0.5, 0.6]),
            (3, 3, [3, 4, 5, 6]),
            (1, 5, [1, 2, 3, 4, 5]),
        ],
    )
    def test_ticks_are_round_and_enclose(
        self, low: float, high: float, expected: list[float]
    ) -> None:
        found = ticks(low, high)
        assert found[0] <= low <= high <= found[-1]
        assert 2 <= len(found) <= 7
        if low < high:
            assert found == pytest.approx(expected)

    @pytest.mark.parametrize("epochs", [1, 2, 60])
    def test_points_lie_where_their_numbers_say(self, epochs: int) -> None:
        rows = [
            {"train_loss": 1 - n / 100, "validation_loss": 2.0, "gap": n / 100, "map": 0.5}
            for n in range(epochs)
        ]
        picture = ElementTree.fromstring(curves_svg(rows, 0))
        lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == 4
        points = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
        assert len(points) == epochs
        steps = {round(b[0] - a[0], 1) for a, b in pairwise(points)}
        assert len(steps) <= 2  # even, up to a rounded tenth of a pixel
        assert all(b[1] >= a[1] for a, b in pairwise(points))  # downwards
        # The validation loss lies above the training loss on the same axis.
        other = [tuple(map(float, p.split(","))) for p in lines[1].attrib["points"].split()]
        assert all(a[1] > b[1] for a, b in zip(points, other, strict=True))
