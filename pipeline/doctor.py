"""What this machine has for vtag, what is slow, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "problem"]

PACKAGES = ("torch", "torchvision", "torchaudio", "av", "decord", "numpy", "safetensors")
# Extra -> the module that it installs, and what for.
EXTRAS = {
    "watch": ("watchdog", "vtag run --watch without walking"),
    "parquet": ("pyarrow", "vtag sidecar --format parquet"),
    "onnx": ("onnxruntime", "vtag export"),
    "s3": ("s3fs", "videos and results at s3://"),
    "gcs": ("gcsfs", "videos and results at gs://"),
    "ray": ("ray", "vtag run --engine ray"),
}
PROGRAMS = {"mpv": "vtag search --open"}
LOW_DISK_BYTES = 1 << 30
# Of the networks, and of each file that is worked on beside them: 0.8, 0.9 and 1.05 GB for 1,
# 2 and 4 workers on the sample videos, children included; larger pictures need more.
GB_AND_GB_PER_WORKER = (0.7, 0.3)
SLOW_FRAMES_PER_SECOND = 3.0


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
    yield from _extras()
    yield from _devices()
    yield from _backends()
    yield from _decoders()
    yield from _sandbox()
    yield from _models()
    yield from _cache(cache_folder)
    yield from _settings()
    yield from _speed()


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


def _extras() -> Iterator[Finding]:
    """Libraries that something more needs; nothing is wrong without them."""
    for name, (module, use) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Finding("ok", f"{module} {_installed(module) or ''}".rstrip() + f": {use}")
        else:
            yield Finding("note", f"no {module}: {use}", f"pip install 'vtag[{name}]'")
    for program, use in PROGRAMS.items():
        if shutil.which(program):
            yield Finding("ok", f"{program}: {use}")
        else:
            yield Finding("note", f"no {program}: {use}", f"apt install {program}, or the like")


def _devices() -> Iterator[Finding]:
    import torch

    from vtag.cores import usable_cores

    yield Finding("ok", f"{usable_cores()} cores, and as many files at once in `vtag run`")
    yield from _memory(usable_cores())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("ok", f"cuda:{index} {torch.cuda.get_device_name(index)}")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps (Apple GPU)")
    else:
        yield Finding("note", "no GPU: the networks run on the CPU")


def _memory(workers: int) -> Iterator[Finding]:
    try:
        pages = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
        total, free = (count * os.sysconf("SC_PAGE_SIZE") / 1e9 for count in pages)
    except (AttributeError, ValueError, OSError):  # not on this system
        return
    text = f"{total:.1f} GB of memory, {free:.1f} GB free"
    if total < GB_AND_GB_PER_WORKER[0] + workers * GB_AND_GB_PER_WORKER[1]:
        fits = max(1, int((total - GB_AND_GB_PER_WORKER[0]) / GB_AND_GB_PER_WORKER[1]))
        yield Finding("note", text, f"little for {workers} files at once: --workers {fits}")
    else:
        yield Finding("ok", text)


def _backends() -> Iterator[Finding]:
    found = _installed("openvino")
    if found:
        yield Finding("ok", f"openvino {found}: computes on the CPU; --precision int8 is there")
    else:
        yield Finding(
            "note",
            "openvino is not installed: torch computes, and there is no --precision int8",
            'pip install "vtag[openvino]" for a faster CPU',
        )


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
    yield _torchcodec()


def _torchcodec() -> Finding:
    import torch

    use = "--decoder torchcodec: decoding on a graphics card"
    if not importlib.util.find_spec("torchcodec"):
        return Finding("note", f"no torchcodec: {use}", "pip install 'vtag[torchcodec]'")
    try:
        found = importlib.import_module("torchcodec.decoders") and _torchcodec_build()
    except (ImportError, OSError, RuntimeError) as err:
        said = str(err).strip().partition("\n")[0]
        return Finding("note", f"torchcodec does not load ({said})", "apt install ffmpeg")
    if found.endswith("+cpu") and torch.cuda.is_available():
        advice = "install its build for CUDA, as torchcodec's README says"
        return Finding("note", f"torchcodec {found} can not decode on the graphics card", advice)
    return Finding("ok", f"torchcodec {found}: {use}")


def _torchcodec_build() -> str:
    """Its version, and whether it was built for CUDA, such as "0.11.1+cpu"."""
    return str(importlib.import_module("torchcodec").__version__)


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
        yield Finding("problem", str(err))  # which says what to do
        return
    yield Finding("ok", f"cache {folder}: {info.entries} entries, {info.bytes / 1e6:.0f} MB")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "problem",
            f"cache {folder}: nothing can be stored there",
            "change its permissions, or choose another folder with --cache or VTAG_CACHE_DIR",
        )
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_BYTES:
        yield Finding(
            "note",
            f"only {free / 1e6:.0f} MB free where the cache is",
            "vtag cache prune --max-size 500M",
        )
    if sys.platform == "win32":
        yield Finding("note", "on Windows the decode child has a deadline but no other limits")


def _settings() -> Iterator[Finding]:
    from vtag.cli import build_parser
    from vtag.cli_parse import schema_of
    from vtag.errors import ConfigError
    from vtag.settings import Settings
    from vtag.settings_files import odd_variables

    schema = schema_of(build_parser())
    try:
        read = [str(source.path) for source, _ in Settings(schema, os.environ).files]
    except ConfigError as err:
        yield Finding("problem", str(err), "repair it; `vtag config path` names the files")
    else:
        yield Finding("ok", f"settings: {', '.join(read) or 'no file, all defaults'}")
    for text in odd_variables(schema, os.environ):
        yield Finding("note", text)


def _speed() -> Iterator[Finding]:
    """How fast one core looks at frames: the greater part of a cold run on a CPU."""
    import torch

    from vtag.errors import EnvironmentProblem
    from vtag.extractors import build_extractor

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # this is an application: `vtag doctor`
        extractor = build_extractor("resnet50", device="cpu", batch_size=None)
        pixels = torch.randint(0, 256, (8, 3, 256, 256), dtype=torch.uint8)
        extractor(pixels)
        started = time.perf_counter()
        extractor(pixels)
        rate = len(pixels) / (time.perf_counter() - started)
    except EnvironmentProblem:  # said above
        return
    finally:
        torch.set_num_threads(threads)
    text = f"the visual network looks at {rate:.0f} frames a second and core"
    if rate < SLOW_FRAMES_PER_SECOND:
        yield Finding("note", text, "slow: --sampling keyframes or --max-frames 60 help most")
    else:
        yield Finding("ok", text)
