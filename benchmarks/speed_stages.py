"""Where the CPU time of vtag goes: decode, network, sound, and the rest, on some files.

    python benchmarks/speed_stages.py [--precision int8] [--sampling keyframes] FILES …

The same objects that `vtag run` puts together (decode child, extractors, feature rows, head), one
file after the other in one process. Prints CPU seconds of each stage as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from processes import cpu_seconds_of, descendants
from torch import Tensor

from vtag.config import Sampling, Selection
from vtag.decode import probe
from vtag.extractors import FrameExtractor, SoundExtractor, build_extractor
from vtag.features import FeatureMaker
from vtag.head import load_head
from vtag.sound import read_sound


class Timed:
    """An extractor that counts the CPU seconds of this process while it runs."""

    def __init__(self, extractor: FrameExtractor | SoundExtractor) -> None:
        self._extractor = extractor
        self.seconds = 0.0
        self.items = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._extractor, name)

    def __call__(self, items: Tensor) -> Tensor:
        started = time.process_time()
        rows = self._extractor(items)
        self.seconds += time.process_time() - started
        self.items += len(rows)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--sampling", default="uniform")
    parser.add_argument("--max-frames", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = load_head("vtag-base")
    timed = {
        stream: Timed(
            build_extractor(name, device="cpu", backend=args.backend, precision=args.precision)
        )
        for stream, name in head.extractor_names.items()
    }
    started = time.process_time()
    sounds = sum(_sound_seconds(path) for path in args.files)
    sampling = Sampling(mode=args.sampling, max_frames=args.max_frames)
    maker = FeatureMaker(timed, sampling=sampling)  # type: ignore[arg-type]
    started = time.process_time()
    for path in args.files:
        clip = maker.features_of(path)
        streams = dict(clip.streams)
        head.tags(streams, end_seconds=clip.media.duration, selection=Selection())
    own = time.process_time() - started
    children = cpu_seconds_of(descendants(os.getpid()))
    maker.close()
    stages = {
        "decode": children - sounds,
        "network": timed["visual"].seconds,
        "sound": timed["audio"].seconds + sounds,
        "rest": own - sum(one.seconds for one in timed.values()),
        "passes": timed["visual"].items,
    }
    print(json.dumps(stages))


def _sound_seconds(path: Path) -> float:
    """CPU seconds of decoding the sound, by the decode child's own function."""
    probed = probe(path)
    started = time.process_time()
    for _ in read_sound(probed):
        pass
    return time.process_time() - started


if __name__ == "__main__":
    main()
