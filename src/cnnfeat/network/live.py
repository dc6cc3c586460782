"""Networks that live in a program: Keras models, and graphs of TensorFlow 1 with their weights.

Weights are copied when a network is opened. A model that is trained on afterwards goes its own way;
the network here, and the features it gives, stay what they were.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from cnnfeat.errors import UsageError, near_names
from cnnfeat.network.flattening import forward_part, known_part
from cnnfeat.network.graph import FlatGraph, node_of
from cnnfeat.network.keras_files import trace_keras_2
from cnnfeat.network.tf1 import flat_graph
from cnnfeat.network.tracing import trace_keras
from cnnfeat.network.weights import (
    VARIABLES,
    HeldValues,
    read_variables,
    take_out_variables,
    value_of,
    weights_digest,
)
from cnnfeat.options import LIVE, ReadOptions

_GRAPHS = (tf.Graph, tf.compat.v1.GraphDef)
_SESSIONS = (tf.compat.v1.Session, tf.compat.v1.InteractiveSession)


@dataclass(frozen=True, slots=True)
class Values:
    """Where the weights of a graph are: in a session, or at hand."""

    session: tf.compat.v1.Session | None = None
    variables: Mapping[str, ArrayLike] | None = None

    def __bool__(self) -> bool:
        return self.session is not None or self.variables is not None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A live network as it was when it was opened."""

    graph: FlatGraph
    name: str
    sha256: str  # over its configuration or graph, and its weights


def freeze(given: object, options: ReadOptions, *, values: Values) -> Frozen:
    """Make a flat graph of a live network, with weights of its own.

    Parameters
    ----------
    given : keras.Model, tf_keras.Model, tf.Graph, GraphDef or session
        What the program has; a session stands for its graph too.
    options : ReadOptions
        An input, or a tensor inside a graph to feed instead.
    values : Values
        The weights of a graph; by default those of the session it stands in.

    Raises
    ------
    UsageError
        If it is something else, or a graph whose weights are nowhere.
    NetworkError
        If it can't be traced.
    """
    for name in ("signature", "weights", "architecture"):
        if getattr(options, name) is not None:
            raise UsageError(f"{name} goes with files only; a network that is open has its own")
    if isinstance(given, _SESSIONS) and not values:
        given, values = given.graph, Values(given)
    if isinstance(given, _GRAPHS):
        return _freeze_graph(given, options, values)
    if values:
        raise UsageError(
            "session and variables go with a graph of TensorFlow 1; "
            f"a {type(given).__name__} holds its own weights"
        )
    return _freeze_model(given)


def _freeze_model(model: keras.Model) -> Frozen:
    name = f"{LIVE}{getattr(model, 'name', '')}"
    if isinstance(model, keras.Model):
        graph = trace_keras(model)
    else:
        graph = trace_keras_2(model, _keras_2_layer(model), path=name)
    weights = [(getattr(one, "path", one.name), one.numpy()) for one in model.weights]
    return Frozen(_with_own_weights(graph), name, weights_digest(weights, plan=_plan(model)))


def _keras_2_layer(model: object) -> type:
    """The class of all layers, if this is a model of Keras 2; nothing is imported to find out."""
    keras_2 = sys.modules.get("tf_keras")
    if keras_2 is not None and isinstance(model, keras_2.Model):
        layer: type = keras_2.layers.Layer
        return layer
    raise UsageError(
        f"a network is a file, keras:NAME, a Keras model or a graph of TensorFlow 1, not a "
        f"{type(model).__module__}.{type(model).__qualname__}",
        hint="save it (tf.saved_model.save, model.export) and give the path",
    )


def _plan(model: keras.Model) -> bytes:
    """The model's configuration, as far as it has one, without how it was compiled."""
    try:
        config = model.get_config()
    except NotImplementedError:  # a class of the program's own
        config = None
    named = {"class": type(model).__qualname__, "config": config}
    return json.dumps(named, sort_keys=True, default=_said).encode()


def _said(value: object) -> str:
    return str(value) if isinstance(value, np.generic | np.ndarray) else type(value).__qualname__


def _with_own_weights(graph: FlatGraph) -> FlatGraph:
    """Put copies in the place of the variables that a model goes on to train."""
    weights, copies, tables = {}, [], False
    for name, weight in graph.weights.items():
        value = value_of(weight)
        tables = tables or value is None
        if value is None or weight.dtype != tf.resource:
            weights[name] = weight  # tables and constants never change
        else:
            copies.append(tf.Variable(value, trainable=False))
            weights[name] = copies[-1].handle
    owner = [*copies, graph.owner if tables else None]
    return dataclasses.replace(graph, weights=weights, owner=owner)


def _freeze_graph(given: tf.Graph, options: ReadOptions, values: Values) -> Frozen:
    whole = given.as_graph_def() if isinstance(given, tf.Graph) else given
    part = tf.compat.v1.GraphDef()
    part.CopyFrom(whole)
    part = forward_part(known_part(part))
    wanted = read_variables(part)
    if values.variables is not None:
        found = _at_hand(part, values.variables)
    elif wanted:
        session = _session_of(given, values.session, wanted)
        fetches = {name: fetch for name, fetch in _fetches(whole) if name in wanted}
        found = _in_session(session, fetches)
    else:
        found = {}
    weights, owners = take_out_variables(part, HeldValues(found), {}, wanted=wanted)
    name = f"{LIVE}graph"
    flat = flat_graph(part, options.input, path=name, weights=weights, owner=owners)
    held = ((name, value_of(weight)) for name, weight in sorted(flat.weights.items()))
    digest = weights_digest(
        ((name, value.numpy()) for name, value in held if value is not None),
        plan=flat.graph_def.SerializeToString(deterministic=True),
    )
    return Frozen(flat, name, digest)


def _at_hand(
    part: tf.compat.v1.GraphDef, variables: Mapping[str, ArrayLike]
) -> dict[str, NDArray[np.generic]]:
    """Check values that a program gives, by names with or without `:0`."""
    nodes = {node.name: node for node in part.node if node.op in VARIABLES}
    found = {}
    for name, given in variables.items():
        node, value = nodes.get(node_of(name)), np.asarray(given)
        if node is None:
            raise UsageError(
                f"variables: the graph has no variable {name!r}", hint=near_names(name, nodes)
            )
        shape = tf.TensorShape(node.attr["shape"].shape)
        if not shape.is_compatible_with(value.shape):
            raise UsageError(
                f"variables: {name!r} has the shape {tuple(shape.as_list())} in the graph; the "
                f"value's is {value.shape}"
            )
        found[node.name] = value
    return found


def _session_of(
    graph: tf.Graph, session: tf.compat.v1.Session | None, wanted: set[str]
) -> tf.compat.v1.Session:
    """The session that is given, or the one that the program stands in."""
    session = session or tf.compat.v1.get_default_session()
    if session is not None and session.graph is graph:
        return session
    whose = "there is no session" if session is None else "the session is that of another graph"
    more = f" and {len(wanted) - 1} more are variables" if len(wanted) > 1 else " is a variable"
    raise UsageError(
        f"a graph holds no weights, and {whose}: {min(wanted)!r}{more}",
        hint="session=SESSION, or variables={NAME: array}",
    )


def _fetches(whole: tf.compat.v1.GraphDef) -> Iterator[tuple[str, str]]:
    """What gives each variable's value and does nothing else: itself, or a node that reads it."""
    handles = {node.name for node in whole.node if node.op == "VarHandleOp"}
    for node in whole.node:
        if node.op == "ReadVariableOp" and len(node.input) == 1:  # and waits for nothing
            if node_of(node.input[0]) in handles:
                yield node_of(node.input[0]), f"{node.name}:0"
        elif node.op in VARIABLES - {"VarHandleOp"}:
            yield node.name, f"{node.name}:0"


def _in_session(
    session: tf.compat.v1.Session, fetches: Mapping[str, str]
) -> dict[str, NDArray[np.generic]]:
    """Read variables; those that have no value are left out."""
    try:
        return dict(session.run(fetches))
    except tf.errors.FailedPreconditionError:  # one at least was never initialised
        if len(fetches) == 1:
            return {}
    halves = [dict(list(fetches.items())[start::2]) for start in (0, 1)]
    return {name: value for half in halves for name, value in _in_session(session, half).items()}
