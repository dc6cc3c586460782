"""From a tensor's shape to a row of features: spatial axes, their names, and pooling over them."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from cnnfeat.errors import NetworkError

POOLINGS = ("none", "avg", "max", "flatten")
_NAMES = {
    0: (),
    1: ("feature",),
    2: ("step", "channel"),
    3: ("height", "width", "channel"),
    4: ("depth", "height", "width", "channel"),
}


def axis_names(rank: int, *, channels_first: bool = False) -> tuple[str, ...]:
    """Name the axes of one image's activations, the batch axis left out."""
    names = _NAMES.get(rank)
    if names is None:
        return tuple(f"axis{axis}" for axis in range(1, rank + 1))
    if channels_first and rank > 1:
        return (names[-1], *names[:-1])
    return names


def pool(tensor: tf.Tensor, pooling: str, *, channels_first: bool = False) -> tf.Tensor:
    """Reduce `(n_samples, …)` over its spatial axes, or flatten it.

    Tensors of rank 2 or less have no spatial axes and stay as they are.
    """
    rank = tensor.shape.rank
    if pooling == "none" or rank is None or rank <= 2:
        return tensor
    if pooling == "flatten":
        return tf.reshape(tensor, [tf.shape(tensor)[0], _product(tensor.shape[1:])])
    axes = list(range(2, rank)) if channels_first else list(range(1, rank - 1))
    if pooling == "max":
        return tf.reduce_max(_numbers(tensor), axis=axes)
    return tf.reduce_mean(tf.cast(_numbers(tensor), _mean_type(tensor.dtype)), axis=axes)


def check_pooling(pooling: str) -> None:
    """Refuse a pooling there is none of.

    Raises
    ------
    NetworkError
        With the ones there are.
    """
    if pooling not in POOLINGS:
        raise NetworkError(f"--pool must be one of {', '.join(POOLINGS)}, not {pooling!r}")


def _product(lengths: Sequence[int | None]) -> int:
    product = 1
    for length in lengths:
        product *= -1 if length is None else length
    return product if product >= 0 else -1


def _numbers(tensor: tf.Tensor) -> tf.Tensor:
    return tf.cast(tensor, tf.uint8) if tensor.dtype == tf.bool else tensor


def _mean_type(dtype: tf.DType) -> tf.DType:
    return dtype if dtype.is_floating else tf.float32
