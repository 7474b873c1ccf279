"""Learnable pooling, gating and experts: from feature rows to label scores.

To add a pooling: write `models/<name>.py` with a subclass of `vtag.models.pooling.Pooling` whose
constructor takes `dim` and keyword options named as fields of `PoolingConfig`, and put it in
`POOLINGS`. tests/test_poolings.py then runs the contract on it by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, get_args

from vtag.errors import ConfigError
from vtag.models.attention_pooling import AttentionPooling
from vtag.models.codebook import VLAD, BagOfWords
from vtag.models.dbof import DBoF, DBoFActivation
from vtag.models.max_pooling import MaxPooling
from vtag.models.mean_pooling import MeanPooling
from vtag.models.netfv import NetFV, NetFVCentres, SecondOrderNorm
from vtag.models.netvlad import NetRVLAD, NetVLAD
from vtag.models.nextvlad import NeXtVLAD
from vtag.models.pooling import Pooling
from vtag.models.recurrent import GRUPooling, LSTMPooling
from vtag.models.setting_checks import require_choice, require_switch, require_whole
from vtag.models.soft_assignment import AssignmentNorm
from vtag.models.soft_dbow import GatedSoftDBoW, SoftDBoW
from vtag.models.sum_pooling import SumPooling

POOLINGS: Final[dict[str, type[Pooling]]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "sum": SumPooling,
    "netvlad": NetVLAD,
    "netrvlad": NetRVLAD,
    "netfv": NetFV,
    "nextvlad": NeXtVLAD,
    "soft_dbow": SoftDBoW,
    "gated_soft_dbow": GatedSoftDBoW,
    "dbof": DBoF,
    "bow": BagOfWords,
    "vlad": VLAD,
    "lstm": LSTMPooling,
    "gru": GRUPooling,
    "attention": AttentionPooling,
}

# A model folder is a file from somewhere: its settings must not make us build for hours.
MAX_COUNT: Final = {"clusters": 65_536, "cells": 65_536, "layers": 16, "groups": 4096}

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "assignment": get_args(AssignmentNorm),
    "centres": get_args(NetFVCentres),
    "second_order": get_args(SecondOrderNorm),
    "activation": get_args(DBoFActivation),
}


@dataclass(frozen=True)
class PoolingConfig:
    """Which pooling, and its options; None leaves an option at the pooling's default.

    Raises:
        ConfigError: unknown kind, an option that this kind does not take, or a bad value.

    >>> PoolingConfig("netvlad", clusters=16).to_dict()
    {'kind': 'netvlad', 'clusters': 16}
    """

    kind: str
    clusters: int | None = None
    assignment: AssignmentNorm | None = None  # what stands before the softmax over clusters
    centres: NetFVCentres | None = None
    second_order: SecondOrderNorm | None = None
    with_max: bool | None = None
    activation: DBoFActivation | None = None
    groups: int | None = None
    expansion: int | None = None
    cells: int | None = None
    layers: int | None = None
    heads: int | None = None
    reduce: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in POOLINGS:
            raise ConfigError(f"no pooling {self.kind!r}; there are: {', '.join(POOLINGS)}")
        taken = pooling_options(self.kind)
        for name, value in self.options().items():
            if name not in taken:
                own = ", ".join(taken) or "none"
                raise ConfigError(f"pooling {self.kind!r} has no option {name!r}; it has: {own}")
            _check_option(self.kind, name, value)

    def options(self) -> dict[str, int | str | bool]:
        """The options that were given."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["kind"]
        return given

    def to_dict(self) -> dict[str, int | str | bool]:
        """A JSON object; `from_dict` takes it back."""
        return {"kind": self.kind, **self.options()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> PoolingConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown key, or what the constructor refuses.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown or "kind" not in settings:
            what = f"unknown key {unknown[0]!r}" if unknown else "no 'kind'"
            raise ConfigError(f"pooling: {what}; the keys are: {', '.join(known)}")
        return cls(**settings)  # type: ignore[arg-type]  # values are checked when it is made


def _check_option(kind: str, name: str, value: int | str | bool) -> None:
    where = f"pooling {kind!r}"
    if name in CHOICES:
        require_choice(where, name, value, CHOICES[name])
    elif name == "with_max":
        require_switch(where, name, value)
    else:
        require_whole(where, name, value, most=MAX_COUNT.get(name, 256))


def build_pooling(config: PoolingConfig, dim: int) -> Pooling:
    """The pooling of `config` for rows of `dim` columns, freshly initialised.

    Raises:
        ConfigError: an option does not fit `dim`.
    """
    make: type[Pooling] = POOLINGS[config.kind]
    return make(dim, **config.options())  # type: ignore[arg-type]  # options are the subclass's


def pooling_options(kind: str) -> tuple[str, ...]:
    """Names of the options that a pooling takes."""
    return tuple(inspect.signature(POOLINGS[kind].__init__).parameters)[2:]  # self and dim
