"""Decoders that do what a bad file makes real ones do: `Backends` for `DecoderProcess`.

They run in the decode child. The file's text says how its decoder behaves:

    {"decord": "sleep", "pyav": "fine", "sound": "fine", "probe": "fine", …}
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtag.config import Sampling
from vtag.decode_report import DecodeReport
from vtag.decode_wire import Choices
from vtag.decode_worker import Backends, Look
from vtag.errors import MediaError
from vtag.records import Frames, Media, Sound

leaked: list[bytes] = []
probes = 0  # that this child has made
PIXEL = {"decord": 40, "pyav": 80}  # the grey of all pictures, which tells who decoded them
SOUND_SECONDS = 3


@dataclass(frozen=True)
class Script:
    """What the file says."""

    path: Path
    acts: dict[str, str]
    media: Media
    decord_fit: bool
    warnings: tuple[str, ...] = ()


def probe(path: Path) -> Script:
    """Reads the script and acts its "probe" part."""
    global probes
    probes += 1
    acts = json.loads(path.read_text())
    if acts.get("probe") == "abort when used" and probes > 1:
        os.abort()
    perform(acts.get("probe", "fine"), acts)
    media = Media(
        duration=10.0,
        fps=25.0,
        width=64,
        height=48,
        video_codec="h264",
        has_video=acts.get("has_video", True),
        has_audio="sound" in acts,
    )
    return Script(path, acts, media, acts.get("decord_fit", True))


def choose(script: Script, sampling: Sampling, report: DecodeReport) -> str:
    """The decoder that the script begins with."""
    return str(script.acts.get("first", "decord"))


def frames(
    script: Script, sampling: Sampling, decoder: str, report: DecodeReport
) -> Iterator[Frames]:
    """Two pictures a message, up to `max_frames`; the decoder's act comes after the first."""
    act = script.acts.get(decoder, "fine")
    for at in range(0, sampling.max_frames, 2):
        if at == 2:
            perform(act, script.acts, report)
            if act == "endless":
                yield from endless(at)
            if act == "nan times":
                yield grey(2, decoder, [np.nan, np.nan])
            if act == "back in time":
                yield grey(2, decoder, [0.0, 1.0])
        width = int(script.acts.get("width", 8))
        yield grey(min(2, sampling.max_frames - at), decoder, [at, at + 1.0], width=width)


def grey(count: int, decoder: str, seconds: list[float], *, width: int = 8) -> Frames:
    """Some pictures, three quarters as high as wide."""
    pixels = np.full((count, width * 3 // 4, width, 3), PIXEL[decoder], np.uint8)
    return Frames(pixels, np.ones(count, np.int64), np.array(seconds[:count], np.float64))


def endless(at: int) -> Iterator[Frames]:
    """Pictures without end."""
    for second in itertools.count(at):
        yield grey(1, "decord", [float(second)])


def sound(script: Script, report: DecodeReport) -> Iterator[Sound]:
    """Three seconds of a constant 0.25; the sound's act comes after the first of them."""
    for second in range(SOUND_SECONDS):
        if second == 1:
            perform(script.acts["sound"], script.acts, report)
        value = np.nan if second == 1 and script.acts["sound"] == "nan samples" else 0.25
        yield Sound(np.full(16_000, value, np.float32), float(second))


def perform(act: str, acts: dict[str, str], report: DecodeReport | None = None) -> None:
    """One act; those that are not named here are played by `frames` and `sound`."""
    if act.startswith("media error "):
        raise MediaError(f"the script says {act}", code=act.split()[2], stage="video")
    if act == "report" and report is not None:
        report.damaged_video.add(3)
        report.warn("one\nline \x1b[31mred")
    ACTS.get(act, lambda: None)()


def sleep_for_ever() -> None:
    """A lost wake-up in native code."""
    while True:
        time.sleep(3600)


def ignore_sigterm() -> None:
    """A library with signal handlers of its own, which then hangs."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleep_for_ever()


def print_everywhere() -> None:
    """A library that talks."""
    sys.stdout.write("from Python\n")
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.write(descriptor, b"from C\n")


def close_everything() -> None:
    """The pipes end, the process does not."""
    os.closerange(0, 64)
    sleep_for_ever()


def spin_in_c() -> None:
    """Native code that neither ends nor lets go of the interpreter lock."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def spin() -> None:
    """A loop in Python."""
    while True:
        pass


def eat_memory() -> None:
    """Takes memory until there is no more."""
    held = []
    while True:
        held.append(bytearray(64 << 20))


def protocol() -> int:
    """The descriptor of the pipe to the parent, which the child tries to hide."""
    for number in range(3, 64):
        try:
            mode = os.fstat(number).st_mode
            os.write(number, b"") if stat.S_ISFIFO(mode) else None
        except OSError:
            continue  # closed, or the pipe's reading end
        if stat.S_ISFIFO(mode):
            return number
    raise RuntimeError("no pipe found")


def raw(header: dict[str, object], body: bytes, *, magic: bytes = b"vtg1") -> None:
    """Writes a message by hand, past the checks of the sending side; then hangs."""
    text = json.dumps(header).encode()
    message = struct.pack("<4sIQ", magic, len(text), len(body)) + text + body
    while message:
        message = message[os.write(protocol(), message) :]
    sleep_for_ever()


def frames_header(**changes: object) -> dict[str, object]:
    """The header of one honest picture of 8x6, with some lies."""
    return {"kind": "frames", "pictures": 1, "height": 6, "width": 8, "times": 1, **changes}


ONE_PICTURE = bytes(6 * 8 * 3) + struct.pack("<qd", 1, 99.0)

ACTS: dict[str, Callable[[], object]] = {
    "sleep": sleep_for_ever,
    "ignore sigterm": ignore_sigterm,
    "spin in c": spin_in_c,
    "spin": spin,
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "exit silently": lambda: os._exit(0),
    "killed": lambda: signal.raise_signal(signal.SIGKILL),
    "eat memory": eat_memory,
    "bug": lambda: [][1],
    "leak": lambda: leaked.append(b"x" * (64 << 20)),
    "print": print_everywhere,
    "close stdout": lambda: os.closerange(1, 3),
    "close everything": close_everything,
    "garbage": lambda: raw({}, b"", magic=b"\x00\xff\x00\xff"),
    "huge header": lambda: os.write(protocol(), struct.pack("<4sIQ", b"vtg1", 1 << 31, 0)),
    "deep json": lambda: os.write(
        protocol(), struct.pack("<4sIQ", b"vtg1", 60_000, 0) + b"[" * 60_000
    ),
    "too many bytes": lambda: raw(frames_header(), ONE_PICTURE + bytes(1000)),
    "lying shape": lambda: raw(frames_header(height=7), ONE_PICTURE),
    "huge shape": lambda: raw(frames_header(height=1 << 40), ONE_PICTURE),
    "many pictures": lambda: raw(frames_header(pictures=10_000), ONE_PICTURE),
    "negative shape": lambda: raw(frames_header(pictures=-1), ONE_PICTURE),
    "wrapping repeats": lambda: raw(
        # Their sum is 2**64 + 3, which in 64 bits is the right 3.
        frames_header(pictures=3, times=3),
        bytes(3 * 6 * 8 * 3) + struct.pack("<3q3d", 2**63 - 1, 2**63 - 1, 5, 7.0, 8.0, 9.0),
    ),
    "wrong type": lambda: raw(frames_header(pictures=True), ONE_PICTURE),
    "out of turn": lambda: raw({"kind": "media"}, b""),
    "unknown error": lambda: raw(
        {"kind": "error", "code": "no such", "stage": "video", "text": ""}, b""
    ),
}


def choices(script: Script, sampling: Sampling) -> tuple[Choices, Look]:
    """A picture a second; the decoder's act comes before the first one that is no key frame."""
    seconds = np.arange(min(10, sampling.max_frames), dtype=np.float64)
    is_key = seconds % 5 == 0
    work = (seconds % 5) / 100

    def look_at(places: Sequence[int], decoder: str, report: DecodeReport) -> Iterator[Frames]:
        if not is_key[list(places)].all():
            perform(script.acts.get(decoder, "fine"), script.acts, report)
        if script.acts.get(decoder) == "unasked":
            places = [0]
        yield grey(len(places), decoder, [seconds[place] for place in places])

    return Choices(seconds, seconds >= 0, is_key, seconds < 0, work), look_at


BACKENDS = Backends(probe=probe, choose=choose, frames=frames, sound=sound, choices=choices)
