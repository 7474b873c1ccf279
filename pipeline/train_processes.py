"""Several processes that train one network: who has which clips, and sums over all of them.

Started by torchrun, or by whoever calls `torch.distributed.init_process_group`; alone, every
function does nothing. Gradients are summed by hand and not by DistributedDataParallel: a step's
gradient is then the sum over its clips, however unevenly they are shared out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: 0 writes files.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process' part of a step; parts differ by one at most."""
        return items[
            len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count
        ]

    def sum_gradients(self, net: nn.Module) -> None:
        """Replaces every gradient by its sum over the processes, as one message."""
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def average_buffers(self, net: nn.Module) -> None:
        """Gives all processes the same running statistics."""
        if self.count == 1:
            return
        for buffer in net.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.count

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return here
        return bool(self.total(torch.tensor(float(here), device=device)) > 0)

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """The processes of this training; joins those of torchrun where it started us."""
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()


def in_parts(items: Sequence[T], parts: int) -> Iterable[Sequence[T]]:
    """The items in so many parts at most, none of them empty, sizes differing by one at most."""
    edges = [len(items) * n // parts for n in range(parts + 1)]
    return (items[a:b] for a, b in pairwise(edges) if b > a)
