"""A whole run: inputs in, one record each out, whatever happens in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from vtag.errors import ConfigError, MediaError
from vtag.input_groups import MOST_AT_ONCE, InputGroups
from vtag.records import Record
from vtag.remote_tagger import SourceTagger
from vtag.sources import Source
from vtag.stream import as_finished
from vtag.tagger import Pipeline

log = logging.getLogger(__name__)


class Results(Protocol):
    """Where records go: `vtag.results.ResultsWriter` or `StdoutResults`."""

    def done(self, path: str, content_id: str | None) -> bool: ...

    def done_as(self, path: str, stamp: str | None) -> bool: ...

    def failed(self, path: str) -> bool: ...

    def write(self, record: Record) -> None: ...


class Engine(Protocol):
    """Where the work is done: `vtag.scale.RayEngine`."""

    def __call__(
        self, inputs: Iterable[str | Source], results: Results, *, stopped: Callable[[], bool]
    ) -> Iterator[Record | str]:
        """Records as they come; of an input that has one in `results`, its name."""


class Earlier(Protocol):
    """What is known of a content: `vtag.moved.Library.earlier`."""

    def __call__(self, path: str, content_id: str) -> Record | None:
        """The record of `path` if a file of the same content was tagged before."""


class Known(Protocol):
    """What the feature cache knows, several at once: `vtag.tagger.Pipeline.tag_known`."""

    def __call__(self, inputs: Sequence[tuple[str, str]]) -> Sequence[Record | None]:
        """The record of each (path, content id), None where something must be decoded."""


@dataclass(frozen=True)
class Unknown:
    """An input without a record, whose features are not in the cache."""

    path: str
    content_id: str


@dataclass(frozen=True)
class Repeated:
    """A record that was made of an earlier one."""

    record: Record


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
    repeated: int = 0  # of the tagged: an earlier record of the same content was repeated
    moved: int = 0  # records left the output: their file is there under another name
    deleted: int = 0  # records of files that are no longer there
    ignored: int = 0  # other files seen in the folders
    passed_over: int = 0  # folders of trash, snapshots and thumbnails, not looked into
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
    pipeline: Pipeline | SourceTagger,
    inputs: Iterable[str | Source],
    results: Results,
    summary: Summary,
    *,
    workers: int,
    limit: int | None = None,
    budget: FailureBudget | None = None,
    correct: Callable[[Record], Record] = lambda record: record,
    engine: Engine | None = None,
    known: Known | None = None,
    earlier: Earlier = lambda path, content_id: None,
    again: Callable[[Record], bool] = lambda record: False,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Record | None]:
    """Tags every input that has no record yet, and writes each record as soon as it is there.

    Args:
        pipeline: what tags one file, or one source wherever it lies.
        inputs: paths, or sources for a SourceTagger; taken one by one, so a walk may still be
            going on.
        results: where records are written and looked up.
        summary: counts, updated as the run goes.
        workers: how many files at once.
        limit: so many inputs at most are taken.
        budget: when to give up.
        correct: what a person said of a video, applied before its record is written.
        engine: what works on the inputs; None for `workers` threads of this process.
        known: what is asked before a file is decoded, for several files at once where that
            pays; None: each is tagged by itself.
        earlier: asked before a file is decoded; its record is then written instead.
        again: true for a record that is not to be written, since its input comes again; it
            then does not count as an input.
        stopped: asked all the time; true ends the run within ten seconds.

    Yields:
        Each record after it is written; None for an input that had one.
    """
    broken = threading.Event()

    def take() -> Iterator[str | Source]:
        for number, path in enumerate(inputs):
            if broken.is_set() or (limit is not None and number >= limit):
                return
            summary.inputs += 1
            yield path

    def ended() -> bool:
        return broken.is_set() or stopped()

    if engine is not None:
        found: Iterator[Record | Repeated | str] = engine(take(), results, stopped=ended)
    else:
        worker = _Worker(pipeline, results, earlier, known, ended)
        found = worker.outcomes(take(), workers=workers)
    for record in found:
        if isinstance(record, str):
            summary.skipped += 1
            summary.skipped_failed += results.failed(record)
            yield None
            continue
        is_repeated = isinstance(record, Repeated)
        record = correct(record.record if isinstance(record, Repeated) else record)
        if again(record):
            summary.inputs -= 1
            continue
        results.write(record)
        if record.ok:
            summary.tagged += 1
            summary.repeated += is_repeated
            summary.cached += not is_repeated and "decode" not in record.timing
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


class _Worker:
    """What becomes of each input, on some threads of this process."""

    def __init__(
        self,
        pipeline: Pipeline | SourceTagger,
        results: Results,
        earlier: Earlier,
        known: Known | None,
        ended: Callable[[], bool],
    ) -> None:
        self._sources = pipeline if isinstance(pipeline, SourceTagger) else None
        self._pipeline = pipeline.pipeline if isinstance(pipeline, SourceTagger) else pipeline
        self._results = results
        self._earlier = earlier
        self._known = known
        self._ended = ended

    def outcomes(
        self, inputs: Iterable[str | Source], *, workers: int
    ) -> Iterator[Record | Repeated | str]:
        """A record per input, or its path when the output has one already; in any order."""
        most = 1 if self._known is None else MOST_AT_ONCE
        groups: InputGroups[str | Source | Unknown] = InputGroups(inputs, most=most)
        for outcomes in as_finished(self._work, groups, workers=workers, stopped=self._ended):
            groups.were_known(sum(map(_is_known, outcomes)), of=len(outcomes))
            for outcome in outcomes:
                if isinstance(outcome, Unknown):
                    groups.put_back(outcome)
                else:
                    yield outcome

    def _work(
        self, group: Sequence[str | Source | Unknown]
    ) -> list[Record | Repeated | str | Unknown]:
        looked: list[Record | Repeated | str | Unknown] = []
        for item in group:
            if self._ended():
                break
            looked.append(item if isinstance(item, Unknown) else self._look(item))
        unknown = [one for one in looked if isinstance(one, Unknown)]
        if len(group) == 1 or self._known is None:
            made: Iterable[Record | None] = [self._tag(one) for one in unknown]
        else:
            made = self._known([(one.path, one.content_id) for one in unknown])
        records = dict(zip((one.path for one in unknown), made, strict=True))
        return [(records[one.path] or one) if isinstance(one, Unknown) else one for one in looked]

    def _tag(self, one: Unknown) -> Record:
        return self._pipeline.try_tag(one.path, one.content_id)

    def _look(self, item: str | Source) -> Record | Repeated | str | Unknown:
        """What is known of an input without its features, or its path when it is done.

        The content decides and not the name alone: a file that was replaced is tagged again,
        and one that was only renamed is not.
        """
        if isinstance(item, Source) and item.remote is not None and self._sources is not None:
            return self._sources.tag_unless_done(item, self._results)
        path = item if isinstance(item, str) else item.path
        try:
            content_id = self._pipeline.content_id(Path(path))
        except MediaError as err:
            # What can not be read has no content id; it is known by its path.
            done = self._results.done(path, None)
            return path if done else self._pipeline.failed(path, err)
        if self._results.done(path, content_id):
            return path
        record = self._earlier(path, content_id)
        return Unknown(path, content_id) if record is None else Repeated(record)


def _is_known(outcome: Record | Repeated | str | Unknown) -> bool:
    """Whether nothing had to be decoded."""
    if isinstance(outcome, Record):
        return outcome.ok and "decode" not in outcome.timing
    return not isinstance(outcome, Unknown)
