"""One network for many threads: what they ask for at the same time goes through it together.

Beside a GPU every core decodes a video of its own, and none of them fills a batch alone. So each
hands its pictures in and goes on decoding; a single thread runs the network over whatever has
come in meanwhile, of whichever videos, and hands the rows back. Nothing is waited for: a lone
video gets a small batch at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from vtag.extractors.base import FrameExtractor, SoundExtractor

# Items that wait or are being run, in batches: one is in the network while the next one fills.
BATCHES_WAITING: Final = 2
# The thread ends when nothing was asked for so long; the next question starts another.
IDLE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class _Asked:
    """One question and where its answer goes."""

    items: Tensor
    count: int
    kind: Hashable  # what goes through the network together is of one kind
    answer: Future[Tensor] = field(default_factory=Future)


class SharedWork:
    """A bounded queue in front of a function that takes several questions at once.

    Args:
        run: answers for questions of one kind, in their order.
        most: items in one call of `run`; a larger question goes alone.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], Sequence[Tensor]], *, most: int) -> None:
        if most < 1:
            raise ValueError(f"a batch has at least one item, not {most}")
        self._run = run
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[_Asked] = deque()
        self._count = 0  # items that wait or are being run
        self._thread: threading.Thread | None = None

    def ask(self, items: Tensor, *, count: int, kind: Hashable) -> Future[Tensor]:
        """The answer to come; waits while `BATCHES_WAITING * most` items are in the queue.

        The answer's error is that of its own items: a call that fails for several questions is
        made again for each of them.
        """
        asked = _Asked(items, count, kind)
        with self._changed:
            while self._count and self._count + count > BATCHES_WAITING * self._most:
                self._changed.wait()
            self._waiting.append(asked)
            self._count += count
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vtag-network", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return asked.answer

    def close(self) -> None:
        """Returns when everything that was asked is answered and the thread has ended."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while together := self._next():
            self._answer(together)
            with self._changed:
                self._count -= sum(asked.count for asked in together)
                self._changed.notify_all()

    def _next(self) -> list[_Asked]:
        """The oldest question and what fits beside it; empty when this thread is to end."""
        with self._changed:
            me = threading.current_thread()
            while not self._waiting:
                woken = self._thread is me and self._changed.wait(IDLE_SECONDS)
                if not woken and not self._waiting:
                    if self._thread is me:
                        self._thread = None
                    return []
            together = [self._waiting.popleft()]
            count, passed = together[0].count, deque[_Asked]()
            while self._waiting:
                asked = self._waiting.popleft()
                if asked.kind == together[0].kind and count + asked.count <= self._most:
                    together.append(asked)
                    count += asked.count
                else:
                    passed.append(asked)
            self._waiting = passed
            return together

    def _answer(self, together: Sequence[_Asked]) -> None:
        try:
            answers = self._run([asked.items for asked in together])
        except Exception as err:  # noqa: BLE001  raised where the answer is awaited
            if len(together) == 1:
                together[0].answer.set_exception(err)
                return
            for asked in together:
                self._answer([asked])
            return
        for asked, answer in zip(together, answers, strict=True):
            asked.answer.set_result(answer)


class SharedFrames:
    """A `FrameExtractor` whose callers share its batches; rows as from `extractor` itself.

    Pictures of one size go together. Any number of threads.

    Args:
        extractor: runs in one thread only.
        batch_size: pictures in one call of it.
    """

    stream: Final[Literal["visual"]] = "visual"

    def __init__(self, extractor: FrameExtractor, *, batch_size: int) -> None:
        self._extractor = extractor
        self._work = SharedWork(self._rows, most=batch_size)

    @property
    def name(self) -> str:
        """That of the extractor."""
        return self._extractor.name

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self._extractor.dim

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._extractor.device

    def fingerprint(self) -> str:
        """That of the extractor: sharing changes no row."""
        return self._extractor.fingerprint()

    def __call__(self, pixels: Tensor) -> Tensor:
        """The rows, when they are there."""
        return self.submit(pixels).result()

    def submit(self, pixels: Tensor) -> Future[Tensor]:
        """The rows to come of pictures uint8 [n, 3, H, W]; waits while too many are waiting."""
        if len(pixels) == 0:
            return done(self._extractor(pixels))
        kind = (tuple(pixels.shape[1:]), pixels.dtype)
        return self._work.ask(pixels, count=len(pixels), kind=kind)

    def close(self) -> None:
        """Ends the thread; the next call starts another."""
        self._work.close()

    def _rows(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        pixels = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        return torch.split(self._extractor(pixels), [len(part) for part in parts])


class SharedSounds:
    """A `SoundExtractor` whose callers share its batches; rows as from `extractor` itself.

    Waves are laid end to end, each beginning at a multiple of the hop, so that its windows are
    those of the long wave; the windows across two of them are thrown away.

    Args:
        extractor: runs in one thread only; a window of it is at most two hops.
        batch_size: windows in one call of it.
    """

    stream: Final[Literal["audio"]] = "audio"

    def __init__(self, extractor: SoundExtractor, *, batch_size: int) -> None:
        self._extractor = extractor
        self._work = SharedWork(self._rows, most=batch_size)

    @property
    def name(self) -> str:
        """That of the extractor."""
        return self._extractor.name

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self._extractor.dim

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._extractor.device

    @property
    def rate_hz(self) -> int:
        """The only sampling rate it takes."""
        return self._extractor.rate_hz

    @property
    def window_samples(self) -> int:
        """How much sound one row is made of."""
        return self._extractor.window_samples

    @property
    def hop_samples(self) -> int:
        """From the start of a row's window to the next row's."""
        return self._extractor.hop_samples

    @property
    def hop_seconds(self) -> float:
        """The same in seconds."""
        return self._extractor.hop_seconds

    def fingerprint(self) -> str:
        """That of the extractor: sharing changes no row."""
        return self._extractor.fingerprint()

    def __call__(self, wave: Tensor) -> Tensor:
        """The rows, when they are there."""
        return self.submit(wave).result()

    def submit(self, wave: Tensor) -> Future[Tensor]:
        """The rows to come of a wave float32 [N]; waits while too many windows are waiting."""
        if len(wave) == 0:
            return done(self._extractor(wave))
        return self._work.ask(wave, count=self._windows(wave), kind=(wave.dim(), wave.dtype))

    def close(self) -> None:
        """Ends the thread; the next call starts another."""
        self._work.close()

    def _windows(self, wave: Tensor) -> int:
        return 1 + max(len(wave) - self.window_samples, 0) // self.hop_samples

    def _rows(self, waves: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(waves) == 1:
            return [self._extractor(waves[0])]
        hop, window = self.hop_samples, self.window_samples
        counts = [self._windows(wave) for wave in waves]
        # From the start of one wave to that of the next, in hops.
        steps = [-(-((count - 1) * hop + window) // hop) for count in counts]
        joint = torch.zeros(sum(steps) * hop)
        starts = [sum(steps[:at]) for at in range(len(steps))]
        for wave, count, start in zip(waves, counts, starts, strict=True):
            whole = wave[: (count - 1) * hop + window]
            joint[start * hop : start * hop + len(whole)] = whole
        rows = self._extractor(joint)
        return [rows[start : start + n] for start, n in zip(starts, counts, strict=True)]


def done(rows: Tensor) -> Future[Tensor]:
    """An answer that is there."""
    answer: Future[Tensor] = Future()
    answer.set_result(rows)
    return answer


def shared(
    extractors: Mapping[str, FrameExtractor | SoundExtractor], *, batch_size: int
) -> dict[str, FrameExtractor | SoundExtractor]:
    """The extractors, with shared batches where they run beside the cores that decode."""
    made: dict[str, FrameExtractor | SoundExtractor] = {}
    for stream, extractor in extractors.items():
        if extractor.device.type == "cpu":
            made[stream] = extractor
        elif extractor.stream == "visual":
            made[stream] = SharedFrames(extractor, batch_size=batch_size)
        else:
            made[stream] = SharedSounds(extractor, batch_size=batch_size)
    return made
