"""What runs a network and with how many bits: what was asked for, or an error."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from vtag.config import BackendName, PrecisionName
from vtag.errors import ConfigError, EnvironmentProblem

INSTALL_OPENVINO: Final = 'pip install "vtag[openvino]"'
FLOATS: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """A choice that the machine can carry out."""

    backend: Literal["torch", "openvino"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]


def choose_compute(
    device: torch.device, *, backend: BackendName = "auto", precision: PrecisionName = "auto"
) -> Compute:
    """What runs a network on `device`.

    On a CPU "auto" is fp32 by torch, which every installation has. OpenVINO's rows are those of
    torch to 1e-4 and take a fifth less time, a twentieth of a whole run, for which nothing is
    changed unasked; nor for int8 and bf16, which change rows by more. On a CUDA device "auto" is
    fp16: rows are kept in it anyway.

    Raises:
        ConfigError: no such choice, or none for this device.
        EnvironmentProblem: OpenVINO is needed and not installed.
    """
    _known("backend", backend, get_args(BackendName))
    _known("precision", precision, get_args(PrecisionName))
    if device.type == "cpu":
        return _on_cpu(backend, precision)
    if backend == "openvino" or precision == "int8":
        asked = "--backend openvino" if backend == "openvino" else "--precision int8"
        raise ConfigError(f"{asked} is for the CPU, not for {device}: add --device cpu")
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if device.type != "cuda" and precision != "fp32":
        raise ConfigError(f"{device} computes in fp32 here, not in {precision}")
    return Compute("torch", precision)


def _on_cpu(backend: BackendName, precision: PrecisionName) -> Compute:
    if precision == "auto":
        precision = "fp32"
    if precision == "fp16" or precision == "bf16":
        raise ConfigError(f"{precision} is for a GPU; on a CPU it is slow: use fp32 or int8")
    if precision == "int8" and backend == "torch":
        raise ConfigError("int8 is computed by OpenVINO: leave --backend torch out")
    if backend == "openvino" or precision == "int8":
        if not openvino_is_installed():
            asked = "int8" if precision == "int8" else "--backend openvino"
            raise EnvironmentProblem(f"{asked} needs OpenVINO: {INSTALL_OPENVINO}")
        return Compute("openvino", precision)
    return Compute("torch", precision)


def openvino_is_installed() -> bool:
    """Whether `import openvino` would find it; does not import it."""
    return importlib.util.find_spec("openvino") is not None


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ConfigError(f"no {what} {name!r}; there are: {', '.join(names)}")
