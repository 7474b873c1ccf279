"""Everything that vtag raises on purpose.

    VtagError
    ├── MediaError        one input can not be used: becomes a failed record, the run goes on
    ├── ConfigError       a setting makes no sense                          (exit status 2)
    └── EnvironmentProblem   the machine lacks something                    (exit status 3)
        ├── WeightsError     weights or a model are missing, damaged or do not fit
        ├── CacheError       the feature cache can not be used
        └── OutputError      the results can not be written

Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


class VtagError(Exception):
    """Base class of all errors that vtag raises on purpose; the text is one line."""


class ConfigError(VtagError):
    """A setting or an argument makes no sense; nothing was started."""


class EnvironmentProblem(VtagError):
    """The machine lacks something that was asked for: a device, a file, space."""


class WeightsError(EnvironmentProblem):
    """Weights or a model folder are missing, damaged, or do not fit what they are used with."""


class CacheError(EnvironmentProblem):
    """The feature cache can not be opened or is damaged beyond one entry."""


class OutputError(EnvironmentProblem):
    """The results can not be written: disk full, no permission, held by another run."""


@dataclass(frozen=True)
class ErrorCode:
    """What a failure means and what the owner of the file can do about it."""

    meaning: str
    remedy: str
    retryable: bool = False


ERROR_CODES: Final[dict[str, ErrorCode]] = {
    "not_media": ErrorCode(
        "the first bytes are not those of a video or sound file that vtag reads",
        "check what the file really is; playlists and scripts are refused on purpose",
    ),
    "empty": ErrorCode("the file has no bytes", "copy it again from its source"),
    "not_a_file": ErrorCode(
        "the path is a folder, a pipe, a socket or a device", "name a regular file"
    ),
    "vanished": ErrorCode("the file was gone when its turn came", "run again", retryable=True),
    "unreadable": ErrorCode(
        "the file exists but can not be read", "check its permissions and the disk", retryable=True
    ),
    "changed_during_read": ErrorCode(
        "the file was written to while it was read",
        "run again when it is complete",
        retryable=True,
    ),
    "no_video_no_audio": ErrorCode(
        "the container holds neither a video nor a sound stream", "nothing to tag here"
    ),
    "no_usable_stream": ErrorCode(
        "the model reads none of the streams that the file has",
        "use a model that listens (sound only) or looks (pictures only)",
    ),
    "unsupported_codec": ErrorCode(
        "no decoder for this codec is in the installed FFmpeg",
        "convert the file, for example to H.264 and AAC",
    ),
    "encrypted": ErrorCode("the streams are encrypted", "decrypt the file with its key first"),
    "truncated": ErrorCode(
        "the file ends before anything could be decoded", "copy it again from its source"
    ),
    "corrupt": ErrorCode(
        "nothing could be decoded from the damaged data", "copy it again, or repair it with ffmpeg"
    ),
    "too_large": ErrorCode(
        "the file, the picture, the duration or the number of streams is over the limit",
        "convert the file to a smaller size",
    ),
    "decode_timeout": ErrorCode(
        "no decoder finished within the deadline",
        "run again with --retry-failed on a quieter machine, or convert the file",
        retryable=True,
    ),
    "decoder_crashed": ErrorCode(
        "every decoder died on this file", "convert the file with ffmpeg", retryable=True
    ),
    "decoder_misbehaved": ErrorCode(
        "a decoder gave an answer that can not be true", "convert the file with ffmpeg"
    ),
    "oom": ErrorCode(
        "decoding needed more memory than allowed",
        "run again with a smaller --max-frames, or convert the file to a smaller picture",
        retryable=True,
    ),
    "worker_lost": ErrorCode(
        "on a cluster: worker after worker ended while it had this file",
        "run again with --retry-failed; if it stays, try the file with --engine local",
        retryable=True,
    ),
    "worker_error": ErrorCode(
        "on a cluster: the worker failed for a reason that is none of the file's",
        "read the message, mend the machine or report the bug, then run with --retry-failed",
        retryable=True,
    ),
    "source_not_found": ErrorCode(
        "the storage has no such object", "check the name, or whether it was deleted"
    ),
    "source_denied": ErrorCode(
        "the storage does not give the object to this machine, or refuses the question",
        "check the credentials of this machine, the rights on the object and its address",
    ),
    "source_unreachable": ErrorCode(
        "the storage failed, was too slow or broke off, again and again",
        "run again with --retry-failed",
        retryable=True,
    ),
    "source_too_large": ErrorCode(
        "the object is larger than --max-object-size or the whole spool",
        "raise --max-object-size and --spool-size",
    ),
    "source_changed": ErrorCode(
        "the object was replaced while it was read, twice in a row",
        "run again when it is complete",
        retryable=True,
    ),
}


class MediaError(VtagError):
    """One input can not be used.

    Attributes:
        code: key of `ERROR_CODES`, stable across versions.
        stage: where it was found: "open", "probe", "video" or "audio".
        retryable: whether the same file may work another time.
    """

    def __init__(self, message: str, *, code: str, stage: str = "open") -> None:
        if code not in ERROR_CODES:
            raise ValueError(f"no error code {code!r}; there are: {', '.join(ERROR_CODES)}")
        super().__init__(message)
        self.code = code
        self.stage = stage
        self.retryable = ERROR_CODES[code].retryable
