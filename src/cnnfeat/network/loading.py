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

from cnnfeat.address import APPLICATION, local_name
from cnnfeat.card import file_sha256, read_card
from cnnfeat.errors import CnnfeatError, NetworkError, UsageError
from cnnfeat.knobs import checked
from cnnfeat.network.applications import load_application
from cnnfeat.network.formats import Format, sniff
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.imports import Imported, imported
from cnnfeat.network.keras_files import load_hdf5, load_keras, load_weights
from cnnfeat.network.lite import load_lite
from cnnfeat.network.live import Values, freeze
from cnnfeat.network.network import AS_IT_IS, Network, Origin
from cnnfeat.network.runtime import eagerly
from cnnfeat.network.savedmodel import load_saved_model
from cnnfeat.network.telling import told
from cnnfeat.network.tf1 import checkpoint_prefix, load_checkpoint, load_graph_def
from cnnfeat.network.tfjs import as_hdf5
from cnnfeat.network.unpacking import check_links, classes_beside, unpacked
from cnnfeat.network.weights import report_bad_weights
from cnnfeat.options import ReadOptions
from cnnfeat.spelling import FeedValue
from cnnfeat.watch import watched

# A path or keras:NAME; or what lives in the program that asks.
NetworkSpec: TypeAlias = str | os.PathLike[str] | keras.Model | tf.Graph | Network
_NO_MEMORY = (tf.errors.ResourceExhaustedError, MemoryError)
# What TensorFlow and Keras raise at what they can't make sense of; RecursionError is one of them.
_FAILURES = (
    tf.errors.OpError, ValueError, TypeError, LookupError, AttributeError, RuntimeError,
    ArithmeticError, MemoryError, AssertionError, NameError, StopIteration, SystemError,
)  # fmt: skip


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
    architecture: str | None = None,
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
    architecture : str, optional
        Of a file of weights alone: the JSON of its model, or `keras:NAME`.
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
        architecture=architecture,
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
            with watched(f"opening {os.fspath(spec)}"):
                return _open(os.fspath(spec), checked(options), values, trust=trust)
        return _open_live(spec, checked(options), values, trust=trust)
    except CnnfeatError:
        raise
    except _FAILURES as error:
        name = spec if isinstance(spec, str | os.PathLike) else f"a {type(spec).__name__}"
        if isinstance(error, _NO_MEMORY):
            raise NetworkError(f"{name}: not enough memory for it: {told(error)}") from error
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
    spec = local_name(spec, "a network")
    path = Path(spec)
    with unpacked(path) as inside:
        kind = sniff(inside)
        if path.is_dir() or kind in (Format.SAVED_MODEL, Format.CHECKPOINT):
            check_links(path if path.is_dir() else inside)
        if options.signature is not None and kind is not Format.SAVED_MODEL:
            raise NetworkError("--signature goes with SavedModels only; other files have none")
        graph = _load(kind, inside, options)
        classes = classes_beside(inside)
    digest = digest_of(path)
    if options.architecture is not None:
        digest = _with_architecture(digest, options.architecture)
    report_bad_weights(graph, path=spec)
    card = read_card(path, sha256=digest) if path.is_file() else None
    return Network(graph, Origin(spec, digest, kind.value, card, trust, options, classes))


def _load(kind: Format, path: Path, options: ReadOptions) -> FlatGraph:
    if options.imports and kind not in (Format.KERAS, Format.HDF5):
        raise NetworkError("--import goes with files of Keras; others name no classes")
    if options.architecture is not None and kind is not Format.HDF5:
        raise NetworkError(
            "--architecture goes with HDF5 files of weights alone; others have their own"
        )
    if kind in _GRAPHS:
        return _GRAPHS[kind](path, options)
    if kind is Format.TFLITE:
        return load_lite(path)
    if kind is Format.TFJS:
        with as_hdf5(path) as whole:
            return load_hdf5(whole)
    with imported(options.imports) as own:
        if options.architecture is not None:
            return _weights(path, options.architecture, own)
        return load_keras(path, own) if kind is Format.KERAS else load_hdf5(path, own)


_GRAPHS = {
    Format.SAVED_MODEL: load_saved_model,
    Format.CHECKPOINT: load_checkpoint,
    Format.GRAPH_DEF: load_graph_def,
}


def _weights(path: Path, architecture: str, own: Imported) -> FlatGraph:
    if architecture.startswith(APPLICATION):
        return load_application(architecture.removeprefix(APPLICATION), weights=str(path))[0]
    return load_weights(path, Path(architecture), own)


def _with_architecture(digest: str, architecture: str) -> str:
    """Digest weights together with what they belong to."""
    own = architecture if architecture.startswith(APPLICATION) else file_sha256(Path(architecture))
    return hashlib.sha256(f"{digest} {own}".encode()).hexdigest()


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
