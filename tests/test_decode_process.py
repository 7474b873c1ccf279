"""The decode child, tried with decoders that do their worst (`hostile_backends`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hostile_backends import ACTS, PIXEL
from numpy.typing import NDArray

import vtag.decode_child
import vtag.killable
from vtag.config import Sampling
from vtag.decode_process import ChildLimits, DecoderProcess, Finished, Restarted
from vtag.decode_wire import Choices
from vtag.errors import ConfigError, EnvironmentProblem, MediaError
from vtag.killable import Keeper
from vtag.records import Frames, Media, Sound

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="looks at POSIX processes")

PATIENT = ChildLimits(memory_bytes=384 << 20)
# For those that hang. Ten seconds of "video" at 0.001 s each: the floor counts.
HASTY = ChildLimits(deadline_floor_seconds=0.9, deadline_per_media_second=0.001)
MAX_FRAMES = 6
HANGS = ("sleep", "spin", "spin in c", "ignore sigterm")
CRASHES = ("abort", "segfault", "exit silently", "bug")
LIES = (
    "garbage", "huge header", "deep json", "too many bytes", "lying shape", "huge shape",
    "many pictures", "negative shape", "wrapping repeats", "wrong type", "out of turn",
    "unknown error", "endless", "nan times", "back in time", "close everything",
)  # fmt: skip
CODES = {
    **dict.fromkeys(HANGS, "decode_timeout"),
    **dict.fromkeys(CRASHES, "decoder_crashed"),
    **dict.fromkeys(LIES, "decoder_misbehaved"),
    "eat memory": "oom",
    "killed": "oom",
}


@dataclass
class Read:
    """What came for one file since the last restart, and all events in order."""

    frames: list[Frames] = field(default_factory=list)
    sound: list[Sound] = field(default_factory=list)
    finished: Finished | None = None
    events: list[str] = field(default_factory=list)

    @property
    def greys(self) -> set[int]:
        return {int(value) for frames in self.frames for value in np.unique(frames.pixels)}

    @property
    def seconds(self) -> list[float]:
        return [second for frames in self.frames for second in frames.seconds.tolist()]

    @property
    def heard_seconds(self) -> float:
        return sum(len(sound.samples) for sound in self.sound) / 16_000


class Refusing(Read):
    """A caller that fails at the first picture."""

    @property
    def frames(self) -> list[Frames]:
        raise ConfigError("the caller's own")

    @frames.setter
    def frames(self, frames: list[Frames]) -> None:
        pass


def read(
    decoder: DecoderProcess,
    path: Path,
    *,
    sampling: Sampling = Sampling(max_frames=MAX_FRAMES),  # noqa: B008  frozen
    into: Read | None = None,
) -> Read:
    got = into if into is not None else Read()
    for event in decoder.decode(path, sampling=sampling, want_video=True, want_sound=True):
        got.events.append(type(event).__name__)
        if isinstance(event, Frames):
            got.frames.append(event)
        elif isinstance(event, Sound):
            got.sound.append(event)
        elif isinstance(event, Restarted):
            got.frames, got.sound = [], []
        elif isinstance(event, Finished):
            got.finished = event
    return got


class Bisecting:
    """Asks for the key frames, then for the last other place, then for no more."""

    def __init__(self) -> None:
        self.begun = self.rounds = 0

    def begin(self, choices: Choices) -> None:
        self.begun, self.rounds = self.begun + 1, 0
        self.keys, self.others = np.flatnonzero(choices.is_key), np.flatnonzero(~choices.is_key)

    def wanted(self) -> NDArray[np.int64]:
        self.rounds += 1
        return [self.keys, self.others[-1:], self.others[:0]][self.rounds - 1]


ADAPTIVE = Sampling(mode="adaptive", max_frames=MAX_FRAMES)


def explore(decoder: DecoderProcess, path: Path, got: Read) -> Bisecting:
    explorer = Bisecting()
    for event in decoder.decode(
        path, sampling=ADAPTIVE, want_video=True, want_sound=True, explorer=explorer
    ):
        got.events.append(type(event).__name__)
        if isinstance(event, Frames):
            got.frames.append(event)
        elif isinstance(event, Restarted):
            got.frames = []
        elif isinstance(event, Finished):
            got.finished = event
    return explorer


def all_is_well(decoder: DecoderProcess, fine: Path) -> None:
    got = read(decoder, fine)
    assert got.events == ["Media", *["Frames"] * 3, *["Sound"] * 3, "Finished"]
    assert got.greys == {PIXEL["decord"]}
    assert got.seconds == [0, 1, 2, 3, 4, 5]
    assert got.finished is not None
    assert got.finished.warnings == ()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def children() -> list[int]:
    """All children of this process, zombies too, but for those of the shared handles."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            kept = {decoder.pid for decoder in SHARED}
            if int(fields[1]) == os.getpid() and int(entry.name) not in kept:
                found.append(int(entry.name))
    return found


def ends(pid: int, *, within_seconds: float = 5) -> bool:
    deadline = time.monotonic() + within_seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    def write(**acts: object) -> Path:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.mp4"
        file.write_text(json.dumps(acts))
        return file

    return write


@pytest.fixture
def fine(script: Callable[..., Path]) -> Path:
    return script(sound="fine")


SHARED: list[DecoderProcess] = []


@pytest.fixture(scope="module")
def shared() -> Iterator[DecoderProcess]:
    """One handle for many files, as in a run."""
    yield from handle(PATIENT)


@pytest.fixture(scope="module")
def hasty() -> Iterator[DecoderProcess]:
    """The same with a short deadline."""
    yield from handle(HASTY)


def handle(limits: ChildLimits) -> Iterator[DecoderProcess]:
    with DecoderProcess(limits, backends="hostile_backends:BACKENDS") as decoder:
        SHARED.append(decoder)
        yield decoder
        SHARED.remove(decoder)
        # A child that the last test made its parent kill is gone already.
        assert children() == ([] if decoder.pid is None else [decoder.pid])
    assert children() == []


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    """A handle of the test's own."""
    with DecoderProcess(HASTY, backends="hostile_backends:BACKENDS") as decoder:
        yield decoder


# --- honest decoders -------------------------------------------------------------------------


def test_what_the_child_reads_arrives(shared: DecoderProcess, fine: Path) -> None:
    got = read(shared, fine)
    all_is_well(shared, fine)
    assert got.finished is not None
    assert got.finished.media == Media(
        duration=10.0, fps=25.0, width=64, height=48, video_codec="h264",
        has_video=True, has_audio=True, decoder="decord",
    )  # fmt: skip
    assert [sound.start for sound in got.sound] == [0, 1, 2]
    assert all((sound.samples == np.float32(0.25)).all() for sound in got.sound)


def test_only_what_is_wanted_is_read(shared: DecoderProcess, fine: Path) -> None:
    sampling = Sampling(max_frames=2)

    def kinds(*, video: bool, sound: bool) -> list[str]:
        events = shared.decode(fine, sampling=sampling, want_video=video, want_sound=sound)
        return [type(event).__name__ for event in events]

    assert kinds(video=True, sound=False) == ["Media", "Frames", "Finished"]
    assert kinds(video=False, sound=True) == ["Media", "Sound", "Sound", "Sound", "Finished"]
    assert kinds(video=False, sound=False) == ["Media", "Finished"]


def test_one_child_serves_many_files_from_many_threads(decoder: DecoderProcess, fine: Path) -> None:
    pids = set()

    def job() -> None:
        all_is_well(decoder, fine)
        pids.add(decoder.pid)

    # Each thread ends before the next begins: the child must not end with the one that was
    # the first to need it.
    for _ in range(3):
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
    assert len(pids) == 1
    assert None not in pids


def test_damage_and_warnings_arrive_cleaned(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = read(shared, script(decord="report"))
    assert got.finished is not None
    assert got.finished.media.corrupt_frames == 1
    assert got.finished.warnings == ("one\ufffdline \ufffd[31mred",)


def test_what_decoders_print_goes_nowhere(
    shared: DecoderProcess, script: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    got = read(shared, script(decord="print"))
    assert got.events.count("Frames") == 3
    assert capfd.readouterr() == ("", "")


def test_a_decoder_that_closes_standard_output_harms_nobody(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    assert read(shared, script(decord="close stdout")).greys == {PIXEL["decord"]}


def test_the_child_decodes_nothing_before_the_parent_has_taken_note_of_the_file(
    decoder: DecoderProcess, script: Callable[..., Path]
) -> None:
    events = decoder.decode(
        script(decord="segfault"), sampling=Sampling(), want_video=True, want_sound=False
    )
    assert isinstance(next(events), Media)
    assert decoder.pid is not None
    assert not ends(decoder.pid, within_seconds=0.5)
    assert Restarted in {type(event) for event in events}


# --- adaptive sampling -----------------------------------------------------------------------


def test_an_explorer_gets_what_it_asks_for(shared: DecoderProcess, fine: Path) -> None:
    got = Read()
    explorer = explore(shared, fine, got)
    assert got.events == ["Media", *["Frames"] * 2, *["Sound"] * 3, "Finished"]
    assert got.seconds == [0, 5, 4]  # back in time from one round to the next
    assert explorer.begun == 1
    assert explorer.rounds == 3
    all_is_well(shared, fine)


@pytest.mark.parametrize("act", ["sleep", "segfault", "bug", "garbage", "unasked", "eat memory"])
def test_a_decoder_that_fails_in_a_later_round_is_replaced(
    act: str, shared: DecoderProcess, hasty: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = Read()
    decoder = hasty if act == "sleep" else shared
    explorer = explore(decoder, script(decord=act), got)
    assert [event for event in got.events if event != "Frames"] == [
        "Media", "Restarted", "Media", "Finished",
    ]  # fmt: skip
    assert got.seconds == ([0, 2] if act == "eat memory" else [0, 5, 4])  # half as many
    assert explorer.begun == 2
    assert got.greys == {PIXEL["pyav"]}
    assert got.finished is not None
    assert got.finished.media.decoder == "pyav"


@pytest.mark.parametrize("act", ["sleep", "segfault", "bug", "garbage", "killed"])
def test_two_decoders_that_fail_in_a_later_round_are_one_error(
    act: str,
    shared: DecoderProcess,
    hasty: DecoderProcess,
    script: Callable[..., Path],
    fine: Path,
) -> None:
    decoder = hasty if act == "sleep" else shared
    with pytest.raises(MediaError) as caught:
        explore(decoder, script(decord=act, pyav=act), Read())
    assert caught.value.code == CODES[act]
    all_is_well(decoder, fine)
    assert children() == []


def test_a_round_without_pictures_is_no_failure(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = Read()
    explorer = explore(shared, script(decord="media error corrupt"), got)
    assert got.seconds == [0, 5]
    assert explorer.rounds == 3
    assert got.finished is not None


def test_an_explorer_goes_with_adaptive_sampling(shared: DecoderProcess, fine: Path) -> None:
    with pytest.raises(ValueError, match="explorer goes with adaptive"):
        read(shared, fine, sampling=ADAPTIVE)


# --- bad files -------------------------------------------------------------------------------


def test_every_act_is_tried() -> None:
    harmless = {"print", "close stdout", "leak"}
    assert set(ACTS) - harmless == set(CODES) - {"endless", "nan times", "back in time"}


@pytest.mark.parametrize("act", CODES)
def test_a_bad_file_costs_one_error_with_its_code(
    act: str,
    shared: DecoderProcess,
    hasty: DecoderProcess,
    script: Callable[..., Path],
    fine: Path,
) -> None:
    decoder = hasty if act in HANGS else shared
    got = Read()
    file = script(decord=act, pyav=act)
    with pytest.raises(MediaError) as caught:
        read(decoder, file, into=got)
    assert caught.value.code == CODES[act]
    assert caught.value.stage == "video"
    assert str(caught.value).startswith(f"{file}: decord ")
    assert ", then PyAV " in str(caught.value)
    # Two attempts, never a third.
    assert got.events == ["Media", "Frames", *got.events[2:]]
    assert got.events.count("Media") == 2
    assert got.events.count("Restarted") == 1
    all_is_well(decoder, fine)
    assert children() == []


@pytest.mark.parametrize("act", ["sleep", "segfault", "bug", "garbage", "media error corrupt"])
def test_the_other_decoder_is_tried_once_and_it_is_said(
    act: str, hasty: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = read(hasty, script(decord=act, sound="fine"))
    assert got.greys == {PIXEL["pyav"]}
    assert got.seconds == [0, 1, 2, 3, 4, 5]
    assert got.finished is not None
    assert got.finished.media.decoder == "pyav"
    (warning,) = got.finished.warnings
    assert warning.startswith("decord ")
    assert warning.endswith("; read again with PyAV")


def test_decord_is_tried_after_pyav_only_where_it_is_right(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    assert read(shared, script(first="pyav", pyav="abort")).greys == {PIXEL["decord"]}
    with pytest.raises(MediaError, match=r"PyAV crashed \(SIGABRT\); convert") as caught:
        read(shared, script(first="pyav", pyav="abort", decord_fit=False))
    assert caught.value.code == "decoder_crashed"
    only_pyav = Sampling(max_frames=MAX_FRAMES, decoder="pyav")
    with pytest.raises(MediaError, match="PyAV crashed"):
        read(shared, script(first="pyav", pyav="abort"), sampling=only_pyav)


def test_too_little_memory_halves_the_pictures(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = read(shared, script(decord="eat memory"))
    assert got.seconds == [0, 1, 2]  # of the six
    assert got.finished is not None
    assert "at most 3 frames" in got.finished.warnings[0]
    only_pyav = Sampling(max_frames=3, decoder="pyav")
    got = read(shared, script(first="pyav", pyav="killed"), sampling=only_pyav)
    assert got.seconds == [0]  # half of three, and "killed" comes after two
    assert got.finished is not None
    assert "read again with PyAV and at most 1 frames" in got.finished.warnings[0]


def test_what_is_true_of_the_file_is_not_tried_twice(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    got = Read()
    file = script(decord="media error too_large")
    with pytest.raises(MediaError, match="the script says media error too_large") as caught:
        read(shared, file, into=got)
    assert (caught.value.code, got.events.count("Restarted")) == ("too_large", 0)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_media_error_leaves_the_child_alive(
    shared: DecoderProcess, script: Callable[..., Path], fine: Path
) -> None:
    all_is_well(shared, fine)
    before = shared.pid
    with pytest.raises(MediaError):
        read(shared, script(probe="media error encrypted"))
    all_is_well(shared, fine)
    assert shared.pid == before


@pytest.mark.parametrize("act", ["sleep", "segfault", "nan samples", "bug", "media error corrupt"])
def test_when_the_sound_is_lost_the_pictures_stay(
    act: str, hasty: DecoderProcess, script: Callable[..., Path], fine: Path
) -> None:
    got = read(hasty, script(sound=act))
    assert "Restarted" not in got.events
    assert got.seconds == [0, 1, 2, 3, 4, 5]
    assert got.heard_seconds == 1  # the act comes after the first of three seconds
    assert got.finished is not None
    assert got.finished.media.decoder == "decord"
    assert got.finished.warnings[0].startswith("the sound after its first 1 s is missing")
    all_is_well(hasty, fine)


def test_lost_sound_of_a_file_without_pictures_is_an_error(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    with pytest.raises(MediaError, match="the sound decoder crashed") as caught:
        read(shared, script(has_video=False, sound="segfault"))
    assert (caught.value.code, caught.value.stage) == ("decoder_crashed", "audio")


@pytest.mark.parametrize(
    ("act", "code"), [("spin in c", "decode_timeout"), ("segfault", "decoder_crashed")]
)
def test_a_file_that_can_not_be_opened(
    act: str, code: str, decoder: DecoderProcess, script: Callable[..., Path], fine: Path
) -> None:
    with pytest.raises(MediaError, match="the probe ") as caught:
        read(decoder, script(probe=act))
    assert (caught.value.code, caught.value.stage) == (code, "probe")
    all_is_well(decoder, fine)


def test_a_crash_while_opening_may_be_the_file_before(
    decoder: DecoderProcess, script: Callable[..., Path], fine: Path
) -> None:
    all_is_well(decoder, fine)
    got = read(decoder, script(probe="abort when used"))
    assert got.seconds == [0, 1, 2, 3, 4, 5]
    assert "Restarted" not in got.events  # nothing had been yielded
    assert got.finished is not None
    assert "in a used decode child; a new one read it" in got.finished.warnings[0]


# --- the file itself -------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_read(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    for acts in ({}, {"decord": "media error corrupt"}):
        file = script(**acts)
        events = shared.decode(
            file, sampling=Sampling(max_frames=4), want_video=True, want_sound=False
        )
        next(events)
        with file.open("a") as more:
            more.write(" ")
        with pytest.raises(MediaError) as caught:
            list(events)
        assert caught.value.code == "changed_during_read"


def test_a_file_that_goes_away_while_it_is_read(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    file = script()
    events = shared.decode(file, sampling=Sampling(max_frames=4), want_video=True, want_sound=False)
    next(events)
    file.unlink()
    with pytest.raises(MediaError) as caught:
        list(events)
    assert caught.value.code == "vanished"


def test_what_is_no_regular_file_is_not_opened(shared: DecoderProcess, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    codes = {}
    for name in ("pipe.mp4", ".", "nothing.mp4", "nul\0.mp4"):
        with pytest.raises(MediaError) as caught:
            read(shared, tmp_path / name)
        codes[name] = caught.value.code
        assert "\0" not in str(caught.value)
    assert codes == {
        "pipe.mp4": "not_a_file", ".": "not_a_file", "nothing.mp4": "vanished",
        "nul\0.mp4": "vanished",
    }  # fmt: skip


def test_any_file_name_reaches_the_child(
    shared: DecoderProcess, script: Callable[..., Path]
) -> None:
    strange = os.fsdecode(b"12:30 \xff\xc3\xa4 \n-x.mp4")  # no UTF-8, a colon, a line end
    file = script()
    file = file.rename(file.with_name(strange))
    assert read(shared, file).seconds == [0, 1, 2, 3, 4, 5]


# --- the life of the child -------------------------------------------------------------------


def test_a_caller_that_goes_away_half_way(
    decoder: DecoderProcess, script: Callable[..., Path], fine: Path
) -> None:
    slow = script(decord="sleep")
    sampling = Sampling(max_frames=100)
    kept = []
    for _ in range(2):
        events = decoder.decode(slow, sampling=sampling, want_video=True, want_sound=True)
        kept.append(events)  # as a traceback would keep it
        for event in events:
            if isinstance(event, Frames):
                break
        all_is_well(decoder, fine)
    with pytest.raises(RuntimeError, match="another file"):
        next(kept[0])
    all_is_well(decoder, fine)
    with pytest.raises(ConfigError):
        read(decoder, slow, into=Refusing())
    all_is_well(decoder, fine)
    assert children() == [decoder.pid]


def test_closing_a_generator_ends_a_busy_child(
    decoder: DecoderProcess, script: Callable[..., Path]
) -> None:
    events = decoder.decode(
        script(decord="sleep"), sampling=Sampling(), want_video=True, want_sound=True
    )
    next(events)
    pid = decoder.pid
    assert pid in children()
    events.close()  # type: ignore[attr-defined]
    assert decoder.pid is None
    assert children() == []


def test_close_from_another_thread_ends_the_wait(script: Callable[..., Path], fine: Path) -> None:
    patient = ChildLimits(deadline_floor_seconds=60)
    decoder = DecoderProcess(patient, backends="hostile_backends:BACKENDS")
    threading.Timer(0.8, decoder.close).start()
    began = time.monotonic()
    got = Read()
    with pytest.raises(RuntimeError, match="closed"):
        read(decoder, script(decord="sleep"), into=got)
    assert time.monotonic() - began < 10
    assert got.events == ["Media", "Frames"]
    assert children() == []
    all_is_well(decoder, fine)  # a closed handle may be used again
    decoder.close()
    assert children() == []


def test_the_parents_own_time_does_not_count(
    decoder: DecoderProcess, script: Callable[..., Path]
) -> None:
    # 2 x 2.4 MB a message, more than a pipe holds: the child has to wait for its parent.
    file = script(width=1024)
    events = decoder.decode(file, sampling=Sampling(max_frames=6), want_video=True, want_sound=True)
    kinds = []
    for event in events:
        kinds.append(type(event).__name__)
        if len(kinds) in (1, 3):
            time.sleep(1.2)  # the deadline is 0.9
    assert kinds[-1] == "Finished"


def test_the_time_that_the_machine_slept_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper()
    process = keeper.start([sys.executable, "-c", "import time; time.sleep(60)"])
    keeper.light(process, 30.0)
    real = time.monotonic
    monkeypatch.setattr(vtag.killable, "time", SimpleNamespace(monotonic=lambda: real() + 3600))
    time.sleep(0.8)  # more than a tick
    assert process.poll() is None
    assert keeper.put_out() == pytest.approx(30 - 2 * vtag.killable.TICK_SECONDS, abs=1.5)
    monkeypatch.undo()
    keeper.light(process, 0.1)
    assert process.wait(5) == -signal.SIGKILL
    assert keeper.put_out() == 0
    assert keeper.has_burnt_down()
    vtag.killable.bury(process)
    keeper.close()


def test_children_are_replaced_when_they_have_served_their_time(
    fine: Path, script: Callable[..., Path]
) -> None:
    limits = ChildLimits(files_per_child=2)
    with DecoderProcess(limits, backends="hostile_backends:BACKENDS") as decoder:
        pids = []
        for _ in range(4):
            all_is_well(decoder, fine)
            pids.append(decoder.pid)
    assert pids[0] == pids[1]
    assert pids[2] == pids[3]
    assert pids[1] != pids[2]
    frugal = ChildLimits(resident_bytes=32 << 20)
    with DecoderProcess(frugal, backends="hostile_backends:BACKENDS") as decoder:
        pids = []
        for file in (fine, fine, script(decord="leak", sound="fine"), fine):
            got = read(decoder, file)
            assert got.events[-1] == "Finished"
            pids.append(decoder.pid)
        assert pids[0] == pids[1] == pids[2] != pids[3]


def test_a_child_that_died_between_two_files_is_nobodys_fault(
    decoder: DecoderProcess, fine: Path
) -> None:
    all_is_well(decoder, fine)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    time.sleep(0.1)
    all_is_well(decoder, fine)


def test_a_child_that_can_not_start_is_the_machines_fault(fine: Path) -> None:
    with (
        DecoderProcess(backends="hostile_backends:NOTHING") as decoder,
        pytest.raises(EnvironmentProblem, match=r"did not start.*AttributeError.*NOTHING"),
    ):
        read(decoder, fine)
    assert children() == []


def test_a_start_that_is_interrupted_leaves_no_child(
    fine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with DecoderProcess(PATIENT, backends="hostile_backends:BACKENDS") as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(vtag.decode_child.Child, "answer", interrupt)
            with pytest.raises(KeyboardInterrupt):
                read(decoder, fine)
        assert children() == []
        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "_take_started", interrupt)
            with pytest.raises(KeyboardInterrupt):
                read(decoder, fine)
        all_is_well(decoder, fine)
        # A child that the last test made its parent kill is gone already.
        assert children() == ([] if decoder.pid is None else [decoder.pid])
    assert children() == []


def test_nothing_is_left_behind(script: Callable[..., Path], fine: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use() -> None:
        with DecoderProcess(HASTY, backends="hostile_backends:BACKENDS") as decoder:
            for act in ("segfault", "garbage", "sleep"):
                read(decoder, script(decord=act))
            all_is_well(decoder, fine)

    shared_memory = set(os.listdir("/dev/shm"))
    before, threads = open_files(), threading.active_count()
    use()
    assert (open_files(), threading.active_count()) == (before, threads)
    assert children() == []
    assert {name for name in os.listdir("/dev/shm") if "vtag" in name} <= shared_memory


def test_a_handle_that_is_forgotten_takes_its_child_along(fine: Path) -> None:
    decoder = DecoderProcess(HASTY, backends="hostile_backends:BACKENDS")
    all_is_well(decoder, fine)
    assert children() == [decoder.pid]
    del decoder
    assert children() == []


# --- whoever the parent is -------------------------------------------------------------------

PARENT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from vtag.config import Sampling
from vtag.decode_process import DecoderProcess, Frames
print("begin", flush=True)
decoder = DecoderProcess(backends="hostile_backends:BACKENDS")
pictures = 0
for event in decoder.decode(
    Path({file!r}), sampling=Sampling(max_frames=6), want_video=True, want_sound=False
):
    if isinstance(event, Frames):
        pictures += len(event.pixels)
        print("child", decoder.pid, flush=True)
print("pictures", pictures, flush=True)
"""


def parent(file: Path) -> str:
    return textwrap.dedent(PARENT).format(tests=str(Path(__file__).parent), file=str(file))


@pytest.mark.parametrize("how", ["script", "-c", "stdin"])
def test_a_plain_script_runs_once(how: str, script: Callable[..., Path], tmp_path: Path) -> None:
    """No `if __name__ == "__main__"`, and no close at the end."""
    text = parent(script())
    file = tmp_path / "my script.py"
    file.write_text(text)
    arguments = {"script": [str(file)], "-c": ["-c", text], "stdin": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=text if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["begin", "child", "child", "child", "pictures"]
    assert lines[-1] == "pictures 6"
    assert ends(int(lines[1].split()[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
@pytest.mark.parametrize("act", ["sleep", "spin in c"])
def test_the_child_dies_with_a_parent_that_is_killed(act: str, script: Callable[..., Path]) -> None:
    mother = subprocess.Popen(
        [sys.executable, "-c", parent(script(decord=act))], stdout=subprocess.PIPE, text=True
    )
    assert mother.stdout is not None
    with mother, mother.stdout:
        assert mother.stdout.readline() == "begin\n"
        child = int(mother.stdout.readline().split()[1])
        assert is_running(child)
        mother.kill()
    assert ends(child)


def test_a_forked_copy_of_the_parent_gets_a_child_of_its_own(
    script: Callable[..., Path], tmp_path: Path
) -> None:
    text = parent(script()) + textwrap.dedent(f"""
        import os, warnings
        warnings.simplefilter("ignore")  # newer Pythons warn of fork beside threads
        before = decoder.pid
        copy = os.fork()
        list(decoder.decode(
            Path({str(script())!r}), sampling=Sampling(), want_video=True, want_sound=False
        ))
        if copy == 0:
            print("other" if decoder.pid != before else "same", flush=True)
            sys.exit(0)
        os.waitpid(copy, 0)
        print("same" if decoder.pid == before else "other", flush=True)
    """)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-2:] == ["other", "same"]


# --- the real child --------------------------------------------------------------------------


def test_the_real_child_imports_no_torch_and_sees_little(clip: Path) -> None:
    with DecoderProcess(backends="inside_backends:INSIDE") as decoder:
        got = read(decoder, clip)
    assert got.finished is not None
    modules, variables, descriptors = (set(text.split()) for text in got.finished.warnings)
    assert {"av", "numpy", "vtag"} <= modules
    assert not modules & {"torch", "torchvision", "torchaudio", "multiprocessing"}
    assert not variables & {"HOME", "USER", "PWD", "PYTHONPATH"}
    assert len(descriptors) <= 5  # three that lead nowhere, and the two pipes


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s: red, green and blue for a second each at 10 pictures/s, and a tone of 440 Hz."""
    file = tmp_path_factory.mktemp("drawn") / "rgb.mp4"
    with av.open(str(file), "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 128, 128, "yuv420p"
        video.codec_context.max_b_frames = 0
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
            pixels = np.full((128, 128, 3), colour, np.uint8)
            for _ in range(10):
                out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
        tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 16_000).astype(np.float32) / 2
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return file


@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_a_real_clip_through_the_real_child(name: str, clip: Path) -> None:
    if name == "decord":
        pytest.importorskip("decord")
    with DecoderProcess() as decoder:
        got = read(decoder, clip, sampling=Sampling(decoder=name))  # type: ignore[arg-type]
    assert got.finished is not None
    assert got.finished.media.decoder == name
    assert got.finished.warnings == ()
    assert got.seconds == pytest.approx([0, 1, 2])
    colours = np.concatenate([frames.pixels.mean(axis=(1, 2)) for frames in got.frames])
    # 8-bit yuv420p moves pure colours by a few levels; a wrong picture is off by 255.
    assert np.abs(colours - 255 * np.eye(3)).max() < 12
    assert got.heard_seconds == pytest.approx(3, abs=0.1)
    # A sine of amplitude 0.5 has an RMS of 0.5 / sqrt(2).
    samples = np.concatenate([sound.samples for sound in got.sound])
    assert np.sqrt((samples[8000:40_000] ** 2).mean()) == pytest.approx(0.354, abs=0.02)


# --- deadlines -------------------------------------------------------------------------------


def test_deadlines() -> None:
    limits = ChildLimits()

    def media(width: int, height: int, fps: float, duration: float = 100) -> Media:
        return Media(duration=duration, fps=fps, width=width, height=height, has_video=True)

    assert limits.open_seconds(0) == 30
    assert limits.open_seconds(5_000_000_000) == 530  # 5 GB at 10 MB/s, and the floor
    assert limits.pictures_seconds(0, media(640, 360, 25, duration=5)) == 30
    assert limits.pictures_seconds(0, media(640, 360, 25)) == 200
    assert limits.pictures_seconds(0, media(1920, 1080, 30)) == 200
    assert limits.pictures_seconds(0, media(7680, 4320, 60)) == 200 * 16 * 2
    assert limits.pictures_seconds(0, media(1 << 20, 1 << 20, 1e6, duration=1e8)) == 86_400
    assert limits.sound_seconds(10_000_000, media(7680, 4320, 60)) == 201
    with pytest.raises(ValueError, match="files_per_child must be above 0"):
        ChildLimits(files_per_child=0)
