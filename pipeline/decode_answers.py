"""One attempt to read a file: the order of the child's answers, and what they may add up to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vtag import decode_wire
from vtag.config import Sampling
from vtag.decode_child import Child, Clock, Failed
from vtag.decode_limits import ChildLimits
from vtag.decode_wire import Choices, Message, WireError
from vtag.records import Frames, Media, Sound

Stage = Literal["probe", "video", "audio"]

# A decoder that rounds differently may find a time or two more than were planned.
_SPARE_TIMES: Final = 8
# Sound may outlast the pictures (a song with a still), and headers may round: this much more
# than the duration is believed.
_SPARE_SOUND_SECONDS: Final = 3600.0
_SOUND_HZ: Final = 16_000

DECODER_NAMES: Final = {
    "decord": "decord", "pyav": "PyAV", "torchcodec": "torchcodec", None: "no decoder",
}  # fmt: skip


# Places in one request: so that it fits into a pipe that nobody reads from.
_PLACES_AT_ONCE: Final = 4096


class Explorer(Protocol):
    """Who decides, from the pictures so far, which further ones of a video are looked at."""

    def begin(self, choices: Choices) -> None:
        """The video that is explored; what was known of another attempt at it is void."""

    def wanted(self) -> NDArray[np.int64]:
        """int64 [k], rising: places among the choices that are wanted next; none ends it.

        The pictures of the places before have arrived when this is called, but for those that
        could not be decoded.
        """


@dataclass
class Attempt:
    """One file, read once. `run` may be called once; the rest tells how far it came.

    Args:
        path: the file.
        sampling: which pictures.
        size: bytes of the file.
        look: whether pictures are wanted.
        listen: whether sound is wanted.
        decoder: the one to use; None lets the child choose.
        explorer: asks for pictures one after the other, where the sampling is adaptive.
    """

    path: Path
    sampling: Sampling
    size: int
    look: bool
    listen: bool
    decoder: str | None = None
    explorer: Explorer | None = None
    stage: Stage = "probe"
    media: Media | None = None
    decord_fit: bool = False
    pictures_are_whole: bool = False
    corrupt_frames: int = 0
    warnings: tuple[str, ...] = ()
    child_was_used: bool = False
    _times: int = field(default=0, repr=False)
    _last_second: float = field(default=-math.inf, repr=False)
    _samples: int = field(default=0, repr=False)
    _last_start: float = field(default=-math.inf, repr=False)

    @property
    def subject(self) -> str:
        """Who is to blame for a failure, as the subject of a sentence."""
        if self.stage == "probe":
            return "the probe"
        return DECODER_NAMES[self.decoder] if self.stage == "video" else "the sound decoder"

    def run(self, child: Child, limits: ChildLimits) -> Iterator[Media | Frames | Sound]:
        """The contents of the file as the child sends them.

        Raises:
            Failed: the child died, hung, lied or can not read the file.
        """
        self.child_was_used = child.files > 0
        try:
            yield from self._converse(child, limits)
        except WireError as err:
            raise child.believe(err) from err

    def _converse(self, child: Child, limits: ChildLimits) -> Iterator[Media | Frames | Sound]:
        child.ask(self._request())
        media = self._take_media(child.answer(Clock(limits.open_seconds(self.size)), "media"))
        yield media
        child.ask({"do": "go_on"})
        if self.look and media.has_video:
            self.stage = "video"
            clock = Clock(limits.pictures_seconds(self.size, media))
            yield from self._pictures(child, clock)
        if self.listen and media.has_audio:
            self.stage = "audio"
        clock = Clock(limits.sound_seconds(self.size, media))
        while (message := child.answer(clock, "sound", "finished")).kind == "sound":
            yield self._take_sound(message)
        self._take_tally(message)
        child.files += 1
        child.busy = False

    def _pictures(self, child: Child, clock: Clock) -> Iterator[Frames]:
        if self.explorer is not None:
            yield from self._explored(child, clock, self.explorer)
        while (message := child.answer(clock, "frames", "pictures")).kind == "frames":
            yield self._take_frames(message)
        self._take_tally(message)
        if not self._times:
            raise WireError("no picture, and no word about it")
        self.pictures_are_whole = True

    def _explored(self, child: Child, clock: Clock, explorer: Explorer) -> Iterator[Frames]:
        """Asks for pictures until no more are wanted."""
        choices = decode_wire.unpack_choices(child.answer(clock, "choices"))
        if int(choices.on_grid.sum()) > self.sampling.max_frames + _SPARE_TIMES:
            raise WireError(f"more than the {self.sampling.max_frames} pictures asked for")
        explorer.begin(choices)
        while len(wanted := explorer.wanted()):
            for start in range(0, len(wanted), _PLACES_AT_ONCE):
                places = wanted[start : start + _PLACES_AT_ONCE]
                child.ask_on({"do": "look", "places": places.tolist()}, clock)
                self._last_second = -math.inf
                while (message := child.answer(clock, "frames", "looked")).kind == "frames":
                    frames = self._take_frames(message)
                    if not np.isin(frames.seconds, choices.seconds[places]).all():
                        raise WireError("pictures that nobody asked for")
                    yield frames
        child.ask_on({"do": "enough"}, clock)
        self._last_second = -math.inf

    def _request(self) -> dict[str, object]:
        return {
            "do": "decode",
            # Bytes, because the child's idea of a file name's encoding may be another one.
            "path": os.fsencode(self.path).hex(),
            "size": self.size,
            "sampling": asdict(self.sampling),
            "decoder": self.decoder,
            "want_video": self.look,
            "want_sound": self.listen,
        }

    def _take_media(self, message: Message) -> Media:
        media = decode_wire.unpack_media(message.header)
        decoder = message.header.get("decoder")
        looks = self.look and media.has_video
        if looks and decoder not in decode_wire.DECODERS:
            raise WireError("no decoder for the pictures")
        if looks and self.decoder not in (None, decoder):
            raise WireError("another decoder than the one that was asked for")
        self.decoder = str(decoder) if looks else None
        self.decord_fit = decode_wire.flag(message.header, "decord_fit")
        self.media = media
        return media

    def _take_frames(self, message: Message) -> Frames:
        frames = decode_wire.unpack_frames(message)
        self._times += len(frames.seconds)
        # An explorer may ask for key frames besides all times of the grid, one for each.
        most = self.sampling.max_frames * (2 if self.explorer is not None else 1)
        if self._times > most + _SPARE_TIMES:
            raise WireError(f"more than the {self.sampling.max_frames} pictures asked for")
        if frames.seconds[0] <= self._last_second:
            raise WireError("pictures that go back in time")
        self._last_second = float(frames.seconds[-1])
        return frames

    def _take_sound(self, message: Message) -> Sound:
        sound = decode_wire.unpack_sound(message)
        assert self.media is not None
        self._samples += len(sound.samples)
        if self._samples > (2 * self.media.duration + _SPARE_SOUND_SECONDS) * _SOUND_HZ:
            raise WireError("more sound than the file can hold")
        if sound.start <= self._last_start:
            raise WireError("sound that goes back in time")
        self._last_start = sound.start
        return sound

    def _take_tally(self, message: Message) -> None:
        self.corrupt_frames = decode_wire.whole(
            message.header, "corrupt_frames", low=0, high=10**12
        )
        self.warnings = decode_wire.texts(message.header, "warnings")

    def lost_sound(self, failure: Failed) -> list[str]:
        """The warning that the sound, or its rest, could not be read; none if none was wanted."""
        if self.stage != "audio":
            return []
        heard = self._samples / _SOUND_HZ
        what = f"the sound after its first {heard:.0f} s" if heard >= 1 else "the sound"
        return [f"{what} is missing: its decoder {failure.reason}"]

    def final_media(self) -> Media:
        """The facts, with what was found out while decoding."""
        assert self.media is not None
        damage = max(self.corrupt_frames, self.media.corrupt_frames)
        return replace(self.media, decoder=self.decoder, corrupt_frames=damage)

    def again(self, *, decoder: str | None, max_frames: int) -> Attempt:
        """The same, from the beginning, with another decoder or fewer pictures."""
        sampling = replace(self.sampling, max_frames=max_frames)
        return Attempt(
            self.path,
            sampling,
            self.size,
            self.look,
            self.listen,
            decoder=decoder,
            explorer=self.explorer,
        )
