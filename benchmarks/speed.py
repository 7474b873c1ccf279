"""vtag against a naive pipeline and against the floor: one command, one table.

    python benchmarks/speed.py            # some 10 minutes on two quiet cores
    python benchmarks/speed.py --quick    # three short clips, one round: 1 to 2 minutes
    python benchmarks/speed.py --all      # every kind of clip 60 s long
    python benchmarks/speed.py --long     # and memory on files of 10 and of 40 minutes

Makes its clips, then runs every way in turn, round after round (so that a busy moment hits all),
each as a command of its own. What was measured is kept in --folder: a run that was cut short goes
on where it stopped, as long as neither vtag's code nor the settings changed; --again forgets it.
The tables are printed, written to FOLDER/speed.md, and with --docs into docs/performance.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import speed_tables
from clips import BY_NAME, Recipe, joined, make_clip, numbered_copies
from processes import Measured, measured
from tables import put_between

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parent / "docs" / "performance.md"
KINDS: Final = ("H.264, GOP 30", "H.264, GOP 250", "HEVC, GOP 250", "VP9, GOP 128")
# Every way must look at the same pictures, however long the clip.
MAX_FRAMES: Final = 3600
WARM_COPIES: Final = 60
PIECE_SECONDS: Final = 10


@dataclass(frozen=True)
class Settings:
    """What makes two measurements comparable."""

    kinds: tuple[str, ...]
    heights: tuple[int, ...]
    seconds: int
    all_long: bool
    warm_copies: int


class Kept:
    """What was measured already, one JSON line each; of this code and these settings only."""

    def __init__(self, path: Path, settings: Settings, *, again: bool) -> None:
        self._path = path
        self._key = hashlib.sha256(repr((settings, _code())).encode()).hexdigest()[:16]
        self._lines: dict[str, dict[str, Any]] = {}
        if path.exists() and not again:
            for line in path.read_text().splitlines():
                found = json.loads(line)
                if found["key"] == self._key:
                    self._lines[found["what"]] = found["values"]
        else:
            path.write_text("")

    def get(self, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The values kept under `what`, or measured now."""
        if what not in self._lines:
            print(f"  {what} …", end="", file=sys.stderr, flush=True)
            self._lines[what] = measure()
            line = {"key": self._key, "what": what, "values": self._lines[what]}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            seconds = self._lines[what].get("wall_seconds")
            print("" if seconds is None else f" {seconds:.1f} s", file=sys.stderr, flush=True)
        return self._lines[what]


def _code() -> str:
    """A hash of all modules of vtag, and of those here that measure."""
    digest = hashlib.sha256()
    paths = [
        p for f in ("pipeline", "extractors", "models") for p in (HERE.parent / f).glob("*.py")
    ]
    own = ("clips", "processes", "speed", "speed_floor", "speed_naive", "speed_stages")
    for path in sorted([*paths, *(HERE / f"{name}.py" for name in own)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# -- the clips ------------------------------------------------------------------------------


def batch_of(folder: Path, settings: Settings) -> list[Path]:
    """Each kind in each size, with sound, and the first tall kind six times as long."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for height in settings.heights:
        for number, kind in enumerate(settings.kinds):
            clip = piece(folder, BY_NAME[kind], height, settings.seconds, number)
            clips.append(
                joined(clip, seconds=settings.seconds, times=6) if settings.all_long else clip
            )
    if not settings.all_long and settings.seconds == PIECE_SECONDS and len(settings.heights) > 1:
        kind = BY_NAME[settings.kinds[min(1, len(settings.kinds) - 1)]]
        clip = piece(folder, kind, settings.heights[0], settings.seconds, 0)
        clips.append(joined(clip, seconds=settings.seconds, times=6))
    return clips


def piece(folder: Path, recipe: Recipe, height: int, seconds: int, number: int) -> Path:
    """A short clip with sound, over photographs of its own."""
    path = make_clip(folder, recipe, height, seconds, sound=True, first_photo=2 * number)
    print(f"  clip {path.name}", file=sys.stderr, flush=True)
    return path


# -- the ways -------------------------------------------------------------------------------


class Bench:
    """The commands that are compared, on one batch of clips."""

    def __init__(self, folder: Path, clips: Sequence[Path], kept: Kept, warm_copies: int) -> None:
        self.folder, self.clips, self.kept = folder, list(clips), kept
        self.inputs = folder / "batch"
        shutil.rmtree(self.inputs, ignore_errors=True)
        self.inputs.mkdir()
        for clip in self.clips:
            (self.inputs / clip.name).hardlink_to(clip)
        tiny = Recipe("tiny", "libx264", "mp4", 25, 0.3, {"preset": "ultrafast"})
        self.tiny = make_clip(folder, tiny, 96, 1, sound=True, first_photo=0)
        self.library = numbered_copies(self.tiny, folder / "library", warm_copies * len(clips))
        self.has_openvino = importlib.util.find_spec("openvino") is not None

    def vtag(self, inputs: Sequence[Path], cache: Path, *flags: str) -> Measured:
        """`vtag run` on files or folders, into a new output."""
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "vtag", "run", *map(str, inputs), "--quiet"]
            command += ["--out", f"{out}/tags.jsonl", "--cache", str(cache)]
            found = measured([*command, "--max-frames", str(MAX_FRAMES), *flags])
            lines = Path(out, "tags.jsonl").read_text().splitlines()
        failed = [line for line in lines if json.loads(line)["status"] != "ok"]
        if failed:
            raise SystemExit(f"a clip could not be tagged: {failed[0]}")
        return found

    def cold(self, name: str, *flags: str) -> Measured:
        """On the batch, nothing cached. Its cache stays until the next round."""
        cache = self.folder / f"cache-{name}"
        shutil.rmtree(cache, ignore_errors=True)
        return self.vtag([self.inputs], cache, *flags)

    def script(self, name: str, *flags: str) -> Measured:
        """A script of this folder on the batch; it says when it begins."""
        command = [sys.executable, str(HERE / name), *flags]
        return measured([*command, *map(str, self.clips)])

    def naive(self) -> Measured:
        """Rows are left in FOLDER/naive."""
        return self.script("speed_naive.py", "--out", str(self.folder / "naive"))

    def floor(self, *flags: str) -> Measured:
        """The bare work, on all cores."""
        return self.script("speed_floor.py", "--max-frames", str(MAX_FRAMES), *flags)

    def start_up(self, *flags: str) -> Measured:
        """The command on one clip of a second that the cache knows: all but the work."""
        cache = self.folder / "cache-tiny"
        self.kept.get(f"tiny {flags}", lambda: asdict(self.vtag([self.tiny], cache, *flags)))
        return self.vtag([self.tiny], cache, *flags)

    def first_tag(self) -> Measured:
        """The command on one clip of a second, nothing cached, records on stdout."""
        command = [sys.executable, "-m", "vtag", "run", str(self.tiny), "--quiet", "--no-cache"]
        return measured([*command, "--out", "-"])

    def warm(self) -> Measured:
        """A library of small files whose features, those of the batch many times, are cached."""
        cache = self.folder / "cache-warm"
        if not (cache / "seeded").exists():
            shutil.rmtree(cache, ignore_errors=True)
            self.vtag([self.inputs], cache, "--precision", "fp32")
            seed_cache(cache, self.clips, self.library)
            self.vtag([self.library[0].parent], cache, "--precision", "fp32")
            (cache / "seeded").write_text("")
        return self.vtag([self.library[0].parent], cache, "--precision", "fp32")

    def ways(self) -> dict[str, Callable[[], Measured]]:
        """Name to command; in the order of the table."""
        ways: dict[str, Callable[[], Measured]] = {"naive": self.naive}
        fp32 = ("--precision", "fp32")
        torch_fp32 = ("--backend", "torch", *fp32)
        openvino_fp32 = ("--backend", "openvino", *fp32)
        quickest = openvino_fp32 if self.has_openvino else torch_fp32
        if self.has_openvino:
            int8 = ("--precision", "int8")
            ways["vtag cold, fp32"] = lambda: self.cold("fp32", *openvino_fp32)
            ways["vtag cold, int8"] = lambda: self.cold("int8", *int8)
            ways["floor, fp32"] = lambda: self.floor(*openvino_fp32)
            ways["floor, int8"] = lambda: self.floor(*int8)
            ways["start-up, fp32"] = lambda: self.start_up(*openvino_fp32)
            ways["start-up, int8"] = lambda: self.start_up(*int8)
        ways["vtag cold, fp32, torch"] = lambda: self.cold("torch", *torch_fp32)
        ways["floor, fp32, torch"] = lambda: self.floor(*torch_fp32)
        ways["start-up, fp32, torch"] = lambda: self.start_up(*torch_fp32)
        ways["vtag keyframes"] = lambda: self.cold("keys", *quickest, "--sampling", "keyframes")
        ways["vtag adaptive"] = lambda: self.cold("adaptive", *quickest, "--sampling", "adaptive")
        ways["vtag warm"] = self.warm
        ways["first tag"] = self.first_tag
        return ways

    def rounds(self, count: int) -> dict[str, list[dict[str, Any]]]:
        """Every way in every round; each round begins with another one."""
        ways = self.ways()
        names = list(ways)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(count):
            print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found = self.kept.get(f"{number} {name}", lambda way=ways[name]: asdict(way()))
                runs[name].append(found)
        return runs

    def stages(self) -> dict[str, dict[str, Any]]:
        """CPU seconds per stage of vtag's ways, one file after the other."""
        kinds = {"vtag cold, fp32, torch": ("--backend", "torch")}
        if self.has_openvino:
            kinds["vtag cold, fp32"] = ("--backend", "openvino")
            kinds["vtag cold, int8"] = ("--precision", "int8")
        kinds["vtag keyframes"] = ("--sampling", "keyframes")
        kinds["vtag adaptive"] = ("--sampling", "adaptive")

        def stages_of(flags: tuple[str, ...]) -> dict[str, Any]:
            run = self.script("speed_stages.py", "--max-frames", str(MAX_FRAMES), *flags)
            return dict(json.loads(run.output))

        return {
            name: self.kept.get(f"stages {name}", lambda flags=flags: stages_of(flags))
            for name, flags in kinds.items()
        }

    def cosines(self) -> dict[str, Any]:
        """Mean and least cosine of the rows of the pictures, and of the sound, with naive's."""
        found = {}
        for name, precision in (("fp32", "fp32"), ("int8", "int8"), ("torch", "fp32")):
            cache = self.folder / f"cache-{name}"
            if cache.exists():
                found[name] = cosines_of(cache, precision, self.clips, self.folder / "naive")
        return found

    def long_files(self) -> list[dict[str, Any]]:
        """vtag as it is set by default on files of 10 and 40 minutes of 1080p, and naive on one."""
        clip = piece(self.folder, BY_NAME["H.264, GOP 250"], 1080, PIECE_SECONDS, 0)
        rows = []
        for minutes in (10, 40):
            path = joined(clip, seconds=PIECE_SECONDS, times=minutes * 60 // PIECE_SECONDS)
            for way in ("uniform", "keyframes", "adaptive"):

                def run(path: Path = path, way: str = way) -> dict[str, Any]:
                    command = [sys.executable, "-m", "vtag", "run", str(path), "--quiet"]
                    flags = ["--out", "-", "--no-cache", "--sampling", way]
                    return asdict(measured([*command, *flags]))

                found = self.kept.get(f"long {minutes} {way}", run)
                rows.append({"minutes": minutes, "way": f"vtag {way}", **found})
        return rows


def seed_cache(cache: Path, clips: Sequence[Path], library: Sequence[Path]) -> None:
    """Puts the features of the clips, in turn, into the cache as those of the library's files."""
    from vtag import Pipeline, Sampling
    from vtag.cache import FeatureCache
    from vtag.cache_entry import CacheEntry
    from vtag.features import SOUND_RULE

    sampling = Sampling(max_frames=MAX_FRAMES)
    with Pipeline(cache=cache, sampling=sampling, precision="fp32") as pipeline:
        assert pipeline.cache is not None
        known = [pipeline.features(clip) for clip in clips]
        for number, path in enumerate(library):
            clip = known[number % len(known)]
            info = {"media": clip.media.to_dict(), "warnings": list(clip.warnings)}
            for stream, features in clip.streams.items():
                rule = sampling.fingerprint() if stream == "visual" else SOUND_RULE
                key = FeatureCache.key(pipeline.content_id(path), features.made_by, rule)
                pipeline.cache.put(key, CacheEntry(features, info))


def cosines_of(cache: Path, precision: str, clips: Sequence[Path], naive: Path) -> dict[str, Any]:
    """Over all clips; a clip whose rows are not as many as naive's ends the benchmark."""
    from vtag import Pipeline, Sampling

    values: dict[str, list[float]] = {"visual": [], "audio": []}
    sampling = Sampling(max_frames=MAX_FRAMES)
    with Pipeline(cache=cache, sampling=sampling, precision=precision) as pipeline:  # type: ignore[arg-type]
        for clip in clips:
            theirs = np.load(naive / f"{clip.name}.npz")
            for stream, features in pipeline.features(clip).streams.items():
                ours, other = features.rows.astype(np.float64), theirs[stream].astype(np.float64)
                count = min(len(ours), len(other))
                # A wav made at another length may hold one segment more; pictures may not.
                if stream == "visual" and len(ours) != len(other):
                    raise SystemExit(f"{clip}: {len(ours)} rows, naive has {len(other)}")
                ours, other = ours[:count], other[:count]
                norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(other, axis=1)
                values[stream] += ((ours * other).sum(axis=1) / norms).tolist()
    return {
        stream: [statistics.fmean(some), min(some), len(some)] for stream, some in values.items()
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = Path(tempfile.gettempdir()) / "vtag-speed"
    add("--folder", type=Path, default=default, help="clips and measurements (%(default)s)")
    add("--quick", action="store_true", help="three clips of 5 s, one round")
    add("--all", action="store_true", help="all clips 60 s long instead of one")
    add("--long", action="store_true", help="also files of 10 and of 40 minutes")
    add("--rounds", type=int, help="default: 3")
    add("--kinds", nargs="+", choices=list(BY_NAME), help=f"default: {'; '.join(KINDS)}")
    add("--heights", type=int, nargs="+", help="default: 720 1080")
    add("--seconds", type=int, help=f"of the short clips; default: {PIECE_SECONDS}")
    add("--warm-copies", type=int, default=WARM_COPIES, help="of each clip in the warm library")
    add("--again", action="store_true", help="measures everything anew")
    add("--docs", action="store_true", help="writes the tables into docs/performance.md")
    add("--note", default="", help="said under the tables, such as: shared machine")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    quick = args.quick
    settings = Settings(
        kinds=tuple(args.kinds or (KINDS[1:] if quick else KINDS)),
        heights=tuple(args.heights or ((720,) if quick else (720, 1080))),
        seconds=args.seconds or (5 if quick else PIECE_SECONDS),
        all_long=args.all,
        warm_copies=args.warm_copies,
    )
    folder = args.folder
    clips = batch_of(folder, settings)
    kept = Kept(folder / "measured.jsonl", settings, again=args.again)
    bench = Bench(folder, clips, kept, settings.warm_copies)
    runs = bench.rounds(args.rounds or (1 if quick else 3))
    text = speed_tables.text_of(
        runs,
        stages=bench.stages(),
        cosines=kept.get("cosines", bench.cosines),
        warm_copies=settings.warm_copies,
        clips=clips,
        long_files=bench.long_files() if args.long else [],
        note=args.note,
    )
    print(text)
    (folder / "speed.md").write_text(text, encoding="utf-8")
    if args.docs:
        put_between(PAGE, "speed", text)


if __name__ == "__main__":
    main()
