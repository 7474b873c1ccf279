"""The log-mel spectrogram against VGGish's own numbers and a slow second way to make it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtag.extractors.log_mel import (
    HOP_SAMPLES,
    WINDOW_SAMPLES,
    log_mel_segments,
    mel_matrix,
    segments_in,
    to_mono_16_khz,
)


def seconds(length: float) -> Tensor:
    return torch.arange(round(length * 16_000), dtype=torch.float64) / 16_000


def slow_log_mel(wave: np.ndarray) -> np.ndarray:
    """Frame by frame, band by band, in float64, from the description of mel_features.py."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    low, high = mel(125.0), mel(7500.0)
    step = (high - low) / 65
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = 1 + (len(wave) - 400) // 160
    segments = 1 + (frames - 96) // 96
    out = np.empty((segments * 96, 64))
    for t in range(segments * 96):
        padded = np.zeros(512)
        padded[:400] = wave[t * 160 : t * 160 + 400] * window
        magnitude = np.abs(np.fft.rfft(padded))
        for band in range(64):
            centre = low + (band + 1) * step
            total = 0.0
            for k in range(1, 257):
                weight = 1 - abs(mel(k * 31.25) - centre) / step
                total += max(0.0, weight) * magnitude[k]
            out[t, band] = math.log(total + 0.01)
    return out.reshape(segments, 96, 64)


class TestAgainstGooglesCode:
    """Numbers of mel_features.log_mel_spectrogram (tensorflow/models research/audioset/vggish)
    and of an independent float64 version that agrees with it to six decimals."""

    def test_three_seconds_of_a_1_khz_tone(self) -> None:
        mel = log_mel_segments(torch.sin(2 * math.pi * 1000 * seconds(3)).float())
        assert mel.shape == (3, 96, 64)
        found = [mel.mean(), mel.std(correction=0), mel.min(), mel.max()]
        assert found == pytest.approx([-3.429619, 2.126577, -4.601163, 4.811118], abs=1e-3)
        assert mel[0, 0, [0, 19, 20, 63]].tolist() == pytest.approx(
            [-4.48313, 4.81112, 4.77504, -4.60116], abs=1e-3
        )

    def test_three_seconds_of_a_chirp(self) -> None:
        t = seconds(3)
        mel = log_mel_segments(torch.sin(2 * math.pi * (100 * t + 1300 * t**2)).float())
        found = [mel.mean(), mel.std(correction=0), mel.min(), mel.max()]
        assert found == pytest.approx([-3.823824, 1.961084, -4.605136, 5.528218], abs=1e-3)

    def test_silence_is_the_logarithm_of_the_offset(self) -> None:
        mel = log_mel_segments(torch.zeros(16_000))
        assert mel.unique().tolist() == pytest.approx([math.log(0.01)])

    def test_mel_matrix(self) -> None:
        matrix = mel_matrix()
        assert matrix.shape == (257, 64)
        assert matrix.sum().item() == pytest.approx(230.9136, abs=1e-3)
        assert matrix.max().item() == pytest.approx(0.99619, abs=1e-5)
        used = matrix.any(dim=1).nonzero().flatten()
        assert (used.min(), used.max()) == (5, 239)

    @pytest.mark.parametrize(
        ("samples", "segments"),
        [(15_600, 1), (16_000, 1), (30_959, 1), (30_960, 2), (160_000, 10), (480_000, 31)],
    )
    def test_how_many_segments(self, samples: int, segments: int) -> None:
        assert segments_in(samples) == segments
        assert len(log_mel_segments(torch.zeros(samples))) == segments


def test_equals_the_slow_way() -> None:
    t = np.arange(31_000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 5000 * t**2)
    found = log_mel_segments(torch.from_numpy(wave).float())
    np.testing.assert_allclose(found.numpy(), slow_log_mel(wave), atol=1e-3)


def test_short_sound_is_filled_up_with_zeros() -> None:
    wave = torch.sin(2 * math.pi * 700 * seconds(0.5)).float()
    filled = torch.cat([wave, torch.zeros(WINDOW_SAMPLES - len(wave))])
    torch.testing.assert_close(log_mel_segments(wave), log_mel_segments(filled), rtol=0, atol=0)


def test_no_sound_gives_no_segment() -> None:
    assert log_mel_segments(torch.zeros(0)).shape == (0, 96, 64)


@settings(max_examples=15)
@given(start=st.integers(0, 69), count=st.integers(1, 70))
def test_a_segment_depends_on_its_own_window_only(start: int, count: int) -> None:
    # 70 segments and not 64: the blocks inside must not show at their seam.
    generator = torch.Generator().manual_seed(5)
    wave = torch.rand(69 * HOP_SAMPLES + WINDOW_SAMPLES, generator=generator) - 0.5
    count = min(count, 70 - start)
    piece = wave[start * HOP_SAMPLES :][: (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
    whole = log_mel_segments(wave)
    torch.testing.assert_close(log_mel_segments(piece), whole[start : start + count])


@pytest.mark.parametrize("wave", [torch.zeros(2, 16_000), torch.zeros(16_000).double()])
def test_other_shapes_and_types_are_refused(wave: Tensor) -> None:
    with pytest.raises(ValueError, match=r"wave must be float32 \[N\]"):
        log_mel_segments(wave)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_sound_of_other_rates_keeps_its_pitch_and_length(rate_hz: int) -> None:
    # Physics: a tone keeps its frequency and amplitude, and two equal channels their sum.
    t = torch.arange(2 * rate_hz) / rate_hz
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * t)
    found = to_mono_16_khz(torch.stack([tone, tone]), rate_hz)
    assert found.shape == (32_000,)
    expected = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(32_000) / 16_000)
    inner = slice(500, -500)  # the filter sees silence before the first and after the last sample
    torch.testing.assert_close(found[inner], expected[inner], atol=5e-3, rtol=0)


def test_what_16_khz_can_not_hold_is_filtered_out() -> None:
    t = torch.arange(48_000) / 48_000
    assert to_mono_16_khz(torch.sin(2 * math.pi * 11_000 * t), 48_000)[500:-500].abs().max() < 0.01


def test_sound_that_is_no_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="wave must be float"):
        to_mono_16_khz(torch.zeros(10, dtype=torch.int16), 8_000)
    with pytest.raises(ValueError, match="rate_hz"):
        to_mono_16_khz(torch.zeros(10), 0)
