"""From the cache: the same records in groups as one by one, and nothing is decoded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from media import draw_clip

from vtag import Pipeline, Record, Selection
from vtag.cache import CacheEntry, FeatureCache
from vtag.content_id import ContentIds
from vtag.decode_process import DecoderProcess
from vtag.features import SOUND_RULE
from vtag.head import Head, embedded_models, load_head
from vtag.input_groups import InputGroups
from vtag.models import PoolingConfig
from vtag.models.checkpoint import Checkpoint, save_checkpoint
from vtag.models.labels import Label, LabelSet
from vtag.models.net_config import StreamConfig, TaggerNetConfig
from vtag.models.readout import OutputGroup, Readout
from vtag.models.tagger_net import TaggerNet
from vtag.records import Features, Media
from vtag.results import ResultsWriter
from vtag.run import Summary, run

EVERY = Selection(top_k=None, threshold=0.0)


@pytest.fixture(scope="module")
def head() -> Head:
    return load_head(embedded_models()[0])


def features(head: Head, stream: str, count: int, seed: int) -> Features:
    dim = head._net.config.stream(stream).dim
    rows = np.random.default_rng(seed).gamma(0.3, 1.5, (count, dim)).astype(np.float16)
    step = 1.0 if stream == "visual" else 0.96
    return Features(rows, np.arange(count) * step, head.extractors[stream])


def other_model(folder: Path, head: Head, pool: str = "network") -> Path:
    """A small drawn model that reads what `head` reads, to be told from it by its labels."""
    torch.manual_seed(5)
    streams = tuple(
        StreamConfig(
            name=stream, dim=head._net.config.stream(stream).dim, poolings=(PoolingConfig("mean"),)
        )
        for stream in ("visual", "audio")
    )
    labels = LabelSet([Label("a", "a", threshold=0.1), Label("b", "b", threshold=0.1)])
    readout = Readout(
        labels=labels,
        groups=(OutputGroup(outputs=2),),
        window_frames=2,
        pool=pool,  # type: ignore[arg-type]
    )
    net = TaggerNet(TaggerNetConfig(streams=streams, labels=2, hidden=8)).eval()
    save_checkpoint(
        folder,
        Checkpoint(
            net=net,
            labels=labels.to_list(),
            name="other",
            extractors=dict(head.extractors),
            readout=readout.to_dict(),
        ),
    )
    return folder


@given(
    counts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@example(counts=[(0, 1), (0, 4), (0, 4), (0, 4), (0, 4)], seed=0)  # 9 rows for two threads
@settings(max_examples=12)
def test_tags_of_many_are_those_of_each_to_the_last_bit(
    head: Head, counts: list[tuple[int, int]], seed: int
) -> None:
    clips = [
        (
            {
                "visual": features(head, "visual", looked, seed + n),
                "audio": features(head, "audio", heard, 1000 + seed + n),
            },
            float(looked),
        )
        for n, (looked, heard) in enumerate(counts)
    ]
    selection = Selection(top_k=30, threshold=0.0)
    together = head.tags_of_many(clips, selection=selection)
    present = [{s: f for s, f in streams.items() if len(f.rows)} for streams, _ in clips]
    for streams, (scores, _) in zip(present, head._scores_of_many(present), strict=True):
        assert scores.equal(head._scores(streams)[0])
    assert together == [
        head.tags(streams, end_seconds=end, selection=selection) for streams, end in clips
    ]
    assert any(together) == any(looked or heard for looked, heard in counts)


def test_a_model_that_looks_at_whole_videos_too(tmp_path: Path, head: Head) -> None:
    other = Head(other_model(tmp_path / "other", head))
    clips = [
        (
            {"visual": features(head, "visual", n, n), "audio": features(head, "audio", n, n)},
            n + 0.5,
        )
        for n in (1, 5, 2, 30, 7)
    ]
    each = [other.tags(s, end_seconds=end, selection=EVERY) for s, end in clips]
    assert other.tags_of_many(clips, selection=EVERY) == each
    assert all(len(tags) == 2 for tags in each)


@pytest.mark.parametrize("pool", ["network", "top_tenth"])
def test_a_very_long_video_is_scored_some_labels_at_a_time(
    tmp_path: Path, head: Head, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    other = Head(other_model(tmp_path / "other", head, pool))
    streams = {s: features(head, s, 50, 3) for s in ("visual", "audio")}
    at_once = other.tags(streams, end_seconds=50, selection=EVERY)
    widths = []
    ask = Readout.video_scores
    monkeypatch.setattr(
        Readout,
        "video_scores",
        lambda self, some, whole: widths.append(some.shape[1]) or ask(self, some, whole=whole),
    )
    monkeypatch.setattr("vtag.head.CELLS_AT_ONCE", 30)
    assert other.tags(streams, end_seconds=50, selection=EVERY) == at_once
    assert set(widths) == {1}


@pytest.fixture
def library(tmp_path: Path, head: Head) -> list[str]:
    """Files whose features are in the cache `tmp_path / "cache"`; their bytes are no video."""
    cache, ids = FeatureCache(tmp_path / "cache"), ContentIds(None)
    with Pipeline(device="cpu", cache=cache) as pipeline:
        rule = pipeline.sampling.fingerprint()
        made_by = dict(pipeline._maker._fingerprints)
    paths = []
    for n in range(40):
        path = tmp_path / f"{n:02d}.mp4"
        path.write_bytes(f"clip {n}".encode())
        count = 0 if n == 7 else 1 + n % 13
        media = Media(duration=float(count), has_video=True, has_audio=n % 3 > 0)
        info = {"media": media.to_dict(), "warnings": [f"warning {n}"] if n % 5 == 0 else []}
        for stream, rows in (("visual", count), ("audio", count if n % 3 else 0)):
            found = replace(features(head, stream, rows, n), made_by=made_by[stream])
            key = cache.key(
                ids.of(path), made_by[stream], rule if stream == "visual" else SOUND_RULE
            )
            cache.put(key, CacheEntry(found, info))
        paths.append(str(path))
    return paths


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Iterator[object]:
        raise AssertionError("something was decoded")

    monkeypatch.setattr(DecoderProcess, "decode", refuse)


def run_all(
    pipeline: Pipeline, paths: Sequence[str], out: Path, *, grouped: bool
) -> tuple[dict[str, Record], Summary]:
    summary = Summary()
    known = pipeline.tag_known if grouped else None
    with ResultsWriter(out) as results:
        records = list(run(pipeline, paths, results, summary, workers=2, known=known))
    assert len(records) == len(paths)
    # What took how long differs from run to run.
    timing = {r.path: set(r.timing) for r in records if r and r.ok}
    assert all(stages == {"hash", "head", "total"} for stages in timing.values())
    return {r.path: replace(r, timing={}) for r in records if r}, summary


def test_records_of_groups_are_those_of_single_files(
    tmp_path: Path, library: list[str], no_decoding: None
) -> None:
    sizes = []
    with Pipeline(device="cpu", cache=tmp_path / "cache") as pipeline:
        single, one = run_all(pipeline, library, tmp_path / "single.jsonl", grouped=False)
        ask = pipeline.tag_known
        pipeline.tag_known = lambda inputs: sizes.append(len(inputs)) or ask(inputs)  # type: ignore
        grouped, two = run_all(pipeline, library, tmp_path / "grouped.jsonl", grouped=True)
    assert grouped == single
    assert two == one
    assert (one.tagged, one.failed, one.cached) == (39, 1, 39)  # one has neither
    assert max(sizes) > 1


def test_another_model_never_decodes_again(
    tmp_path: Path, library: list[str], head: Head, no_decoding: None
) -> None:
    model = other_model(tmp_path / "other", head, pool="top_tenth")
    with Pipeline(model, device="cpu", cache=tmp_path / "cache") as pipeline:
        records, summary = run_all(pipeline, library, tmp_path / "t.jsonl", grouped=True)
    assert (summary.tagged, summary.cached) == (39, 39)
    assert {tag.id for r in records.values() for tag in r.tags} <= {"a", "b"}
    assert {r.model.name for r in records.values() if r.model} == {"other"}


def test_the_command_does_not_decode_again_for_another_model(tmp_path: Path, head: Head) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for n in range(3):
        draw_clip(clips / f"{n}.mp4", seconds=1 + n, fps=5, size=(96, 64))
    model = other_model(tmp_path / "other", head)
    shutil.copytree(clips, tmp_path / "copied")  # by content, not by name
    lines = []
    for folder, extra in ((clips, []), (tmp_path / "copied", ["--model", str(model)])):
        out = tmp_path / f"{folder.name}.jsonl"
        command = [sys.executable, "-m", "vtag", "run", str(folder), "--out", str(out), *extra]
        subprocess.run([*command, "--cache", str(tmp_path / "cache")], check=True, timeout=200)
        lines.append([json.loads(line) for line in out.read_text().splitlines()])
    assert ["decode" in record["timing"] for record in lines[0]] == [True] * 3
    assert ["decode" in record["timing"] for record in lines[1]] == [False] * 3
    assert {record["model"]["name"] for record in lines[1]} == {"other"}


def test_what_is_not_in_the_cache_comes_alone_and_is_not_lost(
    tmp_path: Path, library: list[str]
) -> None:
    for n in range(3):
        clip = draw_clip(tmp_path / f"new{n}.mp4", seconds=1, fps=5 + n, size=(96, 64))
        library.insert(10 + 7 * n, str(clip))
    summary = Summary()
    with (
        Pipeline(device="cpu", cache=tmp_path / "cache") as pipeline,
        ResultsWriter(tmp_path / "t.jsonl") as results,
    ):
        found = list(run(pipeline, library, results, summary, workers=2, known=pipeline.tag_known))
    assert sorted(r.path for r in found if r) == sorted(library)
    assert (summary.tagged, summary.cached, summary.unfinished) == (42, 39, 0)


class TestInputGroups:
    def test_groups_grow_while_all_is_known_and_end_with_what_is_not(self) -> None:
        groups = InputGroups(range(40), most=8)
        sizes = []
        for _ in range(5):
            group = next(groups)
            sizes.append(len(group))
            groups.were_known(len(group), of=len(group))
        assert sizes == [1, 2, 4, 8, 8]
        group = next(groups)
        groups.were_known(len(group) - 1, of=len(group))
        groups.put_back(group[-1])
        assert next(groups) == [group[-1]]
        assert len(next(groups)) == 1

    def test_it_goes_on_after_it_had_no_more(self) -> None:
        groups = InputGroups([1])
        assert list(groups) == [[1]]
        groups.put_back(1)
        assert list(groups) == [[1]]

    @given(known=st.lists(st.booleans(), max_size=60), most=st.integers(1, 9))
    def test_every_input_comes_once_and_each_unknown_one_once_more(
        self, known: list[bool], most: int
    ) -> None:
        groups = InputGroups(range(len(known)), most=most)
        seen: list[int] = []
        for group in groups:
            assert len(group) <= most
            alone = len(group) == 1
            unknown = [n for n in group if not known[n] and not alone]
            groups.were_known(sum(known[n] for n in group), of=len(group))
            seen += [n for n in group if n not in unknown]
            for n in unknown:
                groups.put_back(n)
        assert sorted(seen) == list(range(len(known)))
