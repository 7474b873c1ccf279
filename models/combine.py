"""Several models as one: the mean of their scores (ensemble) or of their weights (average)."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence

import torch

from vtag.errors import ConfigError
from vtag.models.blank_net import blank_net
from vtag.models.checkpoint import Checkpoint
from vtag.models.ensemble import Ensemble
from vtag.models.labels import LabelSet
from vtag.models.readout import Readout
from vtag.models.tagger_net import TaggerNet

THRESHOLD_DIGITS = 6  # as training writes them


def ensemble_checkpoints(
    checkpoints: Sequence[Checkpoint], *, name: str, weights: Sequence[float] | None = None
) -> Checkpoint:
    """A model that scores the weighted mean of the models' scores.

    The threshold of a label is the weighted mean of its thresholds. A model that is an ensemble
    itself is taken apart, so nesting changes nothing. Windows and streams are the models' own,
    and therefore have to be the same.

    Args:
        weights: one per model, above 0, scaled to a sum of 1; None for equal ones.

    Raises:
        ConfigError: models of other labels, extractors or readouts, with the names of both; or
            weights that do not fit.
    """
    if len(checkpoints) < 2:
        raise ConfigError(f"an ensemble is of two models or more, got {len(checkpoints)}")
    given = [1.0] * len(checkpoints) if weights is None else list(weights)
    if len(given) != len(checkpoints):
        raise ConfigError(
            f"{len(checkpoints)} models need as many weights, got {len(given)}: "
            f"{', '.join(f'{weight:g}' for weight in given)}"
        )
    first = checkpoints[0]
    for other in checkpoints:
        _require_plain_scores(other)
        _require_same(first, other)
    nets: list[TaggerNet] = []
    shares: list[float] = []
    for checkpoint, weight in zip(checkpoints, given, strict=True):
        net = checkpoint.net
        nets += net.members if isinstance(net, Ensemble) else [net]
        own = net.config.shares if isinstance(net, Ensemble) else (1.0,)
        shares += [weight * share for share in own]
    same_sampling = {checkpoint.sampling for checkpoint in checkpoints} == {first.sampling}
    return Checkpoint(
        net=Ensemble(nets, shares).eval(),
        labels=_mean_thresholds(checkpoints, given),
        name=name,
        extractors=first.extractors,
        sampling=first.sampling if same_sampling else "",
        readout=first.readout,
        card=_card(name, checkpoints, given),
    )


def average_checkpoints(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The first checkpoint with the mean of all weights: of stages of one training, not of several.

    Averaged weights gained 0.002 to 0.003 GAP for small models in 2018. Batch-norm statistics
    are averaged with the rest.

    Raises:
        ConfigError: none given, an ensemble, or other networks, labels or extractors.
    """
    if not checkpoints:
        raise ConfigError("no checkpoint to average")
    first = checkpoints[0]
    if not isinstance(first.net, TaggerNet):
        raise ConfigError(f"model {first.name!r} is an ensemble; average its members' weights")
    for other in checkpoints[1:]:
        same = (other.config, other.labels, other.extractors) == (
            first.config,
            first.labels,
            first.extractors,
        )
        if not same:
            raise ConfigError(
                f"models {first.name!r} and {other.name!r} differ in network, labels or "
                "extractors, and can not be averaged"
            )
    states = [checkpoint.net.state_dict() for checkpoint in checkpoints]
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }
    net = blank_net(first.net.config)
    net.load_state_dict(mean, assign=True)
    return dataclasses.replace(first, net=net.eval(), fingerprint="")


def _require_plain_scores(checkpoint: Checkpoint) -> None:
    """Refuses scores that are not the network's probabilities: their mean is another one."""
    try:
        labels = LabelSet.from_list(checkpoint.labels)
        readout = Readout.from_dict(checkpoint.readout, labels)
    except ValueError as err:
        raise ConfigError(f"model {checkpoint.name!r}: {err}") from err
    single = checkpoint.config.output == "single_label"
    wanted = "softmax" if single else "sigmoid"
    plain = all(group.kind == wanted and group.temperature == 1 for group in readout.groups)
    if not plain or (single and len(readout.groups) > 1) or len(labels) > labels.outputs:
        raise ConfigError(
            f"model {checkpoint.name!r} makes its scores from what its network says in another "
            "way than models that were trained here; an ensemble is of the latter only"
        )


def _require_same(first: Checkpoint, other: Checkpoint) -> None:
    both = f"models {first.name!r} and {other.name!r}"
    ours, theirs = _identities(first), _identities(other)
    if ours != theirs:
        differing = sorted({text for text, _ in ours} ^ {text for text, _ in theirs})[:3]
        such = ", ".join(map(repr, differing)) or "their order, names or streams"
        raise ConfigError(
            f"{both} have other labels ({such}); an ensemble needs the same ones in one order"
        )
    for stream in sorted({*first.extractors, *other.extractors}):
        made = [c.extractors.get(stream, "no such rows") for c in (first, other)]
        if made[0] != made[1]:
            raise ConfigError(
                f"{both} read other {stream} rows ({made[0]} and {made[1]}); an ensemble needs the "
                "same extractors"
            )
    if first.readout != other.readout or first.config.output != other.config.output:
        raise ConfigError(
            f"{both} read their scores in different ways ({first.config.output} and "
            f"{other.config.output}, or other windows); train them with the same settings"
        )


def _identities(checkpoint: Checkpoint) -> list[tuple[str, Mapping[str, object]]]:
    """Ids of the labels, each with all that is said of it but the threshold."""
    return [
        (str(label.get("id")), {key: value for key, value in label.items() if key != "threshold"})
        for label in checkpoint.labels
    ]


def _mean_thresholds(
    checkpoints: Sequence[Checkpoint], weights: Sequence[float]
) -> list[dict[str, object]]:
    sets = [LabelSet.from_list(checkpoint.labels) for checkpoint in checkpoints]
    total = sum(weights)
    return [
        {
            **label,
            "threshold": round(
                sum(w / total * one[at].threshold for w, one in zip(weights, sets, strict=True)),
                THRESHOLD_DIGITS,
            ),
        }
        for at, label in enumerate(checkpoints[0].labels)
    ]


def _card(name: str, checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> str:
    total = sum(weights)
    rows = [
        f"| {_inline(one.name)} | `{one.fingerprint or 'not saved'}` | {weight / total:.4f} |"
        for one, weight in zip(checkpoints, weights, strict=True)
    ]
    lines = [
        f"# {_inline(name)}",
        "",
        "An ensemble: its score of a label is the weighted mean of the scores of these models, and",
        "its threshold that of their thresholds.",
        "",
        "| model | fingerprint | weight |",
        "| --- | --- | ---: |",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _inline(name: str) -> str:
    """A name that can not leave its line or its cell: models of others have any."""
    return html.escape(" ".join(name.split())).replace("|", "&#124;")
