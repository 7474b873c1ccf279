"""The tour, as a stranger runs it: another folder, another process, nothing of ours set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXPECTED = json.loads((ROOT / "sample_videos" / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the tour made, and what it printed."""
    home = tmp_path_factory.mktemp("stranger")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VTAG_", "PYTHON", "XDG_"))
    }
    environment |= {"HOME": str(home), "VTAG_OFFLINE": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "tour.py"],
        cwd=home,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return home / "vtag-tour", done.stdout


@pytest.fixture(scope="module")
def summary(tour: tuple[Path, str]) -> Any:
    return json.loads((tour[0] / "summary.json").read_text(encoding="utf-8"))


def test_the_tour_tags_what_the_clips_show(summary: Any) -> None:
    assert set(summary["tags"]) == set(EXPECTED)
    right = [
        clip for clip, ids in summary["tags"].items() if set(ids) & set(EXPECTED[clip]["any_of"])
    ]
    # Each clip by itself is the matter of tests/test_sample_videos.py.
    assert len(right) >= 6, right


def test_the_second_pass_comes_from_the_cache(summary: Any) -> None:
    assert summary["decoded_again"] == 0


def test_own_tags_are_found_in_clips_that_were_not_learnt_from(summary: Any) -> None:
    own = summary["own"]
    assert list(own["cockatoo.mp4"]) == ["parrot"]  # SOURCES.md: a cockatoo and nothing else
    assert "parrot" not in own["two_scenes.mp4"]
    # SOURCES.md: the cat is there from 0 to 8 s, then a hard cut. A row stands for its second.
    segments = own["two_scenes.mp4"]["cat"]
    assert segments
    assert all(0 <= start < end <= 9 for start, end in segments)


def test_the_search_is_answered_by_the_records(tour: tuple[Path, str], summary: Any) -> None:
    lines = (tour[0] / "tags.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    names = {
        Path(record["path"]).name: {
            word for tag in record["tags"] for word in (tag["name"], *tag["categories"])
        }
        for record in records
    }
    # `NOT dog` goes by words, also those of the path: dog.mp4 is out either way.
    expected = {
        clip
        for clip, words in names.items()
        if "animal" in words and not any("dog" in word.split() for word in words)
    }
    assert set(summary["hits"]) == expected - {"dog.mp4"}
    assert expected


def test_report_and_sidecars_are_there(tour: tuple[Path, str], summary: Any) -> None:
    folder, _ = tour
    assert (folder / "report" / "index.html").is_file()
    assert len(list((folder / "report").rglob("*.jpg"))) >= len(EXPECTED)
    with_tags = {clip for clip, ids in summary["tags"].items() if ids}
    sidecars = {file.name.removesuffix(".xmp") for file in (folder / "videos").glob("*.xmp")}
    assert sidecars <= with_tags
    assert {"two_scenes.mp4", "dog.mp4"} <= sidecars


def test_what_it_prints_can_be_read(tour: tuple[Path, str]) -> None:
    printed = tour[1]
    assert max(map(len, printed.splitlines())) <= 120
    assert printed.count("\n== ") == 10  # the headings
    # The cat's row of the table over time: eight seconds of ten.
    assert "|████████  |" in printed


def test_nothing_is_written_elsewhere(tour: tuple[Path, str]) -> None:
    home = tour[0].parent
    ours = [path for path in home.rglob("*") if tour[0] not in path.parents and path != tour[0]]
    assert [path for path in ours if "vtag" in path.name] == []
    assert not list((ROOT / "sample_videos").glob("*.xmp"))
