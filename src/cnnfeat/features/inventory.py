"""`manifest.json`: which shards a set is made of, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from cnnfeat.documents import Count, Longest, Name, json_text, read_document, take_up
from cnnfeat.errors import FeatureFileError, OutputExistsError
from cnnfeat.files import replacing
from cnnfeat.regular import open_regular
from cnnfeat.shards import shard_files

if TYPE_CHECKING:
    from cnnfeat.features.shardfile import ShardFile

MANIFEST = "manifest.json"
SET_FORMAT, SET_VERSION = "cnnfeat-set", 1
HEAD_BYTES = 64  # in which the format stands
_ROW_BYTES = 16  # of a row's id alone
_SEAL = "cnnfeat merge FOLDER --manifest seals a folder whose shards are all there"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """What a manifest says of one shard; counts are by split."""

    name: Name  # of the file, in the folder
    samples: Mapping[str, tuple[Count, Count]]  # places in the source: the first, after the last
    rows: Mapping[str, Count]  # of these samples, those that were not left out
    blocks: Mapping[str, Count]
    size_bytes: Count
    checksum: Annotated[str, Longest(16)]  # of its checksums of blocks

    @classmethod
    def of(cls, file: ShardFile) -> ShardEntry:
        """Describe a shard that is there."""
        return cls(
            name=file.path.name,
            samples=dict(file.place.samples),
            rows={split: file.n_rows(split) for split in file.held},
            blocks={split: file.n_blocks(split) for split in file.held},
            size_bytes=file.size_bytes,
            checksum=file.content_checksum(),
        )

    def n_samples(self, split: str) -> int:
        """Samples of a split, those left out among them."""
        start, stop = self.samples[split]
        return stop - start

    @property
    def n_left_out(self) -> int:
        """Samples of all splits that were left out."""
        return sum(map(self.n_samples, self.samples)) - sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Inventory:
    """What `manifest.json` says."""

    settings: Mapping[str, str]
    shards: tuple[ShardEntry, ...]  # in the order of their rows

    @property
    def splits(self) -> tuple[str, ...]:
        """Names, in the source's order."""
        return tuple(self.shards[0].samples)

    def n_rows(self, split: str) -> int:
        """Rows of all shards."""
        return sum(shard.rows.get(split, 0) for shard in self.shards)


class _Head(TypedDict):
    format: Literal["cnnfeat-set"]
    version: int


def check_manifest(folder: Path) -> None:
    """Refuse to write a manifest over a file that is none.

    Raises
    ------
    OutputExistsError
        If there is one.
    """
    path = folder / MANIFEST
    if path.exists() and not _is_manifest(path):
        raise not_a_manifest(path)


def not_a_manifest(place: object) -> OutputExistsError:
    """Make the error for a file that stands where a manifest would be written."""
    return OutputExistsError(
        f"{place} is no manifest of shards, and would be written over",
        hint="move it elsewhere: what lists a set's shards has that name",
    )


def begins_as_manifest(head: bytes) -> bool:
    """Whether the first `HEAD_BYTES` of a file are a manifest's."""
    return SET_FORMAT.encode() in head


def _is_manifest(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return begins_as_manifest(file.read(HEAD_BYTES))
    except OSError:
        return False


def write_inventory(
    folder: Path, settings: Mapping[str, str], shards: Iterable[ShardEntry]
) -> None:
    """Write a folder's manifest, whole or not at all, a shard at a time.

    Raises
    ------
    FeatureFileError
        If the shards aren't all there are.
    OutputExistsError
        If there is another program's file of that name.
    StorageError
        If the disk refuses.
    """
    check_manifest(folder)
    head = json_text({"format": SET_FORMAT, "version": SET_VERSION, "settings": dict(settings)})
    with replacing(folder / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{head[:-1]}, "shards": [')
        between = "\n"
        for shard in in_a_row(folder, shards):
            file.write(f"{between}{json_text(asdict(shard))}")
            between = ",\n"
        file.write("\n]}\n")


def in_a_row(folder: Path, shards: Iterable[ShardEntry]) -> Iterable[ShardEntry]:
    """Yield shards as they come, if the samples of each begin where those before it end.

    Raises
    ------
    FeatureFileError
        Naming the first that doesn't, or a split.
    """
    ends: dict[str, int] = {}
    for number, shard in enumerate(shards):
        if number and shard.samples.keys() != ends.keys():
            raise FeatureFileError(f"{folder / shard.name} has other splits than the shards before")
        for split, (start, stop) in shard.samples.items():
            if start != ends.get(split, 0) or stop < start:
                raise FeatureFileError(
                    f"{folder / shard.name} has samples {start:,} to {stop:,} of split {split!r}, "
                    f"and those before it end at {ends.get(split, 0):,}",
                    hint="give every shard's command the same options and source",
                )
            if shard.rows.get(split, 0) > stop - start:
                raise FeatureFileError(f"{folder / shard.name} has more rows than samples")
            ends[split] = stop
        yield shard


def is_set(path: Path) -> bool:
    """Whether a path leads to a folder of shards, sealed or not."""
    if not path.is_dir():
        return False
    return _is_manifest(path / MANIFEST) or next(shard_files(path), None) is not None


def read_inventory(folder: Path) -> Inventory:
    """Read the manifest of a set, and see that its shards are there as it says.

    Raises
    ------
    FeatureFileError
        If there is no manifest or it is damaged; if a shard is missing, or of another size.
    """
    path = folder / MANIFEST
    try:
        document = read_document(path)
        head = take_up(_Head, document)
        if head["version"] != SET_VERSION:
            raise FeatureFileError(
                f"{path} has version {head['version']}; this cnnfeat reads version {SET_VERSION}",
                hint="a newer cnnfeat may read it",
            )
        found = take_up(Inventory, document)
    except FileNotFoundError as error:
        raise _unsealed(folder) from error
    except OSError as error:
        raise FeatureFileError(f"{path}: can't be read: {error.strerror}", hint=_SEAL) from error
    except ValueError as error:
        if isinstance(error, FeatureFileError):
            raise
        hint = _SEAL if _is_manifest(path) else f"move it elsewhere; then {_SEAL}"
        raise FeatureFileError(f"{path} is no manifest of shards: {error}", hint=hint) from error
    if not found.shards:
        raise FeatureFileError(f"{path} lists no shard", hint=_SEAL)
    for _ in in_a_row(folder, found.shards):
        pass
    _check_present(folder, found.shards)
    return found


def _unsealed(folder: Path) -> FeatureFileError:
    n_shards = sum(1 for _ in shard_files(folder))
    if n_shards:
        return FeatureFileError(
            f"{folder} holds {n_shards:,} shards and no {MANIFEST}: it isn't known to be whole",
            hint=_SEAL,
        )
    return FeatureFileError(
        f"{folder} is a folder, not a regular file, and there are no shards in it",
        hint="cnnfeat extract --shard 1/4 -o FOLDER makes the first of four",
    )


def _check_present(folder: Path, shards: Sequence[ShardEntry]) -> None:
    sizes = {item.name: item.stat().st_size for item in folder.iterdir() if item.is_file()}
    names: set[str] = set()
    for shard in shards:
        size = sizes.get(shard.name)
        if size is None or shard.name in names:
            what = "is missing" if size is None else "is listed twice"
            raise FeatureFileError(
                f"{folder}: shard {shard.name} {what}",
                hint="make it again with cnnfeat extract --shard, then seal the folder with "
                "cnnfeat merge FOLDER --manifest",
            )
        if size != shard.size_bytes:
            raise FeatureFileError(
                f"{folder / shard.name} has {size:,} bytes, and {MANIFEST} says "
                f"{shard.size_bytes:,}: it was made again or is damaged",
                hint=_SEAL,
            )
        if sum(shard.rows.values()) * _ROW_BYTES > size:
            raise FeatureFileError(
                f"{folder / shard.name} has {size:,} bytes, too few for the "
                f"{sum(shard.rows.values()):,} rows that {MANIFEST} says",
                hint=_SEAL,
            )
        names.add(shard.name)
