"""Draws the windows that vggish_small learns from, and lets the teacher hear them.

The part of make_ear.py before the training. One to three recordings of make_ear_corpus.py, moved
in time, pitch and level, in noise, in a room or in a narrow band: 4.815 s, five segments. The
teacher hears the whole window and, so that *when* is learnt too, its first and last 2.895 s.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import nn

from vtag.extractors.log_mel import HOP_SAMPLES, WINDOW_SAMPLES, log_mel_segments

RATE_HZ: Final = 32_000
SEGMENTS: Final = 5
CLASSES: Final = 527
# Which rows of a window each of the three targets is about.
PARTS: Final = ((0, 5), (0, 3), (2, 5))
SHARD: Final = 400  # windows
GROUP_SHARES: Final = {
    "environment": 0.20, "effects": 0.30, "speech": 0.16, "music": 0.14, "instruments": 0.20,
}  # fmt: skip

Floats = NDArray[np.float32]


def samples_of(segments: int) -> int:
    """How many samples at 32 kHz so many segments take."""
    return 2 * (WINDOW_SAMPLES + (segments - 1) * HOP_SAMPLES)


WINDOW: Final = samples_of(SEGMENTS)


class Teacher:
    """Waves float32 [B, N] at 32 kHz to (logits [B, 527], embeddings [B, 384])."""

    def __init__(self, folder: Path, device: str) -> None:
        spec = importlib.util.spec_from_file_location("teacher", folder / "audioset_mn04.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        state = torch.load(folder / "audioset_mn04.pt", map_location="cpu", weights_only=True)
        self.network: nn.Module = module.MNAudio(state).eval().to(device)
        self.device = device

    def __call__(self, waves: Floats) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            logits, rows = self.network(torch.from_numpy(waves).to(self.device))
        return logits.float().cpu().numpy(), rows.float().cpu().numpy()


@dataclass(frozen=True)
class Clip:
    """A line of clips.jsonl."""

    source: str
    file: str
    group: str
    split: str
    start: int
    length: int
    label: str = ""


class Corpus:
    """What make_ear_corpus.py has made."""

    def __init__(self, work: Path) -> None:
        lines = (work / "clips.jsonl").read_text().splitlines()
        self.clips = [Clip(**json.loads(line)) for line in lines]
        self.samples = np.memmap(work / "corpus.i16", np.int16, "r")

    def wave(self, clip: Clip, first: int = 0, count: int = WINDOW) -> Floats:
        """float32 [<= count] in [-1, 1]."""
        end = min(first + count, clip.length)
        piece = self.samples[clip.start + first : clip.start + end]
        return piece.astype(np.float32) / 32768


def log_mel(wave: Floats) -> NDArray[np.float16]:
    """float16 [5, 96, 64] of one window at 32 kHz."""
    half = resample_poly(wave, 1, 2).astype(np.float32)
    return log_mel_segments(torch.from_numpy(half)).numpy().astype(np.float16)


def targets(teacher: Teacher, waves: Floats) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """(logits [B, 3, 527], embeddings [B, 3, 384]) for the three PARTS."""
    hop = 2 * HOP_SAMPLES
    heard = [
        teacher(np.ascontiguousarray(waves[:, a * hop : a * hop + samples_of(b - a)]))
        for a, b in PARTS
    ]
    logits, rows = (np.stack(x, axis=1).astype(np.float16) for x in zip(*heard, strict=True))
    return logits, rows


def padded(wave: Floats, rng: np.random.Generator, *, repeat: bool) -> Floats:
    """[WINDOW]: a short recording somewhere in silence, once or several times."""
    if len(wave) >= WINDOW:
        return wave[:WINDOW]
    out, at = np.zeros(WINDOW, np.float32), int(rng.integers(0, WINDOW - len(wave) + 1))
    if repeat:
        at = int(rng.integers(0, min(at + 1, RATE_HZ)))
    while at < WINDOW:
        piece = wave[: WINDOW - at]
        out[at : at + len(piece)] = piece
        if not repeat:
            break
        at += len(wave) + int(rng.exponential(0.4) * RATE_HZ * rng.integers(0, 2))
    return out


def base_windows(corpus: Corpus, *, held: bool) -> list[tuple[int, int]]:
    """(clip, first sample) of what is heard once: every 4.8 s, at most six a recording."""
    out = []
    for number, clip in enumerate(corpus.clips):
        if (clip.split in ("held", "fold4")) == held:
            starts = list(range(0, max(1, clip.length - WINDOW // 2), WINDOW))
            keep = np.linspace(0, len(starts) - 1, min(6, len(starts))).astype(int)
            out += [(number, starts[k]) for k in keep]
    return out


def hear_base(corpus: Corpus, teacher: Teacher, file: Path) -> None:
    """Step 1: the teacher's logits of what is to be trained on."""
    if file.exists():
        return
    rng, windows, logits = np.random.default_rng(1), base_windows(corpus, held=False), []
    for first in range(0, len(windows), 16):
        some = windows[first : first + 16]
        waves = np.stack(
            [padded(corpus.wave(corpus.clips[c], s), rng, repeat=False) for c, s in some]
        )
        logits.append(teacher(waves)[0].astype(np.float16))
        if first % 1600 == 0:
            print(f"base {first} of {len(windows)}", flush=True)
    np.savez(file, windows=np.array(windows), logits=np.concatenate(logits))


def chances(corpus: Corpus, windows: NDArray[np.int64], logits: Floats) -> NDArray[np.float64]:
    """How often each base window is drawn: rare classes more often, groups by their share."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    p[p < 0.05] = 0
    count = p.sum(0) + 3
    weight = (p / count**0.8).sum(1) + 1e-3
    groups = np.array([corpus.clips[c].group for c, _ in windows])
    for group, share in GROUP_SHARES.items():
        here = groups == group
        capped = np.minimum(weight[here], 8 * weight[here].mean())
        weight[here] = share * capped / capped.sum()
    return weight / weight.sum()


def coloured_noise(rng: np.random.Generator, count: int, slope: float) -> Floats:
    """Noise of deviation 1 whose power falls with f^-slope: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    f = np.arange(len(spectrum), dtype=np.float64)
    f[0] = np.inf
    noise = np.fft.irfft(spectrum * f ** (-slope / 2), count)
    return (noise / noise.std()).astype(np.float32)


def synthetic(rng: np.random.Generator) -> Floats:
    """Silence, noise, tones, sweeps and clicks."""
    t = np.arange(WINDOW) / RATE_HZ
    kind = rng.integers(0, 7)
    if kind == 0:
        return np.zeros(WINDOW, np.float32)
    if kind in (1, 2):
        return coloured_noise(rng, WINDOW, float(rng.choice((0, 1, 2)))) * 0.2
    if kind == 3:
        return coloured_noise(rng, WINDOW, 1.0) * 10 ** float(rng.uniform(-5, -3))
    if kind == 4:
        return (0.3 * np.sin(2 * np.pi * np.exp(rng.uniform(4.6, 8.8)) * t)).astype(np.float32)
    if kind == 5:
        low, high = sorted(np.exp(rng.uniform(4.6, 8.8, 2)))
        slow = (1 + np.sin(2 * np.pi * rng.uniform(0.1, 4) * t)) / 2
        phase = 2 * np.pi * np.cumsum(low + (high - low) * slow) / RATE_HZ
        return (0.3 * np.sin(phase)).astype(np.float32)
    clicks = np.zeros(WINDOW, np.float32)
    clicks[:: int(rng.uniform(0.02, 1.2) * RATE_HZ)] = 0.9
    return clicks


def stretched(wave: Floats, rng: np.random.Generator) -> Floats:
    """Played up to 20 % faster or slower, pitch included."""
    if rng.random() > 0.35 or len(wave) < 100:
        return wave
    factor = float(np.exp(rng.uniform(-0.18, 0.18)))
    places = np.arange(0, len(wave) - 1, factor)
    return np.interp(places, np.arange(len(wave)), wave).astype(np.float32)


def level(wave: Floats) -> float:
    """Root of the mean square where there is sound at all."""
    square = np.square(wave[: len(wave) // 320 * 320].reshape(-1, 320)).mean(1)
    loud = square[square > 0.01 * square.max()] if square.size else square
    return float(np.sqrt(loud.mean())) if loud.size else 0.0


def coloured(wave: Floats, rng: np.random.Generator) -> Floats:
    """A room, a narrow band, or neither."""
    if rng.random() < 0.12:
        seconds = rng.uniform(0.1, 0.8)
        tail = rng.standard_normal(int(seconds * RATE_HZ)) * np.exp(
            -6.9 * np.arange(int(seconds * RATE_HZ)) / (seconds * RATE_HZ)
        )
        size = 1 << 18
        wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]
        wet = wet * (level(wave) / (level(wet.astype(np.float32)) + 1e-9))
        wave = (wave + rng.uniform(0.2, 1.0) * wet).astype(np.float32)
    if rng.random() < 0.2:
        spectrum = np.fft.rfft(wave)
        hz = np.arange(len(spectrum)) * RATE_HZ / len(wave)
        low, high = 0.0, math.inf
        if rng.random() < 0.75:
            high = rng.uniform(2500, 7500)
        if rng.random() < 0.4:
            low = rng.uniform(60, 500)
        slope = np.clip((hz - low) / 60 + 1, 0, 1) * np.clip((high - hz) / 400 + 1, 0, 1)
        wave = np.fft.irfft(spectrum * slope, len(wave)).astype(np.float32)
    return wave


class Mixer:
    """Draws training windows."""

    def __init__(self, corpus: Corpus, file: Path, *, without: str) -> None:
        with np.load(file) as base:
            self.corpus, self.windows, logits = corpus, base["windows"], base["logits"]
        logits = logits.reshape(len(logits), -1)[:, :CLASSES]
        allowed = np.array([corpus.clips[c].split != without for c, _ in self.windows])
        self.chance = chances(corpus, self.windows, logits) * allowed
        self.chance /= self.chance.sum()

    def recording(self, rng: np.random.Generator) -> Floats:
        """[WINDOW] of one recording."""
        number, first = self.windows[rng.choice(len(self.windows), p=self.chance)]
        clip = self.corpus.clips[number]
        spare = max(0, clip.length - WINDOW)
        first = int(np.clip(first + rng.integers(-WINDOW // 2, WINDOW // 2), 0, spare))
        wave = stretched(self.corpus.wave(clip, first, int(1.25 * WINDOW)), rng)
        return padded(wave, rng, repeat=bool(rng.random() < 0.5))

    def window(self, rng: np.random.Generator) -> Floats:
        """[WINDOW], in [-1, 1], with the steps of 16 bits."""
        if rng.random() < 0.03:
            return synthetic(rng)
        wave = self.recording(rng)
        for chance in (0.42, 0.2):
            if rng.random() > chance:
                break
            other = self.recording(rng)
            if rng.random() < 0.4:  # it begins or ends within the window
                cut = int(rng.integers(WINDOW // 5, WINDOW * 4 // 5))
                other[slice(None, cut) if rng.random() < 0.5 else slice(cut, None)] = 0
            gain = level(wave) / (level(other) + 1e-6) * 10 ** (rng.uniform(-18, 6) / 20)
            wave = wave + min(gain, 30.0) * other
        wave = coloured(wave, rng)
        if rng.random() < 0.25:
            noise = coloured_noise(rng, WINDOW, float(rng.uniform(0, 2)))
            wave = wave + noise * (level(wave) * 10 ** (rng.uniform(-45, -6) / 20))
        peak = float(np.abs(wave).max()) + 1e-9
        wanted = 10 ** (rng.uniform(-30, 0) / 20) if rng.random() < 0.8 else 1.5
        wave = np.clip(wave * (wanted / peak), -1, 1)
        return np.round(wave * 32767).astype(np.float32) / 32768


def make_shards(
    mixer: Mixer, teacher: Teacher, folder: Path, *, shards: range, seed: int = 7
) -> None:
    """Step 2: shards of training windows; each has its own seed."""
    folder.mkdir(exist_ok=True)
    for number in shards:
        file = folder / f"{number:04}.npz"
        if file.exists():
            continue
        began, rng = time.monotonic(), np.random.default_rng((seed, number))
        mel, logits, rows = [], [], []
        for _ in range(SHARD // 16):
            waves = np.stack([mixer.window(rng) for _ in range(16)])
            part_logits, part_rows = targets(teacher, waves)
            logits.append(part_logits)
            rows.append(part_rows)
            mel.append(np.stack([log_mel(wave) for wave in waves]))
        arrays = {"mel": mel, "logits": logits, "rows": rows}
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            np.savez(out, **{k: np.concatenate(v) for k, v in arrays.items()})
        part.rename(file)
        print(f"shard {number}: {time.monotonic() - began:.0f} s", flush=True)


def make_held(corpus: Corpus, teacher: Teacher, file: Path) -> None:
    """Held-out windows, unmixed, with the teacher's targets."""
    if file.exists():
        return
    rng = np.random.default_rng(2)
    windows = base_windows(corpus, held=True)
    mel, logits, rows = [], [], []
    for first in range(0, len(windows), 16):
        waves = np.stack(
            [
                padded(corpus.wave(corpus.clips[c], s), rng, repeat=False)
                for c, s in windows[first : first + 16]
            ]
        )
        part_logits, part_rows = targets(teacher, waves)
        logits.append(part_logits)
        rows.append(part_rows)
        mel.append(np.stack([log_mel(wave) for wave in waves]))
    arrays = {"mel": mel, "logits": logits, "rows": rows}
    joined = {k: np.concatenate(v) for k, v in arrays.items()}
    np.savez(file, windows=np.array(windows), **joined)
    print(f"{len(windows)} held-out windows", flush=True)
