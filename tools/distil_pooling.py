"""Whether a network that looks at a whole video at once agrees with the pooled frames: a table.

    python tools/distil_pooling.py --work DIR       # after make_head_data.py --work DIR

Writes tools/head/pooling.md. The target of a label is what vtag-base's readout gives: the mean of
the best tenth of the frames' scores. Videos are put together from the rows of make_head_data.py:
one to three scenes of several views each, cuts between them, and frames that show nothing. The
paper's network (mean and gated NetVLAD, mixture of experts) starts as the backbone's classifier
on the mean row, with NetVLAD at no influence, and is trained towards the targets with and
without context gating behind the mixture. It is compared on videos of pictures it never saw.
Nothing of it is shipped: the readout that was the target needs no training.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from head_pictures import number_of
from none_path import CLUSTERS, REDUCED
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from vtag.models import PoolingConfig
from vtag.models.net_config import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNetConfig,
)
from vtag.models.tagger_net import TaggerNet
from vtag.models.warm_start import warm_start_linear
from vtag.weights import find_weights

At = NDArray[np.intp]

OUT: Final = Path(__file__).parent / "head" / "pooling.md"
FRAMES: Final = 20
HIDDEN: Final = 1000 + 152
SHARES: Final = ((1.0,), (0.8, 0.2), (0.9, 0.1), (0.6, 0.3, 0.1), (0.5, 0.5))
TRAIN: Final = 1500  # videos
TEST: Final = 400
EPOCHS: Final = 12
BATCH: Final = 50
RATE: Final = 3e-4
OPEN: Final = 4.0  # of the gates at first: σ(4) = 0.982, which lets them learn


@dataclass(frozen=True)
class Videos:
    """rows [N, FRAMES, 2048] and target [N, 1000]."""

    rows: Tensor
    target: Tensor


@dataclass(frozen=True)
class Classifier:
    """The backbone's last layer."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return rows @ self.weight.T + self.bias


def make_videos(
    rows: Tensor, views: list[At], empty: At, classifier: Classifier, *, count: int, seed: int
) -> Videos:
    """Videos of the given pictures (the views of each) and of views that show nothing."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        shares = SHARES[random.integers(len(SHARES))]
        cuts = np.round(np.cumsum((0.0, *shares)) * FRAMES).astype(int)
        scenes = []
        for first, last in pairwise(cuts.tolist()):
            of_scene = views[random.integers(len(views))]
            at = random.choice(of_scene, (last - first, 2))
            pan = torch.from_numpy(random.uniform(0, 1, (last - first, 1)).astype(np.float32))
            scenes.append(pan * rows[at[:, 0]] + (1 - pan) * rows[at[:, 1]])
        video = torch.cat(scenes)
        if random.random() < 0.3:
            video[random.integers(FRAMES)] = rows[random.choice(empty)]
        made.append(video)
    stacked = torch.stack(made)
    frames = classifier(stacked).softmax(dim=2)
    best = -(-FRAMES // 10)
    return Videos(stacked, frames.topk(best, dim=1).values.mean(dim=1))


def network(classifier: Classifier, *, gated: bool) -> TaggerNet:
    """The paper's chain on the classifier of the mean row; scores need softmax no longer."""
    poolings = (
        PoolingConfig("mean"),
        PoolingConfig("netvlad", clusters=CLUSTERS, assignment="bias", reduce=REDUCED),
    )
    net = TaggerNet(
        TaggerNetConfig(
            streams=(StreamConfig(name="visual", dim=2048, poolings=poolings),),
            labels=1000,
            hidden=HIDDEN,
            gate_hidden=GateConfig(norm="bias", rank=16),
            head=HeadConfig(experts=2, gate_bias=True, gate_rank=16),
            gate_output=OutputGateConfig(norm="bias", rank=32) if gated else None,
        )
    )
    warm_start_linear(net, "visual", classifier.weight, classifier.bias, open_gate=OPEN)
    return net


def train(net: TaggerNet, videos: Videos) -> TaggerNet:
    """The network after learning the targets, by cross entropy of each label."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    for _ in range(EPOCHS):
        for at in torch.randperm(len(videos.rows)).split(BATCH):
            logits = net({"visual": videos.rows[at]}, {"visual": mask[: len(at)]})
            loss = functional.binary_cross_entropy_with_logits(logits, videos.target[at]) * 1000
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def figures(scores: Tensor, target: Tensor) -> tuple[float, float, float]:
    """(mean error where the target is 0.1 or more, found of what is 0.5 or more, false alarms).

    Found: a score of 0.5 or more. False alarms: such scores per video where the target is less
    than 0.25.
    """
    there, sure = target >= 0.1, target >= 0.5
    error = (scores - target).abs()[there].mean()
    found = (scores >= 0.5)[sure].float().mean()
    false = ((scores >= 0.5) & (target < 0.25)).sum(dim=1).float().mean()
    return float(error), float(found), float(false)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    with np.load(args.work / "frames.npz") as data:
        rows = torch.from_numpy(data["rows"].astype(np.float32))
        picture, kinds, names = data["picture"], data["kinds"], data["names"]
    state = load_file(find_weights("resnet50"))
    classifier = Classifier(state["fc.weight"].float(), state["fc.bias"].float())
    seen = [p for p in np.unique(picture) if kinds[p] in ("named", "photo", "painting")]
    held = {p for p in seen if number_of(f"fold {names[p]}") % 5 == 0}
    views = {p: np.flatnonzero(picture == p) for p in seen}
    empty = np.flatnonzero(np.isin(kinds[picture], ("text", "plain", "blurred", "noise")))
    training = make_videos(
        rows, [views[p] for p in seen if p not in held], empty, classifier, count=TRAIN, seed=1
    )
    test = make_videos(
        rows, [views[p] for p in seen if p in held], empty, classifier, count=TEST, seed=2
    )

    lines = ["| what scores the video | mean error | found | false alarms per video |",
             "|---|---|---|---|"]  # fmt: skip

    def row(title: str, scores: Tensor) -> None:
        error, found, false = figures(scores, test.target)
        lines.append(f"| {title} | {error:.3f} | {found:.2f} | {false:.2f} |")
        print(lines[-1], flush=True)

    row("best tenth of the frames (shipped; the target itself)", test.target)
    row("the classifier on the mean row", classifier(test.rows.mean(dim=1)).softmax(dim=1))
    mask = torch.ones(len(test.rows), FRAMES, dtype=torch.bool)
    for title, gated in (("without", False), ("with", True)):
        net = train(network(classifier, gated=gated), training)
        with torch.inference_mode():
            scores = net({"visual": test.rows}, {"visual": mask}).sigmoid()
        row(f"distilled NetVLAD, {title} context gating behind the mixture", scores)
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
