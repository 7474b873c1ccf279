"""The right pictures at the right times: every clip is drawn here and carries its own numbers.

Which number is expected at a time comes from the times the clip was drawn with, by a loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from typing import Literal

import av
import av.error
import numpy as np
import pytest
from barcode_clips import CLIPS, drawn_once, expected_numbers, joined, numbers
from media import draw_clip, flip_bytes, join, read_barcode, trim

from vtag.config import Sampling
from vtag.decode import (
    DecodeReport,
    Limits,
    Plan,
    Probe,
    choose_decoder,
    plan,
    probe,
    read_frames,
)
from vtag.errors import MediaError
from vtag.records import Frames
from vtag.stream_choice import prepare_video

Decoder = Literal["decord", "pyav"]
needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="no wheel here")


@pytest.fixture(scope="module")
def clips(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Sequence[float]]]:
    return drawn_once(tmp_path_factory)


def decode(probed: Probe, wanted: Plan, decoder: Decoder = "pyav") -> Frames:
    """All batches as one, their order and sizes checked."""
    batches = list(read_frames(probed, wanted, decoder=decoder, batch=4))
    assert [len(b.pixels) for b in batches[:-1]] == [4] * (len(batches) - 1)
    return joined(batches)


# 3.7: most targets lie inside a group, on pictures of every kind.
@pytest.mark.parametrize("frames_per_second", [1.0, 3.7])
@pytest.mark.parametrize("name", CLIPS)
def test_picture_at_time_is_the_last_one_shown(
    name: str,
    frames_per_second: float,
    clips: Callable[[str], tuple[Path, Sequence[float]]],
) -> None:
    path, shown = clips(name)
    probed = probe(path)
    wanted = plan(probed, Sampling(frames_per_second=frames_per_second))
    frames = decode(probed, wanted)
    after_first = frames.seconds - probed.first_picture_seconds
    assert after_first == pytest.approx(np.arange(len(after_first)) / frames_per_second)
    length = len(shown) * (shown[-1] - shown[0]) / (len(shown) - 1) if name != "vfr" else shown[-1]
    assert len(after_first) == int(np.ceil(length * frames_per_second - 1e-3))
    assert numbers(frames) == expected_numbers(shown, after_first.tolist(), slack=0.0006)


@needs_decord
@pytest.mark.parametrize("frames_per_second", [1.0, 3.7])
@pytest.mark.parametrize(
    "name",
    ["h264", "29.97", "long gop", "intra", "fragmented", "matroska", "vp9", "vp8", "hevc layers"],
)
def test_both_decoders_give_the_same_times_and_pixels(
    name: str,
    frames_per_second: float,
    clips: Callable[[str], tuple[Path, Sequence[float]]],
) -> None:
    probed = probe(clips(name)[0])
    assert probed.decord_fit, probed.decord_reason
    wanted = plan(probed, Sampling(frames_per_second=frames_per_second))
    ours, theirs = decode(probed, wanted), decode(probed, wanted, "decord")
    assert ours.seconds.tolist() == theirs.seconds.tolist()
    assert ours.repeats.tolist() == theirs.repeats.tolist()
    assert ours.pixels.shape == theirs.pixels.shape
    difference = (ours.pixels.astype(float) - theirs.pixels) ** 2
    assert 10 * np.log10(255**2 / max(1e-9, difference.mean(axis=(1, 2, 3)).max())) > 60


# What decord 0.6 was seen to do to each: seconds off, out of order, two pictures off, garbage.
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vfr", "variable"),
        ("open gop", "open group"),
        ("avi mpeg4", "container"),
        ("ts", "container"),
        ("av1", "codec"),
        ("turned 90", "turned"),
        ("mirrored", "mirrored"),
        ("gradual", "IDR"),
    ],
)
def test_decord_never_gets_a_file_it_reads_wrong(
    name: str, reason: str, clips: Callable[[str], tuple[Path, Sequence[float]]]
) -> None:
    probed = probe(clips(name)[0])
    assert reason in probed.decord_reason
    report = DecodeReport()
    assert choose_decoder(probed, Sampling(decoder="decord"), report=report) == "pyav"
    assert reason in report.warnings[0]
    assert choose_decoder(probed, Sampling()) == "pyav"


def test_an_edit_list_hides_what_lies_before_it(tmp_path: Path) -> None:
    # Cut at 1.3 s, without encoding: the copy starts at the key frame 24 but shows from 33 on
    # (33 / 25 = 1.32 is the first time after 1.3).
    whole = draw_clip(tmp_path / "whole.mp4")
    probed = probe(trim(whole, tmp_path / "cut.mp4", begin=1.3))
    assert "edit list" in probed.decord_reason
    frames = decode(probed, plan(probed, Sampling(frames_per_second=2)))
    assert numbers(frames) == [33, 45, 58, 70, 83, 95]
    assert frames.seconds.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


def test_joined_broadcasts_are_read_through_the_jump_of_their_clock(tmp_path: Path) -> None:
    part = draw_clip(tmp_path / "part.ts", seconds=3, tone_hz=440.0)
    probed = probe(join([part, part], tmp_path / "joined.ts"))
    assert probed.media.duration == pytest.approx(6.0, abs=0.1)
    frames = decode(probed, plan(probed, Sampling()))
    assert numbers(frames) == [0, 25, 50] * 2


@pytest.mark.parametrize("name", ["h264", "avi h264", "ts mpeg2", "vp8"])
def test_every_picture_to_the_last(
    name: str, clips: Callable[[str], tuple[Path, Sequence[float]]]
) -> None:
    # The last pictures leave the decoder only when it is told that nothing follows.
    probed = probe(clips(name)[0])
    frames = decode(probed, plan(probed, Sampling(frames_per_second=25)))
    assert numbers(frames) == list(range(100))


@needs_decord
def test_a_decord_that_counts_otherwise_is_refused(tmp_path: Path) -> None:
    # decord ignores the edit list and knows 76 pictures where 67 are shown.
    whole = draw_clip(tmp_path / "whole.mp4")
    probed = probe(trim(whole, tmp_path / "cut.mp4", begin=1.3))
    with pytest.raises(MediaError) as caught:
        decode(probed, plan(probed, Sampling()), "decord")
    assert caught.value.code == "decoder_misbehaved"


def test_a_stream_that_appears_late_does_not_end_the_others(tmp_path: Path) -> None:
    # FFmpeg looks for streams in the first 5 MB; 28000 null packets (PID 0x1fff, ISO 13818-1,
    # 2.4.3.3) push the sound of the second part behind them.
    silent = draw_clip(tmp_path / "a.ts", seconds=2)
    loud = draw_clip(tmp_path / "b.ts", seconds=2, tone_hz=440.0)
    padding = tmp_path / "nulls"
    padding.write_bytes((b"\x47\x1f\xff\x10" + b"\xff" * 184) * 28_000)
    probed = probe(join([silent, padding, loud], tmp_path / "c.ts"))
    frames = decode(probed, plan(probed, Sampling()))
    assert numbers(frames) == [0, 25] * 2


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = draw_clip(
        tmp_path / "song.mp3", seconds=1 / 25, codec="mjpeg", pix_fmt="yuvj420p",
        tone_hz=440.0, sound_seconds=2.0,
    )  # fmt: skip
    probed = probe(path)
    assert not probed.media.has_video
    assert probed.media.duration == pytest.approx(2.0, abs=0.1)
    assert list(read_frames(probed, plan(probed, Sampling()), decoder="pyav")) == []


def test_one_picture(tmp_path: Path) -> None:
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=1 / 25))
    frames = decode(probed, plan(probed, Sampling()))
    assert numbers(frames) == [0]
    assert frames.seconds.tolist() == [0]


def test_a_picture_that_stands_is_sent_once(tmp_path: Path) -> None:
    # Shown from 0, 0.1, 3.0 and 3.1 s; sampled twice a second until 3.2 s.
    probed = probe(draw_clip(tmp_path / "c.mkv", times=[0, 0.1, 3.0, 3.1]))
    frames = decode(probed, plan(probed, Sampling(frames_per_second=2)))
    assert [read_barcode(p) for p in frames.pixels] == [0, 1, 2]
    assert frames.repeats.tolist() == [1, 5, 1]
    assert frames.seconds.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]


def test_too_many_frames_are_spread_over_the_whole_video(tmp_path: Path) -> None:
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=8))
    frames = decode(probed, plan(probed, Sampling(frames_per_second=10, max_frames=5)))
    assert frames.seconds.tolist() == pytest.approx([0, 1.6, 3.2, 4.8, 6.4])
    assert numbers(frames) == [0, 40, 80, 120, 160]


def test_times_do_not_drift(tmp_path: Path) -> None:
    # Added up in float, 2000 times 0.1 is 200.00000000006; i / 10 is not.
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=200, fps=5, size=(64, 48), gop=100))
    seconds = plan(probed, Sampling(frames_per_second=10, max_frames=5000)).seconds
    assert seconds.tolist() == [i / 10 for i in range(2000)]


def test_a_clock_that_jumps_back_below_its_start_moves_nothing(tmp_path: Path) -> None:
    late = draw_clip(tmp_path / "late.ts", seconds=2, start=500.0, tone_hz=440.0, sound_start=500.0)
    early = draw_clip(tmp_path / "early.ts", seconds=2, tone_hz=440.0)
    probed = probe(join([late, early], tmp_path / "joined.ts"))
    assert probed.media.duration == pytest.approx(4.0, abs=0.1)
    frames = decode(probed, plan(probed, Sampling()))
    assert frames.seconds == pytest.approx([0, 1, 2, 3])
    assert numbers(frames) == [0, 25] * 2


@pytest.mark.parametrize("name", ["c.mp4", "c.ts", "c.avi", "c.mkv"])
def test_key_frames_only(name: str, tmp_path: Path) -> None:
    options = {"x264-params": "keyint=20:min-keyint=20:scenecut=0"}
    codec = "mpeg4" if name == "c.avi" else "libx264"
    bframes = 0 if name == "c.avi" else 2
    probed = probe(
        draw_clip(
            tmp_path / name,
            gop=20,
            codec=codec,
            bframes=bframes,
            options=options if codec == "libx264" else {"sc_threshold": "1000000000"},
        )
    )
    frames = decode(probed, plan(probed, Sampling(mode="keyframes")))
    assert numbers(frames) == [0, 20, 40, 60, 80]
    assert frames.seconds == pytest.approx([0, 0.8, 1.6, 2.4, 3.2])
    thinned = decode(probed, plan(probed, Sampling(mode="keyframes", max_frames=2)))
    assert numbers(thinned) == [0, 40]


@needs_decord
def test_decord_gives_the_same_key_frames(tmp_path: Path) -> None:
    options = {"x264-params": "keyint=20:min-keyint=20:scenecut=0"}
    probed = probe(draw_clip(tmp_path / "c.mp4", gop=20, options=options))
    sampling = Sampling(mode="keyframes", decoder="decord")
    assert choose_decoder(probed, sampling) == "decord"
    wanted = plan(probed, sampling)
    frames, same = decode(probed, wanted, "decord"), decode(probed, wanted, "pyav")
    assert numbers(frames) == [0, 20, 40, 60, 80]
    assert (frames.seconds == same.seconds).all()
    assert np.abs(frames.pixels.astype(int) - same.pixels).max() <= 2


def read_packets(probed: Probe, wanted: Plan, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many packets were demuxed for a plan, and how many of them decoded."""
    import vtag.decode_pyav as reader
    import vtag.decode_seek as seeker

    demuxed = decoded = 0
    packets_of, decoded_of = seeker.packets_of, reader._decoded

    def count_packets(*arguments: object, **named: object) -> Iterator[object]:
        nonlocal demuxed
        for packet in packets_of(*arguments, **named):  # type: ignore[arg-type]
            demuxed += 1
            yield packet

    def count_decoded(*arguments: object) -> object:
        nonlocal decoded
        decoded += 1
        return decoded_of(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(seeker, "packets_of", count_packets)
        patch.setattr(reader, "_decoded", count_decoded)
        decode(probed, wanted)
    return demuxed, decoded


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.webm", "fragmented.mp4"])
def test_the_work_follows_from_the_wanted_pictures_not_from_the_length(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = "libvpx-vp9" if name == "c.webm" else "libx264"
    flags = {"movflags": "frag_keyframe+empty_moov"} if name == "fragmented.mp4" else {}
    work = {}
    for seconds in (80, 160):
        clip = draw_clip(
            tmp_path / f"{seconds}{name}",
            seconds=seconds,
            fps=10,
            codec=codec,
            gop=50,
            options={"x264-params": "scenecut=0:bframes=2"} if codec == "libx264" else None,
            container_options=flags,
            tone_hz=440.0,
        )
        probed = probe(clip)
        wanted = plan(probed, Sampling(max_frames=4))
        assert numbers(decode(probed, wanted)) == [0, 10 * seconds // 4, 5 * seconds,
                                                   30 * seconds // 4]  # fmt: skip
        work[seconds] = read_packets(probed, wanted, monkeypatch)
    # 160 s hold 1600 pictures, and four key frames are wanted. WebM's index may be coarser
    # than its key frames: then a group is read to get at each.
    assert work[160][0] <= (4 * 50 if name == "c.webm" else 4 + 4)
    assert work[160][1] == work[80][1] <= 4 + 4


def test_a_seek_that_misses_costs_time_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from av.container import InputContainer

    import vtag.decode_seek as seeker

    options = {"x264-params": "scenecut=0"}
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=60, fps=10, gop=50, options=options))
    uniform = plan(probed, Sampling(max_frames=4))
    keys = plan(probed, Sampling(mode="keyframes", max_frames=4))
    right = [decode(probed, wanted) for wanted in (uniform, keys)]
    misses: list[int] = []

    def land_late(container: InputContainer, *_: object, **__: object) -> None:
        misses.append(1)
        InputContainer.seek(container, 10**9)

    def land_nowhere(*_: object, **__: object) -> None:
        misses.append(1)
        raise av.error.OSError(5, "not there")

    for miss in (land_late, land_nowhere):
        monkeypatch.setattr(seeker, "_seek", miss)
        for wanted, expected in zip((uniform, keys), right, strict=True):
            found = decode(probed, wanted)
            assert (found.pixels == expected.pixels).all()
            assert (found.seconds == expected.seconds).all()
    assert len(misses) == 4


def test_a_cut_without_any_key_frame_gives_one_picture_in_key_frame_mode(tmp_path: Path) -> None:
    whole = draw_clip(tmp_path / "whole.mp4", gop=250)
    probed = probe(trim(whole, tmp_path / "cut.mp4", begin=2.0))
    frames = decode(probed, plan(probed, Sampling(mode="keyframes")))
    assert numbers(frames) == [50]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((160, 96), (256, 427)),
        ((96, 160), (427, 256)),
        ((2, 2), (256, 256)),
        ((640, 32), (256, 1024)),
    ],
)
def test_the_short_side_is_256_and_the_long_side_is_bounded(
    size: tuple[int, int], expected: tuple[int, int], tmp_path: Path
) -> None:
    probed = probe(
        draw_clip(tmp_path / "c.mkv", seconds=0.2, size=size, codec="ffv1", pix_fmt="yuv444p")
    )
    assert (probed.media.width, probed.media.height) == size
    assert decode(probed, plan(probed, Sampling())).pixels.shape[1:3] == expected


def test_of_a_strip_the_middle_is_kept(tmp_path: Path) -> None:
    # 32 pixels high, so 128 of the 640 columns are kept: 256 to 383. Of the eight columns of
    # blocks, 80 wide each, those are the ends of the third and fifth and all of the fourth.
    probed = probe(
        draw_clip(tmp_path / "c.mkv", seconds=0.2, size=(640, 32), codec="ffv1", pix_fmt="yuv444p")
    )
    pixels = decode(probed, plan(probed, Sampling())).pixels[0]
    top = pixels[20, :, 1]  # first row of blocks of picture 0: all bits 0, so black
    assert top.max() < 40
    bottom = pixels[-20, 512]
    assert bottom == pytest.approx(np.array([200, 40, 40]), abs=12)  # colour of second 0


def test_colours_are_those_of_their_second(clips: Callable[[str], tuple[Path, object]]) -> None:
    from media import SECOND_COLOURS

    for name in ("h264", "vp9", "gif", "10 bit", "alpha", "mjpeg"):
        probed = probe(clips(name)[0])
        frames = decode(probed, plan(probed, Sampling()))
        for second, pixels in enumerate(frames.pixels):
            strip = pixels[-60:-20].reshape(-1, 3).mean(axis=0)
            # BT.601 both ways; a wrong range or matrix is off by 15 and more, RGB8 by up to 20.
            tolerance = 22 if name == "gif" else 9
            assert strip == pytest.approx(np.array(SECOND_COLOURS[second]), abs=tolerance), name


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    # 160x96 with pixels 3:2: shown as 240x96 = 5:2, so 640 wide.
    path = draw_clip(tmp_path / "c.mp4", pixel_aspect=Fraction(3, 2))
    probed = probe(path)
    assert probed.pixel_aspect == Fraction(3, 2)
    for decoder in ("pyav", "decord") if probed.decord_fit and find_spec("decord") else ("pyav",):
        frames = decode(probed, plan(probed, Sampling()), decoder)
        assert frames.pixels.shape[1:3] == (256, 640)
        assert numbers(frames) == [0, 25, 50, 75]


def test_names_that_ffmpeg_would_take_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "12:30.mp4",
        "-i.mp4",
        "http:x.mp4",
        "a%03d.mp4",
        "concat:a|b.mp4",
        "ü ñ\udcff.mp4",
    ):
        draw_clip(tmp_path / "c.mp4", seconds=0.4).rename(tmp_path / name)
        probed = probe(Path(name))
        decoders: tuple[Decoder, ...] = ("pyav", "decord") if find_spec("decord") else ("pyav",)
        for decoder in decoders:
            if decoder == "decord" and "\udcff" in name:
                continue
            assert numbers(decode(probed, plan(probed, Sampling()), decoder)) == [0]


def test_facts_of_the_record(tmp_path: Path) -> None:
    media = probe(draw_clip(tmp_path / "c.mp4", tone_hz=440.0, rotation=90)).media
    assert (media.width, media.height) == (160, 96)  # as shown
    assert (media.video_codec, media.audio_codec) == ("h264", "aac")
    assert media.fps == pytest.approx(25)
    assert media.duration == pytest.approx(4.0, abs=0.05)
    assert media.has_video
    assert media.has_audio


def test_limits_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    path = draw_clip(tmp_path / "c.mp4", tone_hz=440.0)
    for limits in (
        Limits(max_pixels=160 * 96 - 1),
        Limits(max_seconds=3.9),
        Limits(max_streams=1),
        Limits(max_packets=99),
    ):
        with pytest.raises(MediaError) as caught:
            probe(path, limits=limits)
        assert caught.value.code == "too_large"
    assert probe(path, limits=Limits(max_pixels=160 * 96, max_streams=2)).media.has_video


def test_decord_is_left_where_it_would_decode_much_more(tmp_path: Path) -> None:
    # 10 s in one group; the last picture wanted is 225. Of x264's I P B b b half are dropped.
    options = {"x264-params": "bframes=3:b-adapt=0:scenecut=0:b-pyramid=normal"}
    small = probe(draw_clip(tmp_path / "c.mp4", seconds=10, gop=250, bframes=3, options=options))
    sampling = Sampling()
    from vtag.plan import predicted_decodes

    decord, walk = predicted_decodes(small.table, plan(small, sampling))
    assert decord >= 226
    assert 1.5 < decord / walk < 2.1
    if find_spec("decord"):
        assert choose_decoder(small, sampling) == "decord"  # over in a moment either way
    # The same packets of 4K pictures take 226 * 3840 * 2160 / 276e6 = 6.8 s.
    assert choose_decoder(replace(small, size=(3840, 2160)), sampling) == "pyav"
    assert choose_decoder(small, Sampling(mode="keyframes")) == "pyav"
    assert choose_decoder(small, Sampling(decoder="pyav")) == "pyav"


@pytest.mark.skipif(not find_spec("decord"), reason="decord is not installed")
def test_decord_is_left_where_its_queue_of_pictures_takes_much_memory(tmp_path: Path) -> None:
    small = probe(draw_clip(tmp_path / "c.mp4", seconds=1, gop=1))
    assert choose_decoder(replace(small, size=(4096, 2160)), Sampling()) == "decord"
    large = replace(small, size=(7680, 4320))
    assert choose_decoder(large, Sampling()) == "pyav"
    assert choose_decoder(large, Sampling(decoder="decord")) == "decord"


def test_the_walk_decodes_fewer_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vtag.decode_pyav as reader

    options = {"x264-params": "bframes=3:b-adapt=0:scenecut=0:b-pyramid=normal"}
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=8, gop=50, bframes=3, options=options))
    decoded = 0
    original = reader._decoded

    def counting(*arguments: object) -> list[object]:
        nonlocal decoded
        frames = original(*arguments)  # type: ignore[arg-type]
        decoded += len(frames)
        return frames  # type: ignore[return-value]

    monkeypatch.setattr(reader, "_decoded", counting)
    frames = decode(probed, plan(probed, Sampling(frames_per_second=0.5)))
    assert numbers(frames) == [0, 50, 100, 150]
    assert decoded == 4  # each wanted picture is a key frame, and nothing else is decoded
    decoded = 0
    frames = decode(probed, plan(probed, Sampling(frames_per_second=1.0)))
    assert numbers(frames) == list(range(0, 200, 25))
    # Half of each group, and of that again about half.
    assert decoded < 0.35 * 200


def test_frames_are_streamed(tmp_path: Path) -> None:
    # The first batch is there before the second is decoded: the generator has not ended.
    probed = probe(draw_clip(tmp_path / "c.mp4", seconds=8))
    report = DecodeReport()
    batches = read_frames(probed, plan(probed, Sampling()), decoder="pyav", report=report, batch=2)
    first = next(batches)
    assert first.seconds.tolist() == [0, 1]
    assert sum(1 for _ in batches) == 3
    assert report.corrupt_frames == 0


@needs_decord
def test_what_decord_says_is_the_same_every_time(tmp_path: Path) -> None:
    path = flip_bytes(draw_clip(tmp_path / "c.mp4", seconds=2), count=300, first=0.1)
    probed = probe(path)
    said = []
    for _ in range(2):
        with pytest.raises(MediaError) as caught:
            decode(probed, plan(probed, Sampling(frames_per_second=25)), "decord")
        said.append(str(caught.value).replace(str(path), ""))
        sleep(1.1)  # its own messages tell the second
    assert said[0] == said[1]
    assert "Error sending packet" in said[0]
    assert not re.search(r"/|::|Check failed|->", said[0])


def test_decord_is_not_given_a_name_that_it_can_not_take(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    probed = probe(draw_clip(tmp_path / "c.mp4").rename(folder / "c.mp4"))
    assert "name" in probed.decord_reason
    assert numbers(decode(probed, plan(probed, Sampling()))) == [0, 25, 50, 75]


def test_pictures_may_not_outgrow_the_limit_on_the_way(tmp_path: Path) -> None:
    small = draw_clip(tmp_path / "small.ts", seconds=1)
    large = draw_clip(tmp_path / "large.ts", seconds=1, size=(320, 192))
    sizes, refused = set(), 0
    with av.open(str(join([small, large], tmp_path / "joined.ts"))) as container:
        stream = container.streams.video[0]
        prepare_video(stream, Limits(max_pixels=200 * 200))
        for packet in container.demux(stream):
            try:
                sizes |= {(frame.width, frame.height) for frame in packet.decode()}
            except av.error.FFmpegError:
                refused += 1
    assert sizes == {(160, 96)}
    assert refused >= 20
