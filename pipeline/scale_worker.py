"""What a worker process of the cluster does: from the names in a row to their records."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np

from vtag.errors import ERROR_CODES, EnvironmentProblem, MediaError, VtagError
from vtag.records import Record
from vtag.scale_networks import RemoteFrames
from vtag.sources import Source
from vtag.tagger import Pipeline

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3  # an input that was begun so often and never ended is given up


class Tagger(Protocol):
    """What a worker tags with: `vtag.remote_tagger.SourceTagger`."""

    pipeline: Pipeline

    def tag(self, source: Source) -> Record: ...


# Makes the tagger of a worker process, around the picture network that it is given.
OpenTagger = Callable[[RemoteFrames | None], Tagger]


class Attempts:
    """Counts how often each input was begun without an end. One actor of a run."""

    def __init__(self) -> None:
        self._begun: dict[bytes, int] = {}

    def begin(self, name: bytes) -> int:
        """How often this input was begun before, and never ended."""
        before = self._begun.get(name, 0)
        self._begun[name] = before + 1
        return before

    def end(self, name: bytes) -> None:
        """The worker has lived through it."""
        self._begun.pop(name, None)


@dataclass(frozen=True)
class Job:
    """What every worker is told. Two are equal when they are of one run.

    Attributes:
        token: of the run.
        open_tagger: see `OpenTagger`.
        model: fingerprint that its model must have.
        attempts: handle of the actor.
        frames: the picture network elsewhere; None when it belongs into the worker.
    """

    token: str
    open_tagger: OpenTagger = field(compare=False)
    model: str = field(compare=False)
    attempts: Any = field(compare=False)
    frames: RemoteFrames | None = field(compare=False)


@lru_cache(maxsize=1)
def tagger_of(job: Job) -> Tagger:
    """The tagger of this worker process, made once and kept from task to task."""
    import torch

    torch.set_num_threads(1)  # a worker has one core
    tagger = job.open_tagger(job.frames)
    theirs = tagger.pipeline.head.info.fingerprint
    if theirs != job.model:
        raise EnvironmentProblem(
            f"its model is {theirs} and that of the driver {job.model}; install the same vtag "
            "and model on every node"
        )
    return tagger


def tag_rows(rows: dict[str, Any], job: Job) -> dict[str, Any]:
    """The records of some inputs: `map_batches` calls this in a worker.

    Args:
        rows: "path" and "source", bytes [n]: what the record is to say, and `Source.to_row` as
            JSON.

    Returns:
        "record", `Record` [n]; or "problem", text: this worker can not work at all.
    """
    import ray

    try:
        tagger = tagger_of(job)
    except VtagError as err:
        where = ray.util.get_node_ip_address()
        return {"record": _column([None]), "problem": [f"a worker on {where} can not start: {err}"]}
    found = []
    for name, source in zip(rows["path"], rows["source"], strict=True):
        path = os.fsdecode(name)
        lost = ray.get(job.attempts.begin.remote(name))
        if lost < MAX_ATTEMPTS:
            found.append(_tag(tagger, path, source))
        else:
            words = f"{lost} workers ended while they had it"
            found.append(failed(tagger.pipeline, path, "worker_lost", words))
        job.attempts.end.remote(name)
    return {"record": _column(found), "problem": [""] * len(found)}


def _tag(tagger: Tagger, path: str, source: bytes) -> Record:
    try:
        fields = json.loads(source)
        return under_name(tagger.tag(Source.from_row(fields)), path, fields["uri"])
    except Exception as err:  # a bug, or a machine that lacks something: it has its record too
        log.exception("%s", path)
        return failed(tagger.pipeline, path, "worker_error", f"{type(err).__name__}: {err}")


def failed(pipeline: Pipeline, path: str, code: str, words: str) -> Record:
    """The record of an input that could not be worked on, whatever it holds."""
    about = ERROR_CODES[code]
    message = f"{path}: {' '.join(words.split())}; {about.remedy}"
    return pipeline.failed(path, MediaError(message, code=code))


def under_name(record: Record, path: str, uri: str) -> Record:
    """The record as a run in the user's own folder would have written it."""
    error = record.error and replace(record.error, message=record.error.message.replace(uri, path))
    return replace(record, path=path, error=error)


def _column(records: Sequence[Record | None]) -> np.ndarray[Any, np.dtype[np.object_]]:
    column = np.empty(len(records), object)
    column[:] = records
    return column


def row_of(source: Source) -> dict[str, bytes]:
    """What is sent of a source. Bytes: a file name need not be text that Arrow can hold."""
    fields = source.to_row()
    if source.remote is None:  # a worker does not run in the driver's folder
        fields["uri"] = os.path.abspath(source.uri)
    return {"path": os.fsencode(source.path), "source": json.dumps(fields).encode()}
