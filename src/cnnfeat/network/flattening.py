"""Making any graph flat: functions inlined, unknown operations dropped, big constants taken out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import count

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.grappler import tf_optimizer

from cnnfeat.network.graph import ancestors, consumers_of, node_of, nodes_by_name, subgraph
from cnnfeat.network.trust import called, impure_nodes

_LOG = logging.getLogger("cnnfeat")
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_GRADIENTS = re.compile(r"(^|/)gradients(_\d+)?/")
_WRITES = re.compile(
    r"(Assign|Resource(Apply|SparseApply|Scatter))\w*"
    r"|(Scalar|Histogram|Image|Audio|Tensor|Merge)Summary(V2)?"
)
_BY_REFERENCE = {"RefSwitch", "RefMerge", "RefEnter", "RefExit", "RefNextIteration", "RefIdentity"}
_STILL = {"Placeholder", "PlaceholderWithDefault", "VarHandleOp", "VariableV2", "Variable"}
_GRAPHS = count(1)
_BIG_BYTES = 16 << 10  # a constant of more is a weight


def inline_functions(
    graph_def: tf.compat.v1.GraphDef, fetches: Iterable[str]
) -> tf.compat.v1.GraphDef:
    """Put the bodies of called functions in place of the calls, as deep as they go.

    TensorFlow's own optimiser does it; nothing runs. A call that can't be inlined stays.
    """
    functions = {function.signature.name for function in graph_def.library.function}
    if not functions or not any(
        node.op in CALLS or node.op in functions for node in graph_def.node
    ):
        return graph_def
    for function in graph_def.library.function:
        for key in ("api_implements", "_noinline", "api_preferred_device"):
            if key in function.attr:
                del function.attr[key]
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    fetched = meta.collection_def["train_op"].node_list.value
    fetched.extend(sorted({node_of(fetch) for fetch in fetches}))
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.optimizers.append("function")
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    rewrite.min_graph_nodes = -1
    rewrite.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewrite.meta_optimizer_timeout_ms = -1
    rewrite.fail_on_optimizer_errors = False
    try:
        inlined = tf_optimizer.OptimizeGraph(config, meta)
    except (tf.errors.OpError, ValueError) as error:
        _LOG.debug("functions stay as they are: %s", error)
        return graph_def
    _unplace(inlined)
    return _without_seams(inlined)


def _without_seams(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Take out what inlining leaves at the border of each function: identities, and waiting.

    A function's nodes wait for all that it is given, needed or not. An input or a variable's handle
    has nothing to do that could be waited for.
    """
    still = {node.name for node in graph_def.node if node.op in _STILL}
    through = {
        node.name: node.input[0]
        for node in graph_def.node
        if node.name.startswith("Func/") and node.op == "Identity" and node.input
    }

    def source(entry: str) -> str:
        while (node := entry.removesuffix(":0")) in through:
            entry = through[node]
        return entry

    for node in graph_def.node:
        inputs = [
            entry if entry[0] == "^" else source(entry)
            for entry in node.input
            if entry.removeprefix("^") not in still or entry[0] != "^"
        ]
        del node.input[:]
        node.input.extend(inputs)
    return graph_def


def known_part(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Drop nodes of operations this TensorFlow doesn't have, and what depends on them.

    Devices and colocations go too: they name the machine the graph was made on.
    """
    _unplace(graph_def)
    functions = {function.signature.name: function for function in graph_def.library.function}
    bad_functions = {
        name
        for name, function in functions.items()
        if any(not _known(node.op) and node.op not in functions for node in function.node_def)
    }
    lost = {
        node.name
        for node in graph_def.node
        if not (_known(node.op) or node.op in functions)
        or bad_functions.intersection(called([node]))
    }
    if not lost:
        return graph_def
    _LOG.debug("operations this TensorFlow doesn't have: %d nodes left out", len(lost))
    return without(graph_def, lost)


def _unplace(graph_def: tf.compat.v1.GraphDef) -> None:
    for nodes in (graph_def.node, *(item.node_def for item in graph_def.library.function)):
        for node in nodes:
            node.device = ""
            if "_class" in node.attr:
                del node.attr["_class"]


def own_functions(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Give the functions of a graph names of their own, in place.

    TensorFlow keeps one function a name in a process, and every file has a `cond_true_27`.
    """
    number = next(_GRAPHS)
    names = {
        function.signature.name: f"{function.signature.name}_graph{number}"
        for function in graph_def.library.function
    }
    if not names:
        return graph_def
    for function in graph_def.library.function:
        function.signature.name = names[function.signature.name]
        _rename_calls(function.node_def, names)
    for gradient in graph_def.library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)
    _rename_calls(graph_def.node, names)
    return graph_def


def _rename_calls(nodes: Iterable[tf.compat.v1.NodeDef], names: Mapping[str, str]) -> None:
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            if value.HasField("func"):
                value.func.name = names.get(value.func.name, value.func.name)
            for function in value.list.func:
                function.name = names.get(function.name, function.name)


def importable(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Leave out what importing a graph could run.

    To find out shapes, TensorFlow evaluates parts of a graph that look constant to it, and to it
    reading a file is constant. Operations it knows to have a state it never evaluates.
    """
    impure = impure_nodes(graph_def)
    lost = {node.name for node in graph_def.node if node.name in impure and not _stateful(node.op)}
    return without(graph_def, lost) if lost else graph_def


def _stateful(operation: str) -> bool:
    definition = op_def_registry.get(operation)
    return definition is not None and bool(definition.is_stateful)


def forward_part(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Drop what trains, saves and initialises: whatever writes to variables, and gradients."""
    for node in graph_def.node:
        if node.op in _BY_REFERENCE:
            node.op = node.op.removeprefix("Ref")
    lost = {node.name for node in graph_def.node if _is_training(node)}
    return without(graph_def, lost) if lost else graph_def


def _is_training(node: tf.compat.v1.NodeDef) -> bool:
    if _GRADIENTS.search(node.name) or _WRITES.fullmatch(node.op):
        return True
    definition = op_def_registry.get(node.op)
    return definition is not None and any(argument.is_ref for argument in definition.input_arg)


def without(graph_def: tf.compat.v1.GraphDef, lost: set[str]) -> tf.compat.v1.GraphDef:
    """Drop nodes and everything that depends on them."""
    lost = set(lost)
    nodes = nodes_by_name(graph_def)
    consumers = consumers_of(nodes, set(nodes))
    waiting = list(lost)
    while waiting:
        for name in consumers.get(waiting.pop(), ()):
            if name not in lost:
                lost.add(name)
                waiting.append(name)
    return subgraph(graph_def, set(nodes) - lost)


def needed_part(graph_def: tf.compat.v1.GraphDef, fetches: Iterable[str]) -> tf.compat.v1.GraphDef:
    """Keep what `fetches` need."""
    return subgraph(graph_def, ancestors(nodes_by_name(graph_def), fetches))


def take_out_constants(graph_def: tf.compat.v1.GraphDef) -> dict[str, tf.Tensor]:
    """Turn big constants of a graph into placeholders, in place, and return their values."""
    weights = {}
    for node in graph_def.node:
        if node.op != "Const" or node.attr["value"].tensor.ByteSize() < _BIG_BYTES:
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        if not (np.issubdtype(value.dtype, np.number) or value.dtype.kind == "V"):
            continue
        weights[node.name] = tf.constant(value)
        make_placeholder(node, weights[node.name].dtype, value.shape)
    return weights


def make_placeholder(
    node: tf.compat.v1.NodeDef, dtype: tf.DType, shape: Iterable[int | None] | None = None
) -> None:
    """Turn a node into a placeholder of the same name, in place."""
    node.op = "Placeholder"
    del node.input[:]
    for key in list(node.attr):
        if key != "_class":
            del node.attr[key]
    if "_class" in node.attr:
        del node.attr["_class"]
    node.attr["dtype"].type = dtype.as_datatype_enum
    if shape is not None:
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(list(shape)).as_proto())


def _known(operation: str) -> bool:
    return op_def_registry.get(operation) is not None


def modernise(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Rewrite withdrawn operations of a graph, in place.

    `BatchNormWithGlobalNormalization` went in 2015, yet it is in the most copied graph there is,
    the Inception of that year.
    """
    for node in list(graph_def.node):
        if node.op == "BatchNormWithGlobalNormalization":
            _rewrite_batch_norm(graph_def, node)
    return graph_def


def _rewrite_batch_norm(graph_def: tf.compat.v1.GraphDef, node: tf.compat.v1.NodeDef) -> None:
    values, mean, variance, beta, gamma = node.input[:5]
    epsilon = node.attr["variance_epsilon"].f
    dtype = node.attr["T"].type
    if not node.attr["scale_after_normalization"].b:
        gamma = f"{node.name}/ones"
        ones = graph_def.node.add(name=gamma, op="OnesLike", input=[mean])
        ones.attr["T"].type = dtype
    node.op = "FusedBatchNormV3"
    node.ClearField("attr")
    node.ClearField("input")
    node.input.extend([values, gamma, beta, mean, variance])
    node.attr["T"].type = dtype
    node.attr["U"].type = dtype
    node.attr["epsilon"].f = epsilon
    node.attr["is_training"].b = False
