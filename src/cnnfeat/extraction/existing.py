"""Features that stand there and are added to: how they were made, where new ones wait."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnnfeat.errors import FeatureFileError, UsageError
from cnnfeat.features import (
    FeatureFile,
    FeatureWriter,
    FilePlan,
    PlannedFile,
    ShardFile,
    storage_errors,
    verify_opened,
)
from cnnfeat.features.inventory import read_inventory
from cnnfeat.features.merging import all_there, seal_set
from cnnfeat.features.writer import OutputPaths, needed_bytes
from cnnfeat.files import check_space, sync
from cnnfeat.options import ExtractOptions
from cnnfeat.progress import Progress
from cnnfeat.provenance import Provenance, differing_settings
from cnnfeat.records import ProbeOutput, Source
from cnnfeat.shards import ShardNumber, shard_files

if TYPE_CHECKING:
    from cnnfeat.extraction.run import Extraction

STAGING = ".adding"  # in a set's folder: where its new shards wait until all are there
DATA = frozenset({"data", "data fingerprint"})  # the settings that say which images
_OTHER = "give the same again, or extract into another file with -o"


@dataclass(frozen=True, slots=True)
class Existing:
    """A feature file or a set, before something is added to it."""

    path: Path
    paths: tuple[Path, ...]  # of a set, its shards
    said: Provenance
    outputs: tuple[ProbeOutput, ...]  # its layers

    @classmethod
    def at(cls, path: Path) -> Existing:
        """Look at what is there.

        Raises
        ------
        CnnfeatError
            If it is damaged, or of a set a shard is missing.
        """
        paths = tuple(all_there(path)) if path.is_dir() else (path,)
        read = ShardFile if path.is_dir() else PlannedFile
        with read(paths[-1]) as last:  # of a set's shards the last is the last to be replaced
            columns = last.planned_columns(last.held[0])
            outputs = tuple(one.output for one in columns if one.output is not None)
            return cls(path, paths, last.provenance, outputs)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers as they were asked for."""
        asked = self.said.options.get("extract", {}).get("layer")
        return tuple(map(str, asked)) if isinstance(asked, list) else ()

    def has(self, tensor: str) -> bool:
        """Whether a tensor's features are there."""
        return any(tensor == output.tensor for output in self.outputs)

    def is_of(self, source: Source) -> bool:
        """Whether it was made of a source as that is now."""
        now = {"data": source.name, "data fingerprint": source.fingerprint().digest}
        return all(self.said.settings.get(name) == value for name, value in now.items())

    def options_like(self, extraction: Extraction) -> ExtractOptions:
        """Give the options of an extraction, with the batch size that was found by timing."""
        options, size = extraction.options, self.said.settings.get("batch size", "")
        if options.batch_size == "auto" and size.isdecimal():
            return dataclasses.replace(options, batch_size=int(size))
        return options

    def check_settings(
        self, wanted: Mapping[str, str], *, but: frozenset[str], hint: str = _OTHER
    ) -> None:
        """Refuse to add to what was made with other settings, but for some of them."""
        check_settings(self.path, self.said, wanted, but=but, hint=hint)


def layers_at(path: Path) -> tuple[str, ...]:
    """Name the layers that a feature file or a set has, as they were asked for."""
    return Existing.at(path).layers


def check_settings(
    path: Path,
    said: Provenance,
    wanted: Mapping[str, str],
    *,
    but: frozenset[str],
    hint: str = _OTHER,
) -> None:
    """Refuse what was made with other settings, but for some of them.

    Where nothing can have been left out, samples that are added may be.

    Raises
    ------
    UsageError
        With the first one's name and both values.
    """
    for name, one, other in differing_settings(said.settings, wanted, whole=said.is_whole):
        if name not in but:
            raise UsageError(
                f"{path} was made with another {name}: {one}, and now it is {other}", hint=hint
            )


def check_begun(out: Path, wanted: Mapping[str, str]) -> bool:
    """Whether what an interrupted run has left of an output is of the same images, to be gone on.

    Raises
    ------
    UsageError
        If it is another addition.
    """
    begun = FeatureWriter.unfinished(out)
    if begun is None:
        return False
    try:
        begun.check_same(out, {**wanted, **{name: begun.settings.get(name, "") for name in DATA}})
    except UsageError as error:
        journal = OutputPaths.of(out).journal
        raise UsageError(
            error.message, hint=f"add those layers first, or delete {journal}"
        ) from error
    return begun.settings == wanted


def check_sound(file: FeatureFile, progress: Progress) -> None:
    """Refuse to copy what is damaged: its checksums would be made anew."""
    damages = verify_opened(file, progress=progress).damages
    if damages:
        raise FeatureFileError(
            damages[0].message, hint="make the file again with cnnfeat extract --overwrite"
        )


def check_in_place(file: FeatureFile) -> None:
    """Refuse to replace what another process has made of a file while this one read it.

    Raises
    ------
    UsageError
        If its name leads to another file now.
    """
    if isinstance(file, PlannedFile) and not file.is_in_place:
        raise UsageError(
            f"{file.path} was made anew by another process meanwhile",
            hint="the same command adds to what is there now",
        )


def foresee_shards(staging: Path, plan: FilePlan, *, n_shards: int) -> None:
    """Refuse to write a set's shards anew where there is no room for all of them.

    Raises
    ------
    StorageError
        With both numbers.
    """
    with storage_errors(staging):
        there = staging.iterdir() if staging.is_dir() else ()
        present = sum(item.stat().st_blocks * 512 for item in there)
    check_space(staging, needed_bytes(plan), present_bytes=present, n_files=n_shards)


def put_back(folder: Path) -> None:
    """Move shards that the manifest doesn't list to where new ones wait.

    They are of an addition that was interrupted while all of its shards were put in place or, after
    the manifest, those before them were taken away.
    """
    if not (folder / STAGING).is_dir():
        return
    try:
        listed = {shard.name for shard in read_inventory(folder).shards}
    except FeatureFileError:  # interrupted while shards of the same names were replaced
        return
    withdraw(folder, listed)


def withdraw(folder: Path, listed: Container[str]) -> None:
    """Move a folder's shards but for those listed to where new ones wait."""
    with storage_errors(folder):
        for _, _, path in list(shard_files(folder)):
            if path.name not in listed:
                path.replace(folder / STAGING / path.name)


def replace_shards(folder: Path, n_shards: int, *, progress: Progress) -> None:
    """Make a set of the shards that wait, of another number than those that are there.

    The manifest is the moment: until it is written the old set is whole, and then the new one.
    """
    names = [ShardNumber(number, n_shards).file_name for number in range(1, n_shards + 1)]
    with storage_errors(folder):
        for name in names:
            (folder / STAGING / name).replace(folder / name)
        sync(folder)
    seal_set(folder, of=n_shards, progress=progress)
    withdraw(folder, names)
    with storage_errors(folder):
        shutil.rmtree(folder / STAGING)


def drop_others(folder: Path, n_shards: int) -> None:
    """Delete what waits of sets of another number of shards; and the place, if it is empty then."""
    staging = folder / STAGING
    if not staging.is_dir():
        return
    with storage_errors(folder):
        for _, of, path in list(shard_files(staging)):
            if of != n_shards:
                path.unlink()
    with contextlib.suppress(OSError):
        staging.rmdir()
