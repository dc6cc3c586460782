"""Networks: making, training, opening and probing them. TensorFlow lives here and nowhere else."""

from __future__ import annotations

from cnnfeat.network.loading import load_network
from cnnfeat.network.network import Network

__all__ = ["Network", "load_network"]
