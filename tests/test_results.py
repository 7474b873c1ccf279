"""Exactly one record per input, whatever killed the runs before."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faulty_calls import FAULTS, Crash, Fault, calls_in_place, for_every_call
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtag import record_lines, storage
from vtag.errors import ConfigError, OutputError
from vtag.records import Failure, Media, ModelInfo, Record, Tag
from vtag.results import Counts, ResultsWriter, StdoutResults, read_records

FAILURE = Failure(code="corrupt", stage="video", message="nothing\ndecoded", retryable=False)


def ok(path: str, content: str | None = "a", *, model: str = "m1", name: str = "dog") -> Record:
    return Record(
        path=path,
        status="ok",
        id=f"sha256:{content}" if content else None,
        media=Media(duration=1.5),
        tags=(Tag(id="n1", name=name, score=0.5, threshold=0.25),),
        model=ModelInfo("base", model, 3),
    )


def failed(path: str, content: str | None = "a") -> Record:
    content_id = f"sha256:{content}" if content else None
    return Record(path=path, status="failed", id=content_id, error=FAILURE)


def line(record: Record) -> bytes:
    """The line by the plain rule: JSON in ASCII; compared as JSON only."""
    return json.dumps(record.to_dict()).encode() + b"\n"


def pairs(path: Path) -> list[tuple[str, str | None]]:
    """(path, id) of each line, read without any help of vtag."""
    return [(r["path"], r["id"]) for r in map(json.loads, path.read_text("utf-8").splitlines())]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tags.jsonl"


def test_records_are_written_and_found_again(out: Path) -> None:
    records = [ok("a.mp4", "1"), failed("b.mp4", "2"), failed("c.mp4", None)]
    with ResultsWriter(out) as results:
        for record in records:
            assert not results.done(record.path, record.id)
            results.write(record)
            assert results.done(record.path, record.id)
        assert results.counts == Counts(ok=1, failed=2, found=0, written=3)
    assert [json.loads(text) for text in out.read_text().splitlines()] == [
        record.to_dict() | {"tags": json.loads(line(record))["tags"]} for record in records
    ]
    before = out.read_bytes()
    with ResultsWriter(out) as results:
        assert all(results.done(record.path, record.id) for record in records)
        assert results.counts == Counts(ok=1, failed=2, found=3, written=0)
    assert out.read_bytes() == before
    assert list(read_records(out)) == [json.loads(text) for text in before.splitlines()]
    assert os.listdir(out.parent) == ["tags.jsonl"]


def test_what_is_done_is_the_pair_of_path_and_content(out: Path) -> None:
    with ResultsWriter(out) as results:
        results.write(ok("a.mp4", "1"))
        results.write(failed("gone.mp4", None))
        assert results.done("a.mp4", "sha256:1")
        assert not results.stale("a.mp4", "sha256:1")
        # another content under the same name
        assert not results.done("a.mp4", "sha256:2")
        assert results.stale("a.mp4", "sha256:2")
        # the same content under another name is another input
        assert not results.done("b.mp4", "sha256:1")
        assert not results.stale("b.mp4", "sha256:1")
        # can not be read just now: what is known of it stays
        assert results.done("a.mp4", None)
        assert not results.stale("a.mp4", None)
        # could not be read then, can be now
        assert results.done("gone.mp4", None)
        assert not results.done("gone.mp4", "sha256:3")
        assert results.stale("gone.mp4", "sha256:3")
        results.write(ok("b.mp4", "1"))
    assert pairs(out) == [("a.mp4", "sha256:1"), ("gone.mp4", None), ("b.mp4", "sha256:1")]


def test_a_changed_input_gets_one_new_record(out: Path) -> None:
    with ResultsWriter(out) as results:
        for record in (ok("a", "1"), ok("b", "1"), failed("c", "1")):
            results.write(record)
    with ResultsWriter(out) as results:
        results.write(failed("b", "2"))
        results.write(ok("c", "2"))
        results.write(ok("b", "3"))
        assert results.counts == Counts(ok=3, failed=0, found=3, written=3)
        assert not results.done("b", "sha256:2")
    assert pairs(out) == [("a", "sha256:1"), ("c", "sha256:2"), ("b", "sha256:3")]


def test_a_run_that_died_after_replacing_a_record_leaves_one(out: Path) -> None:
    out.write_bytes(line(ok("a", "1")) + line(ok("b", "1")) + line(failed("a", "2")))
    with ResultsWriter(out) as results:
        assert pairs(out) == [("b", "sha256:1"), ("a", "sha256:2")]
        assert results.counts == Counts(ok=1, failed=1, found=2, written=0)
        assert results.done("a", "sha256:2")


def test_drop_takes_records_out(out: Path) -> None:
    with ResultsWriter(out) as results:
        for record in (ok("a"), failed("b"), ok("c"), failed("d")):
            results.write(record)
        os.chmod(out, 0o640)
        assert results.drop(lambda record: record["status"] == "failed") == 2
        assert pairs(out) == [("a", "sha256:a"), ("c", "sha256:a")]
        assert results.counts == Counts(ok=2, failed=0, found=0, written=4)
        assert not results.done("b", "sha256:a")
        assert results.drop(lambda record: record["status"] == "failed") == 0
        results.write(ok("b"))
    assert pairs(out) == [("a", "sha256:a"), ("c", "sha256:a"), ("b", "sha256:a")]
    assert out.stat().st_mode & 0o777 == 0o640


# Undecodable bytes in file names come as lone surrogates (PEP 383).
NAMES = st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b).map(os.fsdecode)
NASTY = ["\u2028", "\u2029", "\x85", "\r", "\n", '"', "\\", "\x1b", "\ufeff", "𝄞", "{", "é"]
TEXTS = st.text(alphabet=st.one_of(st.sampled_from(NASTY), st.characters(codec="utf-8")))
RECORDS = st.lists(
    st.builds(
        lambda path, content, name, good: (
            ok(path, content, name=name) if good else failed(path, content)
        ),
        NAMES | TEXTS.filter(bool),
        st.sampled_from(["1", "2", None]),
        TEXTS,
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda record: record.path,
)


class NoSync(storage.SystemCalls):
    """Thousands of files in a loop: what a power cut would do to them is no matter here."""

    def fsync(self, fd: int) -> None:
        pass


@given(records=RECORDS, data=st.data())
@settings(max_examples=150)
@example(records=[ok("\u2028\udcff\n"), failed("\x85", None)], data=None)
def test_a_file_cut_anywhere_gives_its_whole_records_and_can_be_finished(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], data: Any
) -> None:
    out = tmp_path_factory.mktemp("cut") / "tags.jsonl"
    with calls_in_place(NoSync()):
        check_every_cut(out, records, data)


def check_every_cut(out: Path, records: list[Record], data: Any) -> None:
    with ResultsWriter(out) as results:
        for record in records:
            results.write(record)
    whole = out.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 0x0A]
    assert len(ends) == len(records)
    cuts = range(len(whole) + 1) if data is None else [data.draw(st.integers(0, len(whole)))]
    for cut in cuts:
        out.write_bytes(whole[:cut])
        # A record that lacks only its newline is whole.
        kept = sum(end - 1 <= cut for end in ends)
        assert [r["path"] for r in read_records(out)] == [r.path for r in records[:kept]]
        with ResultsWriter(out) as results:
            assert out.read_bytes() == whole[: ends[kept - 1] if kept else 0]
            done = [results.done(record.path, record.id) for record in records]
            assert done == [True] * kept + [False] * (len(records) - kept)
            for record in records[kept:]:
                results.write(record)
        assert out.read_bytes() == whole
    assert [r["path"] for r in read_records(out)] == [r.path for r in records]


def test_a_power_cut_may_leave_zeros(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = line(ok("a"))
    for tail in (bytes(4096), line(ok("b"))[:9] + bytes(100), line(ok("b"))[:30] + b"\0\0\n"):
        out.write_bytes(good + tail)
        ResultsWriter(out).close()
        assert out.read_bytes() == good
    assert caplog.text.count("the last line was torn") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line(ok("a")) + b'{"schema": 1, "pa\n' + line(ok("b")), "line 2 is damaged"),
        (line(ok("a")) + bytes(5) + b"\n" + line(ok("b")), "line 2 is damaged"),
        (b"\n" + b"\xff\n" + line(ok("b")), "line 2 is damaged"),
        (line(ok("a")).replace(b"0.5", b"NaN") + line(ok("b")), "NaN is no JSON"),
        (b"[" * 100_000 + b"\n" + line(ok("b")), "line 1 is damaged"),
        (b"[1]\n", "line 1 is not a record of vtag"),
        (b'{"some": "json"}\n', "line 1 is not a record of vtag"),
        (b'{"schema": 1, "path": 3, "id": null, "status": "ok"}\n', "line 1 is not a record"),
        (b'{"schema": 1, "path": "a", "id": null, "status": "odd"}\n', "line 1 is not a record"),
        (line(ok("a")) + b'{"schema": 2, "x": 1}\n', "line 2 is a record of schema 2, this"),
        (line(ok("a")) + b'{"schema": 2, "x": 1}', "line 2 is a record of schema 2, this"),
        (b"\x00\x00\x00\x20ftypisom and the rest of a film", "line 1 is damaged"),
        (b"a file of notes", "line 1 is damaged"),
        (bytes(10_000), "line 1 is damaged"),
        (line(ok("a")) + b"a line that somebody wrote", "line 2 is damaged"),
    ],
)
def test_what_is_no_torn_record_is_never_touched(out: Path, content: bytes, message: str) -> None:
    out.write_bytes(content)
    with pytest.raises(OutputError) as caught:
        ResultsWriter(out)
    assert message in str(caught.value)
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == content
    assert os.listdir(out.parent) == ["tags.jsonl"]  # unlocked
    with pytest.raises(OutputError):
        list(read_records(out))


def test_a_line_without_end_does_not_fill_the_memory(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_lines, "MAX_LINE_BYTES", 1000)
    out.write_bytes(b'{"schema"' + b"x" * 2000)
    with pytest.raises(OutputError, match="line 1 is longer than any record"):
        ResultsWriter(out)
    with pytest.raises(ValueError, match="the record of a takes"):
        record_lines.to_line(ok("a", name="x" * 1000))


def test_empty_lines_and_line_ends_of_an_editor_do_no_harm(out: Path) -> None:
    out.write_bytes(b"\n" + line(ok("a")).replace(b"\n", b"\r\n") + b"\n\n" + line(ok("b")) + b"\n")
    with ResultsWriter(out) as results:
        assert results.done("a", "sha256:a")
        assert results.done("b", "sha256:a")
        results.write(ok("c"))
    assert [record["path"] for record in read_records(out)] == ["a", "b", "c"]


def test_a_reader_beside_the_writer_meets_whole_records_only(out: Path) -> None:
    # The line is read while half of it is there, the next one when all of it is.
    both = line(ok("a")) + line(ok("b"))

    class Growing(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            found = super().readline(size)
            at = self.tell()
            self.seek(0, 2)
            self.write(both[self.tell() :])
            self.seek(at)
            return found

    half = Growing(both[: len(line(ok("a"))) + 20])
    half.readline = io.BytesIO.readline.__get__(half)  # type: ignore[method-assign]
    found = []
    for item in record_lines.lines(out, half):
        found.append(type(item).__name__)
        half.readline = Growing.readline.__get__(half)  # type: ignore[method-assign]
    assert found == ["Line", "TornTail"]


def test_tags_of_another_model_are_not_mixed(out: Path) -> None:
    with ResultsWriter(out, model_fingerprint="m1") as results:
        results.write(ok("a", model="m1"))
        results.write(failed("b"))
    with ResultsWriter(out, model_fingerprint="m1") as results:
        assert results.counts.found == 2
    with pytest.raises(OutputError, match="holds tags of model 'm1', this run uses 'm2'; choose"):
        ResultsWriter(out, model_fingerprint="m2")
    ResultsWriter(out).close()


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"is a folder; name a file in it, such as .*tags.jsonl"):
        ResultsWriter(tmp_path)
    with pytest.raises(ConfigError, match="for standard output say --out -"):
        ResultsWriter(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        ResultsWriter(Path("/dev/null"))
    for link in ("link", "dangling"):
        with pytest.raises(OutputError, match="is a symbolic link, and results are not written"):
            ResultsWriter(tmp_path / link)
    with pytest.raises(OutputError, match="results can not be written"):
        ResultsWriter(tmp_path / "target" / "below" / "tags.jsonl")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "pipe", "target"]


def test_parent_folders_are_made(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "a" / "b" / "tags.jsonl") as results:
        results.write(ok("a"))
    assert pairs(tmp_path / "a" / "b" / "tags.jsonl") == [("a", "sha256:a")]


def test_the_second_writer_is_refused_and_changes_nothing(out: Path) -> None:
    with ResultsWriter(out) as first:
        first.write(ok("a"))
        with pytest.raises(OutputError, match=f"is being written by pid {os.getpid()} on"):
            ResultsWriter(out)
        first.write(ok("b"))
    assert pairs(out) == [("a", "sha256:a"), ("b", "sha256:a")]


BEFORE = [ok("a"), failed("b"), ok("c")]
LATER = [ok("d"), ok("b", "2"), failed("e"), ok("f")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_any_fault_can_be_finished(out: Path, fault: Fault) -> None:
    """Opens a torn file, appends, replaces a record, drops one, closes; and then again."""
    written: list[Record] = []

    def prepare() -> None:
        written.clear()
        for name in os.listdir(out.parent):
            (out.parent / name).unlink()
        out.write_bytes(b"".join(map(line, BEFORE)) + line(ok("torn"))[:-5])

    def act() -> None:
        with ResultsWriter(out) as results:
            for record in LATER:
                results.write(record)
                written.append(record)
            results.drop(lambda record: record["path"] == "c")

    def check(raised: BaseException | None) -> None:
        with ResultsWriter(out) as results:
            now = pairs(out)
            paths = [path for path, _ in now]
            assert len(set(paths)) == len(paths)
            dropped = "c" not in paths
            if raised is None:
                assert dropped
            if dropped:
                assert len(written) == len(LATER)
            # What `write` returned from is there, and nothing of before is lost.
            for record in written:
                assert (record.path, record.id) in now
            assert {"a", "b"} <= set(paths)
            for record in [*BEFORE[::2], *LATER]:
                if not results.done(record.path, record.id):
                    results.write(record)
        assert sorted(pairs(out), key=str) == sorted(
            [("b", "sha256:2"), *((path, "sha256:a") for path in "acdef")], key=str
        )
        left = set(os.listdir(out.parent)) - {"tags.jsonl"}
        assert isinstance(raised, Crash) or not left

    met = for_every_call(fault, prepare=prepare, act=act, check=check, expected=OutputError)
    assert met >= (8 if fault in ("short write", "crash in a write") else 30)


def test_a_full_disk_is_said_in_one_line_and_the_first_error_counts(out: Path) -> None:
    class Full(storage.SystemCalls):
        def write(self, fd: int, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    results = ResultsWriter(out)
    with calls_in_place(Full()), pytest.raises(OutputError) as caught, results:
        results.write(ok("a"))
    assert str(caught.value) == (
        f"{out}: results can not be written (no space left on the disk); free some space and "
        "run the same command again: it goes on where this one stopped"
    )
    with pytest.raises(KeyError), ResultsWriter(out) as results:  # noqa: PT012
        results.write(ok("b", "1"))
        results.write(ok("b", "2"))
        raise KeyError
    assert pairs(out) == [("b", "sha256:2")]


def test_closing_twice_and_losing_the_file(out: Path) -> None:
    results = ResultsWriter(out)
    results.write(ok("a"))
    results.close()
    results.close()
    results = ResultsWriter(out)
    out.unlink()
    with pytest.raises(OutputError, match="No such file"):
        results.close()
    results.close()
    assert os.listdir(out.parent) == []


WRITER = """
import os, sys, time
from pathlib import Path
from vtag import storage
from vtag.records import Record
from vtag.results import ResultsWriter

class Slow(storage.SystemCalls):
    # Records go in small pieces, so that a kill often meets a half written one.
    slow = -1

    def open(self, path, flags, mode):
        fd = super().open(path, flags, mode)
        if flags & os.O_APPEND:
            self.slow = fd
        return fd

    def write(self, fd, data):
        if fd != self.slow:
            return super().write(fd, data)
        time.sleep(0.001)
        return super().write(fd, data[:80])

storage.system = Slow()
out, changed = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
with ResultsWriter(out) as results:
    for n in range(300):
        path, content = f"clip{n}\\u2028\\udcff.mp4", "sha256:2" if n % 7 == 3 else "sha256:1"
        if not results.done(path, content):
            results.write(Record(path=path, status="ok", id=content))
print(results.counts.ok)
"""


def test_killed_at_any_moment_and_started_again_gives_the_same_set(out: Path) -> None:
    # Some records are of an older content and get replaced on the way.
    old = [Record(path=f"clip{n}\u2028\udcff.mp4", status="ok", id="sha256:1") for n in range(40)]
    out.write_bytes(b"".join(map(line, old)))
    rng = random.Random(0)
    sizes, torn = set(), 0
    for turn in range(15):
        before = out.stat()
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out), "x"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            while turn % 2 and out.stat().st_size <= before.st_size and process.poll() is None:
                time.sleep(0.001)  # in every second turn it gets to its first record
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        process.wait(10)
        content = out.read_bytes()
        sizes.add(len(content))
        torn += not content.endswith(b"\n")
    assert torn >= 1  # the test meets what it is about
    assert len(sizes) >= 4
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(out), "x"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "ready\n300\n"
    expected = [
        (f"clip{n}\u2028\udcff.mp4", "sha256:2" if n % 7 == 3 else "sha256:1") for n in range(300)
    ]
    found = [(record["path"], record["id"]) for record in read_records(out)]
    assert sorted(found) == sorted(expected)


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.jsonl: can not be read \(No such file"):
        list(read_records(tmp_path / "none.jsonl"))


def test_standard_output_gets_the_same_lines(out: Path, capsysbinary: Any) -> None:
    records = [ok("ü\udcff\u2028.mp4"), failed("b", None)]
    with ResultsWriter(out) as results, StdoutResults() as stdout:
        for record in records:
            results.write(record)
            stdout.write(record)
        assert not stdout.done("b", None)
        assert not stdout.stale("b", "sha256:1")
        assert stdout.drop(lambda record: True) == 0
        assert stdout.counts == Counts(ok=1, failed=1, found=0, written=2)
    assert capsysbinary.readouterr().out == out.read_bytes()
    in_memory = io.StringIO()
    StdoutResults(in_memory).write(records[1])
    assert in_memory.getvalue().encode() == line(records[1])


STDOUT = """
import sys
from vtag.records import Record
from vtag.results import StdoutResults
print("before")
with StdoutResults() as results:
    try:
        for n in range(100_000):
            results.write(Record(path=f"{n}", status="ok"))
    except BrokenPipeError:
        sys.exit(7)
"""


def test_a_reader_that_goes_away_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STDOUT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"before\n"
    assert json.loads(process.stdout.readline())["path"] == "0"
    process.stdout.close()
    assert process.wait(30) == 7
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_pipe_that_does_not_wait_gets_all(tmp_path: Path) -> None:
    # A parent such as node leaves its end of the pipe non-blocking.
    script = "import os; os.set_blocking(1, False)\n" + STDOUT.replace("100_000", "3000")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    time.sleep(0.3)  # let it fill the pipe
    with process.stdout:
        got = process.stdout.read().splitlines()
    assert process.wait(30) == 0
    assert [json.loads(text)["path"] for text in got[1:]] == [str(n) for n in range(3000)]


def test_a_pipe_that_takes_little_at_a_time_gets_all() -> None:
    class Narrow(io.RawIOBase):
        got = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            self.got += bytes(data[:3])
            return min(3, len(data))

    narrow = Narrow()
    stream = io.TextIOWrapper(io.BufferedWriter(narrow), encoding="ascii")
    StdoutResults(stream).write(failed("b"))
    assert narrow.got == line(failed("b"))


def test_standard_output_that_can_not_be_written() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with (
        open("/dev/full", "w", encoding="utf-8") as full,
        pytest.raises(OutputError, match="standard output: can not be written"),
    ):
        StdoutResults(full).write(ok("a"))
