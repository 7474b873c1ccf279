"""The limits that the decode child puts on itself, and a report of which are in force.

What a video may do to the machine if it takes over its decoder: use a bounded amount of
memory and time. What it may not, where the kernel helps: reach the network, start programs,
write, delete or rename a file, signal another process, outlive its parent. Each limit is
tried by itself and none is required; `in_force` measures them instead of remembering what was
asked for.

Sources: prctl(2), setrlimit(2), user_namespaces(7), seccomp(2), landlock(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

if sys.platform != "win32":
    import resource

_SIGKILL: Final = 9
_PR_SET_PDEATHSIG: Final = 1
_PR_GET_PDEATHSIG: Final = 2
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_SECCOMP_MODE_FILTER: Final = 2
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000

# All the same on every architecture (they came after the numbers were unified).
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_RULE_PATH_BENEATH: Final = 1
_LANDLOCK_WRITE_FILE: Final = 1 << 1
# Every way to change a file system in landlock's first version: write a file, remove a
# folder or a file, make a folder, file, socket, pipe, device or link.
_LANDLOCK_CHANGES: Final = _LANDLOCK_WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_LANDLOCK_REFER: Final = 1 << 13  # from version 2: move between folders
_LANDLOCK_TRUNCATE: Final = 1 << 14  # from version 3

MAX_OPEN_FILES: Final = 64


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def confine_before_imports(parent: int, *, device_files: bool = False) -> None:
    """Gives up what decoding never needs. Call it while the process has one thread only.

    Args:
        parent: process id of the parent; the process ends when it is not that any more.
        device_files: files in /dev may be written to: how programs talk to a graphics card.
    """
    if sys.platform == "linux":
        _leave_network()
        _die_with_parent(parent)
        _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _forbid_file_changes(except_devices=device_files)
        _forbid_calls()


def confine_after_imports(memory_bytes: int | None) -> None:
    """Bounds memory, files and core dumps.

    After the imports, because the libraries' own mappings are no measure of what a video
    takes: `memory_bytes` comes on top of them. None leaves memory unbounded.
    """
    if sys.platform == "win32":
        return
    mapped = _mapped_bytes()
    if memory_bytes is not None:
        _limit("RLIMIT_AS", mapped + memory_bytes if mapped else resource.RLIM_INFINITY)
    _limit("RLIMIT_FSIZE", 0)
    _limit("RLIMIT_NOFILE", MAX_OPEN_FILES)
    _limit("RLIMIT_CORE", 0)


def allow_cpu_seconds(seconds: float) -> None:
    """Lets the process use so much more processor time, all threads together.

    The parent's clock comes first; this one is for a child whose parent is gone or stopped.
    """
    if sys.platform == "win32":
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 2
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


def give_memory_back() -> None:
    """Hands freed memory to the system, so that a big video does not weigh on the next ones."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library other than glibc
            _libc().malloc_trim(0)


def in_force() -> dict[str, bool]:
    """Which limits hold in a real decode child: name of the limit to whether it is there.

    Raises:
        EnvironmentProblem: no child can be started.
    """
    # Here, and not above: the child imports this file too, and needs nothing of its parent's.
    from vtag.decode_process import DecoderProcess

    with DecoderProcess() as decoder:
        return decoder.limits_in_force()


def measure() -> dict[str, bool]:
    """Which limits hold in this process, each found out by trying."""
    return {name: probe() for name, probe in _PROBES.items()}


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name, None)
    if kind is None:
        return
    # Both, where the system allows it: what is hard can not be raised again.
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, value))


def _mapped_bytes() -> int:
    """Address space in use; 0 where the system does not tell (there is no limit then)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _leave_network() -> None:
    """Moves into a network namespace of its own, which holds nothing.

    Root needs no user namespace for it, and must not enter one: there it would be root over
    nothing, and files of other users would be closed to it. For everybody else the mapping of
    the own id onto itself leaves all file permissions as they are.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc().unshare(_CLONE_NEWNET if uid == 0 else _CLONE_NEWUSER | _CLONE_NEWNET) or uid == 0:
        return
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _die_with_parent(parent: int) -> None:
    _libc().prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _forbid_file_changes(*, except_devices: bool) -> None:
    """Landlock: files open for reading only from here on, but perhaps for those in /dev."""
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    changes = _LANDLOCK_CHANGES
    changes |= _LANDLOCK_REFER if version >= 2 else 0
    changes |= _LANDLOCK_TRUNCATE if version >= 3 else 0
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, struct.pack("=Q", changes), 8, 0)
    if rules >= 0:
        if except_devices:
            _allow_writing_below(rules, "/dev")
        libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
        os.close(rules)


def _allow_writing_below(rules: int, folder: str) -> None:
    """Lets existing files below a folder be opened for writing (struct landlock_path_beneath)."""
    below = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", _LANDLOCK_WRITE_FILE, below)
    _libc().syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    os.close(below)


# --- seccomp: system calls that decoding has no use for -------------------------------------

# linux/audit.h, and the tables of system calls of the two architectures that wheels exist for.
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FORBIDDEN: Final = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53,
        "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
        "rt_sigqueueinfo": 129, "mount": 165, "tkill": 200, "add_key": 248, "keyctl": 250,
        "unshare": 272, "accept4": 288, "rt_tgsigqueueinfo": 297, "perf_event_open": 298,
        "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321,
        "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "pidfd_open": 434, "pidfd_getfd": 438,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202,
        "connect": 203, "execve": 221, "kill": 129, "ptrace": 117, "rt_sigqueueinfo": 138,
        "mount": 40, "tkill": 130, "add_key": 217, "keyctl": 219, "unshare": 97,
        "accept4": 242, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281,
        "userfaultfd": 282, "pidfd_send_signal": 424, "io_uring_setup": 425,
        "pidfd_open": 434, "pidfd_getfd": 438,
    },
}  # fmt: skip
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_TGKILL: Final = {"x86_64": 234, "aarch64": 131}
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000

# Classic BPF: load a word, jump if equal / at or above / any bit set, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT0_AT = 0, 4, 16  # struct seccomp_data
_ALLOW: Final = 0x7FFF0000
_FAIL: Final = 0x00050000  # plus the errno that the call fails with


def _filter_program(machine: str, pid: int) -> bytes:
    """The seccomp filter as an array of struct sock_filter."""

    def step(code: int, k: int, when_true: int = 0, when_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, when_true, when_false, k)

    refuse = step(_RETURN, _FAIL | errno.EPERM)
    program = [
        step(_LOAD, _ARCHITECTURE_AT),
        step(_IF_EQUAL, _ARCHITECTURES[machine], 1, 0),
        refuse,
        step(_LOAD, _NUMBER_AT),
        # The second table of x86-64 (x32) is a way round the first.
        step(_IF_AT_LEAST, 0x40000000, 0, 1),
        refuse,
    ]
    for number in _FORBIDDEN[machine].values():
        program += [step(_IF_EQUAL, number, 0, 1), refuse]
    program += [
        # Its flags lie in memory, where a filter can not look. ENOSYS makes the C library
        # take clone instead.
        step(_IF_EQUAL, _CLONE3, 0, 1),
        step(_RETURN, _FAIL | errno.ENOSYS),
        # Threads are needed, processes are not.
        step(_IF_EQUAL, _CLONE[machine], 0, 4),
        step(_LOAD, _ARGUMENT0_AT),
        step(_IF_BITS, _CLONE_THREAD, 1, 0),
        refuse,
        step(_RETURN, _ALLOW),
        # abort() signals its own process, and must be able to.
        step(_IF_EQUAL, _TGKILL[machine], 0, 3),
        step(_LOAD, _ARGUMENT0_AT),
        step(_IF_EQUAL, pid, 1, 0),
        refuse,
        step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _forbid_calls() -> None:
    machine = os.uname().machine
    # A 32-bit interpreter on a 64-bit kernel has other numbers.
    if machine not in _ARCHITECTURES or sys.maxsize < 1 << 32:
        return
    steps = _filter_program(machine, os.getpid())
    program = _Program(len(steps) // 8, steps)
    _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


# --- what holds, found out by trying --------------------------------------------------------


def _dies_with_parent() -> bool:
    if sys.platform != "linux":
        return False
    signal = ctypes.c_int(0)
    _libc().prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal), 0, 0, 0)
    return signal.value == _SIGKILL


def _has_limit(name: str) -> Callable[[], bool]:
    def probe() -> bool:
        if sys.platform == "win32" or not hasattr(resource, name):
            return False
        # The two that count something else than bytes or seconds are always bounded.
        soft, _ = resource.getrlimit(getattr(resource, name))
        ceiling = {"RLIMIT_NOFILE": MAX_OPEN_FILES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
        return soft != resource.RLIM_INFINITY and soft <= ceiling.get(name, soft)

    return probe


def _no_new_privileges() -> bool:
    if sys.platform != "linux":
        return False
    return bool(_libc().prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def _no_network() -> bool:
    try:
        # Connecting a datagram socket sends nothing; it only asks for a route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.connect(("127.0.0.1", 9))
    except OSError:
        return True
    return False


def _no_programs() -> bool:
    try:
        os.execve("/nonexistent/vtag", ["vtag"], {})
    except OSError as err:
        return err.errno == errno.EPERM  # and not ENOENT


def _no_file_changes() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_WRONLY))
    except OSError:
        return True
    return False


def _no_sight_of_environment() -> bool:
    return "HOME" not in os.environ and "USERPROFILE" not in os.environ


_PROBES: Final[dict[str, Callable[[], bool]]] = {
    "memory limit": _has_limit("RLIMIT_AS"),
    "processor time limit": _has_limit("RLIMIT_CPU"),
    "open files limit": _has_limit("RLIMIT_NOFILE"),
    "ban on file growth": _has_limit("RLIMIT_FSIZE"),
    "ban on core dumps": _has_limit("RLIMIT_CORE"),
    "ban on changing files (landlock)": _no_file_changes,
    "ban on starting programs (seccomp)": _no_programs,
    "ban on new privileges": _no_new_privileges,
    "separation from the network": _no_network,
    "end with the parent": _dies_with_parent,
    "bare environment": _no_sight_of_environment,
}
