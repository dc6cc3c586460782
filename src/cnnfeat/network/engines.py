"""Which engine runs a network: a rule of the graph and the machine's kind, never a race."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network.engine import Engine, TensorFlow
from cnnfeat.network.graph import WEIGHED
from cnnfeat.options import ProbeOptions

_KINDS = {"x86_64", "amd64"}  # of processors, on which OpenVINO was measured to be the faster one
_DEEP = 8  # convolutions and matrix products; of fewer both make the same, and TensorFlow is there


def choose_engine(
    options: ProbeOptions,
    part: tf.compat.v1.GraphDef,
    *,
    interpreted: bool,
    unsteady: bool,
    device: str,
) -> Engine:
    """Pick what runs a network.

    Parameters
    ----------
    options : ProbeOptions
        `engine`: "auto" is OpenVINO where it is installed and serves the better, else TensorFlow.
    part : GraphDef
        What is to be computed.
    interpreted : bool
        Whether it is a graph of TensorFlow Lite, which an interpreter runs.
    unsteady : bool
        Whether it draws random numbers.
    device : str
        What it is to compute on.

    Raises
    ------
    NetworkError
        If the one that was asked for isn't there, or can't serve.
    """
    asked = options.engine
    if asked == "tensorflow" or (asked == "auto" and not _suits(part)):
        return TensorFlow(options.precision)
    reason = ""
    if interpreted:
        reason = "it is one of TensorFlow Lite, which has an interpreter of its own"
    elif unsteady:
        reason = "its features depend on chance or on the batch, and would be others"
    elif device != "cpu":
        reason = f"it is to compute on {device}, and OpenVINO's engine on the processor"
    if not reason:
        from cnnfeat.network.openvino import OpenVino

        return OpenVino(options.precision)
    if asked == "auto":
        return TensorFlow(options.precision)
    raise NetworkError(
        f"--engine {asked} can't run this network: {reason}",
        hint="--engine tensorflow can; --engine auto takes it by itself",
    )


def installed() -> bool:
    """Whether there is an OpenVINO, without loading it."""
    return find_spec("openvino") is not None


def _suits(part: tf.compat.v1.GraphDef) -> bool:
    """Whether OpenVINO is there, and the faster one for such a graph on such a machine."""
    n_weighed = sum(bool(WEIGHED.match(node.op)) for node in part.node)
    return n_weighed >= _DEEP and installed() and platform.machine().lower() in _KINDS
