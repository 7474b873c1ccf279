"""The tables of docs/learning.md, by one command:

    python benchmarks/learning.py --clips CLIPS.csv --youtube8m FOLDER --out tables.md

Every part is left out whose data is not named; the poolings are always measured, and on the
clips too where there are any. Clips need one label each, and groups.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from learning_few_clips import clips_of, few_clips_table, poolings_table
from learning_youtube8m import youtube8m_table


def main() -> int:
    """Measures, and writes Markdown tables."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    parts = [_machine(args.threads)]
    clips = None
    if args.clips:
        cache = Path(args.cache) if args.cache else None
        clips = clips_of(Path(args.clips), cache=cache, frames_per_second=args.frames_per_second)
        rows = few_clips_table(clips, folds=args.folds, seeds=args.seeds)
        parts.append(_table(f"{len(clips)} clips, {args.folds} folds by group", rows))
    if args.youtube8m:
        folder = Path(args.youtube8m)
        rows = youtube8m_table(
            folder / "video_level",
            folder / "vocabulary.csv",
            classes=args.classes,
            epochs=args.epochs,
        )
        named = "all classes" if args.classes is None else f"{args.classes} most frequent classes"
        parts.append(_table(f"YouTube-8M, video level, {named}", rows))
    if not args.no_poolings:
        parts.append(_table("Poolings", poolings_table(clips, folds=args.folds)))
    text = "\n\n".join(parts) + "\n"
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    print(text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", metavar="CSV", help="labelled clips with groups")
    parser.add_argument("--youtube8m", metavar="DIR", help="with video_level/ and vocabulary.csv")
    parser.add_argument("--cache", metavar="DIR", help="where features of the clips are kept")
    parser.add_argument("--frames-per-second", type=float, default=1.0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=4, help="ways to deal out the groups")
    parser.add_argument("--classes", type=int, help="of YouTube-8M, the most frequent ones")
    parser.add_argument("--epochs", type=int, default=12, help="of YouTube-8M")
    parser.add_argument("--no-poolings", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", metavar="FILE.md")
    return parser.parse_args()


def _machine(threads: int) -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {threads} thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _table(title: str, rows: Sequence[dict[str, object]]) -> str:
    names = list(rows[0])
    lines = [
        f"## {title}",
        "",
        "| " + " | ".join(names) + " |",
        "|" + " --- |" * len(names),
        *("| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
