"""Networks that lie in a folder or a zip archive with other files, as they are handed out.

Teachable Machine's downloads are such: `keras_model.h5` with `labels.txt` beside it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnfeat.archives import is_archive
from cnnfeat.errors import NetworkError, UntrustedModelError
from cnnfeat.network.formats import opened_archive
from cnnfeat.regular import is_inside, open_regular
from cnnfeat.temporary import temporary_folder

_LOG = logging.getLogger("cnnfeat")
_ENDINGS = (".keras", ".h5", ".hdf5", ".pb", ".pbtxt", ".json", ".tflite")
_NO_NETWORKS = ("metadata.json", "package.json", "config.json", "saved_model.json")
_LABELS = "labels.txt"
_PARTS = ("variables", "assets", "assets.extra")  # folders of a SavedModel
_BESIDE = ("checkpoint", "graph.pb", "graph.pbtxt", "saved_model.pb", "saved_model.pbtxt")
_LARGEST = 1 << 20


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give the network that lies in a folder or an archive; what is no such thing as it is.

    Parameters
    ----------
    path : Path
        What was named.

    Raises
    ------
    NetworkError
        If there are several, or the archive can't be read.
    UntrustedModelError
        If a member of the archive lies outside it, or it would fill the disk.
    """
    if path.is_dir():
        yield _only(path, path)
    elif path.is_file() and is_archive(path) and _holds_a_network(path):
        with temporary_folder() as folder:
            with opened_archive(path) as archive:
                archive.unpack(folder, wanted=lambda name: not name.startswith("__MACOSX/"))
            yield _only(folder, path)
    else:
        yield path


def _holds_a_network(path: Path) -> bool:
    """Whether an archive is no `.keras` file, and has a file in it that may be a network."""
    with opened_archive(path) as archive:
        names = archive.names
    foreign = any(name.endswith("data.pkl") or name.endswith(".npy") for name in names)
    return not foreign and "config.json" not in names and any(map(_may_be, names))


def _may_be(name: str) -> bool:
    last = re.split(r"[\\/]", name)[-1]
    return last.endswith(_ENDINGS) and last not in _NO_NETWORKS and not last.startswith(".")


def _only(folder: Path, named: Path) -> Path:
    """The one network of a folder; the folder itself where it is one, or there is none."""
    if _is_network(folder):
        return folder
    inner = [item for item in sorted(folder.iterdir()) if item.is_dir() and _is_network(item)]
    files = [item for item in sorted(folder.iterdir()) if item.is_file() and _may_be(item.name)]
    whole = [item for item in files if item.suffix != ".json"] or files
    found = [*inner, *whole] if not (inner and named == folder and not whole) else []
    if not found and not inner:
        below = [item for item in sorted(folder.iterdir()) if item.is_dir()]
        return _only(below[0], named) if len(below) == 1 and named != folder else folder
    if len(found) > 1:
        listed = ", ".join(item.name for item in found)
        raise NetworkError(
            f"{named} holds several networks: {listed}",
            hint=f"name one: {named / found[0].name}" if named == folder else "unpack it, name one",
        )
    if not found:
        return folder
    _LOG.info("%s: the network in it is %s", named, found[0].name)
    return found[0]


def _is_network(folder: Path) -> bool:
    names = {item.name for item in folder.iterdir()}
    own = {"saved_model.pb", "saved_model.pbtxt", "checkpoint"}
    return bool(names & own) or any(name.endswith(".meta") for name in names)


def check_links(path: Path) -> None:
    """Refuse a network of several files where a link of theirs leads out of its folder.

    Parameters
    ----------
    path : Path
        The folder; or one of the files, or what the names of some begin with.

    Raises
    ------
    UntrustedModelError
        Naming the link.
    """
    folder = path if path.is_dir() else path.parent
    for where, folders, files in os.walk(folder):
        names = [*folders, *files]
        if not path.is_dir() and Path(where) == folder:
            folders[:] = [name for name in folders if name in _PARTS]
            names = [*folders, *(name for name in files if _belongs(name, path.name))]
        for name in names:
            link = Path(where, name)
            if link.is_symlink() and not is_inside(link, folder):
                raise UntrustedModelError(
                    f"{link} leads out of {folder}: a model reads no other files",
                    hint="copy the folder with what its links lead to: cp -rL",
                )


def _belongs(name: str, given: str) -> bool:
    """Whether a file may be read where a SavedModel's or a checkpoint's was given."""
    stem = re.sub(r"\.(meta|index|data-\d{5}-of-\d{5})$", "", given)
    return name.startswith(stem) or name in _BESIDE or name.endswith((".meta", ".index"))


def classes_beside(path: Path) -> tuple[str, ...]:
    """Names of the classes that a network tells apart, from a `labels.txt` beside its file.

    Parameters
    ----------
    path : Path
        The network.

    Returns
    -------
    tuple of str
        () where there is none. "0 cat" is "cat".
    """
    labels = path.parent / _LABELS
    if not is_inside(labels, path.parent):
        return ()
    try:
        with open_regular(labels) as file:
            text = file.read(_LARGEST + 1)
        lines = text.decode("utf-8").splitlines() if len(text) <= _LARGEST else []
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(re.sub(r"^\d+[\s:]+", "", line.strip()) for line in lines if line.strip())
