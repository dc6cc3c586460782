"""Images in: one module a kind of source, and `open_source`, which picks one."""

from cnnfeat.data.arrays import open_arrays
from cnnfeat.data.decode import MAX_PIXELS
from cnnfeat.data.named import NamedSource, fetch, list_sources, user_cache
from cnnfeat.data.opening import open_data, open_source
from cnnfeat.data.registry import DATASETS, Dataset, DatasetFile

__all__ = [
    "DATASETS",
    "MAX_PIXELS",
    "Dataset",
    "DatasetFile",
    "NamedSource",
    "fetch",
    "list_sources",
    "open_arrays",
    "open_data",
    "open_source",
    "user_cache",
]
