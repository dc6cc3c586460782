"""Opening a network, whatever kind of file it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from cnnfeat.card import file_sha256, read_card
from cnnfeat.errors import CnnfeatError, NetworkError
from cnnfeat.network.applications import load_application
from cnnfeat.network.formats import Format, sniff
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.keras_files import load_hdf5, load_keras
from cnnfeat.network.keras_trust import first_line
from cnnfeat.network.network import AS_IT_IS, Network, Origin
from cnnfeat.network.savedmodel import load_saved_model
from cnnfeat.network.tf1 import checkpoint_prefix, load_checkpoint, load_graph_def
from cnnfeat.network.weights import report_bad_weights
from cnnfeat.options import APPLICATION, FeedValue, ReadOptions


def load_network(
    spec: str,
    *,
    trust: bool = False,
    signature: str | None = None,
    input_name: str | None = None,
    weights: str | None = None,
    feeds: Mapping[str, FeedValue] | None = None,
) -> Network:
    """Open a network file.

    Parameters
    ----------
    spec : str
        A file, a folder, or `keras:NAME` for a model of `keras.applications`.
    trust : bool
        Run operations with side effects too.
    signature : str, optional
        Which signature of a SavedModel.
    input_name : str, optional
        The input that takes the images.
    weights : str, optional
        Of `keras:NAME`: "imagenet" (the default), "none", or a file.
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
    """
    options = ReadOptions(
        signature=signature,
        input=input_name,
        feed=tuple((feeds or {}).items()),
        weights=weights,
    )
    return open_network(spec, options, trust=trust)


def open_network(spec: str, options: ReadOptions = AS_IT_IS, *, trust: bool = False) -> Network:
    """Open a network file, read as a record of options says.

    Parameters
    ----------
    spec : str
        As `load_network` takes it.
    options : ReadOptions
        Signature, input, feeds and weights.
    trust : bool
        Run operations with side effects too.

    Raises
    ------
    MissingInputError, NetworkError, UntrustedModelError
        As `load_network` does.
    """
    try:
        return _open(spec, options, trust=trust)
    except CnnfeatError:
        raise
    except (tf.errors.OpError, ValueError, TypeError, KeyError, IndexError) as error:
        raise NetworkError(
            f"{spec}: TensorFlow {tf.__version__} can't make a network of it: {first_line(error)}",
            hint="--debug shows where",
        ) from error


def _open(spec: str, options: ReadOptions, *, trust: bool) -> Network:
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
    if kind is Format.KERAS:
        return load_keras(path)
    if kind is Format.SAVED_MODEL:
        return load_saved_model(path, options)
    if kind is Format.CHECKPOINT:
        return load_checkpoint(path, options)
    if kind is Format.GRAPH_DEF:
        return load_graph_def(path, options)
    return load_hdf5(path)


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
