"""Work in batches, smaller ones when the device's memory does not hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from vtag.errors import ConfigError, EnvironmentProblem

log = logging.getLogger(__name__)

CPU_BATCH = 8  # more than this spills activations out of the caches and is slower
GPU_BATCH = 64


class Batches:
    """Runs a network on many items, some at a time.

    When the device is out of memory the batch is halved and the smaller size kept, so that a
    long run meets the error a few times and not once per video.

    Raises:
        ConfigError: the size is below 1.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        if size is None:
            size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
        if size < 1:
            raise ConfigError(f"batch size must be 1 or more, got {size}")
        self.size = size
        self._device = device

    def run(self, network: Callable[[Tensor], Tensor], items: Tensor, *, dim: int) -> Tensor:
        """`network` of all `items` [n, ...] as float32 [n, dim] on the CPU, without gradient.

        Raises:
            EnvironmentProblem: out of memory with a single item.
        """
        rows: list[Tensor] = []
        at = 0
        while at < len(items):
            size = min(self.size, len(items) - at)
            try:
                with torch.inference_mode():
                    rows.append(network(items[at : at + size]).float().cpu())
                at += size
            except torch.OutOfMemoryError as err:
                self.halve(size, err)
        # Outside of inference mode, so that a caller may train on the rows.
        return torch.cat(rows) if rows else torch.zeros(0, dim)

    def halve(self, tried: int, err: torch.OutOfMemoryError) -> None:
        """Makes the batch smaller than `tried` items, which did not fit.

        Raises:
            EnvironmentProblem: it was a single item.
        """
        if tried == 1:
            problem = err.args[0] if err.args else "out of memory"
            raise EnvironmentProblem(
                f"{self._device}: no memory for one item; free some or use --device cpu "
                f"({str(problem).splitlines()[0]})"
            ) from err
        # Another thread may have come here first: the batch must not shrink twice for one cause.
        self.size = min(self.size, tried // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("%s: out of memory, the batch is now %d", self._device, self.size)
