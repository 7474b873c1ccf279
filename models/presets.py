"""Networks that were published, and a small one, as settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtag.errors import ConfigError
from vtag.models import PoolingConfig, pooling_options
from vtag.models.log_probabilities import OutputKind
from vtag.models.net_config import (
    GateConfig,
    HeadConfig,
    OutputGateConfig,
    StreamConfig,
    TaggerNetConfig,
)

# The 2017 entry gives audio a half or an eighth of the visual clusters, by family.
AUDIO_CLUSTER_DIVISOR: Final = {
    "netvlad": 2,
    "netrvlad": 2,
    "netfv": 2,
    "dbof": 8,
    "soft_dbow": 8,
    "gated_soft_dbow": 8,
}


def paper_config(
    labels: int,
    *,
    visual_dim: int = 1024,
    audio_dim: int = 128,
    pooling: str = "netvlad",
    clusters: int = 256,
    hidden: int = 1024,
    experts: int = 2,
) -> TaggerNetConfig:
    """The gated clustering models of arXiv 1706.06905, as in the README of the winning entry.

    Rows at unit length over both streams and batch norm, late fusion, audio with K/2 clusters
    (K/8 for the bag-of-words family, and no gate of its own), a plain linear layer, context
    gating, mixture of experts with a dummy, context gating of the probabilities. With the
    defaults 321.5 M parameters for 3862 labels, 333.2 M for 4716.

    Raises:
        ConfigError: another pooling, or too few clusters to give audio its share.
    """
    if pooling not in AUDIO_CLUSTER_DIVISOR:
        raise ConfigError(
            f"the paper's models pool by {', '.join(AUDIO_CLUSTER_DIVISOR)}, got {pooling!r}"
        )
    audio_clusters = clusters // AUDIO_CLUSTER_DIVISOR[pooling]
    if audio_clusters < 1:
        raise ConfigError(
            f"pooling {pooling!r} needs {AUDIO_CLUSTER_DIVISOR[pooling]} clusters or more, as "
            f"audio gets its share of them; got {clusters}"
        )
    audio_pooling = "soft_dbow" if pooling == "gated_soft_dbow" else pooling
    # The gated bag of words has its gate inside the pooling, and none behind the linear layer.
    gated_inside = pooling == "gated_soft_dbow"
    return TaggerNetConfig(
        streams=(
            _stream("visual", visual_dim, PoolingConfig(pooling, clusters=clusters), norm=True),
            _stream(
                "audio", audio_dim, PoolingConfig(audio_pooling, clusters=audio_clusters), norm=True
            ),
        ),
        labels=labels,
        joint_l2=True,
        hidden=hidden,
        gate_hidden=None if gated_inside else GateConfig(),
        head=HeadConfig(experts=experts),
        gate_output=OutputGateConfig(),
    )


def recurrent_config(
    labels: int, *, visual_dim: int = 1024, audio_dim: int = 128, kind: str = "lstm"
) -> TaggerNetConfig:
    """The LSTM or GRU of the 2017 entry: early fusion, its state straight to the MoE."""
    if kind not in ("lstm", "gru"):
        raise ConfigError(f"a recurrent network is lstm or gru, got {kind!r}")
    return TaggerNetConfig(
        streams=(
            StreamConfig(name="visual", dim=visual_dim),
            StreamConfig(name="audio", dim=audio_dim),
        ),
        labels=labels,
        fusion="early",
        poolings=(PoolingConfig(kind, cells=1024 if kind == "lstm" else 1200, layers=2),),
        fc="none",
        hidden=0,
        gate_hidden=None,
        gate_output=None,
    )


def nextvlad_config(
    labels: int,
    *,
    visual_dim: int = 1024,
    audio_dim: int = 128,
    clusters: int = 128,
    groups: int = 8,
    hidden: int = 2048,
    reduction: int = 8,
) -> TaggerNetConfig:
    """The single NeXtVLAD of arXiv 1811.05014: 88.9 M parameters for 3862 labels.

    8 groups, 128 clusters, dropout 0.5, FC with batch norm, squeeze-and-excitation gating,
    logistic classifier. Audio has half of the groups and clusters. The challenge entry has 112
    clusters and a reduction of 16 (78.6 M).
    """
    return TaggerNetConfig(
        streams=(
            _stream(
                "visual", visual_dim, PoolingConfig("nextvlad", clusters=clusters, groups=groups)
            ),
            _stream(
                "audio",
                audio_dim,
                PoolingConfig(
                    "nextvlad", clusters=max(1, clusters // 2), groups=max(1, groups // 2)
                ),
            ),
        ),
        labels=labels,
        fc="batch_norm",
        hidden=hidden,
        dropout_pooled=0.5,
        gate_hidden=GateConfig(kind="squeeze_excite", norm="none", reduction=reduction),
        head=HeadConfig(kind="linear"),
        gate_output=None,
    )


def blog_config(
    labels: int,
    *,
    visual_dim: int = 2048,
    audio_dim: int = 1024,
    pooling: str = "netvlad",
    clusters: int = 8,
    hidden: int = 512,
    experts: int = 4,
    dropout: float = 0.5,
    output: OutputKind = "single_label",
) -> TaggerNetConfig:
    """The network of the founding blog post (2022-06-29), a re-reading of the paper in PyTorch.

    Linear-BN-ReLU6, context gating with a bias, experts Linear-ReLU-Linear of 64 cells under
    one gate vector squashed by a sigmoid, dropout, a second context gating. The post names no
    cluster count, width or dropout rate: those defaults are ours, for its 10 frames a video.
    """
    pool = PoolingConfig(pooling)
    if "clusters" in pooling_options(pooling):
        pool = PoolingConfig(pooling, clusters=clusters)
    return TaggerNetConfig(
        streams=(
            _stream("visual", visual_dim, pool),
            _stream("audio", audio_dim, pool),
        ),
        labels=labels,
        output=output,
        fc="batch_norm_relu6",
        hidden=hidden,
        dropout_hidden=dropout,
        gate_hidden=GateConfig(norm="bias"),
        head=HeadConfig(kind="mlp_moe", experts=experts, cells=64, dropout=dropout),
        gate_output=OutputGateConfig(norm="bias"),
    )


def small_config(
    labels: int,
    dims: Mapping[str, int],
    *,
    clusters: int = 4,
    hidden: int = 128,
    dropout: float = 0.5,
    output: OutputKind = "multi_label",
) -> TaggerNetConfig:
    """A network for a few labelled clips: mean beside a small NetVLAD, gate, linear classifier.

    Args:
        dims: row size per stream, such as {"visual": 2048, "audio": 128}.
    """
    poolings = (PoolingConfig("mean"), PoolingConfig("netvlad", clusters=clusters))
    return TaggerNetConfig(
        streams=tuple(
            StreamConfig(name=name, dim=dim, poolings=poolings, input_norm="signed_sqrt_l2")
            for name, dim in dims.items()
        ),
        labels=labels,
        output=output,
        # A linear classifier of that many labels has to fit through, see `vtag.train_start`.
        hidden=max(hidden, labels),
        dropout_pooled=dropout,
        gate_hidden=GateConfig(norm="bias"),
        head=HeadConfig(kind="linear"),
        gate_output=None,
    )


def medium_config(
    labels: int,
    dims: Mapping[str, int],
    *,
    clusters: int = 16,
    hidden: int = 512,
    dropout: float = 0.5,
    output: OutputKind = "multi_label",
) -> TaggerNetConfig:
    """A network for thousands of labelled clips: mean beside NetVLAD, gate, mixture of experts.

    With 2048 columns 18 M parameters before the classifier, a sixteenth of the paper's. Small
    clusters did as well as large ones in the challenge of 2018 (K 16 to 32, seventh place).
    """
    return TaggerNetConfig(
        streams=tuple(
            StreamConfig(
                name=name,
                dim=dim,
                poolings=(
                    PoolingConfig("mean"),
                    PoolingConfig("netvlad", clusters=_fewer(clusters, dim)),
                ),
                input_norm="signed_sqrt_l2",
            )
            for name, dim in dims.items()
        ),
        labels=labels,
        output=output,
        hidden=hidden,
        dropout_pooled=dropout,
        head=HeadConfig(kind="linear" if output == "single_label" else "moe"),
        gate_output=None,
    )


def _fewer(clusters: int, dim: int) -> int:
    # Narrow rows, such as sound, have half of the clusters, as in the paper.
    return clusters if dim > 512 else max(1, clusters // 2)


def _stream(name: str, dim: int, pooling: PoolingConfig, *, norm: bool = False) -> StreamConfig:
    return StreamConfig(
        name=name, dim=dim, poolings=(pooling,), input_norm="batch" if norm else "none"
    )
