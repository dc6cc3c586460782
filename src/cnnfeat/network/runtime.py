"""TensorFlow itself: starting it, what it runs on, and bfloat16 on processors that have it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ParamSpec, TypeVar, get_args

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from cnnfeat.errors import NetworkError
from cnnfeat.network.devices import choose_device
from cnnfeat.options import Precision
from cnnfeat.processor import has_bfloat16, n_cores

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function compute at once, though its caller stands in a graph, or in a session of one.

    Programs of TensorFlow 1 do, most of them from beginning to end.
    """

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with context.eager_mode():
            return function(*args, **kwargs)

    return inside


def start(*, n_calls: int = 1, device: str = "auto") -> None:
    """Find the devices and make them ready; TensorFlow does this once, when first asked.

    GPUs get memory as they need it, so that a second process finds some.

    Parameters
    ----------
    n_calls : int
        How many calls of a network will be under way at a time. Where they are as many as the
        processor's cores, each keeps to one thread: it costs less than dividing each among all,
        and while only one is under way a core is left to what reads and decodes.
        TF_NUM_INTRAOP_THREADS overrides it; once TensorFlow runs, it is too late.
    device : str
        As `choose_device` has it, with what it raises.
    """
    if n_calls >= n_cores() and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        with suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)
    choose_device(device)
    tf.config.list_logical_devices()


def check_precision(precision: str) -> None:
    """Refuse a precision there is none of, or that this processor computes slowly.

    Raises
    ------
    NetworkError
        With the reason.
    """
    known = get_args(Precision)
    if precision not in known:
        raise NetworkError(f"--precision must be one of {', '.join(known)}, not {precision!r}")
    if precision == "bfloat16" and not has_bfloat16():
        raise NetworkError(
            "--precision bfloat16 needs a processor with AVX512-BF16 or AMX; this one has neither",
            hint="--precision float32 computes anywhere",
        )


def with_precision(
    function: tf.types.experimental.ConcreteFunction, precision: str
) -> Callable[[tf.Tensor], Sequence[tf.Tensor]]:
    """Make a compiled function compute convolutions and matrix products in `precision`.

    TensorFlow's own rewrite for oneDNN does it. It is asked for in the call alone: the process-wide
    options, which other functions obey, stay as they are.
    """
    compiled: Callable[[tf.Tensor], Sequence[tf.Tensor]] = function
    if precision == "float32":
        return compiled
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    serialized = config.SerializeToString()

    def call(images: tf.Tensor) -> Sequence[tf.Tensor]:
        outputs: Sequence[tf.Tensor] = tf.raw_ops.StatefulPartitionedCall(
            args=[images, *function.captured_inputs],
            Tout=[output.dtype for output in function.outputs],
            f=function,
            config_proto=serialized,
        )
        return outputs

    return call
