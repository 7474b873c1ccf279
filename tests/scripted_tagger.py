"""A driver of Ray with a tagger that does what the names of files say: run as a script.

    python scripted_tagger.py ADDRESS FOLDER OUT

"kill…" ends the worker's process, "bug…" raises, "hang…" is decoded by a decoder that never ends
(`hostile_backends`), "slow…" takes a second, everything else is tagged at once. Prints the
summary as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vtag.config import Sampling
from vtag.decode_process import ChildLimits, DecoderProcess
from vtag.errors import MediaError
from vtag.records import Failure, ModelInfo, Record
from vtag.sources import Source
from vtag.tagger import Pipeline

MODEL = ModelInfo("scripted", "sha256:scripted", 0)
PIPELINE: Any = SimpleNamespace(head=SimpleNamespace(info=MODEL, extractor_names={}))
PIPELINE.failed = partial(Pipeline.failed, SimpleNamespace(_model=MODEL))


class ScriptedTagger:
    """See the module; `attempts` is a folder that keeps a note of everything that was begun."""

    pipeline = PIPELINE

    def __init__(self, attempts: Path) -> None:
        self._attempts = attempts
        self._decoder = DecoderProcess(
            ChildLimits(deadline_floor_seconds=1.0, deadline_per_media_second=0.01),
            backends="hostile_backends:BACKENDS",
        )

    def tag(self, source: Source) -> Record:
        path = Path(source.uri)
        (self._attempts / f"{path.stem} {os.getpid()} {time.time_ns()}").touch()
        act = path.stem.rstrip("0123456789")
        if act == "kill":
            os.kill(os.getpid(), 9)
        if act == "bug":
            raise RuntimeError("a bug\nof two lines")
        if act == "slow":
            time.sleep(1.0)
        try:
            if act == "hang":
                for _ in self._decoder.decode(
                    path, sampling=Sampling(), want_video=True, want_sound=False
                ):
                    pass
        except MediaError as err:
            failure = Failure(code=err.code, stage=err.stage, message=str(err), retryable=True)
            return Record(path=str(path), status="failed", error=failure, model=MODEL)
        return Record(path=str(path), status="ok", id=f"sha256:{path.name}", model=MODEL)


class OpenScripted:
    """Sent to the workers by name, as the real one is."""

    def __init__(self, attempts: Path) -> None:
        self._attempts = attempts

    def __call__(self, frames: object) -> ScriptedTagger:
        return ScriptedTagger(self._attempts)


def main(address: str, folder: Path, out: Path) -> None:
    """One run to its end."""
    from scripted_tagger import OpenScripted  # not __main__'s: workers import it

    from vtag.results import ResultsWriter
    from vtag.run import Summary, run
    from vtag.scale import RayEngine, joined_ray

    attempts = out.with_suffix(".attempts")
    attempts.mkdir(exist_ok=True)
    summary = Summary()
    inputs = sorted(str(path) for path in folder.iterdir())
    with joined_ray(address), ResultsWriter(out, model_fingerprint=MODEL.fingerprint) as results:
        engine = RayEngine(OpenScripted(attempts), PIPELINE)
        for _ in run(PIPELINE, inputs, results, summary, workers=1, engine=engine):
            pass
    sys.stdout.write("\n" + json.dumps(summary.to_dict()) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
