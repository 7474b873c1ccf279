"""The network: rows of several streams to label scores.

rows of each stream ─► norm ─► poolings ─┐
rows of each stream ─► norm ─► poolings ─┴► FC ─► context gating ─► head ─► context gating
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtag.errors import ConfigError
from vtag.models import PoolingConfig, build_pooling
from vtag.models.batch_norm import MaskedBatchNorm
from vtag.models.context_gating import ContextGating, GatedLinearUnit, SqueezeExciteGating
from vtag.models.fully_connected import FullyConnected
from vtag.models.mixture_of_experts import Head, LinearHead, MixtureOfExperts, MLPMixture
from vtag.models.net_config import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNetConfig,
)
from vtag.models.pooling import zero_padding
from vtag.models.probability_gating import ProbabilityGating

__all__ = [
    "GateConfig",
    "HeadConfig",
    "OutputGateConfig",
    "PoolingConfig",
    "PoolingStack",
    "StreamConfig",
    "TaggerNet",
    "TaggerNetConfig",
]

Rows = dict[str, Tensor]


class PoolingStack(nn.Module):
    """Several poolings of the same rows, side by side: [B, Σ out_dim]."""

    def __init__(self, configs: tuple[PoolingConfig, ...], dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        made = [build_pooling(config, dim) for config in configs]
        self.widths = [pooling.out_dim for pooling in made]
        self.out_dim = sum(self.widths)
        self.poolings = nn.ModuleList(made)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        vectors = [pooling(rows, mask) for pooling in self.poolings]
        pooled: Tensor = self.dropout(torch.cat(vectors, dim=-1))
        return pooled


class TaggerNet(nn.Module):
    """Scores of all labels: log-odds (multi_label) or log-probabilities (single_label), [B, C].

    Deterministic in evaluation, and the same for an item whatever it is batched with.

    Raises:
        ConfigError: options that do not fit each other (found when it is built).
    """

    def __init__(self, config: TaggerNetConfig) -> None:
        super().__init__()
        self.config = config
        self.input_norms = nn.ModuleList(
            MaskedBatchNorm(stream.dim) if stream.input_norm == "batch" else nn.Identity()
            for stream in config.streams
        )
        if config.fusion == "early":
            stacks = [PoolingStack(config.poolings, sum(stream.dim for stream in config.streams))]
        else:
            stacks = [PoolingStack(s.poolings, s.dim, s.dropout) for s in config.streams]
        self.stacks = nn.ModuleList(stacks)
        self.pooled_dim = sum(stack.out_dim for stack in stacks)
        self.hidden_dim = config.hidden or self.pooled_dim
        self.dropout_pooled = nn.Dropout(config.dropout_pooled)
        self.fc: FullyConnected | None = None
        if config.fc != "none":
            self.fc = FullyConnected(
                self.pooled_dim,
                config.hidden,
                kind=config.fc,
                dropout=config.dropout_hidden,
                std=_fc_std(config, self.pooled_dim),
            )
        self.gate_hidden = _build_gate(config.gate_hidden, self.hidden_dim)
        self.head = _build_head(config, self.hidden_dim)
        self.gate_output = _build_output_gate(config, self.hidden_dim)

    def forward(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Scores float [B, C].

        Args:
            rows: per stream float [B, T, D]; T may differ from stream to stream.
            mask: per stream bool [B, T], True at real rows. A stream that one item lacks is
                False throughout; one that all items lack may be left out of both mappings.

        Raises:
            ValueError: an unknown stream, none at all, or shapes that do not fit.
        """
        return self.scores(self.hidden(rows, mask))

    def probabilities(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Probabilities float [B, C] in 0..1; they sum to 1 over C for single_label."""
        scores = self(rows, mask)
        probabilities: Tensor = scores.exp() if self.single_label else scores.sigmoid()
        return probabilities

    @property
    def single_label(self) -> bool:
        """Whether each item has exactly one label."""
        return self.config.output == "single_label"

    def hidden(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """What the head reads: gated hidden vectors, float [B, H]."""
        hidden = self.dropout_pooled(self.pooled(rows, mask))
        if self.fc is not None:
            hidden = self.fc(hidden)
        gated: Tensor = hidden if self.gate_hidden is None else self.gate_hidden(hidden)
        return gated

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores float [B, C] of gated hidden vectors [B, H]."""
        scores = self.head(hidden)
        if self.gate_output is not None:
            scores = self.gate_output(scores, hidden)
        return scores.to_output()

    def pooled(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Pooled vectors of all streams side by side, float [B, P]; zeros where one is absent."""
        items = self._check(rows, mask)
        inputs, real = self._normalised(rows, mask)
        if self.config.fusion == "early":
            vectors = [self.stacks[0](*self._side_by_side(inputs, real))]
        else:
            vectors = [
                stack(inputs[stream.name], real[stream.name])
                if stream.name in inputs
                else _like_weights(self.head, items, stack.out_dim)
                for stream, stack in zip(self.config.streams, self._stacks(), strict=True)
            ]
        return torch.cat(vectors, dim=-1)

    def pooling_inputs(
        self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> list[tuple[PoolingStack, Tensor, Tensor]]:
        """Each stack of poolings with the rows [B, T, D] and mask [B, T] that it reads."""
        self._check(rows, mask)
        inputs, real = self._normalised(rows, mask)
        if self.config.fusion == "early":
            return [(self._stacks()[0], *self._side_by_side(inputs, real))]
        return [
            (stack, inputs[stream.name], real[stream.name])
            for stream, stack in zip(self.config.streams, self._stacks(), strict=True)
            if stream.name in inputs
        ]

    def pooled_columns(self, stream: str, kind: str) -> slice:
        """Where the pooled vector holds pooling `kind` of `stream` (late fusion).

        Raises:
            ConfigError: there is no such stream, or it has no such pooling.
        """
        wanted = self.config.stream(stream)
        at = 0
        for config, stack in zip(self.config.streams, self._stacks(), strict=False):
            for pooling, width in zip(config.poolings, stack.widths, strict=True):
                if config is wanted and pooling.kind == kind:
                    return slice(at, at + width)
                at += width
        raise ConfigError(f"stream {stream!r} has no pooling {kind!r} of its own")

    def _stacks(self) -> list[PoolingStack]:
        return [stack for stack in self.stacks if isinstance(stack, PoolingStack)]

    def _check(self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> int:
        """Number of items."""
        dims = {stream.name: stream.dim for stream in self.config.streams}
        if not rows or not set(rows) <= set(dims) or set(rows) != set(mask):
            raise ValueError(
                f"rows and mask need the same streams, one at least of {sorted(dims)}; "
                f"got {sorted(rows)} and {sorted(mask)}"
            )
        items = {len(stream) for stream in rows.values()}
        for name, stream in rows.items():
            if stream.ndim != 3 or stream.shape[2] != dims[name] or len(items) != 1:
                raise ValueError(
                    f"rows of {name!r} must be [B, T, {dims[name]}] with the same B in all "
                    f"streams, got {tuple(stream.shape)}"
                )
            if mask[name].shape != stream.shape[:2] or mask[name].dtype != torch.bool:
                raise ValueError(
                    f"mask of {name!r} must be bool {tuple(stream.shape[:2])}, "
                    f"got {mask[name].dtype} {tuple(mask[name].shape)}"
                )
        return items.pop()

    def _normalised(
        self, rows: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> tuple[Rows, Rows]:
        """Rows as the poolings read them, zeros at padding, and the masks they are read with."""
        inputs: Rows = {}
        real: Rows = {}
        for stream in self.config.streams:
            if stream.name in rows:
                real[stream.name] = self._kept(mask[stream.name], stream.stream_dropout)
                values = rows[stream.name].to(_dtype(self.head))
                inputs[stream.name] = zero_padding(values, real[stream.name])
        if self.config.joint_l2:
            _require_equal_length(inputs, "joint_l2")
            squared = sum(values.square().sum(dim=-1, keepdim=True) for values in inputs.values())
            scale = torch.as_tensor(squared).clamp(min=1e-12).rsqrt()  # floor of tf.l2_normalize
            inputs = {name: values * scale for name, values in inputs.items()}
        for stream, norm in zip(self.config.streams, self.input_norms, strict=True):
            if stream.name in inputs and stream.input_norm == "l2":
                inputs[stream.name] = functional.normalize(inputs[stream.name], dim=-1)
            elif stream.name in inputs and stream.input_norm == "signed_sqrt_l2":
                inputs[stream.name] = _signed_sqrt_l2(inputs[stream.name])
            elif stream.name in inputs and stream.input_norm == "batch":
                inputs[stream.name] = norm(inputs[stream.name], real[stream.name])
        return inputs, real

    def _kept(self, mask: Tensor, chance: float) -> Tensor:
        """The mask, with whole items dropped by chance while training."""
        if not self.training or chance == 0:
            return mask
        return mask & (torch.rand(len(mask), 1, device=mask.device) >= chance)

    def _side_by_side(self, inputs: Rows, real: Rows) -> tuple[Tensor, Tensor]:
        """Streams concatenated per row; a row is real where one of them is."""
        _require_equal_length(inputs, "early fusion")
        some = next(iter(inputs.values()))
        columns = [
            zero_padding(inputs[stream.name], real[stream.name])
            if stream.name in inputs
            else some.new_zeros(*some.shape[:2], stream.dim)
            for stream in self.config.streams
        ]
        return torch.cat(columns, dim=-1), torch.stack(list(real.values())).any(dim=0)


def _signed_sqrt_l2(rows: Tensor) -> Tensor:
    # Of the floor, and not of 0, where the slope of a root is infinite.
    roots = rows.sign() * rows.abs().clamp(min=1e-12).sqrt()
    return functional.normalize(roots, dim=-1)


def _dtype(head: Head) -> torch.dtype:
    return next(head.parameters()).dtype


def _like_weights(head: Head, items: int, width: int) -> Tensor:
    return next(head.parameters()).new_zeros(items, width)


def _require_equal_length(inputs: Rows, what: str) -> None:
    lengths = {name: values.shape[1] for name, values in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what} needs the same number of rows in all streams, got {lengths}")


def _fc_std(config: TaggerNetConfig, pooled_dim: int) -> float:
    """Spread of the FC layer's first weights.

    The 2017 entry takes 1/√K, K the clusters of its first stream, which suits the unit vectors
    that its poolings give. Beside a pooling that keeps the size of its rows: 1/√P.
    """
    poolings = [*config.poolings, *(p for stream in config.streams for p in stream.poolings)]
    clusters = poolings[0].clusters
    if clusters is None or any(pooling.clusters is None for pooling in poolings):
        return 1 / math.sqrt(pooled_dim)
    return 1 / math.sqrt(clusters)


def _build_gate(config: GateConfig | None, dim: int) -> nn.Module | None:
    if config is None:
        return None
    if config.kind == "glu":
        return GatedLinearUnit(dim)
    if config.kind == "squeeze_excite":
        return SqueezeExciteGating(dim, reduction=config.reduction, norm=config.norm)
    return ContextGating(
        dim,
        function=config.function,
        norm=config.norm,
        rank=config.rank,
        remove_diagonal=config.remove_diagonal,
    )


def _build_head(config: TaggerNetConfig, hidden: int) -> Head:
    head = config.head
    if head.kind == "linear":
        return LinearHead(hidden, config.labels, output=config.output, dropout=head.dropout)
    if head.kind == "moe":
        return MixtureOfExperts(
            hidden,
            config.labels,
            experts=head.experts,
            gate_bias=head.gate_bias,
            gate_rank=head.gate_rank,
            dropout=head.dropout,
        )
    return MLPMixture(
        hidden,
        config.labels,
        experts=head.experts,
        cells=head.cells,
        output=config.output,
        squash=head.squash,
        mix=head.mix,
        dropout=head.dropout,
    )


def _build_output_gate(config: TaggerNetConfig, hidden: int) -> ProbabilityGating | None:
    gate = config.gate_output
    if gate is None:
        return None
    return ProbabilityGating(
        config.labels,
        hidden,
        source=gate.source,
        norm=gate.norm,
        rank=gate.rank,
        remove_diagonal=gate.remove_diagonal,
    )
