"""What a person sees in the terminal."""

from __future__ import annotations

from vtag.records import Failure, Media, Record, Segment, Tag
from vtag.table import clock, printable, record_table

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
