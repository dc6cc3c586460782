"""`svm.skops`: a fitted machine as a plain scikit-learn pipeline.

The file is what ``skops.io.dump`` makes of a `sklearn.pipeline.Pipeline`, and is loaded without
this package by ``skops.io.load("svm.skops")``: it holds no types but scikit-learn's, NumPy's and
Python's own. The pipeline carries one attribute more, `cnnfeat_`, a dictionary of plain values:
the layer, the class names, and where the features came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sklearn.pipeline import Pipeline
from skops import io as skops_io

from cnnfeat.archives import Archive, is_archive
from cnnfeat.documents import Count, Length, Name, take_up
from cnnfeat.errors import ArchiveError, FeatureFileError, MissingInputError
from cnnfeat.files import replacing
from cnnfeat.provenance import Provenance
from cnnfeat.records import Json
from cnnfeat.regular import require_regular
from cnnfeat.result import SVM_FORMAT, SVM_VERSION
from cnnfeat.svm.calibration import Calibration
from cnnfeat.svm.skopsfile import Stored, UntrustedTypesError, Value, as_json, read_values
from cnnfeat.svm.stored import PIPELINE, TRUSTED, rebuild

_HINT = "make it again with cnnfeat svm --overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One layer whose features a machine takes."""

    layer: Name  # as it is stored in feature files
    layer_name: Name = ""
    tensor: Name = ""
    pooling: Name = "none"
    shape: tuple[Length, ...] | None = None  # of one image's activations
    n_features: Length
    file: Count = 0  # a place among the files

    def check(self, *, n_files: int) -> None:
        """Refuse a shape of other features, and a file that is none."""
        if self.shape is not None and math.prod(self.shape) != self.n_features:
            raise ValueError(f"n_features is {self.n_features}, and shape is {self.shape}")
        if self.file >= n_files:
            raise ValueError(
                f"{self.layer!r:.60} is of file {self.file}, and there are {n_files:,} files"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What a machine says of itself: which features it takes, and what it tells apart."""

    layer: Name  # as it is stored in feature files
    layer_name: Name = ""
    tensor: Name = ""
    pooling: Name = "none"
    shape: tuple[Length, ...] | None = None  # of one image's activations
    n_features: Length
    classes: tuple[Name, ...]  # label k of the pipeline means classes[k]
    parts: Mapping[str, str] | None = None  # what it saw of each row, by split: `pack_parts`
    calibration: Mapping[str, Json] | None = None
    joined: tuple[LayerFacts, ...] = ()  # layers side by side; (): it is one, and all is said above
    files: tuple[Mapping[str, Json], ...] = ()  # where each file of joined layers came from

    @property
    def layers(self) -> tuple[LayerFacts, ...]:
        """The layers that are side by side; often one."""
        return self.joined or (
            LayerFacts(
                layer=self.layer,
                layer_name=self.layer_name,
                tensor=self.tensor,
                pooling=self.pooling,
                shape=self.shape,
                n_features=self.n_features,
            ),
        )


@dataclass(frozen=True, slots=True)
class SavedSVM:
    """A machine read from a file."""

    path: Path
    pipeline: Pipeline
    facts: MachineFacts
    calibration: Calibration | None  # what its decision values mean as probabilities
    files: tuple[Provenance, ...]  # of its features: often one
    metadata: Mapping[str, Json]  # all of this as it stands in the file

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the pipeline's label k means `classes[k]`."""
        return self.facts.classes

    @property
    def provenance(self) -> Provenance:
        """Where its features came from; of several files, the first, whose rows it counts."""
        return self.files[0]

    @property
    def layers(self) -> tuple[LayerFacts, ...]:
        """The layers whose features it takes, side by side in this order."""
        return self.facts.layers

    @property
    def layer(self) -> str:
        """The layer it was trained on, or the layers: "conv2+fc1"."""
        return self.facts.layer


def save_svm(pipeline: Pipeline, path: Path, *, metadata: Mapping[str, Json]) -> None:
    """Write a fitted pipeline, whole or not at all."""
    pipeline.cnnfeat_ = {"format": SVM_FORMAT, "format_version": SVM_VERSION, **metadata}
    with replacing(path) as temporary:
        skops_io.dump(pipeline, temporary)


def load_svm(path: Path) -> SavedSVM:
    """Read a machine, trusting nothing but scikit-learn's, NumPy's and Python's own types.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FeatureFileError
        If it is a pickle, damaged, foreign, or holds a type that is not trusted.
    """
    try:
        require_regular(path)
    except FileNotFoundError as error:
        raise MissingInputError(f"no SVM file {path}", hint="cnnfeat svm makes one") from error
    except OSError as error:
        raise FeatureFileError(f"{path}: can't be read: {error.strerror}") from error
    _refuse_pickle(path)
    try:
        with Archive(path) as archive:
            value = read_values(archive, trusted=TRUSTED)
    except UntrustedTypesError as error:
        raise FeatureFileError(
            f"{path} holds types that are not trusted, and was not loaded: {error}",
            hint="use a file that cnnfeat svm wrote",
        ) from error
    except ArchiveError as error:
        raise FeatureFileError(f"not an skops file: {error}", hint=_HINT) from error
    except ValueError as error:
        raise FeatureFileError(f"{path}: not an skops file: {error}", hint=_HINT) from error
    found = value.attributes.get("cnnfeat_") if isinstance(value, Stored) else None
    if not isinstance(value, Stored) or value.kind != PIPELINE or not isinstance(found, dict):
        kind = value.kind if isinstance(value, Stored) else type(value).__name__
        raise FeatureFileError(
            f"{path} is not an SVM of cnnfeat: it holds a {kind.rpartition('.')[2]} "
            "without its attribute cnnfeat_",
            hint=_HINT,
        )
    metadata = _metadata(path, found)
    try:
        return _saved(path, value, metadata)
    except ValueError as error:
        raise FeatureFileError(f"{path}: damaged: {error}", hint=_HINT) from error


def _saved(path: Path, stored: Stored, metadata: Mapping[str, Json]) -> SavedSVM:
    facts = take_up(MachineFacts, metadata)
    n_classes = len(facts.classes)
    if n_classes < 2:
        raise ValueError(f"a machine tells classes apart, and classes is {facts.classes}")
    files = tuple(map(Provenance.from_attributes, facts.files or [metadata]))
    for layer in facts.layers:
        layer.check(n_files=len(files))
    if sum(layer.n_features for layer in facts.layers) != facts.n_features:
        raise ValueError(f"n_features is {facts.n_features}, and its layers have others")
    calibration = None
    if facts.calibration is not None:
        calibration = Calibration.from_json(facts.calibration, n_classes=n_classes)
    pipeline = rebuild(stored, n_features=facts.n_features, n_classes=n_classes)
    return SavedSVM(path, pipeline, facts, calibration, files, metadata)


def _refuse_pickle(path: Path) -> None:
    if is_archive(path):
        return
    with path.open("rb") as file:
        start = file.read(2)
    kind = "a pickle" if start[:1] == b"\x80" else "not an skops file"
    raise FeatureFileError(
        f"{path} is {kind} (it starts with {start.hex(' ')}); only skops files are read",
        hint=_HINT,
    )


def _metadata(path: Path, said: Value) -> Mapping[str, Json]:
    """What a machine says of itself, of this version."""
    try:
        metadata = cast("Mapping[str, Json]", as_json(said, "cnnfeat_"))
    except ValueError as error:
        raise FeatureFileError(f"{path}: damaged: {error}", hint=_HINT) from error
    found, version = metadata.get("format"), metadata.get("format_version")
    if found != SVM_FORMAT:
        raise FeatureFileError(
            f"{path}: its format is {found!r:.60}, not {SVM_FORMAT!r}", hint=_HINT
        )
    if version != SVM_VERSION:
        raise FeatureFileError(
            f"{path}: format version {version!r:.60}; this cnnfeat reads {SVM_VERSION}",
            hint="update cnnfeat, or " + _HINT,
        )
    return metadata
