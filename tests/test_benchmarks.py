"""The benchmarks run end to end on a tiny clip, and count what they say they count.

Never a time is asserted: machines differ, and a test must not depend on who else is at work.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The scripts import each other from their own folder, as when one of them is run."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """Three seconds, 170x96, with sound."""
    clips = script("clips")
    made = clips.make_clip(folder, clips.BY_NAME["H.264, GOP 30"], 96, 3, sound=True, first_photo=0)
    assert isinstance(made, Path)
    return made


def packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_joined_clip_is_its_piece_again_and_again(clip: Path, kind: str) -> None:
    once = packets(clip, kind)
    thrice = packets(script("clips").joined(clip, seconds=3, times=3), kind)
    assert [data for _, data in thrice] == [data for _, data in once] * 3
    times = [seconds for seconds, _ in thrice]
    expected = [seconds + 3 * turn for turn in range(3) for seconds, _ in once]
    np.testing.assert_allclose(times, expected, atol=0.001)


def test_numbered_copies_are_different_files_of_the_same_video(clip: Path, tmp_path: Path) -> None:
    copies = script("clips").numbered_copies(clip, tmp_path / "copies", 3)
    assert len({path.read_bytes() for path in copies}) == 3
    assert all(packets(path, "video") == packets(clip, "video") for path in copies)


def test_memory_and_cpu_of_the_whole_tree_are_measured() -> None:
    """The child takes 200 MB and its child 100 MB more at the same time."""
    small = "import time; b = bytearray(b'x') * (100 << 20); time.sleep(0.5)"
    large = (
        "import subprocess, sys; print('ready', flush=True); a = bytearray(b'x') * (200 << 20); "
        f"subprocess.run([sys.executable, '-c', {small!r}]); print(len(a))"
    )
    found = script("processes").measured([sys.executable, "-c", large])
    assert found.output == f"ready\n{200 << 20}\n"
    assert 0 < found.first_line_seconds < found.wall_seconds
    assert found.cpu_seconds > 0
    if sys.platform == "linux":
        assert 200 <= found.largest_mb < 290
        assert 300 <= found.tree_mb < 390


def test_a_command_that_fails_ends_the_benchmark_with_its_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(SystemExit, match="no such thing"):
        script("processes").measured(command)


class Threads:
    """In place of a multiprocessing context: the floor's processes as threads of this one."""

    Pipe = staticmethod(multiprocessing.Pipe)
    Process = threading.Thread


def run_here(command: Sequence[str], **_: object) -> object:
    """What `processes.measured` does, in this process: torch is imported once and not ten times.

    The times are made up; nothing but the form of the tables depends on them.
    """
    from vtag.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        if command[1] == "-m":
            assert main(list(command[3:])) == 0, command
        else:
            _run_script(Path(command[1]).stem, command[1:])
    numbers = {"wall_seconds": 2.0, "first_line_seconds": 1.0, "cpu_seconds": 3.0}
    return script("processes").Measured(
        **numbers, largest_mb=10.0, tree_mb=20.0, output=said.getvalue()
    )


def _run_script(name: str, words: Sequence[str]) -> None:
    before = sys.argv
    sys.argv = list(words)
    try:
        script(name).main()
    finally:
        sys.argv = before


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs a benchmark's `main` with some words, and its commands in this process."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(script("speed"), "measured", run_here)
    monkeypatch.setattr(script("growth"), "measured", run_here)
    monkeypatch.setattr(script("speed"), "_code", lambda: "the same code in both runs")
    # Half the ways, and half the time of this test.
    no_openvino = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr(script("speed"), "importlib", no_openvino)
    context = SimpleNamespace(get_context=lambda _: Threads)
    monkeypatch.setattr(script("speed_floor"), "multiprocessing", context)
    monkeypatch.setattr(script("speed_floor"), "usable_cores", lambda: 1)
    yield lambda name, *words: _run_script(name, [name, *words])
    torch.set_num_threads(threads)


def cells(text: str, first: str) -> list[str]:
    """Of the line of a table that begins with `first`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert lines, f"no line {first!r} in\n{text}"
    return [cell.strip() for cell in lines[0].split("|")[2:-1]]


def test_speed_runs_end_to_end(
    here: Callable[..., None], clip: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folder", str(folder), "--kinds", "H.264, GOP 30", "--heights", "96"]
    words += ["--seconds", "3", "--rounds", "1", "--warm-copies", "2"]
    here("speed", *words)
    text = capsys.readouterr().out
    assert text.strip() == (folder / "speed.md").read_text().strip()
    # Three pictures are looked at by either way, with the same weights. So small a picture is
    # enlarged, where PIL and FFmpeg differ more than in shrinking: hence not 0.999.
    cosine = cells(text, "vtag cold, fp32, torch")[-1]
    mean, least = map(float, cosine.split(", "))
    assert 0.98 < least <= mean <= 1
    # The stages of each way took some CPU time.
    stages = text.partition("CPU seconds by stage")[2]
    for way in ("naive", "vtag cold, fp32, torch", "floor, fp32, torch"):
        assert all(float(cell) > 0 for cell in cells(stages, way)[1:2]), way
    # The second time, everything is known: not a single command is run.
    script("speed").measured = lambda *_, **__: pytest.fail("measured again")
    here("speed", *words)
    assert capsys.readouterr().out.strip().split("\n")[2:] == text.strip().split("\n")[2:]


def test_growth_runs_end_to_end(
    here: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here("growth", "--folder", str(tmp_path), "--most", "2", "--repeats", "1")
    text = capsys.readouterr().out
    # Every run "takes" 2 s, so does a start, and nothing is left for the clips.
    assert cells(text, "1") == ["2.0", "0.0", "0.0", "-", "10", "20"]
    assert cells(text, "2") == ["2.0", "0.0", "0.0", "0.0", "10", "20"]
    assert len(list((tmp_path / "clips-2").iterdir())) == 2


def test_ratios_are_of_the_work_without_start_up() -> None:
    """Figures that are made up, and what follows from them by hand."""
    tables = script("speed_tables")
    naive = '{"decode": 6, "network": 8, "sound": 1, "rest": 1, "unused": 2}'
    floor = '{"decode": 2, "network": 5, "sound": 1, "decode cpu": 2, "network cpu": 4, '
    floor += '"sound cpu": 1}'

    def run(wall: float, cpu: float, output: str = "") -> dict[str, object]:
        numbers = {"wall_seconds": wall, "cpu_seconds": cpu, "first_line_seconds": 4.0}
        return {**numbers, "largest_mb": 100.0, "tree_mb": 200.0, "output": output}

    runs = {
        "naive": [run(24, 30, naive)],
        "vtag cold, fp32, torch": [run(8, 11)],
        "floor, fp32, torch": [run(9, 9, floor)],
        "start-up, fp32, torch": [run(3, 3)],
        "vtag warm": [run(4, 4)],
    }
    rows = tables._ways(runs, 10)
    assert rows["naive"]["work"] == 24 - 4
    assert rows["vtag cold, fp32, torch"]["work"] == 8 - 3
    assert rows["vtag cold, fp32, torch"]["cpu work"] == 11 - 3
    assert rows["floor, fp32, torch"]["work"] == pytest.approx(8 / tables.usable_cores())
    assert rows["floor, fp32, torch"]["cpu work"] == 7
    assert rows["vtag warm"]["work"] == pytest.approx((4 - 3) / 10)
    line = cells(tables._main_table(rows, {}), "vtag cold, fp32, torch")
    assert line[2:4] == ["4.00", "2.00"]  # 20 / 5 and 16 / 8


def test_tables_are_put_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
    for text in ("new\n", "newer\n"):
        script("tables").put_between(page, "speed", text)
    assert page.read_text() == "before\n<!-- speed:begin -->\nnewer\n<!-- speed:end -->\nafter\n"
    with pytest.raises(SystemExit, match="growth:begin"):
        script("tables").put_between(page, "growth", "new\n")


def test_the_page_has_the_places_that_the_commands_write() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("speed", "growth"):
        found = re.search(f"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", page, re.DOTALL)
        assert found, name
        assert re.search(r"Measured \d{4}-\d\d-\d\d on \d+ cores", found[1])
        assert found[1].count("| --- |") >= 1


def test_the_search_benchmark_asks_what_it_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["search.py", "--records", "300", "--rounds", "1"])
    script("search").main()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+) match", capsys.readouterr().out, re.M))
    counts = {what: int(count) for what, count in rows.items()}
    assert counts["a rare word"] < counts["one frequent word"] < 300
    assert 0 < counts["two frequent words at the same time"] <= counts["two frequent words"]
    assert counts["a score without any word: every tag is looked at"] > 200
