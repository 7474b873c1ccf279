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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

import av
import numpy as np
from numpy.typing import NDArray

from vtag.config import Sampling
from vtag.decode import DecodeReport, choose_decoder, plan, probe, read_frames
from vtag.plan import Plan, predicted_decodes, predicted_seconds
from vtag.probe import Probe

FPS: Final = 25
DecoderName = Literal["decord", "pyav"]


@dataclass(frozen=True)
class Recipe:
    """One kind of clip."""

    name: str
    encoder: str
    suffix: str
    gop: int
    megabits_at_720: float
    options: dict[str, str]


_X264 = "keyint={0}:min-keyint={0}:scenecut=0:bframes=3:ref=3:threads=1"
_X265 = "keyint={0}:min-keyint={0}:scenecut=0:bframes=3:open-gop=0:log-level=none:pools=1"
_VP9 = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
RECIPES: Final = (
    Recipe("H.264, GOP 30", "libx264", "mp4", 30, 2.5,
           {"preset": "faster", "x264-params": _X264.format(30)}),
    Recipe("H.264, GOP 250", "libx264", "mp4", 250, 2.5,
           {"preset": "faster", "x264-params": _X264.format(250)}),
    Recipe("H.264, no B, GOP 60", "libx264", "mp4", 60, 2.5,
           {"preset": "faster", "x264-params": _X264.format(60).replace("bframes=3", "bframes=0")}),
    Recipe("HEVC, GOP 30", "libx265", "mp4", 30, 1.8,
           {"preset": "superfast", "x265-params": _X265.format(30)}),
    Recipe("HEVC, GOP 250", "libx265", "mp4", 250, 1.8,
           {"preset": "superfast", "x265-params": _X265.format(250)}),
    Recipe("VP9, GOP 128", "libvpx-vp9", "webm", 128, 1.8, _VP9),
    Recipe("MPEG-4, GOP 12", "mpeg4", "mp4", 12, 4.0, {}),
)  # fmt: skip
HEIGHTS: Final = (720, 1080)


def scene(width: int, height: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures of a camera that pans over a textured ground, things that move, and grain."""
    draw = np.random.default_rng(0)
    ground = np.zeros((height + 400, width + 800, 3))
    for cell in (256, 64, 16, 4):
        rows, columns = -(-ground.shape[0] // cell), -(-ground.shape[1] // cell)
        coarse = draw.normal(0, 18, (rows, columns, 3))
        fine = np.repeat(np.repeat(coarse, cell, 0), cell, 1)
        ground += fine[: ground.shape[0], : ground.shape[1]]
    ground = np.clip(ground + 128, 0, 255).astype(np.uint8)
    grain = draw.integers(0, 7, (8, height, width, 1), dtype=np.uint8)
    spots = draw.uniform(0, 1, (12, 4))
    for number in range(count):
        x = int(400 + 390 * np.sin(number / 90))
        y = int(200 + 190 * np.sin(number / 70))
        picture = ground[y : y + height, x : x + width].copy()
        for at_x, at_y, speed_x, speed_y in spots:
            left = int((at_x * width + number * 12 * (speed_x - 0.5)) % (width - 120))
            top = int((at_y * height + number * 12 * (speed_y - 0.5)) % (height - 120))
            picture[top : top + 120, left : left + 120] = ground[:120, left : left + 120]
        yield np.minimum(picture, 248) + grain[number % 8]


def make_clip(folder: Path, recipe: Recipe, height: int, seconds: int) -> Path:
    """The clip of a recipe; one that is there already is used again."""
    name = "".join(c if c.isalnum() else "-" for c in recipe.name)
    path = folder / f"{name}-{height}-{seconds}.{recipe.suffix}"
    if path.exists():
        return path
    width = height * 16 // 9
    unfinished = path.with_stem("unfinished")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream(recipe.encoder, rate=FPS, options=recipe.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = recipe.gop
        stream.codec_context.bit_rate = round(recipe.megabits_at_720 * 1e6 * (height / 720) ** 1.5)
        stream.codec_context.max_b_frames = 2 if recipe.encoder == "mpeg4" else 3
        for number, picture in enumerate(scene(width, height, seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return unfinished.rename(path)


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
