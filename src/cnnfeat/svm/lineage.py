"""What a machine and its result say of the features that they are of: layers, files, networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cnnfeat import __version__
from cnnfeat.records import Json
from cnnfeat.result import Fact, LayerColumns
from cnnfeat.transfer import name_of

if TYPE_CHECKING:
    from cnnfeat.features import FeatureFile, FeatureTable, StoredLayer
    from cnnfeat.svm.division import Division

# What a feature file's attributes tell of its making, and machines and results repeat.
PROVENANCE = (
    "network",
    "network_sha256",
    "network_format",
    "source",
    "source_kind",
    "source_fingerprint",
    "source_fingerprint_method",
    "preprocessing",
    "precision",
    "engine",
    "options",
    "division",
)


def machine_metadata(file: FeatureTable, division: Division, *, layer: str) -> dict[str, Json]:
    """What a saved machine says of itself: enough to refuse pictures it wasn't made for."""
    described = file.described(division.train.pieces[0].split, layer)
    facts = [(part.file, _layer_facts(part.layer, stored)) for part, stored in described]
    whole: dict[str, Json] = facts[0][1]
    if len(facts) > 1:
        whole = {
            "layer": layer,
            "n_features": sum(_width(stored) for _, stored in described),
            "joined": [{**one, "file": place} for place, one in facts],
            "files": [_provenance(one) for one in file.files],
        }
    return {
        **whole,
        "classes": list(division.classes),
        "labels": list(division.labels),
        "cnnfeat": __version__,
        **_provenance(file.files[0]),
    }


def _layer_facts(layer: str, stored: StoredLayer) -> dict[str, Json]:
    return {
        "layer": layer,
        "layer_name": stored.layer,
        "tensor": stored.tensor,
        "pooling": stored.pooling,
        "shape": [int(length) for length in stored.shape[1:]],
        "n_features": _width(stored),
    }


def _width(stored: StoredLayer) -> int:
    return math.prod(int(length) for length in stored.shape[1:])


def joined_columns(file: FeatureTable, split: str, *, layer: str) -> tuple[LayerColumns, ...]:
    """List the layers that a layer is joined of; (): it is one."""
    described = file.described(split, layer)
    if len(described) == 1:
        return ()
    return tuple(
        LayerColumns(part.layer, stored.tensor, _width(stored), part.file)
        for part, stored in described
    )


def network_accuracy(file: FeatureTable) -> float | None:
    """How well the network itself does on the test split; several have no one accuracy."""
    networks = {one.provenance.network_sha256 for one in file.files}
    return file.provenance.network_test_accuracy if len(networks) == 1 else None


def file_facts(file: FeatureFile) -> dict[str, Fact]:
    """Name a file, and say where it came from."""
    return {"path": name_of(file.path), **_provenance(file)}


def _provenance(file: FeatureFile) -> dict[str, Fact]:
    return {name: file.attributes.get(name) for name in PROVENANCE}
