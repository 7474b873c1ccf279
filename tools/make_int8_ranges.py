"""Makes extractors/weights/resnet50_int8.json: how large the numbers inside ResNet-50 get.

    python tools/make_int8_ranges.py

Every clip in sample_videos/ is decoded by vtag's own decoder, two pictures a second, and mirrored
too. The largest magnitude behind each layer is kept, with three digits: smaller ranges cut
what other videos need, larger ones are coarser.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vtag.config import Sampling
from vtag.decode_process import DecoderProcess
from vtag.extractors.convolution import Convolution
from vtag.extractors.int8_ranges import ranges_file
from vtag.extractors.resnet50 import normalised, resized_crop
from vtag.extractors.resnet50_network import VARIANTS, folded_resnet50, frozen_resnet50
from vtag.records import Frames
from vtag.weights import find_weights, sha256_of

NAME: Final = "resnet50"
SAMPLES: Final = Path(__file__).parent.parent / "sample_videos"
SAMPLING: Final = Sampling(frames_per_second=2, decoder="pyav")


def pictures(clip: Path, decoder: DecoderProcess) -> Tensor:
    """Crops uint8 [n, 3, 224, 224] of a clip and their mirror images."""
    events = decoder.decode(clip, sampling=SAMPLING, want_video=True, want_sound=False)
    found = [event for event in events if isinstance(event, Frames)]
    pixels = torch.cat([torch.from_numpy(frames.pixels) for frames in found])
    crops = resized_crop(pixels.permute(0, 3, 1, 2), resize_px=VARIANTS[NAME].resize_px)
    return torch.cat([crops, crops.flip(3)])


def main() -> None:
    path = find_weights(NAME)
    variant = VARIANTS[NAME]
    network = frozen_resnet50(folded_resnet50(path, variant), variant, torch.device("cpu"))
    largest: dict[str, float] = defaultdict(float)
    for name, module in network.named_modules():
        if isinstance(module, Convolution):

            def seen(_module: object, _given: object, out: Tensor, name: str = name) -> None:
                largest[name] = max(largest[name], out.abs().max().item())

            module.register_forward_hook(seen)
    decoder = DecoderProcess()
    frames = 0
    with torch.inference_mode():
        for clip in sorted(SAMPLES.glob("*.mp4")):
            for part in pictures(clip, decoder).split(8):
                network(normalised(part))
                frames += len(part)
    decoder.close()
    blocks = []
    for at in range(16):
        # The packed `c` adds the shortcut and rectifies: its output is the block's end.
        layers = {"a": "a", "b": "b", "shortcut": "shortcut", "c": "end"}
        block = {
            key: float(f"{largest[f'blocks.{at}.{layer}']:.3g}")
            for layer, key in layers.items()
            if f"blocks.{at}.{layer}" in largest
        }
        blocks.append(block)
    blocks[0] = {"end": blocks[0]["end"]}  # see Int8Ranges
    del blocks[15]["end"]
    facts = {"weights_sha256": sha256_of(path), "frames": frames, "blocks": blocks}
    ranges_file(NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{ranges_file(NAME)}: {frames} pictures")


if __name__ == "__main__":
    main()
