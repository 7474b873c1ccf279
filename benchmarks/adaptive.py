"""How much of the work adaptive sampling saves, and what it costs in tags: the curve.

    python benchmarks/adaptive.py [FILES …]

For each file (minutes long; without any, the sample videos are joined into two) and each way of
sampling: decode CPU seconds, network passes, the work of both as a share of one picture a second,
and how far the tags agree with it: the share of the five best labels that are the same, the
Jaccard index of the tags above their thresholds, and the mean difference of all scores above 0.1.
The network runs once per different picture; a pass is counted at what a pass was measured to cost.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtag.adaptive import AdaptiveRows, Effort
from vtag.config import Sampling, Selection
from vtag.decode import DecodeReport, candidates, plan, probe, read_frames
from vtag.decode_wire import Choices
from vtag.extractors import build_extractor
from vtag.extractors.base import FrameExtractor
from vtag.feature_rows import FrameRows
from vtag.head import Head, load_head
from vtag.plan import Plan
from vtag.probe import Probe
from vtag.records import Features

SAMPLES: Final = Path(__file__).parent.parent / "sample_videos"
UNIFORM: Final = Sampling(max_frames=3600)
EFFORTS: Final = {
    "adaptive, first look only": Effort(noise=2, share=0.25),
    "adaptive, a tenth": Effort(share=0.1),
    "adaptive (as shipped: a sixth)": Effort(),
    "adaptive, a quarter": Effort(share=0.25),
    "adaptive, a half": Effort(share=0.5),
    "adaptive, a half, noise 0.15": Effort(share=0.5, noise=0.15),
}


class CountedNetwork:
    """An extractor that is asked once per different picture, and counts how often it would be."""

    stream = "visual"

    def __init__(self, network: FrameExtractor) -> None:
        self.name, self.dim = network.name, network.dim
        self._network = network
        self._known: dict[bytes, Tensor] = {}
        self._costs: list[float] = []
        self.passes = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.passes += len(pixels)
        keys = [hashlib.sha1(picture.numpy().tobytes()).digest() for picture in pixels]
        new = [at for at, key in enumerate(keys) if key not in self._known]
        if new:
            started = time.process_time()
            rows = self._network(pixels[new])
            self._costs.append((time.process_time() - started) / len(new))
            self._known.update(zip((keys[at] for at in new), rows, strict=True))
        return torch.stack([self._known[key] for key in keys])

    @property
    def seconds_per_pass(self) -> float:
        """Median CPU seconds."""
        return statistics.median(self._costs)

    def fingerprint(self) -> str:
        """That of the network."""
        return self._network.fingerprint()


@dataclass
class Tally:
    """CPU seconds spent on decoding."""

    seconds: float = 0.0
    passes: int = 0
    agreement: list[float] = field(default_factory=list)


def timed_frames(probed: Probe, wanted: Plan, tally: Tally) -> Iterator[object]:
    """The planned pictures by PyAV; only the decoding is counted."""
    frames = read_frames(probed, wanted, decoder="pyav", report=DecodeReport())
    while True:
        started = time.process_time()
        some = next(frames, None)
        tally.seconds += time.process_time() - started
        if some is None:
            return
        yield some


def planned_rows(probed: Probe, wanted: Plan, network: CountedNetwork, tally: Tally) -> Features:
    """The rows of a plan."""
    before, rows = network.passes, FrameRows(network)
    for frames in timed_frames(probed, wanted, tally):
        rows.add(frames)  # type: ignore[arg-type]
    tally.passes = network.passes - before
    return rows.features("benchmark")


def adaptive_rows(probed: Probe, effort: Effort, network: CountedNetwork, tally: Tally) -> Features:
    """The rows that an explorer finds, with the rounds that a run has."""
    found = candidates(probed, UNIFORM)
    rows = AdaptiveRows(network, effort)
    columns = (found.on_grid, found.is_key, found.is_cut, found.work_seconds)
    rows.begin(Choices(found.plan.seconds, *columns))
    while len(places := rows.wanted()):
        for frames in timed_frames(probed, found.some(places), tally):
            rows.add(frames)  # type: ignore[arg-type]
    tally.passes = rows.looks
    return rows.features("benchmark")


def agreement(head: Head, rows: Features, truth: Features, end: float) -> list[float]:
    """Overlap of the five best labels, Jaccard of the tags, mean difference of scores."""
    sets: list[list[set[str]]] = []
    for features in (rows, truth):
        found = [
            head.tags({"visual": features}, end_seconds=end, selection=selection)
            for selection in (Selection(top_k=5, threshold=0), Selection(top_k=None))
        ]
        sets.append([{tag.id for tag in tags} for tags in found])
    (best, above), (true_best, true_above) = sets
    both = above | true_above
    scores, true_scores = (head.scores({"visual": f}) for f in (rows, truth))
    heard = (scores > 0.1) | (true_scores > 0.1)
    off = float(np.abs(scores - true_scores)[heard].mean()) if heard.any() else 0.0
    jaccard = len(above & true_above) / len(both) if both else 1.0
    return [len(best & true_best) / len(true_best), jaccard, off]


def measure(path: Path, head: Head, network: CountedNetwork) -> dict[str, list[float]]:
    """Per way: work, decode and passes as shares of uniform's, and the agreement."""
    probed = probe(path)
    grid = plan(probed, UNIFORM)
    whole = Tally()
    truth = planned_rows(probed, grid, network, whole)
    ways: dict[str, tuple[Features, Tally]] = {"uniform, 1 a second": (truth, whole)}
    for step in (2, 3, 6):
        tally = Tally()
        some = grid.part(np.arange(0, len(grid), step))
        ways[f"uniform, 1 in {step} s"] = (planned_rows(probed, some, network, tally), tally)
    tally = Tally()
    keys = plan(probed, Sampling(mode="keyframes", max_frames=3600))
    ways["keyframes"] = (planned_rows(probed, keys, network, tally), tally)
    for name, effort in EFFORTS.items():
        tally = Tally()
        ways[name] = (adaptive_rows(probed, effort, network, tally), tally)
    found = {}
    for name, (rows, tally) in ways.items():
        cost = tally.seconds + tally.passes * network.seconds_per_pass
        full = whole.seconds + whole.passes * network.seconds_per_pass
        shares = [cost / full, tally.seconds / whole.seconds, tally.passes / whole.passes]
        found[name] = shares + agreement(head, rows, truth, probed.media.duration)
    return found


def join_samples(folder: Path, minutes: float = 4, fps: int = 25) -> list[Path]:
    """Two long videos out of the sample videos: takes with cuts, and stills held like slides."""
    paths = []
    for name, hold in (("takes", False), ("slides", True)):
        path = folder / f"{name}.mp4"
        pictures = islice(_pictures(hold, fps), round(minutes * 60 * fps))
        with av.open(str(path), "w") as container:
            options = {"preset": "faster", "x264-params": "keyint=250:bframes=3:threads=1"}
            stream = container.add_stream("libx264", rate=fps, options=options)
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for number, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def _pictures(hold: bool, fps: int) -> Iterator[NDArray[np.uint8]]:
    for source in cycle(sorted(SAMPLES.glob("*.mp4"))):
        with av.open(str(source)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                picture = frame.to_ndarray(format="rgb24", width=640, height=360)
                for _ in range(12 * fps if hold else 1):
                    yield picture
                if hold or number >= 8 * fps:
                    break


def print_table(title: str, found: dict[str, Sequence[float]]) -> None:
    """One Markdown table."""
    print(f"\n**{title}**\n\n| way | work | decode | passes | top 5 | Jaccard | scores off by |")
    print("|" + "---|" * 7)
    for name, values in found.items():
        cells = [f"{value:.3f}" for value in values]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="vtag-base")
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = load_head(args.model)
    files = args.files or join_samples(Path(tempfile.mkdtemp(prefix="vtag-adaptive-")))
    measured = []
    for path in files:
        # A network per file: its memory of pictures is not kept longer than it serves.
        network = CountedNetwork(build_extractor(head.extractor_names["visual"], device="cpu"))
        measured.append(measure(path, head, network))
        print_table(path.name, dict(measured[-1]))
    means = {way: np.mean([found[way] for found in measured], axis=0) for way in measured[0]}
    print_table(f"Mean over {len(files)} videos", means)


if __name__ == "__main__":
    main()
