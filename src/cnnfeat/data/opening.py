"""Choosing the kind of source, by content and never by ending."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from cnnfeat.address import COPIED_BY, is_stored, local_name, place_of, store_address
from cnnfeat.data.arrayfile import is_array_file, open_array_source, split_member
from cnnfeat.data.braces import expand
from cnnfeat.data.csvfile import LabelColumns
from cnnfeat.data.decode import MAX_PIXELS, MAX_PIXELS_LIMIT, format_of, is_image
from cnnfeat.data.folders import FOLDER, list_folder, natural_key
from cnnfeat.data.forms import open_files, open_form, open_stored_tapes
from cnnfeat.data.idx import find_idx_files, open_idx_folder
from cnnfeat.data.imagefiles import ImageFileSource, open_image
from cnnfeat.data.labelfile import open_labelled_folder
from cnnfeat.data.manifest import is_manifest, is_manifest_start, open_manifest
from cnnfeat.data.named import open_auto, open_named
from cnnfeat.data.registry import DATASETS
from cnnfeat.data.remote import AnyPath, RemotePath, Tree, remote_paths
from cnnfeat.data.source import OpenedSource, file_states, open_file, packed_by, unreadable
from cnnfeat.data.tape import is_tape_start
from cnnfeat.divided import leave_out_rare
from cnnfeat.documents import printable
from cnnfeat.errors import DataError, UsageError, near_names
from cnnfeat.knobs import checked, result_options
from cnnfeat.options import DataOptions, check_fit
from cnnfeat.progress import SILENT, Progress
from cnnfeat.records import ImageTarget, Json, Source

AUTO = "auto"
_ALLOWED = (
    "allowed are a name ({names}), a folder of IDX files, a folder of images, an .npz or .npy "
    "file, an HDF5 data set (images.h5:/x), a CSV or TSV manifest, CIFAR's Python batches, .mat, "
    "parquet, TFRecord and tar files, a CSV of pixels"
)
_LINE_BYTES = 2**16
_NUMBERS = re.compile(rb"\s*\d+(?:[,;\t ]+\d+){3,}[,\d\s]*")


def open_source(
    spec: str | DataOptions,
    *,
    data_dir: Path | None = None,
    labels: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    max_pixels: int | None = None,
    progress: Progress = SILENT,
) -> Source:
    """Open a source of images.

    Parameters
    ----------
    spec : str or DataOptions
        A name ("mnist"; "auto" for MNIST or else the bundled digits), or a path. Or options, which
        also say to which size pictures are brought; what is given beside them goes before them.
    data_dir : Path, optional
        Where named data sets are looked for first.
    labels : str, optional
        Where labels lie, for an HDF5 source (":/y" in the same file), an array file (a path) or a
        folder of pictures (a CSV of names and labels).
    id_column, label_column : str, optional
        Columns of that CSV, or of a source that is one; guessed by their names.
    max_pixels : int, optional
        Larger images are refused before they are decoded; by default beyond 178,956,970 pixels.
    progress : Progress
        Told of downloads.

    Raises
    ------
    UsageError
        If nothing is meant by `spec`; with near names.
    DataError
        If what it means can't be used.
    DownloadError
        If a named data set is neither on disk nor reachable.
    """
    options = checked(spec) if isinstance(spec, DataOptions) else DataOptions(source=spec)
    given: dict[str, str | int | None] = {
        "dir": None if data_dir is None else str(data_dir),
        "labels": labels,
        "id_column": id_column,
        "label_column": label_column,
        "max_pixels": max_pixels,
    }
    said = {name: value for name, value in given.items() if value is not None}
    options = dataclasses.replace(options, **said)  # type: ignore[arg-type] # by its names
    return open_data(options, progress=progress)


def open_data(options: DataOptions, *, progress: Progress = SILENT) -> Source:
    """Open a source of images as options say, which it keeps; see `open_source`.

    Parameters
    ----------
    options : DataOptions
        Without a source: "auto". Images are brought to its size, whatever size they have.
    progress : Progress
        Told of downloads.
    """
    max_pixels = MAX_PIXELS if options.max_pixels is None else options.max_pixels
    if not 1 <= max_pixels <= MAX_PIXELS_LIMIT:
        raise UsageError(f"max pixels must be 1 to {MAX_PIXELS_LIMIT:,}, not {max_pixels}")
    check_fit(options.fit, options.resize)
    opened = _open(options, max_pixels=max_pixels, progress=progress)
    with contextlib.ExitStack() as on_error:
        on_error.push(opened.__exit__)
        if options.resize or options.invert:
            opened.prepare(ImageTarget(options.resize, fit=options.fit, invert=options.invert))
        _check_groups(opened, options.group_by)
        source = leave_out_rare(opened, options.min_per_class)
        on_error.pop_all()
    came_to: dict[str, Json] = {"labels": source.labels_from, "max_pixels": max_pixels}
    source.options = {**result_options(options), **came_to}
    return source


def _check_groups(source: Source, group_by: str | None) -> None:
    if group_by is None or any(source.groups(split) is not None for split in source.splits):
        return
    raise UsageError(
        f"--group-by {group_by}: {source.name} ({source.kind}) doesn't say what belongs together",
        hint="leave it out, or list the pictures in a CSV file with such a column",
    )


def _open(options: DataOptions, *, max_pixels: int, progress: Progress) -> OpenedSource:
    spec = AUTO if options.source is None else options.source
    if spec == AUTO or spec in DATASETS:
        _refuse_labels(options, spec)
        data_dir = None if options.dir is None else Path(options.dir)
        if spec == AUTO:
            return open_auto(data_dir=data_dir, progress=progress)
        return open_named(spec, data_dir=data_dir, progress=progress)
    if is_stored(spec):
        return _open_address(spec, options, max_pixels=max_pixels)
    spec = local_name(spec, "it")
    path, member = split_member(spec)
    mode = _mode(path) if spec else None
    if mode is None and (names := expand(spec)) != [spec]:
        return _open_many(Path(spec).absolute(), names, options, max_pixels=max_pixels)
    if mode is None:
        raise UsageError(
            f"no data source {spec!r}; {_ALLOWED.format(names=', '.join((AUTO, *DATASETS)))}",
            hint=near_names(spec, (AUTO, *DATASETS)),
        )
    if stat.S_ISDIR(mode):
        return _open_folder(path.absolute(), options, max_pixels=max_pixels)
    return _open_file(path.absolute(), options, member=member, max_pixels=max_pixels)


def _mode(path: Path) -> int | None:
    """What a path leads to, as `stat` has it; None: nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def _open_address(spec: str, options: DataOptions, *, max_pixels: int) -> OpenedSource:
    """Open what lies in a store: a folder of pictures, a list of them, one, or tar files."""
    address, *others = (store_address(name) for name in expand(spec))
    if others:
        paths = list(remote_paths([address, *others]).values())
        return _open_stored_tapes(spec, paths, options, max_pixels=max_pixels)
    place = RemotePath(Tree.at(address), "")
    if place.entry is None:
        below = [place / name for name, _ in place.names()]
        if below and all(path.suffix.lower() == ".tar" for path in below):
            below.sort(key=lambda path: natural_key(path.name))
            return _open_stored_tapes(str(address), below, options, max_pixels=max_pixels)
        return _open_files(place, options, max_pixels=max_pixels)
    start = place.start()
    if not start:
        raise DataError(f"{address}: an empty file")
    if is_tape_start(start):
        return _open_stored_tapes(str(address), [place], options, max_pixels=max_pixels)
    if format_of(start):
        _refuse_labels(options, str(address))
        return open_image(place, max_pixels=max_pixels)
    if is_manifest_start(start):
        return _open_list(place, options, max_pixels=max_pixels)
    raise DataError(
        f"{address}: pictures, lists of pictures and tar files are read from a store alone",
        hint=f"download it first: {COPIED_BY[address.protocol]} {address} .",
    )


def _open_stored_tapes(
    name: str, paths: Sequence[RemotePath], options: DataOptions, *, max_pixels: int
) -> OpenedSource:
    _refuse_columns(options, name)
    return open_stored_tapes(name, paths, labels=options.labels, max_pixels=max_pixels)


def _open_folder(folder: Path, options: DataOptions, *, max_pixels: int) -> OpenedSource:
    if source := open_form(folder, labels=options.labels, max_pixels=max_pixels):
        _refuse_columns(options, str(folder))
        return source
    if files := find_idx_files(folder):
        _refuse_labels(options, str(folder))
        return open_idx_folder(folder, files)
    return _open_files(folder, options, max_pixels=max_pixels)


def _open_files(folder: AnyPath, options: DataOptions, *, max_pixels: int) -> ImageFileSource:
    """Open a folder of pictures, whose labels its folders are, or stand in a CSV."""
    if options.labels is None:
        _refuse_columns(options, str(folder))
        return _open_pictures(folder, max_pixels=max_pixels, group_by=options.group_by)
    if options.labels.startswith(":") or _names_arrays(options.labels):
        raise DataError(
            f"{options.labels}: an array of labels doesn't say which picture each is for",
            hint="a CSV with a column of the pictures' names and one of labels does",
        )
    return open_labelled_folder(
        folder,
        _place(options.labels),
        _columns(options),
        max_pixels=max_pixels,
        group_by=options.group_by,
    )


def _names_arrays(labels: str) -> bool:
    return not is_stored(labels) and is_array_file(split_member(labels)[0])


def _place(text: str) -> AnyPath:
    place = place_of(text)
    return place.absolute() if isinstance(place, Path) else remote_paths([place])[place]


def _open_pictures(folder: AnyPath, *, max_pixels: int, group_by: str | None) -> ImageFileSource:
    """Open a folder of pictures; see `list_folder` for its layout."""
    if group_by not in (None, FOLDER):
        raise UsageError(
            f"--group-by {group_by}: {folder} is a folder, and its pictures go by {FOLDER} alone",
            hint=f"--group-by {FOLDER}, or list the pictures in a CSV file with such a column",
        )
    listing = list_folder(folder, grouped=group_by is not None)
    files = {file.id: file.path for split in listing.splits.values() for file in split}
    return ImageFileSource(
        printable(str(folder)),
        "folder",
        images=listing.splits,
        classes=listing.classes,
        states=lambda: file_states(files),
        max_pixels=max_pixels,
    )


def _open_file(
    path: Path, options: DataOptions, *, member: str | None, max_pixels: int
) -> OpenedSource:
    if is_array_file(path):
        _refuse_columns(options, str(path))
        return open_array_source(path, member=member, labels=options.labels)
    if source := open_form(path, labels=options.labels, max_pixels=max_pixels):
        _refuse_columns(options, str(path))
        return source
    if is_image(path):
        _refuse_labels(options, str(path))
        return open_image(path, max_pixels=max_pixels)
    if is_manifest(path) or _columns(options) != LabelColumns():
        return _open_list(path, options, max_pixels=max_pixels)
    raise _unknown(path)


def _open_many(
    pattern: Path, names: Sequence[str], options: DataOptions, *, max_pixels: int
) -> OpenedSource:
    """Open the files that a pattern's braces stand for."""
    _refuse_columns(options, str(pattern))
    paths = [Path(name).absolute() for name in names]
    if source := open_files(pattern, paths, labels=options.labels, max_pixels=max_pixels):
        return source
    raise DataError(
        f"{pattern}: several files are one source where they are tar, parquet, TFRecord or .mat "
        f"files or CSV files of pixels; {paths[0].name} is none of them"
    )


def _open_list(path: AnyPath, options: DataOptions, *, max_pixels: int) -> ImageFileSource:
    _refuse_labels(options, str(path), columns=False)
    return open_manifest(path, _columns(options), max_pixels=max_pixels, group_by=options.group_by)


def _unknown(path: Path) -> DataError:
    """Say what a file is that isn't data, as far as that can be told."""
    if packed := packed_by(path):
        return DataError(
            f"{path}: packed with {packed[0]}, and nothing is unpacked here",
            hint=f"unpack it first: {packed[1]}",
        )
    with open_file(path) as file:
        start = file.readline(_LINE_BYTES)
    if not start:
        return DataError(f"{path}: an empty file")
    hint = ""
    if _NUMBERS.fullmatch(start):
        hint = "a CSV needs a first line that names its columns, such as label,pixel0,pixel1,..."
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = "text in UTF-16 is to be saved as UTF-8"
    elif ".tfrecord" in path.name.lower():
        hint = "if it was a TFRecord file, its beginning is damaged: no length with its checksum"
    return DataError(
        f"{path}: no kind of data known here; {_ALLOWED.format(names=', '.join(DATASETS))}",
        hint=hint,
    )


def _columns(options: DataOptions) -> LabelColumns:
    return LabelColumns(options.id_column, options.label_column)


def _refuse_labels(options: DataOptions, spec: str, *, columns: bool = True) -> None:
    if options.labels is not None:
        raise UsageError(
            "labels can be named for files of arrays and for folders of pictures only; "
            f"{spec} has its own"
        )
    if columns:
        _refuse_columns(options, spec)


def _refuse_columns(options: DataOptions, spec: str) -> None:
    if _columns(options) != LabelColumns():
        raise UsageError(
            "--id-column and --label-column name columns of a CSV: of --labels FILE for a folder "
            f"of pictures, or of a list of pictures; {spec} has none"
        )
