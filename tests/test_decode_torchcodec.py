"""torchcodec as the third decoder. Here on the CPU: the code is the same on a graphics card."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from barcode_clips import CLIPS, drawn_once, expected_numbers, joined, numbers

import vtag.decode_backends
import vtag.decode_process
from vtag import Pipeline
from vtag.config import Sampling
from vtag.decode import plan, probe, read_frames
from vtag.decode_process import DecoderProcess, Finished, Restarted, backends_for
from vtag.errors import EnvironmentProblem, MediaError
from vtag.records import Frames

SAMPLES = Path(__file__).parent.parent / "sample_videos"


def loads() -> bool:
    """Whether torchcodec is there, and finds FFmpeg's libraries."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        if os.environ.get("VTAG_REQUIRE_TORCHCODEC") == "1":
            raise
        return False
    return True


needs_torchcodec = pytest.mark.skipif(not loads(), reason="torchcodec, or FFmpeg, is not here")

# Why PyAV gets a clip instead; the last one is only noticed on the way.
REFUSED = {
    "ts": "container", "ts mpeg2": "container", "ps mpeg2": "container", "avi mpeg4": "container",
    "avi h264": "container", "flv": "container", "wmv": "container", "gif": "container",
    "turned 90": "turned", "turned 180": "turned", "turned 270": "turned", "mirrored": "mirrored",
}  # fmt: skip
NOTICED = "gradual"
SAMPLING = Sampling(decoder="torchcodec")


@pytest.fixture(scope="module")
def clips(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Sequence[float]]]:
    return drawn_once(tmp_path_factory)


@pytest.fixture
def decoder() -> Callable[[], DecoderProcess]:
    return lambda: DecoderProcess(backends=backends_for("torchcodec", "cpu"))


@needs_torchcodec
@pytest.mark.parametrize("frames_per_second", [1.0, 3.7])
@pytest.mark.parametrize("name", sorted(set(CLIPS) - set(REFUSED) - {NOTICED}))
def test_the_same_times_and_pictures_as_from_pyav(
    name: str,
    frames_per_second: float,
    clips: Callable[[str], tuple[Path, Sequence[float]]],
) -> None:
    from vtag.decode_torchcodec import read_frames_torchcodec, why_not_torchcodec

    path, shown = clips(name)
    probed = probe(path)
    assert why_not_torchcodec(probed) == ""
    wanted = plan(probed, Sampling(frames_per_second=frames_per_second))
    ours = joined(list(read_frames(probed, wanted, decoder="pyav")))
    batches = list(read_frames_torchcodec(probed, wanted, device="cpu", batch=3))
    assert max(len(some.pixels) for some in batches) <= 3
    theirs = joined(batches)
    assert theirs.seconds.tolist() == ours.seconds.tolist()
    assert theirs.repeats.tolist() == ours.repeats.tolist()
    after_first = theirs.seconds - probed.first_picture_seconds
    assert numbers(theirs) == expected_numbers(shown, after_first.tolist(), slack=0.0006)
    # Not the same bytes: colour and size are changed by other code, at hard edges here.
    difference = (ours.pixels.astype(float) - theirs.pixels) ** 2
    assert 10 * np.log10(255**2 / max(1e-9, difference.mean(axis=(1, 2, 3)).max())) > 38


@needs_torchcodec
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_can_not_be_trusted_with_goes_to_pyav(
    name: str,
    clips: Callable[[str], tuple[Path, Sequence[float]]],
    decoder: Callable[[], DecoderProcess],
) -> None:
    path, _ = clips(name)
    with decoder() as child:
        events = list(child.decode(path, sampling=SAMPLING, want_video=True, want_sound=False))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.media.decoder == "pyav"
    assert any(
        text.startswith("torchcodec was asked for but PyAV was used") and REFUSED[name] in text
        for text in finished.warnings
    )
    assert not any(isinstance(event, Restarted) for event in events)


@needs_torchcodec
def test_other_times_than_the_packets_are_noticed(
    clips: Callable[[str], tuple[Path, Sequence[float]]],
    decoder: Callable[[], DecoderProcess],
) -> None:
    from vtag.decode_torchcodec import read_frames_torchcodec

    path, _ = clips(NOTICED)
    probed = probe(path)
    with pytest.raises(MediaError, match="at other times than the packets") as caught:
        list(read_frames_torchcodec(probed, plan(probed, Sampling()), device="cpu"))
    assert caught.value.code == "decoder_misbehaved"
    with decoder() as child:
        events = list(child.decode(path, sampling=SAMPLING, want_video=True, want_sound=False))
    assert any(isinstance(event, Restarted) for event in events)
    frames = joined([event for event in events if isinstance(event, Frames)])
    assert frames.seconds.tolist() == plan(probed, Sampling()).seconds.tolist()
    assert isinstance(events[-1], Finished)
    assert events[-1].media.decoder == "pyav"


@needs_torchcodec
def test_a_damaged_file_is_read_by_pyav_as_far_as_it_goes(
    tmp_path: Path,
    clips: Callable[[str], tuple[Path, Sequence[float]]],
    decoder: Callable[[], DecoderProcess],
) -> None:
    whole = clips("fragmented")[0].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with decoder() as child:
        events = list(child.decode(path, sampling=SAMPLING, want_video=True, want_sound=True))
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, Frames) for event in events)


@needs_torchcodec
def test_the_child_is_as_confined_as_any(decoder: Callable[[], DecoderProcess]) -> None:
    with DecoderProcess() as usual, decoder() as child:
        assert child.limits_in_force() == usual.limits_in_force()


@needs_torchcodec
@pytest.mark.parametrize("mode", ["uniform", "keyframes", "adaptive"])
def test_the_same_features_as_from_pyav(mode: str) -> None:
    rows = []
    for name in ("torchcodec", "pyav"):
        sampling = Sampling(mode=mode, decoder=name)  # type: ignore[arg-type]
        with Pipeline(sampling=sampling, cache=False, device="cpu") as pipeline:
            record = pipeline.tag(SAMPLES / "two_scenes.mp4")
            assert record.media is not None
            assert record.media.decoder == name
            rows.append(pipeline.features(SAMPLES / "two_scenes.mp4").streams["visual"])
    ours, theirs = (features.rows.astype(np.float64) for features in rows)
    assert rows[0].seconds.tolist() == rows[1].seconds.tolist()
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.995
    assert cosine.mean() > 0.999


def test_without_torchcodec_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtag.decode_process, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'vtag\[torchcodec\]'"):
        Pipeline(sampling=SAMPLING, cache=False)


def test_a_table_that_can_not_be_made_here_is_a_matter_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "c.mp4"
    path.write_bytes(b"x")
    with (
        DecoderProcess(backends="inside_backends:unable_on:cuda:7") as child,
        pytest.raises(EnvironmentProblem, match=r"^no card cuda:7 here$"),
    ):
        list(child.decode(path, sampling=Sampling(), want_video=True, want_sound=False))


@needs_torchcodec
def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtag import decode_torchcodec
    from vtag.decode_backends import torchcodec_on

    monkeypatch.setattr(decode_torchcodec, "BUILD", "0.11.1+cpu")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back after the test")
    with pytest.raises(EnvironmentProblem, match="built without CUDA"):
        torchcodec_on("cuda:0")
    assert torchcodec_on("cpu").has_decord is vtag.decode_backends.BACKENDS.has_decord


def test_a_card_is_named_to_the_child_and_only_for_torchcodec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vtag.decode_process, "find_spec", lambda _: object())
    assert backends_for("torchcodec", "cuda:1") == "vtag.decode_backends:torchcodec_on:cuda:1"
    assert backends_for("torchcodec", "mps") == "vtag.decode_backends:torchcodec_on:cpu"
    assert backends_for("auto", "cuda:1") == "vtag.decode_backends:BACKENDS"
