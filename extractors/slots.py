"""Passes of one fixed size through a device, the next one under way while the last one ends.

What a GPU is fast at: the same shape every time, captured once, with memory that stays. The order
of things is here and knows no device; `cuda_network` has the slots of a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, LifoQueue
from typing import Final, Protocol

import torch
from torch import Tensor

from vtag.extractors.batches import Batches

SLOTS: Final = 2  # one is filled while the other computes


class Slot(Protocol):
    """Memory and work for one pass; used by one thread at a time."""

    def start(self, items: Tensor) -> None:
        """Begins a pass over up to `size` items and does not wait for it."""

    def rows(self) -> Tensor:
        """Waits for the pass; its rows, float32 [n, D] on the CPU, the caller's to keep."""


class SlotPasses:
    """Runs items through slots. Safe for several threads at once.

    Args:
        make: a slot for passes of that many items.
        batches: says how many, and is halved while the slots do not fit the memory.

    Raises:
        EnvironmentProblem: not even slots for one item fit.
    """

    def __init__(self, make: Callable[[int], Slot], batches: Batches) -> None:
        self._free: LifoQueue[Slot] = LifoQueue()
        while True:
            self.size = batches.size
            try:
                made = [make(self.size) for _ in range(SLOTS)]
            except torch.OutOfMemoryError as err:
                batches.halve(self.size, err)
            else:
                break
        for slot in made:
            self._free.put(slot)

    def run(self, items: Tensor, *, dim: int) -> Tensor:
        """Rows float32 [n, dim] of all `items` [n, ...], in order."""
        rows: list[Tensor] = []
        under_way: deque[Slot] = deque()
        try:
            for part in torch.split(items, self.size) if len(items) else ():
                slot = self._borrow(under_way, rows)
                under_way.append(slot)
                slot.start(part)
            while under_way:
                rows.append(under_way[0].rows())
                self._free.put(under_way.popleft())
        finally:
            for slot in under_way:  # after an error: the slots go back, their rows do not matter
                self._free.put(slot)
        return torch.cat(rows) if rows else torch.zeros(0, dim)

    def _borrow(self, under_way: deque[Slot], rows: list[Tensor]) -> Slot:
        """A free slot; where others hold them, the oldest of one's own.

        Only a thread that holds none waits for one, so two threads never wait for each other.
        """
        if not under_way:
            return self._free.get()
        try:
            return self._free.get_nowait()
        except Empty:
            rows.append(under_way[0].rows())
            return under_way.popleft()
