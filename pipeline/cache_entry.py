"""One entry of the feature cache as bytes: a safetensors file that proves itself.

    rows     float16 [T, D]
    seconds  float64 [T]
    metadata of strings: version, made_by, key, info (JSON), checksum

The checksum is the SHA-256 of the whole file with the digits of the checksum itself as
zeros. So each byte is covered, those of the header too, and the checksum can be looked at
before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, Union

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from vtag.records import Features

JSON: TypeAlias = Union[bool, int, float, str, "list[JSON]", "dict[str, JSON]", None]

VERSION: Final = "1"  # of the layout; an entry of another version is as good as none

# 100 000 rows, the most that a sampling asks for, of 2048 numbers are 410 MB.
MAX_ENTRY_BYTES: Final = 1 << 30
MAX_HEADER_BYTES: Final = 1 << 20

_NO_CHECKSUM: Final = b"0" * 64
# A quote inside a JSON string is always escaped, so no value can look like this.
_CHECKSUM: Final = re.compile(rb'"checksum":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class CacheEntry:
    """What one extractor made of one stream of one video.

    Attributes:
        features: rows float16 [T, D]; T is 0 where the video has no such stream.
        info: what the record needs without decoding again (media facts, warnings).
    """

    features: Features
    info: dict[str, JSON]


class OtherVersion(ValueError):
    """The entry is whole, and of another version of vtag."""


def encode(key: str, entry: CacheEntry) -> bytes:
    """The bytes of the file that holds `entry` under `key`.

    Raises:
        ValueError: a number in the entry is not finite, or the entry is too large.
    """
    features = entry.features
    if not (np.isfinite(features.rows).all() and np.isfinite(features.seconds).all()):
        raise ValueError("the features hold numbers that are not finite")
    metadata = {
        "version": VERSION,
        "made_by": features.made_by,
        "key": key,
        "info": json.dumps(entry.info, allow_nan=False),
        "checksum": _NO_CHECKSUM.decode(),
    }
    tensors: dict[str, NDArray[Any]] = {
        "rows": np.ascontiguousarray(features.rows),
        "seconds": np.ascontiguousarray(features.seconds),
    }
    blob = safetensors.numpy.save(tensors, metadata)
    if len(blob) > MAX_ENTRY_BYTES or _header_size(blob) > MAX_HEADER_BYTES:
        raise ValueError(f"the entry is too large ({len(blob)} bytes)")
    begin, end = _checksum_span(blob)
    checksum = hashlib.sha256(blob).hexdigest().encode()
    return blob[:begin] + checksum + blob[end:]


def decode(key: str, blob: bytes) -> CacheEntry:
    """The entry that `encode` made these bytes of.

    Raises:
        OtherVersion: the entry is whole, and of another version.
        ValueError: anything else that is not exactly what `encode` made for this key.
    """
    begin, end = _checksum_span(blob)
    whole = hashlib.sha256(blob[:begin])
    whole.update(_NO_CHECKSUM)
    whole.update(memoryview(blob)[end:])
    if whole.hexdigest().encode() != blob[begin:end]:
        raise ValueError("the checksum does not fit")
    # From here on the bytes are as they were written; but who wrote them is not known.
    try:
        metadata = json.loads(blob[8 : 8 + _header_size(blob)])["__metadata__"]
        if metadata["version"] != VERSION:
            raise OtherVersion(f"of version {metadata['version']}, not {VERSION}")
        if metadata["key"] != key:
            raise ValueError("it was stored under another key")
        info = json.loads(metadata["info"])
        tensors = safetensors.numpy.load(blob)
        # Copies: what safetensors gives can not be written, and torch warns of that.
        rows, seconds = tensors["rows"].copy(), tensors["seconds"].copy()
        features = Features(rows=rows, seconds=seconds, made_by=metadata["made_by"])
    except (KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as err:
        raise ValueError(f"not laid out as an entry ({err!r})") from err
    if not isinstance(info, dict) or not isinstance(features.made_by, str):
        raise ValueError("not laid out as an entry")
    if not (np.isfinite(rows).all() and np.isfinite(seconds).all()):
        raise ValueError("it holds numbers that are not finite")
    return CacheEntry(features=features, info=info)


def _header_size(blob: bytes) -> int:
    """Bytes of the JSON header: the first 8 bytes, little endian (safetensors, "Format")."""
    if len(blob) < 8:
        raise ValueError("shorter than a header")
    size: int = struct.unpack_from("<Q", blob)[0]
    return size


def _checksum_span(blob: bytes) -> tuple[int, int]:
    """Where the digits of the checksum begin and end."""
    size = _header_size(blob)
    if size > min(MAX_HEADER_BYTES, len(blob) - 8):
        raise ValueError("the header is longer than it may be")
    found = _CHECKSUM.search(blob, 8, 8 + size)
    if found is None:
        raise ValueError("no checksum")
    return found.span(1)
