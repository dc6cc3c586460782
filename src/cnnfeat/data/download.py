"""Downloads: mirrors in turn, each file verified before it gets its name."""

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
from pathlib import Path

import pooch

from cnnfeat.data.registry import Dataset, DatasetFile
from cnnfeat.errors import DownloadError, StorageError
from cnnfeat.progress import SILENT, Progress

CONNECT_TIMEOUT_S = 15.0  # without an answer, or without another byte
PROBE_TIMEOUT_S = 7.0  # for all mirrors together, before `auto` turns to the bundled images
MAX_FILE_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**16
_FAILURES = (OSError, http.client.HTTPException, ValueError)
_log = logging.getLogger("cnnfeat")


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
        hint=f"put {names} into {folder} (or FOLDER/{dataset.name}, with --data-dir FOLDER), "
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
