"""The real decoders, and a look at the child that they run in, told as warnings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vtag.decode_backends import BACKENDS
from vtag.decode_report import DecodeReport
from vtag.decode_worker import Backends
from vtag.errors import EnvironmentProblem
from vtag.records import Sound

ASKED_FOR = (
    "av", "numpy", "vtag", "torch", "torchvision", "torchaudio", "multiprocessing", "pickle",
)  # fmt: skip


def tell(probe: Any, report: DecodeReport) -> Iterator[Sound]:
    """The sound, and after it which of the modules are loaded, the environment, open files."""
    yield from BACKENDS.sound(probe, report)
    report.warn(" ".join(name for name in ASKED_FOR if name in sys.modules))
    report.warn(" ".join(sorted(os.environ)))
    report.warn(" ".join(str(number) for number in range(64) if is_open(number)))


def is_open(number: int) -> bool:
    """Whether a descriptor is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


INSIDE = replace(BACKENDS, sound=tell)


def unable_on(device: str) -> Backends:
    """A table that a machine does not have what it takes for."""
    raise EnvironmentProblem(f"no card {device} here")
