"""Single objects over http and https: no listing, few redirects, none into the inside.

An address that somebody else wrote must not make this machine ask its own network. So a
redirect never leads from a public host to a private one, or from https to http; and addresses
of link-local networks (169.254.169.254 gives away a cloud machine's keys) are never asked.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import IO, Final

from vtag.remote import ObjectStat, RemoteSettings
from vtag.remote_errors import RemoteError, classify, library_errors, patiently
from vtag.uris import Uri

MAX_REDIRECTS: Final = 5
_PIECE_BYTES: Final = 1 << 18


class HttpStore:
    """What a web server gives, range by range where it can."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings

    def stat(self, uri: Uri) -> ObjectStat:
        """From a GET of the first byte: many servers answer HEAD wrongly or not at all."""

        def look() -> ObjectStat:
            try:
                with self._open(uri, {"Range": "bytes=0-0"}) as answer:
                    return _stat_of(uri, answer)
            except _Answered as err:
                if err.is_empty:
                    return ObjectStat(uri.key, 0)
                raise

        return patiently(look, self._settings.patience)

    def read(self, uri: Uri, start: int, end: int, like: ObjectStat) -> bytes:
        if start >= end:
            return b""

        def get() -> bytes:
            with self._same(uri, start, end, like) as answer:
                data = b"".join(self._pieces(answer, end - start))
            if len(data) != end - start:
                raise _broke_off(len(data), end - start)
            return data

        return patiently(get, self._settings.patience)

    def blocks(self, uri: Uri, like: ObjectStat) -> Iterator[bytes]:
        """In one answer, gone on with where it breaks off: many servers know no ranges."""
        patience = self._settings.patience
        offset = failures = 0
        while True:
            try:
                with self._same(uri, offset, None, like) as answer:
                    for piece in self._pieces(answer, None):
                        offset += len(piece)
                        failures = 0
                        if like.size is not None and offset > like.size:
                            raise RemoteError("changed", "was replaced while it was read")
                        yield piece
                if like.size is not None and offset != like.size:
                    raise _broke_off(offset, like.size)
                return
            except library_errors() as err:
                failures += 1
                found = classify(err)
                if found.kind != "unreachable" or failures >= patience.attempts:
                    raise found from err
                time.sleep(patience.wait_seconds(failures))

    def list(self, prefix: Uri) -> Iterator[ObjectStat]:
        raise RemoteError("refused", "http has no folders; list the objects in a manifest")

    def put(self, uri: Uri, data: bytes) -> None:
        raise RemoteError("refused", "nothing is written over http; name an s3:// or gs:// folder")

    def delete(self, uri: Uri) -> None:
        raise RemoteError("refused", "nothing is deleted over http")

    @contextmanager
    def _same(
        self, uri: Uri, start: int, end: int | None, like: ObjectStat
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer that begins with byte `start` of the object that `like` describes."""
        last = "" if end is None else str(end - 1)
        asked = {"Range": f"bytes={start}-{last}"} if start or last else {}
        if like.etag:
            asked["If-Match"] = f'"{like.etag}"'
        with self._open(uri, asked) as answer:
            if _stat_of(uri, answer) != like:
                raise RemoteError("changed", "was replaced while it was read")
            if answer.status == 200 and start:  # it knows no ranges
                for _ in self._pieces(answer, start):
                    pass
            yield answer

    def _open(self, uri: Uri, headers: dict[str, str]) -> http.client.HTTPResponse:
        refuse_inside(uri.text, came_from=None)
        # Accept-Encoding: a compressed answer would be other bytes than the object's.
        plain = {"User-Agent": "vtag", "Accept-Encoding": "identity"}
        url, login = _without_login(_quoted(uri.text))
        request = urllib.request.Request(url, headers={**plain, **headers})
        if login:  # for this server alone, wherever it sends us
            request.add_unredirected_header("Authorization", login)
        opener = urllib.request.build_opener(_FewRedirects)
        try:
            answer: http.client.HTTPResponse = opener.open(
                request, timeout=self._settings.timeout_seconds
            )
        except urllib.error.HTTPError as err:
            size = (err.headers.get("Content-Range") or "").rpartition("/")[2]
            err.close()
            # Without the address: it may hold a signature.
            raise _Answered(err.code, f"the server answers {err.code} {err.reason}", size) from None
        except urllib.error.URLError as err:
            if isinstance(err.reason, OSError):
                raise err.reason from None
            raise RemoteError("refused", f"was not given ({err.reason})") from None
        return answer

    def _pieces(self, answer: http.client.HTTPResponse, size: int | None) -> Iterator[bytes]:
        """The next `size` bytes of an answer, or all, none of them slower than allowed."""
        started, taken = time.monotonic(), 0
        while size is None or taken < size:
            wanted = _PIECE_BYTES if size is None else min(_PIECE_BYTES, size - taken)
            # read1: what is there, so that a server that drips is noticed at the next drop.
            piece = answer.read1(wanted)
            if not piece:
                return
            taken += len(piece)
            if time.monotonic() - started > self._settings.limit_seconds(taken):
                raise RemoteError("unreachable", f"sent only {taken} bytes in the time set")
            yield piece


def _broke_off(found: int, wanted: int) -> RemoteError:
    return RemoteError("unreachable", f"broke off after {found} of {wanted} bytes")


class _Answered(OSError):
    """A status that is no success; `vtag.remote_errors.classify` reads it."""

    def __init__(self, status: int, text: str, size: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.is_empty = status == 416 and size == "0"  # no first byte to give


class _FewRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            refuse_inside(newurl, came_from=req.full_url)
        except RemoteError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def refuse_inside(url: str, *, came_from: str | None) -> None:
    """Returns where an address may be asked.

    Args:
        came_from: the address that redirected here; None for one that was named.

    Raises:
        RemoteError: of kind "denied".
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RemoteError("denied", f"redirects to {parts.scheme or 'nowhere'}, which is not asked")
    addresses = _addresses(parts.hostname)
    if any(address.is_link_local for address in addresses):
        raise RemoteError("denied", "leads into a link-local network, which is never asked")
    if came_from is None:
        return
    origin = urllib.parse.urlsplit(came_from)
    if origin.scheme == "https" and parts.scheme == "http":
        raise RemoteError("denied", "redirects from https to http, which is not followed")
    inside = any(_is_inside(address) for address in addresses)
    if inside and not any(_is_inside(a) for a in _addresses(origin.hostname or "")):
        raise RemoteError("denied", "redirects into a private network, which is not followed")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _addresses(host: str) -> list[_Address]:
    """All addresses of a host; none where the name is not known here."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []  # perhaps only a proxy knows it; else the connection fails and says so
    plain = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in plain]


def _is_inside(address: _Address) -> bool:
    return not address.is_global


def _quoted(url: str) -> str:
    """With what a request line can not hold in percent signs; what has them is left."""
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def _without_login(url: str) -> tuple[str, str]:
    """The address without "user:password@", and these as a header says them; "" without any."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, ""
    encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode("ascii")
    return parts._replace(netloc=host).geturl(), f"Basic {encoded}"


def _stat_of(uri: Uri, answer: http.client.HTTPResponse) -> ObjectStat:
    size: str | None = answer.headers.get("Content-Length")
    if answer.status == 206:  # "bytes 0-0/1234"
        size = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
    etag = answer.headers.get("ETag") or ""
    modified = answer.headers.get("Last-Modified")
    try:
        seconds = parsedate_to_datetime(modified).timestamp() if modified else None
    except (TypeError, ValueError):
        seconds = None
    return ObjectStat(
        uri.key,
        int(size) if size and size.isdigit() else None,
        # A weak one says that the pictures are alike and not that the bytes are.
        None if etag.startswith("W/") else etag.strip('"') or None,
        seconds,
    )
