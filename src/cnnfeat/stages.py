"""What a run has done already: which stage, from which inputs, into which files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from cnnfeat import __version__
from cnnfeat.documents import Count, Name, Range, read_document, take_up
from cnnfeat.errors import OutputExistsError, UsageError
from cnnfeat.files import write_json
from cnnfeat.records import Json


class _Entry(TypedDict):
    inputs: Name  # digest
    outputs: Mapping[str, list[Count]]  # size and time of each file
    begun: NotRequired[list[Name]]  # files that a run was about to write, where it did not end


@dataclass(frozen=True, slots=True)
class _Book:
    format: Literal["cnnfeat-run"]
    format_version: Annotated[int, Range(1, 1)]
    stages: Mapping[str, _Entry]


BOOK_FORMAT = "cnnfeat-run"
BOOK_VERSION = 1


class StageBook:
    """`run.json` in an artifacts folder.

    Before a stage writes its first output, it is written down here which files those will be: what
    it leaves half done is its own to replace.

    A stage is current while its inputs (settings, fingerprints, cnnfeat's version) have the digest
    that was written down with its outputs, and the outputs have the sizes and times they had then.

    Parameters
    ----------
    path : Path
        The file; it need not exist.

    Raises
    ------
    UsageError
        If there is a file, and it is no such book.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages = _read(path)

    def is_current(self, stage: str, inputs: Mapping[str, Json]) -> bool:
        """Whether the stage's outputs stand and were made from these inputs."""
        entry = self._stages.get(stage)
        return (
            entry is not None
            and entry["inputs"] == _digest(inputs)
            and not entry.get("begun")
            and all(stamp(self._beside(name)) == was for name, was in entry["outputs"].items())
        )

    def knows(self, stage: str) -> bool:
        """Whether an earlier run began this stage, or did it."""
        return stage in self._stages

    def state(self, stage: str) -> Json:
        """What is known of a stage that is done: an input of the stages after it."""
        entry = self._stages[stage]
        return {"inputs": entry["inputs"], "outputs": entry["outputs"]}

    def check_owned(self, stage: str, outputs: Sequence[Path], *, overwrite: bool) -> None:
        """Refuse to replace a file that an earlier run did not write.

        Raises
        ------
        OutputExistsError
            If one of `outputs` exists, is not as this book knows it, and `overwrite` is false.
        """
        entry = self._stages.get(stage)
        known = entry["outputs"] if entry else {}
        begun = entry.get("begun", []) if entry else []
        for path in outputs:
            own = path.name in begun or known.get(path.name) == stamp(path)
            if path.exists() and not overwrite and not own:
                raise OutputExistsError(
                    f"{path} exists and is not what an earlier run wrote",
                    hint="--overwrite replaces it; -o writes into another folder",
                )

    def begin(self, stage: str, outputs: Sequence[Path]) -> None:
        """Write down that the stage is about to write these files."""
        entry = self._stages.get(stage, {"inputs": "", "outputs": {}})
        self._stages[stage] = {**entry, "begun": [path.name for path in outputs]}
        self._write()

    def leave(self, stage: str, outputs: Sequence[Path]) -> None:
        """Write down that the stage ended without being done: what it wrote so far is its own."""
        before = self._stages[stage]
        stamps = {path.name: stamp(path) for path in outputs if path.exists()}
        untouched = all(stamps.get(name) == was for name, was in before["outputs"].items())
        inputs = before["inputs"] if untouched else ""  # "": of no inputs, so never current
        self._stages[stage] = {"inputs": inputs, "outputs": {**before["outputs"], **stamps}}
        self._write()

    def record(self, stage: str, inputs: Mapping[str, Json], outputs: Sequence[Path]) -> None:
        """Write down that the stage is done."""
        self._stages[stage] = {
            "inputs": _digest(inputs),
            "outputs": {path.name: stamp(path) for path in outputs if path.exists()},
        }
        self._write()

    def _write(self) -> None:
        document = {"format": BOOK_FORMAT, "format_version": BOOK_VERSION, "stages": self._stages}
        write_json(self._path, document)

    def _beside(self, name: str) -> Path:
        return self._path.parent / name


def describe_book(path: Path) -> dict[str, Json]:
    """Say of each stage of a run which files it has made, and whether they stand as it left them.

    Raises
    ------
    UsageError
        If it is no such book.
    """
    return {name: _told(entry, path.parent) for name, entry in _read(path).items()}


def _told(entry: _Entry, folder: Path) -> str:
    if entry.get("begun"):
        return f"not done: {', '.join(entry.get('begun', []))}"
    changed = [name for name, was in entry["outputs"].items() if stamp(folder / name) != was]
    words = f"made {', '.join(entry['outputs'])}"
    return words + (f"; changed or gone since: {', '.join(changed)}" if changed else "")


def _read(path: Path) -> dict[str, _Entry]:
    try:
        book = take_up(_Book, read_document(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is no record of an earlier run: {error}", hint="delete it to start over"
        ) from error
    return dict(book.stages)


def _digest(inputs: Mapping[str, Json]) -> str:
    text = json.dumps({**inputs, "cnnfeat": __version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stamp(path: Path) -> list[int]:
    """Tell a file from itself once changed: its size in bytes, and its time in nanoseconds.

    Empty where there is no file.
    """
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
