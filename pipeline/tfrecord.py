"""TFRecord files without TensorFlow: framing and checksums, plain or gzip.

A record is length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, all
little-endian (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vtag.errors import MediaError, OutputError
from vtag.storage import reason, write_whole

# A video of 1000 frames with 1152 bytes each has 1.2 MB; a length beyond this is damage or
# an attempt to make the reader ask for all the memory there is.
MAX_RECORD_BYTES: Final = 64 << 20

_Readable: TypeAlias = BinaryIO | gzip.GzipFile

_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31  # zlib's word for: the largest window, in a gzip wrapper
_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, bit-reversed
_BLOCK: Final = 1024  # bytes that one row of table look-ups covers
_BLOCKS_AT_ONCE: Final = 256  # bounds the temporary arrays to some MB


@dataclass(frozen=True)
class RawRecord:
    """One record as it lies in its file.

    Attributes:
        number: counted from 0.
        offset: of its first byte in a plain file; -1 in a gzip file, which can only be read
            from its beginning.
        data: the payload.
    """

    number: int
    offset: int
    data: bytes


def read_records(path: Path, *, verify: bool = True) -> Iterator[RawRecord]:
    """The records of a file one by one; a gzip file is recognised by its first bytes.

    Args:
        verify: whether checksums are compared. Without it a file reads a little faster, and
            damage becomes wrong numbers.

    Raises:
        MediaError: the file can not be read, is cut off, or a checksum does not fit; names the
            record.
    """
    number = 0
    try:
        with _open(path) as (file, is_plain):
            offset = 0
            while (data := _next(file, path, number, verify)) is not None:
                yield RawRecord(number, offset if is_plain else -1, data)
                offset += len(data) + 16
                number += 1
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        code = "truncated" if isinstance(err, EOFError) else "corrupt"
        raise MediaError(
            f"{path}: record {number}: the gzip stream is damaged ({err}); copy the file again",
            code=code,
        ) from err
    except OSError as err:
        raise _unreadable(path, err) from err


def read_record_at(path: Path, offset: int, *, verify: bool = True) -> bytes:
    """Payload of the record that begins at `offset` of a plain file (`RawRecord.offset`).

    Raises:
        MediaError: there is no whole record at that place.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = _next(file, path, offset, verify, unit="record at byte")
    except OSError as err:
        raise _unreadable(path, err) from err
    if data is None:
        raise MediaError(f"{path}: ends before byte {offset}; it was changed", code="truncated")
    return data


def write_records(path: Path, payloads: Iterable[bytes]) -> int:
    """Writes a TFRecord file, whole or not at all, and gives the number of records.

    A name that ends in `.gz` makes a gzip file.

    Raises:
        OutputError: the file can not be written.
    """
    count = 0

    def framed() -> Iterator[bytes]:
        nonlocal count
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            yield length + struct.pack("<I", masked_crc32c(length))
            yield payload
            yield struct.pack("<I", masked_crc32c(payload))
            count += 1

    try:
        data = _gzipped(framed()) if path.suffix == ".gz" else framed()
        write_whole(path, data, mode=None, through_symlink=True)
    except OSError as err:
        raise OutputError(f"{path}: can not be written ({reason(err)})") from err
    return count


def masked_crc32c(data: bytes) -> int:
    """CRC-32C of the bytes, rotated and shifted as TFRecord stores it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of the bytes; `crc32c(b"123456789")` is 0xE3069283.

    The register is linear over XOR, so a block's effect is the XOR of the effects that each of
    its bytes would have alone: one table per place in the block, all looked up at once.
    """
    if len(data) < 64:
        return _crc32c_bytewise(data)
    # The start value of all ones is the same as flipping the first four bytes, and bytes of
    # zero in front change nothing while the register is zero.
    values = np.zeros(-(-len(data) // _BLOCK) * _BLOCK, np.uint8)
    first = len(values) - len(data)
    values[first:] = np.frombuffer(data, np.uint8)
    values[first : first + 4] ^= 0xFF
    blocks = values.reshape(-1, _BLOCK)
    register = 0
    for at in range(0, len(blocks), _BLOCKS_AT_ONCE):
        effects = np.bitwise_xor.reduce(
            _PLACES.take(_PLACE_STARTS + blocks[at : at + _BLOCKS_AT_ONCE]), axis=1
        )
        for effect in effects.tolist():
            register = effect ^ _after_block(register)
    return register ^ 0xFFFFFFFF


def _byte_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


def _place_tables(bytes_after: int) -> NDArray[np.uint32]:
    """Effect of byte b followed by n zero bytes, uint32 [bytes_after + 1, 256], n downwards."""
    step = _byte_table()
    rows = [step]
    for _ in range(bytes_after):
        rows.append((rows[-1] >> 8) ^ step[rows[-1] & 0xFF])
    return np.stack(rows[::-1])


# The last four rows of a longer table are dropped: a register of four bytes in front of a block.
_ALL_PLACES: Final = _place_tables(_BLOCK + 3)
_PLACES: Final = np.ascontiguousarray(_ALL_PLACES[4:]).ravel()
_PLACE_STARTS: Final = np.arange(_BLOCK, dtype=np.intp) * 256
_BYTE_TABLE: Final[list[int]] = _ALL_PLACES[-1].tolist()
_REGISTER_TABLES: Final[list[list[int]]] = _ALL_PLACES[4:8].tolist()


def _after_block(register: int) -> int:
    """What a register becomes over a block of zero bytes."""
    # The register acts as if it were XORed into the first four bytes of the block.
    a, b, c, d = _REGISTER_TABLES
    return (
        a[register & 0xFF]
        ^ b[(register >> 8) & 0xFF]
        ^ c[(register >> 16) & 0xFF]
        ^ d[register >> 24]
    )


def _crc32c_bytewise(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register = (register >> 8) ^ _BYTE_TABLE[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


@contextmanager
def _open(path: Path) -> Iterator[tuple[_Readable, bool]]:
    """The file as a stream of uncompressed bytes, and whether it is plain."""
    with path.open("rb") as raw:
        is_plain = raw.read(2) != _GZIP_MAGIC
        raw.seek(0)
        if is_plain:
            yield raw, True
        else:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked, False


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    # No name and no date in the head: the same records always give the same bytes.
    packer = zlib.compressobj(wbits=_GZIP_WBITS)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def _next(
    file: _Readable, path: Path, number: int, verify: bool, unit: str = "record"
) -> bytes | None:
    where = f"{path}: {unit} {number}"
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        raise MediaError(f"{where}: the file ends within it; copy it again", code="truncated")
    length, length_crc = struct.unpack("<QI", head)
    if verify and masked_crc32c(head[:8]) != length_crc:
        raise MediaError(
            f"{where}: the checksum of its length is wrong; not a TFRecord file, or damaged",
            code="corrupt",
        )
    if length > MAX_RECORD_BYTES:
        raise MediaError(
            f"{where}: {length} bytes are over the limit of {MAX_RECORD_BYTES}", code="too_large"
        )
    body = file.read(length + 4)
    if len(body) < length + 4:
        raise MediaError(f"{where}: the file ends within it; copy it again", code="truncated")
    data = body[:-4]
    if verify and masked_crc32c(data) != struct.unpack("<I", body[-4:])[0]:
        raise MediaError(f"{where}: the checksum of its data is wrong; damaged", code="corrupt")
    return data


def _unreadable(path: Path, err: OSError) -> MediaError:
    code = "vanished" if isinstance(err, FileNotFoundError) else "unreadable"
    return MediaError(f"{path}: can not be read ({err.strerror})", code=code)
