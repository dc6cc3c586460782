"""Sources in a store: folders, lists and tar files, as they are from a disk."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data import fetching, open_data, open_source, remote
from cnnfeat.errors import DataError, ImageError, StorageError, UsageError
from cnnfeat.options import DataOptions

Put = Callable[[str, bytes], None]


def png(value: int, size: int = 6) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size, size), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def everything(source, split="all", **how):
    batches = list(source.batches(split, batch_size=how.pop("batch_size", 4), **how))
    images = np.concatenate([batch.images for batch in batches])
    return images[:, 0, 0, 0].tolist(), [name for batch in batches for name in batch.ids]


def put_all(put: Put, root: str, files: dict[str, bytes], folder: Path) -> None:
    """Put files both into a store and into a folder of the disk."""
    for name, data in files.items():
        put(f"{root}/{name}", data)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


PHOTOS = {
    **{f"train/cat/{n}.png": png(n) for n in (1, 2, 10)},
    **{f"train/dog/deep/{n}.png": png(20 + n) for n in (1, 2)},
    "test/cat/5.png": png(5),
    "test/dog/6.JPG": png(6),
    "train/cat/.hidden.png": b"none",
    "train/notes.txt": b"none",
}


def test_a_folder_is_listed_as_one_of_a_disk_is(memory, tmp_path):
    put_all(memory, "b/photos", PHOTOS, tmp_path)
    with open_source("memory://b/photos") as far, open_source(str(tmp_path)) as near:
        assert far.name == "memory://b/photos"
        assert far.splits == near.splits and far.classes == near.classes == ("cat", "dog")
        for split in ("train", "test"):
            np.testing.assert_array_equal(far.labels(split), near.labels(split))
            assert everything(far, split) == everything(near, split)
        assert everything(far, "train")[1] == [
            *("train/cat/1.png", "train/cat/2.png", "train/cat/10.png"),
            *("train/dog/deep/1.png", "train/dog/deep/2.png"),
        ]


def test_groups_are_folders_there_too(memory, tmp_path):
    files = {f"{of}/{who}/{n}.png": png(n) for of in "ab" for who in "xy" for n in (1, 2)}
    put_all(memory, "b/photos", files, tmp_path)
    found = []
    for spec in ("memory://b/photos", str(tmp_path)):
        with open_data(DataOptions(spec, group_by="folder")) as source:
            found.append(source.groups("all").tolist())
    assert found[0] == found[1] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_fingerprint_is_of_what_is_listed(memory):
    memory("b/photos/1.png", png(1))
    memory("b/photos/2.png", png(2))

    def opened():
        with open_source("memory://b/photos") as source:
            return source.fingerprint(), source.state(), source.changed_since

    before, state, _ = opened()
    again, _, changed_since = opened()
    assert before == again and before.method == "names, sizes and tags as a store lists them"
    assert changed_since(state) is None
    memory("b/photos/2.png", png(3))
    after, _, changed_since = opened()
    assert after != before and changed_since(state) == "2.png has changed"


@pytest.mark.parametrize(
    "named", ["1.png", "./1.png", "../photos/1.png", "memory://b/photos/1.png"]
)
def test_a_list_names_pictures_of_its_store(memory, named):
    memory("b/photos/1.png", png(7))
    memory("b/photos/list.csv", f"path,label\n{named},cat\n".encode())
    with open_source("memory://b/photos/list.csv") as source:
        assert source.kind == "manifest" and source.classes == ("cat",)
        assert everything(source) == ([7], [named])


def test_a_list_of_this_machine_names_pictures_in_a_store(memory, tmp_path):
    (tmp_path / "near.png").write_bytes(png(1))
    memory("b/x/far.png", png(2))
    memory("c/far.png", png(3))
    rows = ["near.png", "memory://b/x/far.png", "memory://c/far.png"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(rows))
    with open_source(str(tmp_path / "list.csv")) as source:
        assert everything(source) == ([1, 2, 3], rows)


def test_a_list_needs_no_columns(memory):
    memory("b/1.png", png(1))
    memory("b/2.png", png(2))
    memory("b/list.txt", b"2.png\n1.png\n")
    with open_source("memory://b/list.txt") as source:
        assert everything(source) == ([2, 1], ["2.png", "1.png"])


def test_a_picture_that_a_list_names_and_isnt_there_is_left_out(memory):
    memory("b/1.png", png(1))
    memory("b/list.csv", b"path\n1.png\n2.png\n")
    with open_source("memory://b/list.csv") as source:
        with pytest.raises(ImageError, match=r"memory://b/2\.png: there is no such object"):
            everything(source)
        assert everything(source, on_error="skip") == ([1], ["1.png"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "https://example.org/1.png",
            "line 1: https://.*: nothing is read from web addresses",
        ),
        ("../../c/1.png", "line 1: .* is no path from memory://b, within its bucket"),
        ("/etc/1.png", "line 1: .* is no path from memory://b, within its bucket"),
        ("file:///etc/1.png", "line 1: .* is no address of a store"),
    ],
)
def test_a_list_in_a_store_leads_nowhere_else(memory, row, message):
    memory("b/list.txt", f"{row}\n".encode())
    with pytest.raises(DataError, match=message):
        open_source("memory://b/list.txt")


def test_a_list_of_web_addresses_is_to_be_downloaded_first(tmp_path):
    (tmp_path / "list.txt").write_text("https://example.org/photo?id=7\nhttps://example.org/8\n")
    with pytest.raises(DataError, match="nothing is read from web addresses") as caught:
        open_source(str(tmp_path / "list.txt"))
    assert "download it first" in caught.value.hint and "wget -i LIST" in caught.value.hint


def test_labels_stand_in_a_csv_of_either_place(memory, tmp_path):
    for n in (1, 2):
        memory(f"b/photos/{n}.png", png(n))
    memory("b/labels.csv", b"id,label\n1,cat\n2,dog\n")
    (tmp_path / "labels.csv").write_text("id,label\n1,cat\n2,dog\n")
    for labels in ("memory://b/labels.csv", str(tmp_path / "labels.csv")):
        with open_source("memory://b/photos", labels=labels) as source:
            assert source.classes == ("cat", "dog")
            assert source.labels("all").tolist() == [0, 1]
            assert source.labels_from == labels


def test_one_picture_is_a_source(memory):
    memory("b/one.png", png(9))
    with open_source("memory://b/one.png") as source:
        assert source.kind == "image" and everything(source) == ([9], ["one.png"])


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("piece_bytes", [1000, 4 * 2**20])
@pytest.mark.parametrize("spec", ["tars", "tars/s-{00..02}.tar"])
def test_tar_files_are_read_as_those_of_a_disk(memory, tmp_path, monkeypatch, spec, piece_bytes):
    monkeypatch.setattr(remote, "_PIECE_BYTES", piece_bytes)
    files = {
        f"tars/s-{shard:02}.tar": tar(
            {
                name: data
                for n in range(5)
                for name, data in (
                    (f"{n:04}.png", png(10 * shard + n, 40)),
                    (f"{n:04}.cls", b"%d" % (n % 2)),
                )
            }
        )
        for shard in range(3)
    }
    put_all(memory, "b", files, tmp_path)
    with open_source(f"memory://b/{spec}") as far, open_source(f"{tmp_path}/{spec}") as near:
        assert far.kind == near.kind == "tar" and far.splits == near.splits
        assert everything(far) == everything(near)
        assert everything(far)[0] == [10 * shard + n for shard in range(3) for n in range(5)]
        np.testing.assert_array_equal(far.labels("all"), near.labels("all"))


def test_one_tar_file_is_a_source(memory):
    memory("b/x.tar", tar({"1.png": png(3), "1.cls": b"0"}))
    with open_source("memory://b/x.tar") as source:
        assert everything(source) == ([3], ["1.png"])


def test_tar_files_that_are_missing_or_none_are_named(memory):
    memory("b/s-0.tar", tar({"1.png": png(3)}))
    with pytest.raises(DataError, match=r"1 of 2 files are missing: s-1\.tar"):
        open_source("memory://b/s-{0..1}.tar")
    memory("b/s-1.tar", b"no tar file")
    with pytest.raises(DataError, match=r"memory://b/s-1\.tar: is no tar file"):
        open_source("memory://b/s-{1..0}.tar")


@pytest.mark.parametrize(
    ("files", "spec", "message"),
    [
        ({"x/features.npz": b"PK\3\4"}, "x/features.npz", "are read from a store alone"),
        ({"x/a.parquet": b"PAR1"}, "x", r"holds no pictures; it has: a\.parquet"),
        ({"x/cat/1.png": b"", "x/1.png": b""}, "x", "1 pictures lie beside 1 class folders"),
    ],
)
def test_what_else_lies_there_is_refused(memory, files, spec, message):
    for name, data in files.items():
        memory(f"b/{name}", data)
    with pytest.raises(DataError, match=message) as caught:
        open_source(f"memory://b/{spec}")
    assert "download" in caught.value.hint or "move" in caught.value.hint


def test_an_empty_object_is_told(memory):
    memory("b/x.tar", b"")
    with pytest.raises(DataError, match=r"memory://b/x\.tar: an empty file"):
        open_source("memory://b/x.tar")


def test_nothing_at_an_address_is_told(memory):
    with pytest.raises(StorageError, match="memory://b/x: there is nothing there"):
        open_source("memory://b/x")
    with pytest.raises(UsageError, match="names no bucket"):
        open_source("memory://")


def test_a_picture_too_large_to_be_read_whole_is_told(memory, monkeypatch):
    monkeypatch.setattr(remote, "MAX_OBJECT_BYTES", 10)
    memory("b/1.png", png(1))
    with pytest.raises(ImageError, match=r"10 are read from a store"):
        open_source("memory://b/1.png")


def test_so_many_are_fetched_ahead_and_no_more(memory, monkeypatch):
    """The window is held in bytes and in pictures, whatever is decoded when."""
    monkeypatch.setattr(fetching, "_AHEAD", 5)
    for n in range(30):
        memory(f"b/{n}.png", png(n))
    with open_source("memory://b") as source:
        asked = []
        read = remote.read_object
        monkeypatch.setattr(
            remote, "read_object", lambda *place: (asked.append(1), read(*place))[1]
        )
        pictures = fetching.fetched(source._files["all"])
        next(pictures)
        pictures.close()
        assert 1 <= len(asked) <= 6
        monkeypatch.setattr(fetching, "_AHEAD_BYTES", 1)
        asked.clear()
        pictures = fetching.fetched(source._files["all"])
        next(pictures)
        pictures.close()
        assert len(asked) == 1


def test_nothing_of_stores_is_loaded_for_a_path(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    code = (
        "import sys, cnnfeat; cnnfeat.open_source(sys.argv[1]); "
        "print([name for name in ('fsspec', 's3fs', 'aiohttp') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
