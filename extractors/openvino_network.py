"""A network run by OpenVINO on the CPU, shared by threads."""

from __future__ import annotations

import threading
from typing import Final

import torch
from torch import Tensor

from vtag.extractors.openvino_silent import openvino as ov


class OpenVinoNetwork:
    """Calls a graph with one input and one output; safe for several threads at once.

    Each thread has a request of its own and the weights are there once. A pass takes as many
    threads as one of torch (`torch.get_num_threads`), and as many passes go on at once as
    `cores` hold, so that two runtimes in one process do not take more cores than there are.
    """

    def __init__(self, graph: ov.Model, *, cores: int) -> None:
        threads = max(1, min(torch.get_num_threads(), cores))
        streams = max(1, cores // threads)
        settings: Final = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            # Else it computes in bfloat16 where the processor can.
            "INFERENCE_PRECISION_HINT": "f32",
            # Pinned threads would stay on cores that the decode children want.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = ov.Core().compile_model(graph, "CPU", settings)
        self._own = threading.local()

    def __call__(self, crops: Tensor) -> Tensor:
        """Rows float32 [n, D] of pictures uint8 [n, 3, H, W]."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        pixels = crops.permute(0, 2, 3, 1).contiguous().numpy()
        # A copy: the request's own memory holds the next rows soon.
        return torch.from_numpy(request.infer([pixels], share_inputs=True)[0].copy())
