"""Opening a network, whatever kind of file it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from cnnfeat.card import file_sha256, read_card
from cnnfeat.errors import CnnfeatError, NetworkError
from cnnfeat.network.applications import PREFIX, load_application
from cnnfeat.network.formats import Format, sniff
from cnnfeat.network.graph import FlatGraph
from cnnfeat.network.keras_files import load_hdf5, load_keras
from cnnfeat.network.keras_trust import first_line
from cnnfeat.network.network import FeedValue, Network, Origin
from cnnfeat.network.savedmodel import load_saved_model
from cnnfeat.network.tf1 import checkpoint_prefix, load_checkpoint, load_graph_def
from cnnfeat.network.weights import report_bad_weights


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
    try:
        return _open(
            spec,
            trust=trust,
            signature=signature,
            input_name=input_name,
            weights=weights,
            feeds=feeds,
        )
    except CnnfeatError:
        raise
    except (tf.errors.OpError, ValueError, TypeError, KeyError, IndexError) as error:
        raise NetworkError(
            f"{spec}: TensorFlow {tf.__version__} can't make a network of it: {first_line(error)}",
            hint="--debug shows where",
        ) from error


def _open(
    spec: str,
    *,
    trust: bool,
    signature: str | None,
    input_name: str | None,
    weights: str | None,
    feeds: Mapping[str, FeedValue] | None,
) -> Network:
    if spec.startswith(PREFIX):
        graph, digest = load_application(spec.removeprefix(PREFIX), weights=weights)
        origin = Origin(spec, digest, Format.APPLICATION.value, trusted=trust)
        return Network(graph, origin, input_name=input_name, feeds=feeds)
    if weights is not None:
        raise NetworkError("--weights goes with keras:NAME only; other models hold their own")
    path = Path(spec)
    kind = sniff(path)
    graph = _load(kind, path, signature=signature, input_name=input_name)
    digest = digest_of(path)
    report_bad_weights(graph, path=spec)
    card = read_card(path, sha256=digest) if path.is_file() else None
    origin = Origin(spec, digest, kind.value, card, trust)
    return Network(graph, origin, input_name=input_name, feeds=feeds)


def _load(kind: Format, path: Path, *, signature: str | None, input_name: str | None) -> FlatGraph:
    if kind is Format.KERAS:
        return load_keras(path)
    if kind is Format.SAVED_MODEL:
        return load_saved_model(path, signature=signature, input_name=input_name)
    if kind is Format.CHECKPOINT:
        return load_checkpoint(path, input_name=input_name)
    if kind is Format.GRAPH_DEF:
        return load_graph_def(path, input_name=input_name)
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
