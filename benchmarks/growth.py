"""Whether a library costs more per clip the larger it is: 1, 10, 100 and 1000 short clips.

    python benchmarks/growth.py [--most 1000] [--repeats 2] [--docs]

The clips are one drawn clip of two seconds, with sound, under other names and contents, so that
each costs the same. `vtag run` on each number of them, without and then with their features in
the cache: wall and CPU time per clip without start-up, peak memory. Some minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from clips import Recipe, make_clip, numbered_copies
from processes import Measured, measured
from tables import machine_line, put_between, table

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
SHORT: Final = Recipe("short", "libx264", "mp4", 25, 1.0, {"preset": "veryfast"})


def run(inputs: Path, cache: Path) -> Measured:
    """`vtag run` on a folder, into a new output."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "vtag", "run", str(inputs), "--quiet"]
        found = measured([*command, "--out", f"{out}/tags.jsonl", "--cache", str(cache)])
        lines = Path(out, "tags.jsonl").read_text().splitlines()
    tagged = sum(json.loads(line)["status"] == "ok" for line in lines)
    if tagged != len(list(inputs.iterdir())):
        raise SystemExit(f"{inputs}: {tagged} clips tagged of {len(list(inputs.iterdir()))}")
    return found


def measure(folder: Path, clip: Path, count: int) -> tuple[Measured, Measured]:
    """Cold and warm."""
    cache = folder / f"cache-{count}"
    shutil.rmtree(cache, ignore_errors=True)
    numbered_copies(clip, folder / f"clips-{count}", count)
    cold = run(folder / f"clips-{count}", cache)
    return cold, run(folder / f"clips-{count}", cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vtag-growth")
    parser.add_argument("--most", type=int, default=1000, help="clips")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="writes into docs/performance.md")
    parser.add_argument("--note", default="", help="said under the table")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    clip = make_clip(args.folder, SHORT, 180, 2, sound=True, first_photo=0)
    counts = [count for count in (1, 10, 100, 1000) if count < args.most] + [args.most]
    runs: dict[int, list[tuple[Measured, Measured]]] = {count: [] for count in counts}
    for _ in range(args.repeats):
        for count in counts:
            print(f"  {count} clips …", file=sys.stderr, flush=True)
            runs[count].append(measure(args.folder, clip, count))
    text = f"{machine_line(args.note)} Medians of {args.repeats}.\n\n{growth_table(runs)}"
    print(text)
    (args.folder / "growth.md").write_text(text, encoding="utf-8")
    if args.docs:
        put_between(PAGE, "growth", text)


def growth_table(runs: dict[int, list[tuple[Measured, Measured]]]) -> str:
    """Per number of clips. Start-up is what one clip in the cache takes."""
    start = {
        what: statistics.median(getattr(warm, what) for _, warm in runs[min(runs)])
        for what in ("wall_seconds", "cpu_seconds")
    }
    head = ["clips", "wall, s", "ms per clip", "CPU ms per clip", "from the cache: ms per clip",
            "largest process, MB", "all processes, MB"]  # fmt: skip
    rows = []
    for count, pairs in runs.items():
        colds, warms = zip(*pairs, strict=True)

        def each(some: tuple[Measured, ...], what: str, count: int = count) -> str:
            whole = statistics.median(getattr(one, what) for one in some)
            return f"{1000 * max(whole - start[what], 0) / count:.1f}"

        rows.append([
            str(count),
            f"{statistics.median(one.wall_seconds for one in colds):.1f}",
            each(colds, "wall_seconds"),
            each(colds, "cpu_seconds"),
            "-" if count == min(runs) else each(warms, "wall_seconds"),
            f"{statistics.median(one.largest_mb for one in colds):.0f}",
            f"{statistics.median(one.tree_mb for one in colds):.0f}",
        ])  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    main()
