"""Which objects a name with or without wildcards means: the folder to list, and who fits."""

from __future__ import annotations

import os
import re
from typing import Final

from vtag.discover import MEDIA_SUFFIXES
from vtag.errors import ConfigError
from vtag.uris import Uri

_MAGIC: Final = re.compile(r"[*?\[]")


class Pattern:
    """The meaning of one s3:// or gs:// name of the command line.

    `s3://b/videos/` and `s3://b` are folders, `s3://b/a.mp4` is an object by its suffix, and
    `s3://b/videos` is a folder if something lies below it. In `s3://b/2024-*/**/*.mp4` a star
    and a question mark stay within a folder, two stars go through any number of them.

    Attributes:
        is_object: it is one object, without asking the storage.
        is_glob: it has wildcards.
        is_folder: it says itself that it is a folder.
        prefix: what the storage is asked to list.
        root: the part of a key before the name that a shard is decided by.
        name: what a shard is decided by where nothing was found.
    """

    def __init__(self, uri: Uri) -> None:
        key = uri.key
        found = _MAGIC.search(key)
        self.is_glob = found is not None
        self.is_folder = not self.is_glob and (key == "" or key.endswith("/"))
        suffix = os.path.splitext(key)[1].lower()
        self.is_object = not self.is_glob and not self.is_folder and suffix in MEDIA_SUFFIXES
        before = key[: found.start()] if found else key
        self.prefix = _at(uri, before)
        self.root = before.rpartition("/")[0] + "/" if "/" in before else ""
        if not self.is_glob:
            self.root = key if self.is_folder else key + "/"
        self.name = key.rpartition("/")[2]
        try:
            self._wanted = re.compile(_expression(key), re.DOTALL) if self.is_glob else None
        except re.error as err:
            raise ConfigError(f"{uri.public}: not a pattern ({err})") from err
        self._key = key

    def matches(self, key: str) -> bool:
        """Whether an object of the listing is meant."""
        if self._wanted is not None:
            return self._wanted.fullmatch(key) is not None
        # A listing of "videos" has "videos-old/a.mp4" too.
        return self.is_folder or key == self._key or key.startswith(self._key + "/")


def _at(uri: Uri, key: str) -> Uri:
    text = f"{uri.protocol}://{uri.bucket}/{key}"
    return Uri(uri.protocol, text, text)


def _expression(pattern: str) -> str:
    """A regular expression for whole keys."""
    parts: list[str] = []
    place = 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            parts.append("(?:.*/)?")
            place += 3
        elif pattern.startswith("**", place):
            parts.append(".*")
            place += 2
        elif pattern[place] == "*":
            parts.append("[^/]*")
            place += 1
        elif pattern[place] == "?":
            parts.append("[^/]")
            place += 1
        elif pattern[place] == "[" and "]" in pattern[place + 2 :]:
            end = pattern.index("]", place + 2)
            inside = pattern[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            inside = f"^{inside[1:]}" if inside.startswith("!") else inside.replace("^", "\\^", 1)
            parts.append(f"[{inside}]")
            place = end + 1
        else:
            parts.append(re.escape(pattern[place]))
            place += 1
    return "".join(parts)
