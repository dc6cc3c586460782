"""Batches × probe -> feature file. Knows neither TensorFlow nor HDF5."""

from cnnfeat.extraction.batch_size import LARGEST as LARGEST_BATCH
from cnnfeat.extraction.batch_size import default_batch_size
from cnnfeat.extraction.pipeline import IN_FLIGHT
from cnnfeat.extraction.planning import choose_splits
from cnnfeat.extraction.running import extract

__all__ = ["IN_FLIGHT", "LARGEST_BATCH", "choose_splits", "default_batch_size", "extract"]
