"""`torchrun`, started for real with two processes on this machine (gloo)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchrun_gradients import CONFIG, keep_gradients

STEPS = 2 * CONFIG.epochs  # five clips and two


def torchrun(processes: int, script: Path, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    done = subprocess.run(
        [*command, *where, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Of one process alone ("alone") and of each of two ("0", "1")."""
    folder, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    keep_gradients(folder)
    torchrun(2, Path(__file__).with_name("torchrun_gradients.py"), together)
    assert sorted(file.name for file in together.iterdir()) == ["0.safetensors", "1.safetensors"]
    return {
        "alone": load_file(folder / "0.safetensors"),
        **{rank: load_file(together / f"{rank}.safetensors") for rank in ("0", "1")},
    }


def test_two_processes_have_the_gradient_of_one(
    gradients: dict[str, dict[str, torch.Tensor]],
) -> None:
    alone, first = gradients["alone"], gradients["0"]
    assert {name.split("/")[0] for name in alone} == {str(step) for step in range(STEPS)}
    assert alone.keys() == first.keys()
    for name, gradient in alone.items():
        largest = float(gradient.abs().max())
        # Sums in another order, and after the first step weights that differ by as little.
        torch.testing.assert_close(
            first[name], gradient, atol=1e-4 * largest + 1e-9, rtol=1e-4, msg=name
        )
    assert max(float(g.abs().max()) for g in alone.values()) > 1e-3  # else nothing was compared


def test_both_processes_hold_the_same_bits(gradients: dict[str, dict[str, torch.Tensor]]) -> None:
    # Else their weights would drift apart over a long training.
    for name, gradient in gradients["0"].items():
        assert torch.equal(gradient, gradients["1"][name]), name
