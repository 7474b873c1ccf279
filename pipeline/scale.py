"""The same records from a Ray cluster: Ray Data carries names out and records back.

A row is the name of one input, and what comes back is its record, made by the same `Pipeline`
in a worker process of one core: decoding in its killable child, networks, tags. Only names,
records and (with GPUs, see scale_networks.py) small batches of pictures cross the network.

Ray promises that a task is run again when its process or machine is lost, for ever, and nothing
about how often its rows come back after a restart of the driver. So the truth is kept here:
what the output holds is not sent out, every exception is a record, an input that keeps ending
its worker becomes a failed record, and the driver takes one record for each name.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from vtag.errors import EnvironmentProblem
from vtag.records import Record
from vtag.run import Results
from vtag.scale_cluster import ClusterShare, joined_ray
from vtag.scale_networks import NetworkActors
from vtag.scale_worker import Attempts, Job, OpenTagger, Tagger, failed, row_of, tag_rows
from vtag.sources import Source
from vtag.tagger import Pipeline

__all__ = ["ClusterShare", "OpenTagger", "RayEngine", "Tagger", "joined_ray"]

# A task is what is lost with a worker, and what the driver schedules one by one: small jobs get
# one input each, large ones more.
INPUTS_PER_TASK: Final = 16
TASKS_PER_WORKER: Final = 32
# Inputs that the driver hands to Ray at once. Their last ones run while other workers are idle.
WAVE_PER_WORKER: Final = 1_000
MIN_WAVE: Final = 10_000
# Ray holds back tasks whose output may not fit; it takes this for granted until it has seen some.
BLOCK_BYTES: Final = 1 << 20
WAITING_RECORDS: Final = 256  # that the driver has received and not written


class RayEngine:
    """Tags inputs on the cluster that is joined; an `Engine` of `vtag.run.run`.

    Args:
        open_tagger: goes to the workers by pickle, as all code does that Ray runs.
        pipeline: the driver's, whose model all workers must have.
        share: how much of the cluster.
        device: of the picture network, where that has actors of its own.
        batch_size: pictures at once there; None for the network's own.
    """

    def __init__(
        self,
        open_tagger: OpenTagger,
        pipeline: Pipeline,
        *,
        share: ClusterShare = ClusterShare(),  # noqa: B008  frozen: safe as a default
        device: str = "cuda",
        batch_size: int | None = None,
        can_grow: bool = True,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._pipeline = pipeline
        self._share = share
        self._networks: NetworkActors | None = None
        if share.gpus and "visual" in pipeline.head.extractor_names:
            self._networks = NetworkActors(
                pipeline.head.extractor_names["visual"],
                actors=share.actors or share.gpus,
                gpus=share.gpus,
                device=device,
                batch_size=batch_size,
                can_grow=can_grow,
            )
        # Beside the driver: a counter is not worth a machine's loss.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
        self._job = Job(
            secrets.token_hex(8),
            open_tagger,
            pipeline.head.info.fingerprint,
            attempts.options(scheduling_strategy=here).remote(),
            self._networks.frames() if self._networks else None,
        )

    def __call__(
        self, inputs: Iterable[str | Source], results: Results, *, stopped: Callable[[], bool]
    ) -> Iterator[Record | str]:
        """Records as they come, and the path of each input that has one in `results`.

        Raises:
            EnvironmentProblem: workers can not start, or Ray was lost.
        """
        import ray

        workers = self._share.workers or int(ray.cluster_resources().get("CPU", 1))
        taken = iter(inputs)
        while wave := list(islice(taken, max(MIN_WAVE, WAVE_PER_WORKER * workers))):
            waiting: dict[str, Source] = {}
            for source in (Source(s) if isinstance(s, str) else s for s in wave):
                if source.path in waiting or _is_done(source, results):
                    yield source.path
                else:
                    waiting[source.path] = source
            for record in self._records(list(waiting.values()), workers, stopped):
                if waiting.pop(record.path, None):  # what Ray gives twice is taken once
                    yield record
            if stopped():
                return
            for path in waiting:
                yield failed(self._pipeline, path, "worker_lost", "Ray gave no record of it")

    def _records(
        self, sources: list[Source], workers: int, stopped: Callable[[], bool]
    ) -> Iterator[Record]:
        import ray

        if not sources:
            return
        try:
            for row in _until(stopped, self._dataset(sources, workers).iter_rows()):
                if row["problem"]:
                    raise EnvironmentProblem(row["problem"])
                yield row["record"]
        except ray.exceptions.RayError as err:
            last_line = str(err).strip().rpartition("\n")[2]
            raise EnvironmentProblem(
                f"Ray gave up ({last_line}); the records so far are written: run the same command "
                "again to go on"
            ) from err

    def _dataset(self, sources: list[Source], workers: int) -> Any:
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # vtag has its own; what is left are warnings, of a cluster without free cores and such.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        rows = [row_of(source) for source in sources]
        per_task = min(max(len(rows) // (workers * TASKS_PER_WORKER), 1), INPUTS_PER_TASK)
        return ray.data.from_items(rows, override_num_blocks=-(-len(rows) // per_task)).map_batches(
            tag_rows,
            fn_kwargs={"job": self._job},
            batch_size=1,
            num_cpus=1,
            # Tasks and not an actor pool: a task whose machine is lost goes to any other, while
            # that of an actor waits until the actor can be started again.
            compute=ray.data.TaskPoolStrategy(size=self._share.workers),
        )


def _is_done(source: Source, results: Results) -> bool:
    """Whether there is a record, of the content that a listing tells; else of the path.

    The driver reads no inputs: of a local file that was replaced it does not know.
    """
    if source.stamp is not None:
        return results.done_as(source.path, source.stamp)
    return results.done(source.path, None)


def _until(stopped: Callable[[], bool], rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, while nobody wants to stop, however long the next one takes."""
    received: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(WAITING_RECORDS)

    def receive() -> None:
        try:
            for row in rows:
                received.put(row)
            received.put(None)
        except Exception as err:  # noqa: BLE001  raised where it is awaited
            received.put(err)

    threading.Thread(target=receive, name="vtag-ray-rows", daemon=True).start()
    while not stopped():
        try:
            row = received.get(timeout=0.25)
        except queue.Empty:
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row
