"""`svm.skops`: a fitted machine as a plain scikit-learn pipeline.

The file is what ``skops.io.dump`` makes of a `sklearn.pipeline.Pipeline`, and is loaded without
this package by ``skops.io.load("svm.skops")``: it holds no types but scikit-learn's, NumPy's and
Python's own. The pipeline carries one attribute more, `cnnfeat_`, a dictionary of plain values:
the layer, the class names, and where the features came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler  # noqa: F401 - skops finds its trusted types loaded
from skops import io as skops_io
from skops.io.exceptions import UntrustedTypesFoundException

from cnnfeat.archives import Archive, is_archive
from cnnfeat.errors import DataError, FeatureFileError, MissingInputError
from cnnfeat.files import replacing
from cnnfeat.npyheader import read_npy_header
from cnnfeat.records import Json
from cnnfeat.regular import require_regular
from cnnfeat.result import SVM_FORMAT, SVM_VERSION
from cnnfeat.svm.calibration import Calibration

_SCHEMA = "schema.json"
_HINT = "make it again with cnnfeat svm --overwrite"


@dataclass(frozen=True, slots=True)
class SavedSVM:
    """A machine read from a file."""

    path: Path
    pipeline: Pipeline
    metadata: Mapping[str, Json]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the pipeline's label k means `classes[k]`."""
        return tuple(str(name) for name in cast("list[str]", self.metadata["classes"]))

    @property
    def layer(self) -> str:
        """The layer it was trained on."""
        return str(self.metadata["layer"])

    @property
    def calibration(self) -> Calibration | None:
        """What its decision values mean as probabilities, where that was learned."""
        record = self.metadata.get("calibration")
        if record is None:
            return None
        facts = cast("Mapping[str, object]", record)
        return Calibration.from_json(facts, n_classes=len(self.classes))


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
    _check_container(path)
    try:
        pipeline = skops_io.load(path)
    except UntrustedTypesFoundException as error:
        raise FeatureFileError(
            f"{path} holds types that are not trusted, and was not loaded: "
            + ", ".join(sorted(skops_io.get_untrusted_types(file=path))),
            hint="use a file that cnnfeat svm wrote",
        ) from error
    except (
        KeyError, ValueError, TypeError, AttributeError, ImportError, IndexError, EOFError,
        OSError, RuntimeError, NotImplementedError,
    ) as error:  # fmt: skip
        raise FeatureFileError(f"{path}: damaged: {error}", hint=_HINT) from error
    metadata = getattr(pipeline, "cnnfeat_", None)
    if not isinstance(pipeline, Pipeline) or not isinstance(metadata, dict):
        raise FeatureFileError(
            f"{path} is not an SVM of cnnfeat: it holds a {type(pipeline).__name__} "
            "without its attribute cnnfeat_",
            hint=_HINT,
        )
    _check_metadata(path, metadata)
    saved = SavedSVM(path, pipeline, metadata)
    try:
        saved.calibration  # noqa: B018 - reads it
    except (KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(f"{path}: damaged: its calibration: {error}", hint=_HINT) from error
    return saved


def _check_container(path: Path) -> None:
    """Make sure it is a zip archive as skops writes it: arrays, and what they are."""
    if not is_archive(path):
        with path.open("rb") as file:
            start = file.read(2)
        kind = "a pickle" if start[:1] == b"\x80" else "not an skops file"
        raise FeatureFileError(
            f"{path} is {kind} (it starts with {start.hex(' ')}); only skops files are read",
            hint=_HINT,
        )
    try:
        with Archive(path) as archive:
            schema = json.loads(archive.read(_SCHEMA))
            archive.check()
            for name in archive.names - {_SCHEMA}:
                with archive.open(name) as stream:
                    size = archive.size_bytes(name)
                    read_npy_header(stream, f"{path}:/{name}", size_bytes=size)
    except DataError as error:
        raise FeatureFileError(f"not an skops file: {error}", hint=_HINT) from error
    except ValueError as error:
        raise FeatureFileError(f"{path}: not an skops file: {error}", hint=_HINT) from error
    if not isinstance(schema, dict):
        raise FeatureFileError(f"{path}: not an skops file: its schema is no record", hint=_HINT)


def _check_metadata(path: Path, metadata: Mapping[str, object]) -> None:
    if metadata.get("format") != SVM_FORMAT:
        raise FeatureFileError(
            f"{path}: its format is {metadata.get('format')!r}, not {SVM_FORMAT!r}", hint=_HINT
        )
    if metadata.get("format_version") != SVM_VERSION:
        raise FeatureFileError(
            f"{path}: format version {metadata.get('format_version')!r}; "
            f"this cnnfeat reads {SVM_VERSION}",
            hint="update cnnfeat, or " + _HINT,
        )
    missing = [name for name in ("layer", "classes", "n_features") if name not in metadata]
    if missing:
        raise FeatureFileError(f"{path}: damaged: no {', '.join(missing)}", hint=_HINT)
