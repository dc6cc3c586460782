"""What a worker does: it opens network and images once, and computes one shard after the other."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from cnnfeat.address import Address, place_of
from cnnfeat.errors import CnnfeatError, StorageError
from cnnfeat.options import DataOptions, ExtractOptions, ReadOptions
from cnnfeat.shards import ShardNumber
from cnnfeat.store import check_bucket

if TYPE_CHECKING:
    from cnnfeat.extraction import Job
    from cnnfeat.extraction.publishing import WrittenShard
    from cnnfeat.records import Source

_MOST_WORDS = 20  # lines of a shard's log that are sent back
SAME_FOLDER = "name one with -o that all workers see, or one in a store: s3://bucket/name"
SAME_VERSIONS = "the same versions are needed everywhere: `pip freeze` lists those here"


@dataclass(frozen=True, slots=True)
class Work:
    """An extraction, as it is sent to workers: paths are absolute, nothing is left to be found."""

    run: str  # a name of its own: what a worker has open of another run may have changed since
    network: str
    read: ReadOptions
    trust: bool
    data: DataOptions
    options: ExtractOptions
    folder: str  # or an address
    n_shards: int
    versions: Mapping[str, str]  # of packages, as the driver has them


def versions_here(packages: Iterable[str]) -> dict[str, str]:
    """Look up the versions of packages; "none" where one isn't installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, as it is sent back: Dask's way with exceptions fails on those of two bases."""

    kind: type[CnnfeatError]
    message: str
    hint: str

    @classmethod
    def of(cls, error: CnnfeatError | OSError) -> Failure:
        """Take down an error; of the system's, what it is of."""
        if isinstance(error, CnnfeatError):
            return cls(type(error), error.message, error.hint)
        words = (error.filename, error.strerror or str(error))
        return cls(StorageError, ": ".join(str(word) for word in words if word), "")

    def error(self, *, where: str) -> CnnfeatError:
        """Make the error again, with what it happened in."""
        return self.kind(f"{where}: {self.message}", hint=self.hint)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a shard, or of opening what it needs."""

    number: int = 0
    worker: str = ""  # its address
    failure: Failure | None = None
    words: tuple[tuple[int, str], ...] = ()  # of the log: level and text
    settings: Mapping[str, str] | None = None  # what all shards have in common
    written: WrittenShard | None = None


@dataclass(slots=True)
class _Opened:
    """What this process has open."""

    work: Work
    job: Job
    source: Source
    settings: Mapping[str, str]


_turn = threading.Lock()  # a worker of several threads computes one shard at a time, too
_opened: list[_Opened] = []  # one, or none


def _check_versions(work: Work) -> None:
    """Refuse to compute what another worker would compute with other versions."""
    for package, found in versions_here(work.versions).items():
        if found != work.versions[package]:
            raise StorageError(
                f"worker {_address()} has {package} {found}, and the driver "
                f"{work.versions[package]}",
                hint=SAME_VERSIONS,
            )


def _check_place(folder: str) -> None:
    """Refuse to compute what would lie where nobody else finds it, or couldn't be put."""
    place = place_of(folder)
    if isinstance(place, Address):
        check_bucket(place)
    elif not place.is_dir():
        raise StorageError(
            f"there is no folder {place} here, which the driver has", hint=SAME_FOLDER
        )


def look(work: Work) -> Done:
    """Open network and images, and say what features will be made with."""
    with _turn:
        try:
            return Done(settings=_open(work).settings)
        except (CnnfeatError, OSError) as error:
            return Done(failure=Failure.of(error))


def compute(work: Work, number: int, settings: Mapping[str, str]) -> Done:
    """Write one shard, unless it is there; all is refused that isn't to be made with `settings`."""
    from cnnfeat.extraction.publishing import put_shard, write_shard

    with _turn, _listening() as words:
        try:
            opened = _open(work)
            if opened.settings != settings:
                return Done(number, _address(), settings=opened.settings)
            shard, place = ShardNumber(number, work.n_shards), place_of(work.folder)
            if isinstance(place, Address):
                written = put_shard(opened.job, shard, place)
            else:
                written = write_shard(opened.job, shard, place)
        except (CnnfeatError, OSError) as error:
            return Done(number, failure=Failure.of(error), words=tuple(words))
        return Done(number, words=tuple(words), written=written)


def _open(work: Work) -> _Opened:
    if _opened and _opened[0].work == work:
        return _opened[0]
    _check_versions(work)
    _check_place(work.folder)
    while _opened:
        _opened.pop().source.__exit__(None, None, None)
    from cnnfeat.extraction import IN_FLIGHT, Extraction
    from cnnfeat.network import starting
    from cnnfeat.pipeline import open_images

    if "tensorflow" not in sys.modules:
        starting.start_tensorflow(n_calls=IN_FLIGHT, device=work.options.device)
    from cnnfeat.network import open_network

    network = open_network(work.network, work.read, trust=work.trust)
    extraction = Extraction.of(network, work.options)
    source = open_images(work.data, network.card)
    job = extraction.settle(source)
    _opened.append(_Opened(work, job, source, job.plan().settings))
    return _opened[0]


def _address() -> str:
    from distributed import get_worker

    return str(get_worker().address)


@contextlib.contextmanager
def _listening() -> Iterator[list[tuple[int, str]]]:
    """Take down what is logged as a warning."""
    words: list[tuple[int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(words) < _MOST_WORDS:
                words.append((record.levelno, record.getMessage()))

    logger, listener = logging.getLogger("cnnfeat"), Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield words
    finally:
        logger.removeHandler(listener)
