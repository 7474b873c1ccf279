"""Which device a network runs on. What was asked for, or an error: never another one."""

from __future__ import annotations

import torch

from vtag.errors import ConfigError, EnvironmentProblem


def checked_device(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1", "mps"), which is there.

    Raises:
        ConfigError: no such kind of device exists.
        EnvironmentProblem: this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"no device {name!r}; there are: cpu, cuda, cuda:N, mps")
    there = devices_here()
    wanted = "cuda:0" if name == "cuda" else str(device)
    if wanted not in there and wanted.split(":")[0] not in there:
        raise EnvironmentProblem(
            f"device {name} is not on this machine; use one of: {', '.join(there)}"
        )
    return device


def devices_here() -> list[str]:
    """The devices of this machine, "cpu" first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
