"""A network run by OpenVINO on the CPU, shared by threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final

import torch
from torch import Tensor

from vtag.errors import EnvironmentProblem
from vtag.extractors.openvino_silent import openvino as ov

log = logging.getLogger(__name__)


# Takes half a second on an idle core.
COMPILE_SECONDS: Final = 120.0


def compiled(graph: ov.Model, settings: Mapping[str, object]) -> ov.CompiledModel:
    """The graph, ready to run on the CPU.

    Compiling was once seen to wait for ever for a task of its own (2026.4, on a busy machine).
    So it happens in a thread that is left alone when it takes too long, and is tried again.

    Raises:
        EnvironmentProblem: it did not end the second time either.
    """
    for _ in range(2):
        outcome: Future[ov.CompiledModel] = Future()

        def run(outcome: Future[ov.CompiledModel] = outcome) -> None:
            try:
                outcome.set_result(ov.Core().compile_model(graph, "CPU", settings))
            except Exception as err:  # noqa: BLE001  raised in the thread that waits
                outcome.set_exception(err)

        threading.Thread(target=run, name="vtag-openvino-compile", daemon=True).start()
        try:
            return outcome.result(COMPILE_SECONDS)
        except FutureTimeoutError:  # Python 3.10 knows it as another one
            log.warning("OpenVINO did not get ready within %.0f s", COMPILE_SECONDS)
    raise EnvironmentProblem(
        "OpenVINO does not get ready on this machine, tried twice; use --backend torch (which has "
        "no int8)"
    )


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
        self._compiled = compiled(graph, settings)
        self._own = threading.local()

    def __call__(self, crops: Tensor) -> Tensor:
        """Rows float32 [n, D] of pictures uint8 [n, 3, H, W]."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._compiled.create_infer_request()
        pixels = crops.permute(0, 2, 3, 1).contiguous().numpy()
        # A copy: the request's own memory holds the next rows soon.
        return torch.from_numpy(request.infer([pixels], share_inputs=True)[0].copy())
