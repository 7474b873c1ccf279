"""tf.Example and tf.SequenceExample, read and written without TensorFlow or protobuf.

Only what `tensorflow/core/example/{example,feature}.proto` needs of the wire format. Bytes may
be hostile: every length is checked against what is left, nothing recurses, and the number of
values is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = tuple[bytes, ...] | NDArray[np.float32] | NDArray[np.int64]

MAX_VALUES: Final = 100_000  # of one feature; YouTube-8M has 1024 numbers, 300 frames, 25 labels

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ExampleError(ValueError):
    """The bytes are no tf.Example or tf.SequenceExample; the text says where they go wrong."""


@dataclass(frozen=True)
class Example:
    """Features of one example.

    Attributes:
        context: name to values; all there is of a tf.Example.
        lists: name to one value per time step; empty for a tf.Example.
    """

    context: Mapping[str, Value]
    lists: Mapping[str, Sequence[Value]] = field(default_factory=dict)


def parse_example(data: bytes) -> Example:
    """The features in a serialised tf.Example or tf.SequenceExample.

    The two begin alike; only a SequenceExample has a second field.

    Raises:
        ExampleError: the bytes are something else.
    """
    context: dict[str, Value] = {}
    lists: dict[str, Sequence[Value]] = {}
    for number, value in _messages(memoryview(data)):
        if number == 1:
            context.update((name, _feature(body)) for name, body in _map(value))
        elif number == 2:
            lists.update((name, _feature_list(body)) for name, body in _map(value))
    return Example(context, lists)


def encode_example(example: Example) -> bytes:
    """The serialised tf.SequenceExample, or tf.Example where there are no lists."""
    context = _encode_map({name: _encode_feature(v) for name, v in example.context.items()})
    message = _field(1, context)
    if example.lists:
        steps = {
            name: b"".join(_field(1, _encode_feature(value)) for value in values)
            for name, values in example.lists.items()
        }
        message += _field(2, _encode_map(steps))
    return message


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ExampleError("ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ExampleError("a number of more than ten bytes")


def _wire(data: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Field number, wire type and raw value of each field of one message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ExampleError("a field with the number 0")
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ExampleError(f"wire type {kind}, which nothing here uses")
        if size > len(data) - at:
            raise ExampleError(f"{size} bytes announced, {len(data) - at} left")
        yield number, kind, data[at : at + size]
        at += size


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields that hold bytes; others are unknown to these messages and skipped."""
    for number, kind, value in _wire(data):
        if kind == _BYTES and isinstance(value, memoryview):
            yield number, value


def _map(data: memoryview) -> Iterator[tuple[str, memoryview]]:
    for number, entry in _messages(data):
        if number != 1:
            continue
        key, body = "", memoryview(b"")
        for part, value in _messages(entry):
            if part == 1:
                try:
                    key = str(value, "utf-8")
                except UnicodeDecodeError as err:
                    raise ExampleError("a feature's name is not UTF-8") from err
            elif part == 2:
                body = value
        yield key, body


def _feature_list(data: memoryview) -> tuple[Value, ...]:
    steps: list[Value] = []
    for number, value in _messages(data):
        if number == 1:
            steps.append(_feature(value))
        if len(steps) > MAX_VALUES:
            raise ExampleError(f"more than {MAX_VALUES} time steps")
    return tuple(steps)


def _feature(data: memoryview) -> Value:
    found: Value = ()
    for number, value in _messages(data):
        if number == 1:
            found = tuple(bytes(item) for at, item in _bounded(value) if at == 1)
        elif number == 2:
            found = _floats(value)
        elif number == 3:
            found = _integers(value)
    return found


def _bounded(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    for count, item in enumerate(_messages(data)):
        if count >= MAX_VALUES:
            raise ExampleError(f"more than {MAX_VALUES} values in one feature")
        yield item


def _floats(data: memoryview) -> NDArray[np.float32]:
    # Packed by default; single values in a row are allowed and equally valid.
    pieces = [
        bytes(value)
        for number, kind, value in _wire(data)
        if number == 1 and kind in (_BYTES, _FIXED32) and isinstance(value, memoryview)
    ]
    joined = b"".join(pieces)
    if len(joined) % 4 or len(joined) > 4 * MAX_VALUES:
        raise ExampleError(f"{len(joined)} bytes of floats")
    return np.frombuffer(joined, "<f4").astype(np.float32)


def _integers(data: memoryview) -> NDArray[np.int64]:
    values: list[int] = []
    for number, _, value in _wire(data):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            values.append(one)
            if len(values) > MAX_VALUES:
                raise ExampleError(f"more than {MAX_VALUES} values in one feature")
    return np.array(values, dtype=np.uint64).astype(np.int64)  # two's complement


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, body: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(body)) + body


def _encode_map(entries: Mapping[str, bytes]) -> bytes:
    return b"".join(
        _field(1, _field(1, name.encode()) + _field(2, body)) for name, body in entries.items()
    )


def _encode_feature(value: Value) -> bytes:
    if isinstance(value, tuple):
        return _field(1, b"".join(_field(1, item) for item in value))
    if value.dtype == np.float32:
        return _field(2, _field(1, struct.pack(f"<{len(value)}f", *value.tolist())))
    return _field(3, _field(1, b"".join(_encode_varint(number) for number in value.tolist())))
