"""One shard of a set: an ordinary feature file with a name of its own, and its place among all."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from cnnfeat.documents import json_text
from cnnfeat.errors import FeatureFileError
from cnnfeat.features import format as fmt
from cnnfeat.features import safety
from cnnfeat.features.attributes import read_attributes
from cnnfeat.features.format import Column
from cnnfeat.features.reader import FeatureFile
from cnnfeat.features.seal import RunningChecksum
from cnnfeat.provenance import differing_settings
from cnnfeat.records import ProbeOutput
from cnnfeat.shards import ShardRows

_HINT = "give every shard's command the same options, source and versions"
_ENGINE_HINT = (
    "make it again with the --engine of the others; auto comes to another where an extra is missing"
)


class PlannedFile(FeatureFile):
    """A feature file that tells how it was planned, for another that is to have the same."""

    @property
    def is_in_place(self) -> bool:
        """Whether its name still leads to it: another process may have put a file there."""
        try:
            return os.path.samestat(os.fstat(self._checked.handle), self.path.stat())
        except FileNotFoundError:
            return False

    def planned_columns(self, split: str) -> tuple[Column, ...]:
        """Describe its arrays as they were planned.

        Raises
        ------
        FeatureFileError
            If what it says of them is damaged.
        """
        return tuple(self._planned(split, name) for name in self.columns(split) if name != fmt.ID)

    def _planned(self, split: str, name: str) -> Column:
        place = self._places[split, name]
        output = None if (split, name) in self._beside else self._output(split, name)
        return Column(name, place.dtype.newbyteorder("<").str, place.shape[1:], output)

    def _output(self, split: str, name: str) -> ProbeOutput:
        said, dtype = self.layer(split, name), self._places[split, name].dtype.name
        array = safety.child_array(self._groups[split], name, self.path)
        original = read_attributes(array, ("original_dtype",), self.path).get("original_dtype")
        return ProbeOutput(
            layer=said.layer,
            tensor=said.tensor,
            op=said.op,
            row_shape=said.shape[1:],
            dtype=dtype,
            original_shape=said.original_shape,
            original_dtype=str(original or dtype),
            pooling=said.pooling,
            axes=safety.axis_names(array, self.path),
            asked=said.asked,
        )


class ShardFile(PlannedFile):
    """A shard as one of its set, which one without rows is too: all its samples were left out.

    Attributes
    ----------
    place : ShardRows
        Which rows of the set it has.
    """

    def _load(self) -> None:
        super()._load()
        if self.provenance.shard is None:
            raise FeatureFileError(
                f"{self.path} is no shard: nothing in it says which rows of a set it has",
                hint="cnnfeat extract --shard 3/20 makes one",
            )
        self.place: ShardRows = self.provenance.shard

    def _filled(self) -> tuple[str, ...]:
        return tuple(split for split in self._groups if self.n_rows(split))

    @property
    def n_left_out(self) -> int:
        """How many of its samples were left out."""
        n_samples = sum(stop - start for start, stop in self.place.samples.values())
        return n_samples - sum(self.n_rows(split) for split in self.held)

    def check_place(self, number: int, of: int) -> None:
        """Refuse a shard that is another of its set, or of another.

        Raises
        ------
        FeatureFileError
            With both.
        """
        if (self.place.number, self.place.of) != (number, of):
            raise FeatureFileError(
                f"{self.path} holds shard {self.place.number}/{self.place.of}, not {number}/{of}",
                hint="give it the name it had, or make the shard again; then cnnfeat merge FOLDER "
                "--manifest",
            )

    def check_settings(self, wanted: Mapping[str, str], others: str) -> None:
        """Refuse a shard that was made with other settings than the others; name the first.

        Whether samples might have been left out is each one's own: it lists those that were.

        Parameters
        ----------
        wanted : mapping of str to str
            The settings that all have in common.
        others : str
            What has them, for the message.

        Raises
        ------
        FeatureFileError
            With the setting's name and both values.
        """
        for name, one, other in differing_settings(self.provenance.settings, wanted, whole=True):
            raise FeatureFileError(
                f"{self.path} was made with another {name} than {others}: {one}, not {other}",
                hint=_ENGINE_HINT if name == "engine" else _HINT,
            )

    def check_columns(self, known: dict[str, tuple[str, ...]]) -> None:
        """Refuse a shard with other columns than the others, as another cnnfeat makes them.

        Parameters
        ----------
        known : dict of str to tuple of str
            By split, the columns of those looked at before; gets this one's.

        Raises
        ------
        FeatureFileError
            With the split and what only one of them has.
        """
        for split in self.held:
            found = self.columns(split)
            wanted = known.setdefault(split, found)
            if found != wanted:
                differing = ", ".join(sorted({*found} ^ {*wanted})) or "the order of all"
                raise FeatureFileError(
                    f"{self.path} was made by another version of cnnfeat than other shards: in "
                    f"split {split!r} they don't share {differing}",
                    hint="make the older ones again, with cnnfeat extract --shard and --overwrite",
                )

    def content_checksum(self) -> str:
        """Digest what it holds, by the checksums of its blocks: 16 hexadecimal digits.

        When and by what path it was made doesn't count.
        """
        running = RunningChecksum()
        for split, sums in self._sums.items():
            left_out = [[one.row, one.id, one.reason] for one in self.skipped(split)]
            said = json_text([split, sums.columns, self.classes, left_out])
            running.update(np.frombuffer(said.encode("utf-8"), np.uint8))
            running.update(sums.stops.astype("<i8"))
            running.update(sums.values.astype("<u8"))
        return f"{running.take():016x}"
