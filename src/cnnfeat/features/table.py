"""Feature files of the same images as one: their rows are joined by id, their layers by columns.

What machines are fitted to and asked about is such a table; often it is of one file.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnfeat.address import Address
from cnnfeat.errors import FeatureFileError, LayerLookupError, UsageError
from cnnfeat.features.alignment import AGAIN, AlignedFile
from cnnfeat.features.format import StoredLayer
from cnnfeat.features.naming import LayerPart, find_joined
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.rows import PIECE_BYTES
from cnnfeat.parts import Part
from cnnfeat.pixels import unusable
from cnnfeat.records import Array, Groups, Labels, Parts, class_name, some_of
from cnnfeat.transfer import incoming, name_of

_FLOAT = np.dtype(np.float32)
_log = logging.getLogger("cnnfeat")


class FeatureTable:
    """Rows of one feature file or of several, and their layers, alone or side by side.

    Rows are in the first file's order. A layer is asked for by the name that `find_layer` gives;
    several side by side are one of rank 1, each flattened in C order, in float32.

    Parameters
    ----------
    files : sequence of FeatureFile
        Open; whoever opened them closes them.

    Attributes
    ----------
    files : tuple of FeatureFile
    aligned : tuple of AlignedFile
        The same, read in the order of the first.
    path, attributes, provenance, splits
        Of the first file.
    classes : tuple of str
        Class names; label k means `classes[k]`.

    Raises
    ------
    FeatureFileError
        If files have different splits, classes or ids.
    """

    def __init__(self, files: Sequence[FeatureFile]) -> None:
        first = files[0]
        self.files = tuple(files)
        self.aligned = tuple(AlignedFile(file, first) for file in files)
        self.path, self.splits = first.path, first.splits
        self.attributes, self.provenance = first.attributes, first.provenance
        self.classes = next((file.classes for file in files if file.classes), ())
        self._joined: dict[str, tuple[LayerPart, ...]] = {}
        self._grouped: dict[str, Groups] | None = None

    @classmethod
    def of(cls, features: FeatureFile | FeatureTable) -> FeatureTable:
        """Take a table as it is, and a file as a table of one."""
        return features if isinstance(features, FeatureTable) else cls([features])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that all files have; of several, each joined of all of them.

        Raises
        ------
        LayerLookupError
            If there is none.
        """
        first, *others = self.files
        shared = [name for name in first.layers if all(name in one.layers for one in others)]
        if not shared:
            if not others:
                first.find_layer(None)  # says what there is
            raise LayerLookupError(
                "there is no layer that all of these files have: "
                + "; ".join(f"{file.path} holds {some_of(file.layers)}" for file in self.files),
                hint="cnnfeat extract --layer NAME makes features of one",
            )
        each = range(len(self.files))
        return tuple(
            self._join_others("+".join([name] * len(each)), [LayerPart(k, name) for k in each])
            for name in shared
        )

    def find_layer(self, name: str | None) -> str:
        """Find what a name means; see `naming.find_joined`.

        Parameters
        ----------
        name : str or None
            None: the only layer of each file.

        Raises
        ------
        UsageError
            If `name` is None and there are several; if its parts are not one for each file.
        LayerLookupError
            If there is none of that name.
        """
        if name is None:
            name = "+".join(file.find_layer(None) for file in self.files)
        found = find_joined(name, self.files)
        return self._join_others(found.name, found.parts)

    def _join_others(self, name: str, parts: Sequence[LayerPart]) -> str:
        """Join layers that are not the same."""
        for one, other in itertools.combinations(parts, 2):
            if self._is_same(one, other):
                first, second = (name_of(self.files[part.file].path) for part in (one, other))
                raise UsageError(
                    f"{one.layer!r} of {first} and of {second} are the same numbers: its columns "
                    "would count twice",
                    hint="name each feature file once",
                )
        return self.join(name, parts)

    def _is_same(self, one: LayerPart, other: LayerPart) -> bool:
        """Whether two files' columns hold the same numbers, by the checksums of their blocks."""
        split, files = self.splits[0], [self.files[part.file] for part in (one, other)]
        if one.layer != other.layer or files[0].layer(split, one.layer) != files[1].layer(
            split, other.layer
        ):
            return False
        sums = [[file.sums(name).of(one.layer) for name in self.splits] for file in files]
        return all(map(np.array_equal, *sums))

    def join(self, name: str, parts: Sequence[LayerPart]) -> str:
        """Let a name stand for layers side by side; give back the name."""
        self._joined[name] = tuple(parts)
        return name

    def parts_of(self, layer: str) -> tuple[LayerPart, ...]:
        """List the layers that are joined."""
        if layer not in self._joined:
            self.find_layer(layer)
        return self._joined[layer]

    def described(self, split: str, layer: str) -> list[tuple[LayerPart, StoredLayer]]:
        """Describe each of the layers that are joined."""
        return [
            (part, self.files[part.file].layer(split, part.layer)) for part in self.parts_of(layer)
        ]

    def layer(self, split: str, name: str) -> StoredLayer:
        """Describe one layer, or several side by side."""
        found = [stored for _, stored in self.described(split, name)]
        if len(found) == 1:
            return found[0]
        width = sum(math.prod(stored.shape[1:]) for stored in found)
        n_rows = self.n_rows(split)
        return StoredLayer(
            layer=name,
            tensor="",
            op="",
            pooling="none",
            shape=(n_rows, width),
            dtype=_FLOAT.name,
            original_shape=(width,),
            size_bytes=_FLOAT.itemsize * n_rows * width,
        )

    def n_rows(self, split: str) -> int:
        """Rows of a split."""
        return self.files[0].n_rows(split)

    def ids(self, split: str, *, start: int = 0, stop: int | None = None) -> list[str]:
        """Names of the samples, a row each."""
        return self.files[0].ids(split, start=start, stop=stop)

    def blocks(
        self, split: str, layer: str, *, rows: int | None = None, any_numbers: bool = False
    ) -> Iterator[tuple[int, Array]]:
        """Read all rows in order, checking them; see `FeatureFile.blocks`."""
        parts = self.parts_of(layer)
        if len(parts) > 1 or parts[0].file:
            row_bytes = sum(
                stored.size_bytes // stored.shape[0] for _, stored in self.described(split, layer)
            )
            rows = rows or max(1, PIECE_BYTES // row_bytes)
        read = [
            self.aligned[part.file].blocks(split, part.layer, rows=rows, any_numbers=any_numbers)
            for part in parts
        ]
        if len(read) == 1:
            yield from read[0]
            return
        for found in zip(*read, strict=True):
            yield found[0][0], _side_by_side([block for _, block in found])

    def take(
        self,
        split: str,
        layer: str,
        rows: Sequence[int] | NDArray[np.integer],
        *,
        any_numbers: bool = False,
    ) -> Array:
        """Read some rows, in the order given; see `FeatureFile.take`."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = [
            self.aligned[part.file].take(split, part.layer, wanted, any_numbers=any_numbers)
            for part in self.parts_of(layer)
        ]
        return found[0] if len(found) == 1 else _side_by_side(found)

    def unusable_part(self, split: str, layer: str, row: int) -> tuple[Path, str, int]:
        """Say which file, layer and own row numbers are of that nothing can be computed from."""
        parts = self.parts_of(layer)
        for part in parts:
            aligned, wanted = self.aligned[part.file], np.array([row])
            numbers = aligned.take(split, part.layer, wanted, any_numbers=True)
            if part is parts[-1] or unusable(numbers):
                break
        return aligned.file.path, part.layer, aligned.own_row(split, row)

    def labels(self, split: str) -> Labels | None:
        """Labels of a split, (n_rows,) int64; None where no file has any.

        Raises
        ------
        FeatureFileError
            If files disagree; with the first row.
        """
        known = [(one, found) for one in self.aligned if (found := one.labels(split)) is not None]
        if not known:
            return None
        (first, labels), *others = known
        for other, found in others:
            differing = np.flatnonzero(labels != found)
            if len(differing):
                row = int(differing[0])
                here, there = (class_name(int(one[row]), self.classes) for one in (labels, found))
                raise FeatureFileError(
                    f"{split}, row {row} ({self._id(split, row)}) is of class {here!r} in "
                    f"{first.file.path}, and of {there!r} in {other.file.path}; "
                    f"{len(differing):,} rows differ",
                    hint=AGAIN,
                )
        return labels

    def parts(self, split: str) -> Parts | None:
        """What the networks have seen of each row, (n_rows,) `Part`; None where no file says.

        A row that any network was fitted to is fitted to; one by which an epoch was picked is of
        validation, for any; see `unknown`.
        """
        known = [found for one in self.aligned if (found := one.parts(split)) is not None]
        if not known:
            return None
        strictest = known[0].copy()
        for part in (Part.VALIDATION, Part.FITTED):
            strictest[np.any([found == part for found in known], axis=0)] = part
        return strictest

    def unknown(self, split: str) -> list[FeatureFile]:
        """Name the files that don't say what their network has seen of a split's rows."""
        return [file for file in self.files if file.parts(split) is None]

    def groups(self, split: str) -> Groups | None:
        """Which rows belong together, (n_rows,) numbers; None where no file says.

        Raises
        ------
        FeatureFileError
            If files disagree; with two rows.
        """
        if self._grouped is None:
            self._grouped = self._agreed_groups()
        return self._grouped.get(split)

    def _agreed_groups(self) -> dict[str, Groups]:
        """Groups of the file that has most of them; numbers in others may be different ones."""
        known = [
            {split: found for split in self.splits if (found := one.groups(split)) is not None}
            for one in self.aligned
        ]
        first = max(range(len(known)), key=lambda place: len(known[place]))
        for place, others in enumerate(known):
            shared = [split for split in self.splits if split in others and split in known[first]]
            if place == first or not shared:
                continue
            here, there = (
                np.concatenate([groups[split] for split in shared])
                for groups in (known[first], others)
            )
            pair = _divided_pair(here, there) or _divided_pair(there, here)
            if pair is not None:
                names = [name for split in shared for name in self.ids(split)]
                one, other = (names[row] for row in pair)
                raise FeatureFileError(
                    f"{one} and {other} are of one group in one of {self.files[first].path} and "
                    f"{self.files[place].path}, and of two in the other",
                    hint=AGAIN,
                )
        return known[first]

    def _id(self, split: str, row: int) -> str:
        return self.ids(split, start=row, stop=row + 1)[0]


def _divided_pair(groups: Groups, others: Groups) -> tuple[int, int] | None:
    """Find two rows of one group that others put into two."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    differing = np.flatnonzero(others != others[first][group])
    if not len(differing):
        return None
    row = int(differing[0])
    return int(first[group[row]]), row


def _side_by_side(blocks: Sequence[Array]) -> Array:
    """Join the columns of some rows."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then is refused
        return np.concatenate(
            [block.reshape(len(block), -1).astype(_FLOAT, copy=False) for block in blocks], axis=1
        )


@contextlib.contextmanager
def open_table(
    places: Path | str | Address | Sequence[Path | str | Address],
) -> Iterator[FeatureTable]:
    """Open feature files, sets or addresses of them, as one table.

    Raises
    ------
    CnnfeatError
        As `FeatureFile` and `transfer.incoming` do.
    FeatureFileError
        If they can't be joined.
    """
    several = [places] if isinstance(places, Path | str | Address) else list(places)
    with contextlib.ExitStack() as opened:
        paths = [opened.enter_context(incoming(place)) for place in several]
        table = FeatureTable([opened.enter_context(FeatureFile(path)) for path in paths])
        _say_sources(table)
        yield table


def _say_sources(table: FeatureTable) -> None:
    """Say that files are of different images, as far as they tell: ids alone join them."""
    known = {file.provenance.source_fingerprint: file for file in table.files}
    known.pop("", None)
    if len(known) > 1:
        names = [f"{name_of(file.path)} of {file.provenance.source}" for file in known.values()]
        _log.warning("features are of different sources, joined by id: %s", some_of(names))
