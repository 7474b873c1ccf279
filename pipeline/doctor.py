"""What this machine has for vtag, what is slow, and what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "problem"]

PACKAGES = ("torch", "torchvision", "torchaudio", "av", "decord", "numpy", "safetensors")
LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do where something is to be done."""

    state: State
    what: str
    advice: str = ""


def findings(cache_folder: Path) -> Iterator[Finding]:
    """All that a bug report needs, and what is wrong first hand.

    Args:
        cache_folder: where features would be kept.
    """
    from vtag import __version__

    yield Finding(
        "ok", f"vtag {__version__} on Python {platform.python_version()}, {platform.platform()}"
    )
    yield from _packages()
    yield from _devices()
    yield from _decoders()
    yield from _sandbox()
    yield from _models()
    yield from _cache(cache_folder)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        found = _installed(name)
        if found:
            yield Finding("ok", f"{name} {found}")
        elif name == "decord":
            yield Finding(
                "note", "decord is not installed", "PyAV decodes everything; nothing to do"
            )
        else:
            yield Finding("problem", f"{name} is not installed", "pip install vtag again")
    if _installed("decord") and _installed("decord2"):
        yield Finding(
            "problem",
            "decord and decord2 are both installed and overwrite each other's files",
            "pip uninstall decord decord2, then pip install decord==0.6.0",
        )


def _devices() -> Iterator[Finding]:
    import torch

    from vtag.stream import usable_cores

    yield Finding("ok", f"{usable_cores()} cores")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("ok", f"cuda:{index} {torch.cuda.get_device_name(index)}")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps (Apple GPU)")
    else:
        yield Finding("note", "no GPU: the networks run on the CPU")


def _decoders() -> Iterator[Finding]:
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, numbers))}"
        for name, numbers in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat")
    )
    yield Finding("ok", f"PyAV's FFmpeg: {libraries}")
    missing = [c for c in ("h264", "hevc", "vp9", "av1", "aac", "opus") if not _has_decoder(c)]
    if missing:
        yield Finding(
            "note", f"FFmpeg has no decoder for {', '.join(missing)}", "pip install -U av"
        )
    if importlib.util.find_spec("decord"):
        yield Finding("note", "decord's own FFmpeg is of 2018; it runs in a limited child only")


def _has_decoder(codec: str) -> bool:
    import av

    try:
        av.codec.Codec(codec, "r")
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _sandbox() -> Iterator[Finding]:
    from vtag.sandbox import in_force

    for limit, there in in_force().items():
        if there:
            yield Finding("ok", f"decode child: {limit}")
        else:
            yield Finding("note", f"decode child: no {limit} on this system")


def _models() -> Iterator[Finding]:
    from vtag.errors import WeightsError
    from vtag.head import DEFAULT_MODEL, load_head
    from vtag.weights import find_weights

    try:
        head = load_head(DEFAULT_MODEL)
        for name in head.extractor_names.values():
            find_weights(name)
    except WeightsError as err:
        yield Finding("problem", str(err), "pip install --force-reinstall vtag")
    else:
        yield Finding(
            "ok", f"model {head.info.name} {head.info.fingerprint}, {head.info.labels} labels"
        )


def _cache(folder: Path) -> Iterator[Finding]:
    from vtag.cache import FeatureCache
    from vtag.errors import CacheError

    try:
        info = FeatureCache(folder).info()
    except CacheError as err:
        yield Finding("problem", str(err), "choose another folder with --cache or VTAG_CACHE_DIR")
        return
    yield Finding("ok", f"cache {folder}: {info.entries} entries, {info.bytes / 1e6:.0f} MB")
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        yield Finding(
            "note",
            f"only {free / 1e6:.0f} MB free where the cache is",
            "vtag cache prune --max-size 500M",
        )
    if sys.platform == "win32":
        yield Finding("note", "on Windows the decode child has a deadline but no other limits")
