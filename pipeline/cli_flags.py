"""Flags that several commands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vtag.config import Sampling, Selection
from vtag.errors import ConfigError

if TYPE_CHECKING:
    from vtag.cache import FeatureCache
    from vtag.tagger import Pipeline


def add_pipeline_flags(parser: argparse.ArgumentParser, *, batch_size: bool = True) -> None:
    default = Sampling()
    add = parser.add_argument
    add("--model", default="vtag-base", metavar="NAME|FOLDER", help="an embedded model, or yours")
    add("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps")
    add("--frames-per-second", type=float, default=default.frames_per_second, metavar="F")
    add(
        "--max-frames",
        type=int,
        default=default.max_frames,
        metavar="N",
        help="a longer video is covered evenly by so many frames (default: %(default)s)",
    )
    add("--sampling", choices=["uniform", "keyframes"], default=default.mode)
    add("--decoder", choices=["auto", "decord", "pyav"], default=default.decoder)
    add("--top-k", type=int, default=20, metavar="N", help="tags per video at most (default: 20)")
    add("--threshold", type=float, metavar="X", help="instead of each label's own; 0 takes all")
    if batch_size:
        add("--batch-size", default="auto", metavar="N", help="frames per network pass")
    add(
        "--cache", metavar="DIR", help="feature cache (default: VTAG_CACHE_DIR or the user's cache)"
    )
    add("--read-only-cache", action="store_true", help="use a cache of others, change nothing")
    add("--no-cache", action="store_true", help="keep no features")


def share_cores(workers: int) -> None:
    """Threads per network pass = cores / workers, so that all together make one per core."""
    import torch

    from vtag.stream import usable_cores

    torch.set_num_threads(max(1, usable_cores() // workers))


def sampling_of(args: argparse.Namespace) -> Sampling:
    return Sampling(
        frames_per_second=args.frames_per_second,
        max_frames=args.max_frames,
        mode=args.sampling,
        decoder=args.decoder,
    )


def selection_of(args: argparse.Namespace) -> Selection:
    return Selection(top_k=args.top_k, threshold=args.threshold)


def open_cache(args: argparse.Namespace) -> FeatureCache:
    from vtag.cache import FeatureCache, default_cache_folder

    folder = Path(args.cache) if args.cache else default_cache_folder()
    return FeatureCache(folder, read_only=getattr(args, "read_only_cache", False))


def pipeline_of(args: argparse.Namespace, sampling: Sampling, selection: Selection) -> Pipeline:
    from vtag.tagger import Pipeline

    asked = args.batch_size if isinstance(args.batch_size, str) else "auto"  # else: of training
    batch = None if asked == "auto" else _positive(asked, "--batch-size")
    return Pipeline(
        args.model,
        device=args.device,
        sampling=sampling,
        selection=selection,
        cache=None if args.no_cache else open_cache(args),
        batch_size=batch,
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
