"""Which inputs have a record: hashes only, so that millions fit into memory."""

from __future__ import annotations

import hashlib
from typing import Any

from vtag.records import stamp_of


class DoneIndex:
    """Which paths have a record, of which content; some 200 bytes of memory for each.

    Attributes:
        ok, failed: how many, by status; each path once.
        replaced: hashes of the paths that have had more than one record.
    """

    def __init__(self) -> None:
        self._contents: dict[int, int] = {}  # hash of path -> hash of id, lowest bit: failed
        self._stamps: dict[int, int] = {}  # hash of path -> hash of stamp, of remote inputs
        self.ok = 0
        self.failed = 0
        # Paths that may have older records in the file, before the one that counts.
        self.replaced: set[int] = set()

    def content(self, path: str) -> int | None:
        """`content_key` of what the record of this path is about; None without a record."""
        found = self._contents.get(path_key(path))
        return None if found is None else found >> 1

    def is_failed(self, path: str) -> bool:
        """Whether the record of this path is a failed one; False without a record."""
        return bool(self._contents.get(path_key(path), 0) & 1)

    def done(self, path: str, content_id: str | None) -> bool:
        """Whether this path has a record, of this content unless that is None."""
        found = self.content(path)
        return found is not None and (content_id is None or found == content_key(content_id))

    def done_as(self, path: str, stamp: str | None) -> bool:
        """Whether this path has a record of a remote object with this stamp."""
        return stamp is not None and self._stamps.get(path_key(path)) == content_key(stamp)

    def add_fields(self, record: dict[str, Any]) -> None:
        """`add` from the JSON object of a record."""
        self.add(
            record["path"],
            record["id"],
            failed=record["status"] == "failed",
            stamp=stamp_of(record),
        )

    def add(
        self, path: str, content_id: str | None, *, failed: bool, stamp: str | None = None
    ) -> None:
        """One more record; the last one of a path counts."""
        key = path_key(path)
        old = self._contents.get(key)
        if old is not None:
            self.replaced.add(key)
            self._count(old, -1)
        # One assignment: other threads ask meanwhile.
        self._contents[key] = content_key(content_id) << 1 | failed
        if stamp is not None:
            self._stamps[key] = content_key(stamp)
        else:
            self._stamps.pop(key, None)
        self._count(self._contents[key], 1)

    def remove(self, path: str) -> None:
        """The path has no record any more."""
        self._stamps.pop(path_key(path), None)
        self._count(self._contents.pop(path_key(path)), -1)

    def _count(self, content: int, by: int) -> None:
        if content & 1:
            self.failed += by
        else:
            self.ok += by


def content_key(content_id: str | None) -> int:
    """8 bytes of a hash; compared only within one path."""
    return _hash(content_id or "", size=8)


def path_key(path: str) -> int:
    # 16 bytes: two of 100 million paths meet with a chance of 1e-23.
    return _hash(path, size=16)


def _hash(text: str, *, size: int) -> int:
    # Undecodable file names come as lone surrogates.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=size).digest(), "big")
