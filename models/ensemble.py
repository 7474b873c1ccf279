"""Several networks as one: the weighted mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from vtag.errors import ConfigError
from vtag.models.blank_net import blank_net
from vtag.models.log_probabilities import LogProbabilities, OutputKind, from_logits
from vtag.models.net_config import StreamConfig, TaggerNetConfig
from vtag.models.tagger_net import TaggerNet

HIGHEST_WEIGHT: Final = 1e9  # sums stay far from infinity
KIND: Final = "ensemble"  # how the settings of an ensemble are told from those of one network

Json = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The settings of an ensemble.

    Attributes:
        members: settings of its networks.
        weights: one per member, above 0; only their ratios count.

    Raises:
        ConfigError: no member, weights that do not fit, or members that differ in their labels,
            outputs, or the row size of a stream.
    """

    members: tuple[TaggerNetConfig, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        fit = all(isinstance(w, int | float) and 0 < w <= HIGHEST_WEIGHT for w in self.weights)
        if not self.members or len(self.weights) != len(self.members) or not fit:
            raise ConfigError(
                f"{len(self.members)} networks need as many weights above 0, "
                f"got {list(self.weights)}"
            )
        kinds = {(member.labels, member.output) for member in self.members}
        if len(kinds) > 1:
            raise ConfigError(f"an ensemble needs the same labels and output, got {sorted(kinds)}")
        sizes: dict[str, int] = {}
        for stream in (stream for member in self.members for stream in member.streams):
            if sizes.setdefault(stream.name, stream.dim) != stream.dim:
                raise ConfigError(
                    f"an ensemble needs the same rows, got {stream.name} rows of "
                    f"{sizes[stream.name]} and of {stream.dim} columns"
                )

    @property
    def labels(self) -> int:
        """How many."""
        return self.members[0].labels

    @property
    def output(self) -> OutputKind:
        """What the scores are, see `TaggerNetConfig`."""
        return self.members[0].output

    @property
    def streams(self) -> tuple[StreamConfig, ...]:
        """All streams that a member reads; of their settings only name and dim are common."""
        found = {stream.name: stream for member in self.members for stream in member.streams}
        return tuple(found.values())

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to a sum of 1."""
        total = math.fsum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def stream(self, name: str) -> StreamConfig:
        """The stream of that name; ConfigError if no member has it."""
        for member in self.members:
            if any(stream.name == name for stream in member.streams):
                return member.stream(name)
        return self.members[0].stream(name)

    def to_dict(self) -> Json:
        """A JSON object; `from_dict` takes it back."""
        members = zip(self.weights, self.members, strict=True)
        return {
            "kind": KIND,
            "members": [{"weight": weight, "net": net.to_dict()} for weight, net in members],
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> EnsembleConfig:
        """The inverse of `to_dict`; ConfigError for other keys and bad values."""
        members = settings.get("members")
        if set(settings) != {"kind", "members"} or not isinstance(members, list):
            raise ConfigError("an ensemble has a kind and a list of members, and nothing else")
        weights, nets = [], []
        for member in members:
            if not isinstance(member, Mapping) or set(member) != {"weight", "net"}:
                raise ConfigError(f"a member of an ensemble has weight and net, got {member!r:.80}")
            if not isinstance(member["net"], Mapping):
                raise ConfigError(f"the net of a member must be an object, got {member['net']!r}")
            weights.append(member["weight"])
            nets.append(TaggerNetConfig.from_dict(member["net"]))
        return cls(members=tuple(nets), weights=tuple(weights))


class Ensemble(nn.Module):
    """Scores [B, C] of the weighted mean of the networks' probabilities; called as a `TaggerNet`.

    The mean is taken in log space, so it does not saturate where its members do not.

    Args:
        weights: one per network, above 0; None for equal ones.

    Raises:
        ConfigError: see `EnsembleConfig`.
    """

    log_shares: Tensor

    def __init__(self, nets: Sequence[TaggerNet], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.config = EnsembleConfig(
            members=tuple(net.config for net in nets),
            weights=tuple([1.0] * len(nets) if weights is None else weights),
        )
        self.nets = nn.ModuleList(nets)
        # Not among the weights on disk: the settings have them already.
        shares = torch.tensor(self.config.shares).log()
        self.register_buffer("log_shares", shares, persistent=False)

    @property
    def members(self) -> list[TaggerNet]:
        """The networks."""
        return [net for net in self.nets if isinstance(net, TaggerNet)]

    @property
    def single_label(self) -> bool:
        """Whether each item has exactly one label."""
        return self.config.output == "single_label"

    def forward(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Scores float [B, C]; arguments as in `TaggerNet.forward`, of all networks' streams."""
        scores = torch.stack([self._score(net, rows, mask) for net in self.members])
        shares = self.log_shares.view(-1, 1, 1).to(scores)
        each = from_logits(scores, self.config.output)
        present = torch.logsumexp(shares + each.present, dim=0)
        if each.absent is None:
            return LogProbabilities(present, None).to_output()
        absent = torch.logsumexp(shares + each.absent, dim=0)
        return LogProbabilities(present, absent).to_output()

    def probabilities(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Probabilities float [B, C] in 0..1; they sum to 1 over C for single_label."""
        scores = self(rows, mask)
        probabilities: Tensor = scores.exp() if self.single_label else scores.sigmoid()
        return probabilities

    def _score(
        self, net: TaggerNet, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> Tensor:
        own = {stream.name for stream in net.config.streams}
        scores: Tensor = net(
            {name: values for name, values in rows.items() if name in own},
            {name: values for name, values in mask.items() if name in own},
        )
        return scores


# What a model folder may hold, and all that reads one must do with.
Net: TypeAlias = TaggerNet | Ensemble
NetConfig: TypeAlias = TaggerNetConfig | EnsembleConfig


def config_from_dict(settings: Mapping[str, object]) -> NetConfig:
    """The settings that `to_dict` of either kind gave; ConfigError for anything else."""
    if "kind" in settings:
        if settings["kind"] != KIND:
            raise ConfigError(f"no network of the kind {settings['kind']!r}; there is {KIND!r}")
        return EnsembleConfig.from_dict(settings)
    return TaggerNetConfig.from_dict(settings)


def blank(config: NetConfig) -> Net:
    """The network or networks of `config` without values, see `blank_net`."""
    if isinstance(config, TaggerNetConfig):
        return blank_net(config)
    return Ensemble([blank_net(member) for member in config.members], config.weights)
