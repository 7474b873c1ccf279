"""WebVTT: cues that a player reads, and that no label can end early."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidecar_samples import BEACH, DOG, HOSTILE

from vtag.records import Segment, Tag
from vtag.sidecar_webvtt import Kind, merge_webvtt, remove_webvtt
from vtag.sidecar_xml import Unmergeable

CUE = re.compile(r"(\d{2,}):(\d\d):(\d\d\.\d{3}) --> (\d{2,}):(\d\d):(\d\d\.\d{3})")


def cues(*tags: Tag, kind: Kind = "chapters") -> list[tuple[float, float, str]]:
    """Start, end and text of each cue, by the blocks of WebVTT 6.1: separated by empty lines."""
    data = merge_webvtt(None, tags, kind=kind).data
    assert data is not None
    head, *blocks = data.decode().rstrip("\n").split("\n\n")
    assert head == "WEBVTT"
    found = []
    for block in blocks[1:]:
        timing, text = block.split("\n")
        match = CUE.fullmatch(timing)
        assert match is not None
        h, m, s, h2, m2, s2 = map(float, match.groups())
        assert "-->" not in text
        found.append((h * 3600 + m * 60 + s, h2 * 3600 + m2 * 60 + s2, text))
    return found


def test_chapters_follow_each_other_with_all_that_holds() -> None:
    assert cues(DOG, BEACH) == [
        (2.0, 5.0, "dog"),
        (5.0, 11.5, "dog, seashore"),
        (11.5, 60.0, "seashore"),
        (60.0, 61.0, "dog, seashore"),
        (61.0, 62.4, "dog"),
    ]


def test_segments_that_touch_or_overlap_are_one_chapter() -> None:
    pieces = (Segment(0, 2, 0.5), Segment(2, 4, 0.5), Segment(3, 3600.5, 0.5), Segment(9, 9, 1))
    assert cues(replace(DOG, segments=pieces)) == [(0.0, 3600.5, "dog")]


def test_metadata_has_a_cue_per_segment_in_order() -> None:
    found = cues(BEACH, DOG, kind="metadata")
    assert [cue[:2] for cue in found] == [(2.0, 11.5), (5.0, 61.0), (60.0, 62.4)]
    assert json.loads(found[0][2]) == {
        "id": "n02084071", "name": "dog", "score": 0.95, "sources": ["visual", "audio"],
    }  # fmt: skip


def test_a_hostile_name_is_text() -> None:
    ((_, _, chapter),) = cues(HOSTILE)
    assert chapter == ("a&lt;b&gt;&amp;\"' --&gt; ]]&gt; \ufffd\ufffd | / WEBVTT =1+1")
    ((_, _, line),) = cues(HOSTILE, kind="metadata")
    assert not set("<>&") & set(line)
    assert json.loads(line)["name"] == HOSTILE.name


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 30)), max_size=8)
)
def test_a_chapter_says_what_holds_at_each_moment(drawn: list[tuple[str, int, int]]) -> None:
    tags = [
        replace(DOG, name=name, segments=tuple(Segment(a, b, 1) for n, a, b in drawn if n == name))
        for name in "abc"
    ]
    found = cues(*tags) if any(a < b for _, a, b in drawn) else []
    for tick in range(31):
        moment = tick + 0.5
        slow = ", ".join(
            name for name in "abc" if any(n == name and a <= moment < b for n, a, b in drawn)
        )
        assert [text for start, end, text in found if start <= moment < end] == [slow][: bool(slow)]


def test_only_what_vtag_wrote_is_replaced_or_deleted() -> None:
    first = merge_webvtt(None, (DOG,), kind="chapters").data
    assert first is not None
    change = merge_webvtt(first, (BEACH,), kind="chapters")
    assert change.taken[0].endswith(" dog")
    assert change.added == ("00:00:05.000 --> 00:01:01.000 seashore",)
    assert merge_webvtt(first, (DOG,), kind="chapters").data == first
    assert remove_webvtt(first).data is None
    assert merge_webvtt(first, (), kind="chapters").data is None
    for other in (
        first.replace(b"dog", b"cat"),
        b"WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n",
        b"",
    ):
        with pytest.raises(Unmergeable, match="not written by vtag"):
            merge_webvtt(other, (DOG,), kind="chapters")
        with pytest.raises(Unmergeable, match="not written by vtag"):
            remove_webvtt(other)


def test_no_track_without_times() -> None:
    assert merge_webvtt(None, (replace(DOG, segments=()),), kind="chapters").data is None
