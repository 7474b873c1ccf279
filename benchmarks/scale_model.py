"""What a library costs on many machines: the numbers and the table of docs/scale.md.

    python benchmarks/scale_model.py --clips FOLDER          # measures here, then the model
    python benchmarks/scale_model.py --costs costs.json      # the model from what was measured

Core-seconds are CPU time and not wall time, so they are right on a busy machine too. Everything
past this machine is computed: work divided among workers by the rule of `vtag.shards`, machines
that are slow or die, and a storage that has so many bytes a second and no more.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import http.server
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vtag.shards import assign

Seconds = NDArray[np.float64]
Division = Literal["hash", "size"]

FETCH_BYTES = 200_000_000


@dataclass(frozen=True)
class Costs:
    """What one hour of video takes, measured.

    Attributes:
        decode: core-seconds of the decode children.
        network: core-seconds of everything else: networks, head, records.
        start: core-seconds until the first file is begun, once per process.
        cache_bytes, record_bytes: what is kept of it.
        video_bytes: what is fetched.
        fetch: core-seconds to fetch and hash a gigabyte.
    """

    decode: float
    network: float
    start: float
    cache_bytes: float
    record_bytes: float
    video_bytes: float
    fetch: float

    @property
    def core_seconds(self) -> float:
        """Per hour of video, fetched from storage."""
        return self.decode + self.network + self.fetch * self.video_bytes / 1e9


@dataclass(frozen=True)
class Job:
    """A job on a cluster.

    Attributes:
        workers: machines or pods at once, of `cores` each.
        shards_per_worker: how many shards there are for each.
        storage_bytes_per_second: that the storage gives to all together.
        restart_seconds: until a shard that lost its machine runs on another.
    """

    workers: int
    cores: int = 4
    shards_per_worker: int = 8
    division: Division = "size"
    slow_share: float = 0.02  # of the workers, at half speed: a noisy neighbour, a hot machine
    death_share: float = 0.1  # of the workers, once during the job
    restart_seconds: float = 60.0
    storage_bytes_per_second: float = 12.5e9  # 100 Gbit/s
    start_seconds: float = 15.0  # per shard: image, imports, weights


# -- the division, simulated --------------------------------------------------------------------


def library_of(rng: np.random.Generator, videos: int) -> Seconds:
    """Seconds of video, float64 [N]: log-normal, median 4 minutes, mean 8."""
    return rng.lognormal(np.log(240), 1.2, videos)


def divided(work: Seconds, count: int, division: Division, rng: np.random.Generator) -> Seconds:
    """Seconds of work of each of `count` shards.

    By size the work is known to within 20 %, as sizes and lengths tell it.
    """
    if division == "hash":
        return np.bincount(rng.integers(0, count, len(work)), work, minlength=count)
    guess = work * rng.lognormal(0, 0.2, len(work))
    hashes = rng.integers(0, 1 << 63, len(work)).astype(np.uint64)
    return np.bincount(assign(hashes, guess, count), work, minlength=count)


def finish(
    loads: Seconds, speeds: Seconds, *, deaths: Seconds | None = None, restart: float = 60.0
) -> float:
    """When the last of these shards ends, each taken by the worker that is free first.

    Args:
        loads: seconds of work of each shard, in the order in which they are started.
        speeds: of each worker, 1 for a usual one.
        deaths: when each worker is lost, once. Its shard goes on after its last record,
            `restart` seconds later.
    """
    free = [(0.0, worker) for worker in range(len(speeds))]
    heapq.heapify(free)
    last = 0.0
    for load in loads.tolist():
        start, worker = heapq.heappop(free)
        end = start + load / speeds[worker]
        if deaths is not None and start <= deaths[worker] < end:
            end += restart
        heapq.heappush(free, (end, worker))
        last = max(last, end)
    return last


def ideal_and_end(
    work: Seconds, job: Job, *, slow: bool, dying: bool, rng: np.random.Generator
) -> tuple[float, float]:
    """Seconds of a job on `job.workers` without any loss, and simulated."""
    loads = divided(work, job.workers * job.shards_per_worker, job.division, rng)
    speeds = np.ones(job.workers)
    if slow:
        speeds[rng.random(job.workers) < job.slow_share] = 0.5
    ideal = float(work.sum() / speeds.sum())
    dies = rng.random(job.workers) < job.death_share
    deaths = np.where(dies, rng.random(job.workers) * ideal, np.inf)
    end = finish(
        loads + job.start_seconds,
        speeds,
        deaths=deaths if dying else None,
        restart=job.restart_seconds,
    )
    return ideal, end


def predicted(costs: Costs, hours: float, job: Job, *, rounds: int = 5) -> dict[str, float]:
    """Wall hours, efficiency, and what the storage gives, for so many hours of video.

    The median of some rounds: which workers are slow or lost is drawn anew in each.
    """
    ends = []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        lengths = library_of(rng, max(20 * job.workers, min(200_000, round(hours * 3600 / 480))))
        lengths *= hours * 3600 / lengths.sum()
        work = lengths / 3600 * costs.core_seconds / job.cores
        ends.append(ideal_and_end(work, job, slow=True, dying=True, rng=rng)[1])
    end = float(np.median(ends))
    moved = hours * costs.video_bytes
    wall = max(end, moved / job.storage_bytes_per_second)
    busy = hours * costs.core_seconds / job.cores / job.workers
    return {
        "workers": job.workers,
        "wall_hours": wall / 3600,
        "efficiency": busy / wall,
        "storage_gbit_per_second": 8e-9 * moved / wall,
        "bound_by_storage": float(wall > end),
    }


# -- what is measured ---------------------------------------------------------------------------


def measured(clips: Sequence[Path]) -> Costs:
    """Core-seconds and bytes of these clips, one process and one thread each way."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        start, _, _, _ = pool.submit(_run, [], f"{folder}/none").result()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        own, children, seconds, record_bytes = pool.submit(
            _run, list(clips), f"{folder}/cache"
        ).result()
        kept = sum(f.stat().st_size for f in Path(folder).rglob("*.safetensors"))
    hours = seconds / 3600
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        fetch = pool.submit(_fetch_core_seconds).result()
    return Costs(
        decode=children / hours,
        network=(own - start) / hours,
        start=start,
        cache_bytes=kept / hours,
        record_bytes=record_bytes / hours,
        video_bytes=sum(clip.stat().st_size for clip in clips) / hours,
        fetch=fetch / (FETCH_BYTES / 1e9),
    )


def _run(clips: Sequence[Path], cache: str) -> tuple[float, float, float, int]:
    """CPU seconds of this process and of its children, seconds of video, bytes of records."""
    import torch

    from vtag import Pipeline

    torch.set_num_threads(1)
    seconds, size = 0.0, 0
    with Pipeline(cache=cache) as pipeline:
        for clip in clips:
            record = pipeline.tag(clip)
            assert record.media is not None
            seconds += record.media.duration
            size += len(json.dumps(record.to_dict())) + 1
    own, children = (
        resource.getrusage(resource.RUSAGE_SELF),
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime, seconds, size


def _fetch_core_seconds() -> float:
    """CPU seconds to bring `FETCH_BYTES` from a server on the loopback into the spool."""
    from vtag.remote_spool import Spool
    from vtag.sources import Source

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "video.mp4"
        with data.open("wb") as file:
            file.write(b"\0\0\0\x18ftypisom")
            file.truncate(FETCH_BYTES)
        with _served(folder) as url, Spool(Path(folder) / "spool") as spool:
            source = spool.look(Source(f"{url}/video.mp4"))
            before = time.process_time()
            with spool.fetch(source):
                return time.process_time() - before


@contextmanager
def _served(folder: str) -> Iterator[str]:
    """The address of a server of this folder; in a process of its own, whose time is not ours."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs))
    process.daemon = False
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


class _QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that has seen the size hangs up


def _serve(folder: str, pipe: Connection) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = _QuietServer(("127.0.0.1", 0), handler)
    pipe.send(server.server_port)
    server.serve_forever()


def speed_up(clips: Sequence[Path], *, rounds: int = 3) -> dict[str, float]:
    """Seconds of the same clips with one and with two workers of one core each.

    Interleaved rounds, and of each the median. A worker is a process with its decode child, held
    to its core: unheld, one worker decodes and looks on two cores at once, and a second one can
    not show what it adds.
    """
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed to compare one worker with two")
    seconds: dict[str, list[float]] = defaultdict(list)
    for workers in [1, 2] * rounds:
        shares = [list(clips[n::workers]) for n in range(workers)]
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            pools = [
                stack.enter_context(
                    ProcessPoolExecutor(1, context, os.sched_setaffinity, (0, {core}))
                )
                for core in cores[:workers]
            ]
            # Started before the clock: a start is paid once, however long the job.
            for pool in pools:
                pool.submit(_run, [], f"{folder}/none").result()
            begun = time.perf_counter()
            jobs = [
                pool.submit(_run, share, f"{folder}/{n}")
                for n, (pool, share) in enumerate(zip(pools, shares, strict=True))
            ]
            used = [job.result() for job in jobs]
            seconds[f"wall_{workers}"].append(time.perf_counter() - begun)
            seconds[f"cpu_{workers}"].append(sum(own + children for own, children, _, _ in used))
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return {**found, "efficiency_2": found["wall_1"] / (2 * found["wall_2"])}


# -- the table ----------------------------------------------------------------------------------


def main() -> int:
    """Measures or reads the costs, and prints Markdown."""
    args = _arguments()
    if args.costs:
        costs = Costs(**json.loads(Path(args.costs).read_text()))
    else:
        clips = sorted(Path(args.clips).glob("*.mp4"))
        if not clips:
            print(f"no .mp4 in {args.clips}", file=sys.stderr)
            return 2
        costs = measured(clips)
    print(json.dumps(asdict(costs), indent=1))
    if args.speed_up:
        print(json.dumps(speed_up(sorted(Path(args.clips).glob("*.mp4")))))
    price = 1000 * costs.core_seconds / 3600 * args.core_hour_price
    moved = 1000 * costs.video_bytes
    print(
        f"\n1000 hours of video: {1000 * costs.core_seconds / 3600:.0f} core-hours, "
        f"{moved / 1e12:.2f} TB fetched, {1000 * costs.cache_bytes / 1e9:.1f} GB of features, "
        f"{1000 * costs.record_bytes / 1e9:.2f} GB of records; {price:.0f} + "
        f"{moved / 1e9 * args.gigabyte_price:.0f} at {args.core_hour_price} a core-hour and "
        f"{args.gigabyte_price} a GB\n"
    )
    print("| workers | cores | wall, hours | efficiency | storage, Gbit/s | bound by |")
    print("|---|---|---|---|---|---|")
    for workers in args.workers:
        job = Job(workers, storage_bytes_per_second=args.storage_gbit * 1e9 / 8)
        found = predicted(costs, args.hours, job)
        bound = "storage" if found["bound_by_storage"] else "cores"
        print(
            f"| {workers} | {workers * job.cores} | {found['wall_hours']:.2f} | "
            f"{found['efficiency']:.2f} | {found['storage_gbit_per_second']:.1f} | {bound} |"
        )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", default="sample_videos", help="a folder of .mp4 to measure")
    parser.add_argument("--costs", help="JSON of what was measured before")
    parser.add_argument("--speed-up", action="store_true", help="one worker against two")
    parser.add_argument("--hours", type=float, default=100_000, help="of video in the library")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 8, 64, 512])
    parser.add_argument("--storage-gbit", type=float, default=100.0)
    parser.add_argument("--core-hour-price", type=float, default=0.04)
    parser.add_argument("--gigabyte-price", type=float, default=0.0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
