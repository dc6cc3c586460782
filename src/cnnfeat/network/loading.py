"""Opening a network, whatever kind of file it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import keras
import tensorflow as tf
from numpy.typing import ArrayLike

from cnnfeat.card import file_sha256, read_card
from cnnfeat.errors import CnnfeatError, NetworkError, UsageError
from cnnfeat.knobs import checked
from cnnfeat.network.applications import load_application
from cnnfeat.network.formats import Format, sniff
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.imports import imported
from cnnfeat.network.keras_files import load_hdf5, load_keras
from cnnfeat.network.live import Values, freeze
from cnnfeat.network.network import AS_IT_IS, Network, Origin
from cnnfeat.network.runtime import eagerly
from cnnfeat.network.savedmodel import load_saved_model
from cnnfeat.network.telling import told
from cnnfeat.network.tf1 import checkpoint_prefix, load_checkpoint, load_graph_def
from cnnfeat.network.weights import report_bad_weights
from cnnfeat.options import APPLICATION, FeedValue, ReadOptions

# A path or keras:NAME; or what lives in the program that asks.
NetworkSpec: TypeAlias = str | os.PathLike[str] | keras.Model | tf.Graph | Network


def load_network(
    spec: NetworkSpec,
    *,
    session: tf.compat.v1.Session | None = None,
    variables: Mapping[str, ArrayLike] | None = None,
    trust: bool = False,
    signature: str | None = None,
    input_name: str | None = None,
    weights: str | None = None,
    feeds: Mapping[str, FeedValue] | None = None,
    imports: Sequence[str] = (),
) -> Network:
    """Open a network: a file, or what lives in this program.

    The weights of a live one are copied now: what is trained on afterwards changes no feature.

    Parameters
    ----------
    spec : str, Path, keras.Model, tf.Graph, GraphDef or session
        A file, a folder, or `keras:NAME` for a model of `keras.applications`; a built model of
        Keras 3 or `tf-keras`; a graph of TensorFlow 1, or the session of one. A `Network` is given
        back as it is.
    session : tf.compat.v1.Session, optional
        Of a graph: what holds the values of its variables; by default the session it stands in.
    variables : mapping of str to array-like, optional
        Of a graph: the values themselves, by name, instead of a session.
    trust : bool
        Run operations with side effects too.
    signature : str, optional
        Which signature of a SavedModel.
    input_name : str, optional
        The input that takes the images.
    weights : str, optional
        Of `keras:NAME`: "imagenet" (the default), "none", or a file.
    imports : sequence of str
        Code to run first, files or modules, that defines layers of a Keras file.
    feeds : mapping, optional
        Values of other placeholders, by name: `{"keep_prob": 1.0}`.

    Raises
    ------
    MissingInputError
        If there is no such file.
    NetworkError
        If it can't be read or used.
    UntrustedModelError
        If it holds code.
    UsageError
        If it is no network, or an argument doesn't go with this kind of one.

    Examples
    --------
    >>> load_network("model.keras")
    >>> load_network(model)  # a keras.Model
    >>> load_network(graph, session=session, feeds={"keep_prob": 1.0})
    """
    options = ReadOptions(
        signature=signature,
        input=input_name,
        feed=tuple((feeds or {}).items()),
        weights=weights,
        imports=tuple(imports),
    )
    return open_network(spec, options, trust=trust, session=session, variables=variables)


@eagerly
def open_network(
    spec: NetworkSpec,
    options: ReadOptions = AS_IT_IS,
    *,
    trust: bool = False,
    session: tf.compat.v1.Session | None = None,
    variables: Mapping[str, ArrayLike] | None = None,
) -> Network:
    """Open a network, read as a record of options says.

    Parameters
    ----------
    spec, session, variables
        As `load_network` takes them.
    options : ReadOptions
        Signature, input, feeds and weights.
    trust : bool
        Run operations with side effects too.

    Raises
    ------
    MissingInputError, NetworkError, UntrustedModelError, UsageError
        As `load_network` does.
    """
    values = Values(session, variables)
    try:
        if isinstance(spec, Network):
            return _as_it_is(spec, options, values)
        if isinstance(spec, str | os.PathLike):
            return _open(os.fspath(spec), checked(options), values, trust=trust)
        return _open_live(spec, checked(options), values, trust=trust)
    except CnnfeatError:
        raise
    except (tf.errors.OpError, ValueError, TypeError, KeyError, IndexError) as error:
        name = spec if isinstance(spec, str | os.PathLike) else f"a {type(spec).__name__}"
        raise NetworkError(
            f"{name}: TensorFlow {tf.__version__} can't make a network of it: {told(error)}",
            hint="--debug shows where",
        ) from error


def _as_it_is(network: Network, options: ReadOptions, values: Values) -> Network:
    if values or options not in (AS_IT_IS, network.read_options):
        raise UsageError(
            f"{network.path} is open already: how it is read was said then",
            hint="give these options to load_network",
        )
    return network


def _open_live(spec: object, options: ReadOptions, values: Values, *, trust: bool) -> Network:
    frozen = freeze(spec, options, values=values)
    report_bad_weights(frozen.graph, path=frozen.name)
    origin = Origin(frozen.name, frozen.sha256, Format.LIVE.value, trusted=trust, read=options)
    return Network(frozen.graph, origin)


def _open(spec: str, options: ReadOptions, values: Values, *, trust: bool) -> Network:
    if values:
        raise UsageError(f"session and variables go with a live graph; {spec} has its own weights")
    if spec.startswith(APPLICATION):
        graph, digest = load_application(spec.removeprefix(APPLICATION), weights=options.weights)
        origin = Origin(spec, digest, Format.APPLICATION.value, trusted=trust, read=options)
        return Network(graph, origin)
    if options.weights is not None:
        raise NetworkError("--weights goes with keras:NAME only; other models hold their own")
    path = Path(spec)
    kind = sniff(path)
    if options.signature is not None and kind is not Format.SAVED_MODEL:
        raise NetworkError("--signature goes with SavedModels only; other files have none")
    graph = _load(kind, path, options)
    digest = digest_of(path)
    report_bad_weights(graph, path=spec)
    card = read_card(path, sha256=digest) if path.is_file() else None
    return Network(graph, Origin(spec, digest, kind.value, card, trusted=trust, read=options))


def _load(kind: Format, path: Path, options: ReadOptions) -> FlatGraph:
    if options.imports and kind not in (Format.KERAS, Format.HDF5):
        raise NetworkError("--import goes with files of Keras; others name no classes")
    if kind is Format.KERAS:
        with imported(options.imports) as own:
            return load_keras(path, own)
    if kind is Format.SAVED_MODEL:
        return load_saved_model(path, options)
    if kind is Format.CHECKPOINT:
        return load_checkpoint(path, options)
    if kind is Format.GRAPH_DEF:
        return load_graph_def(path, options)
    with imported(options.imports) as own:
        return load_hdf5(path, own)


def digest_of(path: Path) -> str:
    """Digest a model: a file's content, or names and contents of all files that belong to it."""
    if path.is_file() and not path.name.endswith((".meta", ".index")):
        return file_sha256(path)
    if path.is_dir():
        files = [item for item in path.rglob("*") if item.is_file()]
        root = path
    else:
        prefix, root = checkpoint_prefix(path), path.parent
        files = [item for item in root.iterdir() if item.name.startswith(f"{prefix.name}.")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
