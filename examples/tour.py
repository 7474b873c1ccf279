"""A tour of vtag on the sample videos: offline, about twenty seconds on a laptop.

    python examples/tour.py                  # into the folder vtag-tour
    python examples/tour.py --out FOLDER

Editors that know `# %%` run it cell by cell. Most steps are one command too;
docs/quickstart.md goes the same way in a terminal.
"""

# %% A folder with copies of the clips: nothing is written beside the originals.
from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np

from vtag import Pipeline, Record, Selection
from vtag.dataset import Dataset, Sample
from vtag.report import ReportConfig, write_report
from vtag.results import ResultsWriter
from vtag.search import search
from vtag.sidecar import SidecarConfig, latest_records, write_sidecars
from vtag.table import clock, fitted, record_table
from vtag.train import train
from vtag.train_config import preset

parser = argparse.ArgumentParser(description="Shows on the sample videos what vtag does.")
parser.add_argument("--out", type=Path, default=Path("vtag-tour"), help="a folder for all results")
out = parser.parse_known_args()[0].out  # a notebook has words of its own on its command line
here = Path(globals().get("__file__", "examples/tour.py")).resolve()  # a notebook has no file
samples = here.parent.parent / "sample_videos"
videos = out / "videos"
videos.mkdir(parents=True, exist_ok=True)
clips = [
    Path(shutil.copy2(clip, videos)) if not (videos / clip.name).exists() else videos / clip.name
    for clip in sorted(samples.glob("*.mp4"))
]


def heading(text: str) -> None:
    """A line between the steps."""
    print(f"\n== {text}")


# %% Tag.  In a terminal: vtag run vtag-tour/videos --out vtag-tour/tags.jsonl
heading("Tag")
started = time.perf_counter()
pipeline = Pipeline(cache=out / "cache")
records = list(pipeline.tag_many(clips))
tag_seconds = time.perf_counter() - started
for record in records:
    print(f"{Path(record.path).name:<16} {', '.join(tag.name for tag in record.tags[:4])}")
print(f"{len(records)} clips in {tag_seconds:.1f} s")

# %% One clip for reading.  vtag tag vtag-tour/videos/two_scenes.mp4
heading("One clip")
two_scenes = next(r for r in records if r.path.endswith("two_scenes.mp4"))
print(record_table(two_scenes, colour=False))


# %% The same tags over time, a column for each second.
def over_time(record: Record, tags: int = 6) -> str:
    """A row for each tag, a full block for each second in which it is there."""
    assert record.media is not None
    seconds = np.arange(0, record.media.duration, 1.0)
    rows = []
    for tag in record.tags[:tags]:
        there = [any(s.start < t + 1 and t < s.end for s in tag.segments) for t in seconds]
        rows.append(f"  {fitted(tag.name, 26)} |{''.join('█' if yes else ' ' for yes in there)}|")
    return "\n".join(rows)


heading(f"Tags over time, 0:00 to {clock(two_scenes.media.duration if two_scenes.media else 0)}")
print(over_time(two_scenes))

# %% Again from the cache, with another threshold: nothing is decoded.
heading("The same clips again, every tag above 0.1")
started = time.perf_counter()
wider = Pipeline(cache=out / "cache", selection=Selection(threshold=0.1))
again = list(wider.tag_many(clips))
warm_seconds = time.perf_counter() - started
decoded = sum("decode" in record.timing for record in again)
print(f"{len(again)} clips in {warm_seconds:.1f} s, {decoded} of them decoded")
print(f"tags: {sum(len(r.tags) for r in records)} before, {sum(len(r.tags) for r in again)} now")
wider.close()

# %% Three tags of your own, learnt from one clip each; cockatoo and two_scenes are kept away.
# Eight clips are too few to measure anything: this shows how it goes, and why docs/train.md asks
# for ten clips of each tag. Each second of a clip is an example. `vtag train` makes such a
# dataset from a folder of clips by itself.
heading("Three tags of your own, from seconds of six clips")
TAGS = ("cat", "instrument", "parrot")
OWN_TAGS = {
    "cat": "cat",
    "drums": "instrument",
    "bird": "parrot",
    "coffee": "",
    "dog": "",
    "rocket": "",
}
HELD_OUT = {"cockatoo": {"parrot"}, "two_scenes": {"cat", "instrument"}}
examples: dict[str, list[Sample]] = {"train": [], "validation": []}
for clip in clips:
    if clip.stem not in OWN_TAGS:
        continue
    rows = pipeline.features(clip).streams["visual"].rows  # [T, 2048], one a second
    labels = tuple(TAGS.index(tag) for tag in (OWN_TAGS[clip.stem],) if tag)
    for second, row in enumerate(rows):
        # Neighbouring seconds are nearly copies, so these only choose when to stop and the
        # thresholds; how good the model is they can not say.
        side = "validation" if second % 3 == 2 else "train"
        name = f"{clip.stem} {clock(second)}"
        examples[side].append(Sample(name, labels, partial(dict, visual=row[None])))
some = pipeline.features(clips[0]).streams["visual"]
dataset = Dataset(
    label_ids=TAGS,
    label_names=TAGS,
    dims={"visual": some.rows.shape[1]},
    made_by={"visual": some.made_by},
    train=tuple(examples["train"]),
    validation=tuple(examples["validation"]),
    sampling=pipeline.sampling.fingerprint(),
)
mine = out / "my_model"
shutil.rmtree(mine, ignore_errors=True)
train(preset("small-data", epochs=8), dataset, mine)
print(f"learnt from {len(dataset.train)} seconds; the model is in {mine.name}/")

# %% The model on the two clips that it never saw.  vtag run … --model vtag-tour/my_model
heading("Your tags on the two clips that were kept away")
own = Pipeline(mine, cache=out / "cache")
own_records = [own.tag(clip) for clip in clips if clip.stem in HELD_OUT]
for record in own_records:
    print(record_table(record, colour=False))
    missed = HELD_OUT[Path(record.path).stem] - {tag.name for tag in record.tags}
    if missed:  # such as an instrument that fills two of ten seconds, after one drum kit
        print(f"  missed: {', '.join(missed)}")
own.close()

# %% Results in a file.  `vtag run` does this; the same file again would only take what is new.
heading("tags.jsonl")
results = out / "tags.jsonl"
results.unlink(missing_ok=True)
with ResultsWriter(results) as writer:
    for record in records:
        writer.write(record)
print(f"{len(records)} lines; the first begins {json.dumps(records[0].to_dict())[:60]}…")

# %% Search.  vtag search 'animal NOT dog' --library vtag-tour/tags.jsonl
heading("Search: category:animal NOT dog")
found = search("category:animal NOT dog", [results], folder=out / "search")
for hit in found.hits:
    best = ", ".join(f"{m.name} from {clock(m.segments[0].start)}" for m in hit.matches[:2])
    print(f"{hit.score:.2f}  {Path(hit.path).name:<16} {best}")

# %% A report that opens in a browser.  vtag report vtag-tour/tags.jsonl --out vtag-tour/report
heading("Report")
report = write_report(ReportConfig(results=(results,), out=out / "report", title="The tour"))
print(f"{report.videos} videos, {report.pictured + report.reused} with pictures: open this file")
print(out / "report" / "index.html")

# %% Tags for photo and video software.  vtag sidecar vtag-tour/tags.jsonl
heading("Sidecars: XMP beside each video")
config = SidecarConfig(min_score=0.5, max_tags=5)
for outcome in write_sidecars(latest_records(results), config, folders=[Path.cwd()]):
    print(f"{outcome.what:<9} {outcome.path.name}")

# %% What was found, in numbers (tests/test_examples.py looks at them).
pipeline.close()
summary = {
    "tags": {Path(r.path).name: [tag.id for tag in r.tags] for r in records},
    "decoded_again": decoded,
    "own": {
        Path(r.path).name: {t.id: [(s.start, s.end) for s in t.segments] for t in r.tags}
        for r in own_records
    },
    "hits": [Path(hit.path).name for hit in found.hits],
}
(out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
