"""OpenVINO, by the extra of that name: a second engine for a probe's graph.

It takes the same graph as TensorFlow does, after all that was checked of it, and the weights that
go with it. Before it runs anything its answers are held against TensorFlow's.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from cnnfeat.errors import NetworkError
from cnnfeat.network.engine import Run, UnservedError, as_array
from cnnfeat.network.telling import told
from cnnfeat.options import Precision
from cnnfeat.records import Array

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest value
_TELEMETRY = "openvino_telemetry"
_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
_PLACES = ("Exception from", "Check '", "FrontEnd API failed", "[ ", "While validating node")
_SUMMARIES = ("-- No conversion rule", "-- Conversion is failed")  # with the operations


@cache
def load() -> ModuleType:
    """Import OpenVINO, without what would tell its makers of it.

    Raises
    ------
    NetworkError
        If it is not installed, or doesn't start.
    """
    try:
        with _without(_TELEMETRY):
            import openvino
            import openvino.frontend.tensorflow.graph_iterator
    except ImportError as error:
        raise NetworkError(
            f"--engine openvino needs OpenVINO, which can't be loaded: {error}",
            hint="pip install 'cnnfeat[openvino]'; --engine tensorflow needs nothing more",
        ) from error
    module: ModuleType = openvino
    return module


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Have a package that isn't loaded be one that isn't installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


class OpenVino:
    """OpenVINO's runtime on the processor.

    Parameters
    ----------
    precision : Precision
        Of convolutions and matrix products. OpenVINO by itself takes bfloat16 where there is some.
    """

    name = "openvino"

    def __init__(self, precision: Precision = "float32") -> None:
        self._core = load().Core()
        self._tolerance = _TOLERANCES[precision]
        n_cores = os.cpu_count() or 1
        # Where several calls are under way, each keeps to one thread: see `runtime.start`.
        alone = tf.config.threading.get_intra_op_parallelism_threads() == 1
        self._settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "NUM_STREAMS": n_cores if alone else 1,
            "INFERENCE_NUM_THREADS": n_cores,
        }

    def bind(self, values: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """Hand weights in as they are; they are read where they lie."""
        return values

    def compile(self, function: tf.types.experimental.ConcreteFunction) -> Run:
        """Have OpenVINO run the function.

        Raises
        ------
        UnservedError
            If it can't, or computes something else than TensorFlow does.
        """
        images = _made_up(function)
        wanted = None if images is None else function(tf.constant(images))
        try:
            compiled = self._core.compile_model(_converted(function), "CPU", self._settings)
            run = _Requests(compiled, function.outputs)
            found = None if images is None else run(images)
        except _failures() as error:
            raise UnservedError(_reason(error)) from error
        if wanted is not None and found is not None:
            self._compare(function.outputs, [as_array(one) for one in wanted], found)
        return run

    def _compare(
        self, tensors: Sequence[tf.Tensor], wanted: Sequence[Array], found: Sequence[Array]
    ) -> None:
        for tensor, one, other in zip(tensors, wanted, found, strict=True):
            if one.shape != other.shape:
                raise UnservedError(
                    f"it gives {tensor.name} the shape {other.shape}, TensorFlow {one.shape}"
                )
            largest = np.abs(one[np.isfinite(one)].astype(np.float64)).max(initial=0)
            atol = self._tolerance * float(largest)
            if not np.allclose(one, other, rtol=0, atol=atol, equal_nan=True):
                raise UnservedError(f"it computes other values of {tensor.name} than TensorFlow")


def _made_up(function: tf.types.experimental.ConcreteFunction) -> Array | None:
    """Two images for a function; None where it leaves their size open."""
    spec = function.inputs[0]
    n_images, *shape = spec.shape.as_list()
    if None in shape:
        return None
    values = np.arange(251, dtype=spec.dtype.as_numpy_dtype)
    return np.resize(values, (n_images or 2, *shape))


def _converted(function: tf.types.experimental.ConcreteFunction) -> object:
    """Turn TensorFlow's graph into OpenVINO's."""
    openvino = load()
    frontend = openvino.frontend.FrontEndManager().load_by_framework("tf")
    graph = _walker()(function.graph, False)  # to be kept until all is read
    read = frontend.load(graph, False)
    read.override_all_outputs([read.get_place_by_tensor_name(one.name) for one in function.outputs])
    return frontend.convert(read)


@cache
def _walker() -> Callable[..., object]:
    """OpenVINO's own walk over a graph, that goes into functions which came with a file too."""
    walk = load().frontend.tensorflow.graph_iterator.GraphIteratorTFGraph

    class Walker(walk):  # type: ignore[misc, valid-type]
        def get_body_graph_iterator(self, name: str) -> object:
            if self.m_iterators.get(name, self) is None:
                definition = self.m_graph._functions[name].definition
                with self.m_graph.as_default():  # whose functions it may call in turn
                    body = function_def_to_graph(definition)
                self.m_iterators[name] = Walker(body, False, inner_graph=True)
            return self.m_iterators.get(name)

    return Walker


@cache
def _failures() -> tuple[type[Exception], ...]:
    """What OpenVINO raises: its own exceptions have no root in common."""
    members = vars(load().frontend).values()
    own = [one for one in members if isinstance(one, type) and issubclass(one, Exception)]
    return (*_ERRORS, *own)


def _reason(error: BaseException) -> str:
    """What is wrong, without the places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    summed_up = [line.removeprefix("-- ") for line in lines if line.startswith(_SUMMARIES)]
    telling = summed_up or [line for line in lines if line and not line.startswith(_PLACES)]
    return told(RuntimeError((telling or lines or [""])[0]))


class _Tensor(Protocol):
    """OpenVINO's; a view of its memory."""

    data: Array


class _Request(Protocol):
    """OpenVINO's: one call of a graph at a time, with memory of its own."""

    def set_input_tensor(self, tensor: object) -> None: ...
    def get_output_tensor(self, index: int) -> _Tensor: ...
    def infer(self) -> object: ...


class _Compiled(Protocol):
    """OpenVINO's: a graph that is ready to run."""

    def create_infer_request(self) -> _Request: ...


class _Requests:
    """Runs a compiled graph: a request for each thread that calls."""

    def __init__(self, compiled: _Compiled, outputs: Sequence[tf.Tensor]) -> None:
        self._compiled = compiled
        self._dtypes = [output.dtype.as_numpy_dtype for output in outputs]
        self._held = threading.local()

    def __call__(self, images: Array) -> list[Array]:
        request = self._request()
        images = np.require(images, requirements=["C", "W"])  # held until they are read
        request.set_input_tensor(load().Tensor(images, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        found = [request.get_output_tensor(place).data for place in range(len(self._dtypes))]
        return [
            np.array(value, dtype=dtype) for value, dtype in zip(found, self._dtypes, strict=True)
        ]

    def _request(self) -> _Request:
        if not hasattr(self._held, "request"):
            self._held.request = self._compiled.create_infer_request()
        request: _Request = self._held.request
        return request
