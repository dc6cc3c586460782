"""Batches × probe -> feature file. Knows neither TensorFlow nor HDF5."""

from cnnfeat.extraction.running import extract

__all__ = ["extract"]
