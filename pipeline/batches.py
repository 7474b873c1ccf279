"""From samples to padded tensors, in an order and with draws that only the seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtag.dataset import Dataset, Rows, Sample

FrameSampling = Literal["even", "random"]


@dataclass(frozen=True)
class Batch:
    """Some samples as tensors.

    Attributes:
        rows: stream to float32 [B, T, D], zeros at padding; T differs from stream to stream.
        mask: stream to bool [B, T], True at real rows; all False for a sample without the stream.
        labels: float32 [B, C], 1 where a sample has a label.
    """

    rows: dict[str, Tensor]
    mask: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            {stream: rows.to(device, non_blocking=True) for stream, rows in self.rows.items()},
            {stream: mask.to(device, non_blocking=True) for stream, mask in self.mask.items()},
            self.labels.to(device, non_blocking=True),
        )


def generator_of(seed: int, *path: object) -> torch.Generator:
    """A generator of its own for each place where something is drawn.

    What is drawn in one epoch or step does not depend on what was drawn before it: training can
    stop and go on anywhere without the state of a generator being kept.
    """
    return torch.Generator().manual_seed(seed_of(seed, *path))


def seed_of(seed: int, *path: object) -> int:
    """A 63-bit seed for a place that is named by `path`."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers 0 to count - 1 in the order of this epoch."""
    order: list[int] = torch.randperm(count, generator=generator_of(seed, "order", epoch)).tolist()
    return order


def collate(
    samples: Sequence[Sample],
    dataset: Dataset,
    *,
    frames: int,
    sampling: FrameSampling = "even",
    generator: torch.Generator | None = None,
) -> Batch:
    """The samples as one padded batch.

    Args:
        dataset: for streams, their sizes and the labels.
        frames: "even" takes so many rows at most, evenly spread over a longer sample; "random"
            takes exactly so many, drawn with replacement as floor(U · T) (the 2017 entry's
            `SampleRandomFrames`), for training. Aligned streams are drawn at the same places.
        generator: of the draws; needed for "random".
    """
    if sampling == "random" and generator is None:
        raise ValueError("random frames need a generator")
    chosen = [_choose(s.load(), dataset.aligned, frames, sampling, generator) for s in samples]
    rows, mask = {}, {}
    for stream, dim in dataset.dims.items():
        rows[stream], mask[stream] = _pad([one.get(stream) for one in chosen], dim)
    labels = torch.zeros(len(samples), len(dataset.label_ids))
    for at, sample in enumerate(samples):
        labels[at, list(sample.labels)] = 1
    return Batch(rows, mask, labels)


def batches_in_order(
    samples: Sequence[Sample], dataset: Dataset, *, batch_size: int, frames: int
) -> Iterator[Batch]:
    """All samples once, as they stand, with evenly spread frames: for evaluation."""
    for start in range(0, len(samples), batch_size):
        yield collate(samples[start : start + batch_size], dataset, frames=frames)


def truth_of(samples: Sequence[Sample], labels: int) -> NDArray[np.bool_]:
    """Whether each sample has each label, bool [N, C]."""
    truth = np.zeros((len(samples), labels), dtype=bool)
    for at, sample in enumerate(samples):
        truth[at, list(sample.labels)] = True
    return truth


def _choose(
    rows: Rows,
    aligned: bool,
    frames: int,
    sampling: FrameSampling,
    generator: torch.Generator | None,
) -> Rows:
    if sampling == "even":
        return {stream: values[_evenly(len(values), frames)] for stream, values in rows.items()}
    places = torch.rand(frames, generator=generator)
    chosen = {}
    for stream in sorted(rows):
        if not aligned:
            places = torch.rand(frames, generator=generator)
        at = (places * len(rows[stream])).long().clamp(max=len(rows[stream]) - 1)
        chosen[stream] = rows[stream][at.numpy()]
    return chosen


def _evenly(count: int, frames: int) -> NDArray[np.intp]:
    """Middles of equal stretches: all rows where there are no more than `frames`."""
    if count <= frames:
        return np.arange(count)
    return ((np.arange(frames) + 0.5) * count / frames).astype(np.intp)


def _pad(rows: Sequence[NDArray[np.float16] | None], dim: int) -> tuple[Tensor, Tensor]:
    # One row at least: not every pooling is defined for a tensor without any.
    longest = max(1, *(0 if values is None else len(values) for values in rows))
    padded = torch.zeros(len(rows), longest, dim)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for at, values in enumerate(rows):
        if values is not None:
            padded[at, : len(values)] = torch.from_numpy(np.ascontiguousarray(values)).float()
            mask[at, : len(values)] = True
    return padded, mask
