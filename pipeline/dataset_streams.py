"""Rows of a clip that the user brings in files: embeddings of its text, rows of another network.

A table names them in columns such as `features.text`: a .npy or .npz file with one row [D] or
several [T, D]. Nothing in such a file is run, and no more of it is read than fits.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from vtag.dataset_items import DatasetError, Item
from vtag.records import MADE_BY_FILE, Features

MAX_BYTES: Final = 256 << 20  # of one file's rows: 20 minutes at 50 rows a second of 1024 float32
_ROW_SECONDS: Final = 1.0  # apart; nothing reads the times of such rows, they only have to rise

_Header = tuple[tuple[int, ...], bool, "np.dtype[Any]"]
_HEADERS: Final[Mapping[tuple[int, int], Callable[[IO[bytes]], _Header]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGE: Final = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    RuntimeError,  # an encrypted archive, or brackets without end
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


def read_rows(file: Path, stream: str) -> NDArray[np.float16]:
    """The rows of a .npy or .npz file, float16 [T, D], finite.

    Args:
        stream: names the array where an archive holds several.

    Raises:
        ValueError: there is no such file, or it holds anything else; one line with the path.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        if file.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive, archive.open(_member(archive, stream)) as data:
                return _half(_array(data))
        with file.open("rb") as data:
            return _half(_array(data))
    except _DAMAGE as err:
        reason = next(iter(str(err).splitlines()), "") or type(err).__name__
        raise ValueError(f"{file}: can not be used as {stream} rows ({reason})") from err


def file_features(item: Item) -> dict[str, Features]:
    """The rows of a clip that lie in files, by stream.

    Raises:
        DatasetError: a file is gone or was changed since it was checked.
    """
    found = {}
    for stream, file in item.features.items():
        try:
            rows = read_rows(file, stream)
        except ValueError as err:
            raise DatasetError([f"{item.where}: {err}"]) from err
        seconds = np.arange(len(rows), dtype=np.float64) * _ROW_SECONDS
        found[stream] = Features(rows, seconds, f"{MADE_BY_FILE}{stream}")
    return found


def with_streams(items: Sequence[Item], wanted: Collection[str]) -> tuple[Item, ...]:
    """The items without those files whose streams are not wanted."""
    return tuple(
        replace(item, features={s: file for s, file in item.features.items() if s in wanted})
        for item in items
    )


def check_fit(dims: Mapping[str, int], model: Mapping[str, int], name: str) -> None:
    """Returns when a model has a place for these streams from files.

    Args:
        dims: row size of each stream of the clips.
        model: those of the model called `name`.

    Raises:
        DatasetError: a stream that it does not read, or rows of another size; lists all.
    """
    problems = [
        f"the clips have {stream} rows of {dim} columns, the model {name!r} reads "
        + (f"{model[stream]}" if stream in model else f"no {stream} rows")
        for stream, dim in dims.items()
        if model.get(stream) != dim
    ]
    if problems:
        raise DatasetError(problems)


def check_file_streams(items: Sequence[Item]) -> dict[str, int]:
    """Row size D of each stream that comes from files; every file is read once.

    Raises:
        DatasetError: files that are missing, hold no rows, NaN, or rows of another size than
            most; lists all.
    """
    problems: list[str] = []
    found: dict[str, list[tuple[Item, int]]] = defaultdict(list)
    for item in items:
        for stream, file in item.features.items():
            try:
                found[stream].append((item, read_rows(file, stream).shape[1]))
            except ValueError as err:
                problems.append(f"{item.where}: {err}")
    dims = {
        stream: Counter(dim for _, dim in sizes).most_common(1)[0][0]
        for stream, sizes in sorted(found.items())
    }
    problems += [
        f"{item.where}: {item.features[stream]}: {stream} rows have {dim} columns, "
        f"most have {dims[stream]}"
        for stream, sizes in found.items()
        for item, dim in sizes
        if dim != dims[stream]
    ]
    if problems:
        raise DatasetError(problems)
    return dims


def _member(archive: zipfile.ZipFile, stream: str) -> zipfile.ZipInfo:
    """The array of the stream's name, or the only one."""
    arrays = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if stream in arrays:
        return arrays[stream]
    if len(arrays) != 1:
        names = ", ".join(sorted(arrays)[:5]) or "none"
        raise ValueError(f"needs an array named {stream!r}, or one only; it holds {names}")
    return next(iter(arrays.values()))


def _array(data: IO[bytes]) -> NDArray[Any]:
    """The numbers of a .npy file [D] or [T, D]; ValueError for anything else.

    Not np.load: what a header promises is looked at before memory is taken for it.
    """
    version = np.lib.format.read_magic(data)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = _HEADERS[version](data)
    if dtype.kind not in "fiu":
        raise ValueError(f"numbers are needed, it holds {dtype}")
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise ValueError(f"one row [D] or several [T, D] are needed, it holds {list(shape)}")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise ValueError(f"{size >> 20} MiB of rows, at most {MAX_BYTES >> 20} can be read")
    content = data.read(size)
    if len(content) != size:
        raise ValueError("it ends too early")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _half(values: NDArray[Any]) -> NDArray[np.float16]:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(np.atleast_2d(values), dtype=np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"it holds values beyond {np.finfo(np.float16).max:.0f}; scale all such files alike"
        )
    return half
