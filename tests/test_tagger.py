"""The pipeline with the real model on clips that the tests draw or that come with vtag."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from media import draw_clip

from vtag import ConfigError, MediaError, Pipeline, Record, Sampling, Selection, WeightsError
from vtag.cache import FeatureCache

SAMPLES = Path(__file__).parent.parent / "sample_videos"
EVERY_LABEL = Selection(top_k=None, threshold=0.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips of different lengths, so that batches are cut at different places."""
    folder = tmp_path_factory.mktemp("clips")
    drawn = [
        draw_clip(folder / f"drawn{n}.mp4", seconds=n, fps=5, size=(128, 96)) for n in (1, 3, 11)
    ]
    return [*drawn, SAMPLES / "dog.mp4", SAMPLES / "two_scenes.mp4"]


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with Pipeline(device="cpu", selection=EVERY_LABEL) as made:
        yield made


@pytest.fixture(scope="module")
def expected(pipeline: Pipeline, clips: list[Path]) -> dict[str, dict[str, float]]:
    return {record.path: scores(record) for record in pipeline.tag_many(clips)}


def scores(record: Record) -> dict[str, float]:
    return {tag.id: tag.score for tag in record.tags}


def assert_same(record: Record, expected: dict[str, dict[str, float]]) -> None:
    # 1e-4 is the promise; 1e-6 more because scores are written with four digits.
    assert scores(record) == pytest.approx(expected[record.path], abs=1.01e-4)


class TestSameScores:
    """Whatever the batch, the order, the number of workers or the cache."""

    @pytest.mark.parametrize("batch_size", [1, 32])
    def test_whatever_the_batch(
        self, batch_size: int, clips: list[Path], expected: dict[str, dict[str, float]]
    ) -> None:
        with Pipeline(device="cpu", selection=EVERY_LABEL, batch_size=batch_size) as other:
            for record in other.tag_many(clips):
                assert_same(record, expected)

    def test_whatever_the_order_and_the_workers(
        self, pipeline: Pipeline, clips: list[Path], expected: dict[str, dict[str, float]]
    ) -> None:
        shuffled = random.Random(7).sample(clips, len(clips))
        for record, path in zip(pipeline.tag_many(shuffled, workers=3), shuffled, strict=True):
            assert record.path == str(path)
            assert_same(record, expected)

    def test_cold_or_warm(
        self, tmp_path: Path, clips: list[Path], expected: dict[str, dict[str, float]]
    ) -> None:
        for warm in (False, True):
            with Pipeline(device="cpu", selection=EVERY_LABEL, cache=tmp_path) as cached:
                for record in cached.tag_many(clips):
                    assert ("decode" not in record.timing) == warm
                    assert_same(record, expected)


def test_segments_follow_the_cut_between_two_scenes(pipeline: Pipeline) -> None:
    # sample_videos/SOURCES.md: a cat from 0 to 8 s, a hard cut, a guitar from 8 to 10 s.
    with Pipeline(device="cpu") as ordinary:
        tags = {tag.name: tag for tag in ordinary.tag(SAMPLES / "two_scenes.mp4").tags}
    cat, guitar = tags["cat"].segments, tags["guitar"].segments
    assert cat[0].start == pytest.approx(0, abs=1)
    assert cat[-1].end == pytest.approx(8, abs=1)
    assert [(s.start, s.end) for s in guitar] == [pytest.approx((8, 10), abs=1)]
    assert all(moment.time >= 7.9 for moment in tags["guitar"].evidence)


def test_what_shows_in_a_tenth_of_the_video_counts_in_full(pipeline: Pipeline) -> None:
    tag = {tag.name: tag for tag in pipeline.tag(SAMPLES / "two_scenes.mp4").tags}["guitar"]
    assert tag.score > 0.9


def test_no_tag_scores_above_its_categories(pipeline: Pipeline, clips: list[Path]) -> None:
    for record in pipeline.tag_many(clips):
        by_name = {tag.name: tag.score for tag in record.tags}
        for tag in record.tags:
            for category in tag.categories:
                assert by_name[category] >= tag.score


def test_tags_come_best_first_and_are_capped() -> None:
    with Pipeline(device="cpu", selection=Selection(top_k=5, threshold=0.0)) as five:
        record = five.tag(SAMPLES / "cat.mp4")
    values = [tag.score for tag in record.tags]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    assert {tag.threshold for tag in record.tags} == {0.0}


def test_a_bad_file_raises_from_tag_and_is_a_record_from_tag_many(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("just words\n" * 30)
    with pytest.raises(MediaError, match=r"text\.mp4") as caught:
        pipeline.tag(text)
    assert caught.value.code == "not_media"
    (record,) = pipeline.tag_many([text])
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "not_media"
    assert record.id is not None  # its bytes could be read


@pytest.mark.parametrize(
    ("path", "code"), [("a\0b.mp4", "vanished"), ("https://example.org/a.mp4", "vanished")]
)
def test_what_is_no_path_is_a_failure_like_others(pipeline: Pipeline, path: str, code: str) -> None:
    with pytest.raises(MediaError) as caught:
        pipeline.tag(path)
    assert caught.value.code == code
    (record,) = pipeline.tag_many([path])
    assert record.error is not None
    assert (record.path, record.error.code) == (path, code)


def test_slips_of_a_program_are_said(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="for one there is tag"):
        list(pipeline.tag_many("ab"))
    with pytest.raises(TypeError, match="one in each process"):
        pickle.dumps(pipeline)
    with pytest.raises(ConfigError, match="empty name"):
        Pipeline(cache="")


def test_one_setting_has_one_fingerprint() -> None:
    fingerprint = Sampling().fingerprint()
    for same in (Sampling(frames_per_second=1), Sampling(max_frames=np.int64(300))):
        assert same.fingerprint() == fingerprint
        assert same == Sampling()


def test_sound_only_is_tagged_by_sound(pipeline: Pipeline, tmp_path: Path) -> None:
    song = draw_clip(tmp_path / "song.m4a", codec=None, tone_hz=440.0, seconds=4)
    record = pipeline.tag(song)
    assert record.media is not None
    assert not record.media.has_video
    assert {source for tag in record.tags for source in tag.sources} == {"audio"}


def test_the_drums_are_seen_and_heard() -> None:
    # sample_videos/SOURCES.md: a drum kit, and a rock beat on drums.
    with Pipeline(device="cpu") as ordinary:
        tags = {tag.name: tag for tag in ordinary.tag(SAMPLES / "drums.mp4").tags}
    assert tags["drum"].sources == ("visual",)
    assert tags["Music"].sources == ("audio",)


def test_a_model_without_an_ear_says_so_for_sound_alone(tmp_path: Path) -> None:
    from vtag.models import PoolingConfig
    from vtag.models.checkpoint import Checkpoint, save_checkpoint
    from vtag.models.labels import Label, LabelSet
    from vtag.models.net_config import StreamConfig, TaggerNetConfig
    from vtag.models.readout import OutputGroup, Readout
    from vtag.models.tagger_net import TaggerNet

    song = draw_clip(tmp_path / "song.m4a", codec=None, tone_hz=440.0, seconds=2)
    with Pipeline(device="cpu") as seeing_and_hearing:
        eye = seeing_and_hearing.head.extractors["visual"]
    stream = StreamConfig(name="visual", dim=2048, poolings=(PoolingConfig("mean"),))
    labels = LabelSet([Label("a", "a"), Label("b", "b")])
    readout = Readout(labels=labels, groups=(OutputGroup(outputs=2),), pool="network")
    save_checkpoint(
        tmp_path / "deaf",
        Checkpoint(
            net=TaggerNet(TaggerNetConfig(streams=(stream,), labels=2, hidden=4)).eval(),
            labels=labels.to_list(),
            name="deaf",
            extractors={"visual": eye},
            readout=readout.to_dict(),
        ),
    )
    with (
        Pipeline(tmp_path / "deaf", device="cpu") as deaf,
        pytest.raises(MediaError, match="deaf reads pictures") as caught,
    ):
        deaf.tag(song)
    assert caught.value.code == "no_usable_stream"


def test_tag_many_takes_its_paths_lazily(pipeline: Pipeline) -> None:
    taken = []

    def paths() -> Iterator[Path]:
        for n in itertools.count():
            taken.append(n)
            yield SAMPLES / "dog.mp4"

    records = pipeline.tag_many(paths())
    next(records)
    records.close()  # type: ignore[attr-defined]
    assert len(taken) < 5


def test_another_pipeline_finds_all_features_after_the_last_record(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = FeatureCache.put

    def slow_disk(self: FeatureCache, *given: object) -> None:
        time.sleep(0.3)
        put(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureCache, "put", slow_disk)
    with (
        Pipeline(device="cpu", cache=tmp_path) as first,
        Pipeline(device="cpu", cache=tmp_path) as second,
    ):
        assert all("decode" in record.timing for record in first.tag_many(clips))
        assert not any("decode" in record.timing for record in second.tag_many(clips))


def test_one_pipeline_serves_several_threads(
    pipeline: Pipeline, expected: dict[str, dict[str, float]], clips: list[Path]
) -> None:
    found: list[Record] = []
    threads = [
        threading.Thread(target=lambda clip=clip: found.append(pipeline.tag(clip)))
        for clip in clips[:3]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for record in found:
        assert_same(record, expected)


def test_a_pipeline_works_again_after_close(pipeline: Pipeline, clips: list[Path]) -> None:
    pipeline.close()
    assert pipeline.tag(clips[0]).ok


def test_a_plain_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from vtag import Pipeline\n"
        "print('started')\n"
        f"print(Pipeline(device='cpu').tag({str(SAMPLES / 'dog.mp4')!r}).tags[0].name)\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["started", "German shepherd"]
    assert run.stderr == ""


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    from vtag.head import _embedded_folder

    copy = tmp_path / "model"
    shutil.copytree(_embedded_folder() / "vtag-base", copy)
    Pipeline(copy, device="cpu").close()
    labels = json.loads((copy / "labels.json").read_text())
    labels[0]["id"] = labels[1]["id"]
    (copy / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(WeightsError, match=r"labels\.json"):
        Pipeline(copy, device="cpu")


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="vtag-base"):
        Pipeline("vtag-best")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Selection(top_k=0),
        lambda: Selection(threshold=1.5),
        lambda: Sampling(frames_per_second=0),
        lambda: Sampling(max_frames=0),
        lambda: Sampling(max_frames=1.5),  # type: ignore[arg-type]
        lambda: Sampling(max_frames=True),
        lambda: Selection(top_k=1.5),  # type: ignore[arg-type]
        lambda: Sampling(mode="all"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
