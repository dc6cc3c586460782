"""A folder of pictures, or a single one, as a source."""

from __future__ import annotations

from pathlib import Path

from cnnfeat.data.fingerprint import file_states
from cnnfeat.data.imagefiles import ImageFileSource
from cnnfeat.data.listing import ImageFile, Listing, list_folder
from cnnfeat.data.regular import printable


def open_image_folder(folder: Path, *, max_pixels: int) -> ImageFileSource:
    """Open a folder of pictures; see `listing.list_folder` for its layout."""
    listing = list_folder(folder)
    return _open(folder, "folder", listing=listing, max_pixels=max_pixels)


def open_image(path: Path, *, max_pixels: int) -> ImageFileSource:
    """Open a single picture as a source of one."""
    listing = Listing({"all": (ImageFile(path.name, path, None),)}, ())
    return _open(path, "image", listing=listing, max_pixels=max_pixels)


def _open(path: Path, kind: str, *, listing: Listing, max_pixels: int) -> ImageFileSource:
    files = {file.id: file.path for split in listing.splits.values() for file in split}
    return ImageFileSource(
        printable(str(path)),
        kind,
        listing=listing,
        states=lambda: file_states(files),
        max_pixels=max_pixels,
    )
