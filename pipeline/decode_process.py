"""The parent's handle on the decode child: deadlines, retries, and one error per bad file.

Why a child: a file can make a decoder hang, crash, lie or eat the machine, and none of that
can be undone from inside the process (a hung native loop holds no Python lock and hears no
signal). Here it costs one child and one record.
"""

from __future__ import annotations

import logging
import os
import stat
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final

from vtag.config import DecoderName, Sampling
from vtag.decode_answers import DECODER_NAMES, Attempt, Explorer
from vtag.decode_child import Child, Failed
from vtag.decode_limits import ChildLimits
from vtag.decode_wire import clean
from vtag.errors import ERROR_CODES, EnvironmentProblem, MediaError
from vtag.killable import Keeper
from vtag.records import Frames, Media, Sound
from vtag.storage import reason

__all__ = ["ChildLimits", "DecoderProcess", "Finished", "Restarted", "backends_for"]

log = logging.getLogger(__name__)

# What another decoder may do better. The rest (encrypted, too large …) is true of the file.
_DECODER_MATTERS: Final = frozenset(
    {"decode_timeout", "decoder_crashed", "decoder_misbehaved", "oom", "corrupt", "truncated",
     "unsupported_codec"}
)  # fmt: skip


BACKENDS: Final = "vtag.decode_backends:BACKENDS"


def backends_for(decoder: DecoderName, device: str) -> str:
    """Where the decode child finds its decoders, as `DecoderProcess` wants it told.

    Args:
        decoder: as in `Sampling`.
        device: what torchcodec decodes on: "cuda:N", and anything else is the CPU.

    Raises:
        EnvironmentProblem: torchcodec is wanted, and not installed.
    """
    if decoder != "torchcodec":
        return BACKENDS
    if find_spec("torchcodec") is None:
        raise EnvironmentProblem(
            "--decoder torchcodec needs torchcodec: pip install 'vtag[torchcodec]', and FFmpeg's "
            "shared libraries (Debian: apt install ffmpeg)"
        )
    return f"vtag.decode_backends:torchcodec_on:{device if device.startswith('cuda') else 'cpu'}"


@dataclass(frozen=True)
class Restarted:
    """Everything that was yielded for this file is void; it begins again with its `Media`.

    Attributes:
        reason: what went wrong, and with what it is tried again.
    """

    reason: str


@dataclass(frozen=True)
class Finished:
    """The file was read to its end.

    Attributes:
        media: the final facts: `decoder` and `corrupt_frames` are filled in.
        warnings: what was damaged, lost or substituted, in plain words.
    """

    media: Media
    warnings: tuple[str, ...] = ()


class _Slot:
    """What must be ended with the handle; apart from it, so that it can be collected."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.keeper = Keeper()
        self.child: Child | None = None

    def end(self) -> None:
        """Kills the child and ends the keeper's thread."""
        if os.getpid() != self.owner:  # a copy after fork: both belong to the original
            return
        child, self.child = self.child, None
        if child is not None:
            child.end()
        self.keeper.close()


class DecoderProcess:
    """Decodes files in one child process at a time, started when the first file comes.

    For one thread at a time; `close` may be called from any. The child lives on from file to
    file; it is replaced when it was killed, crashed, or has served its time.

    Args:
        limits: how much time and memory a file may take.
        backends: where the child finds its decoders' table; see `vtag.decode_worker.main`.
    """

    def __init__(
        self,
        limits: ChildLimits = ChildLimits(),  # noqa: B008  frozen: safe as a default
        *,
        backends: str = BACKENDS,
    ) -> None:
        self.limits = limits
        self._backends = backends
        self._turn = 0
        self._renew_slot()

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        child = self._slot.child
        return child.process.pid if child else None

    def decode(
        self,
        path: Path,
        *,
        sampling: Sampling,
        want_video: bool,
        want_sound: bool,
        explorer: Explorer | None = None,
    ) -> Iterator[Media | Frames | Sound | Restarted | Finished]:
        """The contents of a file: `Media`, then `Frames`, then `Sound`, then `Finished`.

        A decoder that hangs, crashes, lies or finds only damage is given up for the other one,
        once: then comes `Restarted`, and all from the beginning. When only the sound is lost,
        the pictures stay and `Finished.warnings` says so. A new call ends one that was left
        half-way.

        Args:
            path: a regular file.
            sampling: which pictures. A decoder that it names comes first; "pyav" is never
                replaced by decord.
            want_video: whether pictures are read.
            want_sound: whether sound is read.
            explorer: asks for pictures one after the other; it goes with adaptive sampling,
                and its `begin` is called once more after `Restarted`.

        Raises:
            MediaError: the file can not be used.
            EnvironmentProblem: no child can be started here.
        """
        self._turn += 1
        turn = self._turn
        if os.getpid() != self._slot.owner:  # forked: the child and the thread are not ours
            self._renew_slot()
        self._drop_busy_child()
        size = _state_of(path)[0]
        adaptive = sampling.mode == "adaptive" and want_video
        if adaptive != (explorer is not None):
            raise ValueError("an explorer goes with adaptive sampling, and only with it")
        attempt = Attempt(
            path, sampling, size=size, look=want_video, listen=want_sound, explorer=explorer
        )
        try:
            yield from self._attempts(attempt, turn)
        finally:
            if turn == self._turn:
                self._drop_busy_child()

    def _attempts(
        self, attempt: Attempt, turn: int
    ) -> Iterator[Media | Frames | Sound | Restarted | Finished]:
        path, before = attempt.path, _state_of(attempt.path)
        first: tuple[Attempt, Failed] | None = None
        warnings: list[str] = []
        while True:
            failure: Failed | None = None
            try:
                for event in attempt.run(self._ready_child(turn), self.limits):
                    yield event
                    self._check_turn(turn)
            except Failed as err:
                failure = err
            self._check_turn(turn)
            self._drop_busy_child()
            if _state_of(path) != before:
                raise _media_error(path, "changed_during_read", "the file was written to")
            if failure is None:
                break
            log.info("%s: %s %s", path, attempt.subject, failure.reason)
            if attempt.pictures_are_whole:
                warnings += attempt.lost_sound(failure)
                break
            second = None if first else _second_attempt(attempt, failure)
            if second is None:
                raise _final_error(path, attempt, failure, first)
            warnings.append(_reason(attempt, failure, second))
            first, attempt = (attempt, failure), second
            if first[0].media is not None:
                yield Restarted(warnings[-1])
        yield Finished(attempt.final_media(), (*warnings, *attempt.warnings))

    def limits_in_force(self) -> dict[str, bool]:
        """Which limits the child measures on itself (`vtag.sandbox.measure`).

        Raises:
            EnvironmentProblem: no child can be started here.
        """
        self._turn += 1
        self._drop_busy_child()
        try:
            return self._ready_child(self._turn).limits_in_force(self.limits)
        except Failed as err:
            raise EnvironmentProblem(f"the decode child {err.reason}") from err
        finally:
            self._drop_busy_child()

    def close(self) -> None:
        """Ends the child, also one that is at work; the next `decode` starts a new one."""
        self._turn += 1
        self._finalizer()
        self._renew_slot()

    def _renew_slot(self) -> None:
        self._slot = _Slot()
        self._finalizer = weakref.finalize(self, self._slot.end)

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise RuntimeError("the decoder was closed, or given another file, in mid-file")

    def _ready_child(self, turn: int) -> Child:
        """The child, a new one where the old one is dead or has served its time."""
        child = self._slot.child
        if child is not None and child.is_worn_out(self.limits):
            self._slot.child = None
            child.end()
        if self._slot.child is None:
            slot = self._slot
            try:
                slot.child = Child.start(slot.keeper, self.limits, self._backends)
            except EnvironmentProblem:
                self._check_turn(turn)  # closed meanwhile: then that is the reason
                raise
            return slot.child
        return self._slot.child

    def _drop_busy_child(self) -> None:
        child = self._slot.child
        if child is not None and child.busy:
            self._slot.child = None
            child.end()


def _state_of(path: Path) -> tuple[int, int, int]:
    """Size, time of change and identity of a regular file; raises MediaError without one."""
    try:
        found = os.stat(path)
    except FileNotFoundError as err:
        raise _media_error(path, "vanished", "no such file") from err
    except ValueError as err:  # a NUL in the name
        raise _media_error(path, "vanished", "no such file") from err
    except OSError as err:
        raise _media_error(path, "unreadable", f"can not be read ({reason(err)})") from err
    if not stat.S_ISREG(found.st_mode):
        # Opening a named pipe would wait for ever.
        raise _media_error(path, "not_a_file", "not a regular file")
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _second_attempt(attempt: Attempt, failure: Failed) -> Attempt | None:
    """What may still read the file; None when nothing may."""
    frames = attempt.sampling.max_frames
    if attempt.stage == "probe":
        # Opening has no other decoder. But memory that an earlier file spoilt, or left too
        # little of, shows in the next one.
        spoilt = attempt.child_was_used and failure.code in ("decoder_crashed", "oom")
        return attempt.again(decoder=None, max_frames=frames) if spoilt else None
    if attempt.stage != "video" or failure.code not in _DECODER_MATTERS:
        return None
    other: str | None = "pyav"
    if attempt.decoder == "pyav":
        # Who asks for PyAV by name may want nothing to do with decord's FFmpeg of 2018.
        other = "decord" if attempt.decord_fit and attempt.sampling.decoder == "auto" else None
    if failure.code == "oom":
        return attempt.again(decoder=other or attempt.decoder, max_frames=max(frames // 2, 1))
    return attempt.again(decoder=other, max_frames=frames) if other else None


def _reason(attempt: Attempt, failure: Failed, second: Attempt) -> str:
    """The warning that says what was tried instead of what."""
    if attempt.stage == "probe":
        return f"opening the file {failure.reason} in a used decode child; a new one read it"
    cause = f"{attempt.subject} {failure.reason}"
    if failure.code == "oom":
        return (
            f"{cause}; read again with {DECODER_NAMES[second.decoder]} "
            f"and at most {second.sampling.max_frames} frames"
        )
    return f"{cause}; read again with {DECODER_NAMES[second.decoder]}"


def _final_error(
    path: Path, attempt: Attempt, failure: Failed, first: tuple[Attempt, Failed] | None
) -> MediaError:
    stage = failure.stage or attempt.stage
    words = failure.told or f"{attempt.subject} {failure.reason}"
    if first is not None:
        words = f"{first[0].subject} {first[1].reason}, then {attempt.subject} {failure.reason}"
    return _media_error(path, failure.code, words, stage=stage)


def _media_error(path: Path, code: str, what: str, *, stage: str = "open") -> MediaError:
    # The decoders' own errors often end with what to do.
    advice = "" if ";" in what else f"; {ERROR_CODES[code].remedy}"
    return MediaError(f"{clean(str(path))}: {clean(what)}{advice}", code=code, stage=stage)
