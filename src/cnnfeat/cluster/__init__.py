"""Many machines at once: Dask hands out the shards of an extraction, and workers compute them."""

from cnnfeat.cluster.driver import ClusterOptions, extract_on_cluster

__all__ = ["ClusterOptions", "extract_on_cluster"]
