"""Sound: the right tone, at the right time, at the right level."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from media import draw_clip, join, truncate
from numpy.typing import NDArray

from vtag.decode import DecodeReport, probe
from vtag.errors import MediaError
from vtag.records import Sound
from vtag.sound import SAMPLE_RATE_HZ, read_sound


def listen(path: Path, **arguments: float) -> tuple[NDArray[np.float32], float, list[Sound]]:
    """All samples, their start, and their windows, which are checked to be seamless."""
    windows = list(read_sound(probe(path), **arguments))
    for before, after in pairwise(windows):
        end = before.start + len(before.samples) / SAMPLE_RATE_HZ
        assert after.start == pytest.approx(end, abs=1e-9)
    return np.concatenate([w.samples for w in windows]), windows[0].start, windows


def loudest_hz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * SAMPLE_RATE_HZ / len(samples))


def amplitude(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(2 * np.mean(samples.astype(float) ** 2)))


def onset(samples: NDArray[np.float32], *, start: float, after: float = 0.0) -> float:
    """When the sound first exceeds a tenth of full scale."""
    first = round(max(0.0, after - start) * SAMPLE_RATE_HZ)
    return start + (first + int(np.flatnonzero(np.abs(samples[first:]) > 0.1)[0])) / SAMPLE_RATE_HZ


FORMATS = {
    "aac mono": ("c.mp4", {"rate_hz": 48_000}),
    "aac stereo 44.1 kHz": ("c.mp4", {"layout": "stereo", "rate_hz": 44_100}),
    "aac 5.1": ("c.mp4", {"layout": "5.1"}),
    "aac 8 kHz": ("c.mp4", {"rate_hz": 8_000}),
    "opus": ("c.webm", {"codec": None, "layout": "stereo"}),
    "mp3": ("c.mp3", {"codec": None, "layout": "stereo", "rate_hz": 44_100}),
    "wav": ("c.wav", {"codec": None, "layout": "stereo", "rate_hz": 16_000}),
    "flac": ("c.flac", {"codec": None, "rate_hz": 96_000}),
    "mp3 in avi": ("c.avi", {"codec": "mpeg4", "rate_hz": 44_100}),
    "aac in ts": ("c.ts", {"layout": "stereo"}),
    "mp2 in ps": ("c.mpg", {"codec": "mpeg2video", "layout": "stereo"}),
    "aac in flv": ("c.flv", {"rate_hz": 44_100}),
    "pcm in mkv": ("c.mkv", {"sound_codec": "pcm_s16le", "layout": "5.1"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_tone_keeps_its_pitch_level_and_length(name: str, tmp_path: Path) -> None:
    suffix, arguments = FORMATS[name]
    path = draw_clip(tmp_path / suffix, seconds=3, tone_hz=1000.0, **arguments)  # type: ignore[arg-type]
    samples, start, _ = listen(path)
    assert samples.dtype == np.float32
    assert loudest_hz(samples[8000:40000]) == pytest.approx(1000, abs=1)
    # 0.5 on every channel is 0.5 in the mix: channels are averaged, not added up. (Added up
    # they would be 0.7 or 1; LAME itself turns everything down by 5 %.)
    assert amplitude(samples[8000:40000]) == pytest.approx(0.5, abs=0.03)
    assert start == pytest.approx(0, abs=0.05)
    assert start + len(samples) / SAMPLE_RATE_HZ == pytest.approx(3, abs=0.1)
    assert np.abs(samples).max() <= 1


def test_windows_have_equal_length_and_miss_nothing(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.wav", codec=None, seconds=3.3, tone_hz=440.0, rate_hz=16_000)
    samples, _, windows = listen(path, window_seconds=0.96)
    assert [len(w.samples) for w in windows] == [15_360] * 3 + [52_800 - 3 * 15_360]
    # At the same rate nothing is resampled: 16 bits of the sine that was drawn.
    drawn = 0.5 * np.sin(2 * np.pi * 440 * np.arange(52_800) / 16_000)
    assert np.abs(samples - drawn).max() < 1e-4


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts"])
def test_sound_later_than_the_picture_starts_later(name: str, tmp_path: Path) -> None:
    path = draw_clip(tmp_path / name, tone_hz=440.0, sound_start=1.5, sound_seconds=2.0)
    samples, start, _ = listen(path)
    assert onset(samples, start=start) == pytest.approx(1.5, abs=0.03)
    assert probe(path).first_picture_seconds == 0


def test_the_picture_later_than_the_sound_starts_later(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.mkv", start=2.0, tone_hz=440.0)
    samples, start, _ = listen(path)
    assert onset(samples, start=start) == pytest.approx(0, abs=0.03)
    assert probe(path).first_picture_seconds == pytest.approx(2.0, abs=0.03)


def test_the_run_in_of_the_encoder_is_not_sound(tmp_path: Path) -> None:
    # AAC puts 1024 samples before the first one, 0.128 s at 8 kHz; the file says to drop them.
    probed = probe(draw_clip(tmp_path / "c.mp4", tone_hz=440.0, rate_hz=8_000))
    assert probed.first_picture_seconds == 0
    assert next(read_sound(probed)).start == 0
    # LAME puts 1105 samples before the first one and says so in its own header.
    song = draw_clip(tmp_path / "c.mp3", codec=None, seconds=2, tone_hz=440.0, rate_hz=8_000)
    assert next(read_sound(probe(song))).start == pytest.approx(0, abs=1e-4)


def test_a_start_less_than_a_tenth_of_a_second_apart_is_the_same_start(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.mkv", start=0.04, tone_hz=440.0)
    assert probe(path).first_picture_seconds == 0
    samples, start, _ = listen(path)
    # The sound before the first picture is dropped: times are never negative.
    assert start == 0
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(4.0 - 0.04, abs=0.03)


def test_a_gap_is_filled_with_silence(tmp_path: Path) -> None:
    path = draw_clip(
        tmp_path / "c.mkv", seconds=4, tone_hz=440.0, sound_gap=(1.0, 1.5), sound_codec="pcm_s16le"
    )
    samples, start, _ = listen(path)
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(4.0, abs=0.05)
    assert np.abs(samples[round(1.1 * SAMPLE_RATE_HZ) : round(2.4 * SAMPLE_RATE_HZ)]).max() == 0
    assert onset(samples, start=start, after=1.1) == pytest.approx(2.5, abs=0.03)


def test_a_very_long_gap_is_skipped_and_the_next_window_says_so(tmp_path: Path) -> None:
    path = draw_clip(
        tmp_path / "c.mkv",
        seconds=100,
        fps=0.1,
        tone_hz=440.0,
        sound_gap=(2.0, 90.0),
        sound_codec="pcm_s16le",
        rate_hz=16_000,
    )
    windows = list(read_sound(probe(path), window_seconds=9.6))
    assert [round(w.start, 1) for w in windows] == [0.0, 92.0]
    assert sum(len(w.samples) for w in windows) / SAMPLE_RATE_HZ == pytest.approx(10, abs=0.2)


def test_channels_that_change_in_the_middle(tmp_path: Path) -> None:
    stereo = draw_clip(tmp_path / "a.ts", seconds=2, tone_hz=440.0, layout="stereo")
    surround = draw_clip(tmp_path / "b.ts", seconds=2, tone_hz=880.0, layout="5.1", rate_hz=44_100)
    samples, _, _ = listen(join([stereo, surround], tmp_path / "c.ts"))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(4.0, abs=0.2)
    assert loudest_hz(samples[4000:28000]) == pytest.approx(440, abs=2)
    assert loudest_hz(samples[-24000:-4000]) == pytest.approx(880, abs=2)


def test_no_sound_is_no_window(tmp_path: Path) -> None:
    assert list(read_sound(probe(draw_clip(tmp_path / "c.mp4", seconds=0.4)))) == []


def test_sound_only(tmp_path: Path) -> None:
    media = probe(draw_clip(tmp_path / "c.wav", codec=None, seconds=2, tone_hz=440.0)).media
    assert (media.has_video, media.has_audio, media.fps) == (False, True, None)
    assert media.duration == pytest.approx(2.0)


def test_damaged_sound_is_counted_and_the_rest_is_heard(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.mp3", codec=None, seconds=4, tone_hz=440.0, rate_hz=44_100)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    report = DecodeReport()
    samples = np.concatenate([w.samples for w in read_sound(probe(path), report=report)])
    assert 3.5 < len(samples) / SAMPLE_RATE_HZ < 4.2
    assert loudest_hz(samples[-24000:-4000]) == pytest.approx(440, abs=2)


def test_a_cut_off_recording_is_heard_up_to_the_cut(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.wav", codec=None, seconds=4, tone_hz=440.0, rate_hz=16_000)
    samples, _, _ = listen(truncate(path, 0.5))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(2.0, abs=0.1)


def test_sound_that_can_not_be_decoded_says_so(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.mp4", codec=None, seconds=2, tone_hz=440.0)
    data = path.read_bytes()
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big") - 8
    path.write_bytes(data[: at + 4] + b"\xff" * size + data[at + 4 + size :])
    with pytest.raises(MediaError) as caught:
        list(read_sound(probe(path)))
    assert caught.value.stage == "audio"


def test_a_header_with_an_absurd_rate_does_not_become_hours(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.wav", codec=None, seconds=2, tone_hz=440.0, rate_hz=16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 8 + 4  # sample rate, in the header of RIFF WAVE
    data[at : at + 4] = (1).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(MediaError, match="sound of 1 Hz is not read") as caught:
        list(read_sound(probe(path)))
    assert (caught.value.code, caught.value.stage) == ("unsupported_codec", "audio")


def test_less_sound_than_the_resampler_needs_says_so(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.wav", codec=None, seconds=0.001, tone_hz=440.0, rate_hz=96_000)
    with pytest.raises(MediaError, match="about 1 ms") as caught:
        list(read_sound(probe(path)))
    assert (caught.value.code, caught.value.stage) == ("no_video_no_audio", "audio")


def test_channels_that_no_layout_has_a_name_for(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.wav", codec=None, seconds=2, tone_hz=440.0, layout="stereo")
    data = bytearray(path.read_bytes())
    at = data.index(b"fmt ") + 8 + 2  # number of channels, then the bytes of one sample of all
    data[at : at + 2] = (60).to_bytes(2, "little")
    data[at + 10 : at + 12] = (120).to_bytes(2, "little")
    path.write_bytes(data)
    report = DecodeReport()
    with pytest.raises(MediaError, match="sound of 60 channels") as caught:
        list(read_sound(probe(path), report=report))
    assert (caught.value.code, caught.value.stage) == ("unsupported_codec", "audio")
    assert report.corrupt_frames > 0
