"""What an `.skops` file holds, as plain values: no type that it names is imported or made.

skops writes a tree of nodes, `schema.json`, and an `.npy` file for each array. Of its kinds of
nodes these are the ones that a fitted machine takes; whatever else a file holds is refused by name.
https://skops.readthedocs.io/en/stable/persistence.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypeAlias, TypedDict

import numpy as np

from cnnfeat.archives import Archive
from cnnfeat.documents import Name, parse_document, parse_value, take_up
from cnnfeat.npyheader import read_npy_header
from cnnfeat.records import Array, Json

SCHEMA = "schema.json"
_KEYS = {"builtins.str": str, "builtins.int": int}
# A number as NumPy has it is kept as an array.
_NUMBERS = {f"numpy.{np.dtype(code).type.__name__}" for code in "?bhilqBHILQfd"}

Value: TypeAlias = (
    "bool | int | float | str | list[Value] | tuple[Value, ...] | dict[str | int, Value]"
    " | Array | Stored | None"
)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it lies in the file."""

    kind: str  # "sklearn.svm._classes.LinearSVC"
    attributes: Mapping[str, Value]


_Node = TypedDict(
    "_Node",
    {
        "__loader__": Name,
        "__module__": Name,
        "__class__": Name,
        "content": NotRequired[object],
        "key_types": NotRequired[object],  # of a dictionary
        "type": NotRequired[Name],  # of an array
        "file": NotRequired[Name],
    },
)


class UntrustedTypesError(ValueError):
    """A file holds what is no part of a machine.

    Parameters
    ----------
    kinds : collection of str
        Whole names: "posix.system".
    """

    def __init__(self, kinds: Collection[str]) -> None:
        super().__init__(", ".join(sorted(kinds)))


def read_values(archive: Archive, *, trusted: Collection[str]) -> Value:
    """Read what was saved.

    Parameters
    ----------
    archive : Archive
        The file.
    trusted : collection of str
        Whole names of the classes whose objects it may hold.

    Raises
    ------
    ArchiveError
        If it is damaged.
    UntrustedTypesError
        If it holds anything else.
    ValueError
        If it is none that skops has written.
    """
    tree = _Tree(archive, trusted)
    value = tree.value(parse_document(archive.read(SCHEMA)), "schema")
    if tree.untrusted:
        raise UntrustedTypesError(tree.untrusted)
    if more := archive.names - tree.arrays.keys() - {SCHEMA}:
        raise ValueError(f"it holds {min(more)!r}, which is no part of what was saved")
    return value


def as_json(value: Value, at: str) -> Json:
    """Give back what JSON can hold, and nothing else.

    Raises
    ------
    ValueError
        If there is anything else in it; with its place.
    """
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{at} has the key {key!r:.60}, which is no text")
        return {str(key): as_json(item, f"{at}.{key:.60}") for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item, f"{at}[{place}]") for place, item in enumerate(value)]
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError(f"{at} must be a plain value, not {value!r:.60}")
    return value


@dataclass(slots=True)
class _Tree:
    """Goes through the nodes; each array is read once, however often it is named."""

    archive: Archive
    trusted: Collection[str]
    untrusted: set[str] = field(default_factory=set)
    arrays: dict[str, Array] = field(default_factory=dict)

    def value(self, document: object, at: str) -> Value:
        """What a node stands for."""
        if not isinstance(document, dict):
            raise ValueError(f"{at} is no node of skops: {document!r:.60}")
        node = take_up(_Node, document, at=at)
        kind = f"{node['__module__']}.{node['__class__']}"
        value: Value = None
        match node["__loader__"], kind:
            case "JsonNode", _:
                value = _plain(node, at)
            case "DictNode", "builtins.dict":
                value = self._dictionary(node, at)
            case "ListNode", "builtins.list":
                value = self._items(node, at)
            case "TupleNode", "builtins.tuple":
                value = tuple(self._items(node, at))
            case "NdArrayNode", "numpy.ndarray":
                value = self._array(node, at)
            case "NdArrayNode", _ if kind in _NUMBERS:
                value = _only(self._array(node, at), at)
            case "ObjectNode", _ if kind in self.trusted:
                value = self._object(node, kind, at)
            case _:
                self.untrusted.add(kind)
                for child in _nodes_in(document):  # to name what it would run, too
                    self.value(child, at)
        return value

    def _object(self, node: _Node, kind: str, at: str) -> Stored:
        attributes = self.value(node.get("content"), at)
        if not isinstance(attributes, dict):
            raise ValueError(f"{at} has no attributes")
        return Stored(kind, {str(name): one for name, one in attributes.items()})

    def _items(self, node: _Node, at: str) -> list[Value]:
        content = node.get("content")
        if not isinstance(content, list):
            raise ValueError(f"{at} is no list")
        return [self.value(item, f"{at}[{place}]") for place, item in enumerate(content)]

    def _dictionary(self, node: _Node, at: str) -> dict[str | int, Value]:
        content, kinds = node.get("content"), _key_types(node, at)
        if not isinstance(content, dict) or len(content) != len(kinds):
            raise ValueError(f"{at} is no dictionary of {len(kinds)} keys")
        return {
            kind(key): self.value(item, f"{at}.{key:.60}")
            for kind, (key, item) in zip(kinds, content.items(), strict=True)
        }

    def _array(self, node: _Node, at: str) -> Array:
        name = node.get("file")
        if node.get("type") != "numpy" or name is None or name not in self.archive.names:
            raise ValueError(f"{at} is an array without its file")
        if name not in self.arrays:
            self.arrays[name] = _read_array(self.archive, name)
        return self.arrays[name]


def _nodes_in(document: dict[str, object]) -> Iterator[object]:
    """The nodes right below one, wherever they lie in it."""
    waiting = [item for name, item in document.items() if name != "key_types"]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict) and "__loader__" in item:
            yield item
        elif isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item


def _plain(node: _Node, at: str) -> Value:
    text = node.get("content")
    value = parse_value(text) if isinstance(text, str) else text
    if not isinstance(text, str) or not isinstance(value, bool | int | float | str | None):
        raise ValueError(f"{at} is no plain value: {text!r:.60}")
    return value


def _key_types(node: _Node, at: str) -> list[type[str] | type[int]]:
    """What keys of a dictionary are, whose JSON has texts alone."""
    kinds = node.get("key_types")
    items = kinds.get("content") if isinstance(kinds, dict) else None
    if not isinstance(items, list):
        raise ValueError(f"{at} is a dictionary without the types of its keys")
    nodes = [take_up(_Node, item, at=at) for item in items if isinstance(item, dict)]
    found = [_KEYS.get(f"{one['__module__']}.{one['__class__']}") for one in nodes]
    known = [kind for kind in found if kind is not None]
    if len(known) != len(items):
        raise ValueError(f"{at} is a dictionary whose keys are neither texts nor whole numbers")
    return known


def _only(array: Array, at: str) -> Value:
    if array.shape != ():
        raise ValueError(f"{at} is one number, and its array has the shape {array.shape}")
    value: Value = array.item()
    return value


def _read_array(archive: Archive, name: str) -> Array:
    """Read an array of numbers, in this machine's order of bytes."""
    size = archive.size_bytes(name)
    with archive.open(name) as stream:
        header = read_npy_header(stream, name, size_bytes=size)
        if header.dtype.kind not in "biuf":
            raise ValueError(f"{name} is an array of {header.dtype}, and should be of numbers")
        data = stream.read(header.data_bytes)
        stream.read(1)  # at its end the checksum is looked at
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    array: Array = np.frombuffer(data, header.dtype).reshape(header.shape, order=order)
    return np.array(array, header.dtype.newbyteorder("="))
