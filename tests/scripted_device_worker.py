"""A device worker without a network: dies, refuses or answers by the name of the file."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vtag.cli_device_worker import Answers
from vtag.records import Record


def main(arguments: Sequence[str]) -> None:
    flags, told = (json.loads(text) for text in arguments)
    answers = Answers(os.dup(1))
    if flags["device"] == "gone":
        answers.tell({"kind": "problem", "what": "EnvironmentProblem", "text": "no such device"})
        return
    if flags["device"] == "mute":
        os._exit(3)
    answers.tell({"kind": "ready", "visual": None})
    pool = ThreadPoolExecutor(told["slots"])
    for line in sys.stdin.buffer:
        pool.submit(serve, json.loads(line), answers, Path(flags["diary"]), flags["device"])
    os._exit(0)


def serve(request: dict[str, object], answers: Answers, diary: Path, device: str) -> None:
    path = str(request["path"])
    with diary.open("a", errors="surrogateescape") as file:
        file.write(f"{device} {path}\n")
    if "poison" in path:
        time.sleep(0.05)
        os._exit(9)
    if "bug" in path:
        answers.tell({"kind": "problem", "n": request["n"], "what": "KeyError", "text": path})
        return
    if "loud" in path:
        log = {"kind": "log", "name": "vtag.x", "level": 30, "text": f"seen {path}"}
        answers.tell(log)
    time.sleep(0.02)
    record = Record(path=path, status="ok", id=str(request["id"]))
    answers.tell({"kind": "record", "n": request["n"], "record": record.to_dict()})
