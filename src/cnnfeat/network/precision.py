"""Running a function in bfloat16 on processors that have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

from cnnfeat.errors import NetworkError

PRECISIONS = ("float32", "bfloat16")
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def check_precision(precision: str) -> None:
    """Refuse a precision there is none of, or that this processor computes slowly.

    Raises
    ------
    NetworkError
        With the reason.
    """
    if precision not in PRECISIONS:
        raise NetworkError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bfloat16" and not _CPU_FLAGS & _cpu_flags():
        raise NetworkError(
            "--precision bfloat16 needs a processor with AVX512-BF16 or AMX; this one has neither",
            hint="--precision float32",
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


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        text = path.read_text("utf-8")
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
