"""Networks: making, training, opening and probing them. TensorFlow lives here and nowhere else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cnnfeat.network.starting import load_tensorflow

if TYPE_CHECKING:
    from cnnfeat.network.loading import load_network, open_network
    from cnnfeat.network.network import Network

__all__ = ["Network", "load_network", "open_network"]

_EXPORTS = {
    "Network": "cnnfeat.network.network",
    "load_network": "cnnfeat.network.loading",
    "open_network": "cnnfeat.network.loading",
}


def __getattr__(name: str) -> object:
    """Import an exported name when it is first asked for: TensorFlow takes seconds."""
    if name in _EXPORTS:
        load_tensorflow()
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
