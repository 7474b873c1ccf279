"""A run over a pipeline that the test scripts: counts, budgets, stopping."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vtag.errors import ConfigError, MediaError
from vtag.records import Failure, Record
from vtag.run import FailureBudget, Summary, run


class ScriptedPipeline:
    """Tags by name: "bad…" fails, "gone…" can not even be read, "cached…" was known."""

    def content_id(self, path: Path) -> str:
        if path.name.startswith("gone"):
            raise MediaError(f"{path}: gone", code="vanished")
        return f"sha256:{path.name}"

    def try_tag(self, path: str, content_id: str) -> Record:
        if path.startswith("bad"):
            return self.failed(path, MediaError("bad", code="corrupt"), content_id)
        timing = {"head": 0.1} if path.startswith("cached") else {"head": 0.1, "decode": 1.0}
        return Record(path=path, status="ok", id=content_id, timing=timing)

    def failed(self, path: str, err: MediaError, content_id: str | None = None) -> Record:
        error = Failure(code=err.code, stage=err.stage, message=str(err), retryable=False)
        return Record(path=path, status="failed", id=content_id, error=error)


class Memory:
    """Results in a list."""

    def __init__(self, done: set[tuple[str, str | None]] = frozenset()) -> None:  # type: ignore[assignment]
        self.known = set(done)
        self.records: list[Record] = []

    def done(self, path: str, content_id: str | None) -> bool:
        return (path, content_id) in self.known

    def failed(self, path: str) -> bool:
        return path.startswith("gone")

    def write(self, record: Record) -> None:
        self.records.append(record)


def go(
    inputs: list[str], results: Memory | None = None, **options: object
) -> tuple[Summary, Memory]:
    results, summary = results or Memory(), Summary()
    list(run(ScriptedPipeline(), inputs, results, summary, workers=2, **options))  # type: ignore[arg-type]
    return summary, results


def test_every_input_has_one_record_and_the_counts_add_up() -> None:
    inputs = [f"{kind}{n}" for n in range(30) for kind in ("ok", "bad", "gone", "cached")]
    summary, results = go(inputs)
    assert sorted(r.path for r in results.records) == sorted(inputs)
    assert (summary.inputs, summary.tagged, summary.failed) == (120, 60, 60)
    assert (summary.cached, summary.skipped, summary.unfinished) == (30, 0, 0)
    assert summary.codes == {"corrupt": 30, "vanished": 30}


def test_what_is_done_is_not_done_again_but_changed_content_is() -> None:
    done = {("a", "sha256:a"), ("b", "sha256:another"), ("gone1", None)}
    summary, results = go(["a", "b", "gone1", "c"], Memory(done))
    assert sorted(r.path for r in results.records) == ["b", "c"]
    assert (summary.skipped, summary.skipped_failed) == (2, 1)


def test_limit_takes_so_many_inputs() -> None:
    summary, _ = go([f"ok{n}" for n in range(50)], limit=7)
    assert (summary.inputs, summary.tagged) == (7, 7)


def test_fail_fast_ends_the_run_soon_and_says_why() -> None:
    summary, _ = go(["bad0", *(f"ok{n}" for n in range(500))], budget=FailureBudget(count=0))
    assert summary.failed == 1
    assert summary.tagged < 50
    assert summary.stopped is not None
    assert "1 of" in summary.stopped


def test_a_share_of_failures_stops_a_run_but_not_its_first_inputs() -> None:
    few = ["bad0", *(f"ok{n}" for n in range(18))]
    assert go(few, budget=FailureBudget(share=0.05))[0].stopped is None
    many = [f"bad{n}" for n in range(500)]
    assert go(many, budget=FailureBudget(share=0.05))[0].inputs < 100


def test_a_stop_leaves_the_rest_without_records() -> None:
    seen = 0

    def stopped() -> bool:
        return seen >= 3

    def inputs() -> Iterator[str]:
        for n in range(1000):
            yield f"ok{n}"

    results, summary = Memory(), Summary()
    for _ in run(
        ScriptedPipeline(),
        inputs(),
        results,
        summary,
        workers=2,
        stopped=stopped,  # type: ignore[arg-type]
    ):
        seen += 1
    assert 3 <= len(results.records) < 20
    assert summary.tagged == len(results.records)


@pytest.mark.parametrize("text", ["", "x", "-1", "101%", "nan", "inf", "5%%"])
def test_a_budget_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="max failures"):
        FailureBudget.parse(text)


def test_budgets_as_written() -> None:
    assert FailureBudget.parse("10") == FailureBudget(count=10)
    assert FailureBudget.parse("5%") == FailureBudget(share=0.05)
