"""The tables of speed.py, from what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
from tables import machine_line, table

from vtag.cores import usable_cores

Runs = Mapping[str, Sequence[Mapping[str, Any]]]

UNKNOWN = "lost in start-up"  # the work took less than what starting varies by


def text_of(
    runs: Runs,
    *,
    stages: Mapping[str, Mapping[str, float]],
    cosines: Mapping[str, Mapping[str, Sequence[float]]],
    warm_copies: int,
    clips: Sequence[Path],
    long_files: Sequence[Mapping[str, Any]],
    note: str,
) -> str:
    """Everything as Markdown."""
    rounds = len(runs["naive"])
    seconds = _seconds_of(clips)
    rows = _ways(runs, warm_copies)
    parts = [
        f"{machine_line(note)} {len(clips)} clips, {seconds:.0f} s of video in all; medians of "
        f"{rounds} interleaved round{'s' * (rounds > 1)}.\n\n",
        _main_table(rows, cosines),
        f"\nFrom the command to the first tag of a clip of one second: "
        f"{_median(runs['first tag'], 'first_line_seconds'):.1f} s. Everything in the cache: "
        f"{_videos_a_minute(rows, clips)} videos a minute.\n",
        "\nCPU seconds by stage:\n\n",
        _stage_table(runs, stages),
        "\nAgainst the goals:\n\n",
        _goal_table(runs, rows, cosines),
    ]
    if long_files:
        parts += ["\nLong files (1080p H.264, GOP 250, with sound; all flags at default):\n\n"]
        parts += [_long_table(long_files)]
    return "".join(parts)


def _seconds_of(clips: Sequence[Path]) -> float:
    total = 0.0
    for clip in clips:
        with av.open(str(clip)) as container:
            total += (container.duration or 0) / 1e6
    return total


def _videos_a_minute(rows: Mapping[str, Mapping[str, float]], clips: Sequence[Path]) -> str:
    work = rows["vtag warm"]["work"]
    return f"{60 * len(clips) / work:.0f}" if work else "too many to tell from starting:"


def _median(runs: Sequence[Mapping[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _ways(runs: Runs, warm_copies: int) -> dict[str, dict[str, float]]:
    """Per way: wall and CPU seconds of the work on one batch, without start-up, and memory."""
    found = {}
    for name, some in runs.items():
        if name.startswith(("start-up", "first")):
            continue
        row = {what: _median(some, what) for what in ("wall_seconds", "largest_mb", "tree_mb")}
        row["cpu"] = _median(some, "cpu_seconds")
        if name.startswith("floor"):
            spent = [json.loads(run["output"].splitlines()[-1]) for run in some]
            stages = ("decode", "network", "sound")
            row["work"] = statistics.median(sum(one[s] for s in stages) for one in spent)
            row["work"] /= usable_cores()
            row["cpu work"] = statistics.median(
                sum(one[f"{s} cpu"] for s in stages) for one in spent
            )
        elif name == "naive":
            row["work"] = statistics.median(
                r["wall_seconds"] - r["first_line_seconds"] for r in some
            )
            spent = [json.loads(run["output"].splitlines()[-1]) for run in some]
            row["cpu work"] = statistics.median(
                sum(one[s] for s in ("decode", "network", "sound", "rest")) for one in spent
            )
        else:
            start = runs[_start_of(name, runs)]
            share = warm_copies if name == "vtag warm" else 1
            row["start"] = _median(start, "wall_seconds")
            work = row["wall_seconds"] - row["start"]
            # Starting varies by a twentieth on a quiet machine: less work than that is no figure.
            row["work"] = work / share if work > row["start"] / 20 else 0.0
            row["cpu work"] = max(0.0, row["cpu"] - _median(start, "cpu_seconds")) / share
        found[name] = row
    return found


def _start_of(name: str, runs: Runs) -> str:
    if name.endswith("int8"):
        return "start-up, int8"
    if name.endswith("torch") or "start-up, fp32" not in runs:
        return "start-up, fp32, torch"
    return "start-up, fp32"


def _floor_of(name: str, rows: Mapping[str, Any]) -> str | None:
    if not name.startswith("vtag cold"):
        return None
    floor = name.replace("vtag cold", "floor")
    return floor if floor in rows else None


def _main_table(
    rows: Mapping[str, Mapping[str, float]], cosines: Mapping[str, Mapping[str, Sequence[float]]]
) -> str:
    caches = {"fp32": "fp32", "int8": "int8", "torch": "torch"}
    head = [
        "",
        "wall, s",
        "CPU, s",
        "naive / this (wall)",
        "(CPU)",
        "this / floor (wall)",
        "(CPU)",
        "largest process, MB",
        "all processes, MB",
        "cosine with naive: mean, least",
    ]
    groups = ("naive", "vtag", "floor")
    order = sorted(rows, key=lambda name: groups.index(name.split()[0].strip(",")))
    lines, naive = [], rows["naive"]
    for name in order:
        row, floor = rows[name], _floor_of(name, rows)
        cosine = cosines.get(caches.get(name.split(", ")[-1], ""), {})
        values = cosine["visual"] if cosine and name.startswith("vtag cold") else None
        lines.append([
            name,
            _short(row["work"]),
            _short(row["cpu work"]),
            _times(naive["work"], row["work"]),
            _times(naive["cpu work"], row["cpu work"]),
            _times(row["work"], rows[floor]["work"]) if floor else "",
            _times(row["cpu work"], rows[floor]["cpu work"]) if floor else "",
            f"{row['largest_mb']:.0f}",
            f"{row['tree_mb']:.0f}",
            f"{values[0]:.5f}, {values[1]:.5f}" if values else "",
        ])  # fmt: skip
    return table(head, lines)


def _short(seconds: float) -> str:
    if seconds <= 0:
        return UNKNOWN
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3f}"


def _times(more: float, less: float) -> str:
    if less <= 0 or more <= 0:
        return UNKNOWN
    return f"{more / less:.2f}" if more < 20 * less else f"{more / less:.0f}"


def _stage_table(runs: Runs, stages: Mapping[str, Mapping[str, float]]) -> str:
    names = ("decode", "network", "sound", "rest")
    naive = [json.loads(run["output"].splitlines()[-1]) for run in runs["naive"]]
    lines = []

    def add(name: str, values: Mapping[str, float]) -> None:
        lines.append([name, *(f"{values[s]:.2f}" if s in values else "" for s in names)])

    add("naive", {s: statistics.median(one[s] for one in naive) for s in names})
    unused = statistics.median(one["unused"] for one in naive)
    lines.append(["(of it: pictures made RGB that nobody looks at)", f"{unused:.2f}", "", "", ""])
    for name, values in stages.items():
        add(name, values)
    for name, some in runs.items():
        if name.startswith("floor"):
            spent = [json.loads(run["output"].splitlines()[-1]) for run in some]
            add(name, {s: statistics.median(o[f"{s} cpu"] for o in spent) for s in names[:3]})
    return table(["", *names], lines)


def _goal_table(
    runs: Runs,
    rows: Mapping[str, Mapping[str, float]],
    cosines: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    naive = rows["naive"]
    lines = []

    def add(what: str, sign: str, goal: float, reached: float, by_cpu: float | None = None) -> None:
        met = reached >= goal if sign == ">=" else 0 < reached <= goal
        verdict = ("yes" if met else "no") if reached > 0 else UNKNOWN
        cpu = "" if by_cpu is None else f"{by_cpu:.4g}"
        lines.append([what, f"{sign} {goal:g}", f"{reached:.4g}" if reached else "", cpu, verdict])

    def ratio(one: Mapping[str, float], other: Mapping[str, float], clock: str) -> float:
        return one[clock] / other[clock] if min(one[clock], other[clock]) > 0 else 0.0

    best = "vtag cold, fp32" if "vtag cold, fp32" in rows else "vtag cold, fp32, torch"
    goals = {best: 2, "vtag cold, int8": 3, "vtag keyframes": 8, "vtag warm": 200}
    for name, goal in goals.items():
        if name in rows:
            both = [ratio(naive, rows[name], clock) for clock in ("work", "cpu work")]
            add(f"naive / {name}", ">=", goal, *both)
    for name in rows:
        floor = _floor_of(name, rows)
        if floor:
            both = [ratio(rows[name], rows[floor], clock) for clock in ("work", "cpu work")]
            add(f"{name} / floor", "<=", 1.15, *both)
    for name in ("fp32", "int8", "torch"):
        if name in cosines:
            goal = 0.995 if name == "int8" else 0.999
            add(f"cosine with naive, {name}: mean", ">=", goal, cosines[name]["visual"][0])
    largest = max(row["tree_mb"] for name, row in rows.items() if name.startswith("vtag"))
    add("peak of all processes, MB", "<=", 1500, largest)
    add("command to first tag, s", "<=", 6, _median(runs["first tag"], "first_line_seconds"))
    return table(["", "goal", "reached (wall)", "by CPU time", ""], lines)


def _long_table(long_files: Sequence[Mapping[str, Any]]) -> str:
    head = ["", "wall, s", "CPU, s", "largest process, MB", "all processes, MB"]
    return table(
        head,
        [
            [
                f"{row['minutes']} min, {row['way']}",
                f"{row['wall_seconds']:.1f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['largest_mb']:.0f}",
                f"{row['tree_mb']:.0f}",
            ]
            for row in long_files
        ],
    )
