"""What went wrong between here and a storage, in the few kinds that matter to whoever asked.

Retried is only what another attempt may mend: a busy or broken server (5xx, 429), a connection
that was cut, a time-out, a body shorter than promised. Never a refusal (401, 403) or an absence
(404): asking a hundred times for what is not there makes a storage throttle the rest.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

from vtag.errors import MediaError
from vtag.uris import redact_all

log = logging.getLogger(__name__)

Kind = Literal["not_found", "denied", "changed", "unreachable", "refused"]
_Answer = TypeVar("_Answer")

_BUSY_STATUS: Final = frozenset([408, 425, 429])
_DENIED_WORDS: Final = frozenset(
    [
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "InvalidObjectState",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnauthorizedAccess",
        "AuthorizationHeaderMalformed",
    ]
)
_BUSY_WORDS: Final = frozenset(
    [
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "IncompleteBody",
    ]
)
_BUSY_ERRNO: Final = frozenset(
    [
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EBUSY,
        errno.EAGAIN,
    ]
)
# Names of exceptions of libraries that are not imported here (botocore, aiohttp, gcsfs).
_BUSY_CLASSES: Final = frozenset(
    [
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "EndpointConnectionError",
        "HTTPClientError",
        "ResponseStreamingError",
        "IncompleteReadError",
        "ClientPayloadError",
        "ClientConnectionError",
        "ClientConnectorError",
        "ClientOSError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "FSTimeoutError",
        "ProxyConnectionError",
        "SSLError",
    ]
)
_DENIED_CLASSES: Final = frozenset(
    [
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "NoAuthTokenError",
        "TokenRetrievalError",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "RefreshError",
        "DefaultCredentialsError",
    ]
)


class RemoteError(OSError):
    """A storage did not give what was asked for.

    Attributes:
        kind: "not_found", "denied", "changed" (another content than before), "unreachable"
            (the only kind worth another attempt) or "refused" (anything else it said no to).
    """

    def __init__(self, kind: Kind, what: str) -> None:
        super().__init__(errno.EIO, what)
        self.kind: Kind = kind
        self.what = what

    def __str__(self) -> str:
        return self.what


_CODES: Final[dict[Kind, tuple[str, str]]] = {
    "not_found": ("source_not_found", "check the name, or whether it was deleted"),
    "denied": ("source_denied", "check the credentials of this machine and the rights on it"),
    "changed": ("source_changed", "run again when it is complete"),
    "unreachable": ("source_unreachable", "run again with --retry-failed"),
    "refused": ("source_denied", "check the address"),
}


def media_error(path: str, error: RemoteError) -> MediaError:
    """The failure of one input, for its record; `path` is its public name."""
    code, remedy = _CODES[error.kind]
    return MediaError(f"{path}: {error.what}; {remedy}", code=code, stage="open")


def classify(error: BaseException) -> RemoteError:
    """The kind of any error that fsspec, botocore, aiohttp or a socket raises."""
    if isinstance(error, RemoteError):
        return error
    chain = _chain(error)
    words = redact_all(" ".join(str(error).split()))[:200] or type(error).__name__
    status = next((s for e in chain if (s := _status(e)) is not None), None)
    said = {_word(e) for e in chain} | {type(e).__name__ for e in chain}
    if status == 404 or any(isinstance(e, FileNotFoundError) for e in chain):
        return RemoteError("not_found", "there is no such object")
    if status == 412 or "PreconditionFailed" in said:
        return RemoteError("changed", "was replaced while it was read")
    if (
        status in (401, 403)
        or said & (_DENIED_WORDS | _DENIED_CLASSES)
        or any(isinstance(e, PermissionError) for e in chain)
    ):
        return RemoteError("denied", f"access is denied ({words})")
    busy = (
        (status is not None and (status >= 500 or status in _BUSY_STATUS))
        or said & (_BUSY_WORDS | _BUSY_CLASSES)
        or any(_is_broken_connection(e) for e in chain)
    )
    if busy:
        return RemoteError("unreachable", f"can not be reached ({words})")
    return RemoteError("refused", f"was not given ({words})")


@dataclass(frozen=True)
class Patience:
    """How often something is tried, and how long it is waited in between.

    The wait before attempt k+1 is drawn evenly from 0 to min(cap, base * 2^k) seconds: "full
    jitter", so that a thousand workers that failed together do not come back together
    (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    attempts: int = 6
    base_seconds: float = 0.5
    cap_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_seconds < 0 or self.cap_seconds < 0:
            raise ValueError(f"no patience: {self!r}")

    def wait_seconds(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """How long to wait after so many failures in a row (from 1)."""
        return draw() * min(self.cap_seconds, self.base_seconds * 2.0 ** (failures - 1))


def patiently(
    call: Callable[[], _Answer],
    patience: Patience,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> _Answer:
    """What `call` answers, tried again as long as its errors are of the kind "unreachable".

    Raises:
        RemoteError: the last one; at once when it is of another kind.
    """
    for failures in range(1, patience.attempts + 1):
        try:
            return call()
        except library_errors() as err:
            found = classify(err)
            if found.kind != "unreachable":
                raise found from err
            if failures == patience.attempts:
                tries = f"after {failures} attempts: " if failures > 1 else ""
                raise RemoteError("unreachable", tries + found.what) from err
            wait = patience.wait_seconds(failures)
            log.debug("%s; attempt %d follows in %.1f s", found.what, failures + 1, wait)
            sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


@lru_cache(maxsize=1)
def library_errors() -> tuple[type[BaseException], ...]:
    """Base classes of what storage libraries raise; botocore's are no OSError.

    Looked up when first needed: to import botocore takes a second.
    """
    found: list[type[BaseException]] = [
        OSError,
        TimeoutError,
        asyncio.TimeoutError,
        http.client.HTTPException,
    ]
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        pass
    else:
        found += [BotoCoreError, ClientError]
    try:
        from aiohttp import ClientError as AiohttpError
    except ImportError:
        pass
    else:
        found.append(AiohttpError)
    try:
        from gcsfs.retry import HttpError
    except ImportError:
        pass
    else:
        found.append(HttpError)
    return tuple(found)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, at most eight deep."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found and len(found) < 8:
        found.append(current)
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return found


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries, wherever its library keeps it."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(status) if status is not None else None
    except (TypeError, ValueError):
        return None


def _word(error: BaseException) -> str:
    """The code of an S3 error answer, or an empty text."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        return str(response["Error"].get("Code", ""))
    return ""


def _is_broken_connection(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError):
        return True
    if isinstance(error, http.client.HTTPException | socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in _BUSY_ERRNO
