"""What runs in the decode child: reads requests, decodes, answers. Never imported by the parent.

A request is a line of JSON on standard input, the answers are the messages of
`vtag.decode_wire`. One request "decode" is answered by

    media · frames … · pictures · sound … · finished        (frames and pictures: if wanted)

After `media` the child waits for a request "go_on": the parent decides what is worth its memory.
With adaptive sampling the pictures come piece by piece: after `media` follows `choices`, then a
request "look" is answered by frames … · looked, as often as the parent likes, and a request
"enough" by pictures and the rest.

Instead of any answer may come `error` (a MediaError, or no memory: the child goes on with the next
request) or `bug` (any other exception: the child ends after it).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from vtag import decode_wire, sandbox
from vtag.config import Moments, Sampling
from vtag.decode_limits import ChildLimits
from vtag.decode_report import DecodeReport
from vtag.errors import EnvironmentProblem, MediaError
from vtag.records import Frames, Media, Sound

# Reads the pictures at some places of the choices, with the decoder of that name.
Look = Callable[[Sequence[int], Any, DecodeReport], Iterator[Frames]]

# A piece that has no picture; others may have.
_PASSABLE: Final = frozenset({"corrupt", "truncated", "encrypted"})


@dataclass(frozen=True)
class Backends:
    """The decoders that a child works with.

    Attributes:
        probe: what the file holds, with `media`, `decord_fit` and `warnings` as attributes;
            raises MediaError.
        choose: "decord" or "pyav" for a probed file.
        frames: the sampled pictures, read by the decoder of that name.
        sound: the sound, in windows.
        choices: what adaptive sampling may choose among, and how it looks at some of them.
        has_decord: whether decord is there at all.
    """

    probe: Callable[[Path], Any]
    choose: Callable[[Any, Sampling, DecodeReport], str]
    frames: Callable[[Any, Sampling, Any, DecodeReport], Iterator[Frames]]
    sound: Callable[[Any, DecodeReport], Iterator[Sound]]
    choices: Callable[[Any, Sampling], tuple[decode_wire.Choices, Look]]
    has_decord: bool = True


def main(arguments: Sequence[str]) -> None:
    """Serves requests until standard input ends.

    Args:
        arguments: process id of the parent, the `ChildLimits` as JSON, `module:name` of the
            `Backends`, or `module:name:device` of what makes them for a device.
    """
    parent, limits_text, backends_at = arguments
    on_gpu = ":cuda" in backends_at
    limits = ChildLimits(**json.loads(limits_text))
    requests, answers = _take_over_pipes()
    try:
        sandbox.confine_before_imports(int(parent), device_files=on_gpu)
        backends = _load(backends_at)
        # A graphics card's driver reserves address space by the hundred gigabytes.
        sandbox.confine_after_imports(None if on_gpu else limits.memory_bytes)
        sandbox.allow_cpu_seconds(limits.deadline_floor_seconds)
        answers.tell({"kind": "ready"})
        for line in requests:
            _serve(json.loads(line), backends, limits, answers, requests)
    except EnvironmentProblem as err:
        answers.tell({"kind": "unable", "text": str(err)[:4000]})
        raise
    except BaseException as err:
        # The parent must hear of it; after a bug nothing here can be trusted, so it ends.
        answers.tell({"kind": "bug", "text": f"{type(err).__name__}: {err}"[:4000]})
        raise
    # Not sys.exit: the decoders' own threads may hang or crash when libraries are unloaded.
    os._exit(0)


class Answers:
    """The way back to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, header: Mapping[str, Any]) -> None:
        """Sends a message without a body."""
        self.send(decode_wire.pack(header))

    def send(self, parts: Sequence[memoryview]) -> None:
        """Sends the parts of a message; waits while the parent is busy with earlier ones."""
        for part in parts:
            rest = part
            while len(rest):
                rest = rest[os.write(self._descriptor, rest) :]


def _take_over_pipes() -> tuple[BinaryIO, Answers]:
    """The pipes to the parent, moved away from where C libraries print to."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    return open(requests, "rb"), Answers(answers)


def _load(backends_at: str) -> Backends:
    module, name, *device = backends_at.split(":", 2)
    found = getattr(importlib.import_module(module), name)
    if device:
        found = found(device[0])
    if not isinstance(found, Backends):
        raise TypeError(f"{backends_at} is no table of back ends")
    return found


def _serve(
    request: Mapping[str, Any],
    backends: Backends,
    limits: ChildLimits,
    answers: Answers,
    requests: Iterator[bytes],
) -> None:
    if request["do"] == "measure":
        answers.tell({"kind": "limits", "limits": sandbox.measure()})
        return
    try:
        _decode(request, backends, limits, answers, requests)
        failure = None
    except MediaError as err:
        # The parent names the file itself.
        text = str(err).replace(f"{_path_of(request)}: ", "")
        failure = {"code": err.code, "stage": err.stage, "text": text[:4000]}
    except MemoryError:
        failure = {"code": "oom", "stage": "video", "text": "the memory limit was reached"}
    # Outside the except blocks: only now are the frames that the traceback held free.
    gc.collect()  # PyAV's containers hold themselves in cycles
    sandbox.give_memory_back()
    if failure:
        answers.tell({"kind": "error", **failure})


def _decode(
    request: Mapping[str, Any],
    backends: Backends,
    limits: ChildLimits,
    answers: Answers,
    requests: Iterator[bytes],
) -> None:
    size = request["size"]
    sandbox.allow_cpu_seconds(limits.open_seconds(size))
    path = _path_of(request)
    asked = request["sampling"]
    sampling = Moments(**asked) if "times" in asked else Sampling(**asked)
    report = DecodeReport()
    probed = backends.probe(path)
    media: Media = probed.media
    for text in probed.warnings:
        report.warn(text)
    seconds = limits.pictures_seconds(size, media) + limits.sound_seconds(size, media)
    sandbox.allow_cpu_seconds(seconds)
    look = request["want_video"] and media.has_video
    decoder = (request["decoder"] or backends.choose(probed, sampling, report)) if look else None
    answers.tell(
        {
            "kind": "media",
            **decode_wire.media_fields(media),
            "decoder": decoder,
            "decord_fit": bool(probed.decord_fit and backends.has_decord),
        }
    )
    if next(requests, None) is None:
        return
    if look:
        if sampling.mode == "adaptive":
            choices, look_at = backends.choices(probed, sampling)
            answers.send(decode_wire.pack_choices(choices))
            _explore(lambda places: look_at(places, decoder, report), answers, requests)
        else:
            for frames in backends.frames(probed, sampling, str(decoder), report):
                answers.send(decode_wire.pack_frames(frames))
        answers.tell({"kind": "pictures", **_told(report)})
    if request["want_sound"] and media.has_audio:
        for sound in backends.sound(probed, report):
            answers.send(decode_wire.pack_sound(sound))
    answers.tell({"kind": "finished", **_told(report)})


def _explore(
    look_at: Callable[[Sequence[int]], Iterator[Frames]],
    answers: Answers,
    requests: Iterator[bytes],
) -> None:
    """Sends the pictures that the parent asks for, until it has enough.

    What can not be decoded is left out; raises MediaError when that was all.
    """
    failure: MediaError | None = None
    any_picture = False
    for line in requests:
        request = json.loads(line)
        if request["do"] != "look":
            break
        try:
            for frames in look_at(request["places"]):
                answers.send(decode_wire.pack_frames(frames))
                any_picture = True
        except MediaError as err:
            if err.code not in _PASSABLE:
                raise
            failure = err
        answers.tell({"kind": "looked"})
    if failure is not None and not any_picture:
        raise failure


def _path_of(request: Mapping[str, Any]) -> Path:
    return Path(os.fsdecode(bytes.fromhex(request["path"])))


def _told(report: DecodeReport) -> dict[str, Any]:
    # A damaged file can warn once per packet; the first ones say what is wrong.
    warnings = [text[:1000] for text in report.warnings[: decode_wire.MAX_WARNINGS]]
    return {"corrupt_frames": report.corrupt_frames, "warnings": warnings}
