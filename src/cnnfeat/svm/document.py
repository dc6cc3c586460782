"""`svm.json`: what the SVM stage found, as one versioned document.

Accuracies are fractions, 0 to 1; times are in seconds. `layers` has one record for each layer that
was compared; the fields at the top are those of the layer whose machine was saved.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy
import scipy
import sklearn
import skops

import cnnfeat
from cnnfeat.features import FeatureFile
from cnnfeat.options import SvmOptions
from cnnfeat.records import Json
from cnnfeat.svm.division import Division
from cnnfeat.svm.evaluation import McNemar
from cnnfeat.svm.persistence import FORMAT, FORMAT_VERSION
from cnnfeat.svm.selection import Selection, Trial

if TYPE_CHECKING:
    from cnnfeat.svm.stage import LayerRun

_PROVENANCE = (
    "network",
    "network_sha256",
    "network_format",
    "source",
    "source_kind",
    "source_fingerprint",
    "source_fingerprint_method",
    "preprocessing",
    "precision",
)


def result_document(
    file: FeatureFile,
    division: Division,
    *,
    best: LayerRun,
    runs: Sequence[LayerRun],
    comparison: McNemar | None,
    config: SvmOptions,
) -> dict[str, Json]:
    """Make the document."""
    scored = division.test or division.train
    records = {run.layer: layer_record(file, division, run) for run in runs}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **records[best.layer],
        "kernel": config.kernel,
        "normalize": config.normalize,
        "pca": config.pca,
        "classes": list(division.classes),
        "n_train": len(division.train.rows),
        "n_test": len(scored.rows),
        "train_split": division.train.split,
        "test_split": scored.split,
        "evaluation": division.how,
        "per_class": [
            {
                "class": item.name,
                "precision": item.precision,
                "recall": item.recall,
                "f1": item.f1,
                "support": item.support,
            }
            for item in best.scores.per_class
        ],
        "confusion": best.scores.confusion.tolist(),
        "selection": _selection(best.machine.selection),
        "features": {
            "path": str(file.path),
            **{name: _plain(file.attributes.get(name)) for name in _PROVENANCE},
        },
        "network_test_accuracy": _accuracy(file),
        "layers": list(records.values()),
        "mcnemar": None if comparison is None else _mcnemar(comparison),
        "versions": {
            "cnnfeat": cnnfeat.__version__,
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
            "skops": skops.__version__,
        },
    }


def layer_record(file: FeatureFile, division: Division, run: LayerRun) -> dict[str, Json]:
    """Say how one layer did."""
    chosen = run.machine.selection
    return {
        "layer": run.layer,
        "tensor": file.layer(division.train.split, run.layer).tensor,
        "n_features": run.n_features,
        "C": run.machine.C,
        "gamma": run.machine.gamma,
        "n_support": run.machine.n_support,
        "objective": run.machine.objective,
        "newton_steps": run.machine.steps,
        "cv_accuracy": None if chosen is None else chosen.chosen.mean,
        "cv_standard_error": None if chosen is None else chosen.chosen.error,
        "accuracy": run.scores.accuracy,
        "accuracy_interval": list(run.scores.interval),
        "balanced_accuracy": run.scores.balanced_accuracy,
        "elapsed_s": run.elapsed_s,
    }


def machine_metadata(
    file: FeatureFile, division: Division, *, layer: str, n_features: int
) -> dict[str, Json]:
    """What a saved machine says of itself: enough to refuse pictures it wasn't made for."""
    stored = file.layer(division.train.split, layer)
    return {
        "layer": layer,
        "layer_name": stored.layer,
        "tensor": stored.tensor,
        "pooling": stored.pooling,
        "shape": [int(length) for length in stored.shape[1:]],
        "n_features": n_features,
        "classes": list(division.classes),
        "labels": list(division.labels),
        "cnnfeat": cnnfeat.__version__,
        **{name: _plain(file.attributes.get(name)) for name in _PROVENANCE},
    }


def _selection(selection: Selection | None) -> Json:
    if selection is None:
        return None
    return {
        "folds": selection.folds,
        "seed": selection.seed,
        "n_samples": selection.n_samples,
        "rule": "smallest C within one standard error of the best",
        "grid": sorted({trial.C for trial in selection.trials}),
        "scores": [_trial(trial) for trial in selection.trials],
        "best": _trial(selection.best),
        "chosen": _trial(selection.chosen),
    }


def _trial(trial: Trial) -> dict[str, Json]:
    return {
        "C": trial.C,
        "gamma": trial.gamma,
        "mean": trial.mean,
        "standard_error": trial.error,
        "folds": list(trial.scores),
    }


def _mcnemar(comparison: McNemar) -> Mapping[str, Json]:
    return {
        "only_first_right": comparison.only_first,
        "only_second_right": comparison.only_second,
        "p_value": comparison.p_value,
    }


def _accuracy(file: FeatureFile) -> float | None:
    value = file.attributes.get("network_test_accuracy")
    if value is None or value != value:  # noqa: PLR0124 - NaN stands for unknown
        return None
    return float(cast("float", value))


def _plain(value: object) -> Json:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, numpy.generic):
        return cast("Json", value.item())
    return str(value)
