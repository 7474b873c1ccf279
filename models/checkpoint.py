"""A model as one folder: weights, settings, labels, and a card for people to read.

    my-model/
        model.safetensors   all parameters and buffers of the network; of an ensemble those of
                            its networks, as nets.0.…, nets.1.…
        config.json         format, name, network, fingerprints of what made its rows, checksums
        labels.json         a list of objects, one per label
        README.md           the card; optional, not part of the fingerprint

Nothing in it can run code. Every byte but the card's is covered by a checksum.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtag.errors import ConfigError, OutputError, WeightsError
from vtag.models.ensemble import Net, NetConfig, blank, config_from_dict
from vtag.models.model_folder import (
    CARD_FILE,
    CONFIG_FILE,
    LABELS_FILE,
    WEIGHTS_FILE,
    Json,
    json_bytes,
    put_in_place,
    read_json,
    read_object,
    sha256_of,
    sync,
)
from vtag.records import network_of

log = logging.getLogger(__name__)

FORMAT: Final = 1  # raised when an older vtag could not read the folder any more

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT",
    "LABELS_FILE",
    "WEIGHTS_FILE",
    "Checkpoint",
    "check_extractors",
    "load_checkpoint",
    "save_checkpoint",
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network and all that is needed to use it.

    Attributes:
        net: one network or an ensemble, on the CPU, in evaluation mode when loaded.
        labels: one JSON object per label, in the order of the network's outputs.
        extractors: fingerprint of the extractor that made each stream's rows.
        sampling: fingerprint of the sampling settings of the training rows; "" if any goes.
        readout: settings of the readout; not looked into here.
        card: Markdown; "" if there is none.
        fingerprint: 12 hex digits over weights, settings and labels; "" until it is saved.

    Raises:
        ConfigError: the number of labels is not the network's, or a stream is unknown to it.
    """

    net: Net
    labels: list[dict[str, object]]
    name: str
    extractors: Mapping[str, str] = field(default_factory=dict)
    sampling: str = ""
    readout: Mapping[str, object] = field(default_factory=dict)
    card: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        # More labels than outputs: the rest are roll-ups, which sum outputs.
        if len(self.labels) < self.config.labels:
            raise ConfigError(
                f"model {self.name!r}: {len(self.labels)} labels for a network of "
                f"{self.config.labels}"
            )
        for stream in self.extractors:
            self.config.stream(stream)

    @property
    def config(self) -> NetConfig:
        """The settings of the network, or of the ensemble."""
        return self.net.config


def save_checkpoint(
    folder: str | Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32
) -> str:
    """Fingerprint of the model that now lies in `folder`, as a whole; before, none or the old one.

    A vtag model that is there is replaced, and other files beside it are kept. If the machine
    dies between two renames at the very end, both models remain beside the folder as
    `.<name>.*.part` and `.<name>.*.old`.

    Args:
        dtype: of the matrices. torch.float16 halves the file; vectors (biases, batch norm)
            stay float32, as variances overflow half precision.

    Raises:
        OutputError: the folder holds something else, or can not be written.
        ConfigError: a weight is not finite, or too large for `dtype`.
    """
    folder = Path(folder)
    if folder.exists() and not _is_model(folder):
        raise OutputError(f"{folder}: exists and is no vtag model; name a new folder")
    tensors = _tensors(checkpoint, dtype)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        fingerprint = _write_files(part, checkpoint, tensors)
        put_in_place(part, folder)
    except OSError as err:
        raise OutputError(f"{folder}: the model can not be written ({err.strerror})") from err
    except SafetensorError as err:  # wraps the disk's own errors, without their number
        raise OutputError(f"{folder}: the model can not be written ({err})") from err
    finally:
        shutil.rmtree(part, ignore_errors=True)
    log.info("model %s (%s) saved to %s", checkpoint.name, fingerprint, folder)
    return fingerprint


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """The model in `folder`, float32, on the CPU, in evaluation mode; every checksum compared.

    Raises:
        WeightsError: a file is missing, damaged, of another format, or does not fit the rest.
    """
    folder = Path(folder)
    settings = read_object(folder / CONFIG_FILE)
    if settings.get("format") != FORMAT:
        raise WeightsError(
            f"{folder / CONFIG_FILE}: model format {settings.get('format')!r}, this vtag reads "
            f"{FORMAT}; update vtag, or train the model again"
        )
    with _blaming(folder / CONFIG_FILE):
        stored = _StoredSettings.from_dict(settings)
        config = config_from_dict(stored.net)
    labels = read_json(folder / LABELS_FILE)
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise WeightsError(f"{folder / LABELS_FILE}: must hold a list of objects")
    for name, wanted in (
        (WEIGHTS_FILE, stored.weights_sha256),
        (LABELS_FILE, stored.labels_sha256),
    ):
        if sha256_of(folder / name) != wanted:
            raise WeightsError(f"{folder / name}: damaged (checksum differs); copy the model again")
    if stored.computed_fingerprint() != stored.fingerprint:
        raise WeightsError(f"{folder / CONFIG_FILE}: damaged or edited; copy the model again")
    with _blaming(folder):
        return Checkpoint(
            net=_net_of(config, folder / WEIGHTS_FILE),
            labels=labels,
            name=stored.name,
            extractors=stored.extractors,
            sampling=stored.sampling,
            readout=stored.readout,
            card=_read_card(folder / CARD_FILE),
            fingerprint=stored.fingerprint,
        )


def check_extractors(checkpoint: Checkpoint, fingerprints: Mapping[str, str]) -> None:
    """Refuses rows that were made otherwise than those the model was trained on.

    Args:
        fingerprints: per stream, of the extractors at hand. A stream that is not at hand is not
            checked: the model does without it.

    Raises:
        WeightsError: names the stream and both fingerprints.
    """
    for stream, trained in checkpoint.extractors.items():
        here = fingerprints.get(stream, trained)
        # The same network in another precision gives rows that are nearly the same.
        if network_of(here) != network_of(trained):
            raise WeightsError(
                f"model {checkpoint.name!r} was trained on {stream} rows of {trained}, this "
                f"pipeline makes {here} (other weights or preprocessing): use the extractor it "
                "was trained with, or train again"
            )


@dataclass(frozen=True, kw_only=True)
class _StoredSettings:
    """What config.json holds."""

    name: str
    net: Json
    extractors: dict[str, str]
    sampling: str
    readout: Json
    weights_sha256: str
    labels_sha256: str
    fingerprint: str = ""

    @classmethod
    def from_dict(cls, settings: Json) -> _StoredSettings:
        given = {key: value for key, value in settings.items() if key != "format"}
        for key, kind in _KINDS.items():
            if not isinstance(given.get(key), kind):
                raise ConfigError(f"{key!r} is missing or not {kind.__name__}")
        unknown = sorted(set(given) - set(_KINDS))
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r}; the keys are: {', '.join(_KINDS)}")
        return cls(**given)  # type: ignore[arg-type]  # the kinds were just checked

    def to_dict(self) -> Json:
        return {"format": FORMAT, **{key: getattr(self, key) for key in _KINDS}}

    def computed_fingerprint(self) -> str:
        """12 hex digits over everything but the fingerprint itself."""
        covered = {**self.to_dict(), "fingerprint": ""}
        return hashlib.sha256(json_bytes(covered)).hexdigest()[:12]


_KINDS: Final[dict[str, type]] = {
    "name": str,
    "net": dict,
    "extractors": dict,
    "sampling": str,
    "readout": dict,
    "weights_sha256": str,
    "labels_sha256": str,
    "fingerprint": str,
}


def _is_model(folder: Path) -> bool:
    try:
        settings = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and {"format", "weights_sha256"} <= set(settings)


def _tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights as they go to disk."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.net.state_dict().items():
        kept = tensor.detach().cpu()
        if kept.is_floating_point():
            kept = kept.to(dtype if kept.ndim >= 2 else torch.float32)
            if not kept.isfinite().all():
                raise ConfigError(
                    f"model {checkpoint.name!r}: {name} holds values that are not finite in {dtype}"
                )
        tensors[name] = kept.contiguous()
    return tensors


def _write_files(part: Path, checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, part / WEIGHTS_FILE)
    (part / LABELS_FILE).write_bytes(json_bytes(checkpoint.labels))
    unsigned = {
        "name": checkpoint.name,
        "net": checkpoint.config.to_dict(),
        "extractors": dict(checkpoint.extractors),
        "sampling": checkpoint.sampling,
        "readout": dict(checkpoint.readout),
        "weights_sha256": sha256_of(part / WEIGHTS_FILE),
        "labels_sha256": sha256_of(part / LABELS_FILE),
    }
    fingerprint = _StoredSettings(**unsigned).computed_fingerprint()  # type: ignore[arg-type]
    settings = {"format": FORMAT, **unsigned, "fingerprint": fingerprint}
    (part / CONFIG_FILE).write_bytes(json_bytes(settings))
    if checkpoint.card:
        (part / CARD_FILE).write_text(checkpoint.card, encoding="utf-8")
    # safetensors makes its file for the owner alone; the others have the mode the user wants.
    (part / WEIGHTS_FILE).chmod((part / CONFIG_FILE).stat().st_mode & 0o777)
    for file in (*part.iterdir(), part):
        sync(file)
    return fingerprint


def _net_of(config: NetConfig, file: Path) -> Net:
    """The network with the weights of `file`; no weight is drawn only to be thrown away."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as err:
        raise WeightsError(f"{file}: can not be read ({err})") from err
    net = blank(config)
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
    there = {name: tensor.shape for name, tensor in tensors.items()}
    if wanted != there:
        differs = {name for name, _ in wanted.items() ^ there.items()}
        example = min(differs)
        raise WeightsError(
            f"{file}: does not fit {CONFIG_FILE} in {len(differs)} tensors, such as {example} "
            f"({_shape(there.get(example))} there, {_shape(wanted.get(example))} wanted)"
        )
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(list(shape))


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turns a refused setting into a refused model."""
    try:
        yield
    except ConfigError as err:
        raise WeightsError(f"{path}: {err}") from err


def _read_card(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # the card is for people; a model works without
