"""The worker process of one device: reads which videos to tag, writes their records.

Started by `device_workers`, never by hand. A request is a line of JSON on standard input, an
answer one on what was standard output. It ends when its input does, and so with its parent.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vtag.cli_flags import pipeline_of, sampling_of, selection_of
from vtag.errors import EnvironmentProblem, VtagError
from vtag.tagger import Pipeline


def main(arguments: Sequence[str]) -> None:
    """Serves requests until standard input ends.

    Args:
        arguments: the flags of the run as JSON; slots, torch_threads and log_level as JSON.
    """
    import torch

    flags, told = (json.loads(text) for text in arguments)
    requests, answers = os.fdopen(os.dup(0), "rb"), Answers(os.dup(1))
    # What a library prints must not end up between the answers.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    logger = logging.getLogger("vtag")
    logger.setLevel(told["log_level"])
    logger.addHandler(ToParent(answers))
    torch.set_num_threads(told["torch_threads"])
    args = argparse.Namespace(**flags)
    try:
        pipeline = pipeline_of(args, sampling_of(args), selection_of(args))
        answers.tell({"kind": "ready", "visual": _visual(pipeline)})
    except VtagError as err:
        answers.tell({"kind": "problem", "what": _kind(err), "text": str(err)})
        return
    pool = ThreadPoolExecutor(told["slots"], thread_name_prefix="vtag")
    for line in requests:
        pool.submit(_serve, pipeline, json.loads(line), answers)
    # The parent has ended, or wants this to: what is half done is of no use to anybody.
    pipeline.close()
    os._exit(0)


class Answers:
    """The way back to the parent, for any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._guard = threading.Lock()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends one message; a parent that is gone does not hear it."""
        rest = memoryview(json.dumps(message).encode() + b"\n")
        with self._guard:
            while len(rest):
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except OSError:
                    return


class ToParent(logging.Handler):
    """Log lines as messages: how they look is the parent's business."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        """Sends the line."""
        text = record.getMessage()
        message = {"kind": "log", "name": record.name, "level": record.levelno, "text": text}
        self._answers.tell(message)


def _serve(pipeline: Pipeline, request: Mapping[str, Any], answers: Answers) -> None:
    number = request["n"]
    try:
        record = pipeline.try_tag(request["path"], request["id"])
        answers.tell({"kind": "record", "n": number, "record": record.to_dict()})
    except Exception as err:  # noqa: BLE001  raised in the parent
        text = str(err) if isinstance(err, VtagError) else f"{type(err).__name__}: {err}"
        answers.tell({"kind": "problem", "n": number, "what": _kind(err), "text": text})


def _kind(err: BaseException) -> str:
    known = isinstance(err, EnvironmentProblem) and type(err).__name__ not in ("WeightsError",)
    return "EnvironmentProblem" if known else type(err).__name__


def _visual(pipeline: Pipeline) -> dict[str, Any] | None:
    """What the parent must know of the network that looks at pictures."""
    extractor = pipeline.frames
    if extractor is None:
        return None
    return {"name": extractor.name, "dim": extractor.dim, "made_by": extractor.fingerprint()}
