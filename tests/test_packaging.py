"""What the wheel holds, and what an import costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pipeline": "vtag", "extractors": "vtag/extractors", "models": "vtag/models"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # Built from a copy: setuptools leaves build/lib behind, and the next wheel would
    # pick up modules from it that have long been deleted.
    tmp_path = tmp_path_factory.mktemp("wheel")
    copy = tmp_path / "copy"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("examples", "docs"):  # there in a checkout, and not to be packed
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, copy], check=True, capture_output=True)
    return zipfile.ZipFile(next(tmp_path.glob("*.whl")))


def test_the_wheel_holds_every_file_under_one_name(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert packed == expected


def test_the_embedded_weights_stay_small(wheel: zipfile.ZipFile) -> None:
    weights = [item for item in wheel.infolist() if "/weights/" in item.filename]
    assert any(item.filename.endswith(".safetensors") for item in weights)
    assert sum(item.file_size for item in weights) <= 100e6


def test_import_is_cheap() -> None:
    heavy = ["torch", "torchvision", "torchaudio", "decord", "av", "ray"]
    code = f"import sys, vtag; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_pipeline_loads_no_decoder_and_no_torchaudio() -> None:
    heavy = ["torchvision", "torchaudio", "decord", "av"]
    code = (
        f"import sys; from vtag import Pipeline; print([n for n in {heavy!r} if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
