"""The feature file: h5py lives here and nowhere else."""

from cnnfeat.features.computed import write_arrays
from cnnfeat.features.disk import Disk, storage_errors
from cnnfeat.features.format import (
    DIGEST,
    RESERVED_SPLITS,
    FilePlan,
    SplitPlan,
    StoredLayer,
    beside_rows,
    plan_columns,
)
from cnnfeat.features.inventory import ShardEntry, is_set
from cnnfeat.features.journal import Header
from cnnfeat.features.naming import LayerPart
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.seal import row_checksums
from cnnfeat.features.shardfile import PlannedFile, ShardFile
from cnnfeat.features.table import FeatureTable, open_table
from cnnfeat.features.verification import (
    Damage,
    Unusable,
    UnusableRows,
    Verification,
    verify_file,
    verify_opened,
)
from cnnfeat.features.writer import FeatureWriter, stored_text

__all__ = [
    "DIGEST",
    "RESERVED_SPLITS",
    "Damage",
    "Disk",
    "FeatureFile",
    "FeatureTable",
    "FeatureWriter",
    "FilePlan",
    "Header",
    "LayerPart",
    "PlannedFile",
    "ShardEntry",
    "ShardFile",
    "SplitPlan",
    "StoredLayer",
    "Unusable",
    "UnusableRows",
    "Verification",
    "beside_rows",
    "is_set",
    "open_table",
    "plan_columns",
    "row_checksums",
    "storage_errors",
    "stored_text",
    "verify_file",
    "verify_opened",
    "write_arrays",
]
