"""Flags that several commands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vtag.config import BackendName, DecoderName, PrecisionName, Sampling, Selection
from vtag.errors import ConfigError, EnvironmentProblem, OutputError
from vtag.label_thresholds import read_label_thresholds
from vtag.uris import is_remote

if TYPE_CHECKING:
    from vtag.cache import FeatureCache
    from vtag.corrections import Corrector
    from vtag.extractors import FrameExtractor
    from vtag.tagger import Pipeline


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """What every command has."""
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more (-vv: all)")
    parser.add_argument("-q", "--quiet", action="store_true", help="only errors on stderr")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")


def add_pipeline_flags(parser: argparse.ArgumentParser, *, batch_size: bool = True) -> None:
    default = Sampling()
    add = parser.add_argument
    add("--model", default="vtag-base", metavar="NAME|FOLDER", help="an embedded model, or yours")
    add(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda[:N]|mps",
        help="for `run` also all, or several: cuda:0,cuda:1",
    )
    add("--frames-per-second", type=float, default=default.frames_per_second, metavar="F")
    add(
        "--max-frames",
        type=int,
        default=default.max_frames,
        metavar="N",
        help="a longer video is covered evenly by so many frames (default: %(default)s)",
    )
    add("--sampling", choices=["uniform", "keyframes", "adaptive"], default=default.mode)
    add(
        "--decoder",
        choices=get_args(DecoderName),
        default=default.decoder,
        help="torchcodec: decodes on the graphics card that --device names (pip install "
        "'vtag[torchcodec]')",
    )
    add("--top-k", type=int, default=20, metavar="N", help="tags per video at most (default: 20)")
    add("--threshold", type=float, metavar="X", help="instead of each label's own; 0 takes all")
    add("--min-score", type=float, default=0.0, metavar="X", help="no tag below, whatever its own")
    add(
        "--label-thresholds", metavar="FILE", help="lines of `label, X`, or JSON: for single labels"
    )
    add(
        "--backend",
        choices=get_args(BackendName),
        default="auto",
        help="what computes on a CPU (default: torch; openvino: a fifth faster, same scores)",
    )
    add(
        "--precision",
        choices=get_args(PrecisionName),
        default="auto",
        help="auto: fp32, on a GPU fp16. int8 (CPU) and bf16 (GPU) are faster; scores differ a bit",
    )
    if batch_size:
        add("--batch-size", default="auto", metavar="N", help="frames per network pass")
    add(
        "--cache", metavar="DIR", help="feature cache (default: VTAG_CACHE_DIR or the user's cache)"
    )
    add("--read-only-cache", action="store_true", help="use a cache of others, change nothing")
    add("--no-cache", action="store_true", help="keep no features")


def add_corrections_flag(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--corrections",
        action="append",
        metavar="FILE",
        help=f"{text} (corrections.jsonl; the later one counts)",
    )


def corrector_of(args: argparse.Namespace, pipeline: Pipeline) -> Corrector:
    from vtag.corrections import Corrector, read_corrections

    return Corrector(read_corrections(map(Path, args.corrections or ())), pipeline.head.labels)


def share_cores(workers: int) -> None:
    """Threads per network pass = cores / workers, so that all together make one per core."""
    import torch

    from vtag.cores import usable_cores

    torch.set_num_threads(max(1, usable_cores() // workers))


def sampling_of(args: argparse.Namespace) -> Sampling:
    return Sampling(
        frames_per_second=args.frames_per_second,
        max_frames=args.max_frames,
        mode=args.sampling,
        decoder=args.decoder,
    )


def selection_of(args: argparse.Namespace) -> Selection:
    file = args.label_thresholds
    return Selection(
        top_k=args.top_k,
        threshold=args.threshold,
        min_score=args.min_score,
        thresholds=read_label_thresholds(file) if file else {},
    )


def open_cache(args: argparse.Namespace) -> FeatureCache:
    from vtag.cache import FeatureCache, default_cache_folder

    read_only = getattr(args, "read_only_cache", False)
    if args.cache and is_remote(args.cache):
        from vtag.remote_cache import RemoteFeatureCache

        return RemoteFeatureCache(args.cache, read_only=read_only)
    folder = Path(args.cache) if args.cache else default_cache_folder()
    return FeatureCache(folder, read_only=read_only)


def batch_size_of(args: argparse.Namespace) -> int | None:
    asked = args.batch_size if isinstance(args.batch_size, str) else "auto"  # else: of training
    return None if asked == "auto" else _positive(asked, "--batch-size")


def pipeline_of(
    args: argparse.Namespace,
    sampling: Sampling,
    selection: Selection,
    *,
    frames: FrameExtractor | None = None,
) -> Pipeline:
    from vtag.tagger import Pipeline

    return Pipeline(
        args.model,
        device=args.device,
        sampling=sampling,
        selection=selection,
        cache=None if args.no_cache else open_cache(args),
        batch_size=batch_size_of(args),
        backend=args.backend,
        precision=args.precision,
        frames=frames,
    )


def _positive(text: str, flag: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"{flag} is a whole number above 0, got {text!r}")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes of `10G`, `500M`, `2.5T` or a plain number; raises ConfigError on anything else."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    body = text.strip().upper().removesuffix("B")
    number, unit = (body[:-1], body[-1]) if body and body[-1] in units else (body, "")
    try:
        size = float(number) * units[unit]
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise ConfigError(f"a size is written like 10G or 500M, got {text!r}")
    return int(size)


def check_summary_file(args: argparse.Namespace) -> None:
    """Makes the folder of `--summary-json`; before the work, so that its counts are not lost.

    Raises:
        ConfigError: it is standard output, a folder, or the file of results itself.
        EnvironmentProblem: its folder can not be made.
    """
    if not args.summary_json:
        return
    file = Path(args.summary_json)
    if args.summary_json == "-" or file.is_dir():
        raise ConfigError(f"--summary-json is a file, not {args.summary_json}")
    if os.path.realpath(file) == os.path.realpath(args.out):
        raise ConfigError(f"--summary-json {file}: is --out as well; name another file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise EnvironmentProblem(f"{file.parent}: can not be made ({err.strerror})") from err


def write_summary(args: argparse.Namespace, counts: Mapping[str, Any]) -> None:
    """The counts as `--summary-json`, if it was asked for; raises OutputError."""
    from vtag.storage import reason, write_whole

    if not args.summary_json:
        return
    try:
        write_whole(Path(args.summary_json), json.dumps(counts).encode() + b"\n", mode=None)
    except OSError as err:
        raise OutputError(f"{args.summary_json}: can not be written ({reason(err)})") from err


def needed(value: str | None, usage: str) -> str:
    """The value; raises ConfigError with the usage where there is none."""
    if not value:
        raise ConfigError(f"usage: vtag {usage}")
    return value
