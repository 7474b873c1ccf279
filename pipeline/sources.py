"""What is to be tagged, wherever it lies: local files and folders, globs, s3://, gs://,
http(s)://, and manifests that list such names.

The way of an input through a run, on one machine or on a cluster:

    find_sources(names, discovery, manifest=…, shard=…)      vtag.sources        lazily
      -> Source(uri, size, duration, etag, modified)          .path is the record's path
    SourceTagger(pipeline, spool).tag(source) -> Record       vtag.remote_tagger  one per process,
      .tag_unless_done(source, results) -> Record | str       any number of threads; every
                                                              failure is a failed record
    PartWriter(folder, identity).write(record) / .close()     vtag.parts          one per process:
                                                              whole parts under unique names
    read_done(folder, identity) -> DoneIndex                  vtag.parts          what is there:
      .done_as(path, stamp), .done(path, id), .failed(path)                       for an anti-join
    PartResults(folder, identity)                             vtag.parts          both in one, as
                                                              `vtag.run.Results`
    mark_complete(folder, identity, summary_dict)             vtag.parts          the last step
    vtag merge FOLDER --out tags.jsonl                        vtag.merge

`folder` is a URI (s3://, gs://, file://) or a local path. `Source.to_row` and `Source.from_row`
carry a source through tables (a manifest, Ray rows). A source is done when the output has a
record of its path with its stamp (`DoneIndex.done_as(source.path, source.stamp)`); a local
source has no stamp and is known by its content id, which is the hash of its bytes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vtag.discover import MEDIA_SUFFIXES, OTHER_SUFFIXES, Discovery, find_inputs
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.records import SourceFacts
from vtag.shards import Shard
from vtag.uris import Uri, parse

if TYPE_CHECKING:
    from vtag.remote import ObjectStat

_MAGIC: Final = frozenset("*?[")


@dataclass(frozen=True, repr=False)
class Source:
    """One input, before anybody has read it.

    Attributes:
        uri: a local path, or the address as it is fetched. It may carry a signature: show
            `path` instead, as `repr` does.
        size: bytes, where a listing or a manifest told.
        duration: seconds, where a manifest told.
        etag: the storage's word for this content, without quotes.
        modified: seconds since the epoch of its last change.
    """

    uri: str
    size: int | None = None
    duration: float | None = None
    etag: str | None = None
    modified: float | None = None

    def __post_init__(self) -> None:
        parsed = parse(self.uri)
        local = isinstance(parsed, str)
        object.__setattr__(self, "_remote", None if local else parsed)
        object.__setattr__(self, "_path", parsed if isinstance(parsed, str) else parsed.public)

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"Source({self.path!r}, size={self.size}, etag={self.etag!r})"

    @property
    def path(self) -> str:
        """The path of the record: what identifies the input, without what opens it."""
        path: str = self.__dict__["_path"]
        return path

    @property
    def remote(self) -> Uri | None:
        """The object in remote storage; None for a local file."""
        found: Uri | None = self.__dict__["_remote"]
        return found

    @property
    def stamp(self) -> str | None:
        """All that is known of the content without reading it, as one word; None if nothing.

        Never of a local file: its content id is cheap, and says more.
        """
        return None if self.remote is None else self.facts.stamp

    @property
    def facts(self) -> SourceFacts:
        """What the record says of it."""
        return SourceFacts(size=self.size, etag=self.etag, modified=self.modified)

    def to_row(self) -> dict[str, Any]:
        """For a table: the columns of a manifest."""
        return {
            "uri": self.uri,
            "size": self.size,
            "duration": self.duration,
            "etag": self.etag,
            "modified": self.modified,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Source:
        """What `to_row` gave; other columns are passed over.

        Raises:
            ConfigError: there is no uri, its protocol is not spoken, or a number is none.
        """
        uri = row.get("uri")
        if not isinstance(uri, str) or not uri or "\0" in uri:
            raise ConfigError(
                f"a row without a uri (it has {', '.join(map(str, row))[:120] or 'nothing'})"
            )
        size, etag = row.get("size"), row.get("etag")
        if not isinstance(size, int) and not (isinstance(size, str) and size.isdecimal()):
            size = _number(row, "size")  # Parquet and pandas make floats of a column with gaps
        return cls(
            uri=uri,
            size=None if size is None else _not_negative(int(size)),
            duration=_number(row, "duration"),
            etag=str(etag) if etag not in (None, "") else None,
            modified=_number(row, "modified"),
        )


def find_sources(
    names: Sequence[str],
    discovery: Discovery,
    *,
    manifest: str | None = None,
    shard: Shard | None = None,
) -> Iterator[Source]:
    """What is to be tagged, in a stable order, taken from storage only as it is asked for.

    Args:
        names: local folders, files and globs; s3:// and gs:// objects, folders (a name that
            ends in a slash, or below which something is found) and globs; http(s):// objects.
        discovery: counts what was passed over.
        manifest: a table of further names (`vtag.manifest`), each meant literally.
        shard: only this part. Of a manifest by its sizes where it has any, else by names.

    Raises:
        ConfigError: nothing named, a protocol that is not spoken, a damaged manifest.
        EnvironmentProblem: a library is missing, or the storage can not be listed.
    """
    if not names and manifest is None:
        raise ConfigError("nothing to tag: name at least one folder, file or --manifest")
    parsed = [parse(name) for name in names]  # all before the first is read
    several = len(names) + (manifest is not None) > 1 or any(_MAGIC & set(name) for name in names)
    seen: set[str] | None = set() if several else None
    for source in _each(parsed, discovery, manifest, shard):
        if seen is not None:
            if source.path in seen:
                continue
            seen.add(source.path)
        yield source


def _each(
    parsed: Sequence[Uri | str], discovery: Discovery, manifest: str | None, shard: Shard | None
) -> Iterator[Source]:
    for name in parsed:
        if isinstance(name, Uri):
            yield from _remote_sources(name, discovery, shard)
        else:
            yield from _local_sources(name, discovery, shard)
    if manifest is not None:
        from vtag.manifest import Manifest

        yield from Manifest(manifest).sources(shard)


def _local_sources(name: str, discovery: Discovery, shard: Shard | None) -> Iterator[Source]:
    # A name that is there is that file, whatever characters it has. A pattern without a match
    # stays an input: it fails with a record, and not in silence.
    paths = [name]
    if _MAGIC & set(name) and not os.path.lexists(name):
        found = sorted(glob.glob(name, recursive=True), key=os.fsencode)
        paths = [path for path in found if _suffix(path) not in OTHER_SUFFIXES]
        discovery.ignored += len(found) - len(paths)
        paths = paths if found else [name]
    for path in paths:
        for file in find_inputs([path], discovery, shard=shard):
            yield Source(file)


def _remote_sources(uri: Uri, discovery: Discovery, shard: Shard | None) -> Iterator[Source]:
    from vtag.remote_glob import Pattern

    pattern = Pattern(uri)
    if uri.protocol in ("http", "https") or pattern.is_object:
        if shard is None or shard.holds(uri.public):
            yield Source(uri.text)
        return
    some = False
    for found in _listed(uri, pattern.prefix):
        if not pattern.matches(found.key):
            continue
        some = True
        if found.key.endswith("/"):  # what consoles make to show an empty folder
            continue
        suffix = _suffix(found.key)
        # Nothing is opened to look: a name without a usual suffix is for a glob or a manifest.
        if suffix in OTHER_SUFFIXES or not (pattern.is_glob or suffix in MEDIA_SUFFIXES):
            discovery.ignored += 1
            continue
        if shard is None or shard.holds(found.key.removeprefix(pattern.root)):
            yield Source(
                f"{uri.protocol}://{uri.bucket}/{found.key}",
                size=found.size,
                etag=found.etag,
                modified=found.modified,
            )
    if not some and not pattern.is_folder and (shard is None or shard.holds(pattern.name)):
        yield Source(uri.text)  # it fails with a record that names it


def _listed(uri: Uri, prefix: Uri) -> Iterator[ObjectStat]:
    from vtag.remote import store_for
    from vtag.remote_errors import RemoteError

    try:
        yield from store_for(uri).list(prefix)
    except RemoteError as err:
        raise EnvironmentProblem(
            f"{uri.public}: can not be listed: {err.what}; check the name, the credentials of this "
            "machine, and AWS_ENDPOINT_URL_S3 if it is not Amazon's"
        ) from err


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _not_negative(size: int) -> int:
    if size < 0:
        raise ConfigError(f"size is a number of 0 or more, not {size}")
    return size


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(f"{name} is a number of 0 or more, not {value!r:.40}")
    return number
