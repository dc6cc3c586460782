"""Reaching a Dask cluster, or making one of processes of this machine."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnfeat.address import scrubbed
from cnnfeat.cluster.quiet import PROCESSES
from cnnfeat.errors import StorageError, UsageError

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local"
_LOCAL = re.compile(r"local(?::([0-9]{1,4}))?")
_HOST = r"\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+"
_ADDRESS = re.compile(rf"(?:tcp|tls|ws|wss|ucx|ucxx)://(?:{_HOST}):([0-9]{{1,5}})(?:/\S*)?")
_CERTIFICATES = (
    "certificates are Dask's own settings: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"
)
_PATIENCE_S = 8  # for a scheduler; with what is asked before and after, within 15
# How many workers may be lost over one shard; 3, as Dask has it, are few where workers come and go.
_MOST_LOST = 30
# How many events a scheduler remembers of each kind; the 1,000 that Dask has are 8 MB of tasks.
_LOG_LENGTH = 100
_GPU = "GPU"
_SILENT = logging.CRITICAL + 1
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that computes shards."""

    address: str
    has_gpu: bool  # as it was started: dask worker --resources GPU=1

    @property
    def resources(self) -> dict[str, int] | None:
        """What a shard takes of it: a GPU isn't shared."""
        return {_GPU: 1} if self.has_gpu else None


def check_place(where: str) -> None:
    """Make sure that a text can be the place of a cluster.

    Raises
    ------
    UsageError
        If it can't.
    """
    local, address = _LOCAL.fullmatch(where), _ADDRESS.fullmatch(where)
    is_port = address is not None and 0 < int(address[1]) < 2**16
    if not (is_port if local is None else local[1] is None or int(local[1])):
        raise UsageError(
            f"--dask {scrubbed(where)}: allowed are {LOCAL}, {LOCAL}:N with N processes, and the "
            "address of a scheduler, such as tcp://host:8786"
        )


@contextlib.contextmanager
def connected(where: str) -> Iterator[Client]:
    """Connect to the scheduler at an address, or to one of this machine's own (`local`).

    Raises
    ------
    UsageError
        If it can be no address, or Dask isn't installed or set up for it.
    StorageError
        If no scheduler answers.
    """
    check_place(where)
    try:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning
    except ImportError as error:
        raise UsageError(
            "--dask needs Dask, which isn't installed", hint="pip install 'cnnfeat[dask]'"
        ) from error
    with contextlib.ExitStack() as stack:
        _silence()
        address: object = where
        if local := _LOCAL.fullmatch(where):
            address = stack.enter_context(_local_cluster(int(local[1] or 0)))
        with warnings.catch_warnings():  # versions are compared below, in words
            warnings.simplefilter("ignore", VersionMismatchWarning)
            try:
                client = stack.enter_context(Client(address, timeout=_PATIENCE_S))
            except (OSError, ValueError, RuntimeError) as error:
                raise StorageError(
                    f"no Dask scheduler answers at {where}: {error}",
                    hint="dask scheduler starts one, and says its address",
                ) from error
            except TypeError as error:  # tls:// without certificates, ucx:// without its package
                hint = _CERTIFICATES if where.startswith("tls:") else ""
                raise UsageError(
                    f"Dask isn't set up to connect to {where}: {error}", hint=hint
                ) from error
        with _losses_told(where):
            client.run_on_scheduler(_limit_of_losses())
            yield client


@contextlib.contextmanager
def _losses_told(where: str) -> Iterator[None]:
    """Say in our words that a scheduler is gone, whatever was asked of it."""
    from distributed import CancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except (CancelledError, CommClosedError, TimeoutError) as error:
        raise StorageError(
            f"the Dask scheduler of {where} is gone, or has let go of what it was asked for",
            hint="start it again; the same command goes on, and keeps what is done",
        ) from error


def _silence() -> None:
    """Keep Dask's own words off the terminal; what they come to is said in ours."""
    for name in ("distributed", *_children("distributed")):
        logging.getLogger(name).setLevel(_SILENT)


def _children(name: str) -> list[str]:
    return [one for one in logging.root.manager.loggerDict if one.startswith(f"{name}.")]


@contextlib.contextmanager
def _local_cluster(n_processes: int) -> Iterator[object]:
    """Processes of this machine that nobody else can reach: they hold a key made for them."""
    import dask
    from distributed import LocalCluster
    from distributed.deploy.utils import nprocesses_nthreads

    n_workers = n_processes or nprocesses_nthreads()[0]
    settings: dict[str, object] = {
        "distributed.nanny.pre-spawn-environ": {},  # the numbers of threads of one process alone
        PROCESSES: n_workers,
        "distributed.scheduler.http.routes": [],  # pages would ask for no key
        "distributed.worker.http.routes": [],
        "distributed.admin.low-level-log-length": _LOG_LENGTH,
    }
    with dask.config.set(settings):
        try:
            cluster = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # else its port is fixed, and may be taken
                memory_limit=None,
                silence_logs=_SILENT,
                security=True,
                preload="cnnfeat.cluster.quiet",
            )
        except (RuntimeError, OSError) as error:
            raise StorageError(
                f"{n_workers} processes of this machine can't be started as workers: {error}",
                hint="the same command tries again",
            ) from error
        try:
            yield cluster
        finally:
            try:
                cluster.close()
            except TimeoutError:
                _log.info("processes of this machine took long to end; they end with this one")


def _limit_of_losses() -> object:
    """Make what raises the scheduler's limit; sent as code, as cnnfeat may not be there."""

    def raise_limit(most: int = _MOST_LOST, dask_scheduler: object = None) -> None:
        dask_scheduler.allowed_failures = max(most, dask_scheduler.allowed_failures)  # type: ignore[attr-defined]

    return raise_limit


def forget_tasks() -> object:
    """Make what empties a scheduler's records of all tasks there have been: they grow for good.

    Sent as code, as cnnfeat may not be there.
    """

    def forget(dask_scheduler: object = None) -> None:
        from dask.utils import key_split

        key_split.cache_clear()  # their names, up to 100,000
        spans = dask_scheduler.extensions.get("spans")  # type: ignore[attr-defined]
        for span in spans.spans.values() if spans else ():
            if span.metadata:
                span.metadata["collections"].clear()  # what each was computed for: a future

    return forget


def workers_of(client: Client) -> tuple[Worker, ...]:
    """List the workers that there are now.

    The scheduler itself is asked: what the client keeps of it is overwritten now and then by an
    answer without workers, and all would be taken for lost.
    """
    found: Mapping[str, Mapping[str, object]] = client.sync(client.scheduler.identity)["workers"]
    return tuple(
        Worker(address, _GPU in (info.get("resources") or {}))  # type: ignore[operator]
        for address, info in found.items()
    )
