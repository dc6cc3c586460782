"""`tf.train.Example`, read without TensorFlow.

A protocol buffer, https://protobuf.dev/programming-guides/encoding/, of a map of names to lists of
bytes, floats or integers (tensorflow/core/example/example.proto and feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TypeAlias

Feature: TypeAlias = "list[bytes] | list[float] | list[int]"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FEATURES, _MAP_ENTRY, _KEY, _VALUE, _LIST_ITEM = 1, 1, 1, 2, 1
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_MAX_SHIFT = 63


def read_example(record: bytes) -> Mapping[str, Feature]:
    """Read the features of one example, by name.

    Raises
    ------
    ValueError
        If the bytes are none.
    """
    found: dict[str, Feature] = {}
    for number, features in _fields(memoryview(record)):
        if number == _FEATURES:
            for entry_number, entry in _fields(_message(features)):
                if entry_number == _MAP_ENTRY:
                    parts = dict(_fields(_message(entry)))
                    name = bytes(_message(parts.get(_KEY, b""))).decode("utf-8")
                    found[name] = _feature(_message(parts.get(_VALUE, b"")))
    return found


def _feature(message: memoryview) -> Feature:
    for number, content in _fields(message):
        values = [value for item, value in _fields(_message(content)) if item == _LIST_ITEM]
        if number == _BYTES_LIST:
            return [bytes(_message(value)) for value in values]
        if number == _FLOAT_LIST:
            return [one for value in values for one in _floats(value)]
        if number == _INT64_LIST:
            return [one for value in values for one in _integers(value)]
    return []


def _floats(value: int | memoryview) -> Iterator[float]:
    """Several of them packed, or one as its four bytes."""
    for (number,) in struct.iter_unpack("<f", _message(value)):
        yield float(number)


def _integers(value: int | memoryview) -> Iterator[int]:
    if isinstance(value, int):
        yield _signed(value)
        return
    place = 0
    while place < len(value):
        number, place = _varint(value, place)
        yield _signed(number)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _message(value: int | bytes | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return memoryview(value)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Go through a message: the number of each field, and a number or bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(message, place)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the wire type {kind}")
        if place + length > len(message):
            raise ValueError("a field that is longer than its message")
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Read seven bits from each byte, the lowest first; and say where the next field begins."""
    number = shift = 0
    while place < len(message) and shift <= _MAX_SHIFT:
        byte = message[place]
        number |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return number & (2**64 - 1), place
        shift += 7
    raise ValueError("a number without an end")
