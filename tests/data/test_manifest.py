from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import open_data, open_source
from cnnfeat.errors import DataError, ImageError, UsageError
from cnnfeat.options import DataOptions


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for value in range(6):
        Image.fromarray(np.full((3, 2), value, np.uint8)).save(tmp_path / "images" / f"{value}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "list.csv") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def pixels(source, split: str) -> list[int]:
    return [
        int(image[0, 0, 0])
        for batch in source.batches(split, batch_size=2)
        for image in batch.images
    ]


def test_rows_are_in_the_order_of_the_lines(folder):
    spec = write(folder, "path,label\nimages/4.png,cat\nimages/0.png,ant\nimages/2.png,cat\n")
    with open_source(spec) as source:
        assert (source.kind, source.name) == ("manifest", spec)
        assert source.classes == ("ant", "cat")
        assert source.labels("all").tolist() == [1, 0, 1]
        assert pixels(source, "all") == [4, 0, 2]
        assert next(source.batches("all", batch_size=3)).ids == (
            "images/4.png",
            "images/0.png",
            "images/2.png",
        )


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_separators_headers_and_byte_order_marks(folder, separator, header, start):
    lines = [["path", "label", "split"]] if header else []
    lines += [["images/1.png", "2", "train"], ["images/5.png", "10", "test"]]
    text = start + "\r\n".join(separator.join(line) for line in lines)
    with open_source(write(folder, text, "list.dat")) as source:
        assert list(source.splits) == ["train", "test"]
        assert source.classes == ("2", "10")
        assert pixels(source, "train") == [1]
        assert source.labels("test").tolist() == [1]


def test_columns_go_by_their_names(folder):
    spec = write(folder, "id,Class,Filename,weight\n7,x,images/3.png,1\n8,y,images/1.png,2\n")
    with open_source(spec) as source:
        assert pixels(source, "all") == [3, 1]
        assert source.classes == ("x", "y")


def test_quotes_and_a_missing_column_of_labels(folder):
    (folder / "a, b.png").write_bytes((folder / "images" / "3.png").read_bytes())
    with open_source(write(folder, 'path\n"a, b.png"\nimages/1.png\n')) as source:
        assert source.classes == ()
        assert source.labels("all") is None
        assert pixels(source, "all") == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "lists no pictures"),
        ("path,label\na.png,x\nb.png,\n", "1 of 2 lines have no label: lines 3"),
        ("path,label\na.png,\n", "the column of labels is empty"),
        ("path,label\na.png,x\nb.png\n", "line 3: 1 columns, 2 are needed"),
        ("path,label\n,x\n", "line 2: no path"),
        ("path,label,split\na.png,x,odd\n", "line 2: split 'odd'; train, training, val, valid"),
        ("path,label\na.png," + "x" * 200_000 + "\n", "line 2: field larger than field limit"),
        ("path,label\nimages/99.png,x\n", r"99\.png: can.t be read"),
        ("path,label\nimages/1.png,0.5\nimages/2.png,1\n", "continuous targets, 2 different"),
        ("path,label\nimages/1.png,a|b\nimages/2.png,a\n", "multi-label, 1 of 2 different labels"),
        ("path,x,y\nimages/1.png,1,1\nimages/2.png,0,1\n", r"x, y: multi-label, .* \(lines 2\)"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder, text, message):
    with pytest.raises(DataError, match=message) as caught:
        open_source(write(folder, text))
    assert caught.value.exit_code == 3


def test_a_missing_picture_is_named(folder):
    spec = write(folder, "path,label\nimages/1.png,x\nimages/99.png,y\n")
    with (
        open_source(spec) as source,
        pytest.raises(ImageError, match=r"99\.png: can't be read: No such file"),
    ):
        pixels(source, "all")


def test_text_must_be_utf_8(folder):
    (folder / "list.csv").write_bytes(b"path,label\nimages/1.png,caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        open_source(str(folder / "list.csv"))


def test_a_changed_manifest_changes_the_fingerprint(folder):
    spec = write(folder, "path,label\nimages/1.png,x\nimages/2.png,y\n")
    with open_source(spec) as source:
        before, state = source.fingerprint(), source.state()
    write(folder, "path,label\nimages/1.png,y\nimages/2.png,y\n")
    with open_source(spec) as source:
        assert source.fingerprint() != before
        assert source.changed_since(state) == "list.csv has changed"


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_validation_is_a_split_of_its_own(folder, name):
    lines = [f"images/1.png,x,{name}", "images/2.png,x,test", "images/3.png,y,train"]
    with open_source(write(folder, "path,label,split\n" + "\n".join(lines))) as source:
        assert list(source.splits) == ["train", "validation", "test"]
        assert pixels(source, "validation") == [1]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [("Patient", [0, 1, 0, 2]), ("folder", [0, 1, 1, 1]), ("path", [0, 2, 1, 3])],
)
def test_any_column_says_what_belongs_together(folder, group_by, expected):
    (folder / "9.png").write_bytes((folder / "images" / "3.png").read_bytes())
    lines = ["9.png,x,b,train", "images/4.png,y,é,test", "images/1.png,y,b,train"]
    lines.append("images/5.png,x,f,test")
    spec = write(folder, "path,label,patient,split\n" + "\n".join(lines))
    with open_data(DataOptions(spec, group_by=group_by)) as source:
        train, test = source.groups("train").tolist(), source.groups("test").tolist()
    found = [train[0], test[0], train[1], test[1]]
    same = [[a == b for b in found] for a in found]
    assert same == [[a == b for b in expected] for a in expected]


@pytest.mark.parametrize(
    ("text", "error", "message", "hint"),
    [
        ("path,label,patient\n1.png,x,p\n", UsageError, "it has: path, label, patient",
         "did you mean 'patient'"),
        ("images/1.png,x\n", UsageError, "its first line names no columns", "--group-by folder"),
        ("path,patint\n1.png,a\n2.png, \n", DataError, "line 3: nothing in the column 'patint'",
         ""),
    ],
)  # fmt: skip
def test_groups_that_are_not_there_are_refused(folder, text, error, message, hint):
    with pytest.raises(error, match=message) as caught:
        open_data(DataOptions(write(folder, text), group_by="patint"))
    assert hint in caught.value.hint
    assert caught.value.exit_code in (2, 3)


@pytest.mark.parametrize("header", ["image_id,label", "img,breed", "Image_Name,Species", "id,dx"])
def test_usual_words_name_columns(folder, header):
    spec = write(folder, f"{header}\nimages/4.png,cat\nimages/0.png,dog\n")
    with open_source(spec) as source:
        assert (source.classes, pixels(source, "all")) == (("cat", "dog"), [4, 0])


def test_a_first_line_of_unknown_words_is_no_picture(folder):
    text = "shot,sort\nimages/4.png,cat\nimages/0.png,dog\n"
    with pytest.raises(DataError, match=r"line 1 names no picture, .*: 'shot', 'sort'") as caught:
        open_source(write(folder, text))
    assert caught.value.hint == "--id-column shot --label-column sort if it names columns"
    with pytest.raises(DataError, match="no column of pictures' paths; line 1 has 'shot', 'label'"):
        open_source(write(folder, text.replace("sort", "label")))
    (folder / "bare").write_bytes((folder / "images" / "1.png").read_bytes())  # without an ending
    with open_source(write(folder, text.replace("shot,", "bare,"))) as source:
        assert pixels(source, "all") == [1, 4, 0]


def test_columns_that_could_be_labels_are_named(folder, caplog):
    with open_source(
        write(folder, ",filename,sort,n\n0,images/4.png,a,3\n1,images/0.png,b,4\n")
    ) as one:
        assert one.labels("all") is None
    assert "no labels; not used: 'sort', 'n'; --label-column names them" in caplog.text


@pytest.mark.parametrize("word", ["training", "Test", "testing", "dev"])
def test_splits_are_called_as_elsewhere(folder, word):
    spec = write(folder, f"path,label,split\nimages/4.png,a,{word}\n")
    with open_source(spec) as source:
        expected = {"training": "train", "Test": "test", "testing": "test", "dev": "validation"}
        assert list(source.splits) == [expected[word]]


def test_names_are_labels(folder):
    spec = write(folder, "path,label\nimages/4.png,Border Collie\nimages/0.png,affenpinscher\n")
    with open_source(spec) as source:
        assert source.classes == ("Border Collie", "affenpinscher")
        assert source.labels("all").tolist() == [0, 1]


def test_columns_can_be_named(folder):
    text = "shot,breed,fold\nimages/4.png,pug,1\nimages/0.png,boxer,2\n"
    with open_source(write(folder, text), id_column="shot", label_column="Breed") as source:
        assert source.classes == ("boxer", "pug")
        assert pixels(source, "all") == [4, 0]
    with open_source(write(folder, text.replace("shot", "file")), label_column="fold") as source:
        assert source.classes == ("1", "2")
    with pytest.raises(DataError, match="no column 'kind'; line 1 names 'shot', 'breed', 'fold'"):
        open_source(write(folder, text), id_column="shot", label_column="kind")
    with pytest.raises(DataError, match="no column of pictures' paths") as caught:
        open_source(write(folder, text), label_column="breed")
    assert "--id-column" in caught.value.hint


def test_one_hot_columns_are_one_class_each(folder):
    text = "path,split,cat,dog\nimages/4.png,train,0,1\nimages/0.png,test,1.0,0\n"
    with open_source(write(folder, text)) as source:
        assert source.classes == ("cat", "dog")
        assert (source.labels("train").tolist(), source.labels("test").tolist()) == ([1], [0])
    with open_source(write(folder, "path,width\nimages/4.png,1\n")) as source:
        assert source.classes == ()
