"""The whole network: settings, shapes, absent streams, batches, and the published sizes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.models import POOLINGS, PoolingConfig, pooling_options
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.blank_net import blank_net
from vtag.models.codebook import CodebookPooling
from vtag.models.presets import (
    blog_config,
    nextvlad_config,
    paper_config,
    recurrent_config,
    small_config,
)
from vtag.models.tagger_net import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNet,
    TaggerNetConfig,
)

Batch = tuple[dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(19)


def config_of(kind: str = "netvlad", **changes: object) -> TaggerNetConfig:
    """Two streams of 8 and 4 columns, pooled by `kind` beside the mean; five labels."""
    wanted = {"clusters": 4, "cells": 4, "heads": 2, "groups": 2}
    options = {name: wanted[name] for name in pooling_options(kind) if name in wanted}
    poolings = (PoolingConfig(kind, **options), PoolingConfig("mean"))
    streams = (
        StreamConfig(name="visual", dim=8, poolings=poolings),
        StreamConfig(name="audio", dim=4, poolings=poolings),
    )
    base = TaggerNetConfig(streams=streams, labels=5, hidden=6)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def build(config: TaggerNetConfig) -> TaggerNet:
    net = TaggerNet(config)
    for module in net.modules():
        if isinstance(module, CodebookPooling):
            module.fit(torch.randn(30, module.dim))
        if isinstance(module, MaskedBatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def batch(items: int = 6, *, frames: int = 7, segments: int = 3) -> Batch:
    """Items of different lengths; the second has no audio, the third nothing at all."""
    rows = {"visual": torch.randn(items, frames, 8), "audio": torch.randn(items, segments, 4)}
    mask = {
        "visual": torch.rand(items, frames) < 0.7,
        "audio": torch.rand(items, segments) < 0.7,
    }
    mask["visual"][:, 0] = True
    mask["audio"][:, 0] = True
    mask["audio"][1:3] = False
    mask["visual"][2:3] = False
    return rows, mask


def items_of(made: Batch, which: slice) -> Batch:
    rows, mask = made
    return {k: v[which] for k, v in rows.items()}, {k: v[which] for k, v in mask.items()}


SHAPES = {
    "default": config_of(),
    "early": config_of(
        streams=(StreamConfig(name="visual", dim=8), StreamConfig(name="audio", dim=4)),
        fusion="early",
        poolings=(PoolingConfig("netvlad", clusters=3),),
    ),
    "early normed": config_of(
        streams=(
            StreamConfig(name="visual", dim=8, input_norm="batch"),
            StreamConfig(name="audio", dim=4, input_norm="batch"),
        ),
        fusion="early",
        poolings=(PoolingConfig("netvlad", clusters=3), PoolingConfig("mean")),
    ),
    "joint_l2": config_of(joint_l2=True),
    "no_fc": config_of(fc="none", hidden=0, gate_hidden=None),
    "blog": config_of(
        output="single_label",
        fc="batch_norm_relu6",
        gate_hidden=GateConfig(norm="bias", function="relu"),
        head=HeadConfig(kind="mlp_moe", experts=3, cells=4, dropout=0.5),
        gate_output=OutputGateConfig(norm="bias"),
        dropout_hidden=0.5,
    ),
    "softmax": config_of(output="single_label", head=HeadConfig(kind="linear"), gate_output=None),
    "squeezed": config_of(
        fc="batch_norm",
        gate_hidden=GateConfig(kind="squeeze_excite", reduction=2, norm="none"),
        head=HeadConfig(kind="linear"),
        gate_output=OutputGateConfig(source="input", rank=2),
    ),
    "glu": config_of(
        gate_hidden=GateConfig(kind="glu"),
        head=HeadConfig(gate_bias=True, gate_rank=2, experts=3),
        gate_output=OutputGateConfig(remove_diagonal=True),
    ),
    "normed": config_of(
        streams=tuple(
            dataclasses.replace(stream, input_norm=norm, dropout=0.3, stream_dropout=0.3)
            for stream, norm in zip(config_of().streams, ("l2", "batch"), strict=True)
        )
    ),
}
EQUAL_LENGTHS = {"early", "early normed", "joint_l2"}


@pytest.mark.parametrize("shape", sorted(SHAPES))
class TestEveryShape:
    def batch(self, shape: str) -> Batch:
        return batch(segments=7 if shape in EQUAL_LENGTHS else 3)

    def test_scores_are_finite_and_of_the_promised_kind(self, shape: str) -> None:
        net = build(SHAPES[shape])
        scores = net(*self.batch(shape))
        assert scores.shape == (6, 5)
        assert scores.isfinite().all()
        p = net.probabilities(*self.batch(shape))
        if net.single_label:
            torch.testing.assert_close(p.sum(dim=1), torch.ones(6))
        else:
            assert ((p > 0) & (p < 1)).all()
            assert ((scores < 0) == (scores.sigmoid() < 0.5)).all()

    def test_padding_changes_nothing(self, shape: str) -> None:
        net = build(SHAPES[shape])
        rows, mask = self.batch(shape)
        junk = {k: v.masked_fill(~mask[k].unsqueeze(-1), 1e3) for k, v in rows.items()}
        torch.testing.assert_close(net(junk, mask), net(rows, mask))

    def test_each_item_scores_the_same_alone(self, shape: str) -> None:
        net = build(SHAPES[shape])
        made = self.batch(shape)
        alone = [net(*items_of(made, slice(i, i + 1))) for i in range(6)]
        torch.testing.assert_close(torch.cat(alone), net(*made), atol=1e-5, rtol=1e-5)

    def test_an_absent_stream_may_be_left_out(self, shape: str) -> None:
        net = build(SHAPES[shape])
        rows, mask = self.batch(shape)
        silent = {**mask, "audio": torch.zeros_like(mask["audio"])}
        alone = net({"visual": rows["visual"]}, {"visual": mask["visual"]})
        torch.testing.assert_close(alone, net(rows, silent))

    def test_settings_survive_json(self, shape: str) -> None:
        text = json.dumps(SHAPES[shape].to_dict())
        assert TaggerNetConfig.from_dict(json.loads(text)) == SHAPES[shape]

    def test_every_weight_gets_a_finite_gradient(self, shape: str) -> None:
        net = build(SHAPES[shape]).train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        rows, mask = batch(items=32, segments=7 if shape in EQUAL_LENGTHS else 3)
        (net(rows, mask) * torch.randn(32, 5)).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_half_precision_rows_are_taken(self, shape: str) -> None:
        net = build(SHAPES[shape])
        rows, mask = self.batch(shape)
        half = {name: values.half() for name, values in rows.items()}
        same = {name: values.float() for name, values in half.items()}
        assert torch.equal(net(half, mask), net(same, mask))


@pytest.mark.parametrize("kind", sorted(POOLINGS))
def test_every_pooling_fits_in(kind: str) -> None:
    net = build(config_of(kind))
    made = batch()
    together = net(*made)
    assert together.isfinite().all()
    assert together.std(dim=0).min() > 0  # items differ
    alone = [net(*items_of(made, slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)


class TestForward:
    def test_is_what_its_parts_give_one_after_the_other(self) -> None:
        net = build(config_of())
        rows, mask = batch()
        stacks = zip(("visual", "audio"), net.stacks, strict=True)
        pooled = torch.cat([stack(rows[name], mask[name]) for name, stack in stacks], dim=1)
        torch.testing.assert_close(net.pooled(rows, mask), pooled)
        assert net.fc is not None
        assert net.gate_hidden is not None
        assert net.gate_output is not None
        fc = pooled @ net.fc.weight.T + net.fc.bias
        hidden = net.gate_hidden(fc)
        scores = net.gate_output(net.head(hidden), hidden)
        torch.testing.assert_close(net(rows, mask), scores.to_output())

    def test_pooled_columns_say_where_each_pooling_lies(self) -> None:
        net = build(config_of())
        rows, mask = batch()
        pooled = net.pooled(rows, mask)
        where = net.pooled_columns("audio", "mean")
        mean = rows["audio"][0][mask["audio"][0]].mean(dim=0)
        torch.testing.assert_close(pooled[0, where], mean)
        assert net.pooled_columns("visual", "netvlad") == slice(0, 32)
        with pytest.raises(ConfigError, match="no stream 'text'; it has: visual, audio"):
            net.pooled_columns("text", "mean")
        with pytest.raises(ConfigError, match="'audio' has no pooling 'lstm'"):
            net.pooled_columns("audio", "lstm")

    def test_early_fusion_sees_rows_side_by_side(self) -> None:
        config = dataclasses.replace(SHAPES["early"], poolings=(PoolingConfig("mean"),))
        net = build(config)
        rows, _ = batch(segments=7)
        real = {name: torch.ones(6, 7, dtype=torch.bool) for name in rows}
        want = torch.cat([rows["visual"].mean(1), rows["audio"].mean(1)], dim=1)
        torch.testing.assert_close(net.pooled(rows, real), want)

    def test_joint_l2_is_over_all_streams(self) -> None:
        net = build(dataclasses.replace(SHAPES["joint_l2"], joint_l2=True))
        rows, _ = batch(segments=7)
        real = {name: torch.ones(6, 7, dtype=torch.bool) for name in rows}
        joint = torch.cat([rows["visual"], rows["audio"]], dim=-1)
        joint = joint / joint.norm(dim=-1, keepdim=True)
        where = net.pooled_columns("audio", "mean")
        torch.testing.assert_close(net.pooled(rows, real)[:, where], joint[..., 8:].mean(dim=1))

    def test_stream_dropout_drops_whole_streams_in_training_only(self) -> None:
        streams = tuple(
            dataclasses.replace(s, stream_dropout=0.5, poolings=(PoolingConfig("mean"),))
            for s in config_of().streams
        )
        net = build(config_of(streams=streams))
        rows, _ = batch(items=400, segments=7)
        real = {name: torch.ones(400, 7, dtype=torch.bool) for name in rows}
        assert (net.pooled(rows, real) != 0).all()
        gone = net.train().pooled(rows, real) == 0
        assert (gone[:, :8].all(dim=1) == gone[:, :8].any(dim=1)).all()
        # 400 fair coins: 200 ± 10; and audio's fall apart from the visual ones.
        assert 150 < gone[:, 0].sum() < 250
        assert 50 < (gone[:, 0] & gone[:, 8]).sum() < 150

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda r, m: (r.clear(), m.clear()), "one at least of"),
            (lambda r, m: m.pop("audio"), "same streams"),
            (lambda r, m: r.update(text=r["audio"]) or m.update(text=m["audio"]), "same streams"),
            (lambda r, m: r.update(audio=r["audio"][:, :, :3]), r"\[B, T, 4\]"),
            (lambda r, m: r.update(audio=r["audio"][:2]), "same B"),
            (lambda r, m: m.update(audio=m["audio"].float()), "must be bool"),
            (lambda r, m: m.update(audio=m["audio"][:, :1]), "must be bool"),
        ],
    )
    def test_refuses_what_does_not_fit(self, change, complaint: str) -> None:  # type: ignore[no-untyped-def]
        rows, mask = batch()
        change(rows, mask)
        with pytest.raises(ValueError, match=complaint):
            build(config_of())(rows, mask)

    @pytest.mark.parametrize("shape", sorted(EQUAL_LENGTHS))
    def test_refuses_different_lengths_where_rows_must_meet(self, shape: str) -> None:
        with pytest.raises(ValueError, match="same number of rows"):
            build(SHAPES[shape])(*batch(segments=3))

    def test_learns_which_items_carry_a_pattern(self) -> None:
        # One column is raised in one row of the items with label 0: a mean hardly sees it.
        config = config_of(gate_output=None, labels=1)
        net = TaggerNet(config).train()
        rows, mask = batch(items=64)
        labels = (torch.arange(64) % 2).float().unsqueeze(1)
        rows["visual"][:, 0, 0] += 6 * labels[:, 0]
        best = torch.optim.Adam(net.parameters(), lr=0.01)
        losses = []
        for _ in range(60):
            loss = nn.functional.binary_cross_entropy_with_logits(net(rows, mask), labels)
            best.zero_grad()
            loss.backward()
            best.step()
            losses.append(loss.item())
        assert losses[0] > 0.5
        assert losses[-1] < 0.1


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"hidden": 0}, "fc 'linear' does not go with hidden 0"),
            ({"fc": "none"}, "fc 'none' does not go with hidden 6"),
            ({"labels": 0}, "labels is a whole number 1 to 1000000, got 0"),
            ({"labels": 2.0}, "labels is a whole number"),
            ({"output": "multi"}, "no output 'multi'; there are: multi_label, single_label"),
            ({"output": "single_label"}, "head 'moe' scores each label on its own"),
            ({"fusion": "early"}, "early fusion takes poolings from the network"),
            ({"poolings": [{"kind": "mean"}]}, "late fusion takes its poolings from each stream"),
            ({"dropout_pooled": 1.0}, "dropout_pooled is 0 or more and below 1, got 1.0"),
            ({"dropout_hidden": float("nan")}, "dropout_hidden is 0 or more"),
            ({"width": 3}, "network: unknown key 'width'; the keys are: streams, labels, output"),
            ({"streams": []}, "streams need different names, got []"),
            ({"streams": [{"dim": 3}]}, "stream: no 'name'"),
            ({"streams": "visual"}, "streams must be a list of objects"),
            ({"streams": [{"name": "a", "dim": 1, "poolings": [{"kind": "x"}]}]}, "no pooling 'x'"),
            ({"streams": [{"name": "A b", "dim": 1}]}, "a stream is named by a-z, 0-9 and _"),
            ({"streams": [{"name": "a", "dim": -1}]}, "stream 'a': dim is a whole number"),
            ({"streams": [{"name": "a", "dim": 1, "input_norm": "l1"}]}, "no input_norm 'l1'"),
            ({"streams": [{"name": "a", "dim": 1, "k": 1}]}, "stream: unknown key 'k'"),
            ({"head": {"kind": "svm"}}, "no kind 'svm'; there are: moe, mlp_moe, linear"),
            ({"head": {"kind": "linear", "gate_rank": 2}}, "gate_bias and gate_rank are for"),
            ({"head": {"experts": 0}}, "head: experts is a whole number 1 to 1024"),
            ({"head": 3}, "head must be an object or null"),
            ({"gate_hidden": {"kind": "glu", "function": "relu"}}, "are for kind 'context'"),
            ({"gate_hidden": {"rank": 2, "remove_diagonal": True}}, "exclude each other"),
            ({"gate_output": {"source": "input", "remove_diagonal": True}}, "needs source"),
            ({"gate_output": {"function": "relu"}}, "gate_output: unknown key 'function'"),
        ],
    )
    def test_refuses(self, change: dict[str, object], complaint: str) -> None:
        with pytest.raises(ConfigError) as refused:
            TaggerNetConfig.from_dict({**config_of().to_dict(), **change})
        assert complaint in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_two_streams_of_one_name(self) -> None:
        stream = config_of().streams[0]
        with pytest.raises(ConfigError, match="different names"):
            config_of(streams=(stream, stream))

    def test_missing_keys_take_their_defaults(self) -> None:
        config = TaggerNetConfig.from_dict(
            {
                "streams": [{"name": "a", "dim": 3, "poolings": [{"kind": "mean"}]}],
                "labels": 2,
                "gate_output": None,
            }
        )
        assert config.head == HeadConfig()
        assert config.gate_hidden == GateConfig()
        assert config.gate_output is None


def size_in_millions(config: TaggerNetConfig) -> float:
    return sum(parameter.numel() for parameter in blank_net(config).parameters()) / 1e6


class TestPresets:
    @pytest.mark.parametrize(
        ("config", "millions"),
        [
            # Counted from the formulas of the papers, apart from this code.
            (paper_config(4716), 333.2),
            (paper_config(3862), 321.5),
            (paper_config(3862, pooling="netrvlad"), 321.2),
            (paper_config(3862, pooling="netfv", clusters=128), 321.4),
            (paper_config(4716, clusters=64), 118.9),
            (paper_config(4716, pooling="gated_soft_dbow", clusters=4096), 41.5 + 22.2),
            (recurrent_config(3862, kind="lstm"), 96.4),
            (recurrent_config(3862, kind="gru"), 63.5),
            (nextvlad_config(3862), 88.9),
            (nextvlad_config(3862, clusters=112, reduction=16), 78.6),
        ],
        ids=lambda value: value if isinstance(value, float) else "",
    )
    def test_published_sizes(self, config: TaggerNetConfig, millions: float) -> None:
        assert size_in_millions(config) == pytest.approx(millions, abs=0.12)

    @pytest.mark.parametrize(
        ("pooling", "audio"),
        [("netvlad", 8), ("netrvlad", 8), ("netfv", 8), ("dbof", 2), ("gated_soft_dbow", 2)],
    )
    def test_audio_gets_its_share_of_the_clusters(self, pooling: str, audio: int) -> None:
        config = paper_config(5, pooling=pooling, clusters=16)
        assert config.stream("audio").poolings[0].clusters == audio

    def test_audio_needs_a_cluster(self) -> None:
        with pytest.raises(ConfigError, match="needs 8 clusters or more"):
            paper_config(5, pooling="soft_dbow", clusters=7)
        with pytest.raises(ConfigError, match=r"pool by netvlad, .*, got 'mean'"):
            paper_config(5, pooling="mean")

    @pytest.mark.parametrize(
        "config",
        [
            paper_config(5, visual_dim=8, audio_dim=4, clusters=8, hidden=6),
            nextvlad_config(5, visual_dim=8, audio_dim=4, clusters=4, hidden=16),
            blog_config(5, visual_dim=8, audio_dim=4, hidden=6),
            blog_config(5, visual_dim=8, audio_dim=4, pooling="mean", output="multi_label"),
            small_config(5, {"visual": 8, "audio": 4}, hidden=6),
            recurrent_config(5, visual_dim=8, audio_dim=4),
        ],
        ids=["paper", "nextvlad", "blog", "blog multi-label", "small", "recurrent"],
    )
    def test_runs_and_survives_json(self, config: TaggerNetConfig) -> None:
        assert TaggerNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        scores = TaggerNet(config).eval()(*batch(segments=7))
        assert scores.shape == (6, 5)
        assert scores.isfinite().all()
