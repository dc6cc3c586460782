from __future__ import annotations

import itertools
import logging
import os
import random
import shutil
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cnnfeat.data import open_data, open_source
from cnnfeat.data import source as source_module
from cnnfeat.data.folders import natural_key
from cnnfeat.errors import DataError, ImageError, UsageError
from cnnfeat.options import DataOptions
from cnnfeat.records import ImageTarget


def picture(value: int, shape: tuple[int, ...] = (4, 3)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def put(path: Path, value: int = 0, shape: tuple[int, ...] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(value, shape)).save(path, format="PNG")
    return path


def rows(source, split: str = "all", **options) -> list[tuple[str, int, int | None]]:
    """(id, first pixel, label) of every row."""
    options = {"batch_size": 3} | options
    return [
        (batch.ids[i], int(batch.images[i, 0, 0, 0]), None if labels is None else int(labels[i]))
        for batch in source.batches(split, **options)
        for labels in [batch.labels]
        for i in range(len(batch))
    ]


def test_a_flat_folder_is_in_natural_order_without_labels(tmp_path):
    for value in (10, 2, 1, 33):
        put(tmp_path / f"{value}.png", value)
    with open_source(str(tmp_path)) as source:
        assert (source.kind, source.name) == ("folder", str(tmp_path))
        assert source.classes == ()
        assert source.labels("all") is None
        assert source.splits["all"].image_shape == (4, 3, 1)
        assert rows(source) == [
            ("1.png", 1, None),
            ("2.png", 2, None),
            ("10.png", 10, None),
            ("33.png", 33, None),
        ]


# In the order they must have, by hand. The text before the first number goes first, by code points:
# none before any, capitals before small letters, both before whatever is not ASCII. Digits of other
# scripts, superscripts and fractions are text.
NATURAL = [
    *("", "0", "00", "01", "1", "1.5", "1.25", "1a", "01b", "2", "2-1", "002b", "9", "10"),
    *("1" + "0" * 90, "8" * 5_000, "9" * 5_000, "1" + "0" * 5_000),
    *("-1", "-10", "A", "A2", "B", "_", "a", "a001", "a01", "a1", "a01b", "a1b", "a1c", "a2"),
    *("a10", "a10.png", "a 2", "a-1", "aB", "ab", "a²", "a½", "a\u0301", "a٣", "b", "e"),
    *("e\u0301", "f", "z", "²", "Ä", "é", "٣", "猫2", "猫10", "\udce9", "\udcff2", "\udcff10"),
    "\U0001d7d8",
]


@pytest.mark.parametrize("seed", range(5))
def test_natural_order_of_hostile_names(seed):
    names = [*NATURAL]
    random.Random(seed).shuffle(names)
    assert sorted(names, key=natural_key) == NATURAL


def test_sub_folders_are_classes_in_natural_order(tmp_path):
    put(tmp_path / "10" / "b.png", 5)
    put(tmp_path / "2" / "12.png", 4)
    put(tmp_path / "2" / "9.png", 3)
    put(tmp_path / "2" / "deeper" / "1.png", 7)
    with open_source(str(tmp_path)) as source:
        assert source.classes == ("2", "10")
        assert source.labels("all").tolist() == [0, 0, 0, 1]
        assert rows(source) == [
            ("2/9.png", 3, 0),
            ("2/12.png", 4, 0),
            ("2/deeper/1.png", 7, 0),
            ("10/b.png", 5, 1),
        ]


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "testing")])
def test_train_and_test_are_splits(tmp_path, names):
    put(tmp_path / names[0] / "cat" / "1.png", 1)
    put(tmp_path / names[0] / "dog" / "2.png", 2)
    put(tmp_path / names[1] / "dog" / "3.png", 3)
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "test"]
        assert source.classes == ("cat", "dog")
        assert rows(source, "train")[1] == (f"{names[0]}/dog/2.png", 2, 1)
        assert rows(source, "test") == [(f"{names[1]}/dog/3.png", 3, 1)]


def test_splits_may_be_flat(tmp_path):
    put(tmp_path / "train" / "1.png", 1)
    put(tmp_path / "test" / "2.png", 2)
    with open_source(str(tmp_path)) as source:
        assert rows(source, "test") == [("test/2.png", 2, None)]


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path / "train" / "1.png", 1)
    put(tmp_path / "bus" / "2.png", 2)
    with open_source(str(tmp_path)) as source:
        assert source.classes == ("bus", "train")


@pytest.mark.parametrize(
    ("folders", "found", "said"),
    [
        ("train/cat train/dog test/cat sample", "train test: cat dog", "sample"),
        ("Train/cat Train/dog Test/cat Meta/a", "train test: cat dog", "Meta"),
        ("train/cat train/dog sample", "train: cat dog", "sample"),
        ("x/train/cat x/train/dog x/val/cat", "train validation: cat dog", ""),
        ("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_pred",
         "train test: a b", "seg_pred"),
        ("training_set/a training_set/b test_set/a", "train test: a b", ""),
        ("train/train test/test", "train test: ", ""),
        ("bullet_train/a bullet/b", "all: bullet bullet_train", ""),
        ("test-tube test", "all: test test-tube", ""),
        ("train/old bus/old car/new", "all: bus car train", ""),
    ],
)  # fmt: skip
def test_split_folders_are_no_classes(tmp_path, caplog, folders, found, said):
    for number, folder in enumerate(folders.split()):
        put(tmp_path / folder / "1.png", number)
    with open_source(str(tmp_path)) as source:
        assert f"{' '.join(source.splits)}: {' '.join(source.classes)}" == found
    warned = [one.getMessage() for one in caplog.records if "no splits" in one.getMessage()]
    assert [text.rpartition(": ")[2] for text in warned] == ([said] if said else [])


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("place", ["", "cat", "train/cat"])
def test_pictures_of_other_kinds_are_counted(tmp_path, caplog, place, labels):
    caplog.set_level("INFO", "cnnfeat")
    put(tmp_path / place / "1.png")
    for name in ("2.NEF", "3.nef", "4.jp2", "notes.txt", "README", ".hidden"):
        (tmp_path / place / name).write_bytes(b"II*\0" if name == ".hidden" else b"words")
    (tmp_path / "labels.csv").write_text("id,label\n1.png,a\n")
    options = {"labels": str(tmp_path / "labels.csv")} if labels else {}
    with open_source(str(tmp_path), **options) as source:
        assert sum(info.n_samples for info in source.splits.values()) == 1
    said = {one.levelname: one.getMessage() for one in reversed(caplog.records)}
    assert "can't be read here: 2 .nef, 1 .jp2; as PNG" in said["WARNING"]
    csv = [] if labels or place.startswith("train") else ["1 .csv"]
    assert said["INFO"].partition("used: ")[2].split(", ") == [
        "1 without an ending",
        *csv,
        "1 .txt",
    ]


def test_a_table_beside_pictures_without_labels_is_named(tmp_path, caplog):
    put(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text("id,label\n1.png,a\n")
    with open_source(str(tmp_path)) as source:
        assert source.labels("all") is None
    assert "not used, though they may hold some: labels.csv; --labels names one" in caplog.text


def test_a_class_that_holds_splits_is_told(tmp_path, caplog):
    for folder in ("images/train/cat", "images/val/cat", "masks"):
        put(tmp_path / folder / "1.png")
    with open_source(str(tmp_path)) as source:
        assert source.classes == ("images", "masks")
    assert "images: taken for a class, though it holds the splits train, validation" in caplog.text


def test_two_folders_for_one_split_are_refused(tmp_path):
    for folder in ("train/cat", "val/cat", "valid/cat"):
        put(tmp_path / folder / "1.png")
    with pytest.raises(DataError, match="several folders for one split: train, val, valid"):
        open_source(str(tmp_path))


def test_folders_that_lead_into_each_other_end(tmp_path):
    put(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "a" / "b" / "c").symlink_to(tmp_path)
    with open_source(str(tmp_path)) as source:
        assert source.classes == ("a",)


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_validation_is_a_split_of_its_own(tmp_path, name):
    for number, split in enumerate(("test", name, "train")):
        put(tmp_path / split / "cat" / "1.png", number)
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "validation", "test"]
        assert rows(source, "validation") == [(f"{name}/cat/1.png", 1, 0)]
    shutil.rmtree(tmp_path / "test")
    with open_source(str(tmp_path)) as source:
        assert list(source.splits) == ["train", "validation"]
    shutil.rmtree(tmp_path / "train")
    with open_source(str(tmp_path)) as source:
        assert (list(source.splits), source.classes) == (["all"], (name,))


def test_what_is_no_picture_and_does_not_claim_to_be_is_left_out(tmp_path):
    put(tmp_path / "cat" / "1.png", 1)
    put(tmp_path / "cat" / "no-ending", 2)
    put(tmp_path / ".hidden" / "3.png", 3)
    put(tmp_path / "cat" / ".4.png", 4)
    (tmp_path / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "README.md").write_text("cats")
    os.mkfifo(tmp_path / "cat" / "pipe")
    with open_source(str(tmp_path)) as source:
        assert rows(source) == [("cat/1.png", 1, 0), ("cat/no-ending", 2, 0)]


def test_a_single_picture_is_a_source_of_one(tmp_path):
    path = put(tmp_path / "seven.png", 7)
    with open_source(str(path)) as source:
        assert source.kind == "image"
        assert rows(source) == [("seven.png", 7, None)]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, None), (3, 17), (39, 40), (6, 6)])
def test_any_rows_can_be_read(tmp_path, batch_size, start, stop):
    for value in range(40):
        put(tmp_path / f"{value}.png", value)
    with open_source(str(tmp_path)) as source:
        batches = list(source.batches("all", batch_size=batch_size, start=start, stop=stop))
    values = [int(image[0, 0, 0]) for batch in batches for image in batch.images]
    assert values == list(range(40))[start:stop]
    end = 40 if stop is None else stop
    # Batches end where they would in a run over all: a shard's are a single run's.
    edges = [start, *(edge for edge in range(0, end, batch_size) if edge > start), end]
    positions = [(batch.start, batch.stop) for batch in batches]
    assert positions == (list(itertools.pairwise(edges)) if start < end else [])


def test_a_batch_ends_before_large_pictures_fill_the_memory(tmp_path):
    put(tmp_path / "0.png", 0, (4, 3))
    for number in range(1, 13):
        put(tmp_path / f"{number}.png", number, (1500, 2000))  # 3 MB; five are 16 MiB at most
    with open_source(str(tmp_path)) as source:
        batches = list(source.batches("all", batch_size=64))
        assert [len(batch) for batch in batches] == [1, 5, 5, 2]
        assert [batch.start for batch in batches] == [0, 1, 6, 11]
        alike = list(source.batches("all", batch_size=2))
        assert [len(batch) for batch in alike] == [1, 1, 2, 2, 2, 2, 2, 1]


def test_pictures_that_wait_for_their_turn_are_read_in_order(tmp_path, monkeypatch):
    put(tmp_path / "0.png", 0)
    for number in range(1, 40):
        put(tmp_path / f"{number}.png", number, (40, 30))
    (tmp_path / "7.png").write_bytes(b"damaged")
    expected = [(f"{number}.png", number, None) for number in range(40) if number != 7]
    started, module = [], sys.modules["cnnfeat.data.imagefiles"]
    decode = module.decode_stream
    monkeypatch.setattr(
        module, "decode_stream", lambda *a, **k: started.append(1) or decode(*a, **k)
    )
    monkeypatch.setattr(module, "_READ_AHEAD_BYTES", 4000)  # three of the larger
    with open_source(str(tmp_path)) as source:
        started.clear()
        reading = source.batches("all", batch_size=2, on_error="skip")
        next(reading)
        assert len(started) < 20  # not all that lie in the chunks that were begun
        reading.close()
        assert rows(source, on_error="skip") == expected


def test_a_batch_ends_where_the_shape_changes(tmp_path):
    shapes = [(4, 3), (4, 3), (5, 3), (4, 3), (4, 3, 3), (4, 3, 3)]
    for index, shape in enumerate(shapes):
        put(tmp_path / f"{index}.png", index, shape)
    with open_source(str(tmp_path)) as source:
        batches = list(source.batches("all", batch_size=4))
        assert [(batch.start, batch.stop) for batch in batches] == [(0, 2), (2, 3), (3, 4), (4, 6)]
        assert batches[1].images.shape == (1, 5, 3, 1)
        target = ImageTarget(size=(6, 6), channels=3)
        (batch, rest) = source.batches("all", batch_size=4, target=target)
        assert batch.images.shape == (4, 6, 6, 3)
        assert rest.images[:, 0, 0, 0].tolist() == [4, 5]


@pytest.mark.parametrize("order", [(100, 65_535), (65_535, 100), (65_535, 300)])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_depth_is_that_of_all_pictures_whatever_their_places(tmp_path, order, ending):
    for number, value in enumerate(order):
        dtype = np.uint8 if value < 256 else np.uint16
        picture = Image.fromarray(np.full((4, 3), value, dtype))
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            picture.save(tmp_path / split / f"{number}.{ending}")
    (tmp_path / "train" / "0.5.png").touch()  # says nothing of depth
    deep = 300 in order
    with open_source(str(tmp_path)) as source:
        for split in ("train", "test"):
            (batch,) = source.batches(split, batch_size=3, on_error="skip")
            assert batch.images.dtype == (np.uint16 if deep else np.uint8)
            assert batch.images[:, 0, 0, 0].tolist() == [
                value if deep or value < 256 else 255 for value in order
            ]


def by_pillow(picture: Image.Image, **how) -> np.ndarray:
    """A picture of 30×20 at 7×5, by Pillow alone."""
    if how.get("fit") == "crop":
        return np.asarray(ImageOps.fit(picture, (7, 5), Image.Resampling.BILINEAR))
    return np.asarray(picture.resize((7, 5), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("mode", "target", "before"),
    [
        ("RGB", {}, lambda picture: picture),
        ("RGB", {"fit": "crop"}, lambda picture: picture),
        ("RGB", {"channels": 1}, lambda picture: picture.convert("L")),
        ("RGB", {"invert": True}, ImageOps.invert),
        ("L", {}, lambda picture: picture),
        ("L", {"channels": 3}, lambda picture: picture.convert("RGB")),
        ("L", {"invert": True, "channels": 3}, lambda p: ImageOps.invert(p).convert("RGB")),
    ],
    ids=["colour", "cropped", "to grey", "inverted", "grey", "to colour", "grey inverted"],
)
def test_pictures_are_resized_after_all_that_has_to_come_before(
    tmp_path, rng, mode, target, before
):
    shape = (20, 30, 3) if mode == "RGB" else (20, 30)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "1.png")
    with open_source(str(tmp_path)) as source:
        wanted = ImageTarget(size=(5, 7), **target)
        (batch,) = source.batches("all", batch_size=1, target=wanted)
    expected = by_pillow(before(Image.open(tmp_path / "1.png")), **target)
    off = np.abs(batch.images[0].reshape(expected.shape).astype(int) - expected).max()
    # Pillow's luma has rounding of its own; all else is equal.
    assert off <= (1 if target == {"channels": 1} else 0)


def test_a_turned_picture_is_resized_as_it_is_seen(tmp_path, rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8))
    picture.save(tmp_path / "1.jpg", exif=exif)
    with open_source(str(tmp_path)) as source:
        (batch,) = source.batches("all", batch_size=1, target=ImageTarget(size=(5, 7)))
    seen = ImageOps.exif_transpose(Image.open(tmp_path / "1.jpg"))
    np.testing.assert_array_equal(batch.images[0], by_pillow(seen))


def test_a_picture_of_8_bits_among_deeper_ones_is_resized_in_16(tmp_path, rng):
    """Its numbers come between those that 8 bits have."""
    paths = [tmp_path / split / "1.png" for split in ("train", "test")]
    for path in paths:
        path.parent.mkdir()
        deep = rng.integers(0, 65_536, (20, 30), np.uint16)
        Image.fromarray(deep).save(path)
    with open_source(str(tmp_path)) as source:
        Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(paths[0])
        (batch,) = source.batches("train", batch_size=1, target=ImageTarget(size=(5, 7)))
    grey = Image.fromarray(np.asarray(Image.open(paths[0])).astype(np.float32) * 257)
    np.testing.assert_array_equal(batch.images[0, ..., 0], np.rint(by_pillow(grey)))
    assert (batch.images % 257).any()


def test_float_pictures_stand_alone(tmp_path):
    put(tmp_path / "1.png", 100)
    Image.fromarray(np.full((4, 3), 0.5, np.float32)).save(tmp_path / "3.tiff")
    with open_source(str(tmp_path)) as source, pytest.raises(ImageError, match=r"3\.tiff: float32"):
        rows(source)


def damage(folder: Path) -> dict[str, str]:
    """Put one of each kind of bad file into a folder; what is said of each."""
    (folder / "03.png").touch()
    (folder / "05.jpg").write_text("mislabelled")
    whole = put(folder / "07.png", 7, (64, 64)).read_bytes()
    (folder / "07.png").write_bytes(whole[:60])
    (folder / "09.png").symlink_to("09.png")
    os.mkfifo(folder / "11.png")
    (folder / "13.png").symlink_to("/dev/zero")
    put(folder / "15\udcff.png")
    put(folder / "17.png", 17, (300, 300))
    return {
        "03.png": "is empty",
        "05.jpg": "not a picture",
        "07.png": "damaged",
        "09.png": "Too many levels of symbolic links",
        "11.png": "is a pipe",
        "13.png": "is a device",
        "15\\xff.png": "the name is not UTF-8",
        "17.png": "300 × 300 is 90,000 pixels",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 4, 50])
def test_skipping_leaves_out_bad_files_and_shifts_no_row(tmp_path, batch_size, caplog):
    caplog.set_level(logging.DEBUG, "cnnfeat")
    said = damage(tmp_path)
    for value in range(2, 20, 2):
        put(tmp_path / f"{value:02d}.png", value)
    with open_source(str(tmp_path), max_pixels=20_000) as source:
        assert source.splits["all"].n_samples == 17
        batches = list(source.batches("all", batch_size=batch_size, on_error="skip"))
    position = 0
    for batch in batches:
        assert batch.start == position
        assert len(batch.ids) == len(batch.images)
        assert len(batch) + len(batch.skipped) == batch.stop - batch.start <= batch_size
        position = batch.stop
    assert position == 17
    kept = [
        (name, int(image[0, 0, 0]))
        for batch in batches
        for name, image in zip(batch.ids, batch.images, strict=True)
    ]
    assert kept == [(f"{value:02d}.png", value) for value in range(2, 20, 2)]
    skipped = [sample for batch in batches for sample in batch.skipped]
    assert [sample.id for sample in skipped] == list(said)
    for sample in skipped:
        assert said[sample.id] in sample.reason
        assert sample.row == [*sorted([*said, *(name for name, _ in kept)])].index(sample.id)
    left_out = [record.getMessage() for record in caplog.records]
    assert left_out == [f"left out {sample.id}: {sample.reason}" for sample in skipped]


def test_500_damaged_pictures_are_rows_or_skipped_and_memory_is_flat(tmp_path, damaged_pictures):
    for index, data in enumerate(damaged_pictures):
        (tmp_path / f"{index}.png").write_bytes(data)
    target = ImageTarget(size=(20, 17), channels=3)
    tracemalloc.start()
    with open_source(str(tmp_path), max_pixels=100_000) as source:
        seen: list[str] = []
        for batch in source.batches("all", batch_size=32, target=target, on_error="skip"):
            skipped = {sample.row: sample.id for sample in batch.skipped}
            kept = iter(batch.ids)
            seen += [skipped.get(row) or next(kept) for row in range(batch.start, batch.stop)]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [f"{index}.png" for index in range(500)]
    assert peak_bytes < 30_000_000


@pytest.mark.parametrize("index", range(8))
def test_raising_names_the_bad_file(tmp_path, index):
    put(tmp_path / "00.png")
    (tmp_path / "bad").mkdir()
    said = damage(tmp_path / "bad")
    name, message = list(said.items())[index]
    raw = name.encode("ascii").decode("unicode_escape").encode("latin-1")
    (tmp_path / "bad" / os.fsdecode(raw)).rename(tmp_path / os.fsdecode(raw))
    shutil.rmtree(tmp_path / "bad")
    with open_source(str(tmp_path), max_pixels=20_000) as source:
        with pytest.raises(ImageError, match=message) as caught:
            rows(source)
        assert name in str(caught.value)
        assert caught.value.exit_code == 3


def test_a_bad_picture_is_no_matter_to_rows_before_it(tmp_path):
    put(tmp_path / "1.png", 1)
    put(tmp_path / "2.png", 2)
    (tmp_path / "3.png").touch()
    with open_source(str(tmp_path)) as source:
        assert len(rows(source, stop=2)) == 2
        batches = source.batches("all", batch_size=2)
        assert next(batches).stop == 2
        with pytest.raises(ImageError):
            next(batches)


def test_where_nothing_can_be_read_the_first_reason_is_told(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"none of the 2 pictures can be read; the first: .*1\.png"):
        open_source(str(tmp_path))


def test_remarks_of_pillow_do_not_leak(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(picture(1, (40, 40, 3))).save(tmp_path / "1.tiff", exif=exif)
    data = bytearray((tmp_path / "1.tiff").read_bytes())
    (tmp_path / "1.tiff").write_bytes(data + b"rest")
    put(tmp_path / "2.png", 2, (40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it warns from here on
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_source(str(tmp_path), max_pixels=2_000) as source:
            rows(source, target=ImageTarget((4, 4), 1), batch_size=1)
    assert not caught


def test_empty_folders_are_refused_with_what_they_hold(tmp_path):
    with pytest.raises(DataError, match="holds no pictures; it has: nothing"):
        open_source(str(tmp_path))
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"holds no pictures; it has: cat/, notes\.txt") as caught:
        open_source(str(tmp_path))
    assert caught.value.exit_code == 3
    assert caught.value.hint == f"give the folder in it that holds them, such as {tmp_path / 'cat'}"


def test_an_empty_class_is_refused_with_counts(tmp_path):
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "cat" / "2.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"a class has no pictures \(cat: 2, dog: 0\)"):
        open_source(str(tmp_path))


def test_pictures_beside_classes_are_refused(tmp_path):
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"1 pictures lie beside 1 class folders, .*'stray.png'"):
        open_source(str(tmp_path))


def test_one_split_with_classes_and_one_without_are_refused(tmp_path):
    put(tmp_path / "train" / "cat" / "1.png")
    put(tmp_path / "test" / "1.png")
    with pytest.raises(DataError, match="some splits have class folders and some have not"):
        open_source(str(tmp_path))


def test_a_folder_that_leads_back_to_itself_is_walked_once(tmp_path, caplog):
    put(tmp_path / "cat" / "1.png", 1)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    with open_source(str(tmp_path)) as source:
        assert rows(source) == [("cat/1.png", 1, 0)]
    assert "leads back to a folder it lies in" in caplog.text


@pytest.mark.parametrize("name", ["1.png", "cat/1.png", "train/cat/1.png"])
def test_a_folder_that_leads_back_to_the_source_is_no_class(tmp_path, caplog, name):
    put(tmp_path / "data" / name, 1)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    with open_source(str(tmp_path / "data")) as source:
        assert [row[0] for row in rows(source, next(iter(source.splits)))] == [name]
    if not name.startswith("train"):
        assert "loop leads back to a folder it lies in" in caplog.text


def test_a_class_name_must_be_utf_8(tmp_path):
    put(tmp_path / "\udcfe" / "1.png")
    with pytest.raises(DataError, match="the name of a class must be UTF-8"):
        open_source(str(tmp_path))


def test_the_folder_itself_may_have_any_name(tmp_path):
    put(tmp_path / "caf\udce9" / "1.png", 1)
    (tmp_path / "caf\udce9" / "2.png").touch()
    with open_source(str(tmp_path / "caf\udce9")) as source:
        assert source.name == str(tmp_path / r"caf\xe9")
        (batch,) = source.batches("all", batch_size=5, on_error="skip")
        assert batch.skipped[0].reason == "is empty"


def test_a_name_that_is_not_utf_8_is_said_once(tmp_path):
    put(tmp_path / "1.png", 1)
    put(tmp_path / "2\udcff.png", 2)
    with open_source(str(tmp_path)) as source:
        (batch,) = source.batches("all", batch_size=5, on_error="skip")
    assert [(item.id, item.reason) for item in batch.skipped] == [
        (r"2\xff.png", "the name is not UTF-8")
    ]


def test_other_names_may_hold_anything_utf_8(tmp_path):
    put(tmp_path / "häßlich 猫\n.png", 3)
    with open_source(str(tmp_path)) as source:
        assert rows(source) == [("häßlich 猫\n.png", 3, None)]


@pytest.mark.parametrize("limit", [10**9, 0])
def test_a_changed_folder_is_told_and_the_file_named(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(source_module, "CONTENTS_MAX_BYTES", limit)
    for value in range(5):
        put(tmp_path / f"{value}.png", value)

    def look():
        with open_source(str(tmp_path)) as source:
            return source.fingerprint(), source.changed_since(state)

    with open_source(str(tmp_path)) as source:
        before, state = source.fingerprint(), source.state()
    assert len(state) == 16 * 5
    assert before.method == ("file contents" if limit else "names, sizes and times")
    assert look() == (before, None)
    put(tmp_path / "3.png", 30)
    os.utime(tmp_path / "3.png", (1, 1))
    assert look()[0] != before
    assert look()[1] == "3.png has changed"
    put(tmp_path / "3.png", 3)
    put(tmp_path / "7.png", 7)
    os.utime(tmp_path / "3.png", (1, 1))
    assert look()[1] == ("7.png is new" if limit else "3.png has changed")
    (tmp_path / "7.png").unlink()
    (tmp_path / "1.png").unlink()
    assert look()[1] == ("1 of 5 files are gone" if limit else "3.png has changed")


def test_files_that_cannot_be_read_have_a_state_too(tmp_path):
    damage(tmp_path)
    put(tmp_path / "00.png")
    with open_source(str(tmp_path)) as source:
        before, state = source.fingerprint(), source.state()
    (tmp_path / "09.png").unlink()
    put(tmp_path / "09.png", 9)
    with open_source(str(tmp_path)) as source:
        assert source.fingerprint() != before
        assert source.changed_since(state) == "09.png has changed"


def test_touching_a_small_source_changes_nothing(tmp_path):
    path = put(tmp_path / "1.png", 1)
    with open_source(str(tmp_path)) as source:
        before = source.fingerprint()
    os.utime(path, (1, 1))
    with open_source(str(tmp_path)) as source:
        assert source.fingerprint() == before


def test_leaving_early_leaves_no_thread_behind(tmp_path):
    for value in range(60):
        put(tmp_path / f"{value}.png", value)
    with open_source(str(tmp_path)) as source:
        batches = source.batches("all", batch_size=2)
        next(batches)
        batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("cnnfeat-decode")]


def test_arrays_of_labels_cannot_be_named_for_a_folder(tmp_path):
    put(tmp_path / "1.png")
    with pytest.raises(DataError, match=":/y: an array of labels doesn't say which picture"):
        open_source(str(tmp_path), labels=":/y")


def test_pictures_are_grouped_by_the_folder_below_their_class(tmp_path):
    for name in ("cat/7/1.png", "cat/7/2.png", "cat/9/1.png", "dog/7/1.png", "dog/3.png"):
        put(tmp_path / "train" / name)
    put(tmp_path / "test" / "dog" / "9" / "5.png")
    with open_data(DataOptions(str(tmp_path), group_by="folder")) as source:
        train, test = source.groups("train"), source.groups("test")
        assert [name for name, *_ in rows(source, "train")][-2:] == [
            "train/dog/3.png",
            "train/dog/7/1.png",
        ]
        assert train[0] == train[1] == train[4] and len(set(train)) == 3
        assert test.tolist() == [train[2]]  # one number is one group in all splits
    with open_source(str(tmp_path)) as source:
        assert source.groups("train") is None


def test_a_folder_has_no_columns_to_group_by(tmp_path):
    put(tmp_path / "cat" / "1.png")
    with pytest.raises(UsageError, match=r"--group-by patient: .* go by folder alone") as caught:
        open_data(DataOptions(str(tmp_path), group_by="patient"))
    assert "--group-by folder" in caught.value.hint and caught.value.exit_code == 2
    with pytest.raises(UsageError, match="doesn't say what belongs together"):
        open_data(DataOptions(str(tmp_path / "cat" / "1.png"), group_by="folder"))
