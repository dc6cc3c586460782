"""OpenVINO, by the extra of that name: a second engine for a probe's graph.

It takes the same graph as TensorFlow does, after all that was checked of it, and the weights that
go with it. Before it runs anything its answers are held against TensorFlow's.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Protocol

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph
from tensorflow.python.ops import resource_variable_ops

from cnnfeat.errors import NetworkError
from cnnfeat.network.engine import Run, UnservedError, as_array
from cnnfeat.network.telling import told
from cnnfeat.options import Precision
from cnnfeat.processor import n_cores
from cnnfeat.records import Array

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest value
# Pieces that are computed side by side, each in a stream of its own: a default batch of pictures
# has two, and there are two batches under way.
_STREAMS = 4
# Of the images of a piece: two of 224×224. What layers make of more finds no place in a core's
# cache. A length that is known beforehand made MobileNetV2 1.07 times as fast.
_PIECE_PIXELS = 2 * 224 * 224
_CALL = 0.1  # what a piece costs beside its images, in images
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
        self._n_streams = min(n_cores(), _STREAMS)
        self._settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "NUM_STREAMS": self._n_streams,
            "INFERENCE_NUM_THREADS": n_cores(),
        }

    def bind(self, values: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        """Hand weights in as they are; they are read where they lie."""
        return values

    def compile(self, function: tf.types.experimental.ConcreteFunction, *, batch_size: int) -> Run:
        """Have OpenVINO run the function, a piece of a batch at a time.

        Raises
        ------
        UnservedError
            If it can't, or computes something else than TensorFlow does.
        """
        n_images, *shape = function.inputs[0].shape.as_list()
        try:
            if None in shape:  # what a piece may hold isn't known; nor what to compare
                return _Requests(self._compiled(_converted(function)), function.outputs)
            piece = n_images or _piece(shape, batch_size)
            model = _converted(function)
            model.reshape([piece, *shape])
            run = _Pieces(self._compiled(model), function.outputs, self._n_streams)
            images = _made_up(function, n_images or piece + 1)
            found = run(images)
        except _failures() as error:
            raise UnservedError(_reason(error)) from error
        wanted = function(tf.constant(images))
        self._compare(function.outputs, [as_array(one) for one in wanted], found)
        return run

    def _compiled(self, model: _Model) -> _Compiled:
        compiled: _Compiled = self._core.compile_model(model, "CPU", self._settings)
        return compiled

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


def _piece(shape: Sequence[int], batch_size: int) -> int:
    """How many images go through the network at a time: what divides a batch with little left over.

    The last piece of a batch is filled up to the same length.
    """
    most = max(1, _PIECE_PIXELS // math.prod(shape[:2]))
    return min(range(1, most + 1), key=lambda n: -(-batch_size // n) * (n + _CALL))


def _made_up(function: tf.types.experimental.ConcreteFunction, n_images: int) -> Array:
    """Images for a function, of the size it takes."""
    spec = function.inputs[0]
    values = np.arange(251, dtype=spec.dtype.as_numpy_dtype)
    return np.resize(values, (n_images, *spec.shape.as_list()[1:]))


def _converted(function: tf.types.experimental.ConcreteFunction) -> _Model:
    """Turn TensorFlow's graph into OpenVINO's."""
    frontend = load().frontend.FrontEndManager().load_by_framework("tf")
    with _holding_variables(function.graph):
        graph = _walker()(function.graph, False)  # to be kept until all is read
        read = frontend.load(graph, False)
        places = [read.get_place_by_tensor_name(one.name) for one in function.outputs]
        read.override_all_outputs(places)
        model: _Model = frontend.convert(read)
    return model


@contextmanager
def _holding_variables(graph: tf.Graph) -> Iterator[None]:
    """Have a graph know the variables that loops in it read, which it has the handles of."""
    before = graph.variables
    handles = [handle for handle, _ in graph.captures if handle.dtype == tf.resource]
    held = [_Variable(handle) for handle in handles]
    graph.variables = held  # it keeps them weakly
    try:
        yield
    finally:
        graph.variables = before


class _Variable:
    """A variable, by its handle: what OpenVINO asks a graph's variables for."""

    def __init__(self, handle: tf.Tensor) -> None:
        said = resource_variable_ops.get_eager_safe_handle_data(handle).shape_and_type[0]
        self.handle = handle
        self.dtype = tf.dtypes.as_dtype(said.dtype)
        self.shape = tf.TensorShape(said.shape)

    def read_value_no_copy(self) -> tf.Tensor:
        """What it holds."""
        return tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=self.dtype)


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


class _Model(Protocol):
    """OpenVINO's: a graph."""

    def reshape(self, shape: Sequence[int]) -> None: ...


class _Port(Protocol):
    """OpenVINO's: what goes into a graph, or comes out."""

    shape: Sequence[int]  # raises where it isn't known


class _Compiled(Protocol):
    """OpenVINO's: a graph that is ready to run."""

    inputs: Sequence[_Port]
    outputs: Sequence[_Port]

    def create_infer_request(self) -> _Request: ...


class _Requests:
    """Runs a compiled graph: a request for each thread that calls."""

    def __init__(self, compiled: _Compiled, outputs: Sequence[tf.Tensor]) -> None:
        self.dtypes = [output.dtype.as_numpy_dtype for output in outputs]
        self._compiled = compiled
        self._held = threading.local()

    def __call__(self, images: Array) -> list[Array]:
        """Compute; what is returned is not touched again."""
        found = zip(self.run(images), self.dtypes, strict=True)
        return [np.array(value, dtype=dtype) for value, dtype in found]

    def run(self, images: Array) -> list[Array]:
        """Compute; what is returned is good until the same thread's next call."""
        request = self._request()
        images = np.require(images, requirements=["C", "W"])  # held until they are read
        request.set_input_tensor(load().Tensor(images, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        return [request.get_output_tensor(place).data for place in range(len(self.dtypes))]

    def _request(self) -> _Request:
        if not hasattr(self._held, "request"):
            self._held.request = self._compiled.create_infer_request()
        request: _Request = self._held.request
        return request


class _Pieces:
    """Runs a graph that takes so many images and no others over the pieces of a batch.

    As many at a time as there are streams, which all that call share.
    """

    def __init__(self, compiled: _Compiled, outputs: Sequence[tf.Tensor], n_streams: int) -> None:
        self._requests = _Requests(compiled, outputs)
        self._n_images = int(compiled.inputs[0].shape[0])
        self._shapes = [tuple(port.shape) for port in compiled.outputs]
        self._pool = ThreadPoolExecutor(n_streams, "cnnfeat-openvino")

    def __call__(self, images: Array) -> list[Array]:
        found = [
            np.empty((len(images), *shape[1:]), dtype)
            for shape, dtype in zip(self._shapes, self._requests.dtypes, strict=True)
        ]
        starts = range(0, len(images), self._n_images)
        for _ in self._pool.map(lambda start: self._run(images, start, found), starts):
            pass  # and raise what it raised
        return found

    def _run(self, images: Array, start: int, found: Sequence[Array]) -> None:
        stop = min(start + self._n_images, len(images))
        piece = images[start:stop]
        if missing := self._n_images - len(piece):
            piece = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        for whole, rows in zip(found, self._requests.run(piece), strict=True):
            whole[start:stop] = rows[: stop - start]
