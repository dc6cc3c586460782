from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from cnnfeat.errors import NetworkError
from cnnfeat.network import load_network, probe, soundness
from cnnfeat.network.graph import constant_values
from cnnfeat.network.soundness import check_computed_constants, check_graph

GraphDef = tf.compat.v1.GraphDef
_ROOM = 1 << 30


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 GiB, whatever this one has."""
    monkeypatch.setattr(soundness, "available_bytes", lambda: _ROOM)


def relu(graph_def: GraphDef, name: str, *inputs: str) -> None:
    node = graph_def.node.add(name=name, op="Relu", input=inputs)
    node.attr["T"].type = tf.float32.as_datatype_enum


def function(graph_def: GraphDef, name: str, *calls: str) -> None:
    """A function of one argument that calls others one after the other."""
    made = graph_def.library.function.add()
    made.signature.name = name
    made.signature.input_arg.add(name="x", type=tf.float32.as_datatype_enum)
    made.signature.output_arg.add(name="y", type=tf.float32.as_datatype_enum)
    last = "x"
    for number, called in enumerate(calls):
        node = made.node_def.add(name=f"call{number}", op=called, input=[last])
        if called == "Relu":
            node.attr["T"].type = tf.float32.as_datatype_enum
        last = f"call{number}:{'activations' if called == 'Relu' else 'y'}:0"
    made.ret["y"] = last


def graph_of(build: Callable[[tf.Tensor], tf.Tensor]) -> GraphDef:
    graph = tf.Graph()
    with graph.as_default():
        images = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], name="x")
        tf.identity(build(images), name="out")
    return graph.as_graph_def()


@pytest.mark.parametrize(
    ("edges", "named"),
    [
        ({"a": "a"}, "a"),
        ({"a": "b", "b": "a"}, "a, b"),
        ({"a": "x", "b": "d", "c": "b", "d": "c", "e": "d"}, "b, d, c"),
        ({"a": "^a"}, "a"),
    ],
    ids=["itself", "two", "three-of-five", "control"],
)
def test_nodes_that_need_each_other_are_named(edges: dict[str, str], named: str) -> None:
    graph_def = GraphDef()
    for name, entry in edges.items():
        relu(graph_def, name, entry)
    with pytest.raises(NetworkError, match=f"m.pb: nodes of it need each other.*: {named}$"):
        check_graph(graph_def, path="m.pb")


def test_a_loop_goes_back_by_its_next_round_alone() -> None:
    tf.compat.v1.disable_control_flow_v2()
    try:
        graph_def = graph_of(
            lambda x: tf.compat.v1.while_loop(
                lambda i, _: i < 3, lambda i, y: (i + 1, y + 1), [tf.constant(0), x]
            )[1]
        )
    finally:
        tf.compat.v1.enable_control_flow_v2()
    assert {"Enter", "NextIteration"} <= {node.op for node in graph_def.node}
    check_graph(graph_def, path="m.pb")


@pytest.mark.parametrize("inside", [True, False], ids=["limit", "start"])
def test_a_loop_whose_condition_is_of_many_numbers_is_named(inside: bool) -> None:
    tf.compat.v1.disable_control_flow_v2()
    try:
        graph_def = graph_of(
            lambda x: tf.compat.v1.while_loop(
                lambda i, _: i < tf.constant(3, name="limit"),
                lambda i, y: (i + 1, y + 1),
                [tf.constant(0, name="start"), x],
            )[1]
        )
    finally:
        tf.compat.v1.enable_control_flow_v2()
    name = "while/limit" if inside else "start"
    (node,) = (node for node in graph_def.node if node.name == name)
    node.attr["value"].tensor.tensor_shape.dim.add(size=65_536)
    said = f"m.pb: the condition 'while/LoopCond' of a loop compares .*, those of '{name}'"
    with pytest.raises(NetworkError, match=said):
        check_graph(graph_def, path="m.pb")


def test_axes_that_no_shape_says_are_counted(tmp_path: Path) -> None:
    def build(images: tf.Tensor) -> tf.Tensor:
        one = tf.where(tf.reduce_mean(images) > -1.0, 0, 0)  # unknown where it is taken in
        flat = tf.reshape(images, tf.concat([[-1], tf.fill([one + 1], 8)], 0))
        return tf.nn.conv2d(flat, tf.ones([3, 3, 1, 2]), 1, "SAME")

    path = tmp_path / "m.pb"
    path.write_bytes(graph_of(build).SerializeToString())
    network = load_network(path)
    with pytest.raises(
        NetworkError, match=r"is not compatible with expected shape \[\?,\?,\?,\?\]"
    ):
        network.probe(network.find(["out"]), image_shape=(8, 8, 1))


def test_functions_that_call_each_other_are_named() -> None:
    graph_def = GraphDef()
    function(graph_def, "f", "Relu", "g")
    function(graph_def, "g", "f")
    with pytest.raises(NetworkError, match=r"functions of it call each other endlessly: f, g$"):
        check_graph(graph_def, path="m.pb")


def test_calls_that_double_thirty_times_are_counted_not_followed() -> None:
    graph_def = GraphDef()
    function(graph_def, "f0", "Relu")
    for depth in range(1, 31):
        function(graph_def, f"f{depth}", f"f{depth - 1}", f"f{depth - 1}")
    graph_def.node.add(name="call", op="f30", input=["x"])
    with pytest.raises(NetworkError, match=r"called 2,147,483,647 times in it; 10,000 are"):
        check_graph(graph_def, path="m.pb")


def test_a_chain_of_twenty_thousand_functions_is_refused() -> None:
    graph_def = GraphDef()
    function(graph_def, "f0", "Relu")
    for depth in range(1, 20_000):
        function(graph_def, f"f{depth}", f"f{depth - 1}")
    graph_def.node.add(name="call", op="f19999", input=["x"])
    with pytest.raises(NetworkError, match=r"call each other 20,000 deep; 200 are the most"):
        check_graph(graph_def, path="m.pb")


def test_a_chain_of_twenty_thousand_nodes_is_sound() -> None:
    graph_def = GraphDef()
    for number in range(20_000, 0, -1):  # the last first
        relu(graph_def, f"n{number}", f"n{number - 1}")
    check_graph(graph_def, path="m.pb")


@pytest.mark.parametrize("shape", [[10**12], [2**40, 2**40], [3, 10**9]])
def test_a_constant_that_declares_more_than_memory_is_named(shape: list[int]) -> None:
    graph_def = graph_of(lambda x: x + tf.constant([1.0], name="big"))
    (big,) = (node for node in graph_def.node if node.name == "big")
    del big.attr["value"].tensor.tensor_shape.dim[:]
    for length in shape:
        big.attr["value"].tensor.tensor_shape.dim.add(size=length)
    size = f"{4 * int(np.prod([int(n) for n in shape], dtype=object)):,}"
    with pytest.raises(NetworkError, match=f"m.pb: its constants take .* 'big' alone {size}, and"):
        check_graph(graph_def, path="m.pb")


@pytest.mark.parametrize("inside", [False, True], ids=["graph", "function"])
def test_lengths_below_zero_are_named(inside: bool) -> None:
    graph_def = graph_of(lambda x: x + tf.constant([1.0], name="big"))
    (big,) = (node for node in graph_def.node if node.name == "big")
    big.attr["value"].tensor.tensor_shape.dim[0].size = -7
    if inside:
        function(graph_def, "f", "Relu")
        graph_def.library.function[0].node_def.add().CopyFrom(big)
        graph_def.node.remove(big)
    said = f"m.pb: 'value' of the node '{'f/' if inside else ''}big' states a length of -7"
    with pytest.raises(NetworkError, match=said):
        check_graph(graph_def, path="m.pb")


def test_a_shape_may_leave_lengths_open_but_states_none_below_zero() -> None:
    graph_def = graph_of(tf.nn.relu)
    check_graph(graph_def, path="m.pb")
    graph_def.node[0].attr["shape"].shape.dim[0].size = -2
    with pytest.raises(NetworkError, match=r"'shape' of the node 'x' states a length of -2$"):
        check_graph(graph_def, path="m.pb")


def test_a_constant_that_holds_less_than_it_declares_is_named() -> None:
    graph_def = graph_of(lambda x: x + tf.constant([1.0, 2.0], name="big"))
    (big,) = (node for node in graph_def.node if node.name == "big")
    big.attr["value"].tensor.tensor_content = b"1234567"
    with pytest.raises(NetworkError, match="'big' declares 8 bytes and holds 7"):
        check_graph(graph_def, path="m.pb")


@pytest.mark.parametrize(("dtype", "said"), [(0, "DT_INVALID"), (77, "the unknown type 77")])
def test_an_input_of_no_type_is_named(dtype: int, said: str) -> None:
    graph_def = graph_of(tf.nn.relu)
    graph_def.node[0].attr["dtype"].type = dtype
    with pytest.raises(NetworkError, match=f"m.pb: the input 'x' is of {said}$"):
        check_graph(graph_def, path="m.pb")


def test_a_constant_of_two_types_is_named() -> None:
    graph_def = graph_of(lambda x: x + tf.constant([1.0], name="big"))
    (big,) = (node for node in graph_def.node if node.name == "big")
    big.attr["value"].tensor.dtype = tf.uint32.as_datatype_enum
    said = "m.pb: the constant 'big' is said to be of DT_FLOAT, and is of DT_UINT32"
    with pytest.raises(NetworkError, match=said):
        check_graph(graph_def, path="m.pb")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: tf.fill(tf.constant([10**5, 10**5], tf.int64), 1.0), "'Fill' .Fill.*40,0"),
        (lambda: -tf.fill(tf.constant([10**9], tf.int64) * 2, 1.0), "'Fill' .Fill.*8,000,"),
        (lambda: tf.range(tf.constant(10**9, tf.int64)), "'range' .Range.*8,000,0"),
        (lambda: tf.tile(tf.ones([1000]), [10**6]), "'Tile' .Tile.*4,000,0"),
        (lambda: tf.broadcast_to(1.0, [10**5, 10**4]), "'BroadcastTo'.*4,000,0"),
        (lambda: tf.pad(tf.ones([2]), [[10**9, 0]]), "'Pad' .PadV?2?.*4,000,0"),
        (lambda: tf.one_hot(tf.constant([1, 2]), 10**9), "'one_hot' .OneHot.*8,000,0"),
        (lambda: tf.raw_ops.LinSpace(start=0.0, stop=1.0, num=10**9), "LinSpace.*4,000,0"),
    ],
    ids=["fill", "fill-of-a-product", "range", "tile", "broadcast", "pad", "one-hot", "linspace"],
)
def test_what_constants_make_is_known_in_size_before_it_is_made(
    make: Callable[[], tf.Tensor], named: str
) -> None:
    def build(images: tf.Tensor) -> tf.Tensor:
        return images + tf.cast(tf.reshape(make(), [-1])[0], tf.float32)

    with pytest.raises(NetworkError, match=f"m.pb: .*{named}"):
        check_computed_constants(graph_of(build), path="m.pb")


def test_constants_in_a_function_are_looked_at_too() -> None:
    graph = tf.Graph()
    with graph.as_default():

        @tf.function
        def first(x: tf.Tensor) -> tf.Tensor:
            return x + tf.cast(tf.range(tf.constant(10**9, tf.int64))[0], tf.float32)

        first(tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], name="x"))
    with pytest.raises(NetworkError, match=r"m.pb: '__inference_first_\d+/range' .Range"):
        check_computed_constants(graph.as_graph_def(), path="m.pb")


def test_steps_of_constants_are_bounded() -> None:
    graph_def = GraphDef()
    one = graph_def.node.add(name="n0", op="Const")
    one.attr["dtype"].type = tf.float32.as_datatype_enum
    one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    for number in range(1, 1_002):
        relu(graph_def, f"n{number}", f"n{number - 1}")
    with pytest.raises(NetworkError, match=r"from constants in 1,001 steps; 1,000 are the most"):
        check_computed_constants(graph_def, path="m.pb")


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda x: tf.tile(x, [1, 10**5, 10**5, 1]), r"'Tile' \(Tile\): its shape is \(any, 800,0"),
        (lambda x: tf.pad(x, [[0, 0], [10**6, 0], [10**6, 0], [0, 0]]), r"'Pad' \(Pad\)"),
        (lambda x: tf.one_hot(tf.cast(x, tf.int32), 10**9), r"'one_hot' \(OneHot\)"),
        (
            lambda x: tf.raw_ops.ResizeBilinear(images=x, size=[10**6, 10**6]),
            r"'ResizeBilinear' \(ResizeBilinear\).* 4,000,000,000,000 bytes for each image",
        ),
        (lambda x: tf.broadcast_to(x[:1], [10**6, 8, 8, 10]), r"'BroadcastTo' .*\(1,000,000, 8, "),
    ],
    ids=["tile", "pad", "one-hot", "resize", "broadcast"],
)
def test_tensors_that_have_no_room_are_named_before_anything_runs(
    build: Callable[[tf.Tensor], tf.Tensor], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.pb"
    path.write_bytes(graph_of(build).SerializeToString())
    network = load_network(path)
    with pytest.raises(NetworkError, match=rf"m.pb: not enough memory for {named}") as caught:
        network.probe(network.find(["out"]), image_shape=(8, 8, 1))
    assert "--resize" in caught.value.hint


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: keras.layers.ZeroPadding2D(10**6), "Pad"),
        (lambda: keras.layers.UpSampling2D(10**5), "Tile"),
        (lambda: keras.layers.Resizing(10**6, 10**6), "Resize"),
        (lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.RepeatVector(10**9)]), ""),
    ],
    ids=["zero-padding", "up-sampling", "resizing", "repeat-vector"],
)
def test_keras_layers_that_have_no_room_are_named(
    make: Callable[[], keras.Layer], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((8, 8, 1)), make()]).save(path)
    network = load_network(path)
    with pytest.raises(NetworkError, match=rf"m.keras: not enough memory for '.*{kind}"):
        network.probe(network.layers[-1:], image_shape=(8, 8, 1))


def test_what_no_shape_says_is_told_when_memory_has_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_self: object, _images: object) -> None:
        raise tf.errors.ResourceExhaustedError(
            None, None, "OOM when allocating tensor with shape[9] and type float on "
            "/job:localhost/replica:0/task:0/device:CPU:0 by allocator mklcpu"
        )  # fmt: skip

    path = tmp_path / "m.pb"
    path.write_bytes(graph_of(tf.nn.relu).SerializeToString())
    network = load_network(path)
    monkeypatch.setattr(probe.GraphProbe, "_run", exhausted)
    with pytest.raises(NetworkError) as caught:
        network.probe(network.find(["out"]), image_shape=(8, 8, 1))
    assert caught.value.message == (
        f"{path}: not enough memory for 2 images of shape (8, 8, 1): "
        "OOM when allocating tensor with shape[9] and type float"
    )


def test_batches_are_as_large_as_there_is_room_for(tmp_path: Path) -> None:
    path = tmp_path / "m.pb"
    path.write_bytes(graph_of(lambda x: tf.tile(x, [1, 500, 500, 1])).SerializeToString())
    network = load_network(path)  # 8 * 500 * 8 * 500 * 4 bytes for each image, and 512 MiB of room
    probed = network.probe(network.find(["out"]), image_shape=(8, 8, 1), batch_size=64)
    assert probed._limit == (_ROOM // 2) // 64_000_000


def test_an_input_of_immense_images_is_refused(tmp_path: Path) -> None:
    graph_def = graph_of(tf.nn.relu)
    graph_def.node[0].attr["shape"].shape.dim[1].size = 2**60
    path = tmp_path / "m.pb"
    path.write_bytes(graph_def.SerializeToString())
    with pytest.raises(NetworkError, match=r"the input 'x' takes 9,223,372,036,854,775,808 numb"):
        load_network(path)


@pytest.mark.parametrize(
    ("dtype", "field", "values", "declared"),
    [
        ("float32", "float_val", [1.5], 3),
        ("float32", "float_val", [1.5, np.nan], 5),
        ("float32", "float_val", [], 4),
        ("int64", "int64_val", [1, 2, 3], 3),
        ("complex64", "scomplex_val", [1, 2, 3, 4], 6),
        ("float16", "half_val", [15360], 2),
    ],
)
def test_a_constant_that_is_repeated_is_read_once(dtype, field, values, declared):
    node = GraphDef().node.add(name="c", op="Const")
    tensor = node.attr["value"].tensor
    tensor.dtype = tf.dtypes.as_dtype(dtype).as_datatype_enum
    tensor.tensor_shape.dim.add(size=declared)
    getattr(tensor, field).extend(values)
    whole = tf.make_ndarray(tensor)
    found = constant_values(node)
    assert len(found) <= max(1, len(values))
    padded = np.concatenate([found, np.full(declared - len(found), found[-1])])
    np.testing.assert_array_equal(padded, whole)
    tensor.tensor_shape.dim.add(size=10**12)
    assert len(constant_values(node)) <= max(1, len(values))
