"""The probe: one compiled function from pixels to the activations of the asked tensors.

Only the part of the graph the asked tensors need is imported, once, behind the fitting of the
images and before the pooling; everything runs as one TensorFlow function.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import get_args

import numpy as np
import tensorflow as tf

from cnnfeat.errors import CnnfeatError, MisfitError, NetworkError
from cnnfeat.network.engine import Engine, Run, TensorFlow, UnservedError, as_array
from cnnfeat.network.engines import choose_engine
from cnnfeat.network.folding import Folded, folded
from cnnfeat.network.graph import Feed, FlatGraph, import_part, node_of, nodes_by_name
from cnnfeat.network.preprocessing import Preprocessing
from cnnfeat.network.runtime import eagerly
from cnnfeat.network.soundness import check_room
from cnnfeat.network.telling import of_size, told
from cnnfeat.options import Pooling, ProbeOptions
from cnnfeat.pixels import range_warning
from cnnfeat.records import Array, ImageTarget, LayerInfo, ProbeOutput, TensorInfo, some_of
from cnnfeat.watch import watched

_LOG = logging.getLogger("cnnfeat")
_RETURNED = {"bfloat16": "float32", "float64": "float32", "bool": "uint8"}
_TRIED = (2, 3)  # images, of which it is seen what their features' shapes are
_SIZES = 4  # of images that a function is compiled for each; one for all sizes comes after them
_RUNTIME_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, TypeError, OverflowError)
_NO_MEMORY = (tf.errors.ResourceExhaustedError, MemoryError)
# What the libraries of a GPU say, which TensorFlow raises as internal errors.
_NO_GPU_MEMORY = re.compile(r"out.of.memory|ALLOC_FAILED|failed to allocate", re.IGNORECASE)
_ROUNDING = 1e-2  # of the largest value: what another order of sums makes of one, and more
_AXES = {
    0: (),
    1: ("feature",),
    2: ("step", "channel"),
    3: ("height", "width", "channel"),
    4: ("depth", "height", "width", "channel"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a probe shall compute."""

    layers: Sequence[LayerInfo]
    part: tf.compat.v1.GraphDef  # the nodes they need
    feeds: Mapping[str, Feed]  # tensors with a fixed value
    options: ProbeOptions
    unsteady: Mapping[str, Sequence[str]]  # operations that change a layer's features, by layer
    infos: Mapping[str, TensorInfo]  # what is known of the graph's tensors
    path: str = ""  # the network, for messages
    # The graph and the nodes for images of one (height, width), where none are for all.
    sized: Callable[[tuple[int, int]], tuple[FlatGraph, tf.compat.v1.GraphDef]] | None = None


class GraphProbe:
    """Images in, activations out; may be called from several threads at once."""

    def __init__(
        self,
        graph: FlatGraph,
        fit: Preprocessing,
        wanted: Wanted,
        *,
        batch_size: int = 512,
        device: str = "cpu",
    ) -> None:
        self._fit = fit
        self.preprocessing = fit.record
        self.device = device
        self.target: ImageTarget = fit.target
        self._graph = graph  # holds the weights
        self._wanted = wanted
        self._chunk = fit.input.batch or _stated_batch(wanted.feeds)
        self._limit = max(1, batch_size)  # images at a time; less once memory has run out
        self._engine: Engine = choose_engine(
            wanted.options,
            wanted.part,
            interpreted=graph.run is not None,
            unsteady=bool(wanted.unsteady),
            device=device,
        )
        self._functions: dict[tuple[int | None, ...], Run] = {}
        self._kept: Folded | None = None  # what was last compiled
        self._said = False
        self._settled = False  # whether it is known which engine runs it
        self.unsteady: Mapping[str, Sequence[str]] = wanted.unsteady
        began = time.monotonic()
        with watched(f"computing {self._names()} of {wanted.path}"):
            self.outputs: tuple[ProbeOutput, ...] = self._try_out()
        self._settled = True
        self._tried_s: float | None = time.monotonic() - began  # None: images have come since
        _LOG.info("engine: %s", self.engine)

    @eagerly
    def __call__(self, images: Array) -> tuple[Array, ...]:
        """Activations in the order of `outputs`, each `(n_samples, *row_shape)`.

        Parameters
        ----------
        images : ndarray, (n_samples, height, width, channels)
            Pixels, of the type the probe was made for.

        Raises
        ------
        MisfitError
            If they don't fit, or give rows of another shape than `outputs` states.
        NetworkError
            If there is no memory for a single one.
        """
        if len(images) == 0:
            return tuple(np.empty((0, *item.row_shape), item.dtype) for item in self.outputs)
        self._say_range(images)
        results = self._first(images) if self._tried_s is not None else self._bounded(images)
        for output, result in zip(self.outputs, results, strict=True):
            if result.shape != (len(images), *output.row_shape):
                raise MisfitError(
                    f"{output.layer!r} ({output.tensor}) changes its shape from image to image: "
                    f"{output.row_shape} at first, {result.shape[1:]} for images of shape "
                    f"{images.shape[1:]}",
                    hint="--pool avg gives rows of one length; --resize gives images of one size",
                )
        return results

    @property
    def engine(self) -> str:
        """What runs the network, with its version: "tensorflow 2.21.0"."""
        return f"{self._engine.name} {version(self._engine.name)}"

    def _names(self) -> str:
        return some_of([repr(layer.name) for layer in self._wanted.layers])

    def _first(self, images: Array) -> tuple[Array, ...]:
        """Compute the first images that aren't made up: what depends on them may have no end."""
        foreseen_s = (self._tried_s or 0.0) / max(_TRIED) * len(images)
        step = f"computing {self._names()} of the first {len(images):,} images"
        with watched(step, extra_s=foreseen_s):
            results = self._bounded(images)
        self._tried_s = None
        return results

    def _say_range(self, images: Array) -> None:
        """Warn, once, of pixels that the network takes for others than they are."""
        unit = self._fit.scale != "raw"
        meant = self._wanted.options.scale == "raw" or self._fit.input.dtype == "uint16"
        if self._said or (meant and not unit):
            return
        if warning := range_warning(images, unit=unit):
            self._said = True
            _LOG.warning("%s", warning)

    def _bounded(self, images: Array) -> tuple[Array, ...]:
        """Run in pieces no longer than memory has allowed so far."""
        limit = self._limit
        if len(images) > limit:
            pieces = [
                self._bounded(images[start : start + limit])
                for start in range(0, len(images), limit)
            ]
            return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
        try:
            return self._evaluate(images)
        except (*_NO_MEMORY, *_RUNTIME_ERRORS) as error:
            if not _ran_out(error):
                raise self._misfit(error, images.shape[1:]) from error
            if len(images) <= 1:
                raise self._too_large("a single image", images.shape[1:], error) from error
            self._halve(len(images))
        return self._bounded(images)

    def _halve(self, n_images: int) -> None:
        """Go on with fewer images at a time; another call may have come to fewer already."""
        half = max(1, n_images // 2)
        if half < self._limit:
            self._limit = half
            _LOG.warning(
                "memory ran out with %d images at a time; going on with %d", n_images, half
            )

    def _evaluate(self, images: Array) -> tuple[Array, ...]:
        if self._chunk is None:
            return self._run(images)
        pieces = [
            self._run_chunk(images[start : start + self._chunk], self._chunk)
            for start in range(0, len(images), self._chunk)
        ]
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    def _run_chunk(self, images: Array, chunk: int) -> tuple[Array, ...]:
        """Run on exactly `chunk` images: an input may take no other number."""
        missing = chunk - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        return tuple(
            result[: len(images)] if result.shape[:1] == (chunk,) else result
            for result in self._run(padded)
        )

    def _run(self, images: Array) -> tuple[Array, ...]:
        shape: tuple[int | None, ...] = images.shape[1:]
        if shape not in self._functions and len(self._functions) >= _SIZES:
            shape = self._any_size(shape)
        function = self._functions.get(shape) or self._compile(shape)
        return tuple(function(images))

    def _any_size(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Leave height and width open, where the network does."""
        taken = self._fit.input
        ranks = [layer.tensor.shape for layer in self._wanted.layers]
        bound = taken.height or taken.width or taken.features or self._wanted.sized
        if bound or None in ranks:
            return shape
        return (None, None, shape[2])

    def _compile(self, shape: tuple[int | None, ...]) -> Run:
        fixed = self._fit.shape
        if any(want not in (None, have) for want, have in zip(fixed, shape, strict=True)) and (
            self._fit.input.height or self._fit.input.features or fixed[2] != shape[2]
        ):
            raise MisfitError(
                f"images of shape {shape} came where the network was prepared for {fixed}",
                hint="--resize brings all images to one size",
            )
        if self._graph.run is not None:
            self._functions[shape] = self._interpreted
            return self._interpreted
        spec = tf.TensorSpec((self._chunk, *shape), tf.dtypes.as_dtype(self._fit.dtype))
        try:
            body = functools.partial(self._body, self._folded(shape))
            # Not tf.function: its automatic control edges break the control flow of TF1 graphs.
            function = tf.compat.v1.wrap_function(body, [spec])
            fewest = self._chunk or max(_TRIED)
            most = check_room(function.graph, n_images=fewest, path=self._wanted.path)
            run = self._engine.compile(function, batch_size=self._limit)
        except UnservedError as error:
            return self._run_by_tensorflow(shape, error)
        except CnnfeatError:
            raise
        except _RUNTIME_ERRORS as error:
            raise self._misfit(error, shape) from error
        self._limit = min(self._limit, most)
        self._functions[shape] = run
        return run

    def _run_by_tensorflow(self, shape: tuple[int | None, ...], error: UnservedError) -> Run:
        """Compile with TensorFlow what another engine can't run, if that may be."""
        options = self._wanted.options
        if options.engine != "auto":
            raise NetworkError(
                f"--engine {options.engine} can't run {self._names()} of {self._wanted.path}: "
                f"{error.message}",
                hint="--engine tensorflow can; --engine auto takes it by itself",
            ) from error
        if self._settled:  # and stands in the file
            raise NetworkError(
                f"{self._engine.name}, which has run {self._names()} of {self._wanted.path} for "
                f"other images, can't for those of shape {shape}: {error.message}",
                hint="--engine tensorflow runs them all",
            ) from error
        _LOG.info("TensorFlow runs it, as %s can't: %s", self._engine.name, error.message)
        self._engine = TensorFlow(options.precision)
        self._functions.clear()
        return self._compile(shape)

    def _interpreted(self, images: Array) -> list[Array]:
        """Run a graph that is not TensorFlow's."""
        wanted, run = self._wanted, self._graph.run
        nodes = nodes_by_name(wanted.part)
        fed = {name: feed.spread(len(images)) for name, feed in wanted.feeds.items()}
        fed[self._fit.input.tensor] = self._fit(tf.constant(images))
        values = {name: value.numpy() for name, value in fed.items()}
        names = [layer.tensor.name for layer in wanted.layers]
        found = run(values, names) if run is not None else []
        return [
            as_array(self._finish(fed.get(name, tf.constant(value)), name, nodes))
            for name, value in zip(names, found, strict=True)
        ]

    def _folded(self, shape: tuple[int | None, ...]) -> Folded:
        """The nodes to be computed for images of a shape, and the weights they take."""
        graph, wanted = self._graph, self._wanted
        part = wanted.part
        if wanted.sized is not None:
            height, width = (length or 1 for length in shape[:2])
            graph, part = wanted.sized((height, width))
        elif self._kept is not None:
            return self._kept
        self._kept = folded(
            part,
            graph.weights,
            fetches=[layer.tensor.name for layer in wanted.layers],
            fed=[self._fit.input.tensor, *wanted.feeds],
            infos=wanted.infos,
            path=wanted.path,
        )
        return self._kept

    def _body(self, taken: Folded, images: tf.Tensor) -> list[tf.Tensor]:
        wanted = self._wanted
        nodes = nodes_by_name(wanted.part)
        values = self._fit(images)
        n_images = tf.shape(images)[0]
        fed = {name: feed.spread(n_images) for name, feed in wanted.feeds.items()}
        fed[self._fit.input.tensor] = values
        held = self._engine.bind(taken.values)
        names = [layer.tensor.name for layer in wanted.layers]
        fetches = [name for name in names if name not in fed]
        found = iter(import_part(taken.part, {**held, **fed}, fetches=fetches, name="network"))
        return [
            self._finish(fed[name] if name in fed else next(found), name, nodes) for name in names
        ]

    def _finish(
        self, tensor: tf.Tensor, name: str, nodes: Mapping[str, tf.compat.v1.NodeDef]
    ) -> tf.Tensor:
        first = _channels_first(nodes, name)
        pooled = _pooled(tensor, self._wanted.options.pool, channels_first=first)
        returned = _RETURNED.get(pooled.dtype.name)
        return tf.identity(pooled) if returned is None else tf.cast(pooled, returned)

    def _try_out(self) -> tuple[ProbeOutput, ...]:
        """Run two and three made-up images: the shapes tell whether rows are images.

        What a pattern asked for and can't be computed is left out.
        """
        layers = self._wanted.layers
        try:
            return self._tried()
        except NetworkError as error:
            if not any(layer.optional for layer in layers) or len(layers) == 1:
                raise
            first = error
        kept = [layer for layer in layers if not layer.optional or self._goes(layer)]
        if not kept:
            raise first
        self._take(kept)
        return self._tried()

    def _goes(self, layer: LayerInfo) -> bool:
        """Whether a layer alone can be computed; says why if not."""
        self._take([layer])
        try:
            self._tried()
        except NetworkError as error:
            _LOG.warning("%s is left out: %s", layer.name, error.message)
            return False
        return True

    def _take(self, layers: Sequence[LayerInfo]) -> None:
        """Compute these layers from now on."""
        self._wanted = dataclasses.replace(self._wanted, layers=layers)
        self._functions.clear()
        self._kept = None
        names = {layer.name for layer in layers}
        self.unsteady = {k: ops for k, ops in self._wanted.unsteady.items() if k in names}

    def _tried(self) -> tuple[ProbeOutput, ...]:
        height, width, channels = self._fit.shape
        counts = (self._chunk,) if self._chunk else _TRIED
        tried = []
        for count in counts:
            shape = (count, height or 1, width or 1, channels)
            try:
                results = self._run(np.resize(np.arange(251, dtype=self._fit.dtype), shape))
            except CnnfeatError:
                raise
            except (*_NO_MEMORY, *_RUNTIME_ERRORS) as error:
                if _ran_out(error):
                    raise self._too_large(f"{count} images", shape[1:], error) from error
                raise self._misfit(error, shape[1:]) from error
            for layer, result in zip(self._wanted.layers, results, strict=True):
                if result.shape[:1] != (count,):
                    raise NetworkError(
                        f"the first axis of {layer.name!r} ({layer.tensor.name}) isn't the images: "
                        f"{count} images of shape {shape[1:]} give {result.shape}",
                        hint="features are tensors with one row an image; see `cnnfeat layers`",
                    )
            tried.append(results)
        self._compare(*tried)
        return tuple(
            self._output(layer, result)
            for layer, result in zip(self._wanted.layers, results, strict=True)
        )

    def _compare(self, first: Sequence[Array], *again: Sequence[Array]) -> None:
        """Note layers whose features of the same images were others the second time."""
        if self._wanted.options.precision != "float32":
            return  # its rounding may differ with the number of images
        changed = {
            layer.name: ["a computation on all images of a batch"]
            for other in again
            for layer, one, two in zip(self._wanted.layers, first, other, strict=True)
            if not _alike(one, two[: len(one)])
        }
        self.unsteady = {**changed, **self.unsteady}

    def _output(self, layer: LayerInfo, result: Array) -> ProbeOutput:
        first = _channels_first(nodes_by_name(self._wanted.part), layer.tensor.name)
        row_shape = result.shape[1:]
        shape = layer.tensor.shape
        original = row_shape
        if self._wanted.options.pool != "none":
            original = tuple(-1 if length is None else length for length in (shape or (None,))[1:])
        return ProbeOutput(
            layer=layer.name,
            tensor=layer.tensor.name,
            op=layer.tensor.op,
            row_shape=row_shape,
            dtype=result.dtype.name,
            original_shape=original,
            original_dtype=layer.tensor.dtype,
            pooling=self._wanted.options.pool,
            axes=_axis_names(len(row_shape), channels_first=first),
            asked="" if layer.asked in (layer.name, layer.tensor.name) else layer.asked,
        )

    def _too_large(
        self, images: str, shape: Sequence[int | None], error: BaseException
    ) -> NetworkError:
        return NetworkError(
            f"{self._wanted.path}: not enough memory for {images} of shape {tuple(shape)}: "
            f"{told(error)}",
            hint="--resize to a smaller size; ask for fewer layers",
        )

    def _misfit(self, error: Exception, shape: Sequence[int | None]) -> MisfitError:
        reason, to = told(error), self._fit.input
        free = None in (to.height, to.width) and to.features is None
        return MisfitError(
            f"images of shape {tuple(shape)} don't go through the network, whose input "
            f"{to.name!r} takes {to}: {reason}",
            hint="--resize HxW brings images to another size" if free and of_size(reason) else "",
        )


def _ran_out(error: Exception) -> bool:
    """Whether memory did, the machine's or a GPU's."""
    if isinstance(error, _NO_MEMORY):
        return True
    raised_by_gpu = isinstance(error, tf.errors.InternalError | tf.errors.UnknownError)
    return raised_by_gpu and _NO_GPU_MEMORY.search(str(error)) is not None


def _alike(one: Array, two: Array) -> bool:
    """Whether two results differ by no more than rounding does; those of other shapes don't say."""
    if one.shape != two.shape or not np.issubdtype(one.dtype, np.floating):
        return True
    largest = np.abs(one, where=np.isfinite(one), out=np.zeros_like(one)).max(initial=0)
    return np.allclose(one, two, rtol=0, atol=_ROUNDING * float(largest), equal_nan=True)


def _stated_batch(feeds: Mapping[str, Feed]) -> int | None:
    """How many images a graph takes whose placeholder `batch_size` was fed."""
    for name, feed in feeds.items():
        if (
            re.fullmatch(r"(.*/)?batch_?size:0", name, re.IGNORECASE)
            and feed.value.dtype.is_integer
        ):
            return max(1, int(feed.value))
    return None


def _channels_first(nodes: Mapping[str, tf.compat.v1.NodeDef], tensor: str) -> bool:
    """Whether the axis after the batch is the channels, by the nearest node that says."""
    name, seen = node_of(tensor), 0
    while name in nodes and seen < 64:
        node = nodes[name]
        if "data_format" in node.attr:
            return node.attr["data_format"].s in (b"NCHW", b"NCDHW")
        if not node.input or node.op == "Transpose":
            return False
        name = node_of(node.input[1] if node.op == "ConcatV1" else node.input[0])
        seen += 1
    return False


def _axis_names(rank: int, *, channels_first: bool = False) -> tuple[str, ...]:
    """Name the axes of one image's activations, the batch axis left out."""
    names = _AXES.get(rank)
    if names is None:
        return tuple(f"axis{axis}" for axis in range(1, rank + 1))
    if channels_first and rank > 1:
        return (names[-1], *names[:-1])
    return names


def _pooled(tensor: tf.Tensor, pooling: str, *, channels_first: bool = False) -> tf.Tensor:
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
    known = get_args(Pooling)
    if pooling not in known:
        raise NetworkError(f"--pool must be one of {', '.join(known)}, not {pooling!r}")


def _product(lengths: Sequence[int | None]) -> int:
    known = [length for length in lengths if length is not None]
    return math.prod(known) if len(known) == len(lengths) else -1


def _numbers(tensor: tf.Tensor) -> tf.Tensor:
    return tf.cast(tensor, tf.uint8) if tensor.dtype == tf.bool else tensor


def _mean_type(dtype: tf.DType) -> tf.DType:
    return dtype if dtype.is_floating else tf.float32
