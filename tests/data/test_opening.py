from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import open_data, open_source
from cnnfeat.data.fitting import fit_to_target
from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import DataOptions
from cnnfeat.records import ImageTarget


def test_an_unknown_name_is_told_with_those_allowed_and_near_ones():
    with pytest.raises(UsageError) as caught:
        open_source("minst")
    assert "no data source 'minst'" in str(caught.value)
    for allowed in ("auto, mnist, fashion-mnist, digits", "IDX", ".npz", "images.h5:/x", "CSV"):
        assert allowed in str(caught.value)
    assert caught.value.hint == "did you mean 'mnist'?"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"hello", b"\0\1\2\3", b"%PDF-1.7", b"one line\nmore\n"])
def test_a_file_of_no_known_kind_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.csv: no kind of data known here; allowed are"):
        open_source(str(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        (
            "a.tfrecord",
            gzip.compress(b"x", mtime=0),
            "packed with gzip",
            "gzip -dc < FILE > NEW_FILE",
        ),
        ("a.csv.gz", gzip.compress(b"label,pixel0\n", mtime=0), "packed with gzip", "gzip -dc"),
        ("a.tar.gz", gzip.compress(b"x", mtime=0), "packed with gzip", "tar -xf FILE"),
        ("a.tgz", gzip.compress(b"x", mtime=0), "packed with gzip", "tar -xf FILE"),
        ("a.csv", bz2.compress(b"x"), "packed with bzip2", "bzip2 -dc < FILE"),
        ("a.csv", lzma.compress(b"x"), "packed with xz", "xz -dc < FILE"),
        ("a.tfrecord", zlib.compress(b"x"), "packed with zlib", "zlib.decompress"),
        ("a.tar", bytes(257) + b"ustar\0", "packed with tar", "tar -xf FILE"),
        ("a.csv", b"", "an empty file", ""),
        ("a.csv", b"7,0,0,12,255,0\n", "no kind of data", "a first line that names its columns"),
        ("a.csv", "label,pixel0\n".encode("utf-16"), "no kind of data", "saved as UTF-8"),
        ("a.tfrecord-00000-of-00001", b"x" * 20, "no kind of data", "its beginning is damaged"),
    ],
)
def test_a_file_that_is_no_data_is_told_as_far_as_it_is_known(
    tmp_path, name, content, message, hint
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(tmp_path / name))
    assert hint in caught.value.hint
    assert caught.value.exit_code == 3


def test_an_archive_of_pictures_is_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat/1.png", b"x")
    with pytest.raises(DataError, match="a ZIP archive without arrays") as caught:
        open_source(str(tmp_path / "photos.zip"))
    assert caught.value.hint == "unpack it first: unzip FILE"


def test_packed_files_in_a_folder_are_named(tmp_path):
    (tmp_path / "train.tfrecord.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="holds no pictures; it has: train") as caught:
        open_source(str(tmp_path))
    assert "train.tfrecord.gz is packed with gzip; unpack it first: gzip -dc" in caught.value.hint


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe"):
        open_source(str(tmp_path / "pipe"))


@pytest.mark.parametrize("max_pixels", [0, -1, 10**12])
def test_max_pixels_has_a_range(max_pixels):
    with pytest.raises(
        UsageError, match=f"max pixels must be 1 to 2,147,483,647, not {max_pixels}"
    ):
        open_source("digits", max_pixels=max_pixels)


def test_named_sources_have_their_own_labels():
    with pytest.raises(UsageError, match="digits has its own"):
        open_source("digits", labels=":/y")


@pytest.mark.parametrize("spec", ["a\0b", "nowhere/at/all", "x" * 300, "a:b", ":/x"])
def test_odd_names_are_refused_in_words(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, DataError)):
        open_source(spec)


def test_no_name_at_all_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no data source ''"):
        open_source("")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()

    def refuse(*args: object):  # to root nothing is forbidden
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"folder: can't be read: Permission denied"):
        open_source(str(tmp_path / "folder"))


def test_images_are_brought_to_one_size_as_they_are_read(tmp_path, rng):
    pictures = {"a.png": (20, 30, 3), "b.png": (9, 9), "c.png": (16, 16, 4)}
    for name, shape in pictures.items():
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / name)
    spec = str(tmp_path)
    with open_data(DataOptions(source=spec)) as source:
        info = source.splits["all"]
        assert (info.image_shape, info.uniform) == ((20, 30, 3), False)
        plain = [batch.images for batch in source.batches("all", batch_size=5)]
        assert [images.shape[1:] for images in plain] == [(20, 30, 3), (9, 9, 1), (16, 16, 3)]
        assert source.channels("all") == 3
        digest = source.fingerprint()
    with open_data(DataOptions(source=spec, resize=(8, 12), fit="pad", invert=True)) as source:
        info = source.splits["all"]
        assert (info.image_shape, info.uniform) == ((8, 12, 3), False)
        assert source.fingerprint() == digest  # of the files, whatever becomes of them
        assert (source.options["resize"], source.options["fit"]) == ([8, 12], "pad")
        assert source.options["invert"] is True
        shapes = [batch.images.shape for batch in source.batches("all", batch_size=5)]
        assert shapes == [(1, 8, 12, 3), (1, 8, 12, 1), (1, 8, 12, 3)]
        whole = ImageTarget((8, 12), 3, "pad", invert=True)
        (batch,) = source.batches("all", batch_size=5, target=ImageTarget(channels=3))
        for image, before in zip(batch.images, plain, strict=True):
            np.testing.assert_array_equal(image, fit_to_target(before, whole)[0])
        (batch,) = source.batches("all", batch_size=5, target=ImageTarget((4, 4), 1, "crop"))
        assert batch.images.shape == (3, 4, 4, 1)  # from the pictures, not from 8×12


def test_arrays_and_named_sources_are_brought_to_a_size_too():
    with open_data(DataOptions(source="digits", resize=(16, 12))) as source:
        assert source.splits["test"].image_shape == (16, 12, 1)
        assert source.splits["test"].uniform
        assert next(source.batches("train", batch_size=7)).images.shape == (7, 16, 12, 1)
    with open_data(DataOptions(source="digits", invert=True)) as source, open_source("digits") as o:
        turned, plain = (next(s.batches("train", batch_size=7)).images for s in (source, o))
        np.testing.assert_array_equal(turned, 255 - plain)


def test_a_fit_without_a_size_is_refused():
    with pytest.raises(UsageError, match=r"fit 'crop' says how .* no size is given") as caught:
        open_data(DataOptions(source="digits", fit="crop"))
    assert "--resize 64x64" in caught.value.hint


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L", "1", "LA", "I;16"], 1),
        (["L", "RGB"], 3),
        (["L", "P"], 3),
        (["LA", "RGBA"], 3),
        (["L", "CMYK"], 3),
    ],
)
def test_one_picture_in_colour_makes_the_channels_three(tmp_path, modes, channels):
    for number, mode in enumerate(modes):
        ending = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (5, 4)).save(tmp_path / f"{number}.{ending}")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    with open_source(str(tmp_path)) as source:
        assert source.channels("all") == channels


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5)])
def test_opacity_is_no_channel_of_its_own(tmp_path, channels, wanted):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, channels), np.uint8))
    with open_source(str(tmp_path / "x.npy")) as source:
        assert source.channels("all") == wanted


def test_options_say_how_pictures_are_brought_to_a_size(tmp_path):
    for name, shape in (("a/1.png", (20, 30, 3)), ("b/2.png", (8, 8, 3))):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.full(shape, 200, np.uint8)).save(tmp_path / name)
    options = DataOptions(source=str(tmp_path), resize=(16, 16), fit="pad")
    with open_source(options) as source:
        (batch,) = source.batches("all", batch_size=2)
    assert batch.images.shape == (2, 16, 16, 3)
    assert batch.images[0, 0].max() == 0  # 30 wide and 20 high: black above and below
    assert batch.images[0, 8].min() == batch.images[1].min() == 200


def test_what_is_given_beside_options_goes_before_them(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "1.png")
    options = DataOptions(source=str(tmp_path), max_pixels=10**6)
    with pytest.raises(DataError, match="600 pixels; 599 are allowed"):
        open_source(options, max_pixels=599)
