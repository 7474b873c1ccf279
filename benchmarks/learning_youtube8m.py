"""YouTube-8M, video level: logistic regression, mixtures of experts, and Google's MoeModel.

`plain_moe` restates `video_level_models.MoeModel` of google/youtube-8m with nothing of vtag in
it, and is trained by a loop of its own on the same videos, so that a mistake in our mixture, our
loss or our loop would show as a difference.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vtag.batches import batches_in_order, truth_of
from vtag.dataset import Dataset, Sample, youtube8m_dataset
from vtag.evaluate import gap_at_k, hit_at_one, mean_average_precision
from vtag.models import PoolingConfig
from vtag.models.net_config import HeadConfig, OutputGateConfig, StreamConfig, TaggerNetConfig
from vtag.train import train
from vtag.train_config import TrainConfig
from vtag.youtube8m import read_vocabulary

BATCH, LEARNING_RATE = 64, 0.01
HEADS: Mapping[str, tuple[HeadConfig, OutputGateConfig | None]] = {
    "logistic regression": (HeadConfig(kind="linear"), None),
    "MoE, 2 experts": (HeadConfig(kind="moe", experts=2), None),
    "MoE, 2 experts, then context gating": (
        HeadConfig(kind="moe", experts=2),
        OutputGateConfig(),
    ),
}


def youtube8m_table(
    folder: Path, vocabulary: Path, *, classes: int | None, epochs: int
) -> list[dict[str, object]]:
    """One row per model: GAP@20, mAP and Hit@1 on a fifth of the videos, held out by their id.

    Args:
        classes: only so many, the most frequent ones; None for all.
    """
    shards = sorted(folder.glob("*.tfrecord"))
    dataset = youtube8m_dataset(
        shards, [], vocabulary=read_vocabulary(vocabulary), held_out=0.2, seed=0
    )
    if classes is not None:
        dataset = most_frequent(dataset, classes)
    rows = [
        our_row(name, head, gate, dataset, epochs=epochs) for name, (head, gate) in HEADS.items()
    ]
    rows.append(plain_row(dataset, epochs=epochs))
    return rows


def most_frequent(dataset: Dataset, classes: int) -> Dataset:
    """The dataset with its most frequent labels only, and the videos that have one."""
    kept = np.sort(np.argsort(-dataset.positives(), kind="stable")[:classes])
    at = {int(old): new for new, old in enumerate(kept)}

    def fewer(samples: Sequence[Sample]) -> tuple[Sample, ...]:
        found = (
            replace(s, labels=tuple(at[label] for label in s.labels if label in at))
            for s in samples
        )
        return tuple(sample for sample in found if sample.labels)

    return replace(
        dataset,
        label_ids=tuple(dataset.label_ids[old] for old in kept),
        label_names=tuple(dataset.label_names[old] for old in kept),
        train=fewer(dataset.train),
        validation=fewer(dataset.validation),
    )


def our_row(
    name: str,
    head: HeadConfig,
    gate: OutputGateConfig | None,
    dataset: Dataset,
    *,
    epochs: int,
) -> dict[str, object]:
    """A model of vtag on the mean rows, trained by vtag."""
    network = TaggerNetConfig(
        streams=tuple(
            StreamConfig(name=stream, dim=dim, poolings=(PoolingConfig("mean"),))
            for stream, dim in dataset.dims.items()
        ),
        labels=len(dataset.label_ids),
        joint_l2=True,  # tf.nn.l2_normalize over the 1152 columns, as train.py there does
        fc="none",
        hidden=0,
        gate_hidden=None,
        head=head,
        gate_output=gate,
    )
    config = TrainConfig(
        epochs=epochs,
        batch_size=BATCH,
        frames=1,
        frame_sampling="even",
        learning_rate=LEARNING_RATE,
        schedule="cosine",
        clipping="per_variable",
        batch_norm_momentum=0.05,
        first_guess="base_rate",
    )
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="vtag-benchmark-"))
    try:
        result = train(config, dataset, folder / "model", network=network)
    finally:
        shutil.rmtree(folder)
    if result is None:
        raise RuntimeError("the training was stopped")
    best = result.report.history[result.report.best_epoch - 1]
    return _row(
        name,
        result.report.parameters,
        best,
        result.report.best_epoch,
        time.perf_counter() - started,
    )


class PlainMoe(nn.Module):
    """`MoeModel`: per class M logistic experts and a softmax over M + 1 gates, the last a dummy."""

    def __init__(self, columns: int, classes: int, mixtures: int = 2) -> None:
        super().__init__()
        self.classes, self.mixtures = classes, mixtures
        self.gates = nn.Linear(columns, classes * (mixtures + 1), bias=False)
        self.experts = nn.Linear(columns, classes * mixtures)
        for layer in (self.gates, self.experts):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.experts.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        gates = self.gates(rows).view(-1, self.mixtures + 1).softmax(dim=-1)
        experts = self.experts(rows).view(-1, self.mixtures).sigmoid()
        return (gates[:, : self.mixtures] * experts).sum(dim=1).view(-1, self.classes)


def plain_row(dataset: Dataset, *, epochs: int) -> dict[str, object]:
    """Google's MoeModel restated, with its loss (ε = 1e-5 in both logs) and its L2 of 1e-8."""
    started = time.perf_counter()
    torch.manual_seed(0)
    learnt, learnt_truth = _matrix(dataset, dataset.train)
    checked, checked_truth = _matrix(dataset, dataset.validation)
    net = PlainMoe(learnt.shape[1], len(dataset.label_ids))
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(learnt) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for _ in range(epochs):
        for at in torch.randperm(len(learnt)).split(BATCH):
            optimizer.zero_grad()
            said, truth = net(learnt[at]), learnt_truth[at]
            loss = (
                -(truth * (said + 1e-5).log() + (1 - truth) * (1 - said + 1e-5).log())
                .sum(dim=1)
                .mean()
            )
            penalty = net.gates.weight.square().sum() + net.experts.weight.square().sum()
            (loss + 0.5e-8 * penalty).backward()
            for parameter in net.parameters():
                nn.utils.clip_grad_norm_([parameter], 1.0)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            scores = torch.cat([net(part) for part in checked.split(1024)]).numpy()
        truth_array = checked_truth.numpy() > 0
        history.append(
            {
                "gap": gap_at_k(scores, truth_array),
                "map": mean_average_precision(scores, truth_array, None),
                "hit_at_one": hit_at_one(scores, truth_array),
            }
        )
    best = max(range(epochs), key=lambda epoch: history[epoch]["gap"])
    parameters = sum(p.numel() for p in net.parameters())
    return _row(
        "Google's MoeModel restated",
        parameters,
        history[best],
        best + 1,
        time.perf_counter() - started,
    )


def _matrix(dataset: Dataset, samples: Sequence[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows float [N, 1152] and truth float [N, C]."""
    parts = [
        torch.cat([batch.rows[stream][:, 0] for stream in dataset.dims], dim=1)
        for batch in batches_in_order(samples, dataset, batch_size=4096, frames=1)
    ]
    truth = torch.from_numpy(truth_of(samples, len(dataset.label_ids))).float()
    return nn.functional.normalize(torch.cat(parts), dim=-1), truth


def _row(
    name: str, parameters: int, best: Mapping[str, float], epoch: int, seconds: float
) -> dict[str, object]:
    return {
        "model": name,
        "parameters": f"{parameters:,}",
        "GAP@20": f"{best['gap']:.4f}",
        "mAP": f"{best['map']:.4f}",
        "Hit@1": f"{best['hit_at_one']:.4f}",
        "best epoch": epoch,
        "seconds": f"{seconds:.0f}",
    }
