"""The feature file: h5py lives here and nowhere else."""

from cnnfeat.features.arrays import write_arrays
from cnnfeat.features.completion import finish
from cnnfeat.features.disk import Disk
from cnnfeat.features.format import (
    RESERVED_SPLITS,
    FilePlan,
    SplitPlan,
    StoredLayer,
    plan_columns,
)
from cnnfeat.features.integrity import Damage, Verification, verify_file
from cnnfeat.features.opening import finished_before, open_writer
from cnnfeat.features.output import (
    OutputPaths,
    check_output,
    check_same,
    unfinished_header,
)
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.writer import FeatureWriter

__all__ = [
    "RESERVED_SPLITS",
    "Damage",
    "Disk",
    "FeatureFile",
    "FeatureWriter",
    "FilePlan",
    "OutputPaths",
    "SplitPlan",
    "StoredLayer",
    "Verification",
    "check_output",
    "check_same",
    "finish",
    "finished_before",
    "open_writer",
    "plan_columns",
    "unfinished_header",
    "verify_file",
    "write_arrays",
]
