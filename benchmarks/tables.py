"""Markdown tables, and pages whose tables are written by the command that measures them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def put_between(page: Path, name: str, text: str) -> None:
    """Puts text between `<!-- name:begin -->` and `<!-- name:end -->` of a page."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: has no lines {begin.strip()} and {end}; add them")
    page.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def machine_line(note: str = "") -> str:
    """The machine and the day, for under a table."""
    import torch

    words = [f"{os.cpu_count()} cores", _processor(), f"torch {torch.__version__}"]
    load = f"load average {os.getloadavg()[1]:.1f} at the end"
    return (
        f"Measured {datetime.date.today()} on {', '.join([*words, load, *filter(None, [note])])}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
