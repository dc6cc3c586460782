"""Opening a network, whatever kind of file it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cnnfeat.errors import MissingInputError, NetworkError
from cnnfeat.network.card import file_sha256, read_card
from cnnfeat.network.formats import Format, sniff
from cnnfeat.network.keras_files import load_keras
from cnnfeat.network.network import FeedValue, Network, Origin


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
    path = Path(spec)
    if not path.exists():
        raise MissingInputError(f"no model {spec}", hint="`cnnfeat train` makes one")
    kind = sniff(path)
    if kind is not Format.KERAS:
        raise NetworkError(f"{spec}: not yet")
    graph = load_keras(path)
    digest = file_sha256(path)
    origin = Origin(spec, digest, kind.value, read_card(path, sha256=digest), trust)
    return Network(graph, origin, input_name=input_name, feeds=feeds)
