"""Where weights come from, where they lie, and whether they are the right ones.

Imports neither torch nor torchvision: `vtag models list` answers at once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from vtag.download import Progress, fetch, offline_variable
from vtag.errors import ConfigError, WeightsError


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """One file of weights that vtag knows.

    Attributes:
        name: what it is asked for by; the extractor's name.
        file: its exact file name.
        about: one line for a list.
        licence: of the weights.
        card: file name of its card in extractors/weights.
        sha256: in hex; the first digits where its publisher names no more.
        size_bytes: exact.
        urls: where it can be had, tried in order; none for what the package holds.
    """

    name: str
    file: str
    about: str
    licence: str
    card: str
    sha256: str
    size_bytes: int
    urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 8 <= len(self.sha256) <= 64 or self.size_bytes < 1 or "/" in self.file:
            raise ValueError(f"weights without a usable file name, hash or size: {self!r}")

    @property
    def embedded(self) -> bool:
        """Whether it comes with the package."""
        return not self.urls


_KNOWN: Final = (
    WeightsSource(
        name="resnet50",
        file="resnet50_he2015.safetensors",
        about="ResNet-50 of He et al. 2015, ImageNet; comes with vtag",
        licence="MIT",
        card="resnet50_he2015.md",
        sha256="1b4ccee97ab997d024334577eaf6fcd38f56fd89e139dc52c3bb7a0b77450ffb",
        size_bytes=51_458_400,
    ),
    WeightsSource(
        name="resnet50_v1",
        file="resnet50-0676ba61.pth",
        about="torchvision's ResNet-50, IMAGENET1K_V1 (76.1 % top-1)",
        licence="BSD-3-Clause",
        card="resnet50_torchvision.md",
        sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        size_bytes=102_530_333,
        urls=("https://download.pytorch.org/models/resnet50-0676ba61.pth",),
    ),
    WeightsSource(
        name="resnet50_v2",
        file="resnet50-11ad3fa6.pth",
        about="torchvision's ResNet-50, IMAGENET1K_V2 (80.9 % top-1)",
        licence="BSD-3-Clause",
        card="resnet50_torchvision.md",
        sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
        size_bytes=102_540_417,
        urls=("https://download.pytorch.org/models/resnet50-11ad3fa6.pth",),
    ),
    WeightsSource(
        name="vggish_small",
        file="vggish_small.safetensors",
        about="vtag's small ear, 2 M parameters, taught by an AudioSet tagger; comes with vtag",
        licence="Apache-2.0",
        card="vggish_small.md",
        sha256="cb9b6b3f28ff59bdb203d85b53836322e6073a991448d12997f7780814734741",
        size_bytes=4_199_784,
    ),
    WeightsSource(
        name="vggish",
        file="vggish-10086976.pth",
        about="Google's VGGish, AudioSet features, 72 M parameters",
        licence="Apache-2.0",
        card="vggish.md",
        # The publisher states the first eight digits only, in the file's name.
        sha256="10086976",
        size_bytes=288_567_937,
        urls=(
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        ),
    ),
    WeightsSource(
        name="vggish_pca",
        file="vggish_pca_params.npz",
        about="PCA that AudioSet and YouTube-8M put behind VGGish",
        licence="Apache-2.0",
        card="vggish.md",
        sha256="4d878af3e306defbfb37095365aa7e5a6cecb86bad13e859e626151c4e6a8b9d",
        size_bytes=73_020,
        urls=("https://storage.googleapis.com/audioset/vggish_pca_params.npz",),
    ),
)
SOURCES: Final[dict[str, WeightsSource]] = {source.name: source for source in _KNOWN}


def list_weights() -> tuple[WeightsSource, ...]:
    """Every file of weights that vtag knows; `installed` tells which are here."""
    return tuple(SOURCES.values())


def source_of(name: str) -> WeightsSource:
    """The record of the weights called `name`.

    Raises:
        ConfigError: nothing is called so.
    """
    if name not in SOURCES:
        raise ConfigError(f"no weights {name!r}; there are: {', '.join(SOURCES)}")
    return SOURCES[name]


def card_of(name: str) -> Path:
    """The card (Markdown) of the weights called `name`: data, licence, figures, limits."""
    return embedded_folder() / source_of(name).card


def embedded_folder() -> Path:
    """extractors/weights of the installed package."""
    # find_spec and not an import: that one would bring torch.
    spec = importlib.util.find_spec("vtag.extractors")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "weights"


def download_folder() -> Path:
    """Where downloads go: $VTAG_WEIGHTS, or vtag/weights in the user's cache folder."""
    chosen = os.environ.get("VTAG_WEIGHTS")
    return Path(chosen) if chosen else platformdirs.user_cache_path("vtag") / "weights"


def searched_folders() -> tuple[Path, ...]:
    """Where weights are looked for, in order.

    $VTAG_WEIGHTS, the package, vtag/weights in the user's cache folder, and torch's own download
    folder, where torchvision's files may already lie.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    torch_home = os.environ.get("TORCH_HOME") or Path(cache) / "torch"
    folders = (
        download_folder(),
        embedded_folder(),
        platformdirs.user_cache_path("vtag") / "weights",
        Path(torch_home) / "hub" / "checkpoints",
    )
    return tuple(dict.fromkeys(folders))


def find_weights(name: str, *, path: Path | None = None) -> Path:
    """The file with the weights called `name`, its size and hash checked.

    Args:
        path: a file of the user's own, taken as it is: whoever names a file means that file. It
            is the caller's part to check that it fits the network.

    Raises:
        WeightsError: it is nowhere, or only damaged; says what to fetch and where to put it.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file (weights for {name})")
        return path
    if name not in SOURCES:
        raise WeightsError(f"{name} comes without weights; name a file that holds them")
    source, damaged = SOURCES[name], ""
    for folder in searched_folders():
        file = folder / source.file
        if not file.is_file():
            continue
        problem = _problem(file, source)
        if problem is None:
            return file
        damaged += f"{file} is there but {problem}. "
    raise WeightsError(damaged + _what_to_do(source))


def installed(name: str) -> Path | None:
    """Where the weights called `name` lie, checked; None when they have to be fetched.

    Raises:
        ConfigError: nothing is called so.
    """
    source_of(name)
    try:
        return find_weights(name)
    except WeightsError:
        return None


def download_weights(
    name: str, *, folder: Path | None = None, on_progress: Progress | None = None
) -> Path:
    """The file with the weights called `name`, fetched unless it is already here.

    Args:
        folder: where to put it; `download_folder()` otherwise. A good file there, or without
            `folder` anywhere that is searched, is not fetched again.
        on_progress: called with (bytes so far, bytes in all).

    Raises:
        ConfigError: nothing is called so.
        WeightsError: offline, not reachable, not the expected bytes, or no room.
    """
    source = source_of(name)
    if folder is None:
        present = installed(name)
        if present is not None:
            return present
        folder = download_folder()
    target = folder / source.file
    if target.is_file() and _problem(target, source) is None:
        return target
    variable = offline_variable()
    if variable is not None or source.embedded:
        reason = f"{variable} forbids the network. " if variable else ""
        raise WeightsError(reason + _what_to_do(source, unset=variable))
    failures = []
    for url in source.urls:
        try:
            fetch(
                url,
                target,
                size_bytes=source.size_bytes,
                sha256=source.sha256,
                on_progress=on_progress,
            )
        except WeightsError as err:
            failures.append(str(err))
        else:
            return target
    raise WeightsError("; ".join(failures) + f". {_what_to_do(source)}")


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex; read once as long as its size, date and inode stay.

    Raises:
        WeightsError: it can not be read.
    """
    try:
        state = file.stat()
        return _hashed(file, (state.st_size, state.st_mtime_ns, state.st_ino))
    except OSError as err:
        raise WeightsError(f"{file}: can not be read ({err.strerror})") from err


@functools.lru_cache(maxsize=32)
def _hashed(file: Path, state: tuple[int, int, int]) -> str:
    digest, block = hashlib.sha256(), bytearray(1 << 20)
    with file.open("rb", buffering=0) as data:
        while count := data.readinto(block):
            digest.update(memoryview(block)[:count])
    return digest.hexdigest()


def _problem(file: Path, source: WeightsSource) -> str | None:
    """What is wrong with a file that has the right name."""
    size = file.stat().st_size
    if size != source.size_bytes:
        return f"has {size} bytes instead of {source.size_bytes}"
    found = sha256_of(file)
    return None if found.startswith(source.sha256) else f"has sha256 {found}"


def _what_to_do(source: WeightsSource, *, unset: str | None = None) -> str:
    """The one line that lets somebody without a network finish by hand."""
    what = f"{source.file} ({source.size_bytes} bytes, sha256 {source.sha256}"
    what += ")" if len(source.sha256) == 64 else "…)"
    looked_in = ", ".join(str(folder) for folder in searched_folders())
    if source.embedded:
        return f"{source.name}: {what} is part of vtag: install it again. Looked in: {looked_in}"
    return (
        f"{source.name}: {f'unset {unset} and ' if unset else ''}run "
        f"`vtag models download {source.name}`, or put {what} "
        f"from {source.urls[0]} into {download_folder()}. Looked in: {looked_in}"
    )
