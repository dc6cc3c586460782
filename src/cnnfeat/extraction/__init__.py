"""Batches × probe -> feature file. Knows neither TensorFlow nor HDF5."""

from cnnfeat.extraction.batch_size import default_batch_size
from cnnfeat.extraction.plan import Job, Prober, choose_splits
from cnnfeat.extraction.run import Extraction, extract
from cnnfeat.extraction.threads import IN_FLIGHT

__all__ = [
    "IN_FLIGHT",
    "Extraction",
    "Job",
    "Prober",
    "choose_splits",
    "default_batch_size",
    "extract",
]
