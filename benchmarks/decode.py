"""What each way to the sampled pictures costs, per codec and group of pictures.

    python benchmarks/decode.py [--seconds 20] [--repeats 3] [--folder DIR]

Makes its own clips with PyAV, decodes each with every method in turn, and prints CPU seconds (the
median of interleaved runs): one picture a second by decord and by vtag's walk, key frames by each,
and the naive way (every picture at full size, each turned into RGB). The last column says which
decoder `choose_decoder` picks for one picture a second, and how it compares with the cheaper one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import av
from clips import RECIPES, make_clip

from vtag.config import Sampling
from vtag.decode import DecodeReport, choose_decoder, plan, probe, read_frames
from vtag.plan import Plan, predicted_decodes, predicted_seconds
from vtag.probe import Probe

DecoderName = Literal["decord", "pyav"]
HEIGHTS: Final = (720, 1080)


def read_all(probed: Probe, wanted: Plan, decoder: DecoderName) -> None:
    """Reads the planned pictures as a run does."""
    for _ in read_frames(probed, wanted, decoder=decoder, report=DecodeReport()):
        pass


def read_naively(path: Path) -> None:
    """Every picture, at full size, as RGB: what a plain loop over a video does."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def methods_for(path: Path) -> dict[str, Callable[[], None]]:
    """Every method by name."""
    probed = probe(path)
    second = plan(probed, Sampling())
    keys = plan(probed, Sampling(mode="keyframes"))
    return {
        "probe": lambda: void(probe(path)),
        "decord": lambda: read_all(probed, second, "decord"),
        "walk": lambda: read_all(probed, second, "pyav"),
        "decord keys": lambda: read_all(probed, keys, "decord"),
        "PyAV keys": lambda: read_all(probed, keys, "pyav"),
        "naive": lambda: read_naively(path),
    }


def void(_: object) -> None:
    """Drops a result."""


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Median CPU seconds per method; the methods take turns, so that a busy moment hits all."""
    methods = methods_for(path)
    spent: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, work in methods.items():
            spent[name].append(cpu_seconds(work))
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20, help="length of each clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the clips for the next time")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="vtag-decode-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("| clip | decord | walk | decord / walk (predicted) | decord keys | PyAV keys | naive "
          "| naive / chosen | auto takes | auto / cheaper |")  # fmt: skip
    print("|" + "---|" * 10)
    right = files = 0
    for height in HEIGHTS:
        for recipe in RECIPES:
            path = make_clip(folder, recipe, height, args.seconds)
            spent = measure(path, args.repeats)
            row, was_right = table_row(f"{recipe.name}, {height}p", probe(path), spent)
            print(row, flush=True)
            right, files = right + was_right, files + 1
    print(f"\nThe cheaper decoder (or one within 10 %) was taken for {right} of {files} clips.")


def table_row(name: str, probed: Probe, spent: dict[str, float]) -> tuple[str, bool]:
    """One line of the table, and whether the rule's choice is within a tenth of the cheaper."""
    wanted = plan(probed, Sampling())
    chosen = choose_decoder(probed, Sampling())
    cost = {"decord": spent["decord"], "pyav": spent["walk"]}
    predicted = predicted_seconds(probed, wanted)
    counts = predicted_decodes(probed.table, wanted)
    share = cost[chosen] / min(cost.values())
    cells = [
        name,
        f"{spent['decord']:.2f} ({counts[0]} pictures)",
        f"{spent['walk']:.2f} ({counts[1]})",
        f"{spent['decord'] / spent['walk']:.2f} ({predicted['decord'] / predicted['pyav']:.2f})",
        f"{spent['decord keys']:.3f}",
        f"{spent['PyAV keys']:.3f}",
        f"{spent['naive']:.2f}",
        f"{spent['naive'] / cost[chosen]:.1f}",
        chosen,
        f"{share:.2f}",
    ]
    return "| " + " | ".join(cells) + " |", share <= 1.1


if __name__ == "__main__":
    main()
