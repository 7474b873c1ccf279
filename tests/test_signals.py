"""Signals, sent for real to this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vtag.signals import stop_on_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def alone(code: str) -> subprocess.CompletedProcess[bytes]:
    """What a process of its own does with the signals that it sends to itself."""
    start = "import os, signal\nfrom vtag.signals import stop_on_signals\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, timeout=30)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_first_signal_is_a_request(name: str, status: int) -> None:
    ended = alone(
        f"number = signal.{name}\n"
        "before = signal.getsignal(number)\n"
        "with stop_on_signals() as stop:\n"
        "    early = stop()\n"
        "    os.kill(os.getpid(), number)\n"
        "    print(early, stop(), stop.exit_status, signal.getsignal(number) != before)\n"
        "print(signal.getsignal(number) == before)\n"
    )
    assert ended.returncode == 0
    assert ended.stdout.decode().split() == ["False", "True", str(status), "True", "True"]
    assert b"again to stop at once" in ended.stderr


def test_what_was_ignored_stays_ignored() -> None:
    # As under nohup: the terminal goes, the run stays.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from vtag.signals import stop_on_signals\n"
        "with stop_on_signals():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert ended.returncode == 143
    assert b"Traceback" not in ended.stderr
