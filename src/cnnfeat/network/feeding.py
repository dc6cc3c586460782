"""Placeholders other than the images: their values, and the errors for those without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import tensorflow as tf

from cnnfeat.errors import NetworkError, near_names
from cnnfeat.network.inputs import ImageInput
from cnnfeat.records import TensorInfo

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SOURCES = {"Placeholder", "PlaceholderV2", "IteratorGetNext", "QueueDequeueV2"}


@dataclass(frozen=True, slots=True)
class Feed:
    """A tensor's fixed value."""

    value: tf.Tensor  # a scalar
    shape: tuple[int | None, ...] | None  # the tensor's own

    def spread(self, n_images: tf.Tensor) -> tf.Tensor:
        """Fill the tensor's shape with the value; an open first axis has a row for each image."""
        if not self.shape:
            return self.value
        first = n_images if self.shape[0] is None else self.shape[0]
        return tf.fill([first, *(length or 1 for length in self.shape[1:])], self.value)


def fed_tensors(
    feeds: Mapping[str, bool | float | str],
    tensors: Mapping[str, TensorInfo],
    *,
    named: Mapping[str, str],
) -> dict[str, Feed]:
    """Turn `{"keep_prob": "1.0"}` into values of the tensors' own types.

    Parameters
    ----------
    feeds : mapping
        Values by name.
    tensors : mapping
        All tensors by name.
    named : mapping
        Tensors by the names a signature gives them.

    Raises
    ------
    NetworkError
        If there is no such tensor, or the value is not of its type.
    """
    return dict(
        _fed(name, value, tensors, spelled=named.get(name, name)) for name, value in feeds.items()
    )


def _fed(
    name: str, value: bool | float | str, tensors: Mapping[str, TensorInfo], *, spelled: str
) -> tuple[str, Feed]:
    full = spelled if spelled in tensors else f"{spelled}:0"
    if full not in tensors:
        endings = [tensor for tensor in tensors if tensor.endswith(f"/{full}")]
        if len(endings) != 1:
            sources = [info.name[:-2] for info in tensors.values() if info.op in _SOURCES]
            raise NetworkError(
                f"--feed {name}: the network has no tensor of that name",
                hint=near_names(name, sources) or "it takes: " + (", ".join(sources) or "nothing"),
            )
        full = endings[0]
    dtype = tf.dtypes.as_dtype(tensors[full].dtype)
    try:
        return full, Feed(tf.constant(_parsed(value, dtype), dtype), tensors[full].shape)
    except (ValueError, TypeError) as error:
        raise NetworkError(
            f"--feed {name}={value}: the tensor takes {dtype.name}, such as {_example(dtype)}"
        ) from error


def _parsed(value: bool | float | str, dtype: tf.DType) -> bool | float | str:
    text = str(value).strip()
    if dtype == tf.bool:
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if dtype.is_integer:
        return int(text)
    if dtype == tf.string:
        return text
    return float(text)


def check_placeholders(needed: Iterable[tf.compat.v1.NodeDef], images: ImageInput) -> None:
    """Refuse to go on while a needed placeholder has no value.

    Raises
    ------
    NetworkError
        Naming each with the flag to add.
    """
    empty = [node for node in needed if node.op in _SOURCES]
    if not empty:
        return
    names = ", ".join(f"{node.name!r}" for node in empty)
    flags = " ".join(f"--feed {node.name}={_example(_dtype(node))}" for node in empty)
    several = len(empty) > 1
    raise NetworkError(
        f"the input{'s' if several else ''} {names} need{'' if several else 's'} a value too "
        f"(images go to {images.name!r})",
        hint=f"add {flags}, or whatever is right in use (not in training)",
    )


def _dtype(node: tf.compat.v1.NodeDef) -> tf.DType:
    return tf.dtypes.as_dtype(node.attr["dtype"].type or tf.float32)


def _example(dtype: tf.DType) -> str:
    if dtype == tf.bool:
        return "false"
    return "1.0" if dtype.is_floating else "text" if dtype == tf.string else "1"
