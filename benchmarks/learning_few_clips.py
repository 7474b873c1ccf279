"""Few clips, split by group: what `vtag train` makes of them, beside plain baselines.

Every clip is scored once by a model that has seen no clip of its group. Also the table of all
poolings: size, speed, score on these clips, and on a drawn task that a mean can not solve.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vtag.config import Sampling
from vtag.dataset import Dataset, Sample
from vtag.dataset_items import Item, read_items
from vtag.dataset_split import split_items
from vtag.models import POOLINGS, PoolingConfig, build_pooling
from vtag.models.codebook import CodebookPooling
from vtag.models.losses import LossConfig
from vtag.models.net_config import GateConfig, HeadConfig, StreamConfig, TaggerNetConfig
from vtag.models.tagger_net import TaggerNet
from vtag.tagger import Pipeline
from vtag.train import train
from vtag.train_config import TrainConfig, preset

Rows = NDArray[np.float16]
SIZES: Mapping[str, Mapping[str, int]] = {
    "netvlad": {"clusters": 8},
    "netrvlad": {"clusters": 8},
    "netfv": {"clusters": 4},
    "nextvlad": {"clusters": 8, "groups": 4},
    "soft_dbow": {"clusters": 64},
    "gated_soft_dbow": {"clusters": 64},
    "dbof": {"clusters": 64},
    "bow": {"clusters": 64},
    "vlad": {"clusters": 8},
    "lstm": {"cells": 64, "layers": 1},
    "gru": {"cells": 64, "layers": 1},
}
SINGLE = {
    "output": "single_label",
    "loss": LossConfig(kind="cross_entropy", expert_l2=0.0),
}


@dataclass(frozen=True)
class Clip:
    """One labelled clip with the rows of its frames."""

    item: Item
    rows: Rows


def clips_of(manifest: Path, *, cache: Path | None, frames_per_second: float) -> list[Clip]:
    """The clips of a manifest with their visual rows."""
    items = [replace(item, split=None) for item in read_items(manifest)]
    sampling = Sampling(frames_per_second=frames_per_second)
    with Pipeline("vtag-base", sampling=sampling, cache=cache) as pipeline:
        return [Clip(i, pipeline.features(i.path).streams["visual"].rows) for i in items]


def folds_of(clips: Sequence[Clip], folds: int, seed: int) -> list[int]:
    """The fold of each clip: whole groups, dealt out label by label, the largest first."""
    random, fold_of = Random(seed), {}
    labels = sorted({clip.item.labels[0] for clip in clips})
    for turn, label in enumerate(labels):
        sizes: dict[str, int] = defaultdict(int)
        for clip in clips:
            if clip.item.labels[0] == label:
                sizes[_group(clip)] += 1
        names = sorted(sizes)
        random.shuffle(names)
        load = [0] * folds
        for name in sorted(names, key=lambda name: -sizes[name]):
            fold = min(range(folds), key=lambda f: (load[f], (f + turn) % folds))
            load[fold] += sizes[name]
            fold_of[name] = fold
    return [fold_of[_group(clip)] for clip in clips]


def few_clips_table(clips: Sequence[Clip], *, folds: int, seeds: int) -> list[dict[str, object]]:
    """One row per method: share of clips whose best label is right, mean over the seeds."""
    methods: dict[str, Callable[[list[Clip], list[Clip], int], float]] = {
        "mean, logistic regression": partial(_logistic, norm=False),
        "mean of power-normalised rows, logistic regression": partial(_logistic, norm=True),
        "vtag train (small-data: mean + NetVLAD + context gating)": _vtag,
    }
    rows = []
    for name, method in methods.items():
        rows.append({"method": name, **_validated(clips, method, folds, seeds)})
        print(rows[-1], flush=True)
    return rows


def poolings_table(
    clips: Sequence[Clip] | None, *, folds: int, kinds: Sequence[str] = tuple(POOLINGS)
) -> list[dict[str, object]]:
    """One row per pooling, each alone before context gating and a linear classifier."""
    rows = []
    for kind in kinds:
        config = PoolingConfig(kind, **SIZES.get(kind, {}))
        pooling = build_pooling(config, 2048)
        row: dict[str, object] = {
            "pooling": kind,
            "options": ", ".join(f"{k} {v}" for k, v in config.options().items()) or "-",
            "width": pooling.out_dim,
            "parameters": f"{sum(p.numel() for p in pooling.parameters()):,}",
            "ms per clip": f"{_milliseconds(config):.2f}",
            "drawn task": f"{_drawn_task(kind):.2f}",
        }
        if clips is not None:
            cold = partial(_cold, pooling=config)
            row["few clips"] = _validated(clips, cold, folds, 1)["top-1"]
        rows.append(row)
        print(row, flush=True)
    return rows


def _validated(
    clips: Sequence[Clip],
    method: Callable[[list[Clip], list[Clip], int], float],
    folds: int,
    seeds: int,
) -> dict[str, object]:
    started, found = time.perf_counter(), []
    for seed in range(seeds):
        fold_of, right = folds_of(clips, folds, seed), 0.0
        for fold in range(folds):
            known = [c for c, f in zip(clips, fold_of, strict=True) if f != fold]
            unseen = [c for c, f in zip(clips, fold_of, strict=True) if f == fold]
            right += method(known, unseen, seed) * len(unseen)
        found.append(right / len(clips))
    return {
        "top-1": f"{np.mean(found):.3f}",
        "worst and best seed": f"{min(found):.2f} to {max(found):.2f}",
        "seconds": f"{time.perf_counter() - started:.0f}",
    }


def _logistic(known: list[Clip], unseen: list[Clip], seed: int, *, norm: bool) -> float:
    """Multinomial logistic regression by L-BFGS, with nothing of vtag in it."""
    names = sorted({clip.item.labels[0] for clip in known})

    def matrix(clips: Sequence[Clip]) -> torch.Tensor:
        rows = [torch.from_numpy(clip.rows).double() for clip in clips]
        if norm:
            rows = [functional.normalize(r.sign() * r.abs().sqrt(), dim=-1) for r in rows]
        return torch.stack([r.mean(dim=0) for r in rows])

    learnt, checked = matrix(known), matrix(unseen)
    centre = learnt.mean(dim=0)
    scale = (learnt - centre).square().sum(dim=1).mean().sqrt()
    learnt, checked = (learnt - centre) / scale, (checked - centre) / scale
    truth = torch.tensor([names.index(clip.item.labels[0]) for clip in known])
    weight = torch.zeros(learnt.shape[1], len(names), dtype=torch.double, requires_grad=True)
    bias = torch.zeros(len(names), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(learnt @ weight + bias, truth)
        loss = loss + 0.5e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)
    said = (checked @ weight + bias).argmax(dim=1).tolist()
    right = [names[s] == clip.item.labels[0] for s, clip in zip(said, unseen, strict=True)]
    return float(np.mean(right))


def _vtag(known: list[Clip], unseen: list[Clip], seed: int) -> float:
    return _trained(preset("small-data", seed=seed, **SINGLE), known, unseen, None)


def _cold(known: list[Clip], unseen: list[Clip], seed: int, *, pooling: PoolingConfig) -> float:
    """A network that starts from drawn weights, so that the pooling itself is judged."""
    config = preset(
        "small-data", seed=seed, first_guess="base_rate", learning_rate=2e-3, epochs=15, **SINGLE
    )
    return _trained(config, known, unseen, partial(_alone, pooling, 2048))


def _alone(pooling: PoolingConfig, dim: int, labels: int) -> TaggerNetConfig:
    return TaggerNetConfig(
        streams=(
            StreamConfig(name="visual", dim=dim, poolings=(pooling,), input_norm="signed_sqrt_l2"),
        ),
        labels=labels,
        output="single_label",
        hidden=128,
        dropout_pooled=0.2,
        gate_hidden=GateConfig(norm="bias"),
        head=HeadConfig(kind="linear"),
        gate_output=None,
    )


def _trained(
    config: TrainConfig,
    known: list[Clip],
    unseen: list[Clip],
    network: Callable[[int], TaggerNetConfig] | None,
) -> float:
    split = {i.path: i.split for i in split_items([c.item for c in known], seed=config.seed)}
    names = tuple(sorted({clip.item.labels[0] for clip in known}))

    def samples(clips: Sequence[Clip]) -> tuple[Sample, ...]:
        return tuple(
            Sample(
                str(clip.item.path),
                (names.index(clip.item.labels[0]),),
                partial(_same, {"visual": clip.rows}),
                _group(clip),
            )
            for clip in clips
        )

    dataset = Dataset(
        label_ids=names,
        label_names=names,
        dims={"visual": known[0].rows.shape[1]},
        made_by={},
        train=samples([c for c in known if split[c.item.path] == "train"]),
        validation=samples([c for c in known if split[c.item.path] == "validation"]),
        test=samples(unseen),
    )
    return _fitted(config, dataset, None if network is None else network(len(names)))


def _fitted(config: TrainConfig, dataset: Dataset, network: TaggerNetConfig | None) -> float:
    """Hit@1 on the test side."""
    folder = Path(tempfile.mkdtemp(prefix="vtag-benchmark-"))
    try:
        result = train(config, dataset, folder / "model", network=network)
    finally:
        shutil.rmtree(folder)
    if result is None:
        raise RuntimeError("the training was stopped")
    return result.report.sides[1].figures["hit_at_one"]


def _drawn_task(kind: str) -> float:
    """Hit@1 where four labels differ in the spread of the rows and not in their mean.

    Rows are noise, and lie at +v or at -v in equal numbers, v along the axis of the label; a
    guess is right in a quarter of the cases.
    """
    random = np.random.default_rng(7)

    def samples(count: int, name: str) -> tuple[Sample, ...]:
        found = []
        for n in range(count):
            rows = 0.1 * random.standard_normal((16, 16))
            rows[:, n % 4] += random.permutation(np.tile([1.0, -1.0], 8))
            one = {"visual": rows.astype(np.float16)}
            found.append(Sample(f"{name}{n}", (n % 4,), partial(_same, one)))
        return tuple(found)

    names = ("a", "b", "c", "d")
    dataset = Dataset(
        label_ids=names,
        label_names=names,
        dims={"visual": 16},
        made_by={},
        train=samples(200, "train"),
        validation=samples(60, "check"),
        test=samples(200, "test"),
    )
    options = {k: min(v, 16) for k, v in SIZES.get(kind, {}).items()}
    config = TrainConfig(
        epochs=30,
        batch_size=40,
        frames=16,
        frame_sampling="even",
        learning_rate=0.01,
        batch_norm_momentum=0.1,
        output="single_label",
        loss=LossConfig(kind="cross_entropy", expert_l2=0.0),
    )
    network = _alone(PoolingConfig(kind, **options), 16, 4)
    stream = replace(network.streams[0], input_norm="none")
    return _fitted(config, dataset, replace(network, streams=(stream,), dropout_pooled=0.0))


def _milliseconds(pooling: PoolingConfig) -> float:
    """Of the whole network on one clip of a minute, 60 rows of 2048 columns; best of 7."""
    net = TaggerNet(_alone(pooling, 2048, 5)).eval()
    rows, mask = torch.rand(1, 60, 2048), torch.ones(1, 60, dtype=torch.bool)
    for module in net.modules():
        if isinstance(module, CodebookPooling):
            module.fit(torch.rand(200, 2048))
    taken = []
    with torch.inference_mode():
        for _ in range(7):
            started = time.perf_counter()
            net({"visual": rows}, {"visual": mask})
            taken.append(time.perf_counter() - started)
    return 1000 * min(taken)


def _group(clip: Clip) -> str:
    return clip.item.group or str(clip.item.path)


def _same(rows: Mapping[str, Rows]) -> Mapping[str, Rows]:
    return rows
