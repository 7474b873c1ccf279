"""Builds models/weights/vtag-base: the default head, from the backbone's own classifier.

    python tools/make_base_head.py

The paper's chain (pooling, FC, context gating, mixture of experts with a dummy, context gating),
filled so that it scores exactly what the fully connected layer of ResNet-50 scores on the mean
of the rows: that layer's 1000 x 2048 matrix is split by SVD between FC and experts, gates stand
open, the dummy's gate is shut. Nothing is trained. The labels and the card are those that lie in
the folder; labels.json is made by tools/make_imagenet_labels.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from vtag.extractors import build_extractor
from vtag.features import fingerprint_of
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vtag.models.labels import LabelSet
from vtag.models.net_config import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNetConfig,
)
from vtag.models.readout import OutputGroup, Readout
from vtag.models.tagger_net import TaggerNet
from vtag.models.warm_start import warm_start_linear
from vtag.weights import find_weights

FOLDER: Final = Path(__file__).parent.parent / "models" / "weights" / "vtag-base"
BACKBONE: Final = "resnet50"
HIDDEN: Final = 1024  # the paper's; a classifier of 1000 labels has rank 1000 at most
TOLERANCE: Final = 1e-3  # of a logit; float16 matrices would be 4e-3 off, float32 are 2e-5
SEED: Final = 0


def network_config(labels: int) -> TaggerNetConfig:
    """The chain with the smallest parts that can be it.

    Gates and gating matrices that say "open" whatever comes in need no rank: two vectors each
    in place of matrices of a thousand columns. One expert beside the dummy, as two equal ones
    say no more than one.
    """
    return TaggerNetConfig(
        streams=(StreamConfig(name="visual", dim=2048, poolings=(PoolingConfig("mean"),)),),
        labels=labels,
        hidden=HIDDEN,
        gate_hidden=GateConfig(norm="bias", rank=1),
        head=HeadConfig(experts=1, gate_bias=True, gate_rank=1),
        gate_output=OutputGateConfig(norm="bias", rank=1),
    )


def backbone_classifier() -> tuple[Tensor, Tensor]:
    """Weight [1000, 2048] and bias [1000] of the backbone's last layer, float32."""
    state = load_file(find_weights(BACKBONE))
    return state["fc.weight"].float(), state["fc.bias"].float()


def largest_error(net: TaggerNet, weight: Tensor, bias: Tensor) -> float:
    """Greatest difference of a logit between the net and the classifier, on drawn rows.

    Rows are drawn like the backbone's: never negative, 0.37 on average, 11 at most or so.
    """
    random = torch.Generator().manual_seed(SEED)
    scene = torch.randn(64, 1, 2048, generator=random).abs() ** 3 * 0.23
    rows = scene * (0.5 + torch.rand(64, 4, 2048, generator=random))
    expected = rows.mean(dim=1).double() @ weight.double().T + bias.double()
    with torch.inference_mode():
        logits = net({"visual": rows}, {"visual": torch.ones(64, 4, dtype=torch.bool)})
    return float((logits - expected).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, default=FOLDER / "labels.json")
    parser.add_argument("--card", type=Path, default=FOLDER / "README.md")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()

    labels = LabelSet.from_list(json.loads(args.labels.read_text(encoding="utf-8")))
    weight, bias = backbone_classifier()
    torch.manual_seed(SEED)  # of the hidden units beyond the rank, to which no expert listens
    net = TaggerNet(network_config(labels.outputs)).eval()
    warm_start_linear(net, "visual", weight, bias)

    readout = Readout(labels=labels, groups=(OutputGroup(outputs=labels.outputs, kind="softmax"),))
    checkpoint = Checkpoint(
        net=net,
        labels=labels.to_list(),
        name="vtag-base",
        extractors={"visual": fingerprint_of(build_extractor(BACKBONE))},
        readout=readout.to_dict(),
        card=args.card.read_text(encoding="utf-8"),
    )
    fingerprint = save_checkpoint(args.out, checkpoint)
    error = largest_error(load_checkpoint(args.out).net, weight, bias)
    if error > TOLERANCE:
        raise SystemExit(f"{args.out}: a logit is {error:.1e} off, more than {TOLERANCE}")
    print(f"{args.out}: {fingerprint}, {labels}, logits within {error:.1e}")


if __name__ == "__main__":
    main()
