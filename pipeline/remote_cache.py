"""The feature cache in remote storage: the same entries as objects, shared by many machines."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

from vtag.cache import BadEntry, CacheEntry, CacheInfo, FeatureCache, default_cache_folder
from vtag.cache_entry import OtherVersion, decode, encode
from vtag.content_id import ContentIds
from vtag.errors import CacheError, ConfigError
from vtag.remote import RemoteSettings
from vtag.remote_folder import open_folder

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


class RemoteFeatureCache(FeatureCache):
    """A FeatureCache whose entries are objects below an s3:// or gs:// address.

    An entry is one whole object under a name made of its content, so any number of writers
    are safe without locks: two that store the same key store the same rows. An entry that can
    not be read is a miss; one that is damaged is a miss and replaced by the next writer. Nothing
    is ever removed from here: a bucket has rules of its own for what is old.

    Args:
        where: the address.
        read_only: store nothing.
    """

    def __init__(
        self, where: str, *, read_only: bool = False, settings: RemoteSettings | None = None
    ) -> None:
        # Content ids are remembered on the local disk too: asking that is free.
        super().__init__(default_cache_folder(), read_only=read_only)
        self.where = open_folder(where, settings)
        self._said = threading.Event()

    def get(self, key: str) -> CacheEntry | None:
        """The entry that was stored under `key`; None if there is none that is whole."""
        name = self._name(key)
        try:
            return decode(key, self.where.read(name))
        except FileNotFoundError:
            return None
        except OSError as err:
            if not self._said.is_set():
                self._said.set()
                log.warning("%s: can not be read (%s); computed again", self.where.name, err)
        except OtherVersion as err:
            log.debug("%s/%s: %s", self.where.name, name, err)
        except ValueError as err:
            log.warning("%s/%s: damaged (%s); computed again", self.where.name, name, err)
        return None

    def put(self, key: str, entry: CacheEntry) -> None:
        """Stores the entry as one object. Does nothing if read only.

        Raises:
            CacheError: it could not be stored.
        """
        if self.read_only:
            return
        try:
            self.where.put(self._name(key), encode(key, entry))
        except (OSError, ValueError) as err:
            raise CacheError(
                f"{self.where.name}: features can not be stored ({err}); check the credentials, or "
                "choose another place with --cache"
            ) from err

    def content_id_of(self, name: str, stamp: str) -> str | None:
        """The content id that another machine stored for a remote object under this stamp."""
        try:
            found = self.where.read(_id_name(name, stamp)).decode("ascii", "replace")
        except OSError:
            return None
        return found if ContentIds.fits(found) else None

    def keep_content_id(self, name: str, stamp: str, content_id: str) -> None:
        """Stores the content id of a remote object, as far as that is possible."""
        if self.read_only:
            return
        try:
            self.where.put(_id_name(name, stamp), content_id.encode())
        except OSError as err:
            log.debug("%s: %s", self.where.name, err)

    def info(self) -> CacheInfo:
        """How many entries there are, and their size: a listing of all."""
        found = [stat for stat in self.where.list("") if stat.key.endswith(_SUFFIX)]
        oldest = min((stat.modified for stat in found if stat.modified is not None), default=None)
        size = sum(stat.size or 0 for stat in found)
        return CacheInfo(Path(self.where.name), len(found), size, oldest)

    def verify(self, *, remove: bool = False) -> list[BadEntry]:
        """Reads every entry; the ones that are not what was stored, removed if asked."""
        bad = []
        for stat in self.where.list(""):
            name = stat.key
            if not name.endswith(_SUFFIX):
                continue
            try:
                decode(name.rpartition("/")[2].removesuffix(_SUFFIX), self.where.read(name))
            except (FileNotFoundError, OtherVersion):
                continue
            except ValueError as err:
                bad.append(BadEntry(Path(f"{self.where.name}/{name}"), str(err)))
                if remove:
                    self.where.delete(name)
        return bad

    def prune(
        self, max_bytes: int | None = None, *, older_than_seconds: float | None = None
    ) -> int:
        """Refused: which object was used when is not known.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self.where.name}: a cache in remote storage is pruned by the storage's own rules "
            "for old objects"
        )

    def clear(self) -> int:
        """Refused, like `prune`: other machines are at work on it.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.where.name}: remove it with the storage's own tools")

    @staticmethod
    def _name(key: str) -> str:
        return f"{key[:2]}/{key}{_SUFFIX}"


class SharedIds:
    """Content ids of remote objects: known here, or to any machine that shares the cache."""

    def __init__(self, local: ContentIds, shared: RemoteFeatureCache) -> None:
        self._local = local
        self._shared = shared

    def recall(self, name: str, stamp: str) -> str | None:
        """The content id of an object under this stamp; None if nobody knows it."""
        found = self._local.recall(name, stamp)
        if found is None:
            found = self._shared.content_id_of(name, stamp)
            if found is not None:
                self._local.remember(name, stamp, found)
        return found

    def remember(self, name: str, stamp: str, content_id: str) -> None:
        """Keeps it here and there."""
        self._local.remember(name, stamp, content_id)
        self._shared.keep_content_id(name, stamp, content_id)


def _id_name(name: str, stamp: str) -> str:
    digest = hashlib.sha256(b"\0".join([name.encode("utf-8", "surrogatepass"), stamp.encode()]))
    return f"ids/{digest.hexdigest()[:2]}/{digest.hexdigest()}"
