"""A network: named layers over one flat graph, lookup and probe."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import tensorflow as tf

from cnnfeat.card import ModelCard
from cnnfeat.errors import LayerLookupError, NetworkError, UsageError
from cnnfeat.network import lookup
from cnnfeat.network.augmentation import Augmentation
from cnnfeat.network.blocks import FoundBlock, find_blocks
from cnnfeat.network.devices import choose_device
from cnnfeat.network.feeding import check_placeholders, fed_tensors, image_input
from cnnfeat.network.flattening import importable, own_functions
from cnnfeat.network.formats import Format
from cnnfeat.network.graph import (
    Feed,
    FlatGraph,
    ImageInput,
    NamedTensor,
    ancestors,
    descendants,
    node_of,
    nodes_by_name,
    subgraph,
    tensor_infos,
)
from cnnfeat.network.kernels import Kernel, find_kernel, kernel_nodes
from cnnfeat.network.layers import scope_layers, trunk
from cnnfeat.network.pixelrange import pixels_taken
from cnnfeat.network.preprocessing import fit_images, size_taken
from cnnfeat.network.probe import GraphProbe, Wanted, check_pooling
from cnnfeat.network.runtime import check_precision, eagerly
from cnnfeat.network.soundness import with_ranks
from cnnfeat.network.steadiness import shown, unsteady
from cnnfeat.network.trust import check_operations
from cnnfeat.network.weights import check_restored
from cnnfeat.options import AugmentOptions, ProbeOptions, ReadOptions
from cnnfeat.patterns import is_pattern
from cnnfeat.records import LayerInfo, NetworkBlock, Probe, TensorInfo, ordinal, some_of

_LOG = logging.getLogger("cnnfeat")
AS_IT_IS = ReadOptions()
_AS_THEY_ARE = ProbeOptions()
_KEPT_PROBES = 4
_OTHER_SIZE = (320, 352)  # unlike the first in all that a network makes of it


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a network came from."""

    path: str  # as given
    sha256: str
    format: str  # "keras", "h5", "savedmodel", "graphdef", "checkpoint" or "applications"
    card: ModelCard | None = None
    trusted: bool = False
    read: ReadOptions = AS_IT_IS
    classes: tuple[str, ...] = ()  # what its outputs are of, where a file beside it says so


class Network:
    """A TensorFlow graph with frozen weights, whatever it came from.

    Parameters
    ----------
    graph : FlatGraph
        What loading ended in.
    origin : Origin
        The file, and how it was read: which input takes the images, what others are fed.

    Attributes
    ----------
    layers : tuple of LayerInfo
        In the network's order, a block before what is inside it.
    tensors : tuple of TensorInfo
        All tensors whose values depend on the images.
    input : ImageInput
        The tensor that takes the images.
    """

    def __init__(self, graph: FlatGraph, origin: Origin) -> None:
        own_functions(graph.graph_def)
        self.origin = origin
        self.input: ImageInput = image_input(
            graph.inputs, name=origin.read.input, fed=[name for name, _ in origin.read.feed]
        )
        self._graph = graph
        self._nodes = nodes_by_name(graph.graph_def)
        self._probes: dict[object, Probe] = {}
        infos = _infos(graph) if graph.infos is None else dict(graph.infos)
        if graph.sized is not None:
            infos = _of_any_size(infos, _infos(graph.sized(_OTHER_SIZE)))
        dependent = descendants(graph.graph_def, [self.input.tensor])
        self._dependent = dependent
        self._all = infos
        self.tensors: tuple[TensorInfo, ...] = tuple(
            info for name, info in infos.items() if name.partition(":")[0] in dependent
        )
        known = {info.name for info in self.tensors} | {self.input.tensor}
        named = graph.layers or scope_layers(graph, dependent, images=self.input, infos=infos)
        self.layers: tuple[LayerInfo, ...] = tuple(
            _layer(item, infos) for item in named if item.tensor in known
        )
        self._own_names = lookup.Names(
            layers=[layer.name for layer in self.layers],
            tensors=[info.name for info in self.tensors],
            aliases=graph.aliases,
            scopes={item.scope: item.name for item in named if item.scope},
            top=[layer.name for layer in self.layers if not layer.path],
            listed_by="" if self.format == Format.LIVE.value else lookup.LIST_THEM,
        )
        self._said: set[str] = set()

    @property
    def path(self) -> str:
        """The file, as given."""
        return self.origin.path

    @property
    def sha256(self) -> str:
        """The file's digest, hexadecimal; of a folder, one over all its files."""
        return self.origin.sha256

    @property
    def format(self) -> str:
        """The kind of file: "keras", "savedmodel" ..."""
        return self.origin.format

    @property
    def card(self) -> ModelCard | None:
        """How the model was made, where it was made by `cnnfeat train`."""
        return self.origin.card

    @property
    def classes(self) -> tuple[str, ...]:
        """What it tells apart, where a `labels.txt` beside it says so."""
        return self.origin.classes

    @property
    def read_options(self) -> ReadOptions:
        """How the file was read; with these it is read the same way again."""
        return self.origin.read

    @property
    @eagerly
    def read_as(self) -> ReadOptions:
        """The same, with what was left open or spelled otherwise as it came to be."""
        applied = self.format == Format.APPLICATION.value
        return dataclasses.replace(
            self.read_options,
            signature=self._graph.signature,
            input=self.input.tensor.removesuffix(":0"),
            feed=tuple(
                sorted((name.removesuffix(":0"), feed.plain) for name, feed in self._fed().items())
            ),
            weights=self.read_options.weights or ("imagenet" if applied else None),
        )

    @property
    def image_shape(self) -> tuple[int | None, int | None, int | None]:
        """(height, width, channels) of images it takes; None where any length goes."""
        return self.input.shape

    def size_for(self, image_shape: tuple[int, int, int]) -> tuple[int, int] | None:
        """(height, width) that images of a shape must be brought to; None where any size goes."""
        return size_taken(self.input, image_shape)

    @property
    def default_scale(self) -> str:
        """How pixels are scaled where nothing is said."""
        return self._scaling[0]

    @property
    def scale_reason(self) -> str:
        """Why pixels are scaled so where nothing is said."""
        return self._scaling[1]

    @functools.cached_property
    @eagerly
    def _scaling(self) -> tuple[str, str]:
        if self._graph.scale:
            return self._graph.scale, "as it was trained"
        if tf.dtypes.as_dtype(self.input.dtype).is_integer:
            return "raw", "the input takes whole numbers"
        taken = pixels_taken(self._graph, self.input.tensor)
        if self._graph.rescales and taken.scale is None:
            return "raw", "a layer of the network scales them"
        if taken.scale == "raw":
            return "raw", f"the network scales them itself, in {taken.node}"
        if taken.scale == "unit":
            return "unit", f"the network takes values up to 1, by {taken.node}"
        return "unit", "a guess, as nothing in the network shows what it takes; raw is 0 to 255"

    @property
    def everything(self) -> tuple[LayerInfo, ...]:
        """All tensors that depend on the images, each as a layer of its own name."""
        return tuple(self._tensor_layer(info.name) for info in self.tensors)

    @property
    def trunk(self) -> tuple[LayerInfo, ...]:
        """The layers that every path from the images to the outputs goes through.

        A short list of a long network: the end of each block.
        """
        return trunk(self._graph, self._dependent, self.layers, images=self.input)

    @functools.cached_property
    def blocks(self) -> tuple[NetworkBlock, ...]:
        """Convolution and dense blocks that nobody named, in the network's order.

        Each goes by what a person would call it, such as `conv2`; where that means something else
        here, by the name of its last operation.
        """
        if self._graph.layers:
            return ()
        return tuple(self._block(item) for item in self._found_blocks if not item.named)

    @functools.cached_property
    def _found_blocks(self) -> tuple[FoundBlock, ...]:
        return find_blocks(self._graph, images=self.input, infos=self._all)

    def _block(self, item: FoundBlock) -> NetworkBlock:
        end = self._tensor_layer(f"{item.nodes[-1]}:0")
        if self._is_free(item.name):
            end = dataclasses.replace(end, name=item.name, kind=self._nodes[item.nodes[0]].op)
        weights = tuple(self._all[name] for name in item.weights)
        what: Literal["convolution", "dense"] = "convolution" if item.word == "conv" else "dense"
        return NetworkBlock(end, what, item.number, item.nodes, weights)

    def _is_free(self, name: str) -> bool:
        """Whether no layer or tensor could be meant by a name without slashes."""
        names = self._own_names
        known = {name, f"{name}:0"} & names.aliases.keys()
        return name not in self._parts and name not in names.scopes and not known

    @functools.cached_property
    def _parts(self) -> frozenset[str]:
        return lookup.parts_of(self._own_names)

    @functools.cached_property
    def _names(self) -> lookup.Names:
        """Everything that has a name, and what nobody named."""
        blocks = {
            block.layer.name: block.path_text
            for block in self.blocks
            if f"{block.layer.name}:0" != block.layer.tensor.name
        }
        return dataclasses.replace(self._own_names, blocks=blocks, places=self._places())

    def _places(self) -> dict[str, str]:
        """Say which layer is the second convolution, where it goes by a name of its own."""
        by_node = {node_of(layer.tensor.name): layer.name for layer in reversed(self.layers)}
        places = {}
        for item in self._found_blocks:
            names = [by_node[node] for node in item.nodes if node in by_node]
            if names:
                word = "convolution" if item.word == "conv" else "dense layer"
                places[item.name] = f"the {ordinal(item.number)} {word} is {names[0]!r}"
        return places

    def find(self, names: Sequence[str]) -> tuple[LayerInfo, ...]:
        """Look up layers or tensors by name, path part, pattern or index.

        Returns
        -------
        tuple of LayerInfo
            Each once, in the order asked; a pattern's in the network's order.

        Raises
        ------
        LayerLookupError
            If a name means nothing, or several things.
        """
        found: dict[str, LayerInfo] = {}
        by_name = {layer.name: layer for layer in self.layers}
        for name in names:
            for item in self._find(name):
                if item.is_block:
                    layer = self._block_layer(item.name)
                else:
                    layer = by_name[item.name] if item.is_layer else self._tensor_layer(item.name)
                optional = is_pattern(name) and found.get(layer.name, layer) is layer
                asked = "" if is_pattern(name) else name
                found[layer.name] = dataclasses.replace(layer, optional=optional, asked=asked)
        return tuple(found.values())

    def _block_layer(self, name: str) -> LayerInfo:
        (block,) = (block for block in self.blocks if block.layer.name == name)
        if name not in self._said:
            self._said.add(name)
            _LOG.info("%s: the %s; its end is %s", name, block, block.layer.tensor.name)
        return block.layer

    def _find(self, name: str) -> tuple[lookup.Found, ...]:
        exact = lookup.find_exactly(self._own_names, name)  # then blocks need not be looked for
        if exact:
            return (exact,)
        try:
            return lookup.find(self._names, name)
        except LayerLookupError as error:
            node = self._graph.aliases.get(f"{name}:0", name).partition(":")[0]
            if node in self._nodes:
                self._check_trust(subgraph(self._graph.graph_def, ancestors(self._nodes, [node])))
                raise LayerLookupError(
                    f"{name!r} doesn't depend on the images, so it is no feature of them: it is a "
                    f"weight or another constant, the same for every image",
                    hint="features are activations; `cnnfeat layers` lists them",
                ) from error
            raise

    def _tensor_layer(self, name: str) -> LayerInfo:
        info = self._all[name]
        return LayerInfo(name=name.removesuffix(":0"), kind=info.op, tensor=info)

    @eagerly
    def probe(
        self,
        layers: Sequence[LayerInfo],
        options: ProbeOptions = _AS_THEY_ARE,
        *,
        image_shape: tuple[int, int, int],
        image_dtype: str = "uint8",
        batch_size: int = 512,
    ) -> Probe:
        """Compile one function from images to the activations of `layers`.

        The last few are kept: what is asked for again is not compiled again.

        Parameters
        ----------
        layers : sequence of LayerInfo
            From `find`.
        options : ProbeOptions
            Pooling, precision, scale (by default as `default_scale` says), size and device.
        image_shape : (height, width, channels)
            Of the source's images, before its `target` is applied.
        image_dtype : str
            Of the source's images.
        batch_size : int
            The most images computed at a time; more are cut into several.

        Raises
        ------
        NetworkError
            If the images don't fit, a placeholder has no value, a tensor has no row an image, or
            there is no such device.
        UntrustedModelError
            If what would run has side effects.
        """
        check_pooling(options.pool)
        check_precision(options.precision)
        device = choose_device(options.device)
        asked = (repr(layers), repr(options), tuple(image_shape), image_dtype, batch_size)
        if asked in self._probes:
            return self._probes[asked]
        fitted = fit_images(
            self.input,
            options,
            image_shape=image_shape,
            image_dtype=image_dtype,
            default_scale=self.default_scale,
        )
        wanted = self._wanted(layers, options)
        _LOG.info("images: %s%s", fitted, "" if options.scale else f" ({self.scale_reason})")
        probe = GraphProbe(self._graph, fitted, wanted, batch_size=batch_size, device=device)
        self._warn(probe)
        for oldest in list(self._probes)[: 1 - _KEPT_PROBES]:
            del self._probes[oldest]
        self._probes[asked] = probe
        return probe

    def augmentation(self, options: AugmentOptions) -> Augmentation:
        """Make what varies images by TensorFlow, the same way each time."""
        return Augmentation(options)

    @eagerly
    def kernel(self, layer: LayerInfo) -> Kernel | None:
        """Read the weights that made a layer's activations; None where there are none behind it."""
        return find_kernel(self._graph, layer.tensor.name)

    def kernel_owner(self, layer: LayerInfo) -> LayerInfo:
        """Find the layer whose weights are the nearest to a layer: the first that is behind them.

        It is the layer itself where that has some, is inside a layer that has, or is no named one.
        """
        node = self._kernel_nodes.get(node_of(layer.tensor.name))
        for other in self.layers if layer in self.layers else ():
            if node is not None and self._kernel_nodes.get(node_of(other.tensor.name)) == node:
                return layer if layer.name.startswith(f"{other.name}/") else other
        return layer

    @functools.cached_property
    def _kernel_nodes(self) -> dict[str, str]:
        return kernel_nodes(self._graph)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"a network can't be pickled or copied, and {self.path} is open",
            hint="a path can: save the network, and open it where it is needed",
        )

    def __repr__(self) -> str:
        top = [one for one in self.layers if not one.path]
        ends = [block.layer for block in self.blocks]  # of a network whose layers have no names
        shapes = [f"{one.name} {one.tensor.shape_text}" for one in ends or top]
        return (
            f"Network {self.path} ({self.format}, SHA-256 {self.sha256[:12]} ...)\n"
            f"  images  {self.input.name} {self.input}, scaled {self.default_scale!r}\n"
            f"  {'blocks' if ends else 'layers'}  {some_of(shapes)}"
        )

    def _wanted(self, layers: Sequence[LayerInfo], options: ProbeOptions) -> Wanted:
        if not layers:
            raise NetworkError("no layer was asked for", hint="--layer NAME")
        feeds = self._fed()
        layers = self._computable(layers, feeds)
        part = self._needed(layers, feeds)

        def sized(size: tuple[int, int]) -> tuple[FlatGraph, tf.compat.v1.GraphDef]:
            """The same of the graph for images of one size."""
            graph = self._graph.sized(size) if self._graph.sized else self._graph
            behind = ancestors(
                nodes_by_name(graph.graph_def),
                [layer.tensor.name for layer in layers],
                stop=[self.input.tensor, *feeds],
            )
            part = subgraph(graph.graph_def, behind - set(graph.weights))
            return graph, with_ranks(part, self._all)

        found = unsteady(
            part,
            {layer.name: layer.tensor.name for layer in layers},
            images=self.input.tensor,
            feeds=feeds,
            infos=self._all,
        )
        return Wanted(
            layers,
            part,
            feeds,
            options,
            found,
            self._all,
            self.path,
            None if self._graph.sized is None else sized,
        )

    def _needed(
        self, layers: Sequence[LayerInfo], feeds: Mapping[str, Feed]
    ) -> tf.compat.v1.GraphDef:
        """The nodes that layers need; each has a value and may run."""
        needed = ancestors(
            self._nodes,
            [layer.tensor.name for layer in layers],
            stop=[self.input.tensor, *feeds],
        )
        check_restored([self._nodes[name] for name in needed], path=self.path)
        check_placeholders(
            [self._nodes[name] for name in needed if name not in self._graph.weights],
            self.input,
        )
        part = subgraph(self._graph.graph_def, needed - set(self._graph.weights))
        self._check_trust(part)
        return with_ranks(part, self._all)

    def _computable(
        self, layers: Sequence[LayerInfo], feeds: Mapping[str, Feed]
    ) -> Sequence[LayerInfo]:
        """Leave out, and say, what a pattern asked for and can't be computed from the images."""
        if not any(layer.optional for layer in layers):
            return layers
        try:
            self._needed(layers, feeds)
        except NetworkError as error:
            kept, first = [], error
        else:
            return layers
        for layer in layers:
            try:
                self._needed([layer], feeds)
            except NetworkError as error:
                if not layer.optional:
                    raise
                _LOG.warning("%s is left out: %s", layer.name, error.message)
            else:
                kept.append(layer)
        if not kept:
            raise first
        return kept

    def _warn(self, probe: Probe) -> None:
        """Say, once, which features aren't the same each time."""
        warning = (
            f"{self.path}: some features change from run to run, or with the images beside them in "
            f"a batch: {shown(probe.unsteady)}"
        )
        if probe.unsteady and warning not in self._said:
            self._said.add(warning)
            _LOG.warning("%s", warning)

    def _fed(self) -> dict[str, Feed]:
        named = {item.name: item.tensor for item in self._graph.inputs}
        return fed_tensors(dict(self.read_options.feed), self._all, named=named)

    def _check_trust(self, part: tf.compat.v1.GraphDef) -> None:
        if self._graph.run is not None:
            return  # an interpreter runs it, whose operations only compute
        check_operations(part, path=self.path, trusted=self.origin.trusted)


def _infos(graph: FlatGraph) -> dict[str, TensorInfo]:
    """Describe all tensors of the graph, by importing it where nothing runs."""
    part = importable(graph.graph_def)

    def body() -> None:
        held = {
            f"{name}:0": tf.identity(value, name="cnnfeat_weights/weight")
            for name, value in graph.weights.items()
        }
        tf.graph_util.import_graph_def(part, input_map=held, name="")

    return tensor_infos(tf.compat.v1.wrap_function(body, []).graph)


def _of_any_size(
    infos: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Leave lengths open that are others for images of another size."""
    return {
        name: dataclasses.replace(info, shape=_common(info.shape, other[name].shape))
        for name, info in infos.items()
        if name in other
    }


def _common(
    shape: tuple[int | None, ...] | None, other: tuple[int | None, ...] | None
) -> tuple[int | None, ...] | None:
    if shape is None or other is None or len(shape) != len(other):
        return None
    return tuple(one if one == two else None for one, two in zip(shape, other, strict=True))


def _layer(item: NamedTensor, infos: Mapping[str, TensorInfo]) -> LayerInfo:
    return LayerInfo(item.name, item.kind, infos[item.tensor], item.path)
