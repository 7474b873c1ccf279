"""The clips that come with vtag, through the real pipeline: what a new user sees first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtag import Pipeline, Record

FOLDER = Path(__file__).parent.parent / "sample_videos"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    with Pipeline(device="cpu") as pipeline:
        return {Path(r.path).name: r for r in pipeline.tag_many(sorted(FOLDER.glob("*.mp4")))}


def test_every_clip_has_an_expectation_and_a_source() -> None:
    clips = {clip.name for clip in FOLDER.glob("*.mp4")}
    assert clips == set(EXPECTED)
    sources = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    assert all(clip in sources for clip in clips)
    assert 5 <= len(clips) <= 8
    assert sum(clip.stat().st_size for clip in FOLDER.glob("*.mp4")) <= 6e6


@pytest.mark.parametrize("clip", sorted(EXPECTED))
def test_the_right_tag_is_within_the_first_three(clip: str, records: dict[str, Record]) -> None:
    top = [tag.id for tag in records[clip].tags[:3]]
    assert set(top) & set(EXPECTED[clip]["any_of"]), [t.name for t in records[clip].tags]


def test_segments_lie_within_the_clip_and_evidence_adds_up(records: dict[str, Record]) -> None:
    for record in records.values():
        assert record.media is not None
        for tag in record.tags:
            assert tag.score >= tag.threshold
            assert tag.segments
            for segment in tag.segments:
                assert 0 <= segment.start < segment.end <= record.media.duration + 1e-6
            assert 0 < sum(moment.weight for moment in tag.evidence) <= 1 + 1e-6
