"""The feature file: h5py lives here and nowhere else."""

from cnnfeat.features.disk import Disk
from cnnfeat.features.format import (
    RESERVED_SPLITS,
    FilePlan,
    SplitPlan,
    StoredLayer,
    beside_rows,
    plan_columns,
)
from cnnfeat.features.journal import Header
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.verification import (
    Damage,
    Unusable,
    UnusableRows,
    Verification,
    verify_file,
)
from cnnfeat.features.writer import FeatureWriter, write_arrays

__all__ = [
    "RESERVED_SPLITS",
    "Damage",
    "Disk",
    "FeatureFile",
    "FeatureWriter",
    "FilePlan",
    "Header",
    "SplitPlan",
    "StoredLayer",
    "Unusable",
    "UnusableRows",
    "Verification",
    "beside_rows",
    "plan_columns",
    "verify_file",
    "write_arrays",
]
