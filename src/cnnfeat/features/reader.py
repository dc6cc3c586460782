"""Reads a feature file, and checks every block of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnfeat.address import local_name
from cnnfeat.errors import CnnfeatError, FeatureFileError, LayerLookupError, UsageError, near_names
from cnnfeat.features import format as fmt
from cnnfeat.features import safety
from cnnfeat.features.attributes import has_attribute, read_attributes, read_record, read_shape
from cnnfeat.features.format import LayerNames, StoredLayer
from cnnfeat.features.naming import Spelled, find_stored
from cnnfeat.features.rows import Place, RowReader
from cnnfeat.features.safety import Sums, read_sums
from cnnfeat.features.seal import RunningChecksum
from cnnfeat.parts import Part
from cnnfeat.pixels import is_usable, unusable
from cnnfeat.provenance import Provenance
from cnnfeat.records import Array, Groups, Labels, Parts, SkippedSample, some_of

_HINT = "make the file again with cnnfeat extract"


class FeatureFile:
    """A complete feature file, open for reading; a context manager.

    A folder of shards that `cnnfeat merge` has sealed is read as the file that they make up: then
    it is a `cnnfeat.features.sets.FeatureSet`, which does all that is said here.

    Parameters
    ----------
    path : Path
        The file, or the folder.

    Attributes
    ----------
    path : Path
    attributes : mapping of str to str, int or float
        Where the features came from, as it stands in the file.
    provenance : Provenance
        The same, as a record.
    classes : tuple of str
        Class names; label k means `classes[k]`.
    splits : tuple of str
    held : tuple of str
        The same, and of a shard those whose samples were all left out.
    layers : tuple of str
        Names of the layers that every split has, in the order they were asked for.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FeatureFileError
        If it is damaged, incomplete, of an unknown version, foreign, or points to other files.
    """

    def __new__(cls, path: Path | str, *_more: object) -> Self:
        """Make what reads a file, or a folder."""
        if cls is not FeatureFile or not Path(path).is_dir():
            return super().__new__(cls)
        from cnnfeat.features.sets import FeatureSet

        return super().__new__(FeatureSet)  # type: ignore[return-value]

    def __init__(self, path: Path | str) -> None:
        self.path = Path(local_name(path, "a feature file") if isinstance(path, str) else path)
        self._checked = safety.open_checked(self.path)
        self._file, self._heap = self._checked.root, self._checked.heap
        self._rows = RowReader(self._checked.handle, self.path)
        try:
            self._load()
        except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
            self.close()
            if isinstance(error, CnnfeatError):
                raise
            raise FeatureFileError(f"{self.path}: damaged: {error}", hint=_HINT) from error

    def _load(self) -> None:
        self.attributes: Mapping[str, str | int | float]
        self.attributes, self.provenance = read_provenance(self._file, self.path)
        classes = safety.child_array(self._file, fmt.CLASSES, self.path)
        self.classes = tuple(safety.texts(classes, self.path, heap=self._heap))
        names = [name for name in self._file if name not in fmt.RESERVED_SPLITS]
        self._groups, self._sums = {}, {}
        if not all(isinstance(name, str) for name in names):
            raise FeatureFileError(f"{self.path}: the name of a split is no UTF-8", hint=_HINT)
        for name in self._ordered(names):
            self._groups[name] = safety.child_group(self._file, name, self.path)
            self._sums[name] = read_sums(self._file, name, self.path, heap=self._heap)
        if not self._groups:
            raise FeatureFileError(f"{self.path} has no split", hint=_HINT)
        for name in safety.child_group(self._file, fmt.CHECKSUMS, self.path):
            if name not in self._groups:
                raise FeatureFileError(
                    f"{self.path}: there are checksums of a split {name!r}, and no such split",
                    hint=_HINT,
                )
        self._beside = {
            (split, column)
            for split in self._groups
            for column in self._sums[split].columns
            if self._is_beside(split, column)
        }
        self._places = {
            (split, column): self._place(split, column)
            for split in self._groups
            for column in self._sums[split].columns
            if column != fmt.ID
        }
        self._check_apart()
        for split in self._groups:
            self._check_counts(split)
        self.held, self.splits = tuple(self._groups), self._filled()
        first = self._layers_of(next(iter(self._groups)))
        self.layers = tuple(
            name for name in first if all((split, name) in self._places for split in self._groups)
        )
        for layer in self.layers:
            self._check_shapes(layer)

    def _filled(self) -> tuple[str, ...]:
        """Name the splits that have rows: in a shard, all samples of one may have been left out.

        Raises
        ------
        FeatureFileError
            If there are none, or another file's split has none.
        """
        filled = tuple(split for split in self._groups if int(self._sums[split].stops[-1]))
        empty = [split for split in self._groups if split not in filled]
        if self.provenance.shard is not None:
            if not filled:
                raise FeatureFileError(
                    f"{self.path} has no rows: all samples of this shard were left out",
                    hint="name the set's folder, which cnnfeat merge FOLDER --manifest seals",
                )
        elif empty:
            raise FeatureFileError(f"{self.path}: split {empty[0]!r} has no rows", hint=_HINT)
        return filled

    @staticmethod
    def _ordered(names: Sequence[str]) -> list[str]:
        known = ["train", "validation", "val", "test"]
        return sorted(names, key=lambda name: (known.index(name) if name in known else 9, name))

    def _layers_of(self, split: str) -> list[str]:
        return [
            name
            for name in self._sums[split].columns
            if name != fmt.ID and (split, name) not in self._beside
        ]

    def _is_beside(self, split: str, column: str) -> bool:
        """Whether a column is none of the layers'; files older than parts may have such a layer."""
        if column not in fmt.BESIDE or column == fmt.LABEL:
            return column == fmt.LABEL
        array = safety.child_array(self._groups[split], column, self.path)
        return not has_attribute(array, "tensor", self.path)

    def _place(self, split: str, column: str) -> Place:
        array = safety.child_array(self._groups[split], column, self.path)
        beside = (split, column) in self._beside
        kinds = np.dtype(fmt.BESIDE[column]).kind if beside else "fiu"
        dtype = safety.numeric(array, self.path, kinds)
        if beside and array.ndim != 1:
            raise FeatureFileError(f"{self.path}: {array.name} has shape {array.shape}", hint=_HINT)
        return Place(array.id.get_offset() or 0, array.shape, dtype)

    def _check_apart(self) -> None:
        """Refuse arrays that share bytes: a small file could pass for an immense one."""
        filled = [item for item in self._places.items() if item[1].size_bytes]
        filled.sort(key=lambda item: item[1].offset)
        for (one, first), (other, second) in itertools.pairwise(filled):
            if first.offset + first.size_bytes > second.offset:
                raise FeatureFileError(
                    f"{self.path}: {'/'.join(one)} and {'/'.join(other)} share bytes", hint=_HINT
                )

    def _check_shapes(self, layer: str) -> None:
        """Refuse a layer that is not of one shape in all splits, or has no numbers."""
        shapes = {split: self._places[split, layer].shape[1:] for split in self._groups}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{shape} in {split!r}" for split, shape in shapes.items())
            raise FeatureFileError(
                f"{self.path}: rows of layer {layer!r} differ in shape: {listed}", hint=_HINT
            )
        if 0 in next(iter(shapes.values())):
            raise FeatureFileError(f"{self.path}: layer {layer!r} has no features", hint=_HINT)

    def _check_counts(self, split: str) -> None:
        ids = safety.child_array(self._groups[split], fmt.ID, self.path)
        safety.check_is_texts(ids, self.path)
        counts = {fmt.ID: ids.shape[:1], "checksums": (int(self._sums[split].stops[-1]),)}
        for (owner, column), place in self._places.items():
            if owner == split:
                counts[column] = place.shape[:1]
        if len(set(counts.values())) != 1 or () in counts.values():
            listed = ", ".join(f"{name} {n[0] if n else 'none'}" for name, n in counts.items())
            raise FeatureFileError(
                f"{self.path}: split {split!r} has unequal numbers of rows: {listed}", hint=_HINT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        layers = [f"{name} {self._rows_of(name)}" for name in self.layers]
        rows = [f"{self.n_rows(split):,} {split}" for split in self.splits]
        network, source = (self.attributes.get(key, "?") for key in ("network", "source"))
        return (
            f"{type(self).__name__} {self.path}\n"
            f"  rows    {some_of(rows)}; {len(self.classes)} classes\n"
            f"  layers  {some_of(layers)}\n"
            f"  from    {source}, by {network}"
        )

    def _rows_of(self, layer: str) -> str:
        """Say what rows of a layer are; of a closed file too."""
        place = self._places[self.splits[0], layer]
        return f"{place.shape[1:]} {place.dtype.name}"

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
        self._checked.close()

    def n_rows(self, split: str) -> int:
        """Rows of a split."""
        return int(self.sums(split).stops[-1])

    def n_blocks(self, split: str) -> int:
        """Blocks of a split."""
        return len(self.sums(split).stops)

    def columns(self, split: str) -> tuple[str, ...]:
        """Names of what each row of a split has: the layers, then label, part, group, id."""
        return self.sums(split).columns

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk."""
        return self.path.stat().st_size

    @property
    def n_pieces(self) -> int:
        """How many files there are: of a set, its shards."""
        return 1

    @contextlib.contextmanager
    def piece(self, number: int) -> Iterator[tuple[FeatureFile, Mapping[str, int]]]:  # noqa: ARG002
        """Open one of the files; with it, by split, the rows of all before it."""
        yield self, dict.fromkeys(self.splits, 0)

    def sums(self, split: str) -> Sums:
        """Block checksums of a split.

        Raises
        ------
        UsageError
            If there is no such split.
        """
        if split not in self._groups:
            raise UsageError(
                f"{self.path} has no split {split!r}; it has: {', '.join(self.splits)}",
                hint=near_names(split, self.splits),
            )
        return self._sums[split]

    def layer(self, split: str, name: str) -> StoredLayer:
        """Describe one layer."""
        place = self._find(split, name)
        array = safety.child_array(self._groups[split], name, self.path)
        said = read_record(LayerNames, array, self.path)
        shape = read_shape(array, "original_shape", self.path)
        return StoredLayer(
            layer=said.layer or name,
            tensor=said.tensor,
            op=said.op,
            pooling=said.pooling or "none",
            shape=place.shape,
            dtype=place.dtype.name,
            original_shape=place.shape[1:] if shape is None else shape,
            size_bytes=place.size_bytes,
            asked=said.asked,
        )

    def overflows(self, split: str, name: str) -> int:
        """How many values of a layer were beyond its stored type, and are infinite."""
        self.sums(split)
        array = safety.child_array(self._groups[split], name, self.path)
        found = read_attributes(array, (fmt.OVERFLOWED,), self.path).get(fmt.OVERFLOWED)
        return found if isinstance(found, int) and found > 0 else 0

    def _find(self, split: str, column: str) -> Place:
        self.sums(split)
        if (split, column) not in self._places:
            raise self._unknown_layer(column)
        return self._places[split, column]

    @functools.cached_property
    def spelled(self) -> Spelled:
        """What its layers and their tensors are called in the network, by stored name."""
        described = {name: self.layer(self.splits[0], name) for name in self.layers}
        return {name: (one.layer, one.tensor, one.asked) for name, one in described.items()}

    def find_layer(self, name: str | None) -> str:
        """Find the stored name of a layer.

        Parameters
        ----------
        name : str or None
            A layer, in the file's or the network's spelling, of any case. None: the only one.

        Raises
        ------
        UsageError
            If `name` is None and there are several.
        LayerLookupError
            If there is none of that name; near names are in the hint.
        """
        if name is None:
            if len(self.layers) == 1:
                return self.layers[0]
            if not self.layers:
                raise self._unknown_layer("")
            raise UsageError(
                f"{self.path} holds {len(self.layers)} layers: {', '.join(self.layers)}",
                hint=f"name one: --layer {self.layers[0]}",
            )
        found = find_stored(name, self.spelled)
        if found is None:
            raise self._unknown_layer(name)
        return found

    def _unknown_layer(self, name: str) -> LayerLookupError:
        there = ", ".join(self.layers)
        if not there:
            there = "; ".join(
                f"in {split!r} {', '.join(self._layers_of(split)) or 'none'}"
                for split in self.splits
            )
            there += ", and none in all splits"
        return LayerLookupError(
            f"{self.path} holds no layer{f' {name!r}' if name else ''}; it holds: {there}",
            hint=near_names(name, self.layers),
        )

    def read(self, split: str, layer: str, *, start: int = 0, stop: int | None = None) -> Array:
        """Read consecutive rows.

        Returns
        -------
        ndarray of shape (stop - start, ...)
            In the stored type and the layer's own shape.
        """
        return self._rows.read(self._find(split, layer), start, self._stop(split, stop))

    def _stop(self, split: str, stop: int | None) -> int:
        n_rows = self.n_rows(split)
        return n_rows if stop is None else max(0, min(stop, n_rows))

    def take(
        self,
        split: str,
        layer: str,
        rows: Sequence[int] | NDArray[np.integer],
        *,
        any_numbers: bool = False,
    ) -> Array:
        """Read some rows, in the order given.

        Parameters
        ----------
        split, layer : str
            What to read.
        rows : sequence of int, (n,)
            Row numbers, 0 to `n_rows(split) - 1`.
        any_numbers : bool
            Whether NaN, infinite and immense numbers may be among them.

        Raises
        ------
        FeatureFileError
            If a row holds numbers that nothing can be computed from.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        taken = self._rows.take(self._find(split, layer), wanted)
        if not any_numbers:
            self._refuse_unusable(split, layer, taken, wanted)
        return taken

    def blocks(
        self, split: str, layer: str, *, rows: int | None = None, any_numbers: bool = False
    ) -> Iterator[tuple[int, Array]]:
        """Read all rows in order, checking them against the block checksums.

        Parameters
        ----------
        split, layer : str
            What to read.
        rows : int, optional
            How many at a time; by default the blocks the file was written in, large ones in parts.
        any_numbers : bool
            Whether NaN, infinite and immense numbers may be among them.

        Yields
        ------
        tuple of int and ndarray
            The first row's number, and the rows. A block whose checksum doesn't hold is noticed
            when its last row has been read, so trust rows only when the iterator has ended.

        Raises
        ------
        FeatureFileError
            If a checksum doesn't hold, or a row holds numbers that nothing can be computed from; it
            names split, layer, and block or row.
        """
        place, sums = self._find(split, layer), self._sums[split]
        ends, expected = sums.stops.tolist(), sums.of(layer).tolist()
        running, block, start = RunningChecksum(), 0, 0
        while start < place.shape[0]:
            while ends[block] == 0:  # all samples of the first blocks were left out
                block += 1
            stop = min(start + (rows or place.rows_at_once), place.shape[0])
            stop = stop if rows else min(stop, ends[block])
            array = self._rows.read(place, start, stop)
            done = start
            while block < len(ends) and ends[block] <= stop:
                running.update(array[done - start : ends[block] - start])
                if running.take() != expected[block]:
                    raise self.damaged(split, layer, block)
                done, block = ends[block], block + 1
            running.update(array[done - start :])
            if not any_numbers:
                self._refuse_unusable(split, layer, array, range(start, stop))
            yield start, array
            start = stop

    def _pieces(self, split: str, layer: str, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        """Read consecutive rows, a few MiB at a time: the first row's number, and the rows."""
        place = self._find(split, layer)
        for begin in range(start, stop, place.rows_at_once):
            yield begin, self._rows.read(place, begin, min(begin + place.rows_at_once, stop))

    def _refuse_unusable(
        self, split: str, layer: str, array: Array, rows: Sequence[int] | NDArray[np.int64]
    ) -> None:
        """Refuse rows that nothing can be computed from: the first of them is named.

        Where the block is damaged, that is what is said.
        """
        for place, reason in unusable(array).items():
            row = int(rows[place])
            self.check_block(split, layer, int(np.sum(self._sums[split].stops <= row)))
            column = int(np.argmin(is_usable(array[place].reshape(-1))))
            raise FeatureFileError(
                f"{self.path}: {split}/{layer}, row {row}: {reason}, the first in column {column} "
                f"({self.ids(split, start=row, stop=row + 1)[0]})",
                hint="look at the network and its weights; extract again with cnnfeat extract",
            )

    def check_block(
        self,
        split: str,
        layer: str,
        block: int,
        *,
        look: Callable[[int, Array], None] | None = None,
    ) -> None:
        """Check one block of numbers; `look` is shown its rows, before it is known to be sound.

        Raises
        ------
        FeatureFileError
            If its checksum doesn't hold; it names split, layer and block.
        """
        sums, running = self._sums[split], RunningChecksum()
        start = int(sums.stops[block - 1]) if block else 0
        for first, rows in self._pieces(split, layer, start, int(sums.stops[block])):
            running.update(rows)
            if look is not None:
                look(first, rows)
        if running.take() != int(sums.of(layer)[block]):
            raise self.damaged(split, layer, block)

    def damaged(self, split: str, layer: str, block: int) -> FeatureFileError:
        """Make the error that names a block whose checksum doesn't hold."""
        stops = self._sums[split].stops
        start = int(stops[block - 1]) if block else 0
        return FeatureFileError(
            f"{self.path}: split {split!r}, layer {layer!r}, block {block} "
            f"(rows {start} to {int(stops[block]) - 1}) is damaged: its checksum doesn't hold",
            hint=_HINT,
        )

    def labels(self, split: str) -> Labels | None:
        """Labels of a split, (n_rows,) int64, checked; None where there are none."""
        found = self._whole(split, fmt.LABEL)
        return None if found is None else found.astype(np.int64, copy=False)

    def parts(self, split: str) -> Parts | None:
        """What the network had seen of each row, (n_rows,) `Part`, checked; None: unknown."""
        found = self._whole(split, fmt.PART)
        if found is not None and len(found) and int(found.max()) > max(Part):
            raise FeatureFileError(
                f"{self.path}: {split}/{fmt.PART} holds {found.max()}; 0 to {max(Part)} are known",
                hint="a newer cnnfeat may read it",
            )
        return None if found is None else found.astype(np.uint8, copy=False)

    def groups(self, split: str) -> Groups | None:
        """Which rows belong together, (n_rows,) numbers, checked; None where that wasn't said."""
        found = self._whole(split, fmt.GROUP)
        return None if found is None else found.astype(np.int64, copy=False)

    def _whole(self, split: str, column: str) -> Array | None:
        """All rows of a column that stands beside the layers; None where there is none."""
        self.sums(split)
        if (split, column) not in self._beside:
            return None
        none = self.read(split, column, stop=0)  # of a shard there may be no rows
        return np.concatenate([none, *(rows for _, rows in self.blocks(split, column))])

    def ids(self, split: str, *, start: int = 0, stop: int | None = None) -> list[str]:
        """Names of the samples, a row each."""
        self.sums(split)
        array = safety.child_array(self._groups[split], fmt.ID, self.path)
        stop = self._stop(split, stop)
        return safety.texts(array, self.path, heap=self._heap, start=start, stop=stop)

    def skipped(self, split: str) -> tuple[SkippedSample, ...]:
        """Samples that were left out, and why.

        Raises
        ------
        FeatureFileError
            If they are damaged, or more or others than there can be.
        """
        self.sums(split)
        if not safety.has_child(self._groups[split], fmt.SKIPPED, self.path):
            return ()
        group = safety.child_group(self._groups[split], fmt.SKIPPED, self.path)
        row = safety.child_array(group, "row", self.path)
        rows = safety.read_numbers(row, self.path, "i").astype(np.int64)
        ids, reasons = (
            safety.texts(safety.child_array(group, name, self.path), self.path, heap=self._heap)
            for name in (fmt.ID, "reason")
        )
        start = self._first_sample(split)
        last = start + self.n_rows(split) + len(ids) - 1
        sound = rows.shape == (len(ids),) == (len(reasons),) and bool(np.all(np.diff(rows) > 0))
        if not sound or (len(rows) and not start <= rows[0] <= rows[-1] <= last):
            raise FeatureFileError(
                f"{self.path}: {group.name} doesn't list rows from {start} to {last}, each with "
                "its id and reason",
                hint=_HINT,
            )
        return tuple(
            SkippedSample(row, name, why)
            for row, name, why in zip(rows.tolist(), ids, reasons, strict=True)
        )

    def _first_sample(self, split: str) -> int:
        shard = self.provenance.shard
        return 0 if shard is None else shard.samples.get(split, (0, 0))[0]


def read_provenance(file: h5py.File, path: Path) -> tuple[dict[str, str | int | float], Provenance]:
    """Read what the root says of where the features came from: as it stands, and as a record.

    Raises
    ------
    FeatureFileError
        If an attribute is of another kind, or beyond its range; with its name and value.
    """
    found = read_attributes(file, [item.name for item in fields(Provenance)], path)
    try:
        return found, Provenance.from_attributes(found)
    except ValueError as error:
        raise FeatureFileError(f"{path}: attribute {error}", hint=_HINT) from error
