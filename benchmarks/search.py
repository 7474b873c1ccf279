"""What `vtag search` takes on a large library of drawn records, index included.

    python benchmarks/search.py --docs     # some 2 minutes; the table goes into docs/search.md

The labels are those of vtag-base, some eight a video, about as often as words are in a language
(Zipf).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tables import machine_line, put_between, table

from vtag.head import load_head
from vtag.models.labels import Label, LabelSet
from vtag.search import search

PAGE = Path(__file__).parent.parent / "docs" / "search.md"
QUERIES = {
    "a rare word": "{rare}",
    "two frequent words": "{often} AND {second}",
    "one frequent word": "{often}",
    "a category of many labels": "category:animal",
    "a score without any word: every tag is looked at": "score:>0.9",
    "two frequent words at the same time": "{often} AND {second}",
}


def main() -> None:
    """Draws the library, asks, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9, help="the median counts")
    parser.add_argument("--docs", action="store_true", help=f"writes the table into {PAGE.name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tags, index = Path(folder, "tags.jsonl"), Path(folder, "search")
        words = draw(tags, args.records)
        began = time.perf_counter()
        search(words["often"], [tags], folder=index)
        size = sum(file.stat().st_size for file in index.iterdir()) / 1e6
        rows = [("making the index", f"{size:.0f} MB", f"{time.perf_counter() - began:.1f} s")]
        for what, query in QUERIES.items():
            together = what.endswith("at the same time")
            seconds = []
            for _ in range(args.rounds):
                began = time.perf_counter()
                hits = search(
                    query.format(**words), [tags], folder=index, together=together, limit=20
                )
                seconds.append(time.perf_counter() - began)
            rows.append(
                (what, f"{hits.total:,} match", f"{statistics.median(seconds) * 1000:.0f} ms")
            )
        megabytes = tags.stat().st_size / 1e6
    text = f"{machine_line()} {args.records:,} records, {megabytes:.0f} MB of JSON; one core.\n\n"
    text += table(["what", "", "time"], rows)
    print(text)
    if args.docs:
        put_between(PAGE, "search", text)


def draw(file: Path, count: int) -> dict[str, str]:
    """Writes the records; gives a word that is often there, the second, and a rare one."""
    labels = load_head("vtag-base").labels
    rng = np.random.default_rng(1)
    order = rng.permutation(len(labels))
    often = 1 / (np.arange(len(labels)) + 4)  # the first one in a third of the videos
    with file.open("w") as out:
        for number in range(count):
            places = np.unique(rng.choice(len(labels), 9, p=often / often.sum()))
            found = [one_tag(labels, labels[order[place]], rng) for place in places]
            out.write(json.dumps(record(number, found)) + "\n")
    names = [f'"{labels[place].name}"' for place in order]
    return {"often": names[0], "second": names[1], "rare": names[-1]}


def one_tag(labels: LabelSet, label: Label, rng: np.random.Generator) -> dict[str, Any]:
    """A tag with one to three segments."""
    edges = np.sort(rng.choice(60, 2 * int(rng.integers(1, 4)), replace=False)).astype(float)
    score = round(float(rng.beta(4, 1)), 4)
    spans = [
        {"start": start, "end": end, "score": score}
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]
    return {
        "id": label.id,
        "name": label.name,
        "score": score,
        "threshold": 0.5,
        "categories": list(labels.categories(label)),
        "sources": ["visual"],
        "segments": spans,
        "evidence": [],
    }


def record(number: int, tags: list[dict[str, Any]]) -> dict[str, Any]:
    """A record of schema 1."""
    return {
        "schema": 1,
        "id": f"sha256:{number:064x}",
        "path": f"videos/{number // 1000}/{number}.mp4",
        "status": "ok",
        "media": {"duration": 60.0},
        "tags": sorted(tags, key=lambda tag: -tag["score"]),
        "model": None,
        "timing": {},
        "warnings": [],
    }


if __name__ == "__main__":
    main()
