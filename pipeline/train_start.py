"""Where a training of few clips starts: the best linear classifier, found in closed form.

A network of a million drawn weights can not find in forty clips what ridge regression finds in
them by solving one system of equations. So the classifier of the mean rows is solved for and
written into the network (`vtag.models.warm_start`), and training goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from vtag.batches import batches_in_order
from vtag.dataset import Dataset, Sample
from vtag.errors import ConfigError
from vtag.models.codebook import CodebookPooling
from vtag.models.log_probabilities import OutputKind
from vtag.models.mixture_of_experts import LinearHead, MixtureOfExperts
from vtag.models.tagger_net import PoolingStack, TaggerNet
from vtag.models.warm_start import start_classifier, warm_start_pooled

log = logging.getLogger(__name__)

# Shares of the rows' total variance that the penalty stands for.
PENALTIES: Final = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
MAX_SAMPLES: Final = 4000  # the system has a row and a column for each: 128 MB
CODEBOOK_ROWS: Final = 50_000  # for k-means; more rows move the centres no further
# σ(4) = 0.98: open, and not so far that no gradient comes through.
OPEN_GATE_LOGIT: Final = 4.0


@dataclass(frozen=True)
class LinearFit:
    """A linear classifier, scaled so that its scores are log-odds.

    Attributes:
        weight: float64 [C, P].
        bias: float64 [C].
        penalty: the one of `PENALTIES` that was chosen.
        loss: of the samples, each scored by a classifier that had not seen its group.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    loss: float


def fit_linear(
    rows: Tensor, targets: Tensor, groups: Sequence[int], *, output: OutputKind
) -> LinearFit:
    """Ridge regression; penalty and scale are those that suit samples it has not seen.

    The scores of every group by a classifier without that group come from the one solution:
    with the hat matrix H, the residuals e of all, and group G they are y_G - (I - H_GG)⁻¹ e_G
    (Allen's PRESS, Technometrics 1974, for blocks). Slope and offset that turn such scores into
    log-odds are fitted to them (Platt 1999), so that the start is not surer than it may be. What
    one group alone has can not be told without it: its scores say nothing and are left out.

    Args:
        rows: float [N, P].
        targets: float [N, C], 1 where a sample has a label.
        groups: [N], equal for samples that must not vouch for each other.
        output: which scores are asked for.
    """
    rows, targets = rows.double(), targets.double()
    centre, mean = rows.mean(dim=0), targets.mean(dim=0)
    inner = (rows - centre) @ (rows - centre).T
    scale = inner.diagonal().sum().clamp(min=1e-12)
    identity = torch.eye(len(rows), dtype=torch.double)
    blocks = [
        torch.tensor([n for n, group in enumerate(groups) if group == name])
        for name in sorted(set(groups))
    ]
    fair = _tellable(targets, blocks, output)
    if not (fair & (targets > 0)).any():  # every label has one group: clips must do
        blocks = [torch.tensor([n]) for n in range(len(rows))]
        fair = _tellable(targets, blocks, output)
    best: tuple[float, float, Tensor, float, float] | None = None
    for penalty in PENALTIES:
        dual = torch.linalg.solve(inner + penalty * scale * identity, identity)
        hat = inner @ dual + 1 / len(rows)
        errors = targets - hat @ targets
        unseen = targets.clone()
        for block in blocks:
            own = identity[block][:, block] - hat[block][:, block]
            unseen[block] -= torch.linalg.lstsq(own, errors[block]).solution
        slope, offset, loss = _log_odds_scale(unseen, targets, fair, output)
        if best is None or loss < best[0]:
            best = (loss, penalty, dual @ (targets - mean), slope, offset)
    assert best is not None
    loss, penalty, solution, slope, offset = best
    weight = (rows - centre).T @ solution  # [P, C]
    return LinearFit(slope * weight.T, slope * (mean - centre @ weight) + offset, penalty, loss)


def start_from_linear(net: TaggerNet, dataset: Dataset, *, frames: int) -> LinearFit:
    """Makes `net` score as the best linear classifier of the mean rows of its streams.

    Every stream counts alike, whatever the size of its rows. Clips with several streams enter
    once more with each stream alone, so that one stream does not rely on another that may be
    missing.

    Args:
        frames: rows of a stream per clip, evenly spread.

    Raises:
        ConfigError: the network can not hold it, see `warm_start_pooled`.
    """
    parts, targets, groups = _pooled_means(net, dataset, frames)
    scales = {
        stream: 1 / (rows - rows.mean(dim=0)).square().sum(dim=1).mean().sqrt().clamp(min=1e-6)
        for stream, rows in parts.items()
    }
    rows = torch.cat([parts[stream] * scales[stream] for stream in parts], dim=1)
    fit = fit_linear(rows, targets, groups, output=net.config.output)
    sizes = [rows.shape[1] for rows in parts.values()]
    weights = {
        stream: part * scales[stream]
        for stream, part in zip(parts, torch.split(fit.weight, sizes, dim=1), strict=True)
    }
    warm_start_pooled(net, weights, fit.bias, open_gate=OPEN_GATE_LOGIT)
    log.info("linear start: penalty %g, loss on clips left out %.3f", fit.penalty, fit.loss)
    return fit


def fit_codebooks(net: TaggerNet, dataset: Dataset, *, frames: int, seed: int) -> None:
    """Fits the codebooks of classical poolings ("bow", "vlad") on rows of the training clips."""
    if not any(isinstance(module, CodebookPooling) for module in net.modules()):
        return
    found: dict[PoolingStack, list[Tensor]] = {}
    samples = dataset.train
    step = max(1, len(samples) * frames // CODEBOOK_ROWS)
    with torch.no_grad():
        for batch in batches_in_order(samples[::step], dataset, batch_size=64, frames=frames):
            for stack, rows, mask in net.eval().pooling_inputs(batch.rows, batch.mask):
                found.setdefault(stack, []).append(rows[mask])
    for stack, parts in found.items():
        for pooling in stack.poolings:
            if isinstance(pooling, CodebookPooling):
                pooling.fit(torch.cat(parts), seed=seed)


def start_head_from_linear(net: TaggerNet, dataset: Dataset, *, frames: int) -> LinearFit | None:
    """Gives a fine-tuned network with a new head the best linear one of its hidden vectors.

    None where the head is of a kind that can not hold it; it keeps its drawn weights.
    """
    head = net.head
    if not isinstance(head, LinearHead | MixtureOfExperts) or len(dataset.train) > MAX_SAMPLES:
        return None
    hidden, targets = [], []
    with torch.no_grad():
        for batch in batches_in_order(dataset.train, dataset, batch_size=64, frames=frames):
            hidden.append(net.eval().hidden(batch.rows, batch.mask))
            targets.append(batch.labels)
    groups = _group_numbers(dataset.train)
    fit = fit_linear(torch.cat(hidden), torch.cat(targets), groups, output=net.config.output)
    try:
        start_classifier(head, fit.weight, fit.bias)
    except ConfigError:
        return None
    if net.gate_output is not None:
        net.gate_output.logits.hold(OPEN_GATE_LOGIT)
    return fit


def _pooled_means(
    net: TaggerNet, dataset: Dataset, frames: int
) -> tuple[dict[str, Tensor], Tensor, list[int]]:
    """Pooled mean of each stream [N', D], targets [N', C] and groups [N']."""
    where = {stream: net.pooled_columns(stream, "mean") for stream in dataset.dims}
    samples = dataset.train[:MAX_SAMPLES]
    numbers = _group_numbers(samples)
    pooled, targets, present = [], [], []
    with torch.no_grad():
        for batch in batches_in_order(samples, dataset, batch_size=64, frames=frames):
            pooled.append(net.eval().pooled(batch.rows, batch.mask))
            targets.append(batch.labels)
            present.append(torch.stack([batch.mask[s].any(dim=1) for s in where], dim=1))
    vectors, truth, there = torch.cat(pooled), torch.cat(targets), torch.cat(present)
    means = {stream: vectors[:, columns] for stream, columns in where.items()}
    several = torch.nonzero(there.sum(dim=1) > 1).flatten()
    copies = [torch.arange(len(truth)), *([several] * len(where) if len(several) else [])]
    at = torch.cat(copies)
    parts = {}
    for place, (stream, rows) in enumerate(means.items()):
        kept = [torch.ones(len(truth), 1)]
        for other in range(len(where) if len(several) else 0):
            kept.append(torch.full((len(several), 1), float(other == place)))
        parts[stream] = rows[at] * torch.cat(kept)
    return parts, truth[at], [numbers[n] for n in at.tolist()]


def _group_numbers(samples: Sequence[Sample]) -> list[int]:
    names: dict[str, int] = {}
    return [
        names.setdefault(f"group {s.group}" if s.group else f"clip {n}", len(names))
        for n, s in enumerate(samples)
    ]


def _tellable(targets: Tensor, blocks: Sequence[Tensor], output: OutputKind) -> Tensor:
    """Bool [N, C]: whether a label has samples outside the block that a sample is in.

    A sample of which one label is right counts whole or not at all, by that label.
    """
    outside = torch.zeros(targets.shape, dtype=torch.bool)
    total = targets.sum(dim=0)
    for block in blocks:
        outside[block] = total - targets[block].sum(dim=0) > 0
    if output == "single_label":
        return (outside & (targets > 0)).any(dim=1, keepdim=True).expand_as(targets)
    return outside


def _log_odds_scale(
    scores: Tensor, targets: Tensor, fair: Tensor, output: OutputKind
) -> tuple[float, float, float]:
    """Slope, offset and loss of the log-odds that suit the scores best, where these are fair."""
    if not fair.any():
        fair = torch.ones_like(fair)
    log_slope = torch.tensor(1.0, dtype=torch.double, requires_grad=True)
    offset = torch.tensor(0.0, dtype=torch.double, requires_grad=True)
    free = [log_slope] if output == "single_label" else [log_slope, offset]

    def loss_now() -> Tensor:
        logits = log_slope.exp() * scores + offset
        if output == "single_label":
            return functional.cross_entropy(logits[fair[:, 0]], targets[fair[:, 0]])
        return functional.binary_cross_entropy_with_logits(logits[fair], targets[fair])

    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        free, max_iter=60, line_search_fn="strong_wolfe"
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_now()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(step)
    with torch.no_grad():
        return float(log_slope.exp()), float(offset), float(loss_now())
