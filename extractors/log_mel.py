"""VGGish's log-mel spectrogram: sound to pictures of 96 steps in time and 64 bands.

Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017; constants
of vggish_params.py and mel_features.py in tensorflow/models, research/audioset/vggish.
torchaudio's MelSpectrogram can not stand in for it: it centres the window inside the FFT
buffer, which shifts every frame by 3.5 ms and loses the last one.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import torch
from torch import Tensor

RATE_HZ: Final = 16_000
FRAME_SAMPLES: Final = 400  # 25 ms
STEP_SAMPLES: Final = 160  # 10 ms
FFT_SAMPLES: Final = 512
BANDS: Final = 64
LOWEST_HZ: Final = 125.0
HIGHEST_HZ: Final = 7500.0
LOG_OFFSET: Final = 0.01  # keeps silence finite: log(0.01) = -4.605

SEGMENT_FRAMES: Final = 96
HOP_SAMPLES: Final = SEGMENT_FRAMES * STEP_SAMPLES  # 15 360: segments do not overlap
WINDOW_SAMPLES: Final = HOP_SAMPLES + FRAME_SAMPLES - STEP_SAMPLES  # 15 600: all 96 frames whole

_SEGMENTS_AT_ONCE: Final = 64  # a minute: 12 MB of frames, however long the sound


def segments_in(samples: int) -> int:
    """S, how many segments sound of so many samples gives.

    >>> [segments_in(n) for n in (0, 1, 15_600, 30_959, 30_960)]
    [0, 1, 1, 1, 2]
    """
    if samples < WINDOW_SAMPLES:
        return min(samples, 1)
    return 1 + (samples - WINDOW_SAMPLES) // HOP_SAMPLES


def to_mono_16_khz(wave: Tensor, rate_hz: int) -> Tensor:
    """float32 [N'], mono at 16 kHz, what the sound extractors take: N' = ceil(N * 16000 / rate_hz).

    For sound that is in memory already; a file's sound is resampled where it is decoded.

    Args:
        wave: float [N] or [channels, N] in [-1, 1].
        rate_hz: samples per second of `wave`.

    Raises:
        ValueError: `wave` or the rate is something else.
    """
    if not wave.is_floating_point() or wave.dim() not in (1, 2):
        raise ValueError(
            f"wave must be float [N] or [channels, N], got {wave.dtype} {tuple(wave.shape)}"
        )
    if rate_hz < 1:
        raise ValueError(f"rate_hz must be 1 or more, got {rate_hz}")
    # Imported here: it takes a while, and most never need it.
    from torchaudio.functional import resample

    mono = wave.float() if wave.dim() == 1 else wave.float().mean(dim=0)
    resampled: Tensor = resample(mono, rate_hz, RATE_HZ)
    return resampled


def log_mel_segments(wave: Tensor) -> Tensor:
    """log(mel + 0.01), natural, of every whole segment: float32 [S, 96, 64] = (time, band).

    Sound shorter than 15 600 samples (0.975 s) is filled up with zeros to one segment, where
    Google's code gives none; a rest behind the last whole segment is left out, as there.

    Args:
        wave: float32 [N] in [-1, 1], mono, 16 kHz.

    Raises:
        ValueError: `wave` is something else.
    """
    if wave.dtype != torch.float32 or wave.dim() != 1:
        raise ValueError(f"wave must be float32 [N], got {wave.dtype} {tuple(wave.shape)}")
    segments = segments_in(len(wave))
    if 0 < len(wave) < WINDOW_SAMPLES:
        wave = torch.nn.functional.pad(wave, (0, WINDOW_SAMPLES - len(wave)))
    window = torch.hann_window(FRAME_SAMPLES, periodic=True, device=wave.device)
    mel = mel_matrix().to(wave.device)
    out = wave.new_empty(segments, SEGMENT_FRAMES, BANDS)
    for first in range(0, segments, _SEGMENTS_AT_ONCE):
        count = min(_SEGMENTS_AT_ONCE, segments - first)
        start = first * HOP_SAMPLES
        piece = wave[start : start + (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
        frames = piece.unfold(0, FRAME_SAMPLES, STEP_SAMPLES) * window  # [count * 96, 400]
        magnitude = torch.fft.rfft(frames, n=FFT_SAMPLES).abs()  # zeros are put behind the frame
        bands = (magnitude @ mel).add_(LOG_OFFSET).log_()
        out[first : first + count] = bands.view(count, SEGMENT_FRAMES, BANDS)
    return out


@functools.lru_cache(maxsize=1)
def mel_matrix() -> Tensor:
    """float32 [257, 64]: how much each FFT bin counts in each band.

    Triangles with peak 1 whose sides are straight on the mel scale (not in Hz, as in most
    libraries); the bin at 0 Hz counts nowhere. Read only: every caller gets the same tensor.
    """
    edges = torch.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    hz = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * RATE_HZ / FFT_SAMPLES
    bins = torch.tensor([_mel(f) for f in hz.tolist()], dtype=torch.float64)[:, None]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    return torch.minimum(rising, falling).clamp_min(0).float()


def _mel(hz: float) -> float:
    """HTK's mel scale."""
    return 1127.0 * math.log1p(hz / 700.0)
