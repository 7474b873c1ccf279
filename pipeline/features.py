"""From a file to feature rows, through the cache.

The only place where decoding, extractors and cache meet.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vtag.adaptive import AdaptiveRows
from vtag.cache import CacheEntry, FeatureCache
from vtag.cache_writer import CacheWriter
from vtag.config import Sampling
from vtag.content_id import ContentIds
from vtag.decode_process import DecoderProcess, Finished, Restarted, backends_for
from vtag.decoder_pool import DecoderPool
from vtag.errors import MediaError
from vtag.extractors.base import FrameExtractor, SoundExtractor
from vtag.feature_rows import FrameRows, SoundRows
from vtag.records import Features, Frames, Media, Sound
from vtag.shared_batches import SharedFrames, SharedSounds
from vtag.sniff import sniff

log = logging.getLogger(__name__)

# Goes into the key of sound features: sampling of frames does not touch them.
SOUND_RULE: Final = "sound-1"


@dataclass(frozen=True)
class ClipFeatures:
    """All that is kept of one file.

    Attributes:
        content_id: "sha256:…" of the file.
        media: what the file holds.
        streams: features per stream; a stream that the file lacks has T = 0 rows.
        warnings: what the user would otherwise miss (damage, a second decoder …).
        cached: whether nothing had to be decoded.
        timing: seconds per stage.
    """

    content_id: str
    media: Media
    streams: Mapping[str, Features]
    warnings: tuple[str, ...] = ()
    cached: bool = False
    timing: Mapping[str, float] = field(default_factory=dict)


class InWork:
    """Keeps two threads from decoding the same content at once: the second finds it cached."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, content_id: str | None) -> Iterator[None]:
        """Nobody else is inside with this content; None lets everybody in."""
        if content_id is None:
            yield
            return
        with self._guard:
            lock, users = self._locks.get(content_id, (threading.Lock(), 0))
            self._locks[content_id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                _, users = self._locks[content_id]
                if users == 1:
                    del self._locks[content_id]
                else:
                    self._locks[content_id] = (lock, users - 1)


class FeatureMaker:
    """Makes the features of files with fixed extractors and sampling.

    Safe for several threads at once: they share the networks, and each borrows a decode child
    of its own.

    Args:
        extractors: stream ("visual", "audio") to the extractor that reads it.
        sampling: which frames are looked at.
        cache: where features are kept; None keeps nothing.
        content_ids: content hashes with their memo.
        device: where torchcodec decodes, if `sampling` names it: "cpu" or "cuda:N".

    Raises:
        EnvironmentProblem: `sampling` names a decoder that is not installed.
    """

    def __init__(
        self,
        extractors: Mapping[str, FrameExtractor | SoundExtractor],
        *,
        sampling: Sampling,
        cache: FeatureCache | None = None,
        content_ids: ContentIds | None = None,
        device: str = "cpu",
    ) -> None:
        self.extractors = dict(extractors)
        self.sampling = sampling
        self.cache = cache
        self.content_ids = content_ids or ContentIds(None)
        self._fingerprints = {s: fingerprint_of(e) for s, e in self.extractors.items()}
        self._pool = DecoderPool(backends_for(sampling.decoder, device))
        self._in_work = InWork()
        self._kept = CacheWriter(cache) if cache is not None else None

    def features_of(self, path: Path, content_id: str | None = None) -> ClipFeatures:
        """The features of one file.

        Args:
            path: the file.
            content_id: its content id, where the caller knows it already.

        Raises:
            MediaError: the file can not be used.
        """
        before = _state(path)
        started = time.perf_counter()
        content_id = content_id or self.content_ids.of(path)
        timing = {"hash": time.perf_counter() - started}
        with self._in_work.alone(content_id if self.cache else None):
            found = self._from_cache(content_id)
            wanted = set(self.extractors) - set(found)
            if not wanted:
                return _assemble(content_id, found, cached=True, timing=timing)
            sniff(path)  # what is no media at all needs no child to say so
            with self._pool.lend() as decoder:
                made, spent = self._decode(path, wanted, decoder)
            if _state(path) != before:
                raise MediaError(
                    f"{path}: was written to while it was read; run again when it is complete",
                    code="changed_during_read",
                )
            self._keep(content_id, made)
        return _assemble(content_id, {**found, **made}, cached=False, timing={**timing, **spent})

    def cached_features(self, content_id: str) -> ClipFeatures | None:
        """The features of a content that the cache has all of; None if it has not."""
        found = self._from_cache(content_id)
        if set(self.extractors) - set(found):
            return None
        return _assemble(content_id, found, cached=True, timing={})

    def flush(self) -> None:
        """Returns when all features that were made are in the cache."""
        if self._kept is not None:
            self._kept.flush()

    def close(self) -> None:
        """Ends the decode children, and returns when all features are in the cache."""
        self._pool.close()
        for extractor in self.extractors.values():
            if isinstance(extractor, SharedFrames | SharedSounds):
                extractor.close()
        self.flush()

    def _key(self, content_id: str, stream: str) -> str:
        rule = self.sampling.fingerprint() if stream == "visual" else SOUND_RULE
        return FeatureCache.key(content_id, self._fingerprints[stream], rule)

    def _from_cache(self, content_id: str) -> dict[str, CacheEntry]:
        if self._kept is None:
            return {}
        entries = {}
        for stream in self.extractors:
            entry = self._kept.get(self._key(content_id, stream))
            if entry is not None:
                try:
                    _facts(entry)
                except ValueError as err:
                    log.debug("%s of %s: computed again: %s", stream, content_id, err)
                else:
                    entries[stream] = entry
        return entries

    def _keep(self, content_id: str, made: Mapping[str, CacheEntry]) -> None:
        if self._kept is not None:
            for stream, entry in made.items():
                self._kept.put(self._key(content_id, stream), entry)

    def _decode(
        self, path: Path, wanted: set[str], decoder: DecoderProcess
    ) -> tuple[dict[str, CacheEntry], dict[str, float]]:
        """Decodes what is wanted and runs the extractors on it as it comes."""
        visual = self.extractors["visual"] if "visual" in wanted else None
        audio = self.extractors["audio"] if "audio" in wanted else None
        frames, sound = self._new_rows(visual), SoundRows(audio)
        explorer = frames if isinstance(frames, AdaptiveRows) else None
        finished: Finished | None = None
        embed_seconds = 0.0
        started = time.perf_counter()
        events = decoder.decode(
            path,
            sampling=self.sampling,
            want_video=visual is not None,
            want_sound=audio is not None,
            explorer=explorer,
        )
        with ExitStack() as memory:
            for event in events:
                arrived = time.perf_counter()
                if isinstance(event, Media) and visual is not None:
                    memory.enter_context(self._pool.memory_for(event))
                    waited = time.perf_counter() - arrived
                    started, arrived = started + waited, arrived + waited
                elif isinstance(event, Frames):
                    frames.add(event)
                elif isinstance(event, Sound):
                    sound.add(event)
                elif isinstance(event, Restarted):
                    memory.close()
                    # An explorer begins anew by itself: the decoder holds on to it.
                    frames, sound = explorer or self._new_rows(visual), SoundRows(audio)
                elif isinstance(event, Finished):
                    finished = event
                embed_seconds += time.perf_counter() - arrived
        if finished is None:
            raise MediaError(f"{path}: the decoder ended without an answer", code="decoder_crashed")
        rows = {}
        if visual is not None:
            rows["visual"] = frames.features(self._fingerprints["visual"])
        if audio is not None:
            rows["audio"] = sound.features(self._fingerprints["audio"])
        seconds = time.perf_counter() - started
        media = finished.media
        if explorer is not None:
            media = replace(media, sampled_frames=explorer.looks)
        info: dict[str, Any] = {
            "media": media.to_dict(),
            "warnings": list(finished.warnings),
        }
        made = {stream: CacheEntry(features, info) for stream, features in rows.items()}
        return made, {"decode": seconds - embed_seconds, "embed": embed_seconds}

    def _new_rows(self, visual: Any) -> FrameRows | AdaptiveRows:
        """What collects the pictures of one file."""
        if visual is not None and self.sampling.mode == "adaptive":
            return AdaptiveRows(visual)
        return FrameRows(visual)


def fingerprint_of(extractor: FrameExtractor | SoundExtractor) -> str:
    """`name@hex`, as models and cache entries name an extractor."""
    return f"{extractor.name}@{extractor.fingerprint()}"


def _assemble(
    content_id: str,
    entries: Mapping[str, CacheEntry],
    *,
    cached: bool,
    timing: Mapping[str, float],
) -> ClipFeatures:
    # The visual entry knows about damage and the decoder; the audio entry only when alone.
    first = entries.get("visual") or next(iter(entries.values()))
    media, _ = _facts(first)
    # Adaptive sampling looked at fewer times than it has rows, and the entry says at how many.
    looked = _facts(entries["visual"])[0].sampled_frames if "visual" in entries else 0
    looked = looked or (len(entries["visual"].features.rows) if "visual" in entries else 0)
    warnings = dict.fromkeys(w for entry in entries.values() for w in _facts(entry)[1])
    streams = {stream: entry.features for stream, entry in entries.items()}
    return ClipFeatures(
        content_id, replace(media, sampled_frames=looked), streams, tuple(warnings), cached, timing
    )


def _facts(entry: CacheEntry) -> tuple[Media, list[str]]:
    """What an entry says of its file; raises ValueError when it is not what vtag writes."""
    warnings = entry.info.get("warnings")
    if not isinstance(warnings, list) or not all(isinstance(w, str) for w in warnings):
        raise ValueError(f"not a list of warnings: {warnings!r:.200}")
    return Media.from_dict(entry.info.get("media")), [str(w) for w in warnings]


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written to; zeros when it is not there (others say so)."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0, 0, 0)
    return (found.st_size, found.st_mtime_ns, found.st_ino)
