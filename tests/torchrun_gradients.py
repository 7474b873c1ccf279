"""The gradients of a training's steps, kept by each process of torchrun: run as a script.

    torchrun --nproc-per-node N torchrun_gradients.py FOLDER

Also called by the test, in its own process, for what a single process makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_train import drawn_dataset, plain_network

from vtag.train_config import TrainConfig
from vtag.train_processes import joined_processes
from vtag.train_run import TrainRun

CPU = torch.device("cpu")
# Seven clips in steps of five and two, in two parts each: uneven shares everywhere. Frames are
# taken evenly, since each process draws others, and nothing is clipped.
CONFIG = TrainConfig(
    epochs=2,
    batch_size=5,
    accumulate=2,
    frames=5,
    frame_sampling="even",
    learning_rate=0.01,
    clipping="none",
)


def keep_gradients(folder: Path) -> None:
    """Writes `RANK.safetensors` with "step/parameter", as the optimizer got them."""
    kept: dict[str, torch.Tensor] = {}
    with joined_processes(CPU) as processes:
        run = TrainRun(CONFIG, drawn_dataset(7), plain_network(), processes, CPU)

        def keep(*_: object) -> None:
            for name, parameter in run.net.named_parameters():
                if parameter.grad is not None:
                    kept[f"{run.progress.step}/{name}"] = parameter.grad.clone()

        run.optimizer.register_step_pre_hook(keep)
        assert run.until_done(lambda: False, lambda: None)
        save_file(kept, folder / f"{processes.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_gradients(Path(sys.argv[1]))
