"""Attributes in a file nobody vouches for: one text or number each, and only those looked for.

HDF5 would also hand over arrays of texts that are one text a million times, references, compounds
and texts of any length.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from cnnfeat.documents import take_up
from cnnfeat.errors import FeatureFileError
from cnnfeat.records import Array

T = TypeVar("T")

LONGEST = 16 << 20  # bytes of a text
_MOST_AXES = 32
_NUMBERS = {h5py.h5t.INTEGER, h5py.h5t.FLOAT}
_KINDS = {
    h5py.h5t.BITFIELD: "bits",
    h5py.h5t.OPAQUE: "opaque bytes",
    h5py.h5t.COMPOUND: "a compound",
    h5py.h5t.REFERENCE: "a reference",
    h5py.h5t.ENUM: "one of an enumeration",
    h5py.h5t.VLEN: "a list of its own length",
    h5py.h5t.ARRAY: "an array",
}
_HINT = "make the file again with cnnfeat extract"


def read_attributes(
    item: h5py.HLObject, names: Iterable[str], path: Path
) -> dict[str, str | int | float]:
    """Read those of some attributes that are there.

    Raises
    ------
    FeatureFileError
        If one is no single text or number; with its name.
    """
    there = {name: _open(item, name, path) for name in names}
    return {
        name: _value(item, name, attribute, path)
        for name, attribute in there.items()
        if attribute is not None
    }


def read_record(kind: type[T], item: h5py.HLObject, path: Path) -> T:
    """Read a record whose fields are attributes.

    Parameters
    ----------
    kind : type
        A dataclass, as `cnnfeat.documents.take_up` takes it.
    item : h5py.Group or h5py.Dataset
        What has the attributes.
    path : Path
        For messages.

    Raises
    ------
    FeatureFileError
        If an attribute can't be; with its name and value.
    """
    found = read_attributes(item, kind.__annotations__, path)
    try:
        return take_up(kind, found)
    except ValueError as error:
        raise FeatureFileError(f"{path}: attribute {error}, in {item.name}", hint=_HINT) from error


def has_attribute(item: h5py.HLObject, name: str, path: Path) -> bool:
    """Whether there is an attribute of this name."""
    return _open(item, name, path) is not None


def read_shape(item: h5py.HLObject, name: str, path: Path) -> tuple[int, ...] | None:
    """Read an attribute that is a shape; None where there is none."""
    attribute = _open(item, name, path)
    if attribute is None:
        return None
    space, whole = attribute.get_space(), attribute.get_type().get_class() == h5py.h5t.INTEGER
    if not whole or space.get_simple_extent_npoints() > _MOST_AXES or len(attribute.shape) > 1:
        raise _refused(item, name, path, f"holds {_described(attribute)}, and should hold a shape")
    found = np.atleast_1d(_read(item, name, path))
    if found.min(initial=0) < 0:
        raise _refused(item, name, path, f"is the shape {found.tolist()}")
    return tuple(int(length) for length in found)


def _open(item: h5py.HLObject, name: str, path: Path) -> h5py.h5a.AttrID | None:
    try:
        if not h5py.h5a.exists(item.id, name.encode()):
            return None
        return h5py.h5a.open(item.id, name.encode())
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise _refused(item, name, path, f"is damaged: {error}") from error


def _value(
    item: h5py.HLObject, name: str, attribute: h5py.h5a.AttrID, path: Path
) -> str | int | float:
    kind = attribute.get_type()
    text = kind.get_class() == h5py.h5t.STRING
    number = kind.get_class() in _NUMBERS and kind.get_size() <= 8
    if not (text or number) or attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
        why = f"holds {_described(attribute)}, and should hold one text or number"
        raise _refused(item, name, path, why)
    if text and not kind.is_variable_str() and kind.get_size() > LONGEST:
        raise _refused(item, name, path, f"has {kind.get_size():,} bytes")
    value = _read(item, name, path)
    if not isinstance(value, str | bytes):
        found: int | float = value.item()
        return found
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if len(data) > LONGEST:
        raise _refused(item, name, path, f"has {len(data):,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(item, name, path, f"is no UTF-8: {error}") from error


def _read(item: h5py.HLObject, name: str, path: Path) -> str | bytes | Array:
    try:
        value = item.attrs[name]
        return value if isinstance(value, str | bytes) else np.asarray(value)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise _refused(item, name, path, f"is damaged: {error}") from error


def _described(attribute: h5py.h5a.AttrID) -> str:
    kind = attribute.get_type().get_class()
    if kind in _KINDS:
        return _KINDS[kind]
    space = attribute.get_space().get_simple_extent_type()
    if space == h5py.h5s.NULL:
        return "nothing"
    if space == h5py.h5s.SIMPLE:
        return f"an array of {' × '.join(map(str, attribute.shape))}"
    return "a number of a size not known here" if kind in _NUMBERS else "a text"


def _refused(item: h5py.HLObject, name: str, path: Path, why: str) -> FeatureFileError:
    return FeatureFileError(f"{path}: attribute {name!r} of {item.name} {why}", hint=_HINT)
