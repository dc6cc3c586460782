"""Pictures in tar files in WebDataset's manner: `0001.jpg` and `0001.cls` side by side.

https://github.com/webdataset/webdataset (section "The WebDataset Format"): members that stand
together and have one name up to the first dot, the key, are one sample; what follows the dot says
what each is. Tar files are gone through once, when they are opened; pictures are read out of them
where they lie.
"""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cnnfeat.data.arrays import index_labels
from cnnfeat.data.folders import without_ending
from cnnfeat.data.imagefiles import ImageFileSource
from cnnfeat.data.remote import AnyPath, RemotePath
from cnnfeat.data.source import FileStates, file_states, is_utf8
from cnnfeat.data.tape import LocalTape, Member, RemoteTape, Tape, TornError, members
from cnnfeat.documents import parse_document, printable
from cnnfeat.errors import DataError, ImageError
from cnnfeat.records import some_of

if TYPE_CHECKING:
    from cnnfeat.records import Array, Labels

_DOCUMENTS = ("json", "jsn")
_CAPTIONS = ("txt", "text")  # or labels
_ENDINGS = ("cls", "class", "label", *_DOCUMENTS, *_CAPTIONS)  # of labels, the first counts
_KEYS = ("label", "class", "cls", "target")  # in a document
_LONGEST_TEXT, _LONGEST_DOCUMENT = 1024, 1 << 20  # bytes
_LARGEST = 1 << 30  # bytes of a picture, which is read whole
_UNLABELLED = "no label stands beside it, as beside others"
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NOT_OURS = "__MACOSX"
_log = logging.getLogger("cnnfeat")


@dataclass(frozen=True, slots=True)
class TapeImage:
    """A picture in a tar file; or a place where one can't be read, and why."""

    id: str
    label: int | None
    tape: Tape
    member: Member
    problem: str

    @property
    def bytes_afar(self) -> int:
        """How many bytes a request fetches; 0: they are on this machine."""
        return self.member.size if self.tape.afar and not self.problem else 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.tape.name}, {printable(self.member.name)}"

    def open(self) -> BinaryIO:
        """Read its bytes, and give them as a file.

        Raises
        ------
        ImageError
            If they can't be read, or something else is wrong with the sample.
        """
        if self.problem:
            raise ImageError(f"{self.name}: {self.problem}")
        return io.BytesIO(self.tape.read(self.member.offset, self.member.size))


@dataclass(frozen=True, slots=True)
class _Label:
    """A label as it stands there."""

    value: int | str | None = None
    ending: str = ""  # of the member that has it


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture as it was found, its label not numbered yet."""

    tape: Tape
    member: Member
    label: _Label
    problem: str


@dataclass(slots=True)
class _Sample:
    """What stands together in a tar file."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)  # by their endings

    @property
    def pictures(self) -> Sequence[Member]:
        """Its picture, `0001.jpg`; without such a one those like `0001.left.jpg`."""
        found = [end for end in self.parts if without_ending(f"x.{end}") != f"x.{end}"]
        return [self.parts[end] for end in ([one for one in found if "." not in one] or found)]


def open_webdataset(
    path: Path | str,
    files: Mapping[str, Sequence[AnyPath]],
    *,
    labels: str | None,
    max_pixels: int,
) -> ImageFileSource:
    """Open tar files of this machine, or in a store, as a source; see `open_tapes`.

    Parameters
    ----------
    path : Path or str
        The file, their folder, or the pattern of their names.
    files : mapping of str to sequence of Path or RemotePath
        The files of each split, in order.
    labels, max_pixels
        As in `open_tapes`.
    """
    together = [file for of_split in files.values() for file in of_split]
    columns = zip(*(file.parent.parts for file in together), strict=False)
    n_above = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, columns))
    stems = {file: "/".join(file.parts[n_above:]) for file in together}
    return open_tapes(
        str(path),
        {split: [_tape(file, stems[file]) for file in of] for split, of in files.items()},
        states=lambda: file_states({stem: file for file, stem in stems.items()}),
        labels=labels,
        max_pixels=max_pixels,
    )


def _tape(file: AnyPath, stem: str) -> Tape:
    return RemoteTape(file, stem) if isinstance(file, RemotePath) else LocalTape(file, stem)


def open_tapes(
    name: str,
    tapes: Mapping[str, Sequence[Tape]],
    *,
    states: Callable[[], FileStates],
    labels: str | None,
    max_pixels: int,
) -> ImageFileSource:
    """Open tar files as a source.

    What is wrong with one sample (its key stands there twice, it has no label where others have
    one) is told when it is read, as with pictures that can't be decoded; so is the loss of what
    lay behind a damaged place, which counts as one picture.

    Parameters
    ----------
    name : str
        As in `records.Source`.
    tapes : mapping of str to sequence of Tape
        Those of each split, in order.
    states : callable
        As in `OpenedSource`.
    labels : str or None
        The ending of the members that are labels, or the key of a label in JSON, as ":/cls". None
        chooses by the names people use.
    max_pixels : int
        Larger pictures are refused before they are decoded.

    Raises
    ------
    DataError
        If there are no pictures, or members that are links, devices or sparse.
    """
    asked = None if labels is None else labels.removeprefix(":").strip("/")
    several = sum(map(len, tapes.values())) > 1
    found = {
        split: [one for tape in of for one in _pictures(tape, asked)] for split, of in tapes.items()
    }
    indices, classes = _indices(found, asked, name)
    images = {
        split: tuple(_images(pictures, indices.get(split), several=several))
        for split, pictures in found.items()
    }
    for split, of_split in images.items():
        if not of_split:
            raise DataError(
                f"{name}: the split {split} holds no pictures",
                hint="a picture needs a name such as 0001.jpg in the tar file",
            )
    return ImageFileSource(
        name,
        "tar",
        images=images,
        classes=classes,
        states=states,
        max_pixels=max_pixels,
        labels_from=labels or "",
    )


def _images(
    found: Sequence[_Found], labels: Labels | None, *, several: bool
) -> Iterator[TapeImage]:
    for row, one in enumerate(found):
        unlabelled = labels is not None and one.label.value is None
        yield TapeImage(
            id=f"{one.tape.stem}/{one.member.name}" if several else one.member.name,
            label=None if labels is None else int(labels[row]),
            tape=one.tape,
            member=one.member,
            problem=one.problem or (_UNLABELLED if unlabelled else ""),
        )


def _pictures(tape: Tape, asked: str | None) -> Iterator[_Found]:
    """Go through the pictures of a tar file; what damage takes away is the last of them."""
    seen: set[str] = set()
    others: Counter[str] = Counter()
    with tape.open() as file:
        try:
            for sample in _samples(file, tape.name):
                if sample.pictures:
                    yield _found(sample, tape, file, asked=asked, again=sample.key in seen)
                    seen.add(sample.key)
                else:
                    others.update(sample.parts.keys())
        except TornError as error:
            _log.warning("%s: %s; what lies behind is lost", tape.name, error)
            yield _Found(
                tape, Member("its end", 0, 0), _Label(), f"{error}; what lies behind is lost"
            )
    if others:
        endings = some_of([f"{n:,} .{printable(end)}" for end, n in others.most_common()])
        _log.warning("%s: left out, as no picture stands beside them: %s", tape.name, endings)


def _found(
    sample: _Sample, tape: Tape, file: BinaryIO, *, asked: str | None, again: bool
) -> _Found:
    picture, label, problem = sample.pictures[0], _Label(), ""
    try:
        label = _label(sample, file, asked)
    except ValueError as error:
        problem = str(error)
    if again:
        problem = "its key, the name up to the first dot, stands there twice"
    elif len(sample.pictures) > 1:
        problem = f"{len(sample.pictures)} pictures have its key, the name up to the first dot"
    elif picture.size > _LARGEST:
        problem = f"has {picture.size:,} bytes; pictures have at most {_LARGEST:,} here"
    elif not is_utf8(picture.name):
        problem = "the name is not UTF-8"
    return _Found(tape, picture, label, problem)


def _samples(file: BinaryIO, name: str) -> Iterator[_Sample]:
    """Put together members that stand together and share a key.

    Raises
    ------
    TornError
        After the last sample that is there, if the file is damaged.
    """
    sample, torn = _Sample(""), None
    try:
        for member in members(file, name=name):
            path = PurePosixPath(member.name)
            if path.name.startswith(".") or _NOT_OURS in path.parts or "." not in path.name:
                continue
            stem, _, ending = path.name.partition(".")
            key, ending = str(path.parent / stem), ending.lower()
            if key != sample.key or ending in sample.parts:
                yield sample
                sample = _Sample(key)
            sample.parts[ending] = Member(str(path), member.offset, member.size)
    except TornError as error:
        torn = error
    yield sample
    if torn:
        raise torn


def _label(sample: _Sample, file: BinaryIO, asked: str | None) -> _Label:
    """Read the label of a sample.

    Raises
    ------
    ValueError
        With what is wrong with it.
    """
    endings, keys = (_ENDINGS, _KEYS) if asked is None else ((asked, *_DOCUMENTS), (asked,))
    for ending in endings:
        if (member := sample.parts.get(ending)) is None:
            continue
        file.seek(member.offset)
        if ending in _DOCUMENTS:
            if member.size > _LONGEST_DOCUMENT:
                raise ValueError(
                    f"its .{ending} has {member.size:,} bytes; at most "
                    f"{_LONGEST_DOCUMENT:,} are read"
                )
            value = _in_document(file.read(member.size), keys, where=f"its .{ending}")
        else:
            value = _in_text(file.read(min(member.size, _LONGEST_TEXT)))
        if value is not None:
            return _Label(value, ending)
    return _Label()


def _in_text(data: bytes) -> int | str | None:
    text = data.decode("utf-8", "replace").strip("\0 \t\r\n")
    if _WHOLE.fullmatch(text):
        return int(text)
    return text or None


def _in_document(data: bytes, keys: Sequence[str], *, where: str) -> int | str | None:
    try:
        document = parse_document(data)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON of a record: {error}") from error
    label = next((document[key] for key in keys if document.get(key) is not None), None)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if label is None or isinstance(label, (int, str)):
        return label
    shown = printable(str(label)[:60])
    raise ValueError(f"the label in {where} is {shown}; a whole number or a text is needed")


def _indices(
    found: Mapping[str, Sequence[_Found]], asked: str | None, name: str
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """Number the labels of the splits that have some.

    A picture without one where others have theirs gets the first of these: its row is never read.
    """
    labels: dict[str, Array] = {}
    if asked is None and _are_captions([one.label for of in found.values() for one in of]):
        _log.info("%s: its texts differ from picture to picture: captions, no labels", name)
        return {}, ()
    for split, pictures in found.items():
        values = [one.label.value for one in pictures]
        first = next((value for value in values if value is not None), None)
        if first is not None:
            filled = [first if value is None else value for value in values]
            plain = all(isinstance(value, int) for value in filled)
            labels[split] = np.array(filled if plain else [str(value) for value in filled])
    if asked is not None and not labels:
        raise DataError(
            f"{name}: no labels in {asked!r}, as an ending of members or a key of their JSON"
        )
    return index_labels(labels, name=name)


def _are_captions(labels: Sequence[_Label]) -> bool:
    """Whether texts beside pictures are no names of classes: most stand there once."""
    texts = [label.value for label in labels if label.ending in _CAPTIONS]
    others = any(label.value is not None and label.ending not in _CAPTIONS for label in labels)
    return bool(texts) and not others and 2 * len(set(texts)) > len(texts) + 1
