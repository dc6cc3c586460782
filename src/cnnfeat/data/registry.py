"""The data sets known by name, and downloading them: mirrors in turn, each file verified."""

from __future__ import annotations

import contextlib
import http.client
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch

from cnnfeat.errors import DownloadError, StorageError, UsageError, near_names
from cnnfeat.progress import SILENT, Progress

CONNECT_TIMEOUT_S = 15.0  # without an answer, or without another byte
PROBE_TIMEOUT_S = 7.0  # for all mirrors together, before `auto` turns to the bundled images
MAX_FILE_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**16
_FAILURES = (OSError, http.client.HTTPException, ValueError)
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """One file of a data set, packed by gzip."""

    name: str  # "train-images-idx3-ubyte.gz"
    sha256: str  # of the file as it is downloaded
    unpacked_sha256: str | None = None  # None: not published


@dataclass(frozen=True, slots=True)
class Dataset:
    """A source known by name. One without files comes with an installed package."""

    name: str
    description: str
    classes: tuple[str, ...]
    mirrors: tuple[str, ...] = ()  # addresses of folders, each ends in "/"
    files: tuple[DatasetFile, ...] = ()


_DIGITS = tuple("0123456789")

DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(
        name="mnist",
        description="70,000 handwritten digits, 28×28 grey",
        classes=_DIGITS,
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://raw.githubusercontent.com/fgnt/mnist/master/",
        ),
        files=(
            DatasetFile(
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            DatasetFile(
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            DatasetFile(
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            DatasetFile(
                "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion-mnist": Dataset(
        name="fashion-mnist",
        description="70,000 articles of clothing, 28×28 grey",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        files=(
            DatasetFile(
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            DatasetFile(
                "train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            DatasetFile(
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            DatasetFile(
                "t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
    ),
    "digits": Dataset(
        name="digits",
        description="1,797 handwritten digits, 8×8 grey, inside scikit-learn",
        classes=_DIGITS,
    ),
}


def get_dataset(name: str) -> Dataset:
    """Find a data set by its name.

    Raises
    ------
    UsageError
        With the names there are.
    """
    if name not in DATASETS:
        raise UsageError(
            f"no source is named {name!r}; known by name: {', '.join(DATASETS)}",
            hint=near_names(name, DATASETS),
        )
    return DATASETS[name]


def reachable_mirrors(dataset: Dataset) -> tuple[tuple[str, ...], dict[str, str]]:
    """Ask all mirrors at once for the first bytes of the smallest file.

    Returns
    -------
    tuple of str
        All mirrors, the first to send bytes in front; empty if none did within `PROBE_TIMEOUT_S`.
    dict of str to str
        Why each didn't; empty if one did.
    """
    answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for mirror in dataset.mirrors:
        threading.Thread(
            target=_probe, args=(mirror, dataset.files[-1].name, answers), daemon=True
        ).start()
    reasons = dict.fromkeys(dataset.mirrors, f"no answer within {PROBE_TIMEOUT_S:g} s")
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    for _ in dataset.mirrors:
        try:
            mirror, reason = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        reasons[mirror] = reason
        if not reason:
            return (mirror, *(other for other in dataset.mirrors if other != mirror)), {}
    return (), reasons


def download(
    dataset: Dataset,
    file: DatasetFile,
    *,
    folder: Path,
    mirrors: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Download one file into `folder`, from the first mirror that has it right.

    Raises
    ------
    DownloadError
        With each mirror's reason, and where to put the files by hand.
    StorageError
        If `folder` can't be written.
    """
    _check_writable(folder)
    pooch.get_logger().setLevel(logging.WARNING)  # it would print addresses amid the progress
    reasons: dict[str, str] = {}
    for mirror in dataset.mirrors if mirrors is None else mirrors:
        try:
            path = pooch.retrieve(
                mirror + file.name,
                known_hash=f"sha256:{file.sha256}",
                fname=file.name,
                path=folder,
                downloader=_Downloader(progress, file.name),
            )
        except _FAILURES as error:
            reasons[mirror] = _reason(error, mirror + file.name)
            _log.debug("%s%s: %s", mirror, file.name, reasons[mirror])
        else:
            return Path(path)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing is in it
    raise unreachable(dataset, reasons=reasons, folder=folder)


def unreachable(dataset: Dataset, *, reasons: dict[str, str], folder: Path) -> DownloadError:
    """Make the error for a data set no mirror gave."""
    told = "; ".join(f"{mirror}: {reason}" for mirror, reason in reasons.items())
    names = ", ".join(file.name for file in dataset.files)
    return DownloadError(
        f"{dataset.name} can't be downloaded: {told}",
        hint=f"put {names} into {folder}; or into FOLDER/{dataset.name}, with --data-dir FOLDER; "
        "or use the bundled images: --data digits",
    )


class _Downloader:
    """Fetches an address into a file, for pooch; never more than `MAX_FILE_BYTES`."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress = progress
        self._label = label

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        with _open(url, CONNECT_TIMEOUT_S) as response:
            declared = response.headers.get("Content-Length", "")
            total = int(declared) if declared.isdecimal() else None
            done = 0
            with (
                Path(output_file).open("wb") as output,
                self._progress.task(self._label, total=total, unit="bytes") as task,
            ):
                while chunk := response.read(_CHUNK_BYTES):
                    done += len(chunk)
                    if done > MAX_FILE_BYTES:
                        raise ValueError(f"sends more than {MAX_FILE_BYTES:,} bytes")
                    output.write(chunk)
                    task.advance(len(chunk))
        if total is not None and done < total:
            raise ValueError(f"the connection broke after {done:,} of {total:,} bytes")


def _open(url: str, timeout_s: float) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "cnnfeat"})
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
    return response


def _probe(mirror: str, name: str, answers: queue.SimpleQueue[tuple[str, str]]) -> None:
    try:
        with _open(mirror + name, PROBE_TIMEOUT_S) as response:
            reason = "" if response.read(1) else "sends nothing"
    except _FAILURES as error:
        reason = _reason(error, mirror + name)
    answers.put((mirror, reason))


def _reason(error: Exception, url: str) -> str:
    """Say in a few words why an address gave nothing."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).replace(url, "").strip() or type(error).__name__


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".cnnfeat-writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: can't be written: {error.strerror or error}",
            hint="choose another folder with --data-dir",
        ) from error
