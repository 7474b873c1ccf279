"""One output, one writer: real processes that hold, die, fork and race."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vtag import run_lock
from vtag.errors import OutputError
from vtag.run_lock import RunLock

HOLD = """
import os, subprocess, sys
from pathlib import Path
from vtag.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
children = {
    "alone": lambda: 0,
    "forks": lambda: os.fork(),
    "starts": lambda: subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], close_fds=False
    ).pid,
}
child = children[sys.argv[2]]()
if sys.argv[2] != "forks" or child:
    print(os.getpid(), child, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def holder(out: Path, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock of `out`; and the id of its child, or 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _, child = process.stdout.readline().split()
        yield process, int(child)
    finally:
        process.stdin.close()  # all that are still there end with it
        process.wait(10)
        process.stdout.close()


def test_the_second_writer_is_told_who_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    with holder(out) as (process, _), pytest.raises(OutputError) as caught:
        RunLock(out)
    assert re.fullmatch(
        rf"{re.escape(str(out))}: is being written by pid {process.pid} on "
        rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}}; "
        r"wait for it or choose another --out",
        str(caught.value),
    )


def test_two_outputs_do_not_meet_and_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with RunLock(tmp_path / "a.jsonl"), RunLock(tmp_path / "b.jsonl"):
        assert sorted(os.listdir(tmp_path)) == [".a.jsonl.lock", ".b.jsonl.lock"]
        with pytest.raises(OutputError, match=f"pid {os.getpid()} "):
            RunLock(tmp_path / "a.jsonl")
    assert os.listdir(tmp_path) == []
    RunLock(tmp_path / "a.jsonl").release()


@pytest.mark.parametrize("how", ["alone", "forks", "starts"])
def test_a_killed_owner_blocks_nobody_nor_do_its_children(tmp_path: Path, how: str) -> None:
    out = tmp_path / "tags.jsonl"
    with holder(out, how) as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert (tmp_path / ".tags.jsonl.lock").exists()
        if child:
            os.kill(child, 0)  # raises if it is not there any more
        (tmp_path / ".tags.jsonl.lock").write_text("long words of the owner before\n" * 9)
        with RunLock(out) as lock:
            text = lock.path.read_text()
            assert text.startswith(f"pid {os.getpid()} on {socket.gethostname()} since 2")
            assert text.count("\n") == 1


def test_a_forked_child_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    script = """
import os, sys
from pathlib import Path
from vtag.errors import OutputError
from vtag.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
child = os.fork()
if not child:
    lock.release()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert lock.path.exists()
try:
    RunLock(lock.out)
except OutputError:
    print("still held")
lock.release()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "still held\n"
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_lost_its_name_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The owner before removes the file between our open and our flock: what we then lock has
    # no name, and the next one would make and lock a new file.
    out = tmp_path / "tags.jsonl"
    real = run_lock._lock
    tries = []

    def lock_too_late(fd: int) -> None:
        tries.append(fd)
        if len(tries) == 1:
            (tmp_path / ".tags.jsonl.lock").unlink()
        real(fd)

    monkeypatch.setattr(run_lock, "_lock", lock_too_late)
    with RunLock(out):
        assert len(tries) == 2
        with pytest.raises(OutputError, match="is being written by"):
            RunLock(out)


def test_never_two_at_once(tmp_path: Path) -> None:
    # Each adds 1 to a number 40 times, in two steps: any that overlap lose a count.
    script = """
import sys, time
from pathlib import Path
from vtag.errors import OutputError
from vtag.run_lock import RunLock
out = Path(sys.argv[1])
left = 40
while left:
    try:
        with RunLock(out):
            number = int(out.read_text())
            time.sleep(0.0005)
            out.write_text(str(number + 1))
        left -= 1
    except OutputError:
        time.sleep(0.0002)
"""
    out = tmp_path / "number"
    out.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", script, str(out)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert out.read_text() == "160"
    assert os.listdir(tmp_path) == ["number"]


def test_what_another_wrote_into_the_lock_file_can_not_reach_the_terminal(tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    with RunLock(out) as lock:
        lock.path.write_bytes(b"\x1b[2Jpid 1\nerror: \xff" + b"x" * 5000)
        with pytest.raises(OutputError) as caught:
            RunLock(out)
    message = str(caught.value)
    assert message.isprintable()
    assert r"\x1b[2Jpid 1\nerror: \ufffd" in message
    assert len(message) < 1300


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can not be locked for writing \(No such file"):
        RunLock(tmp_path / "none" / "tags.jsonl")


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".tags.jsonl.lock").symlink_to("precious")
    with pytest.raises(OutputError, match="symbolic link"):
        RunLock(tmp_path / "tags.jsonl")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(fd: int) -> None:
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock, "_lock", no_locks)
    with RunLock(tmp_path / "tags.jsonl"):
        pass
    assert "knows no locks (No locks available)" in caplog.text
