"""`vtag run --engine`: where the work is done, from the flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtag.cli_flags import batch_size_of, pipeline_of, sampling_of, selection_of
from vtag.cli_progress import say
from vtag.cli_scale import spool_maker
from vtag.errors import ConfigError
from vtag.uris import is_remote

if TYPE_CHECKING:
    from vtag.run import Engine
    from vtag.scale import Tagger
    from vtag.scale_networks import RemoteFrames
    from vtag.tagger import Pipeline

_RAY_FLAGS = ("ray_address", "gpus", "actors", "decoders")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", choices=["local", "ray"], default="local", help="ray: on a cluster (docs/ray)")
    add(
        "--ray-address",
        metavar="HOST:PORT|auto|local",
        help="the cluster (default: RAY_ADDRESS, else a Ray of this machine)",
    )
    add("--gpus", type=int, metavar="N", help="ray: put the picture network on N GPUs")
    add(
        "--actors",
        type=int,
        metavar="N",
        help="ray: network processes (default: one per GPU with --gpus, else one per core)",
    )
    add("--decoders", type=int, metavar="N", help="ray: processes that decode for --gpus")


@contextmanager
def engine_of(args: argparse.Namespace, pipeline: Pipeline) -> Iterator[Engine | None]:
    """The engine that the flags ask for, ready; None for the threads of this process.

    Open it before signals are taken: Ray sets a handler of its own when it is joined.
    """
    if args.engine == "local":
        given = [name for name in _RAY_FLAGS if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} belongs to --engine ray")
        yield None
        return
    if args.workers is not None:
        raise ConfigError("--workers belongs to --engine local; on a cluster say --actors")
    if args.out == "-":
        raise ConfigError("--engine ray needs a file for --out: Ray itself writes to stdout")
    if args.gpus and args.precision not in ("auto", "fp16"):
        # The actors choose by their device; other rows than asked for must not come quietly.
        raise ConfigError(f"--gpus runs the picture network in fp16, not in {args.precision}")
    from vtag.scale import ClusterShare, RayEngine, joined_ray
    from vtag.scale_cluster import starts_here

    share = ClusterShare(gpus=args.gpus or 0, actors=args.actors, decoders=args.decoders)
    with joined_ray(args.ray_address) as words:
        if not args.quiet:
            say(words)
        yield RayEngine(
            WorkerTagger(args),
            pipeline,
            share=share,
            device="cuda" if args.device == "auto" else args.device,
            batch_size=batch_size_of(args),
            can_grow=not starts_here(args.ray_address),
        )


class WorkerTagger:
    """Makes the tagger of a worker from the flags of the command line; can be sent to it."""

    def __init__(self, args: argparse.Namespace) -> None:
        flags = {name: value for name, value in vars(args).items() if name != "command"}
        # A worker does not run in the driver's folder.
        if os.path.isdir(flags["model"]):
            flags["model"] = os.path.abspath(flags["model"])
        if flags["cache"] is not None and not is_remote(flags["cache"]):
            flags["cache"] = os.path.abspath(flags["cache"])
        self._flags = flags

    def __call__(self, frames: RemoteFrames | None) -> Tagger:
        """The tagger, around the picture network that is elsewhere, if it is."""
        from vtag.remote_tagger import SourceTagger

        args = argparse.Namespace(**self._flags)
        if frames is not None:
            args.device = "cpu"  # what is left here: sound and the head
        pipeline = pipeline_of(args, sampling_of(args), selection_of(args), frames=frames)
        return SourceTagger(pipeline, spool_maker(args))
