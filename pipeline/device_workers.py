"""Several devices on one machine: a worker process for each, and one run that hands out videos.

The parent keeps what must be one: inputs, results, which contents are known. A worker decodes,
runs its device's network and sends records back, as lines of JSON. It is started like the decode
child, so the user's script is never run again. A worker that dies (killed, out of memory, a
driver that crashed) is replaced, and what it had is given out again: a lost video becomes a record
in any case.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch import Tensor

from vtag.errors import ERROR_CODES, ConfigError, EnvironmentProblem, MediaError, WeightsError
from vtag.killable import python_command
from vtag.moved import record_from
from vtag.records import Record
from vtag.tagger import Pipeline

log = logging.getLogger(__name__)

WORKER_MODULE: Final = "vtag.cli_device_worker"
MAX_LOST: Final = 3  # workers that may die while they have one video
START_SECONDS: Final = 300.0  # torch from a cold disk, and a network on a GPU
END_SECONDS: Final = 10.0  # for a worker to store what it has computed
_PROBLEMS: Final = {kind.__name__: kind for kind in (ConfigError, EnvironmentProblem, WeightsError)}


class WorkerLost(Exception):
    """The worker ended before it answered."""


@dataclass(frozen=True)
class Elsewhere:
    """A network that runs in the workers: what the parent must know of it to ask the cache."""

    name: str
    dim: int
    made_by: str
    stream: Final = "visual"

    @property
    def device(self) -> torch.device:
        """Not one that shares batches here."""
        return torch.device("cpu")

    def fingerprint(self) -> str:
        """That of the network in the workers."""
        return self.made_by

    def __call__(self, pixels: Tensor) -> Tensor:
        """Never asked: whatever needs the network is given to a worker."""
        raise RuntimeError(f"{self.name} runs in the workers only")


class DeviceWorker:
    """One worker process and the videos that it has.

    Args:
        device: what it runs on.
        flags: the command line of the run.
        slots: videos that it works on at once.
        torch_threads: of each network pass on a CPU.

    Raises:
        EnvironmentProblem: it can not be started.
    """

    def __init__(
        self, device: str, flags: Mapping[str, Any], *, slots: int, torch_threads: int
    ) -> None:
        self.device = device
        self.slots = slots
        self.ready: Future[dict[str, Any]] = Future()
        self._guard = threading.Lock()
        self._asked: dict[int, Future[Record]] = {}
        self._number = 0
        self._lost = False
        told = {"slots": slots, "torch_threads": torch_threads, "log_level": _log_level()}
        arguments = [json.dumps({**flags, "device": device}), json.dumps(told)]
        try:
            self.process = subprocess.Popen(
                python_command(WORKER_MODULE, arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C is for the parent, which then ends its workers.
                start_new_session=True,
            )
        except OSError as err:
            raise EnvironmentProblem(f"a worker for {device} can not be started ({err})") from err
        self._reader = threading.Thread(
            target=self._read, args=(self.process.stdout,), name=f"vtag-{device}", daemon=True
        )
        self._reader.start()

    @property
    def lost(self) -> bool:
        """Whether it has ended."""
        return self._lost

    def ask(self, path: str, content_id: str | None) -> Future[Record]:
        """The record to come, or WorkerLost."""
        answer: Future[Record] = Future()
        with self._guard:
            if self._lost:
                raise WorkerLost
            self._number += 1
            self._asked[self._number] = answer
            line = json.dumps({"n": self._number, "path": path, "id": content_id}).encode() + b"\n"
            # One that is gone is noticed by the reader; a closed pipe is a ValueError.
            with suppress(OSError, ValueError):
                assert self.process.stdin is not None
                self.process.stdin.write(line)
                self.process.stdin.flush()
        return answer

    def close(self) -> None:
        """Ends the worker; it has `END_SECONDS` to store what it has computed."""
        self._say_no_more()
        self._reader.join(END_SECONDS)
        self.process.kill()
        self._reader.join(END_SECONDS)

    def _say_no_more(self) -> None:
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _read(self, answers: IO[bytes]) -> None:
        try:
            with answers:
                for line in answers:
                    self._take(json.loads(line))
        except (ValueError, KeyError, TypeError):
            log.exception("%s: the worker sent what is no answer", self.device)
        self.process.kill()
        with self._guard:
            self._lost = True
            asked, self._asked = self._asked, {}
        self._say_no_more()
        self.process.wait()
        for answer in asked.values():
            answer.set_exception(WorkerLost())
        if not self.ready.done():
            words = f"the worker for {self.device} ended before it was ready"
            self.ready.set_exception(EnvironmentProblem(words))

    def _take(self, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        if kind == "ready":
            self.ready.set_result(dict(message))
        elif kind == "log":
            logging.getLogger(message["name"]).log(message["level"], "%s", message["text"])
        else:
            number = message.get("n")
            answer: Future[Any] = self.ready if number is None else self._pop(number)
            if kind == "record":
                record = record_from(message["record"])
                if record is None:
                    raise ValueError(f"no record: {message!r:.200}")
                answer.set_result(record)
            else:
                problem = _PROBLEMS.get(message["what"], RuntimeError)
                answer.set_exception(problem(message["text"]))

    def _pop(self, number: int) -> Future[Any]:
        with self._guard:
            return self._asked.pop(number)


class ManyDevices(Pipeline):
    """A pipeline whose videos are decoded and looked at by worker processes, one per device.

    What the cache has is tagged here; records are those of one device.

    Args:
        devices: two or more; one may be there twice, for two workers.
        flags: the command line of the run, from which each worker makes its pipeline.
        workers: videos at once, over all devices.
        torch_threads: of each network pass on a CPU.
        options: of `Pipeline`, for what is done here.

    Raises:
        EnvironmentProblem: a worker does not start, or its device is not there.
    """

    def __init__(
        self,
        devices: Sequence[str],
        flags: Mapping[str, Any],
        *,
        workers: int,
        torch_threads: int,
        **options: Any,
    ) -> None:
        count = len(devices)
        slots = [max(1, (workers + at) // count) for at in range(count)]
        self._busy = [0] * count
        self._started: list[DeviceWorker] = []
        self._flags, self._torch_threads = dict(flags), torch_threads
        self._changed = threading.Condition()
        self._one_suspect = threading.Lock()
        self._closed = False
        try:
            for device, at_once in zip(devices, slots, strict=True):
                self._started.append(self._start(device, at_once))
            told = [worker.ready.result(START_SECONDS) for worker in self._started]
            visual = told[0]["visual"]
            frames = Elsewhere(**visual) if visual else None
            super().__init__(device="cpu", frames=frames, **options)
        except BaseException:
            self._end_workers()
            raise

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers, one per device."""
        return tuple(worker.process.pid for worker in self._started)

    def try_tag(self, path: str | Path, content_id: str | None = None) -> Record:
        """The record of one file, made by a worker; a failed one when it can not be used."""
        lost = 0
        while lost < MAX_LOST and not self._closed:
            # What was there when a worker died may have been the cause: one such at a time, so
            # that no innocent video is lost as often as the guilty one.
            with self._one_suspect if lost else nullcontext(), self._slot() as worker:
                try:
                    return worker.ask(str(path), content_id).result()
                except WorkerLost:
                    lost += 1
                    log.warning("%s: the worker for %s died", path, worker.device)
        about = ERROR_CODES["worker_lost"]
        message = f"{path}: {lost} workers ended while they had it; {about.remedy}"
        return self.failed(path, MediaError(message, code="worker_lost"), content_id)

    def close(self) -> None:
        """Ends the workers; what they have not answered is lost."""
        self._end_workers()
        super().close()

    def _end_workers(self) -> None:
        self._closed = True  # no worker is started from here on
        enders = [threading.Thread(target=worker.close) for worker in self._started]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()

    @contextmanager
    def _slot(self) -> Iterator[DeviceWorker]:
        """The worker with the most room; waits for one, and replaces one that has died."""
        with self._changed:
            while True:
                room = [w.slots - busy for w, busy in zip(self._started, self._busy, strict=True)]
                at = room.index(max(room))
                if room[at] > 0:
                    break
                self._changed.wait()
            self._busy[at] += 1
            worker = self._started[at]
            if worker.lost and not self._closed:
                worker = self._started[at] = self._start(worker.device, worker.slots)
        try:
            worker.ready.result(START_SECONDS)
            yield worker
        finally:
            with self._changed:
                self._busy[at] -= 1
                self._changed.notify_all()

    def _start(self, device: str, slots: int) -> DeviceWorker:
        return DeviceWorker(device, self._flags, slots=slots, torch_threads=self._torch_threads)


def _log_level() -> int:
    return logging.getLogger("vtag").getEffectiveLevel()
