"""How far a training is, in a file beside the model it makes: what `train --resume` goes on with.

The file's first line is a digest of all that follows, the second a record in JSON, which says of
each array its type and shape; behind it their numbers stand one after another, little-endian. A
program can have written anything into it, so nothing of it is taken before it was held against what
the training asks for, and no more is read than the training can have left.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnfeat.card import Epoch, card_path
from cnnfeat.documents import Duration, Length, json_text, parse_document, take_up
from cnnfeat.errors import DataError, StorageError, UsageError
from cnnfeat.files import check_output, replacing
from cnnfeat.provenance import differing_settings
from cnnfeat.records import Json, counted
from cnnfeat.regular import open_regular

SECONDS_BETWEEN = 30.0  # two writings: a training that is shorter leaves nothing
RECORD_BYTES = 64 << 20  # at most
_FORMAT, _VERSION = "cnnfeat-training", 1
_DIGEST_BYTES = 2 * hashlib.sha256().digest_size + 1  # in hexadecimal, and the end of the line

logger = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the training of one network stands after an epoch."""

    history: tuple[Epoch, ...]
    elapsed_s: float
    ended: bool  # then `arrays` are the weights that are kept; else all that it goes on with
    arrays: tuple[NDArray[np.generic], ...]
    path: Path | None = None  # the file that it is from

    def unfit(self, why: str) -> DataError:
        """Make the error for one that can't be of the network at hand."""
        return _damaged(self.path, why)


@dataclass(frozen=True, slots=True)
class _Member:
    history: tuple[Epoch, ...]
    elapsed_s: Duration
    ended: bool
    arrays: tuple[tuple[Literal["float32", "int64", "int32", "uint32"], tuple[Length, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Record:
    format: Literal["cnnfeat-training"]
    format_version: Literal[1]
    settings: Mapping[str, str]
    members: tuple[_Member, ...]


def standing_path(model: Path) -> Path:
    """Where a training of this model leaves how far it is."""
    return model.with_name(f"{model.name}.training")


def check_training_output(
    model: Path, *, overwrite: bool, resume: bool, needed_bytes: int = 0
) -> None:
    """Make sure, before any long work, that a model and its card can be written.

    Raises
    ------
    OutputExistsError, LockedError, StorageError
        As `files.check_output` does.
    """
    begun = standing_path(model)
    unfinished = begun if begun.exists() else None
    goes_on = resume and (unfinished is not None or model.exists())
    for path in (model, card_path(model)):
        check_output(
            path,
            overwrite=overwrite,
            resume=goes_on,
            needed_bytes=needed_bytes,
            unfinished=unfinished,
        )


class Keeper:
    """Writes how far a training is, now and then.

    Parameters
    ----------
    path : Path
        The file.
    settings : mapping
        What a training that goes on with it must have in common with this one.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self.path, self._settings = path, settings
        self.finished: list[Standing] = []  # networks of a committee
        self.kept = ""  # what the file has, in words; "": there is none
        self._written = time.monotonic()

    def take_up(self, *, most_bytes: int) -> Standing | None:
        """Take up what an interrupted training has left, and return that of the network under way.

        Raises
        ------
        UsageError, DataError, StorageError
            As `read_standings` does.
        """
        if not self.path.exists():
            return None
        standings = read_standings(self.path, self._settings, most_bytes=most_bytes)
        self.finished = [one for one in standings if one.ended]
        self.kept = _words(standings)
        logger.info("%s: goes on after %s", self.path, self.kept)
        return next((one for one in standings if not one.ended), None)

    def forget(self) -> None:
        """Remove the file: a training starts over, or has ended well."""
        self.path.unlink(missing_ok=True)

    def finish(self, standing: Standing) -> None:
        """Take up a network of a committee that is trained."""
        self.finished.append(standing)
        self._write(lambda: self.finished)

    def keep(self, standing: Callable[[], Standing]) -> None:
        """Take up where the network under way stands."""
        self._write(lambda: [*self.finished, standing()])

    def _write(self, standings: Callable[[], Sequence[Standing]]) -> None:
        """Write, if the last time is long enough ago; a disk that refuses costs the file alone."""
        if time.monotonic() - self._written < SECONDS_BETWEEN:
            return
        found = standings()
        try:
            write_standings(self.path, self._settings, found)
        except StorageError as error:
            logger.warning("how far the training is can't be kept: %s", error)
        else:
            self.kept = _words(found)
        self._written = time.monotonic()


def _words(standings: Sequence[Standing]) -> str:
    """Say what is done: "2 networks and 3 epochs of the next"."""
    n_networks = sum(one.ended for one in standings)
    n_epochs = sum(len(one.history) for one in standings if not one.ended)
    networks, epochs = counted(n_networks, "network"), counted(n_epochs, "epoch")
    if not n_networks:
        return epochs
    return f"{networks} and {epochs} of the next" if n_epochs else networks


def write_standings(path: Path, settings: Mapping[str, str], standings: Sequence[Standing]) -> None:
    """Write how far each network of a training is, whole or not at all.

    Raises
    ------
    StorageError
        If the disk refuses.
    """
    record = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "settings": dict(settings),
        "members": [
            {
                "history": one.history,
                "elapsed_s": one.elapsed_s,
                "ended": one.ended,
                "arrays": [(array.dtype.name, array.shape) for array in one.arrays],
            }
            for one in standings
        ],
    }
    head = json_text(record).encode() + b"\n"
    pieces: list[bytes | memoryview] = [
        head,
        *(_bytes(array) for one in standings for array in one.arrays),
    ]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_digest(pieces))
        file.writelines(pieces)


def read_standings(
    path: Path, settings: Mapping[str, str], *, most_bytes: int
) -> tuple[Standing, ...]:
    """Read how far each network of a training was; of one that hasn't begun there is nothing.

    Parameters
    ----------
    path : Path
        The file.
    settings : mapping
        What it must have in common with the training that goes on.
    most_bytes : int
        How large the arrays of such a training can be.

    Raises
    ------
    UsageError
        If the settings are others, by name.
    DataError
        If it is no such file, or damaged.
    StorageError
        If it can't be read.
    """
    try:
        with open_regular(path) as file:
            return tuple(_read(file, settings, most_bytes=most_bytes, path=path))
    except UsageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: can't be read: {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def describe_standing(path: Path) -> dict[str, Json]:
    """Say what an interrupted training has left: how far it is, and with which settings.

    Raises
    ------
    DataError
        If it is no such file.
    StorageError
        If it can't be read.
    """
    try:
        with open_regular(path) as file:
            file.readline(_DIGEST_BYTES)
            _, record = _head(file)
    except OSError as error:
        raise StorageError(f"{path}: can't be read: {error}") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    standings = [Standing(one.history, one.elapsed_s, one.ended, ()) for one in record.members]
    return {
        "done": _words(standings),
        "epochs": [len(one.history) for one in standings],
        "elapsed_s": sum(one.elapsed_s for one in standings),
        "settings": dict(record.settings),
    }


def _damaged(path: Path | None, why: str) -> DataError:
    """Make the error for a file that no training of cnnfeat has left so."""
    return DataError(
        f"{path} is not what an interrupted training leaves, or damaged: {why}",
        hint="--overwrite starts over",
    )


def _read(
    file: io.BufferedReader, settings: Mapping[str, str], *, most_bytes: int, path: Path
) -> Iterator[Standing]:
    digest = file.readline(_DIGEST_BYTES)
    head, record = _head(file)
    for name, found, wanted in differing_settings(record.settings, settings):
        raise UsageError(
            f"{path} was begun with another {name}: {found}, and now it is {wanted}",
            hint="train as it was begun; or --overwrite starts over",
        )
    declared = [array for member in record.members for array in member.arrays]
    n_bytes = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in declared)
    if n_bytes > most_bytes:
        raise ValueError(f"it declares arrays of {n_bytes:,} bytes, more than this network has")
    standings = [
        Standing(
            one.history,
            one.elapsed_s,
            one.ended,
            tuple(_array(file, kind, shape) for kind, shape in one.arrays),
            path,
        )
        for one in record.members
    ]
    arrays = (_bytes(array) for one in standings for array in one.arrays)
    if file.read(1) or digest != _digest([head, *arrays]):
        raise ValueError("its bytes are not those that were written")
    yield from standings


def _head(file: io.BufferedReader) -> tuple[bytes, _Record]:
    """Read the record, as it stands and what it says."""
    head = file.readline(RECORD_BYTES)
    return head, take_up(_Record, parse_document(head))


def _array(file: io.BufferedReader, kind: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    array = np.empty(math.prod(shape), np.dtype(kind).newbyteorder("<"))
    if file.readinto(_bytes(array)) != array.nbytes:
        raise ValueError("it ends too early")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("it holds weights that are no numbers")
    return array.reshape(shape)


def _bytes(array: NDArray[np.generic]) -> memoryview:
    """An array's bytes, as the file has them; those of a little-endian one are its own."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest().encode() + b"\n"
