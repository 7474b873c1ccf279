"""Objects in remote storage through fsspec: look at one, read a range, list, put, delete.

Every call has its time limit and is tried again by `vtag.remote_errors.patiently`; what the
libraries below try again by themselves is switched off, since two loops multiply. Credentials
come from the environment's usual places only (for S3: variables, profile, web identity, the
machine's role; AWS_ENDPOINT_URL_S3 names another server), options of fsspec from its own
configuration (FSSPEC_S3_ANON=true reads a public bucket).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from vtag.errors import EnvironmentProblem
from vtag.remote_errors import Patience, RemoteError, patiently
from vtag.uris import Uri

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

CONNECT_SECONDS: Final = 10.0
# Large enough that the wait for an answer (some 30 ms) is small beside the transfer, small
# enough that memory does not matter and a broken connection costs little.
BLOCK_BYTES: Final = 8 << 20
_CONNECTIONS: Final = 64
_PACKAGES: Final = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # what to install, our extra
# Variables by which servers and credentials are chosen.
_CHAIN: Final = ("AWS_", "FSSPEC_", "GOOGLE_", "GCSFS_")
OFFLINE: Final = "VTAG_OFFLINE"


@dataclass(frozen=True)
class ObjectStat:
    """What a storage tells of an object without its bytes.

    Attributes:
        key: its name in the bucket.
        size: bytes; None where the server does not say (some http servers).
        etag: its word for this content, without quotes; None if it has none.
        modified: seconds since the epoch of its last change; None if it is not told.
    """

    key: str
    size: int | None
    etag: str | None = None
    modified: float | None = None


@dataclass(frozen=True)
class RemoteSettings:
    """How long a storage is waited for.

    Attributes:
        timeout_seconds: without a single byte.
        slow_bytes_per_second: what comes slower than this is cut and asked for again: a server
            that drips one byte every ten seconds would hold a worker for years.
        patience: how often it is tried.
    """

    timeout_seconds: float = 30.0
    slow_bytes_per_second: float = 50_000.0
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if not (self.timeout_seconds > 0 and self.slow_bytes_per_second > 0):
            raise ValueError(f"no time to wait: {self!r}")

    def limit_seconds(self, wanted_bytes: int) -> float:
        """How long one call for so many bytes may take in all."""
        return self.timeout_seconds + CONNECT_SECONDS + wanted_bytes / self.slow_bytes_per_second


class Store(Protocol):
    """One kind of storage. Every method raises RemoteError; any thread may call it."""

    def stat(self, uri: Uri) -> ObjectStat:
        """What is known of an object."""
        ...

    def read(self, uri: Uri, start: int, end: int, like: ObjectStat) -> bytes:
        """Bytes [start, end) of the object that `like` describes: all of them, or an error.

        Raises:
            RemoteError: of kind "changed" where the storage tells that it is another content.
        """
        ...

    def blocks(self, uri: Uri, like: ObjectStat) -> Iterator[bytes]:
        """All bytes of the object, in order, in pieces of `BLOCK_BYTES` at most."""
        ...

    def list(self, prefix: Uri) -> Iterator[ObjectStat]:
        """All objects whose key begins with that of `prefix`, a page at a time."""
        ...

    def put(self, uri: Uri, data: bytes) -> None:
        """Stores an object: readers see the old one or the new one, whole."""
        ...

    def delete(self, uri: Uri) -> None:
        """Removes an object; fine if it is not there."""
        ...


class S3Store:
    """Amazon S3 and what speaks like it, through s3fs."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self._fs: Any = _filesystem(
            "s3",
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": settings.timeout_seconds,
                "retries": {"total_max_attempts": 1},
                "max_pool_connections": _CONNECTIONS,
            },
        )
        self._fs.retries = 1  # the loop around this one has the jitter and the limits

    def stat(self, uri: Uri) -> ObjectStat:
        answer = self._ask("head_object", Bucket=uri.bucket, Key=uri.key)
        return ObjectStat(
            uri.key,
            int(answer["ContentLength"]),
            _unquoted(answer.get("ETag")),
            _seconds(answer.get("LastModified")),
        )

    def read(self, uri: Uri, start: int, end: int, like: ObjectStat) -> bytes:
        if start >= end:
            return b""
        same = {"IfMatch": f'"{like.etag}"'} if like.etag else {}
        limit = self._settings.limit_seconds(end - start)

        def get() -> bytes:
            answer = self._fs.call_s3(
                "get_object",
                Bucket=uri.bucket,
                Key=uri.key,
                Range=f"bytes={start}-{end - 1}",
                timeout=limit,
                **same,
                **self._fs.req_kw,
            )
            body = answer["Body"]
            try:
                data: bytes = _sync(self._fs, body.read, limit)
            finally:
                body.close()
            return _whole(data, end - start)

        return patiently(get, self._settings.patience)

    def blocks(self, uri: Uri, like: ObjectStat) -> Iterator[bytes]:
        return _by_ranges(self, uri, like)

    def list(self, prefix: Uri) -> Iterator[ObjectStat]:
        more: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Bucket=prefix.bucket, Prefix=prefix.key, **more)
            for item in page.get("Contents", []):
                yield ObjectStat(
                    item["Key"],
                    int(item["Size"]),
                    _unquoted(item.get("ETag")),
                    _seconds(item.get("LastModified")),
                )
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def put(self, uri: Uri, data: bytes) -> None:
        limit = self._settings.limit_seconds(len(data))
        path = f"{uri.bucket}/{uri.key}"
        patiently(
            # Beyond 50 MB s3fs sends parts, and the object appears with the last of them.
            lambda: self._fs.pipe_file(path, data, timeout=limit),
            self._settings.patience,
        )

    def delete(self, uri: Uri) -> None:
        self._ask("delete_object", Bucket=uri.bucket, Key=uri.key)

    def _ask(self, method: str, **arguments: object) -> dict[str, Any]:
        limit = self._settings.limit_seconds(0)

        def call() -> dict[str, Any]:
            answer: dict[str, Any] = self._fs.call_s3(
                method, timeout=limit, **arguments, **self._fs.req_kw
            )
            return answer

        return patiently(call, self._settings.patience)


class FsspecStore:
    """Any other storage that fsspec knows (Google's, through gcsfs).

    Listings are taken a folder at a time: one folder of a million objects is held as a whole.
    """

    def __init__(self, protocol: str, settings: RemoteSettings, fs: Any = None) -> None:
        self._settings = settings
        self._protocol = protocol
        self._fs: Any = fs if fs is not None else _filesystem(protocol)

    def stat(self, uri: Uri) -> ObjectStat:
        info = self._patiently(self._fs.info, _path(uri))
        if info.get("type") == "directory":
            raise RemoteError("not_found", "is a folder; end its name with a slash")
        return _stat_of(uri.key, info)

    def read(self, uri: Uri, start: int, end: int, like: ObjectStat) -> bytes:
        if start >= end:
            return b""

        def get() -> bytes:
            data = self._call(self._fs.cat_file, _path(uri), start=start, end=end)
            return _whole(data, end - start)

        data = patiently(get, self._settings.patience)
        if end == like.size and self.stat(uri) != like:  # with the last bytes: it was all one
            raise RemoteError("changed", "was replaced while it was read")
        return data

    def blocks(self, uri: Uri, like: ObjectStat) -> Iterator[bytes]:
        return _by_ranges(self, uri, like)

    def list(self, prefix: Uri) -> Iterator[ObjectStat]:
        # Not fs.walk: it leaves out, without a word, the folders that it could not list.
        pending = [f"{prefix.bucket}/{prefix.key.rpartition('/')[0]}".rstrip("/")]
        while pending:
            try:
                listing = self._patiently(self._fs.ls, pending.pop(), True)
            except RemoteError as err:
                if err.kind != "not_found":
                    raise
                continue
            below = []
            for info in sorted(listing, key=lambda info: str(info["name"])):
                name = str(info["name"]).lstrip("/")
                key = name.partition("/")[2]
                if info.get("type") == "directory":
                    below.append(name)
                elif key.startswith(prefix.key):
                    yield _stat_of(key, info)
            pending.extend(reversed(below))

    def put(self, uri: Uri, data: bytes) -> None:
        self._patiently(self._fs.pipe_file, _path(uri), data)

    def delete(self, uri: Uri) -> None:
        try:
            self._patiently(self._fs.rm_file, _path(uri))
        except RemoteError as err:
            if err.kind != "not_found":
                raise

    def _call(self, function: Callable[..., _Answer], *args: object, **options: object) -> _Answer:
        limit = self._settings.limit_seconds(64 << 20)
        timeout = {"timeout": limit} if getattr(self._fs, "async_impl", False) else {}
        return function(*args, **options, **timeout)

    def _patiently(self, function: Callable[..., Any], *args: object) -> Any:
        return patiently(lambda: self._call(function, *args), self._settings.patience)


_stores: dict[tuple[object, ...], Store] = {}
_guard = threading.Lock()


def store_for(uri: Uri, settings: RemoteSettings | None = None) -> Store:
    """The storage that an address is in; one per process, kind, settings and credentials.

    Raises:
        EnvironmentProblem: the library for it is not installed, or VTAG_OFFLINE forbids it.
    """
    if os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off"):
        raise EnvironmentProblem(f"{uri.public}: {OFFLINE} is set, so no storage is asked")
    settings = settings or RemoteSettings()
    # A forked child must not use its parent's connections and event loop, nor what was opened
    # with other credentials those of now.
    chain = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_CHAIN)))
    place = (os.getpid(), uri.protocol, settings, chain)
    with _guard:
        if place not in _stores:
            _stores[place] = _open(uri.protocol, settings)
        return _stores[place]


def _open(protocol: str, settings: RemoteSettings) -> Store:
    if protocol == "s3":
        return S3Store(settings)
    if protocol in ("http", "https"):
        from vtag.remote_http import HttpStore

        return HttpStore(settings)
    return FsspecStore(protocol, settings)


def _by_ranges(store: Store, uri: Uri, like: ObjectStat) -> Iterator[bytes]:
    """The object a range at a time, so that a broken connection costs one range and not all."""
    assert like.size is not None
    for start in range(0, like.size, BLOCK_BYTES):
        yield store.read(uri, start, min(like.size, start + BLOCK_BYTES), like)


def _filesystem(protocol: str, **options: object) -> Any:
    package, extra = _PACKAGES[protocol]
    try:
        import fsspec

        return fsspec.filesystem(
            protocol, skip_instance_cache=True, use_listings_cache=False, **options
        )
    except ImportError as err:
        raise EnvironmentProblem(
            f"{protocol}:// needs the package {package}; pip install 'vtag[{extra}]'"
        ) from err


def _sync(fs: Any, function: Callable[..., Any], limit_seconds: float) -> Any:
    from fsspec.asyn import sync

    return sync(fs.loop, function, timeout=limit_seconds)


def _whole(data: bytes, wanted: int) -> bytes:
    """The data; a body that ends early is a broken connection, whatever the server thinks."""
    if len(data) != wanted:
        raise RemoteError("unreachable", f"broke off after {len(data)} of {wanted} bytes")
    return data


def _path(uri: Uri) -> str:
    return f"{uri.bucket}/{uri.key}"


def _stat_of(key: str, info: dict[str, Any]) -> ObjectStat:
    size = info.get("size")
    times = ("LastModified", "updated", "mtime", "created")
    moment = next((info[name] for name in times if name in info), None)
    return ObjectStat(
        key,
        None if size is None else int(size),
        _unquoted(info.get("ETag") or info.get("etag")),
        _seconds(moment),
    )


def _unquoted(etag: object) -> str | None:
    text = str(etag or "").removeprefix("W/").strip('"')
    return text or None


def _seconds(moment: object) -> float | None:
    """Seconds since the epoch of a datetime, a text of ISO 8601 or a number; None of others."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        except ValueError:
            return None
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if isinstance(moment, int | float) else None
