"""Trains extractors/weights/vggish_small.safetensors: an AudioSet tagger teaches VGGishSmallNet.

    python tools/make_ear_corpus.py --work DIR --esc10 ESC10
    python tools/make_ear.py --work DIR --teacher TEACHERS      # resumable; GPU if there is one

Three steps, each of which goes on where it was stopped:

1. Every recording is heard by the teacher once, so that rare sounds can be drawn more often.
2. Windows of 4.815 s (five segments) are drawn: one to three recordings, moved in time, pitch
   and level, in noise, room or a narrow band. The teacher hears the whole window and, to learn
   *when*, its first and last 2.895 s. Log-mel segments and targets are kept in shards.
3. The network learns them: the mean of the rows of the window (or of its part) goes through one
   linear layer to the teacher's 527 logits and through another to the teacher's embedding.
   Warm-up, constant rate, and a linear descent over the last quarter; the moving average of the
   weights is what counts.

TEACHERS holds audioset_mn04.pt and .py, an EfficientAT MobileNet (Schmid et al., "Efficient
Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation", ICASSP 2023, MIT). It is
needed for training only.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from make_ear_windows import (
    CLASSES,
    PARTS,
    Corpus,
    Mixer,
    Teacher,
    hear_base,
    make_held,
    make_shards,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing import spawn
from torch.nn import functional as F

from vtag.extractors.vggish_small import VGGishSmallNet

TEACHER_DIM: Final = 384


class Student(nn.Module):
    """The network with the two layers that it is trained through."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = VGGishSmallNet()
        self.tags = nn.Linear(128, CLASSES)
        self.rows = nn.Linear(128, TEACHER_DIM)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [B, 5, 96, 64] to (logits [B, 3, 527], embeddings [B, 3, 384])."""
        rows = self.ear(mel.flatten(0, 1)).unflatten(0, mel.shape[:2])
        pooled = torch.stack([rows[:, a:b].mean(1) for a, b in PARTS], dim=1)
        return self.tags(pooled), self.rows(pooled)


@dataclass
class Scale:
    """Mean and spread of the teacher's outputs over the first shards."""

    logit_mean: Tensor
    logit_std: Tensor
    row_mean: Tensor
    row_std: Tensor


def scale_of(folder: Path, device: str) -> Scale:
    shards = [np.load(file) for file in sorted(folder.glob("*.npz"))[:4]]
    parts = []
    for key in ("logits", "rows"):
        x = torch.from_numpy(np.concatenate([s[key] for s in shards])).float().flatten(0, 1)
        parts += [x.mean(0).to(device), x.std(0).clamp_min(1e-3).to(device)]
    return Scale(*parts)


def loss_of(student: nn.Module, batch: tuple[Tensor, ...], scale: Scale) -> tuple[Tensor, ...]:
    """(what is minimised, cross entropy, logit error, embedding error)."""
    mel, wanted_logits, wanted_rows = batch
    logits, rows = student(mel)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted_logits.sigmoid()) * CLASSES
    logit_error = ((logits - wanted_logits) / scale.logit_std).square().mean()
    row_error = (rows - (wanted_rows - scale.row_mean) / scale.row_std).square().mean()
    return 0.1 * entropy + logit_error + 0.5 * row_error, entropy, logit_error, row_error


def batches(folder: Path, size: int, seed: int, device: str) -> Iterator[tuple[Tensor, ...]]:
    """Batches without end; a shard that appears meanwhile joins in, the least used ones first."""
    rng, used = np.random.default_rng(seed), dict[Path, int]()
    while True:
        for file in sorted(folder.glob("*.npz")):
            used.setdefault(file, 0)
        least = sorted(used, key=lambda f: (used[f], rng.random()))[:4]
        parts = []
        for file in least:
            used[file] += 1
            with np.load(file) as shard:
                parts.append([torch.from_numpy(shard[k]) for k in ("mel", "logits", "rows")])
        mel, logits, rows = (torch.cat(x) for x in zip(*parts, strict=True))
        order = torch.from_numpy(rng.permutation(len(mel)))
        for first in range(0, len(mel) - size + 1, size):
            at = order[first : first + size]
            yield tuple(x[at].float().to(device) for x in (mel, logits, rows))


def rate_at(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, constant, then a line down over the last 30 %."""
    descent = 0.3 * steps
    return peak * min(1.0, (step + 1) / 200, max(0.01, (steps - step) / descent))


def held_loss(student: nn.Module, held: dict[str, Tensor], scale: Scale) -> str:
    """A line about the held-out windows, for the log."""
    student.eval()
    sums, count = torch.zeros(4), 0
    with torch.inference_mode():
        for first in range(0, min(640, len(held["mel"])), 64):
            some = slice(first, first + 64)
            batch = tuple(held[k][some].float() for k in ("mel", "logits", "rows"))
            sums += torch.stack(loss_of(student, batch, scale)).cpu() * len(batch[0])
            count += len(batch[0])
    total, entropy, logit, row = (sums / count).tolist()
    return f"held {total:.3f} entropy {entropy:.3f} logits {logit:.3f} rows {row:.3f}"


def train(
    work: Path, *, steps: int, batch: int, peak: float, device: str, rank: int = 0, world: int = 1
) -> None:
    """Step 3: leaves the finished training in student.pt.

    With `world` processes each takes its own batches, and gradients are averaged: on a busy
    machine that loses less time than several threads in one process.
    """
    checkpoint = work / "student.pt"
    torch.manual_seed(11)
    student = Student().to(device).to(memory_format=torch.channels_last)
    scale = scale_of(work / "shards", device)
    with torch.no_grad():
        student.tags.bias.copy_(scale.logit_mean)
    average = copy.deepcopy(student)
    optimiser = torch.optim.AdamW(student.parameters(), lr=peak, weight_decay=0.01, fused=True)
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    shuffled = np.random.default_rng(5)
    with np.load(work / "held.npz") as file:
        chosen = shuffled.permutation(len(file["mel"]))
        held = {k: torch.from_numpy(file[k][chosen]).to(device) for k in ("mel", "logits", "rows")}
    source = batches(work / "shards", batch, 100 + step + 7919 * rank, device)
    began, since, running = time.monotonic(), step, torch.zeros(4)
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        student.train()
        losses = loss_of(student, next(source), scale)
        optimiser.zero_grad()
        losses[0].backward()
        if world > 1:
            share_gradients(student, world)
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimiser.step()
        step += 1
        follow(average, student, step)
        running += torch.stack(losses).detach().cpu()
        if rank:
            continue
        if step % 50 == 0:
            total, entropy, logit, row = (running / 50).tolist()
            speed = (step - since) / (time.monotonic() - began)
            print(
                f"step {step} loss {total:.3f} entropy {entropy:.3f} logits {logit:.3f} "
                f"rows {row:.3f} | {speed:.2f} steps/s",
                flush=True,
            )
            running.zero_()
        if step % 300 == 0 or step == steps:
            print(f"step {step} {held_loss(average, held, scale)}", flush=True)
        if step % 100 == 0 or step == steps:
            save(checkpoint, student, average, optimiser, step)
        if step == int(0.7 * steps):  # before the descent: from here it can be gone on with
            save(work / "plateau.pt", student, average, optimiser, step)


def share_gradients(student: nn.Module, world: int) -> None:
    """Puts the mean over all processes in place of every gradient."""
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    parts = (flat / world).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train_process(rank: int, world: int, work: Path, steps: int, batch: int, peak: float) -> None:
    """One of several processes on one machine without a GPU."""
    torch.set_num_threads(1)
    meeting = f"file://{(work / 'meeting').resolve()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    train(work, steps=steps, batch=batch, peak=peak, device="cpu", rank=rank, world=world)
    dist.destroy_process_group()


def save(
    file: Path, student: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int
) -> None:
    part = file.with_suffix(".part")
    torch.save(
        {
            "student": student.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        part,
    )
    part.rename(file)


def follow(average: nn.Module, student: nn.Module, step: int) -> None:
    """Moves the average towards the student; statistics of batch norms likewise."""
    share = max(0.004, 1 / (step + 1))
    with torch.no_grad():
        for old, new in (
            (list(average.parameters()), list(student.parameters())),
            (list(average.buffers()), list(student.buffers())),
        ):
            moving = [k for k, tensor in enumerate(old) if tensor.is_floating_point()]
            torch._foreach_lerp_([old[k] for k in moving], [new[k] for k in moving], share)


def export(checkpoint: Path, held: Path, out: Path) -> None:
    """Writes the ear as float16 with rows of mean 0 and spread 1 over held-out sound.

    Batch norms and biases stay float32; the last layer takes the shift and the scale.
    """
    student = Student()
    student.load_state_dict(
        torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
    )
    ear = student.ear.eval()
    with np.load(held) as file, torch.inference_mode():
        mel = torch.from_numpy(file["mel"][::3]).float().flatten(0, 1)
        rows = torch.cat([ear(part) for part in mel.split(64)])
    mean, std = rows.mean(0), rows.std(0)
    with torch.no_grad():
        ear.embedding.weight.div_(std[:, None])
        ear.embedding.bias.sub_(mean).div_(std)
    kept = {}
    for name, value in ear.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            matrix = value.dim() > 1
            kept[name] = (value.half() if matrix else value.float()).contiguous()
    if not all(torch.isfinite(value).all() for value in kept.values()):
        raise SystemExit("a weight is beyond float16")
    save_file(kept, out)
    print(f"{out}: {out.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of make_ear_corpus.py")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=110, help="of 400 windows each")
    parser.add_argument("--steps", type=int, default=11_000)
    parser.add_argument("--batch", type=int, default=24, help="windows of five segments")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that train, without a GPU")
    parser.add_argument("--only", choices=("base", "shards", "train", "export"), default=None)
    parser.add_argument("--first-shard", type=int, default=0)
    parser.add_argument("--without", default="fold4", help="a split that is not trained on")
    parser.add_argument(
        "--out", type=Path, default=Path("extractors/weights/vggish_small.safetensors")
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.only in (None, "base", "shards"):
        corpus, teacher = Corpus(args.work), Teacher(args.teacher, device)
        hear_base(corpus, teacher, args.work / "base.npz")
        make_held(corpus, teacher, args.work / "held.npz")
        if args.only != "base":
            mixer = Mixer(corpus, args.work / "base.npz", without=args.without)
            folder = args.work / "shards"
            make_shards(mixer, teacher, folder, shards=range(args.first_shard, args.shards))
    if args.only in (None, "train"):
        if device == "cpu" and args.processes > 1:
            (args.work / "meeting").unlink(missing_ok=True)
            world, each = args.processes, args.batch // args.processes
            spawn(train_process, (world, args.work, args.steps, each, args.rate), nprocs=world)
        else:
            train(args.work, steps=args.steps, batch=args.batch, peak=args.rate, device=device)
    if args.only in (None, "export"):
        export(args.work / "student.pt", args.work / "held.npz", args.out)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
