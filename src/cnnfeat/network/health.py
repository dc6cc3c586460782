"""Weights that are not numbers: reported, since everything behind them is nonsense."""

from __future__ import annotations

import logging

import numpy as np
import tensorflow as tf

from cnnfeat.network.graph import FlatGraph

_LOG = logging.getLogger("cnnfeat")


def report_bad_weights(graph: FlatGraph, *, path: str) -> None:
    """Warn of weights that are NaN or infinite, by name."""
    bad = [name for name, value in graph.weights.items() if not _finite(value)]
    for node in graph.graph_def.node:
        if node.op == "Const" and tf.dtypes.as_dtype(node.attr["dtype"].type).is_floating:
            array = tf.make_ndarray(node.attr["value"].tensor)
            if array.size > 1 and np.isnan(array.astype(np.float64)).any():
                bad.append(node.name)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        _LOG.warning("%s: the weights %r%s hold NaN or infinity", path, bad[0], more)


def _finite(value: tf.Tensor) -> bool:
    if value.dtype == tf.resource:
        data = value._handle_data
        if data is None or not data.shape_and_type:
            return True
        dtype = tf.dtypes.as_dtype(data.shape_and_type[0].dtype)
        value = tf.raw_ops.ReadVariableOp(resource=value, dtype=dtype)
    if not value.dtype.is_floating:
        return True
    # A sum is finite unless a term is not, or it overflows; then all terms are looked at.
    total = tf.reduce_sum(tf.cast(value, tf.float32))
    return bool(tf.math.is_finite(total)) or bool(tf.reduce_all(tf.math.is_finite(value)))
