"""Features out of convolutional networks, and support vector machines on them."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "CnnfeatError": "cnnfeat.errors",
    "FeatureFile": "cnnfeat.features",
    "LayerFeatures": "cnnfeat.transformer",
    "LinearSVM": "cnnfeat.svm",
    "load_network": "cnnfeat.network",
    "open_source": "cnnfeat.data",
}

__all__ = [
    "CnnfeatError",
    "FeatureFile",
    "LayerFeatures",
    "LinearSVM",
    "load_network",
    "open_source",
]


def __getattr__(name: str) -> object:
    """Import an exported name when it is first asked for: `import cnnfeat` stays quick."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
