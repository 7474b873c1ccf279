"""A child process with a fuse: it is killed when it has been waited for too long.

Nothing here knows about video. The child is started from one thread that lives as long as
the child may: Linux ends a child together with the *thread* that started it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Final

# The fuse burns in steps. A step counts as two at most, so that a job stopped with Ctrl-Z or a
# laptop asleep does not come back to a killed child.
TICK_SECONDS: Final = 0.5
# How long a killed child may keep its pipe open: it may hang in the kernel on a dead network
# disk, where no signal reaches it, and must not take its parent with it.
BURIAL_SECONDS: Final = 5.0
PIPE_BYTES: Final = 1 << 20  # Linux' largest for everybody; a batch of pictures is 3 MB

# Only what the loader and the interpreter need to start, and which graphics cards there are to
# be; one thread per library, since vtag runs a child per core.
_KEPT_VARIABLES: Final = (
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
)  # fmt: skip
_FIXED_VARIABLES: Final = {
    "PATH": os.defpath,  # decord does not load without one
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from {module} import main; main(sys.argv[1:])"
)


def python_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs `main(arguments)` of a module in a new, isolated interpreter.

    The user's script is not run again, whatever it looks like: unlike multiprocessing this
    never touches `__main__`.
    """
    # "" means the folder of the moment, which the child need not share.
    path = json.dumps([entry or os.getcwd() for entry in sys.path if isinstance(entry, str)])
    boot = _BOOT.format(module=module)
    return [sys.executable, "-I", "-B", "-c", boot, path, *arguments]


def bare_environment() -> dict[str, str]:
    """The environment of a child: nothing of the user's but what loading libraries needs."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    if sys.platform == "win32" and "PATH" in os.environ:
        kept["PATH"] = os.environ["PATH"]  # where DLLs are looked for
    return {**_FIXED_VARIABLES, **kept}


class Keeper:
    """The thread that starts children, and kills the one whose fuse has burnt down.

    One child at a time. Any thread may call; the methods do not wait for each other longer
    than starting a process takes.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._command: list[str] | None = None
        self._started: subprocess.Popen[bytes] | OSError | None = None
        self._lit: subprocess.Popen[bytes] | None = None
        self._left_seconds = 0.0
        self._ticked = 0.0
        self._closed = False

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A new child with pipes on its standard input and output; raises OSError."""
        with self._wake:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="vtag-decode-keeper", daemon=True
                )
                self._thread.start()
            self._end_unclaimed()
            self._command = command
            self._wake.notify_all()
            while (started := self._take_started()) is None:
                if self._closed or not self._thread.is_alive():
                    raise OSError("its keeper has ended")
                self._wake.wait(TICK_SECONDS)
        if isinstance(started, OSError):
            raise started
        return started

    def light(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """From now on the child has so many seconds left."""
        with self._wake:
            self._lit, self._left_seconds, self._ticked = process, seconds, time.monotonic()
            self._wake.notify_all()

    def put_out(self) -> float:
        """Seconds that were left; 0 when the fuse had burnt down and the child was killed."""
        with self._wake:
            if self._lit is not None:
                self._burn()
            self._lit = None
            return max(self._left_seconds, 0.0)

    def has_burnt_down(self) -> bool:
        """Whether the time is up and the child was killed for it."""
        with self._wake:
            return self._left_seconds <= 0

    def close(self) -> None:
        """Ends the thread. A child that still runs ends with it on Linux: kill it before."""
        with self._wake:
            self._closed = True
            self._end_unclaimed()
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(BURIAL_SECONDS)

    def _take_started(self) -> subprocess.Popen[bytes] | OSError | None:
        started, self._started = self._started, None
        return started

    def _end_unclaimed(self) -> None:
        """Ends a child whose `start` was interrupted (Ctrl-C) before it was handed over."""
        self._command = None
        unclaimed = self._take_started()
        if isinstance(unclaimed, subprocess.Popen):
            kill(unclaimed)
            bury(unclaimed)

    def _run(self) -> None:
        with self._wake:
            while not self._closed:
                if self._command is not None:
                    self._started = _start(self._command)
                    self._command = None
                    self._wake.notify_all()
                if self._lit is None:
                    self._wake.wait()
                else:
                    self._wake.wait(min(max(self._left_seconds, 0.0), TICK_SECONDS))
                    self._burn()

    def _burn(self) -> None:
        now = time.monotonic()
        self._left_seconds -= min(now - self._ticked, 2 * TICK_SECONDS)
        self._ticked = now
        if self._lit is not None and self._left_seconds <= 0:
            kill(self._lit)
            self._lit = None


def _start(command: list[str]) -> subprocess.Popen[bytes] | OSError:
    options: dict[str, int | bool] = {}
    if sys.platform == "win32":
        # No console window, and no Ctrl-C that was meant for the parent.
        options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        # A group of its own: Ctrl-C at the terminal goes to the parent alone, which then says
        # what becomes of the child; and whatever the child starts can be killed with it.
        options["start_new_session"] = True
    try:
        process = subprocess.Popen(  # type: ignore[call-overload]
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=bare_environment(),
            close_fds=True,
            **options,
        )
    except OSError as err:
        return err
    except ValueError as err:  # a NUL in an entry of sys.path
        return OSError(str(err))
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # over the user's share of pipe memory: slower, no worse
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    assert isinstance(process, subprocess.Popen)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a child and what it started, at once: no signal that it could trap."""
    if process.poll() is None and hasattr(os, "killpg"):
        # Not reaped yet, so the number is still the child's own.
        with suppress(OSError):
            os.killpg(process.pid, 9)
    with suppress(OSError):
        process.kill()


def bury(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a child that was killed or ends by itself; its pipes are closed.

    None when it is still there after `BURIAL_SECONDS`, stuck in the kernel.
    """
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    try:
        return process.wait(BURIAL_SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(BURIAL_SECONDS)
    return None


def read_into(stream: IO[bytes], buffer: memoryview, *, given_up: Callable[[], bool]) -> None:
    """Fills the buffer from the child's output.

    Args:
        given_up: whether the child is dead or was killed. What is in the pipe is still read.

    Raises:
        EOFError: there is no more.
    """
    given_up_at: float | None = None
    filled = 0
    while filled < len(buffer):
        while not _readable(stream):
            # Dead, and yet no end of file: somebody else holds the other end of the pipe, or
            # the child is stuck in the kernel.
            if given_up_at is None:
                given_up_at = time.monotonic() if given_up() else None
            elif time.monotonic() - given_up_at > BURIAL_SECONDS:
                raise EOFError
        got = stream.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        filled += got


def _readable(stream: IO[bytes]) -> bool:
    """Whether a read would return now; waits for a tick. Always true on Windows."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(TICK_SECONDS * 1000))


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
