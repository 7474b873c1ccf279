"""A frozen picture network on a CUDA device: one captured graph per slot, copies beside it.

Written against the documentation of torch.cuda ("CUDA semantics": streams, graphs, pinned memory)
and tested on a CPU up to the calls of torch.cuda itself: not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CudaSlot:
    """A `Slot` (see slots.py) for pictures uint8 [n, 3, H, W] of one size.

    The pictures go through pinned memory on a stream of their own, the captured graph runs on
    another, and rows come back into pinned memory; the CPU waits for none of it but the rows.
    A pass is always over `size` pictures: behind the last one stands what was there before, which
    changes nothing, for a row depends on its own picture only.

    Args:
        network: pictures uint8 [size, 3, H, W] on the device to rows [size, D].
        size: pictures of a pass.
        picture: H and W.
        precise: whether products of fp32 keep all their bits (torch's own choice is TF32, 10).

    Raises:
        torch.OutOfMemoryError: the device does not hold it.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        device: torch.device,
        size: int,
        picture: tuple[int, int],
        precise: bool,
    ) -> None:
        shape = (size, *picture, 3)
        self._host_pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._count = 0
        self._graph = torch.cuda.CUDAGraph()
        flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=not precise)
        with torch.cuda.device(device), torch.inference_mode(), flags:
            self._rows = self._captured(network)
        self._host_rows = torch.empty(self._rows.shape, dtype=torch.float32, pin_memory=True)

    def _captured(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Where the graph, now recorded, writes its rows."""
        seen = self._pixels.permute(0, 3, 1, 2)
        self._compute.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._compute):
            for _ in range(3):  # cuDNN and the allocator settle outside of the recording
                network(seen)
        torch.cuda.current_stream().wait_stream(self._compute)
        # thread_local: other threads may use the device meanwhile.
        with torch.cuda.graph(self._graph, stream=self._compute, capture_error_mode="thread_local"):
            rows = network(seen).float()
        return rows

    def start(self, items: Tensor) -> None:
        """Begins a pass over pictures uint8 [n, 3, H, W] on the CPU; see `Slot`."""
        self._count = count = len(items)
        self._host_pixels[:count].copy_(items.permute(0, 2, 3, 1))
        with torch.inference_mode():
            with torch.cuda.stream(self._copies):
                self._pixels[:count].copy_(self._host_pixels[:count], non_blocking=True)
                self._arrived.record(self._copies)
            with torch.cuda.stream(self._compute):
                self._compute.wait_event(self._arrived)
                self._graph.replay()
                self._host_rows[:count].copy_(self._rows[:count], non_blocking=True)
                self._done.record(self._compute)

    def rows(self) -> Tensor:
        """Rows float32 [n, D] of the pass; see `Slot`."""
        self._done.synchronize()
        return self._host_rows[: self._count].clone()
