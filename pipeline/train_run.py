"""One training from its first to its last step, without files."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtag.batches import (
    Batch,
    batches_in_order,
    collate,
    epoch_order,
    generator_of,
    seed_of,
    truth_of,
)
from vtag.dataset import Dataset, Sample
from vtag.errors import ConfigError
from vtag.evaluate import gap_at_k, hit_at_one, mean_average_precision
from vtag.models.batch_norm import set_batch_norm_momentum
from vtag.models.ensemble import Net
from vtag.models.losses import expert_l2, loss_of
from vtag.models.mixture_of_experts import LinearHead, MixtureOfExperts
from vtag.models.net_config import TaggerNetConfig
from vtag.models.tagger_net import TaggerNet
from vtag.train_config import TrainConfig
from vtag.train_processes import Processes, in_parts
from vtag.train_start import fit_codebooks, start_from_linear
from vtag.train_state import Progress, optimizer_tensors, restore_optimizer

log = logging.getLogger(__name__)


class TrainRun:
    """One training from its first to its last step."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        net_config: TaggerNetConfig,
        processes: Processes,
        device: torch.device,
        *,
        first_guess: bool = True,
        teacher: Net | None = None,
    ) -> None:
        self.config, self.dataset, self.processes, self.device = config, dataset, processes, device
        self.teacher = None if teacher is None else teacher.to(device).eval()
        torch.manual_seed(seed_of(config.seed, "network"))
        self.net = TaggerNet(net_config).to(device)
        if first_guess:
            fit_codebooks(self.net.cpu(), dataset, frames=config.frames, seed=config.seed)
            self.net.to(device)
        if first_guess and config.first_guess == "base_rate":
            guess_base_rates(self.net, dataset)
        elif first_guess and config.first_guess == "linear":
            start_from_linear(self.net.cpu(), dataset, frames=config.frames)
            self.net.to(device)
        if config.batch_norm_momentum is not None:
            set_batch_norm_momentum(self.net, config.batch_norm_momentum)
        self.average: TaggerNet | None = None
        self.start_average()
        self.best: dict[str, Tensor] = {}
        self.optimizer = _optimizer(self.net, config)
        self.progress = Progress()
        self.positives = torch.from_numpy(dataset.positives()).to(device)
        self.steps_per_epoch = self._count_steps()

    def start_average(self) -> None:
        """Lets the averaged weights begin at the present ones."""
        if self.config.ema:
            self.average = copy.deepcopy(self.net).requires_grad_(False)

    def until_done(self, should_stop: Callable[[], bool], keep: Callable[[], None]) -> bool:
        """Trains; whether it came to its end. Keeps the state after every epoch."""
        while not self._is_done():
            for samples in self._steps():
                self._step(samples)
                if self.processes.any(should_stop(), self.device):
                    return False
            self._end_epoch()
            if not self._is_done():
                keep()
        return True

    def best_net(self) -> TaggerNet:
        """The network with the weights that validated best, in evaluation mode."""
        net = self.average or self.net
        net.load_state_dict(self.best)
        return net.eval()

    def last_net(self) -> TaggerNet:
        """The network with its present weights, averaged where they are, in evaluation mode."""
        return (self.average or self.net).eval()

    def scores(
        self, net: TaggerNet, samples: Sequence[Sample]
    ) -> tuple[NDArray[np.float32], float]:
        """Probabilities float32 [N, C] of all frames of the samples, and the mean loss."""
        net.eval()
        size = max(1, self.config.batch_size // self.config.accumulate)
        parts, loss = [], 0.0
        with torch.no_grad():
            for batch in batches_in_order(
                samples, self.dataset, batch_size=size, frames=self.config.frames
            ):
                batch = batch.to(self.device)
                with self._autocast():
                    out = net(batch.rows, batch.mask)
                loss += float(self._loss(out, batch)) * len(batch)
                parts.append((out.exp() if net.single_label else out.sigmoid()).float().cpu())
        return torch.cat(parts).numpy(), loss / len(samples)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a continued run needs."""
        groups = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer),
        }
        return {f"{g}/{name}": t for g, tensors in groups.items() for name, t in tensors.items()}

    def restore(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what `tensors` gave."""

        def group(name: str) -> dict[str, Tensor]:
            head = f"{name}/"
            return {k.removeprefix(head): t for k, t in tensors.items() if k.startswith(head)}

        self.progress = progress
        self.net.load_state_dict(group("net"))
        if self.average is not None:
            self.average.load_state_dict(group("average"))
        self.best = group("best")
        restore_optimizer(self.optimizer, group("optimizer"))

    def _is_done(self) -> bool:
        patience, epoch = self.config.patience, self.progress.epoch
        waited = epoch - 1 - self.progress.best_epoch
        most = min(self.config.epochs, self.config.stop_after or self.config.epochs)
        return epoch >= most or (patience is not None and epoch > 0 and waited >= patience)

    def _count_steps(self) -> int:
        clips, size, processes = (
            len(self.dataset.train),
            self.config.batch_size,
            self.processes.count,
        )
        if min(clips, size) < processes:
            raise ConfigError(
                f"{processes} processes need {processes} clips in a step; start fewer, or raise "
                f"the batch size ({size})"
            )
        # A last step with fewer clips than processes would leave one without a gradient; which
        # clips it drops changes with every epoch.
        return clips // size + (clips % size >= processes)

    def _steps(self) -> Iterator[Sequence[Sample]]:
        """The clips of each step of this epoch that was not made yet."""
        order = epoch_order(
            len(self.dataset.train), seed=self.config.seed, epoch=self.progress.epoch
        )
        size = self.config.batch_size
        for step in range(self.progress.epoch_step, self.steps_per_epoch):
            chosen = order[step * size : (step + 1) * size]
            yield [self.dataset.train[at] for at in chosen]

    def _step(self, samples: Sequence[Sample]) -> None:
        progress, config = self.progress, self.config
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        step_loss = torch.zeros((), device=self.device)
        for part, some in enumerate(in_parts(self.processes.share(samples), config.accumulate)):
            step_loss += self._backward(some, part, len(some) / len(samples))
        self.processes.sum_gradients(self.net)
        _clip(self.net, config)
        rate = config.learning_rate_at(progress.step, self.steps_per_epoch * config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.processes.average_buffers(self.net)
        self._follow()
        loss = float(self.processes.total(step_loss))
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} in step {progress.step}; lower the learning rate "
                f"({config.learning_rate}) or clip gradients"
            )
        progress.step += 1
        progress.epoch_step += 1
        progress.epoch_loss += loss * len(samples)
        progress.epoch_examples += len(samples)

    def _backward(self, samples: Sequence[Sample], part: int, weight: float) -> Tensor:
        """Adds the gradient of some clips; their loss, with their weight in the step."""
        place = (self.progress.step, self.processes.rank, part)
        batch = collate(
            samples,
            self.dataset,
            frames=self.config.frames,
            sampling=self.config.frame_sampling,
            generator=generator_of(self.config.seed, "frames", *place),
        ).to(self.device)
        torch.manual_seed(seed_of(self.config.seed, "dropout", *place))
        with self._autocast():
            out = self.net(batch.rows, batch.mask)
        loss = self._loss(out, self._taught(batch)) * weight
        torch.autograd.backward(loss + expert_l2(self.net, self.config.loss) * weight)
        return loss.detach()

    def _loss(self, out: Tensor, batch: Batch) -> Tensor:
        return loss_of(out.float(), batch.labels, self.config.loss, positives=self.positives)

    def _taught(self, batch: Batch) -> Batch:
        """The batch with the teacher's probabilities mixed into its labels."""
        if self.teacher is None:
            return batch
        with torch.no_grad():
            said = self.teacher.probabilities(batch.rows, batch.mask)
        return replace(batch, labels=torch.lerp(batch.labels, said.float(), self.config.teaching))

    def _follow(self) -> None:
        """Moves the averaged weights a little towards the present ones."""
        if self.average is None:
            return
        # In the first steps the average would be mostly the drawn weights: it follows faster.
        decay = min(self.config.ema, (1 + self.progress.step) / (10 + self.progress.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, latest in zip(self.average.buffers(), self.net.buffers(), strict=True):
                kept.copy_(latest)

    def _end_epoch(self) -> None:
        """Validates, writes the row of history, remembers the best weights."""
        progress, net = self.progress, self.average or self.net
        scores, loss = self.scores(net, self.dataset.validation)
        truth = truth_of(self.dataset.validation, len(self.dataset.label_ids))
        if not math.isfinite(loss):
            raise ConfigError(
                f"the validation loss became {loss} in epoch {progress.epoch + 1}; lower the "
                f"learning rate ({self.config.learning_rate})"
            )
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "examples": progress.step * self.config.batch_size,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": progress.epoch_loss / max(1, progress.epoch_examples),
            "validation_loss": loss,
            "gap": gap_at_k(scores, truth),
            "map": mean_average_precision(scores, truth, None),
            "hit_at_one": hit_at_one(scores, truth),
        }
        best = progress.history[progress.best_epoch] if progress.best_epoch >= 0 else None
        if best is None or _is_better(row, best, self.config.goal):
            progress.best_epoch = progress.epoch
            self.best = {name: t.detach().clone() for name, t in net.state_dict().items()}
        progress.history.append(row)
        log.info("epoch %d: %s", progress.epoch + 1, json.dumps(row))
        progress.epoch += 1
        progress.epoch_step, progress.epoch_loss, progress.epoch_examples = 0, 0.0, 0

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )


def guess_base_rates(net: TaggerNet, dataset: Dataset) -> None:
    """Sets the classifier's bias to the log-odds of each label's share of the training clips.

    Shares are counted with one more clip that has the label and one that has not, so that
    none is 0 or 1. Heads without a bias per label (the blog's) are left as they are.
    """
    if not isinstance(net.head, LinearHead | MixtureOfExperts):
        return
    positives = torch.from_numpy(dataset.positives())
    log_odds = ((positives + 1) / (len(dataset.train) - positives + 1)).log()
    bias = net.head.experts.bias
    with torch.no_grad():
        bias.copy_(log_odds.repeat_interleave(len(bias) // len(log_odds)))


def _is_better(row: Mapping[str, float], best: Mapping[str, float], goal: str) -> bool:
    """A better goal; at the same goal (few clips: it soon is 1) a lower loss."""
    if row[goal] != best[goal]:
        return row[goal] > best[goal]
    return row["validation_loss"] < best["validation_loss"]


def _optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; with weight decay on matrices it is AdamW (arXiv 1711.05101)."""
    matrices = [p for p in net.parameters() if p.ndim >= 2]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def _clip(net: nn.Module, config: TrainConfig) -> None:
    parameters = [p for p in net.parameters() if p.grad is not None]
    if config.clipping == "global":
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    elif config.clipping == "per_variable":
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], config.clip_norm)
