"""Whether a stranger's graph has an end and finds room, before anything follows or computes it.

A graph of a few bytes can declare constants of terabytes, need itself, or call functions that call
others twice as often, and so on: what walks it then, here or in TensorFlow, comes to no end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf
from tensorflow.core.framework import function_pb2, tensor_pb2, types_pb2
from tensorflow.python.framework import op_def_registry

from cnnfeat.errors import NetworkError
from cnnfeat.memory import available_bytes
from cnnfeat.network.flattening import CALLS
from cnnfeat.network.graph import node_of, tensor_of
from cnnfeat.network.trust import called
from cnnfeat.records import TensorInfo, some_of

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_BACK = ("NextIteration", "RefNextIteration")  # the only way back there is: a loop's next round
# Far more than in any network; with as many TensorFlow is done in a minute.
_DEEPEST, _MOST_CALLS, _MOST_NODES = 200, 10_000, 1_000_000
_TYPES = {number for number in types_pb2.DataType.values() if 0 < number < 100}  # no references
_RANKS = {"Conv2D": 4, "DepthwiseConv2dNative": 4, "Conv3D": 5}
_COUNTED = "_cnnfeat_ranks"
_HANDING_ON = ("Merge", "RefMerge", "Enter", "RefEnter", "Identity")
_MOST_STEPS = 1_000
_LONGEST_NAME, _DEEPEST_SCOPE = 4_096, 100
_LONGEST_SHAPE_BYTES = 1 << 26  # of whole numbers: TensorFlow may take them for a shape
_SHARE = 2  # of the memory, what one thing may take: TensorFlow holds what it copies twice
_ALTERED = "the file is damaged, or made to fill the memory"


def check_graph(graph_def: tf.compat.v1.GraphDef, *, path: str) -> None:
    """Refuse a graph that can't be followed to its end, or whose constants fill the memory.

    Parameters
    ----------
    graph_def : GraphDef
        As it was read.
    path : str
        The file, for messages.

    Raises
    ------
    NetworkError
        Naming the nodes or functions.
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    _check_names(graph_def, path)
    _check_shapes(graph_def, path)
    _check_placeholders(graph_def, path)
    _check_constants(graph_def, path)
    for place, nodes in _bodies(graph_def):
        needs = {node.name: list(map(node_of, node.input)) for node in nodes}
        for node in nodes:
            if node.op in _BACK:
                needs[node.name] = []
        _, circle = _in_order(needs)
        if circle:
            raise NetworkError(
                f"{path}: nodes of it need each other, so that none can be computed: "
                f"{some_of([f'{place}{name}' for name in circle])}"
            )
    _check_loops(graph_def, path)
    _check_calls(graph_def, functions, path)
    check_computed_constants(graph_def, path=path)


def _check_names(graph_def: tf.compat.v1.GraphDef, path: str) -> None:
    for _, nodes in _bodies(graph_def):
        for node in nodes:
            if len(node.name) > _LONGEST_NAME or node.name.count("/") > _DEEPEST_SCOPE:
                raise NetworkError(
                    f"{path}: the name {node.name[:40]!r}... has {len(node.name):,} characters in "
                    f"{node.name.count('/'):,} scopes; {_LONGEST_NAME:,} and {_DEEPEST_SCOPE} are "
                    "the most"
                )


def _check_shapes(graph_def: tf.compat.v1.GraphDef, path: str) -> None:
    """Refuse lengths below 0, but for -1 where one is left open: TensorFlow aborts at some."""
    for place, nodes in _bodies(graph_def):
        for node in nodes:
            for key, value in node.attr.items():
                least = 0 if value.HasField("tensor") else -1
                stated = value.tensor.tensor_shape if least == 0 else value.shape
                for shape in (stated, *value.list.shape):
                    wrong = [dim.size for dim in shape.dim if dim.size < least]
                    if wrong:
                        raise NetworkError(
                            f"{path}: {key!r} of the node {f'{place}{node.name}'!r} states a "
                            f"length of {wrong[0]}"
                        )


def _check_placeholders(graph_def: tf.compat.v1.GraphDef, path: str) -> None:
    """Refuse inputs of no type, and immense ones: to inline functions TensorFlow makes them up."""
    room = available_bytes() // _SHARE
    for node in graph_def.node:
        if not node.op.startswith("Placeholder"):
            continue
        dtype = node.attr["dtype"].type if "dtype" in node.attr else 0
        if dtype not in _TYPES:
            raise NetworkError(f"{path}: the input {node.name!r} is of {_type_name(dtype)}")
        lengths = [max(1, dim.size) for dim in node.attr["shape"].shape.dim]
        numbers = math.prod(lengths) if lengths else 1
        if numbers > room:
            raise NetworkError(
                f"{path}: the input {node.name!r} takes {numbers:,} numbers at a time, and "
                f"{room:,} bytes can be had for them"
            )


def _check_constants(graph_def: tf.compat.v1.GraphDef, path: str) -> None:
    tensors = {
        f"{place}{node.name}": (node.attr["dtype"].type, node.attr["value"].tensor)
        for place, nodes in _bodies(graph_def)
        for node in nodes
        if node.op.endswith("Const")
    }
    for name, (dtype, tensor) in tensors.items():
        if dtype != tensor.dtype:  # TensorFlow believes the first, and aborts at the second
            raise NetworkError(
                f"{path}: the constant {name!r} is said to be of {_type_name(dtype)}, and is of "
                f"{_type_name(tensor.dtype)}"
            )
        stored, declared = len(tensor.tensor_content), _declared_bytes(tensor)
        if stored and stored != declared:
            raise NetworkError(
                f"{path}: the constant {name!r} declares {declared:,} bytes and holds {stored:,}"
            )
    sizes = {name: _declared_bytes(tensor) for name, (_, tensor) in tensors.items()}
    total, room = sum(sizes.values()), available_bytes() // _SHARE
    if total > room:
        largest = max(sizes, key=lambda name: sizes[name])
        raise NetworkError(
            f"{path}: its constants take {total:,} bytes, {largest!r} alone {sizes[largest]:,}, "
            f"and {room:,} can be had for them",
            hint=_ALTERED,
        )


def _check_loops(graph_def: tf.compat.v1.GraphDef, path: str) -> None:
    """Refuse conditions of several values: TensorFlow looks at the first rounds, and aborts."""
    for place, body in _bodies(graph_def):
        nodes = {node.name: node for node in body}
        for node in body:
            if node.op != "LoopCond" or not node.input:
                continue
            condition = nodes.get(node_of(node.input[0]))
            for entry in condition.input if condition is not None else ():
                constant = _constant_behind(nodes, entry)
                if constant is None:
                    continue
                shape = constant.attr["value"].tensor.tensor_shape
                if math.prod(dim.size for dim in shape.dim) != 1:
                    raise NetworkError(
                        f"{path}: the condition {place}{node.name!r} of a loop compares more than "
                        f"one number, those of {constant.name!r}"
                    )


def _constant_behind(
    nodes: Mapping[str, tf.compat.v1.NodeDef], entry: str
) -> tf.compat.v1.NodeDef | None:
    """The constant that a value of a loop begins with."""
    for _ in range(len(_HANDING_ON) + 1):
        node = nodes.get(node_of(entry))
        if node is None or node.op == "Const" or node.op not in _HANDING_ON or not node.input:
            return node if node is not None and node.op == "Const" else None
        entry = node.input[0]
    return None


def with_ranks(
    graph_def: tf.compat.v1.GraphDef, infos: Mapping[str, TensorInfo]
) -> tf.compat.v1.GraphDef:
    """Have the axes counted, in place, of what convolutions take and no shape says.

    Their kernels don't, and abort where there are fewer.

    Parameters
    ----------
    graph_def : GraphDef
        Nodes that are to be computed, and functions.
    infos : mapping
        Tensors by name, as far as their shapes are known.
    """
    altered = False
    for place, body in _bodies(graph_def):
        for node in [node for node in body if node.op in _RANKS]:
            for slot, entry in enumerate(node.input[:2]):
                info = None if place else infos.get(tensor_of(entry))
                if entry[0] == "^" or (info is not None and info.shape is not None):
                    continue
                name = f"{node.name}/cnnfeat_rank_{slot}"
                counted = body.add(name=name, op="EnsureShape", input=[entry])
                counted.attr["T"].CopyFrom(node.attr["T"])
                for _ in range(_RANKS[node.op]):
                    counted.attr["shape"].shape.dim.add(size=-1)
                node.input[slot] = f"{name}:output:0" if place else name
                altered |= bool(place)
    if altered:
        _rename_functions(graph_def)
    return graph_def


def _rename_functions(graph_def: tf.compat.v1.GraphDef) -> None:
    """Give functions other names: TensorFlow keeps each for good, and takes no other of its name.

    Those that Keras has traced it knows already.
    """
    names = {function.signature.name for function in graph_def.library.function}
    for gradient in graph_def.library.gradient:
        gradient.function_name += _COUNTED
        gradient.gradient_func += _COUNTED
    for _, body in _bodies(graph_def):
        for node in body:
            node.op += _COUNTED if node.op in names else ""
            for value in node.attr.values():
                named = [value.func] if value.HasField("func") else value.list.func
                for function in named:
                    function.name += _COUNTED if function.name in names else ""
    for function in graph_def.library.function:
        function.signature.name += _COUNTED


def check_computed_constants(graph_def: tf.compat.v1.GraphDef, *, path: str) -> None:
    """Refuse a graph that computes immense constants, before TensorFlow has all of it.

    To find out shapes it evaluates what depends on constants alone while it takes a graph in. So it
    gets those nodes step by step: what a step makes is known in size before the next could use it.

    Raises
    ------
    NetworkError
        Naming the node and its size.
    """
    nodes = {f"{place}{node.name}": node for place, body in _bodies(graph_def) for node in body}
    needs = {
        f"{place}{node.name}": [f"{place}{node_of(one)}" for one in node.input if one[0] != "^"]
        for place, body in _bodies(graph_def)
        for node in body
    }
    step_of: dict[str, int] = {}
    used: set[str] = set()
    for name in _in_order(needs)[0]:
        if nodes[name].op == "Const":
            step_of[name] = 0
        elif needs[name] and step_of.keys() >= set(needs[name]) and _is_evaluated(nodes[name]):
            step_of[name] = 1 + max(step_of[inner] for inner in needs[name])
            used.update(needs[name], [name])
    last = max((step_of[name] for name in used), default=-1)
    if last > _MOST_STEPS:
        raise NetworkError(
            f"{path}: constants are computed from constants in {last:,} steps; "
            f"{_MOST_STEPS:,} are the most"
        )
    steps: list[list[str]] = [[] for _ in range(last + 1)]
    for name in sorted(used):
        steps[step_of[name]].append(name)
    short = {name: f"constant{number}" for number, name in enumerate(used)}
    known: dict[str, tf.Tensor] = {}
    with tf.Graph().as_default():
        for names in steps:
            part = tf.compat.v1.GraphDef(versions=graph_def.versions)
            for name in names:
                node = part.node.add(name=short[name], op=nodes[name].op)
                node.input.extend(f"{short[inner]}:0" for inner in needs[name])
                for key, value in nodes[name].attr.items():
                    if key[0] != "_":
                        node.attr[key].CopyFrom(value)
            made = tf.graph_util.import_graph_def(
                part,
                {f"{short[inner]}:0": known[inner] for name in names for inner in needs[name]},
                return_elements=[f"{short[name]}:0" for name in names],
                name="",
            )
            for name, tensor in zip(names, made, strict=True):
                _check_constant(tensor, name, path)
                known[name] = tensor


def _bodies(
    graph_def: tf.compat.v1.GraphDef,
) -> Iterator[tuple[str, RepeatedCompositeFieldContainer[tf.compat.v1.NodeDef]]]:
    """The nodes of a graph and of its functions, each with what its nodes' names begin with."""
    yield "", graph_def.node
    for function in graph_def.library.function:
        yield f"{function.signature.name}/", function.node_def


def _check_constant(tensor: tf.Tensor, name: str, path: str) -> None:
    size_bytes = (tensor.shape.num_elements() or 0) * (tensor.dtype.base_dtype.size or 1)
    most = _LONGEST_SHAPE_BYTES if tensor.dtype.is_integer else available_bytes() // _SHARE
    if size_bytes > most:
        raise NetworkError(
            f"{path}: {name!r} ({tensor.op.type}) makes a constant of the shape "
            f"{tuple(tensor.shape.as_list())}, {size_bytes:,} bytes; {most:,} are the most",
            hint=_ALTERED,
        )


def _is_evaluated(node: tf.compat.v1.NodeDef) -> bool:
    """Whether TensorFlow may compute a node to find out shapes; its one output, as most have."""
    definition = op_def_registry.get(node.op)
    if definition is None or definition.is_stateful or node.op in CALLS:
        return False
    outputs = definition.output_arg
    return len(outputs) == 1 and not (outputs[0].number_attr or outputs[0].type_list_attr)


def _type_name(dtype: int) -> str:
    known = types_pb2.DataType.values()
    return str(types_pb2.DataType.Name(dtype)) if dtype in known else f"the unknown type {dtype}"


def _declared_bytes(tensor: tensor_pb2.TensorProto) -> int:
    """Say how large a tensor is that a message declares, however little of it is stored."""
    lengths: list[int] = [max(0, dim.size) for dim in tensor.tensor_shape.dim]
    item_bytes: int = tf.dtypes.as_dtype(tensor.dtype).size or 1
    return math.prod(lengths) * item_bytes


def _check_calls(
    graph_def: tf.compat.v1.GraphDef,
    functions: Mapping[str, function_pb2.FunctionDef],
    path: str,
) -> None:
    """Count what there is once all calls are in the place of the functions they call."""
    needs = {
        name: [one for one in called(function.node_def) if one in functions]
        for name, function in functions.items()
    }
    order, circle = _in_order(needs)
    if circle:
        raise NetworkError(f"{path}: functions of it call each other endlessly: {some_of(circle)}")
    depths, n_calls, n_nodes = dict[str, int](), dict[str, int](), dict[str, int]()
    for name in order:
        inner = needs[name]
        depths[name] = 1 + max((depths[one] for one in inner), default=0)
        n_calls[name] = len(inner) + sum(n_calls[one] for one in inner)
        n_nodes[name] = len(functions[name].node_def) + sum(n_nodes[one] for one in inner)
    outer = [one for one in called(graph_def.node) if one in functions]
    for what, found, most in (
        ("deep", max((depths[one] for one in outer), default=0), _DEEPEST),
        ("times", len(outer) + sum(n_calls[one] for one in outer), _MOST_CALLS),
        ("nodes", len(graph_def.node) + sum(n_nodes[one] for one in outer), _MOST_NODES),
    ):
        if found > most:
            said = {
                "deep": f"its functions call each other {found:,} deep; {most:,} are the most",
                "times": f"functions are called {found:,} times in it; {most:,} are the most",
                "nodes": f"it has {found:,} nodes in all; {most:,} are the most",
            }[what]
            raise NetworkError(f"{path}: {said}")


def _in_order(needs: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Sort names so that each comes after what it needs.

    Returns
    -------
    order : list of str
        Of those that can be.
    circle : list of str
        Some that need each other; [] where there are none.
    """
    missing = {name: sum(one in needs for one in inner) for name, inner in needs.items()}
    takers: dict[str, list[str]] = {name: [] for name in needs}
    for name, inner in needs.items():
        for one in inner:
            if one in takers:
                takers[one].append(name)
    order = [name for name, count in missing.items() if not count]
    for name in order:  # grows meanwhile
        for taker in takers[name]:
            missing[taker] -= 1
            if not missing[taker]:
                order.append(taker)
    left = {name for name, count in missing.items() if count}
    circle: dict[str, None] = {}
    name = min(left, default="")
    while left and name not in circle:
        circle[name] = None
        name = next(one for one in needs[name] if one in left)
    names = list(circle)
    return order, names[names.index(name) :] if names else []


def check_room(graph: tf.Graph, *, n_images: int, path: str) -> int:
    """Hold the largest tensor of a graph that is to be computed against the memory.

    Parameters
    ----------
    graph : tf.Graph
        With the shapes that TensorFlow has found; a first length that it left open is that of the
        images, others are counted as one.
    n_images : int
        The fewest that it must be able to compute at a time.
    path : str
        The network, for messages.

    Returns
    -------
    int
        How many images can be computed at a time, as far as shapes say it.

    Raises
    ------
    NetworkError
        Naming the node and its size.
    """
    room = available_bytes() // _SHARE
    most = max(n_images, room)
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            lengths = [] if tensor.shape.rank is None else tensor.shape.as_list()
            fixed = math.prod(length for length in lengths if length is not None)
            size_bytes = fixed * (tensor.dtype.base_dtype.size or 1)
            batched = bool(lengths) and lengths[0] is None
            if size_bytes * (n_images if batched else 1) > room:
                shape = ", ".join("any" if one is None else f"{one:,}" for one in lengths)
                raise NetworkError(
                    f"{path}: not enough memory for {operation.name.removeprefix('network/')!r} "
                    f"({operation.type}): its shape is ({shape}), {size_bytes:,} bytes"
                    f"{' for each image' if batched else ''}, and {room:,} can be had",
                    hint="--resize to a smaller size; ask for other layers",
                )
            if batched and size_bytes:
                most = min(most, room // size_bytes)
    return most
