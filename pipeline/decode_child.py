"""One decode child as its parent sees it: ask, wait with a deadline, and say what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from vtag import decode_wire
from vtag.decode_limits import ChildLimits
from vtag.decode_wire import Message, WireError
from vtag.errors import ERROR_CODES, EnvironmentProblem
from vtag.killable import Keeper, bury, kill, python_command, read_into, resident_bytes

# A child that closes its pipe is about to die; one that is still there after this is not.
_LAST_BREATH_SECONDS: Final = 1.0
_SHORT_TEXT: Final = 160  # of a decoder's words inside a sentence of ours


class Failed(Exception):
    """The child did not do what it was asked.

    Attributes:
        code: key of `vtag.errors.ERROR_CODES`, or "unable": no file can be read like that here.
        reason: what happened, to be read after "decord …": "crashed (SIGSEGV)".
        told: the child's own words, when it raised a MediaError; it is alive and well then.
        stage: the stage that the child named with it.
    """

    def __init__(
        self, code: str, reason: str, *, told: str | None = None, stage: str | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.told = told
        self.stage = stage


@dataclass
class Clock:
    """Seconds that may be spent waiting for one stage, and how many of them are left."""

    allowed: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.allowed


class Child:
    """A running decode child. `busy` from a question until its last answer."""

    def __init__(self, process: subprocess.Popen[bytes], keeper: Keeper) -> None:
        self.process = process
        self.files = 0
        self.busy = True
        self._keeper = keeper
        self._reading = False
        self._libraries_bytes = 0

    @classmethod
    def start(cls, keeper: Keeper, limits: ChildLimits, backends: str) -> Child:
        """A child that is ready; raises EnvironmentProblem when none can be started."""
        if not sys.executable:
            raise EnvironmentProblem("no Python to start a decode child with: sys.executable")
        arguments = [str(os.getpid()), json.dumps(asdict(limits)), backends]
        try:
            child = cls(keeper.start(python_command("vtag.decode_worker", arguments)), keeper)
        except OSError as err:
            raise EnvironmentProblem(f"the decode child can not be started ({err})") from err
        try:
            child.answer(Clock(limits.start_seconds), "ready")
        except Failed as err:
            child.end()
            if err.code == "unable":
                raise EnvironmentProblem(err.reason) from err
            raise EnvironmentProblem(
                f"the decode child did not start: it {err.reason}; try "
                f"{sys.executable} -c 'import vtag.decode_worker'"
            ) from err
        except BaseException:  # Ctrl-C: nobody else knows of the child yet
            child.end()
            raise
        child.busy = False
        child._libraries_bytes = resident_bytes(child.process.pid)
        return child

    def ask(self, request: Mapping[str, Any]) -> None:
        """Sends a request; a child that is gone is noticed when it does not answer."""
        self.busy = True
        assert self.process.stdin is not None
        # A dead child first: where SIGPIPE has its default action, writing would end us.
        if self.process.poll() is None:
            with suppress(OSError, ValueError):
                self.process.stdin.write(json.dumps(request).encode("ascii") + b"\n")

    def ask_on(self, request: Mapping[str, Any], clock: Clock) -> None:
        """Sends another request about the same file; a child that does not read it is killed."""
        self._keeper.light(self.process, clock.left)
        try:
            self.ask(request)
        finally:
            clock.left = self._keeper.put_out()

    def answer(self, clock: Clock, *kinds: str) -> Message:
        """The next message, which must be of one of the kinds.

        Raises:
            Failed: it did not come in time, is something else, or tells of an error.
        """
        message = self._next(clock)
        if message.kind in kinds:
            return message
        try:
            if message.kind == "error":
                raise self._told(message)
            if message.kind == "bug":
                text = decode_wire.text_field(message.header, "text")
                raise Failed("decoder_crashed", f"failed unexpectedly ({text})")
            if message.kind == "unable":
                raise Failed("unable", decode_wire.text_field(message.header, "text"))
        except WireError as err:
            raise self._lie(err) from err
        raise self._lie(WireError(f"a message that is out of turn ({clean_kind(message)})"))

    def believe(self, err: WireError) -> Failed:
        """What a message that can not be true amounts to; the child is killed."""
        return self._lie(err)

    def is_worn_out(self, limits: ChildLimits) -> bool:
        """Whether the next file needs a new child."""
        return (
            self.process.poll() is not None
            or self.files >= limits.files_per_child
            or resident_bytes(self.process.pid) > self._libraries_bytes + limits.resident_bytes
        )

    def limits_in_force(self, limits: ChildLimits) -> dict[str, bool]:
        """Which limits the child finds in force; raises Failed."""
        self.ask({"do": "measure"})
        message = self.answer(Clock(limits.deadline_floor_seconds), "limits")
        self.busy = False
        try:
            return decode_wire.flags(message.header, "limits")
        except WireError as err:
            raise self._lie(err) from err

    def end(self) -> None:
        """Kills the child, and waits until it is gone."""
        kill(self.process)
        # Another thread that waits for it finds the end of the pipe, and cleans up itself.
        if not self._reading:
            bury(self.process)

    def _next(self, clock: Clock) -> Message:
        assert self.process.stdout is not None
        stdout = self.process.stdout
        self._reading = True
        self._keeper.light(self.process, clock.left)
        try:
            return decode_wire.unpack(lambda to: read_into(stdout, to, given_up=self._given_up))
        except (EOFError, OSError) as err:
            # Before the post-mortem: it waits too, and must not be cut short by a kill.
            clock.left = self._keeper.put_out()
            raise self._obituary(clock) from err
        except WireError as err:
            raise self._lie(err) from err
        finally:
            clock.left = self._keeper.put_out()
            self._reading = False

    def _given_up(self) -> bool:
        return self._keeper.has_burnt_down() or self.process.poll() is not None

    def _told(self, message: Message) -> Failed:
        code = decode_wire.text_field(message.header, "code")
        text = decode_wire.text_field(message.header, "text")
        stage = decode_wire.text_field(message.header, "stage")
        if code not in ERROR_CODES or stage not in ("open", "probe", "video", "audio"):
            raise WireError(f"an error that does not exist ({code}, {stage})")
        # After a lack of memory the heap is in pieces: a fresh child has more room.
        self.busy = code == "oom"
        self.files += 1
        short = textwrap.shorten(text, _SHORT_TEXT, placeholder=" …")
        return Failed(code, f"failed ({short})", told=text, stage=stage)

    def _lie(self, err: WireError) -> Failed:
        kill(self.process)
        return Failed("decoder_misbehaved", f"sent {err}")

    def _obituary(self, clock: Clock) -> Failed:
        """What a child that ended before its answer died of."""
        if clock.left <= 0:
            bury(self.process)
            return Failed("decode_timeout", f"did not finish within {clock.allowed:.3g} s")
        try:
            status = self.process.wait(_LAST_BREATH_SECONDS)
        except subprocess.TimeoutExpired:
            kill(self.process)
            bury(self.process)
            return Failed("decoder_misbehaved", "closed its pipe without an answer")
        bury(self.process)
        if status == -9:  # not by us: the kernel's, or a container's, memory limit
            return Failed("oom", "was killed by the system, most likely for its memory")
        if sys.platform != "win32" and status == -signal.SIGXCPU:
            return Failed("decode_timeout", "used up its processor time")
        if status < 0:
            return Failed("decoder_crashed", f"crashed ({_signal_name(-status)})")
        return Failed("decoder_crashed", f"ended without an answer (exit status {status})")


def clean_kind(message: Message) -> str:
    """The kind of a message, fit to be shown."""
    return decode_wire.clean(message.kind)[:40]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
