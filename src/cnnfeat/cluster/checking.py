"""Before the first shard: every worker would make what this process would, or is named."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from cnnfeat.cluster.connection import Worker, workers_of
from cnnfeat.cluster.worker import SAME_VERSIONS, Done, Work, look, versions_here
from cnnfeat.errors import DataError, StorageError
from cnnfeat.provenance import differing_settings

if TYPE_CHECKING:
    from distributed import Client, Future

# What decides of the bytes of a feature, or of what a message between processes means.
_PACKAGES = ("cnnfeat", "tensorflow", "keras", "numpy", "pillow", "distributed")
_POLL_S = 0.2
ALIKE = (
    "all workers need the same files under the same names as this process, and devices of one make"
)


def check_workers(client: Client, work: Work, settings: Mapping[str, str]) -> Mapping[str, str]:
    """Let each worker open network and images, and compare what it finds with what stands here.

    Workers that come later are held to it, and to the versions, by their first shard.

    Returns
    -------
    mapping of str to str
        `settings`, with the device that the workers have where that was left open: this process
        may run on a machine without a GPU.

    Raises
    ------
    StorageError
        If a worker has other versions of packages, with its address and what differs; if it can't
        see where the shards go.
    DataError
        If it can't see the network or the images, or they are others there.
    """
    check_versions(client, work.versions)
    device = None if work.options.device == "auto" else settings["device"]
    for worker, done in _looks(client, work):
        if done.failure is not None:
            words, hint = f"worker {worker}: {done.failure.message}", done.failure.hint
            if issubclass(done.failure.kind, StorageError):
                raise StorageError(words, hint=hint or ALIKE)
            raise DataError(words, hint=ALIKE)
        found = done.settings or {}
        device = device or found.get("device", "")
        settings = {**settings, "device": device}
        if differs := differing(found, settings):
            raise DataError(f"worker {worker}: {differs}", hint=ALIKE)
    return settings


def versions_that_count(engine: str) -> dict[str, str]:
    """This process's versions of what decides of a feature."""
    return versions_here((*_PACKAGES, *([] if engine == "tensorflow" else [engine])))


def check_versions(client: Client, versions: Mapping[str, str]) -> None:
    """Make sure that all workers have this process's versions of what decides of a feature.

    It is asked here, package by package: a worker of another cnnfeat may understand nothing else.

    Raises
    ------
    StorageError
        If one hasn't.
    """
    for package, own in versions.items():
        for worker, found in client.run(version, package, on_error="return").items():
            if isinstance(found, OSError):  # lost meanwhile
                continue
            if found != own:
                there = "none" if isinstance(found, PackageNotFoundError) else found
                raise StorageError(
                    f"worker {worker} has {package} {there}, and this process {own}",
                    hint=SAME_VERSIONS,
                )


def _looks(client: Client, work: Work) -> Iterator[tuple[str, Done]]:
    """Yield what each worker finds; one that is lost meanwhile is passed over."""
    left = {worker.address: _look_at(client, work, worker) for worker in workers_of(client)}
    while left:
        for address in [address for address, future in left.items() if future.done()]:
            yield address, left.pop(address).result()
        there = {worker.address for worker in workers_of(client)}
        for address in left.keys() - there:
            left.pop(address).cancel()
        time.sleep(_POLL_S)


def _look_at(client: Client, work: Work, worker: Worker) -> Future:
    return client.submit(
        look, work, workers=[worker.address], pure=False, resources=worker.resources
    )


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Say what differs first between two records of settings; "" where nothing does."""
    for name, one, other in differing_settings(found, wanted):
        return f"{name} is {one} there, and {other} here"
    return ""
