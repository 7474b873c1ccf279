"""Brings one file of known size and hash from the network: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from typing import IO, Final

from vtag.errors import WeightsError

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 30.0  # without a single byte
_BLOCK_BYTES: Final = 1 << 20
OFFLINE_VARIABLES: Final = ("VTAG_OFFLINE", "HF_HUB_OFFLINE")

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


def offline_variable(environment: Mapping[str, str] | None = None) -> str | None:
    """The variable that forbids the network, if one is set to something other than 0 or empty."""
    environment = os.environ if environment is None else environment
    for name in OFFLINE_VARIABLES:
        if environment.get(name, "").strip().lower() not in ("", "0", "false", "no", "off"):
            return name
    return None


def fetch(
    url: str,
    target: Path,
    *,
    size_bytes: int,
    sha256: str,
    on_progress: Progress | None = None,
) -> None:
    """Puts what `url` holds at `target`, through a file with another name in the same folder.

    Several processes may do this at once: each writes its own file, and all end the same.

    Args:
        url: https; plain http only to this machine itself. The same holds after redirects.
        sha256: the hash in hex, or its first digits.

    Raises:
        WeightsError: not reachable, not the expected bytes, or no room; `target` is as before.
    """
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as out:
                found = _copy(url, out, size_bytes, on_progress)
                out.flush()
                os.fsync(out.fileno())
            if not found.startswith(sha256):
                raise WeightsError(f"{url}: other bytes: sha256 {found}, expected {sha256}")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as err:
        raise WeightsError(
            f"{target.parent}: can not write {target.name} there ({err.strerror or err}); "
            "free space or set VTAG_WEIGHTS to another folder"
        ) from err
    _sync_folder(target.parent)
    log.info("%s: %d bytes from %s", target, size_bytes, url)


def _copy(url: str, out: IO[bytes], size_bytes: int, on_progress: Progress | None) -> str:
    """The sha256 of what was written to `out`: exactly `size_bytes` from `url`."""
    digest, done = hashlib.sha256(), 0
    with _opened(url) as answer:
        stated = answer.headers.get("Content-Length")
        if stated is not None and stated != str(size_bytes):
            raise WeightsError(f"{url}: {stated} bytes are offered, expected {size_bytes}")
        while True:
            # One byte more than wanted, so that a file without end shows after that byte.
            wanted = min(_BLOCK_BYTES, size_bytes - done + 1)
            try:
                block = answer.read(wanted)
            except (OSError, http.client.HTTPException) as err:
                raise WeightsError(f"{url}: broke off after {done} bytes ({err})") from err
            if not block:
                break
            done += len(block)
            if done > size_bytes:
                raise WeightsError(f"{url}: more than the expected {size_bytes} bytes")
            digest.update(block)
            out.write(block)
            if on_progress is not None:
                on_progress(done, size_bytes)
    if done != size_bytes:
        raise WeightsError(f"{url}: broke off after {done} of {size_bytes} bytes")
    return digest.hexdigest()


def _opened(url: str) -> http.client.HTTPResponse:
    """The answer to a GET of `url`."""
    _check_scheme(url)
    opener = urllib.request.build_opener(_CheckedRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "vtag"})
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as err:
        err.close()
        raise WeightsError(f"{url}: the server answers {err.code} {err.reason}") from err
    except urllib.error.URLError as err:
        raise WeightsError(f"{url}: can not be reached ({err.reason})") from err
    except (OSError, http.client.HTTPException) as err:
        raise WeightsError(f"{url}: can not be reached ({err})") from err
    return answer


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a download may start."""

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
            _check_scheme(newurl)
        except WeightsError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _check_scheme(url: str) -> None:
    """https anywhere; http to the machine itself only, where nobody sits in between."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return
    raise WeightsError(f"{url}: only https is downloaded from")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        log.debug("%s: this file system can not sync folders", folder)
    finally:
        os.close(descriptor)
