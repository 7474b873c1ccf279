"""The floor: bare decode of the needed pictures and sound, and the bare batched networks.

    python benchmarks/speed_floor.py [--precision int8] [--backend torch] FILES …

On every core a process with one thread, each with its share of the files: no child, no pipe, no
hash, no cache, no head. Pictures are those that vtag looks at, by the decoder that it takes.
Prints `ready` when the networks are loaded, then seconds of each stage (summed over the
processes) and of each process as JSON. The floor is their sum over the number of cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from vtag.config import Sampling
from vtag.cores import usable_cores
from vtag.decode import choose_decoder, plan, probe, read_frames
from vtag.extractors import build_extractor
from vtag.records import Frames
from vtag.sound import read_sound

BATCH = 8


def bare(path: Path, sampling: Sampling, visual, audio, spent: dict[str, float]) -> None:
    """One file; adds wall and CPU seconds of this process to each stage."""
    clocks = time.perf_counter(), time.process_time()

    def stage_ends(stage: str) -> None:
        nonlocal clocks
        now = time.perf_counter(), time.process_time()
        spent[stage] += now[0] - clocks[0]
        spent[f"{stage} cpu"] += now[1] - clocks[1]
        clocks = now

    probed = probe(path)
    decoder = choose_decoder(probed, sampling)
    wanted = plan(probed, sampling)
    for frames in read_frames(probed, wanted, decoder=decoder, batch=BATCH):
        stage_ends("decode")
        assert isinstance(frames, Frames)
        visual(torch.from_numpy(frames.pixels).permute(0, 3, 1, 2))
        stage_ends("network")
    stage_ends("decode")
    samples = [sound.samples for sound in read_sound(probed)]
    if samples:
        audio(torch.from_numpy(np.concatenate(samples)))
    stage_ends("sound")


def work(pipe: Connection, files: Sequence[Path], args: argparse.Namespace) -> None:
    """A process of the floor: says that it is ready, waits for the word, sends what it took."""
    torch.set_num_threads(1)
    one = {"device": "cpu", "batch_size": BATCH}
    visual = build_extractor("resnet50", backend=args.backend, precision=args.precision, **one)
    audio = build_extractor("vggish_small", **one)
    # The first call of each allocates; a batch of the size that comes.
    visual(torch.zeros(BATCH, 3, 256, 455, dtype=torch.uint8))
    audio(torch.zeros(160_000))
    spent = dict.fromkeys(
        [f"{s}{c}" for s in ("decode", "network", "sound") for c in ("", " cpu")], 0.0
    )
    pipe.send("ready")
    pipe.recv()
    sampling = Sampling(mode=args.sampling, max_frames=args.max_frames)
    for path in files:
        bare(path, sampling, visual, audio, spent)
    pipe.send(spent)


def shares(files: Sequence[Path], count: int) -> list[list[Path]]:
    """The files divided so that the work is: by what decoding and the network will take."""
    costs = {path: _guess(path) for path in files}
    parts: list[list[Path]] = [[] for _ in range(count)]
    for path in sorted(files, key=lambda path: -costs[path]):
        min(parts, key=lambda part: sum(costs[p] for p in part)).append(path)
    return parts


def _guess(path: Path) -> float:
    probed = probe(path)
    width, height = probed.size
    return probed.media.duration * (0.03 + 30 * width * height / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--sampling", default="uniform")
    parser.add_argument("--max-frames", type=int, default=300)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    started = []
    for files in shares(args.files, usable_cores()):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, files, args), daemon=True)
        process.start()
        started.append((ours, process))
    for pipe, _ in started:
        pipe.recv()
    print("ready", flush=True)
    for pipe, _ in started:
        pipe.send("go")
    spent = [pipe.recv() for pipe, _ in started]
    for _, process in started:
        process.join()
    print(json.dumps({stage: sum(one[stage] for one in spent) for stage in spent[0]}))


if __name__ == "__main__":
    main()
