"""Sampled pictures with torchcodec: on a graphics card that decodes (NVDEC), or on the CPU.

Optional, only when asked for by name: it needs torch in the decode child, and FFmpeg's shared
libraries on the machine. On a card the pictures never leave it at full size: they are made
small there, and only that travels on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
import torchcodec
from numpy.typing import NDArray
from torch import Tensor
from torchcodec.decoders import VideoDecoder, set_cuda_backend

from vtag.errors import MediaError
from vtag.picture import picture_size
from vtag.plan import Plan
from vtag.probe import Probe
from vtag.records import Frames

BUILD: Final = str(torchcodec.__version__)  # "0.11.1+cpu": what it was built for

_FULL_SIZE_BYTES: Final = 64 << 20  # 8 pictures of 1080p, one of 8K even if it takes more
_FAMILIES: Final = frozenset({"mp4", "matroska"})
_IN_ITS_SOURCE: Final = re.compile(r"^\w+, \S+\.(?:cpp|h):\d+, ")  # how its messages begin


def why_not_torchcodec(probe: Probe) -> str:
    """Why torchcodec would give other pictures than PyAV; empty if it can be trusted.

    It numbers the pictures that the file holds, and vtag those that a player shows; where both
    are the same, so are the pictures.
    """
    table = probe.table
    if probe.family not in _FAMILIES:
        return f"container {probe.family}"
    if table.counted or len(table.shown) != len(table):
        return "edit list, or pictures without a time"
    if not probe.orientation.is_upright:
        return "turned or mirrored"
    if len(table) < 2:  # photographs of phones, which its FFmpeg may not know
        return "a single picture"
    if max(probe.size) > 4 * min(probe.size):
        return "extreme shape"
    return ""


def read_frames_torchcodec(
    probe: Probe, plan: Plan, *, device: str, batch: int = 8
) -> Iterator[Frames]:
    """Batches of pictures in order of time; one batch is in memory at full size, 64 MiB of it.

    Args:
        device: "cpu", or "cuda:N" for the decoder of that card. What the card can not decode,
            torchcodec decodes on the CPU by itself.

    Raises:
        MediaError: decoder_misbehaved where torchcodec shows other pictures than the packets
            say; corrupt where it gives up. PyAV may still read the file.
    """
    if not len(plan):
        return
    width, height = picture_size(probe)
    at_once = max(1, min(batch, _FULL_SIZE_BYTES // (3 * probe.size[0] * probe.size[1])))
    time_base = float(probe.table.time_base)
    tolerance = probe.table.step * time_base / 2
    try:
        decoder = _open(probe, device)
        if len(decoder) != len(probe.table):
            raise _misbehaved(
                probe, f"counts {len(decoder)} pictures, the packets {len(probe.table)}"
            )
        for some in plan.in_batches(at_once):
            found = decoder.get_frames_at(some.pictures.tolist())
            times = found.pts_seconds.cpu().numpy()  # as the file has them
            if np.abs(times - some.ticks * time_base).max() > tolerance:
                raise _misbehaved(probe, "shows the pictures at other times than the packets")
            yield Frames(_small(found.data, height, width), some.repeats, some.seconds)
    except (RuntimeError, IndexError, ValueError) as err:
        said = _IN_ITS_SOURCE.sub("", str(err).strip()).partition("\n")[0] or type(err).__name__
        raise MediaError(
            f"{probe.path}: torchcodec can not decode it ({said})", code="corrupt", stage="video"
        ) from err


def _open(probe: Probe, device: str) -> VideoDecoder:
    arguments = {
        "stream_index": probe.video_index,
        "num_ffmpeg_threads": 1,
        "device": device,
        "seek_mode": "exact",  # else it guesses from the frame rate where a picture lies
    }
    path = os.path.realpath(probe.path)
    if device == "cpu":
        return VideoDecoder(path, **arguments)
    with set_cuda_backend("beta"):  # torchcodec's own NVDEC, instead of FFmpeg's
        return VideoDecoder(path, **arguments)


def _small(pixels: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [n, 3, H, W] at full size, on any device, to uint8 [n, height, width, 3] here.

    Antialiased bilinear, as what the networks were trained on.
    """
    small = [  # one by one: in float a picture is four times as large
        F.interpolate(
            pixels[at : at + 1].float(),
            (height, width),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        for at in range(len(pixels))
    ]
    rounded = torch.cat(small).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).cpu().numpy())


def _misbehaved(probe: Probe, what: str) -> MediaError:
    return MediaError(f"{probe.path}: torchcodec {what}", code="decoder_misbehaved", stage="video")
