"""Builds models/weights/vtag-base: the default head, from the backbone's own classifier.

    python tools/make_base_head.py                  # with the ear's classifier in tools/ear
    python tools/make_base_head.py --ear FOLDER     # with another that make_ear_head.py wrote
    python tools/make_base_head.py --eye FOLDER     # likewise of fit_base_head.py

The paper's chain (pooling, FC, context gating, mixture of experts with a dummy, context gating),
filled so that it scores exactly what the fully connected layer of ResNet-50 scores on the mean
of the rows: that layer's 1000 x 2048 matrix is split by SVD between FC and experts, gates stand
open, the dummy's gate is shut. The ear's classifier, which tools/make_ear_head.py trained on the
rows of `vggish_small`, goes into the same network beside it, and so does the gated NetVLAD path
of tools/fit_base_head.py, whose one output says "none of these" and changes no other. Nothing is
trained here. The visual labels and the card are those that lie in the folder
(tools/make_imagenet_labels.py); the thresholds of the visual labels are those that were fitted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from none_path import CLUSTERS, RANK, REDUCED, UNITS, NonePath, put_into
from safetensors.torch import load_file
from torch import Tensor

from vtag.extractors import build_extractor
from vtag.features import fingerprint_of
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vtag.models.labels import Label, LabelSet
from vtag.models.net_config import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNetConfig,
)
from vtag.models.readout import OutputGroup, Readout
from vtag.models.tagger_net import TaggerNet
from vtag.models.warm_start import warm_start_linears
from vtag.weights import find_weights

FOLDER: Final = Path(__file__).parent.parent / "models" / "weights" / "vtag-base"
BACKBONE: Final = "resnet50"
EAR: Final = "vggish_small"
SHARED: Final = 1000 + 128  # hidden units: the rank of both classifiers is so much at most
HIDDEN: Final = SHARED + UNITS
TOLERANCE: Final = 1e-3  # of a logit; float16 matrices would be 4e-3 off, float32 are 2e-5
SEED: Final = 0


@dataclass(frozen=True)
class Classifier:
    """A linear classifier on the mean row of one stream.

    Attributes:
        weight: float32 [C, D].
        bias: float32 [C].
        labels: of its outputs.
        window_rows: over how many rows it is read.
    """

    weight: Tensor
    bias: Tensor
    labels: tuple[Label, ...]
    window_rows: int = 1


@dataclass(frozen=True)
class Eye:
    """What tools/fit_base_head.py fitted: the path to "none of these", and what goes with it."""

    path: NonePath
    temperature: float
    rollup_offset: float
    thresholds: dict[str, float]  # by label id

    @classmethod
    def read(cls, folder: Path) -> Eye:
        with np.load(folder / "none_path.npz") as file:
            arrays = {name: file[name] for name in file.files}
        ids, thresholds = arrays["ids"].tolist(), arrays["thresholds"].astype(float).tolist()
        path = NonePath.read(arrays)
        rounded = {i: round(threshold, 3) for i, threshold in zip(ids, thresholds, strict=True)}
        temperature, offset = (float(arrays[k]) for k in ("temperature", "rollup_offset"))
        return cls(path, round(temperature, 4), round(offset, 4), rounded)


def network_config(outputs: int) -> TaggerNetConfig:
    """The chain with the smallest parts that can be it.

    Gates and gating matrices that say "open" whatever comes in need no rank: two vectors each
    in place of matrices of a thousand columns. One expert beside the dummy, as two equal ones
    say no more than one.
    """
    mean = PoolingConfig("mean")
    netvlad = PoolingConfig("netvlad", clusters=CLUSTERS, assignment="bias", reduce=REDUCED)
    return TaggerNetConfig(
        streams=(
            StreamConfig(name="visual", dim=2048, poolings=(mean, netvlad)),
            StreamConfig(name="audio", dim=128, poolings=(mean,)),
        ),
        labels=outputs,
        hidden=HIDDEN,
        gate_hidden=GateConfig(norm="bias", rank=RANK),
        head=HeadConfig(experts=1, gate_bias=True, gate_rank=1),
        gate_output=OutputGateConfig(norm="bias", rank=1),
    )


def eye(outputs: tuple[Label, ...]) -> Classifier:
    """The backbone's last layer."""
    state = load_file(find_weights(BACKBONE))
    return Classifier(state["fc.weight"].float(), state["fc.bias"].float(), outputs)


def ear(folder: Path, taken: set[str]) -> Classifier:
    """The classifier of the ear; a name that the eye has too says that it is heard."""
    with np.load(folder / "audio_head.npz") as arrays:
        weight, bias = (torch.from_numpy(arrays[name]).float() for name in ("weight", "bias"))
        rows = int(arrays["rows"])
    entries = json.loads((folder / "audio_labels.json").read_text(encoding="utf-8"))
    labels = []
    for entry in entries:
        label = Label(**{**entry, "parents": tuple(entry.get("parents", ()))})
        clash = label.name.casefold() in taken
        labels.append(replace(label, name=f"{label.name} (sound)") if clash else label)
    return Classifier(weight, bias, tuple(labels), rows)


def joined(eye: Classifier, ear: Classifier) -> tuple[dict[str, Tensor], Tensor]:
    """One classifier over both, and a row for "none of these": weight per stream [C + 1, D]."""
    silent = torch.zeros(len(ear.labels) + 1, eye.weight.shape[1])
    blind = torch.zeros(len(eye.labels), ear.weight.shape[1])
    none = torch.zeros(1, ear.weight.shape[1])
    weights = {
        "visual": torch.cat([eye.weight, silent]),
        "audio": torch.cat([blind, ear.weight, none]),
    }
    return weights, torch.cat([eye.bias, ear.bias, torch.zeros(1)])


def largest_error(net: TaggerNet, eye: Classifier, ear: Classifier, path: NonePath) -> float:
    """Greatest difference of a logit between the net and its parts, on drawn rows.

    Visual rows are drawn like the backbone's: never negative, 0.37 on average, 11 at most or
    so; audio rows with the spread of the ear's.
    """
    random = torch.Generator().manual_seed(SEED)
    scene = torch.randn(64, 1, 2048, generator=random).abs() ** 3 * 0.23
    rows = {
        "visual": scene * (0.5 + torch.rand(64, 4, 2048, generator=random)),
        "audio": 2 * torch.randn(64, ear.window_rows, 128, generator=random),
    }
    worst = 0.0
    with torch.inference_mode():
        for stream, classifier, columns in (
            ("visual", eye, slice(0, len(eye.labels))),
            ("audio", ear, slice(len(eye.labels), -1)),
        ):
            seen = rows[stream]
            mask = torch.ones(seen.shape[:2], dtype=torch.bool)
            logits = net({stream: seen}, {stream: mask})[:, columns]
            mean = seen.double().mean(dim=1)
            expected = mean @ classifier.weight.double().T + classifier.bias.double()
            worst = max(worst, float((logits - expected).abs().max()))
        seen = rows["visual"]
        mask = torch.ones(seen.shape[:2], dtype=torch.bool)
        none = net({"visual": seen}, {"visual": mask})[:, -1]
        return max(worst, float((none - path(seen)).abs().max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ear", type=Path, default=Path(__file__).parent / "ear")
    parser.add_argument("--eye", type=Path, default=Path(__file__).parent / "head")
    parser.add_argument("--labels", type=Path, default=FOLDER / "labels.json")
    parser.add_argument("--card", type=Path, default=FOLDER / "README.md")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()

    known = LabelSet.from_list(json.loads(args.labels.read_text(encoding="utf-8")))
    fitted = Eye.read(args.eye)
    visual = [
        replace(label, threshold=fitted.thresholds[label.id])
        for label in known
        if label.stream == "visual"
    ]
    outputs = tuple(label for label in visual if not label.is_rollup)
    rollups = [label for label in visual if label.is_rollup]
    seen, heard = eye(outputs), ear(args.ear, {label.name.casefold() for label in visual})
    labels = LabelSet([*outputs, *heard.labels, *rollups])

    torch.manual_seed(SEED)  # of the hidden units beyond the rank, to which no expert listens
    net = TaggerNet(network_config(labels.outputs + 1)).eval()
    warm_start_linears(net, *joined(seen, heard))
    put_into(net, fitted.path, units=slice(SHARED, HIDDEN), output=labels.outputs)
    readout = Readout(
        labels=labels,
        groups=(
            OutputGroup(
                outputs=len(outputs),
                kind="softmax",
                temperature=fitted.temperature,
                none_of_these=True,
                rollup_offset=fitted.rollup_offset,
            ),
            OutputGroup(outputs=len(heard.labels), stream="audio", window_frames=heard.window_rows),
        ),
    )
    checkpoint = Checkpoint(
        net=net,
        labels=labels.to_list(),
        name="vtag-base",
        extractors={
            "visual": fingerprint_of(build_extractor(BACKBONE)),
            "audio": fingerprint_of(build_extractor(EAR)),
        },
        readout=readout.to_dict(),
        card=args.card.read_text(encoding="utf-8"),
    )
    fingerprint = save_checkpoint(args.out, checkpoint)
    error = largest_error(load_checkpoint(args.out).net, seen, heard, fitted.path)
    if error > TOLERANCE:
        raise SystemExit(f"{args.out}: a logit is {error:.1e} off, more than {TOLERANCE}")
    print(f"{args.out}: {fingerprint}, {labels}, logits within {error:.1e}")


if __name__ == "__main__":
    main()
