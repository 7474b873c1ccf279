"""The settings of a network: frozen, checked when made, to and from JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeVar, get_args

from vtag.errors import ConfigError
from vtag.models import PoolingConfig
from vtag.models.context_gating import GateFunction, GateNorm
from vtag.models.log_probabilities import OutputKind
from vtag.models.mixture_of_experts import GateSquash, MixingSpace
from vtag.models.probability_gating import GateSource
from vtag.models.setting_checks import (
    require_chance,
    require_choice,
    require_switch,
    require_whole,
)

InputNorm = Literal["none", "l2", "signed_sqrt_l2", "batch"]
Fusion = Literal["late", "early"]
GateKind = Literal["context", "squeeze_excite", "glu"]
HeadKind = Literal["moe", "mlp_moe", "linear"]
FcKind = Literal["none", "linear", "batch_norm", "batch_norm_relu6"]

Json = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """One kind of rows, such as "visual" or "audio", and how they become one vector.

    Attributes:
        dim: columns of its rows.
        poolings: run side by side, their vectors concatenated in this order.
        input_norm: of each row, before pooling: none, unit length, batch norm, or the signed
            square root of every value and then unit length (Perronnin et al., ECCV 2010): large
            values of a few columns then no longer decide alone.
        dropout: share of the pooled values dropped while training.
        stream_dropout: chance that an item loses this stream while training, so that the
            network learns to do without it.
    """

    name: str
    dim: int
    poolings: tuple[PoolingConfig, ...] = ()
    input_norm: InputNorm = "none"
    dropout: float = 0.0
    stream_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ConfigError(f"a stream is named by a-z, 0-9 and _, got {self.name!r}")
        where = f"stream {self.name!r}"
        require_whole(where, "dim", self.dim)
        require_choice(where, "input_norm", self.input_norm, get_args(InputNorm))
        require_chance(where, "dropout", self.dropout)
        require_chance(where, "stream_dropout", self.stream_dropout)

    def to_dict(self) -> Json:
        """A JSON object; `from_dict` takes it back."""
        return {**_plain(self), "poolings": [pooling.to_dict() for pooling in self.poolings]}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> StreamConfig:
        """The inverse of `to_dict`; ConfigError for unknown keys and bad values."""
        known = _known(cls, settings, "stream")
        return cls(**{**known, "poolings": _poolings(settings)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Context gating of the hidden vector; see `vtag.models.context_gating`.

    `function`, `rank` and `remove_diagonal` belong to "context", `reduction` to
    "squeeze_excite"; "glu" has no options.
    """

    kind: GateKind = "context"
    function: GateFunction = "sigmoid"
    norm: GateNorm = "batch"
    rank: int | None = None
    remove_diagonal: bool = False
    reduction: int = 8

    def __post_init__(self) -> None:
        where = "gate_hidden"
        require_choice(where, "kind", self.kind, get_args(GateKind))
        require_choice(where, "function", self.function, get_args(GateFunction))
        require_choice(where, "norm", self.norm, get_args(GateNorm))
        require_switch(where, "remove_diagonal", self.remove_diagonal)
        require_whole(where, "reduction", self.reduction)
        if self.rank is not None:
            require_whole(where, "rank", self.rank)
        foreign = self.rank is not None or self.remove_diagonal or self.function != "sigmoid"
        if self.kind != "context" and foreign:
            raise ConfigError(f"{where}: function, rank and remove_diagonal are for kind 'context'")
        if self.rank is not None and self.remove_diagonal:
            raise ConfigError(f"{where}: rank and remove_diagonal exclude each other")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The classifier; see `vtag.models.mixture_of_experts`.

    `gate_bias` and `gate_rank` belong to "moe" (the paper's), `cells`, `squash` and `mix` to
    "mlp_moe" (the blog post's), `experts` to both.
    """

    kind: HeadKind = "moe"
    experts: int = 2
    gate_bias: bool = False
    gate_rank: int | None = None
    cells: int = 64
    squash: GateSquash = "sigmoid"
    mix: MixingSpace = "log"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        where = "head"
        require_choice(where, "kind", self.kind, get_args(HeadKind))
        require_whole(where, "experts", self.experts, most=1024)
        require_switch(where, "gate_bias", self.gate_bias)
        require_whole(where, "cells", self.cells)
        require_choice(where, "squash", self.squash, get_args(GateSquash))
        require_choice(where, "mix", self.mix, get_args(MixingSpace))
        require_chance(where, "dropout", self.dropout)
        if self.gate_rank is not None:
            require_whole(where, "gate_rank", self.gate_rank)
        if self.kind != "moe" and (self.gate_bias or self.gate_rank is not None):
            raise ConfigError(f"{where}: gate_bias and gate_rank are for kind 'moe'")


@dataclass(frozen=True, kw_only=True)
class OutputGateConfig:
    """Gating of the label probabilities; see `vtag.models.probability_gating`."""

    source: GateSource = "probabilities"
    norm: GateNorm = "batch"
    rank: int | None = None
    remove_diagonal: bool = False

    def __post_init__(self) -> None:
        where = "gate_output"
        require_choice(where, "source", self.source, get_args(GateSource))
        require_choice(where, "norm", self.norm, get_args(GateNorm))
        require_switch(where, "remove_diagonal", self.remove_diagonal)
        if self.rank is not None:
            require_whole(where, "rank", self.rank)
        if self.remove_diagonal and (self.source == "input" or self.rank is not None):
            raise ConfigError(f"{where}: remove_diagonal needs source 'probabilities' and no rank")


@dataclass(frozen=True, kw_only=True)
class TaggerNetConfig:
    """A whole network, from the rows of its streams to label scores.

    Attributes:
        streams: any number, in the order in which their vectors are concatenated.
        labels: how many.
        output: "multi_label": log-odds per label; "single_label": log-probabilities.
        fusion: "late" pools each stream by its own poolings; "early" concatenates the streams
            row by row (equal T) and pools once, by `poolings`.
        poolings: of early fusion.
        joint_l2: rows scaled to unit length over all streams together (equal T), as the 2017
            entry does with its 1024 + 128 columns; before each stream's own `input_norm`.
        fc, hidden: the layer behind pooling and its size; "none" and 0 to leave it out.
        dropout_pooled, dropout_hidden: before and behind that layer.
        gate_hidden, gate_output: None to leave out.

    Raises:
        ConfigError: a field makes no sense, alone or with the others.
    """

    streams: tuple[StreamConfig, ...]
    labels: int
    output: OutputKind = "multi_label"
    fusion: Fusion = "late"
    poolings: tuple[PoolingConfig, ...] = ()
    joint_l2: bool = False
    fc: FcKind = "linear"
    hidden: int = 1024
    dropout_pooled: float = 0.0
    dropout_hidden: float = 0.0
    gate_hidden: GateConfig | None = GateConfig()  # frozen
    head: HeadConfig = HeadConfig()  # frozen
    gate_output: OutputGateConfig | None = OutputGateConfig()  # frozen

    def __post_init__(self) -> None:
        where = "network"
        require_whole(where, "labels", self.labels)
        require_choice(where, "output", self.output, get_args(OutputKind))
        require_choice(where, "fusion", self.fusion, get_args(Fusion))
        require_switch(where, "joint_l2", self.joint_l2)
        require_choice(where, "fc", self.fc, get_args(FcKind))
        require_whole(where, "hidden", self.hidden, least=0)
        require_chance(where, "dropout_pooled", self.dropout_pooled)
        require_chance(where, "dropout_hidden", self.dropout_hidden)
        if (self.fc == "none") != (self.hidden == 0):
            raise ConfigError(f"{where}: fc {self.fc!r} does not go with hidden {self.hidden}")
        if self.output == "single_label" and self.head.kind == "moe":
            raise ConfigError(
                f"{where}: head 'moe' scores each label on its own and can not be single_label; "
                "take head 'mlp_moe' or 'linear'"
            )
        self._check_streams()

    def _check_streams(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"network: streams need different names, got {names}")
        if self.fusion == "early" and (
            not self.poolings or any(stream.poolings for stream in self.streams)
        ):
            raise ConfigError("network: early fusion takes poolings from the network, not streams")
        if self.fusion == "late" and (
            self.poolings or not all(stream.poolings for stream in self.streams)
        ):
            raise ConfigError("network: late fusion takes its poolings from each stream")

    def stream(self, name: str) -> StreamConfig:
        """The stream of that name; ConfigError if there is none."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        names = ", ".join(stream.name for stream in self.streams)
        raise ConfigError(f"the network has no stream {name!r}; it has: {names}")

    def to_dict(self) -> Json:
        """A JSON object; `from_dict` takes it back."""
        return {
            **_plain(self),
            "streams": [stream.to_dict() for stream in self.streams],
            "poolings": [pooling.to_dict() for pooling in self.poolings],
            "gate_hidden": None if self.gate_hidden is None else _plain(self.gate_hidden),
            "head": _plain(self.head),
            "gate_output": None if self.gate_output is None else _plain(self.gate_output),
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> TaggerNetConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: unknown keys (the known ones are listed), or what the constructor refuses.
        """
        known = _known(cls, settings, "network")
        known["streams"] = tuple(
            StreamConfig.from_dict(stream) for stream in _objects(settings, "streams")
        )
        known["poolings"] = _poolings(settings)
        if "gate_hidden" in known:
            known["gate_hidden"] = _maybe(GateConfig, known["gate_hidden"], "gate_hidden")
        if "gate_output" in known:
            known["gate_output"] = _maybe(OutputGateConfig, known["gate_output"], "gate_output")
        if "head" in known:
            known["head"] = _maybe(HeadConfig, known["head"], "head") or HeadConfig()
        return cls(**known)  # type: ignore[arg-type]  # values are checked when it is made


Config = TypeVar("Config", GateConfig, HeadConfig, OutputGateConfig)


def _plain(config: object) -> Json:
    return {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]


def _maybe(cls: type[Config], settings: object, where: str) -> Config | None:
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where} must be an object or null, got {settings!r}")
    return cls(**_known(cls, settings, where))  # type: ignore[arg-type]


def _known(cls: type, settings: Mapping[str, object], where: str) -> Json:
    names = [field.name for field in fields(cls)]
    for key in settings:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}; the keys are: {', '.join(names)}")
    required = {"streams", "labels"} if cls is TaggerNetConfig else set()
    required = {"name", "dim"} if cls is StreamConfig else required
    missing = sorted(required - set(settings))
    if missing:
        raise ConfigError(f"{where}: no {missing[0]!r}")
    return dict(settings)


def _objects(settings: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = settings.get(key, [])
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        raise ConfigError(f"{key} must be a list of objects, got {value!r}")
    return list(value)


def _poolings(settings: Mapping[str, object]) -> tuple[PoolingConfig, ...]:
    return tuple(PoolingConfig.from_dict(pooling) for pooling in _objects(settings, "poolings"))
