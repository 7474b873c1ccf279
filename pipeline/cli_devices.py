"""`vtag run --device`: one device, or several with a worker process each."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vtag.cli_flags import batch_size_of, open_cache, pipeline_of, share_cores
from vtag.config import Sampling, Selection
from vtag.errors import ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from vtag.tagger import Pipeline


def open_pipeline(
    args: argparse.Namespace, sampling: Sampling, selection: Selection, *, workers: int
) -> Pipeline:
    """The pipeline of a run, on the device or the devices that `--device` names."""
    devices = devices_of(args.device)
    share_cores(workers)
    if len(devices) == 1:
        args.device = devices[0]
        return pipeline_of(args, sampling, selection)
    if args.engine != "local":
        raise ConfigError("several devices belong to --engine local; on a cluster say --gpus")
    from vtag.cores import usable_cores
    from vtag.device_workers import ManyDevices

    flags = {name: value for name, value in vars(args).items() if name != "command"}
    return ManyDevices(
        devices,
        flags,
        workers=workers,
        torch_threads=max(1, usable_cores() // workers),
        model=args.model,
        sampling=sampling,
        selection=selection,
        cache=None if args.no_cache else open_cache(args),
        batch_size=batch_size_of(args),
    )


def devices_of(text: str) -> list[str]:
    """The devices that `--device` names: "all" is every CUDA device of this machine.

    Raises:
        ConfigError: a name is empty, or several are named that are chosen automatically.
        EnvironmentProblem: "all" of none.
    """
    if text == "all":
        import torch

        found = [f"cuda:{at}" for at in range(torch.cuda.device_count())]
        if not found:
            raise EnvironmentProblem("--device all: this machine has no CUDA device; say cpu")
        return found
    names = [name.strip() for name in text.split(",")]
    if len(names) > 1 and not all(name and name not in ("auto", "all") for name in names):
        raise ConfigError(f"several devices are named like cuda:0,cuda:1, got {text!r}")
    return names
