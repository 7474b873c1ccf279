"""The state of an unfinished training on disk: one file, whole or absent, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vtag.errors import OutputError, WeightsError
from vtag.storage import reason, sync_folder

STATE_FILE: Final = "state.safetensors"
_FORMAT: Final = "1"

Numbers = dict[str, float]


@dataclass
class Progress:
    """How far training has come; all that is needed besides tensors to go on.

    No state of a random generator: every draw is seeded by the place where it happens.

    Attributes:
        step: steps that were made.
        epoch: the running epoch, from 0.
        epoch_step: steps made in it.
        epoch_loss, epoch_examples: sums over them.
        history: one row of numbers per finished epoch.
        best_epoch: the one with the best validation, -1 before there is one.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    epoch_loss: float = 0.0
    epoch_examples: int = 0
    history: list[Numbers] = field(default_factory=list)
    best_epoch: int = -1


def save_state(
    folder: Path, progress: Progress, tensors: Mapping[str, Tensor], *, belongs_to: str
) -> None:
    """Puts the state into `folder`; a reader finds this one or the one before.

    Args:
        belongs_to: fingerprint of settings, network and dataset.

    Raises:
        OutputError: it can not be written.
    """
    head = {
        "format": _FORMAT,
        "belongs_to": belongs_to,
        "progress": json.dumps(vars(progress), allow_nan=False),
    }
    part = folder / f".vtag-{os.getpid()}-{os.urandom(8).hex()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, head)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, folder / STATE_FILE)
        sync_folder(folder)
    except OSError as err:
        raise OutputError(f"{folder}: training can not be saved ({reason(err)})") from err
    except SafetensorError as err:  # wraps the disk's own errors
        raise OutputError(f"{folder}: training can not be saved ({err})") from err
    finally:
        part.unlink(missing_ok=True)


def load_state(folder: Path, *, belongs_to: str) -> tuple[Progress, dict[str, Tensor]]:
    """What `save_state` put there.

    Raises:
        WeightsError: it is missing, damaged, or of other settings or clips.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        raise WeightsError(f"{file}: missing; there is no training to go on with, start a new one")
    try:
        with safe_open(file, framework="pt") as state:
            head = state.metadata() or {}
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        if head["format"] != _FORMAT:
            raise WeightsError(f"{file}: of another version of vtag; start the training anew")
        progress = Progress(**json.loads(head["progress"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as err:
        raise WeightsError(f"{file}: damaged ({err}); start the training anew") from err
    if head["belongs_to"] != belongs_to:
        raise WeightsError(
            f"{folder}: this training has other settings, clips or labels; give the same ones to "
            "go on, or remove the folder to start anew"
        )
    return progress, tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's moments and counts, flat: `parameter number.name`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in state.items()
        for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave; the settings stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
