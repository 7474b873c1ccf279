"""What a name of an input means: a local path, or an object of one of a few kinds of storage.

Only the protocols of `PROTOCOLS` are spoken. fsspec knows many more (`zip://a::s3://b`,
`filecache::`, `reference::`, `memory:`); a list of inputs must not reach for them.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import Final

from vtag.errors import ConfigError

REMOTE: Final = ("s3", "gs", "http", "https")
PROTOCOLS: Final = ("file", *REMOTE)
_ALIASES: Final = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}

# Two letters at least: "C:" is a disk. Anything else before "://" or "::" is meant as a protocol.
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CHAIN: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*::")

# Parameters that sign or open an address: of AWS, Google, Azure, CloudFront, and usual names.
_SECRET_PARAMETER: Final = re.compile(
    r"(?i)^(x-amz-.*|x-goog-.*|x-oss-.*|aws.*|google.*|key-pair-id|policy|expires?|exp|signature"
    r"|sig|se|sp|sv|sr|st|ss|srt|spr|skoid|sktid|skt|ske|sks|skv|.*(token|secret|passw|auth"
    r"|credential|signature|session|api_?key|access_?key|hmac|jwt).*|key|hash|hdnea|hdnts)$"
)
# What looks drawn at random is taken for a secret whatever its name.
_SECRET_VALUE: Final = re.compile(r"[A-Za-z0-9+/_=.%-]{40,}")
_ADDRESS_IN_TEXT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


@dataclass(frozen=True)
class Uri:
    """An object in remote storage.

    Attributes:
        protocol: one of `REMOTE`.
        text: as it is fetched, with whatever it carries of keys. Never shown: `repr` and `str`
            give `public`.
        public: the same without what opens it, and still naming the object: user, password and
            signing parameters are gone. The path of the record.
    """

    protocol: str
    text: str
    public: str

    def __repr__(self) -> str:
        return self.public

    @property
    def bucket(self) -> str:
        """The bucket, or the host of an http address."""
        return self.text.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """What follows the bucket, without the slash."""
        return self.text.partition("://")[2].partition("/")[2]


def parse(text: str) -> Uri | str:
    """A remote object, or a local path as a plain string.

    `file:///a/b` is the local path /a/b.

    Raises:
        ConfigError: another protocol, a chain of them, or no bucket or host.
    """
    if _CHAIN.match(text) and "://" in text:
        raise ConfigError(f"{redact(text)}: chains of protocols are not read; name the object")
    found = _SCHEME.match(text)
    if found is None:
        return text
    protocol = _ALIASES.get(found.group(1).lower(), found.group(1).lower())
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"{redact(text)}: {protocol} is not spoken; there are {', '.join(PROTOCOLS)} "
            f"(write ./{protocol}:… for a local file of that name)"
        )
    rest = text[found.end() :]
    if protocol == "file":
        return _local(rest, text)
    if re.search(r"::[A-Za-z][A-Za-z0-9+.-]*://", rest):
        raise ConfigError(f"{redact(text)}: chains of protocols are not read; name the object")
    if protocol in ("s3", "gs"):
        bucket, _, _ = rest.partition("/")
        if "@" in bucket:
            raise ConfigError(
                f"{redact(text)}: keys do not belong into an address; put them into the "
                "environment or the provider's own file"
            )
        if not bucket:
            raise ConfigError(f"{text}: names no bucket")
        return Uri(protocol, f"{protocol}://{rest}", f"{protocol}://{rest}")
    if not urllib.parse.urlsplit(text).hostname:
        raise ConfigError(f"{redact(text)}: names no host")
    whole = f"{protocol}://{rest}".partition("#")[0]
    return Uri(protocol, whole, redact(whole))


def is_remote(text: str) -> bool:
    """Whether this names an object in remote storage; raises ConfigError like `parse`."""
    return isinstance(parse(text), Uri)


def redact(text: str) -> str:
    """An address without user, password, and parameters that sign it or look like keys.

    The parameters go with their names, so that an address that is signed anew tomorrow is still
    the same input.
    """
    head, mark, rest = text.partition("://")
    if not mark:
        return text
    authority, slash, tail = rest.partition("/")
    _, at, host = authority.rpartition("@")
    if at:
        authority = host
    if head.lower() not in ("http", "https"):  # there a question mark is part of the key
        return f"{head}://{authority}{slash}{tail}"
    path, _, query = f"{authority}{slash}{tail}".partition("#")[0].partition("?")
    kept = [part for part in query.split("&") if part and not _is_secret(part)]
    return f"{head}://{path}" + (f"?{'&'.join(kept)}" if kept else "")


def redact_all(text: str) -> str:
    """A message of somebody else's, with every address in it redacted."""
    return _ADDRESS_IN_TEXT.sub(lambda found: redact(found.group(0)), text)


def _is_secret(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return bool(
        _SECRET_PARAMETER.match(urllib.parse.unquote(name)) or _SECRET_VALUE.fullmatch(value)
    )


def _local(rest: str, text: str) -> str:
    host, slash, _ = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"{text}: a local file is written file:///folder/name")
    return urllib.parse.unquote(rest[len(host) :], errors="surrogateescape")
