"""A folder of whole objects, here or in remote storage: the place of parts and cache entries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vtag.errors import ConfigError
from vtag.remote import ObjectStat, RemoteSettings, Store, store_for
from vtag.remote_errors import RemoteError
from vtag.storage import write_whole
from vtag.uris import Uri, parse


class Folder(Protocol):
    """Named objects, each whole or not there. Every method raises OSError."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def list(self, beginning: str) -> Iterator[ObjectStat]:
        """All objects whose name begins so, in order of names; `key` is the name."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of an object; raises FileNotFoundError if there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Stores an object in place of one of the same name."""
        ...

    def delete(self, name: str) -> None:
        """Removes an object; fine if it is not there."""
        ...


class LocalFolder:
    """A folder of a disk, perhaps one that many machines mount."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    def list(self, beginning: str) -> Iterator[ObjectStat]:
        below, _, start = beginning.rpartition("/")
        folder = self._path / below
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(start) and not name.endswith(".part"):
                key = f"{below}/{name}" if below else name
                yield ObjectStat(key, (folder / name).stat().st_size)

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def put(self, name: str, data: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mode=0o644)

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class RemoteFolder:
    """A prefix of a bucket."""

    def __init__(self, uri: Uri, store: Store) -> None:
        self._root = uri.text.rstrip("/") + "/"
        self._uri = uri
        self._store = store

    @property
    def name(self) -> str:
        return self._uri.public

    def list(self, beginning: str) -> Iterator[ObjectStat]:
        skipped = len(self._at("").key)
        for found in self._store.list(self._at(beginning)):
            yield ObjectStat(found.key[skipped:], found.size, found.etag, found.modified)

    def read(self, name: str) -> bytes:
        uri = self._at(name)
        try:
            like = self._store.stat(uri)
            return b"".join(self._store.blocks(uri, like))
        except RemoteError as err:
            if err.kind == "not_found":
                raise FileNotFoundError(f"{self.name}/{name}: {err.what}") from err
            raise

    def put(self, name: str, data: bytes) -> None:
        self._store.put(self._at(name), data)

    def delete(self, name: str) -> None:
        self._store.delete(self._at(name))

    def _at(self, name: str) -> Uri:
        text = self._root + name
        return Uri(self._uri.protocol, text, text)


def open_folder(where: str, settings: RemoteSettings | None = None) -> Folder:
    """The folder at an s3:// or gs:// address, a file:// address or a local path.

    Raises:
        ConfigError: http, or a protocol that is not spoken.
        EnvironmentProblem: a library is missing.
    """
    parsed = parse(where)
    if isinstance(parsed, str):
        return LocalFolder(Path(parsed))
    if parsed.protocol in ("http", "https"):
        raise ConfigError(f"{parsed.public}: nothing is written over http; name s3:// or gs://")
    return RemoteFolder(parsed, store_for(parsed, settings))
