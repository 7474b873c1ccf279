"""Training: from a dataset to a model folder, with a report.

A run may stop anywhere and go on as if it had not: weights, moments, averages and counts are
kept beside the model folder, and every draw is seeded by its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from vtag.dataset import Dataset
from vtag.errors import ConfigError, EnvironmentProblem, OutputError
from vtag.models.checkpoint import CONFIG_FILE, Checkpoint, check_extractors
from vtag.models.net_config import TaggerNetConfig
from vtag.models.tagger_net import TaggerNet
from vtag.train_config import TrainConfig, network_for
from vtag.train_processes import Processes, joined_processes
from vtag.train_result import TrainResult, finish
from vtag.train_run import TrainRun
from vtag.train_start import start_head_from_linear
from vtag.train_state import load_state, save_state

STATE_SUFFIX: Final = ".training"


def train(
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    *,
    network: TaggerNetConfig | None = None,
    start: Checkpoint | None = None,
    teacher: Checkpoint | None = None,
    device: str = "cpu",
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult | None:
    """The finished training, with its model in the folder `out`; None when it was stopped.

    Under torchrun, all processes call this alike and share out every step; the first one writes.

    Args:
        network: replaces the network of the config's preset.
        start: a model whose weights are taken over as far as they fit: a fine-tune. Its network
            is used too.
        teacher: a model of the same labels and streams whose probabilities are learnt from beside
            the labels, in the share `config.teaching` (distillation).
        resume: go on with what was stopped.
        should_stop: asked after every step; at the first True the state is kept in
            `<out>.training`.

    Raises:
        ConfigError: settings that do not fit each other or the dataset, or a stopped training
            lies beside `out` and `resume` was not asked for.
        WeightsError: `start` or `teacher` reads other features; or there is nothing to go on with.
        OutputError: `out` is no model folder, or can not be written.
        EnvironmentProblem: the device is not there, or can not do the precision.
    """
    check_places(out, resume=resume)
    state_folder = out.with_name(out.name + STATE_SUFFIX)
    target = _device(device, config)
    if start is not None and network is not None:
        raise ConfigError("a fine-tune uses the network of its start; leave out one of the two")
    net_config = _network(config, dataset, network, start)
    if teacher is not None:
        _check_teacher(teacher, dataset)
    devices = [target] if target.type == "cuda" else []
    # Everything below seeds by itself; whoever calls gets its generators back untouched.
    with joined_processes(target) as processes, torch.random.fork_rng(devices):
        run = _start(config, dataset, net_config, processes, target, start, teacher)
        belongs_to = _fingerprint(config, dataset, net_config, start, teacher)
        if resume:
            run.restore(*load_state(state_folder, belongs_to=belongs_to))

        def keep() -> None:
            if processes.rank == 0:
                save_state(state_folder, run.progress, run.tensors(), belongs_to=belongs_to)
            processes.wait()

        if not run.until_done(should_stop, keep):
            keep()
            return None
        kept = run.best_net()
        if config.refit:
            again = _start(
                _for_all_clips(config, run),
                _all_clips(dataset),
                net_config,
                processes,
                target,
                start,
                teacher,
            )
            if not again.until_done(should_stop, keep=lambda: None):
                keep()
                return None
            kept = again.last_net()
        result = None
        if processes.rank == 0:
            result = finish(
                run.best_net(),
                config,
                dataset,
                out,
                kept=kept,
                progress=run.progress,
                scores_of=run.scores,
            )
            shutil.rmtree(state_folder, ignore_errors=True)
        processes.wait()
        return result


def startable(start: Checkpoint) -> TaggerNetConfig:
    """The network of a model that a training can start from; ConfigError for an ensemble."""
    if not isinstance(start.config, TaggerNetConfig):
        raise ConfigError(
            f"model {start.name!r} is an ensemble and can not be fine-tuned; start from one of its "
            "members"
        )
    return start.config


def _start(
    config: TrainConfig,
    dataset: Dataset,
    net_config: TaggerNetConfig,
    processes: Processes,
    target: torch.device,
    start: Checkpoint | None,
    teacher: Checkpoint | None,
) -> TrainRun:
    run = TrainRun(
        config,
        dataset,
        net_config,
        processes,
        target,
        first_guess=start is None,
        teacher=None if teacher is None else teacher.net,
    )
    if start is not None:
        _take_over(run.net, start, dataset)
        if not _same_labels(start, dataset) and config.first_guess == "linear":
            start_head_from_linear(run.net.cpu(), dataset, frames=config.frames)
            run.net.to(target)
        run.start_average()
    return run


def _all_clips(dataset: Dataset) -> Dataset:
    return replace(dataset, train=(*dataset.train, *dataset.validation))


def _for_all_clips(config: TrainConfig, run: TrainRun) -> TrainConfig:
    # The schedule is that of the first training up to its best epoch.
    return replace(config, patience=None, stop_after=run.progress.best_epoch + 1)


def check_places(out: Path, *, resume: bool) -> None:
    """Raises ConfigError or OutputError where `train` could not write; before features are made."""
    state_folder = out.with_name(out.name + STATE_SUFFIX)
    if out.exists() and not (out / CONFIG_FILE).is_file():
        raise OutputError(f"{out}: exists and is no vtag model; name a new folder")
    if not resume and state_folder.exists():
        raise ConfigError(
            f"{state_folder}: an unfinished training; resume it, or remove the folder to start anew"
        )


def _device(name: str, config: TrainConfig) -> torch.device:
    try:
        # LOCAL_RANK is torchrun's number of this process on this machine: a GPU for each.
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as err:
        text = str(err).splitlines()[0]
        raise EnvironmentProblem(f"device {name!r} can not be used ({text})") from err
    if config.precision == "bfloat16" and not (
        device.type == "cuda" and torch.cuda.is_bf16_supported()
    ):
        raise EnvironmentProblem(
            f"device {name!r} does not compute in bfloat16 at speed; take precision float32"
        )
    return device


def _network(
    config: TrainConfig,
    dataset: Dataset,
    network: TaggerNetConfig | None,
    start: Checkpoint | None,
) -> TaggerNetConfig:
    if start is None:
        chosen = network or network_for(config, dataset)
    else:
        config_of_start = startable(start)
        check_extractors(start, dataset.made_by)
        chosen = replace(config_of_start, labels=len(dataset.label_ids))
    if chosen.labels != len(dataset.label_ids) or chosen.output != config.output:
        raise ConfigError(
            f"the network is for {chosen.labels} labels, {chosen.output}; the training for "
            f"{len(dataset.label_ids)}, {config.output}"
        )
    dims = {stream.name: stream.dim for stream in chosen.streams}
    for stream, dim in dataset.dims.items():
        if dims.get(stream) != dim:
            raise ConfigError(
                f"the network reads {stream} rows of {dims.get(stream, 'no')} columns, "
                f"the dataset has {dim}"
            )
    return chosen


def _take_over(net: TaggerNet, start: Checkpoint, dataset: Dataset) -> None:
    """Copies the weights of `start`; those of the classifier only if its labels are the same."""
    same_labels = _same_labels(start, dataset)
    own = net.state_dict()
    fitting = {
        name: tensor
        for name, tensor in start.net.state_dict().items()
        if own[name].shape == tensor.shape
        and (same_labels or not name.startswith(("head.", "gate_output.")))
    }
    net.load_state_dict({**own, **fitting})


def _check_teacher(teacher: Checkpoint, dataset: Dataset) -> None:
    check_extractors(teacher, dataset.made_by)
    theirs = [str(label.get("id")) for label in teacher.labels]
    if theirs != list(dataset.label_ids):
        missing = sorted(set(dataset.label_ids) ^ set(theirs))[:3]
        raise ConfigError(
            f"teacher {teacher.name!r} has other labels than the clips (such as "
            f"{', '.join(missing) or 'their order'}); it must have been trained on the same ones"
        )
    absent = sorted(set(dataset.dims) - {stream.name for stream in teacher.config.streams})
    if absent:
        raise ConfigError(f"teacher {teacher.name!r} does not read the stream {absent[0]!r}")


def _same_labels(start: Checkpoint, dataset: Dataset) -> bool:
    return [label.get("id") for label in start.labels] == list(dataset.label_ids)


def _fingerprint(
    config: TrainConfig,
    dataset: Dataset,
    net: TaggerNetConfig,
    start: Checkpoint | None,
    teacher: Checkpoint | None,
) -> str:
    """What a state must agree in to be gone on with."""
    parts = (
        config.fingerprint(),
        dataset.fingerprint(),
        json.dumps(net.to_dict(), sort_keys=True),
        start.fingerprint if start else "",
        teacher.fingerprint if teacher else "",
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
