"""Changes to graphs as messages: names, inputs, attributes, shapes, operations and functions."""

from __future__ import annotations

from random import Random

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, node_def_pb2, op_def_pb2, types_pb2
from tensorflow.python.framework import op_def_registry

LENGTHS = (-(2**63), -7, -1, 0, 1, 2, 3, 8, 255, 2**16, 2**31 - 1, 2**31, 10**12, 2**62, 2**63 - 1)
NUMBERS = (*LENGTHS, -2, 4, 16, 2**32)
NAMES = ("", "x", "out", "a b", "_x", "/", "a/" * 300 + "b", "\x1b[31m", "é", "^x", "x:1", "..")
TEXTS = (b"", b"VALID", b"SAME", b"EXPLICIT", b"NCHW", b"NHWC", b"\xff\xfe", b"x" * 5000, b"loc:@x")
_DTYPES = [number for number in types_pb2.DataType.values() if number < 100]
_OPS = sorted(
    name for name in dir(tf.raw_ops) if name[0].isupper() and op_def_registry.get(name) is not None
)


def change_graph(random: Random, graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Change 1 to 5 things in a copy of a graph."""
    changed = tf.compat.v1.GraphDef()
    changed.CopyFrom(graph)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        body = changed.node
        if changed.library.function and random.random() < 0.4:
            function = random.choice(changed.library.function)
            body = function.node_def
            if random.random() < 0.3:
                _change_function(random, function, changed)
                continue
        _change_body(random, body, changed)
    return changed


def _change_body(  # noqa: PLR0912 - a kind of change each
    random: Random, body: object, graph: tf.compat.v1.GraphDef
) -> None:
    if not len(body):
        body.add(name="x", op="Placeholder")
    node = random.choice(body)
    names = [item.name for item in body]
    how = random.randrange(13)
    if how == 0:
        node.name = random.choice((*NAMES, *names))
    elif how in (1, 2):
        _change_inputs(random, node, names)
    elif how in (3, 4, 5):
        change_attribute(random, node, graph)
    elif how == 6:
        node.op = random.choice(_OPS)
        _fill_attributes(random, node)
    elif how == 7:
        new = body.add(name=f"new{random.randrange(9)}", op=random.choice(_OPS))
        _fill_attributes(random, new)
        definition = op_def_registry.get(new.op)
        new.input.extend(random.choice(names) for _ in definition.input_arg)
        if random.random() < 0.7:
            _take_its_place(random, body, new)
    elif how == 8:
        body.remove(node)
    elif how == 9:
        body.add().CopyFrom(node)
    elif how == 10:
        node.op = random.choice((*NAMES, random.choice(names)))
    elif how == 11:
        consts = [item for item in body if item.op == "Const"]
        if consts:
            _change_tensor(random, random.choice(consts).attr["value"].tensor)
    else:
        graph.versions.producer = random.choice(NUMBERS) % 2**31
        graph.versions.min_consumer = random.choice((0, 0, 1, 2**31 - 1))


def _take_its_place(random: Random, body: object, new: node_def_pb2.NodeDef) -> None:
    """Make a node that took another's value take the new one's."""
    takers = [item for item in body if len(item.input) and item.name != new.name]
    if takers:
        taker = random.choice(takers)
        taker.input[random.randrange(len(taker.input))] = new.name


def _change_inputs(random: Random, node: node_def_pb2.NodeDef, names: list[str]) -> None:
    other = random.choice((*names, node.name, "missing"))
    entry = random.choice((other, f"{other}:{random.choice((1, 2, 7, -1, 2**31))}", f"^{other}"))
    if not len(node.input) or random.random() < 0.2:
        node.input.append(entry)
        return
    at = random.randrange(len(node.input))
    if random.random() < 0.2:
        del node.input[at]
    else:
        node.input[at] = entry


def change_attribute(
    random: Random, node: node_def_pb2.NodeDef, graph: tf.compat.v1.GraphDef
) -> None:
    """Change one attribute of a node to another value of its kind, or of another."""
    if not node.attr:
        node.attr["T"].type = random.choice(_DTYPES)
        return
    key = random.choice(sorted(node.attr))
    value = node.attr[key]
    kind = value.WhichOneof("value")
    if random.random() < 0.1:
        del node.attr[key]
    elif random.random() < 0.1:
        value.CopyFrom(
            _made(random, random.choice(("int", "type", "shape", "string", "list(int)")))
        )
    elif kind == "shape":
        _change_shape(random, value.shape)
    elif kind == "tensor":
        _change_tensor(random, value.tensor)
    elif kind == "type":
        value.type = random.choice(_DTYPES)
    elif kind == "i":
        value.i = random.choice(NUMBERS)
    elif kind == "f":
        value.f = random.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    elif kind == "b":
        value.b = not value.b
    elif kind == "s":
        value.s = random.choice(TEXTS)
    elif kind == "func":
        functions = [item.signature.name for item in graph.library.function]
        value.func.name = random.choice((*functions, "", "missing"))
    elif kind == "list":
        _change_list(random, value.list)


def _change_list(random: Random, values: attr_value_pb2.AttrValue.ListValue) -> None:
    for items, make in (
        (values.i, lambda: random.choice(NUMBERS)),
        (values.type, lambda: random.choice(_DTYPES)),
        (values.s, lambda: random.choice(TEXTS)),
    ):
        if len(items):
            if random.random() < 0.3:
                items.append(make())
            elif random.random() < 0.3:
                del items[random.randrange(len(items))]
            else:
                items[random.randrange(len(items))] = make()
    for shape in values.shape:
        _change_shape(random, shape)


def _change_shape(random: Random, shape: object) -> None:
    if random.random() < 0.1:
        shape.unknown_rank = not shape.unknown_rank
    if not len(shape.dim) or random.random() < 0.2:
        shape.dim.add(size=random.choice(LENGTHS))
    elif random.random() < 0.2:
        del shape.dim[random.randrange(len(shape.dim))]
    else:
        random.choice(shape.dim).size = random.choice(LENGTHS)


def _change_tensor(random: Random, tensor: object) -> None:
    how = random.randrange(5)
    if how == 0:
        _change_shape(random, tensor.tensor_shape)
    elif how == 1:
        tensor.dtype = random.choice(_DTYPES)
    elif how == 2:
        tensor.tensor_content = tensor.tensor_content[: random.choice((0, 1, 7))]
    elif how == 3:
        del tensor.float_val[:]
        tensor.float_val.append(random.choice((float("nan"), 1e38, -1.0)))
    else:
        value = random.choice(NUMBERS)
        del tensor.tensor_shape.dim[1:]
        tensor.ClearField("tensor_content")
        if tensor.dtype == types_pb2.DT_INT64:
            tensor.int64_val[:] = [value]
        else:
            tensor.int_val[:] = [value % 2**31]


def _change_function(random: Random, function: object, graph: tf.compat.v1.GraphDef) -> None:
    how = random.randrange(6)
    others = [item.signature.name for item in graph.library.function]
    if how == 0:
        function.signature.name = random.choice((*others, *NAMES))
    elif how == 1 and len(function.signature.input_arg):
        del function.signature.input_arg[random.randrange(len(function.signature.input_arg))]
    elif how == 2 and function.ret:
        del function.ret[random.choice(sorted(function.ret))]
    elif how == 3 and function.ret:
        function.ret[random.choice(sorted(function.ret))] = random.choice(("", "x", "x:0", "a:b:9"))
    elif how == 4:
        for value in (value for node in function.node_def for value in node.attr.values()):
            if value.HasField("func"):
                value.func.name = random.choice(others)
    else:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            if random.random() < 0.4:
                argument.type = random.choice(_DTYPES)


def _fill_attributes(random: Random, node: node_def_pb2.NodeDef) -> None:
    """Give a node the attributes that its operation must have."""
    definition = op_def_registry.get(node.op)
    dtype = random.choice((1, 1, 1, 3, 9))
    for attribute in definition.attr:
        if attribute.name in node.attr and random.random() < 0.5:
            continue
        if attribute.HasField("default_value") and random.random() < 0.8:
            node.attr[attribute.name].CopyFrom(attribute.default_value)
        elif attribute.type == "type":
            node.attr[attribute.name].type = dtype
        else:
            node.attr[attribute.name].CopyFrom(_made(random, attribute.type, attribute))


def _made(
    random: Random, kind: str, definition: op_def_pb2.OpDef.AttrDef | None = None
) -> attr_value_pb2.AttrValue:
    """A value of a kind; of those that an operation allows, where it says which."""
    value = attr_value_pb2.AttrValue()
    allowed = definition.allowed_values.list.s if definition is not None else ()
    if kind == "int":
        value.i = random.choice((1, 1, 2, random.choice(NUMBERS)))
    elif kind == "float":
        value.f = random.choice((0.0, 0.5, 1.0))
    elif kind == "bool":
        value.b = random.random() < 0.5
    elif kind == "string":
        value.s = random.choice(list(allowed) or TEXTS)
    elif kind == "type":
        value.type = random.choice(_DTYPES)
    elif kind == "shape":
        for _ in range(random.randrange(5)):
            value.shape.dim.add(size=random.choice(LENGTHS))
    elif kind == "list(int)":
        value.list.i.extend(random.choice((1, 1, 2, random.choice(NUMBERS))) for _ in range(4))
    elif kind == "list(type)":
        value.list.type.extend([1, 1])
    else:
        value.list.SetInParent()
    return value
