"""Labels of a folder's pictures out of a CSV beside it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import open_data, open_source
from cnnfeat.errors import DataError, UsageError
from cnnfeat.options import DataOptions

BREEDS = {"000bec": "boxer", "001513": "beagle", "00a338": "boxer", "10": "pug", "9": "beagle"}


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 2), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, as Kaggle hands out dogs: a flat folder, names in a CSV beside it."""
    for value, name in enumerate(BREEDS):
        picture(tmp_path / "train" / f"{name}.jpg", value)
    return tmp_path


def write(folder: Path, text: str, name: str = "labels.csv") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def csv_of(labels: dict[str, str], header: str = "id,breed", shape: str = "{}") -> str:
    return "\n".join([header, *(f"{shape.format(name)},{label}" for name, label in labels.items())])


def opened(folder: Path, text: str, **named: str) -> dict[str, str]:
    """The label of each picture, by its id."""
    with open_source(str(folder / "train"), labels=write(folder, text), **named) as source:
        (batch,) = source.batches("all", batch_size=100)
        names = [source.classes[label] for label in batch.labels]
        assert batch.labels.tolist() == source.labels("all").tolist()
        return dict(zip(batch.ids, names, strict=True))


WANTED = {f"{name}.jpg": breed for name, breed in BREEDS.items()}


@pytest.mark.parametrize(
    "shape", ["{}", "{}.jpg", "train/{}.jpg", "./train/{}", "/kaggle/input/dogs/train/{}.jpg",
              "train\\{}.jpg", "{}.png", " {} "],
)  # fmt: skip
def test_ids_match_with_and_without_endings_and_folders(folder, shape):
    assert opened(folder, csv_of(BREEDS, shape=shape)) == WANTED


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("image,breed", {}),
        ("Id,Breed", {}),
        ("filename,class", {}),
        ("id,dog", {}),  # the only other column
        ("dog,kind", {"id_column": "dog", "label_column": "kind"}),
        ("dog,kind", {}),  # the only column with names of pictures, and the other one
        ("IMAGE,BREED", {"id_column": "image", "label_column": "breed"}),
    ],
)
def test_columns_are_guessed_where_they_are_clear_or_named(folder, header, named):
    assert opened(folder, csv_of(BREEDS, header=header), **named) == WANTED


def test_other_columns_do_not_matter_and_classes_are_sorted(folder):
    rows = [f"{i},{name},{breed},{i % 2}" for i, (name, breed) in enumerate(BREEDS.items())]
    text = "\n".join(["id,image,breed,age", *rows])
    assert opened(folder, text) == WANTED
    with open_source(str(folder / "train"), labels=write(folder, text)) as source:
        assert source.classes == ("beagle", "boxer", "pug")
        assert source.labels("all").tolist() == [1, 1, 0, 2, 0]  # 00a338, 000bec, 9, 10, 001513
        assert source.labels_from == str(folder / "labels.csv")


def test_folders_below_are_no_classes_and_split_folders_are_splits(tmp_path):
    for name in ("train/a/1", "train/b/1", "test/c/2"):
        picture(tmp_path / f"{name}.png")
    text = "image,label\na/1,x\nb/1.png,y\n2,x\n"
    with open_source(str(tmp_path), labels=write(tmp_path, text)) as source:
        assert list(source.splits) == ["train", "test"]
        assert source.labels("train").tolist() == [0, 1]
        assert source.labels("test").tolist() == [0]
        assert source.classes == ("x", "y")


def test_one_hot_columns_are_one_class_each(folder, caplog):
    kinds = sorted(set(BREEDS.values()))
    rows = [
        ",".join([name, *(str(float(kind == breed)) for kind in kinds)])
        for name, breed in BREEDS.items()
    ]
    with caplog.at_level("INFO", "cnnfeat"):
        assert opened(folder, "\n".join(["image," + ",".join(kinds), *rows])) == WANTED
    assert "columns beagle, boxer, pug: one 1 a row: taken as 3 classes" in caplog.text


def test_surplus_rows_are_left_out_with_a_warning(folder, caplog):
    more = {f"gone{i}": "cat" for i in range(7)}
    assert opened(folder, csv_of(BREEDS | more)) == WANTED
    assert (
        "7 of 12 lines are for pictures that aren't there: 'gone0', 'gone1', 'gone2', 'gone3', "
        "'gone4', … (7 in all)"
    ) in caplog.text


def without(*names: str) -> dict[str, str]:
    return {name: breed for name, breed in BREEDS.items() if name not in names}


def empty(*lines: int) -> str:
    rows = csv_of(BREEDS).splitlines()
    return "\n".join(
        row.partition(",")[0] + "," if i in lines else row for i, row in enumerate(rows, 1)
    )


@pytest.mark.parametrize(
    ("text", "named", "message", "hint"),
    [
        (csv_of(without("10", "9")), {}, r"2 of 5 pictures .*: 9\.jpg, 10\.jpg", "add lines"),
        (csv_of({"x": "a", "y": "b"}), {"id_column": "id"}, "5 of 5 pictures have no label", "'x'"),
        (csv_of(BREEDS) + "\n10,pug", {}, r"1 pict.* once: 10\.jpg \(lines 5, 7\)", "one line"),
        (csv_of(BREEDS) + "\n10.jpg,cat", {}, r"10\.jpg \(lines 5, 7\)", ""),
        (csv_of(BREEDS), {"id_column": "image"}, "no column 'image'; line 1 names 'id'", ""),
        (csv_of(BREEDS), {"label_column": "bred"}, "no column 'bred'", "did you mean 'breed'"),
        (empty(3, 5), {}, "2 of 5 lines have an empty cell in 'breed': lines 3, 5", "fill them in"),
        (csv_of(BREEDS) + "\n,pug", {}, "1 of 6 lines have an empty cell in 'id': lines 7", ""),
        (csv_of(BREEDS) + "\n77", {}, "1 of 6 lines have an empty cell in 'breed': lines 7", ""),
        ("id,breed\n", {}, "no labels; line 1 must name the columns", ""),
        ("", {}, "no labels; line 1 must name the columns", ""),
        ("id,id\n1,2", {}, "two columns have one name: 'id', 'id'", ""),
        ("id,a,b\n9,x,y", {}, "tell which column holds the labels: 'a', 'b'", "--label-column"),
        ("id\n9", {}, "can't tell which column holds the labels; it has 'id' alone", ""),
        ("file,name,label\n9,10,x", {}, "can't tell which .* names: 'file', 'name'", "--id-column"),
        ("9.jpg,cat\n10.jpg,dog", {}, "line 1 must name the columns, and has '9.jpg'", "id,label"),
        (csv_of(dict.fromkeys(BREEDS, "0.5")), {}, "continuous targets, 1 different", "digitize"),
        (csv_of(BREEDS | {"9": "boxer|pug"}), {}, r"multi-label, 1 .*'boxer\|pug'", "one class"),
        ("id,a,b\n9,1,1\n10,0,1\n000bec,1,0\n001513,1,1\n00a338,1,0", {},
         r"columns a, b: multi-label, 2 of 5 rows have several ones \(lines 2, 5\)", "one class"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(folder, text, named, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        opened(folder, text, **named)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 3
    assert "labels.csv" in str(caught.value)


def test_of_many_the_first_five_are_told(folder):
    for number in range(20, 32):
        picture(folder / "train" / f"{number}.jpg")
    with pytest.raises(DataError, match=r"12 of 17 .*: 20\.jpg, .*24\.jpg, … \(12 in all\)"):
        opened(folder, csv_of(BREEDS))


def test_an_id_of_several_pictures_is_told(tmp_path):
    for name in ("a/1.png", "b/1.png", "b/2.png", "b/2.jpg"):
        picture(tmp_path / "train" / name)
    text = "id,label\n1,x\n2,y\n"
    with pytest.raises(
        DataError, match=r"2 ids .* '1' in line 2: a/1\.png, b/1\.png, '2' in line 3"
    ):
        opened(tmp_path, text)
    text = "id,label\na/1,x\nb/1,y\n2.png,x\nb/2.jpg,y\n"
    assert opened(tmp_path, text) == {
        "a/1.png": "x", "b/1.png": "y", "b/2.png": "x", "b/2.jpg": "y"
    }  # fmt: skip


def test_a_split_without_any_label_is_named(folder):
    picture(folder / "test" / "zzz.jpg")
    with pytest.raises(DataError, match="1 of 6 pictures have no label") as caught:
        open_source(str(folder), labels=write(folder, csv_of(BREEDS)))
    assert "in test none has one" in caught.value.hint


@pytest.mark.parametrize(("group_by", "expected"), [("Patient", [0, 1, 0]), ("folder", [0, 0, 1])])
def test_pictures_of_a_group_are_told_by_a_column_or_their_folder(tmp_path, group_by, expected):
    for name in ("train/a/1", "test/a/2", "test/b/3"):
        picture(tmp_path / f"{name}.png")
    labels = write(tmp_path, "image,patient,kind\n1,p,x\n2,q,y\n3,p,x\n")
    options = DataOptions(str(tmp_path), labels=labels, label_column="kind", group_by=group_by)
    with open_data(options) as source:
        found = [*source.groups("train"), *source.groups("test")]
        assert source.classes == ("x", "y")
    assert [[a == b for b in found] for a in found] == [
        [a == b for b in expected] for a in expected
    ]
    with pytest.raises(UsageError, match="it has: image, patient, kind") as caught:
        open_data(DataOptions(str(tmp_path), labels=labels, group_by="patint"))
    assert "did you mean 'patient'" in caught.value.hint


def test_a_changed_label_changes_the_fingerprint(folder):
    spec = str(folder / "train")
    with open_source(spec, labels=write(folder, csv_of(BREEDS))) as source:
        before, state = source.fingerprint(), source.state()
    with open_source(spec, labels=write(folder, csv_of(BREEDS | {"9": "pug"}))) as source:
        assert source.fingerprint() != before
        assert "labels.csv has changed" in source.changed_since(state)


def test_where_labels_can_not_be_named_is_said(folder, tmp_path):
    labels = write(folder, csv_of(BREEDS))
    np.save(tmp_path / "x.npy", np.zeros((5, 3, 3), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(5, np.int64))
    one = str(folder / "train" / "9.jpg")
    for spec, named in (
        ("digits", {"labels": labels}),
        (one, {"labels": labels}),
        (labels, {"labels": labels, "id_column": "id"}),
    ):
        with pytest.raises(UsageError, match=r"labels can be named for .*; .* has its own"):
            open_source(spec, **named)
    for spec, named in (
        ("digits", {}),
        (str(folder / "train"), {}),
        (str(tmp_path / "x.npy"), {"labels": str(tmp_path / "y.npy")}),
        (one, {}),
    ):
        with pytest.raises(
            UsageError, match="--id-column and --label-column name columns of a CSV"
        ):
            open_source(spec, label_column="breed", **named)
    with pytest.raises(DataError, match="an array of labels doesn't say which picture"):
        open_source(str(folder / "train"), labels=str(tmp_path / "y.npy"))
    with pytest.raises(DataError, match=r"no\.csv: can't be read: No such file"):
        open_source(str(folder / "train"), labels=str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match=r"labels\.csv: not an \.npy, \.npz, HDF5 or"):
        open_source(str(tmp_path / "x.npy"), labels=labels)


def test_text_must_be_utf_8(folder):
    (folder / "labels.csv").write_bytes(io.BytesIO(b"id,breed\n9,caf\xe9\n").getvalue())
    with pytest.raises(DataError, match="not UTF-8 text"):
        open_source(str(folder / "train"), labels=str(folder / "labels.csv"))
