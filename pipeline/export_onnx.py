"""A model as an ONNX file, for runtimes that are not Python."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from vtag.errors import EnvironmentProblem, OutputError
from vtag.models.checkpoint import load_checkpoint
from vtag.models.ensemble import Net
from vtag.storage import reason

log = logging.getLogger(__name__)

OPSET: Final = 17
TOLERANCE: Final = 1e-4
CHECKED_LENGTHS: Final = (1, 3, 40)  # rows per stream; the file must do for any


class _Flat(nn.Module):
    """The network with a positional argument per tensor, as ONNX has them."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.streams = [stream.name for stream in net.config.streams]

    def forward(self, *tensors: Tensor) -> Tensor:
        rows = dict(zip(self.streams, tensors[::2], strict=True))
        mask = dict(zip(self.streams, tensors[1::2], strict=True))
        return self.net.probabilities(rows, mask)


def export_onnx(folder: Path, file: Path) -> float:
    """Writes the network of a model folder as ONNX; the largest difference from torch.

    Inputs per stream: `<stream>` float [B, T, D] and `<stream>_mask` bool [B, T], B and T free.
    Output: `probabilities` float [B, C], labels in the order of labels.json (without roll-ups).
    The file is kept only if onnxruntime gives the same as torch on drawn rows of several lengths.

    Raises:
        EnvironmentProblem: the extra [onnx] is not installed.
        WeightsError: the model is missing or damaged.
        OutputError: the file can not be written, ONNX lacks what the network does, or what the
            file says differs by more than 1e-4.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"export needs {' and '.join(missing)}, not installed here: pip install 'vtag[onnx]'"
        )
    flat = _Flat(load_checkpoint(folder).net.eval()).eval()
    names = [name for stream in flat.streams for name in (stream, f"{stream}_mask")]
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    axes = {name: {0: "batch", 1: f"{name.removesuffix('_mask')}_time"} for name in names}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), torch.no_grad():
            # The tracing exporter warns of checks on shapes, which hold for every input.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                flat,
                tuple(_drawn(flat.net, 2, 5).values()),
                str(part),
                input_names=names,
                output_names=["probabilities"],
                dynamic_axes={**axes, "probabilities": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
        difference = max(_difference(flat, names, part, length) for length in CHECKED_LENGTHS)
        if not difference <= TOLERANCE:
            raise OutputError(
                f"{file}: not written: onnxruntime differs from torch by {difference:.1e}; "
                "tell us which model it is"
            )
        os.replace(part, file)
    except torch.onnx.errors.OnnxExporterError as err:
        raise OutputError(
            f"{file}: not written: {folder} has what ONNX lacks ({str(err).partition(chr(10))[0]})"
        ) from err
    except OSError as err:
        raise OutputError(f"{file}: can not be written ({reason(err)})") from err
    finally:
        part.unlink(missing_ok=True)
    return difference


def _drawn(net: Net, items: int, length: int) -> dict[str, Tensor]:
    """Rows and masks per stream, the last item half as long as the others."""
    random = torch.Generator().manual_seed(length)
    found: dict[str, Tensor] = {}
    for stream in net.config.streams:
        rows = torch.rand(items, length, stream.dim, generator=random)
        mask = torch.ones(items, length, dtype=torch.bool)
        mask[-1, (length + 1) // 2 :] = False
        found |= {stream.name: rows, f"{stream.name}_mask": mask}
    return found


def _difference(flat: _Flat, names: list[str], file: Path, length: int) -> float:
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]  # an extra

    inputs = _drawn(flat.net, 3, length)
    with torch.no_grad():
        wanted = flat(*inputs.values()).numpy()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds: Mapping[str, object] = {name: inputs[name].numpy() for name in names}
    (found,) = session.run(None, feeds)
    return float(np.abs(found - wanted).max())
