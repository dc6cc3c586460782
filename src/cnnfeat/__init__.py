"""Features out of convolutional networks, and support vector machines on them."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

TESTED_SYSTEMS = ("linux",)  # as sys.platform names them
if sys.platform not in TESTED_SYSTEMS:
    warnings.warn(
        f"cnnfeat is tested on Linux, and this is {sys.platform}: a container or WSL 2 is safer",
        RuntimeWarning,
        stacklevel=2,
    )

_EXPORTS = {
    "ArchitectureOptions": "cnnfeat.options",
    "AugmentOptions": "cnnfeat.options",
    "CnnfeatError": "cnnfeat.errors",
    "DataOptions": "cnnfeat.options",
    "ExtractOptions": "cnnfeat.options",
    "FeatureFile": "cnnfeat.features",
    "LayerFeatures": "cnnfeat.transformer",
    "LinearSVM": "cnnfeat.svm",
    "ReadOptions": "cnnfeat.options",
    "SvmOptions": "cnnfeat.options",
    "TrainOptions": "cnnfeat.options",
    "extract": "cnnfeat.commands",
    "fit_svm": "cnnfeat.pipeline",
    "load_machine": "cnnfeat.predictor",
    "load_network": "cnnfeat.network",
    "open_arrays": "cnnfeat.data",
    "open_source": "cnnfeat.data",
    "train": "cnnfeat.commands",
}

__all__ = [
    "ArchitectureOptions",
    "AugmentOptions",
    "CnnfeatError",
    "DataOptions",
    "ExtractOptions",
    "FeatureFile",
    "LayerFeatures",
    "LinearSVM",
    "ReadOptions",
    "SvmOptions",
    "TrainOptions",
    "extract",
    "fit_svm",
    "load_machine",
    "load_network",
    "open_arrays",
    "open_source",
    "train",
]

if TYPE_CHECKING:
    from cnnfeat.commands import extract, train
    from cnnfeat.data import open_arrays, open_source
    from cnnfeat.errors import CnnfeatError
    from cnnfeat.features import FeatureFile
    from cnnfeat.network import load_network
    from cnnfeat.options import (
        ArchitectureOptions,
        AugmentOptions,
        DataOptions,
        ExtractOptions,
        ReadOptions,
        SvmOptions,
        TrainOptions,
    )
    from cnnfeat.pipeline import fit_svm
    from cnnfeat.predictor import load_machine
    from cnnfeat.svm import LinearSVM
    from cnnfeat.transformer import LayerFeatures


def __getattr__(name: str) -> object:
    """Import an exported name when it is first asked for: `import cnnfeat` stays quick."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what there is, for those who look."""
    return sorted([*globals(), *__all__])
