"""What a person sees in the terminal."""

from __future__ import annotations

import re

import pytest

from vtag.records import Failure, Media, Record, Segment, Tag
from vtag.table import clock, columns_of, fitted, printable, record_table

MEDIA = Media(duration=62.4, fps=25.0, width=640, height=360, video_codec="h264", has_video=True)


def test_a_row_says_what_how_sure_seen_or_heard_and_when() -> None:
    tag = Tag(
        id="n02084071",
        name="dog",
        score=0.93,
        threshold=0.5,
        sources=("visual", "audio"),
        segments=(Segment(2.0, 11.5, 0.95), Segment(60.0, 62.4, 0.7)),
    )
    lines = record_table(
        Record(path="clip.mp4", status="ok", media=MEDIA, tags=(tag,)), colour=False
    ).splitlines()
    assert lines[0] == "clip.mp4  1:02 640x360 h264"
    assert lines[1].split() == [
        "dog",
        "█████████·",
        "0.93",
        "seen+heard",
        "0:02-0:11,",
        "1:00-1:02",
    ]


def test_where_the_signs_are_missing_there_are_others() -> None:
    tag = Tag(id="x", name="ü" + "n" * 60, score=0.5, threshold=0.5, sources=("visual",))
    record = Record(path="a", status="ok", media=MEDIA, tags=(tag,))
    for encoding in ("ascii", "latin-1", "no such encoding"):
        line = record_table(record, colour=False, encoding=encoding).splitlines()[1]
        assert "#####-----" in line
        assert "~" in line
    assert "█████·····" in record_table(record, colour=False)


def test_colour_only_when_asked() -> None:
    tag = Tag(id="x", name="x", score=1.0, threshold=0.5, sources=("visual",))
    record = Record(path="a", status="ok", media=MEDIA, tags=(tag,))
    assert "\x1b[" in record_table(record, colour=True)
    assert "\x1b[" not in record_table(record, colour=False)


def test_a_hostile_name_can_not_drive_the_terminal() -> None:
    record = Record(path="a\x1b[2J\n\u202eb\udcff.mp4", status="ok", media=MEDIA)
    text = record_table(record, colour=False)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.splitlines()[0].startswith(r"a\x1b[2J\n\u202eb\udcff.mp4")
    text.encode()  # a lone surrogate would raise


def test_many_segments_are_cut_with_a_sign() -> None:
    segments = tuple(Segment(float(n), n + 1.0, 0.9) for n in range(0, 100, 2))
    tag = Tag(id="x", name="x", score=0.9, threshold=0.5, sources=("visual",), segments=segments)
    line = record_table(Record(path="a", status="ok", media=MEDIA, tags=(tag,)), colour=False)
    assert line.endswith(" …")
    assert len(line.splitlines()[1]) < 120


def test_a_failure_is_said() -> None:
    error = Failure(code="not_media", stage="open", message="x.mp4: is text", retryable=False)
    text = record_table(Record(path="x.mp4", status="failed", error=error), colour=False)
    assert "failed: x.mp4: is text" in text


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3600, 3725.5)] == [
        "0:00", "0:59", "1:00", "1:00:00", "1:02:05",
    ]  # fmt: skip


def test_printable_keeps_what_people_write() -> None:
    assert printable("Geburtstag – Übung 日本.mp4") == "Geburtstag – Übung 日本.mp4"


def table(monkeypatch: pytest.MonkeyPatch, columns: int, *names: str, colour: bool = False) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    segments = (Segment(0.0, 59.0, 0.9), Segment(100.0, 160.0, 0.9), Segment(200.0, 260.0, 0.9))
    tags = tuple(
        Tag(id=name, name=name, score=0.93, threshold=0.5, sources=("visual",), segments=segments)
        for name in names
    )
    record = Record(path="a.mp4", status="ok", media=MEDIA, tags=tags)
    return record_table(record, colour=colour)


@pytest.mark.parametrize("columns", [30, 40, 50, 60, 66, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = table(
        monkeypatch, columns, "golden retriever", "犬と猫が一緒に遊んでいる公園の午後", "x"
    )
    lines = text.splitlines()[1:]
    assert max(columns_of(line) for line in lines) <= columns
    assert all("0.93" in line and "seen" in line for line in lines)
    assert ("0:00-0:59" in text) == (columns >= 50)
    assert ("█" in text) == (columns >= 50)


def test_columns_line_up_also_with_wide_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table(monkeypatch, 100, "dog", "犬", "e\u0301te\u0301").splitlines()[1:]
    assert len({columns_of(line.partition("█")[0]) for line in lines}) == 1


def test_colours_take_no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = table(monkeypatch, 80, "dog", "犬")
    coloured = table(monkeypatch, 80, "dog", "犬", colour=True)
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain != coloured


def test_the_name_of_a_label_can_not_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = table(monkeypatch, 80, "\x1b]0;owned\x07", "a\nb")
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("dog", 5, "dog  "),
        ("golden", 4, "gol…"),
        ("犬犬犬", 4, "犬… "),  # two wide ones and the sign would be five
        ("犬犬", 4, "犬犬"),
        ("", 2, "  "),
    ],
)
def test_fitted(text: str, columns: int, expected: str) -> None:
    assert fitted(text, columns) == expected
    assert columns_of(fitted(text, columns)) == columns
