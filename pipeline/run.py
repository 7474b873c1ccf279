"""A whole run: inputs in, one record each out, whatever happens in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from vtag.errors import ConfigError, MediaError
from vtag.records import Record
from vtag.stream import as_finished
from vtag.tagger import Pipeline

log = logging.getLogger(__name__)


class Results(Protocol):
    """Where records go: `vtag.results.ResultsWriter` or `StdoutResults`."""

    def done(self, path: str, content_id: str | None) -> bool: ...

    def failed(self, path: str) -> bool: ...

    def write(self, record: Record) -> None: ...


@dataclass(frozen=True)
class FailureBudget:
    """When a run gives up: after so many failures, or so large a share of the inputs.

    A million failed records are of no use when it is the storage that is gone.
    """

    count: int | None = None
    share: float | None = None

    MIN_INPUTS_FOR_SHARE: Final = 20  # one bad file among the first two is not "50 %"

    @classmethod
    def parse(cls, text: str) -> FailureBudget:
        """`FailureBudget.parse("10")` or `("5%")`; raises ConfigError on anything else."""
        number = text.removesuffix("%")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (text.endswith("%") and value > 100):
            raise ConfigError(f"max failures is a number or a share such as 5%, got {text!r}")
        return cls(share=value / 100) if text.endswith("%") else cls(count=int(value))

    def spent(self, failed: int, finished: int) -> bool:
        """Whether a run with so many failures among so many inputs should stop."""
        if self.count is not None and failed > self.count:
            return True
        return (
            self.share is not None
            and finished >= self.MIN_INPUTS_FOR_SHARE
            and failed > self.share * finished
        )


@dataclass
class Summary:
    """The counts of a run. `inputs == tagged + failed + skipped` when it came to its end."""

    inputs: int = 0
    tagged: int = 0
    failed: int = 0
    skipped: int = 0  # a record of an earlier run was there
    skipped_failed: int = 0  # of the skipped: that record is a failed one
    cached: int = 0  # of the tagged: nothing was decoded
    ignored: int = 0  # other files seen in the folders
    codes: dict[str, int] = field(default_factory=dict)  # error code -> failed inputs
    stopped: str | None = None  # why the run ended before its inputs did

    @property
    def unfinished(self) -> int:
        """Inputs that were taken but have no record; not 0 after a stop only."""
        return self.inputs - self.tagged - self.failed - self.skipped

    def to_dict(self) -> dict[str, Any]:
        """For `--summary-json`."""
        return {**asdict(self), "unfinished": self.unfinished}


def run(
    pipeline: Pipeline,
    inputs: Iterable[str],
    results: Results,
    summary: Summary,
    *,
    workers: int,
    limit: int | None = None,
    budget: FailureBudget | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Record | None]:
    """Tags every input that has no record yet, and writes each record as soon as it is there.

    Args:
        pipeline: what tags one file.
        inputs: paths; taken one by one, so a walk may still be going on.
        results: where records are written and looked up.
        summary: counts, updated as the run goes.
        workers: how many files at once.
        limit: so many inputs at most are taken.
        budget: when to give up.
        stopped: asked all the time; true ends the run within ten seconds.

    Yields:
        Each record after it is written; None for an input that had one.
    """
    broken = threading.Event()

    def take() -> Iterator[str]:
        for number, path in enumerate(inputs):
            if broken.is_set() or (limit is not None and number >= limit):
                return
            summary.inputs += 1
            yield path

    def work(path: str) -> Record | str:
        return _tag_unless_done(pipeline, path, results)

    def ended() -> bool:
        return broken.is_set() or stopped()

    for record in as_finished(work, take(), workers=workers, stopped=ended):
        if isinstance(record, str):
            summary.skipped += 1
            summary.skipped_failed += results.failed(record)
            yield None
            continue
        results.write(record)
        if record.ok:
            summary.tagged += 1
            summary.cached += "decode" not in record.timing
        if record.error is not None:
            summary.failed += 1
            code = record.error.code
            summary.codes[code] = summary.codes.get(code, 0) + 1
        yield record
        if (
            budget
            and not broken.is_set()
            and budget.spent(summary.failed, summary.tagged + summary.failed)
        ):
            broken.set()
            summary.stopped = f"{summary.failed} of {summary.inputs} inputs failed"


def _tag_unless_done(pipeline: Pipeline, path: str, results: Results) -> Record | str:
    """The record of one input, or its path when the output has a record of it already.

    The content decides and not the name alone: a file that was replaced is tagged again.
    """
    try:
        content_id = pipeline.content_id(Path(path))
    except MediaError as err:
        # What can not be read has no content id; it is known by its path.
        return path if results.done(path, None) else pipeline.failed(path, err)
    if results.done(path, content_id):
        return path
    return pipeline.try_tag(path, content_id)
