"""The files of a model folder: read with a reason, checked, and put in place as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Final

from vtag.errors import WeightsError

WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.json"
LABELS_FILE: Final = "labels.json"
CARD_FILE: Final = "README.md"
OWN_FILES: Final = (WEIGHTS_FILE, CONFIG_FILE, LABELS_FILE, CARD_FILE)

Json = dict[str, object]


def put_in_place(part: Path, folder: Path) -> None:
    """Puts the finished folder in place; an old model leaves, foreign files beside it stay."""
    if not folder.exists():
        os.replace(part, folder)
        return
    old = part.with_suffix(".old")
    os.replace(folder, old)
    try:
        os.replace(part, folder)
    except OSError:
        os.replace(old, folder)
        raise
    for file in old.iterdir():
        if file.name not in OWN_FILES:
            os.replace(file, folder / file.name)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(value: object) -> bytes:
    """The one way in which we write JSON, so that equal contents have equal checksums."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def read_json(file: Path) -> object:
    """What a JSON file holds; WeightsError if it is missing, unreadable or no JSON."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError as err:
        raise WeightsError(
            f"{file}: missing; a model is a folder with {CONFIG_FILE}, {LABELS_FILE} and "
            f"{WEIGHTS_FILE}"
        ) from err
    except OSError as err:
        raise WeightsError(f"{file}: can not be read ({err.strerror})") from err
    except (ValueError, RecursionError) as err:
        raise WeightsError(f"{file}: damaged (not JSON: {err}); copy the model again") from err


def read_object(file: Path) -> Json:
    """The object that a JSON file holds; WeightsError if there is none."""
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise WeightsError(f"{file}: must hold an object")
    return settings


def sha256_of(file: Path) -> str:
    """64 hex digits over the bytes of a file; WeightsError if it can not be read."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    except FileNotFoundError as err:
        raise WeightsError(f"{file}: missing; copy the model again") from err
    except OSError as err:
        raise WeightsError(f"{file}: can not be read ({err.strerror})") from err
    return digest.hexdigest()
