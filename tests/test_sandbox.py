"""The limits of the decode child: tried one by one from inside a process that took them on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vtag.decode_process import DecoderProcess
from vtag.sandbox import MAX_OPEN_FILES, in_force, measure

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux'")

# Tries what a decoder that was taken over would try, and says how each attempt ended: "done",
# or the name of the error.
BURGLAR = """
import ctypes, errno, json, os, resource, signal, socket, subprocess, sys, threading
victim, secret, parent, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
user = int(sys.argv[5])
from vtag import sandbox

if user:  # only now: the interpreter may lie where that user can not read
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.chdir("/")

if start != "free":
    sandbox.confine_before_imports(os.getppid(), device_files=start == "with devices")
    sandbox.confine_after_imports(256 << 20)
    sandbox.allow_cpu_seconds(5)

def fork():
    if os.fork() == 0:
        os._exit(0)

def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.connect(("127.0.0.1", 9))

def raise_limit():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def many_files():
    held = [open(os.devnull) for _ in range(200)]

def thread():
    run = threading.Thread(target=lambda: None)
    run.start()
    run.join()

ATTEMPTS = {
    "read": lambda: open(secret).read(),
    "read public": lambda: open(os.path.dirname(victim) + "/../public").read(),
    "write to a device": lambda: open("/dev/null", "w").write("x"),
    "read locked": lambda: open(os.path.dirname(victim) + "/../locked").read(),
    "thread": thread,
    "write": lambda: open(victim, "a").write("x"),
    "truncate by opening": lambda: os.close(os.open(victim, os.O_WRONLY | os.O_TRUNC)),
    "truncate": lambda: os.truncate(victim, 0),
    "make": lambda: open(victim + ".new", "w").close(),
    "link": lambda: os.link(victim, victim + ".link"),
    "rename": lambda: os.rename(victim, victim + ".moved"),
    "delete": lambda: os.unlink(victim),
    "run a program": lambda: subprocess.run(["/bin/true"]),
    "replace itself": lambda: os.execv("/bin/true", ["true"]),
    "fork": fork,
    "signal its parent": lambda: os.kill(parent, 0),
    "reach the network": connect,
    "take memory": lambda: bytearray(512 << 20),
    "many files": many_files,
}
outcome = {}
for name, attempt in ATTEMPTS.items():
    if name in sys.argv[6:]:
        try:
            attempt()
            outcome[name] = "done"
        except (OSError, MemoryError) as err:
            outcome[name] = type(err).__name__
print(json.dumps(outcome), flush=True)
"""
HARMLESS = ("read", "thread")
CRIMES = (
    "write", "truncate by opening", "truncate", "make", "link", "rename", "delete",
    "run a program", "fork", "signal its parent", "reach the network", "take memory",
    "many files",
)  # fmt: skip


def landlock_is_there() -> bool:
    path = Path("/sys/kernel/security/lsm")
    return not path.exists() or "landlock" in path.read_text()


@pytest.fixture
def burgle(tmp_path: Path) -> Callable[..., dict[str, str]]:
    def run(start: str, *attempts: str, user: int | None = None) -> dict[str, str]:
        victim, secret = tmp_path / "victim", tmp_path / "secret"
        for file in (victim, secret):
            file.write_text("precious")
            file.chmod(0o600)
        if user is not None:
            for path in (tmp_path, victim, secret):
                os.chown(path, user, user)
            for folder in tmp_path.parents:
                if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
                    folder.chmod(0o755)
        who = "0" if user is None else str(user)
        facts = [str(victim), str(secret), str(os.getpid()), start, who]
        done = subprocess.run(
            [sys.executable, "-c", BURGLAR, *facts, *attempts],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        if start != "free" and landlock_is_there():
            assert victim.read_text() == "precious"
            assert sorted(os.listdir(tmp_path)) == ["secret", "victim"]
        return dict(json.loads(done.stdout))

    return run


@linux
def test_everything_goes_without_limits(burgle: Callable[..., dict[str, str]]) -> None:
    """What the next test sees refused is refused by the limits, and not by something else."""
    possible = [crime for crime in CRIMES if crime not in ("rename", "delete")]
    assert burgle("free", *HARMLESS, *possible) == dict.fromkeys((*HARMLESS, *possible), "done")
    assert burgle("free", "rename") == {"rename": "done"}


@linux
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no seccomp table")
@pytest.mark.parametrize("user", [None, 65534])
def test_reading_goes_on_and_nothing_else(
    user: int | None, burgle: Callable[..., dict[str, str]]
) -> None:
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can act for another user")
    outcome = burgle("confined", *HARMLESS, *CRIMES, user=user)
    assert {name: outcome[name] for name in HARMLESS} == dict.fromkeys(HARMLESS, "done")
    assert outcome["take memory"] == "MemoryError"
    assert outcome["many files"] == "OSError"
    for name in ("run a program", "fork", "signal its parent", "reach the network"):
        assert outcome[name] == "PermissionError", name
    if landlock_is_there():
        for name in (
            "write",
            "truncate by opening",
            "truncate",
            "make",
            "link",
            "rename",
            "delete",
        ):
            assert outcome[name] == "PermissionError", name


@linux
def test_the_report_comes_from_a_real_child() -> None:
    there = in_force()
    everywhere = {
        "memory limit", "processor time limit", "open files limit", "ban on file growth",
        "ban on core dumps", "ban on new privileges", "end with the parent", "bare environment",
    }  # fmt: skip
    assert {name for name in everywhere if not there[name]} == set()
    if landlock_is_there():
        assert there["ban on changing files (landlock)"]
    if platform.machine() in ("x86_64", "aarch64"):
        assert there["ban on starting programs (seccomp)"]
        assert there["separation from the network"]
    assert set(there) == set(measure())


@linux
def test_the_report_tells_what_is_not_there() -> None:
    """Measured here, where nothing is limited: a report that says yes to all would be no use."""
    here = measure()
    for name in (
        "ban on changing files (landlock)", "ban on starting programs (seccomp)",
        "separation from the network", "ban on file growth", "end with the parent",
    ):  # fmt: skip
        assert not here[name], name
    assert MAX_OPEN_FILES < 256 or not here["open files limit"]


@linux
def test_processor_time_ends_a_child_whose_parent_is_stopped(tmp_path: Path) -> None:
    spin = "from vtag import sandbox; sandbox.allow_cpu_seconds(0)\nwhile True: pass"
    # SIGXCPU comes at whole seconds: the two that `allow_cpu_seconds` always leaves.
    done = subprocess.run([sys.executable, "-c", spin], timeout=60, cwd=tmp_path)
    assert done.returncode == -24  # SIGXCPU


@linux
@pytest.mark.skipif(not landlock_is_there(), reason="this kernel has no landlock")
def test_a_child_with_a_graphics_card_may_write_to_devices_and_nothing_else(
    burgle: Callable[..., dict[str, str]],
) -> None:
    assert burgle("confined", "write to a device") == {"write to a device": "PermissionError"}
    outcome = burgle("with devices", "write to a device", "read", *CRIMES)
    assert outcome.pop("write to a device") == outcome.pop("read") == "done"
    assert "done" not in outcome.values()


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_another_user_keeps_own_and_public_files(
    tmp_path: Path, burgle: Callable[..., dict[str, str]]
) -> None:
    """In the user namespace that such a child moves into its user's rights stay what they are."""
    public, locked = tmp_path.parent / "public", tmp_path.parent / "locked"
    for file, mode in ((public, 0o644), (locked, 0o600)):
        file.write_text("root's")
        file.chmod(mode)
    attempts = ("read", "read public", "read locked", "reach the network")
    assert burgle("confined", *attempts, user=65534) == {
        "read": "done",
        "read public": "done",
        "read locked": "PermissionError",
        "reach the network": "PermissionError",
    }
    # Root, which enters no user namespace, reads everybody's.
    os.chown(public, 65534, 65534)
    assert burgle("confined", "read public", "read locked") == {
        "read public": "done",
        "read locked": "done",
    }


def test_a_limit_that_holds_is_found_in_a_child_with_work_done(tmp_path: Path) -> None:
    with DecoderProcess() as decoder:
        first = decoder.limits_in_force()
        assert decoder.limits_in_force() == first
        assert decoder.pid is not None
