"""What kind of file a model is, by its content."""

from __future__ import annotations

import enum
import zipfile
from pathlib import Path


class Format(enum.Enum):
    """Kinds of model that can be loaded."""

    KERAS = "keras"
    HDF5 = "h5"
    SAVED_MODEL = "savedmodel"
    GRAPH_DEF = "graphdef"
    CHECKPOINT = "checkpoint"
    APPLICATION = "applications"


def sniff(path: Path) -> Format:
    """Tell what kind of model lies at `path`."""
    if zipfile.is_zipfile(path):
        return Format.KERAS
    return Format.HDF5
