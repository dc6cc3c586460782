from __future__ import annotations

import dataclasses
import gzip
import hashlib
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnfeat.data import DATASETS, fetch, list_sources, open_source, registry, user_cache
from cnnfeat.errors import DataError, DownloadError, StorageError, UsageError


def put(small_set, folder: Path, *, unpack: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in small_set.packed.items():
        if unpack:
            (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


def use_mirrors(monkeypatch, small_set, *mirrors: str) -> None:
    changed = dataclasses.replace(small_set.dataset, mirrors=mirrors)
    monkeypatch.setitem(DATASETS, "mnist", changed)


def check_contents(source, small_set) -> None:
    names = {"train": "train", "test": "t10k"}
    assert list(source.splits) == ["train", "test"]
    for split, stem in names.items():
        images = small_set.arrays[f"{stem}-images-idx3-ubyte"]
        labels = small_set.arrays[f"{stem}-labels-idx1-ubyte"]
        batches = list(source.batches(split, batch_size=4))
        np.testing.assert_array_equal(
            np.concatenate([batch.images for batch in batches]), images[..., np.newaxis]
        )
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), labels)
        np.testing.assert_array_equal(source.labels(split), labels)


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("place", ["mnist", "."])
def test_files_on_disk_are_used_without_asking_a_mirror(small_set, tmp_path, unpack, place):
    put(small_set, tmp_path / place, unpack=unpack)
    with open_source("mnist", data_dir=tmp_path) as source:
        assert (source.name, source.kind) == ("mnist", "mnist")
        check_contents(source, small_set)


def test_data_dir_comes_before_the_environment_before_the_cache(small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNFEAT_DATA_DIR", str(tmp_path / "environment"))
    put(small_set, user_cache() / "mnist")
    assert where("mnist") == str(user_cache() / "mnist")
    put(small_set, tmp_path / "environment" / "mnist")
    assert where("mnist") == str(tmp_path / "environment" / "mnist")
    put(small_set, tmp_path / "option" / "mnist")
    assert where("mnist", tmp_path / "option") == str(tmp_path / "option" / "mnist")
    check_contents(open_source("mnist"), small_set)


def where(name: str, data_dir: Path | None = None) -> str:
    return {source.name: source.location for source in list_sources(data_dir=data_dir)}[name]


def test_the_fingerprint_is_the_same_packed_and_unpacked(small_set, tmp_path):
    put(small_set, tmp_path / "a" / "mnist")
    put(small_set, tmp_path / "b" / "mnist", unpack=True)
    packed = open_source("mnist", data_dir=tmp_path / "a").fingerprint()
    assert packed == open_source("mnist", data_dir=tmp_path / "b").fingerprint()
    assert packed.method == "file contents"


def test_a_wrong_file_on_disk_is_refused_with_both_digests(small_set, tmp_path):
    path = put(small_set, tmp_path / "mnist") / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes() + b"x")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        open_source("mnist", data_dir=tmp_path)
    assert str(path) in str(caught.value)
    assert actual in str(caught.value)
    assert small_set.dataset.files[3].sha256 in str(caught.value)
    assert caught.value.exit_code == 3


def test_files_of_another_data_set_with_the_same_names_are_passed_over(
    small_set, tmp_path, monkeypatch, server
):
    other = dataclasses.replace(small_set.dataset, name="fashion-mnist")
    monkeypatch.setitem(DATASETS, "fashion-mnist", other)
    monkeypatch.setitem(
        DATASETS,
        "mnist",
        dataclasses.replace(
            small_set.dataset,
            files=tuple(
                dataclasses.replace(file, sha256="0" * 64, unpacked_sha256="1" * 64)
                for file in small_set.dataset.files
            ),
        ),
    )
    put(small_set, tmp_path)
    with pytest.raises(DownloadError):
        open_source("mnist", data_dir=tmp_path)


def test_missing_files_are_downloaded_into_the_cache_and_used_again(small_set, server, monkeypatch):
    use_mirrors(monkeypatch, small_set, server.mirror("good"))
    check_contents(open_source("mnist"), small_set)
    assert len(server.requests) == 4
    assert sorted(path.name for path in (user_cache() / "mnist").iterdir()) == sorted(
        small_set.packed
    )
    check_contents(open_source("mnist"), small_set)
    assert len(server.requests) == 4


def test_mirrors_are_asked_in_turn(small_set, server, monkeypatch):
    bad = [server.mirror(name) for name in ("missing", "wrong", "truncated")]
    use_mirrors(monkeypatch, small_set, *bad, server.mirror("good"))
    check_contents(open_source("mnist"), small_set)
    asked = [path.split("/")[1] for path in server.requests]
    assert asked == ["missing", "wrong", "truncated", "good"] * 4


def test_unreachable_names_each_mirrors_reason_and_leaves_nothing(small_set, server, monkeypatch):
    patiently = registry._open
    monkeypatch.setattr(
        registry, "_open", lambda url, wait_s: patiently(url, 0.3 if "hanging" in url else wait_s)
    )
    monkeypatch.setattr(registry, "MAX_FILE_BYTES", 1_000_000)
    names = ("missing", "wrong", "truncated", "endless", "hanging")
    use_mirrors(
        monkeypatch,
        small_set,
        *map(server.mirror, names),
        "http://127.0.0.1:9/",
    )
    with pytest.raises(DownloadError) as caught:
        open_source("mnist")
    message, hint = str(caught.value), caught.value.hint
    told = dict(part.rsplit(": ", 1) for part in message.split("; "))
    assert told["mnist can't be downloaded: " + server.mirror("missing")] == "HTTP 404 Not Found"
    assert "hash" in message.split("; ")[1]
    packed = len(small_set.packed["train-images-idx3-ubyte.gz"])
    assert (
        told[server.mirror("truncated")]
        == f"the connection broke after {packed // 2} of {packed} bytes"
    )
    assert told[server.mirror("endless")] == "sends more than 1,000,000 bytes"
    assert told[server.mirror("hanging")] == "no answer in time"
    assert told["http://127.0.0.1:9/"] == "Connection refused"
    assert str(user_cache() / "mnist") in hint
    assert "train-images-idx3-ubyte.gz" in hint
    assert "--data digits" in hint
    assert caught.value.exit_code == 5
    assert not list(user_cache().rglob("*"))


def test_a_damaged_file_in_the_cache_is_downloaded_again(small_set, server, monkeypatch, caplog):
    use_mirrors(monkeypatch, small_set, server.mirror("good"))
    damaged = put(small_set, user_cache() / "mnist") / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(b"half a file")
    check_contents(open_source("mnist"), small_set)
    assert server.requests == ["/good/train-labels-idx1-ubyte.gz"]
    assert f"{damaged} is damaged" in caplog.text


def test_auto_is_mnist_where_it_can_be_downloaded(small_set, server, monkeypatch, caplog):
    use_mirrors(monkeypatch, small_set, server.mirror("missing"), server.mirror("good"))
    with open_source("auto") as source:
        assert source.name == "mnist"
        check_contents(source, small_set)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("behaviour", ["missing", "hanging", "truncated", "wrong"])
def test_auto_is_digits_with_a_warning_where_mnist_is_out_of_reach(
    small_set, server, monkeypatch, caplog, behaviour
):
    monkeypatch.setattr(registry, "PROBE_TIMEOUT_S", 0.5)
    use_mirrors(monkeypatch, small_set, server.mirror(behaviour))
    with open_source("auto") as source:
        assert source.name == "digits"
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "bundled digits" in record.getMessage()
    assert "--data-dir" in record.getMessage()


def test_auto_learns_within_ten_seconds_that_mnist_is_out_of_reach(small_set, server, monkeypatch):
    assert registry.PROBE_TIMEOUT_S < 9  # for all mirrors, if they are asked together
    monkeypatch.setattr(registry, "PROBE_TIMEOUT_S", 120.0)
    use_mirrors(monkeypatch, small_set, *[server.mirror("meeting")] * 5)
    assert open_source("auto").name == "digits"
    assert len(server.requests) == 5
    assert not server.five_ask.broken  # it breaks where one waits for the answer to another


def test_auto_uses_digits_where_the_cache_cannot_be_written(
    small_set, server, monkeypatch, caplog, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_mirrors(monkeypatch, small_set, server.mirror("good"))
    assert open_source("auto").name == "digits"
    with pytest.raises(StorageError, match="can't be written"):
        open_source("mnist")


def test_auto_prefers_what_is_on_disk(small_set, tmp_path):
    put(small_set, tmp_path / "mnist")
    assert open_source("auto", data_dir=tmp_path).name == "mnist"


def test_fetch_downloads_to_the_given_folder(small_set, server, monkeypatch, tmp_path):
    use_mirrors(monkeypatch, small_set, server.mirror("good"))
    fetched = fetch("mnist", data_dir=tmp_path)
    assert fetched.location == str(tmp_path / "mnist")
    check_contents(open_source("mnist", data_dir=tmp_path), small_set)
    fetch("mnist", data_dir=tmp_path)
    assert len(server.requests) == 4


def test_progress_is_told_of_each_file(small_set, server, monkeypatch):
    use_mirrors(monkeypatch, small_set, server.mirror("good"))
    watched = _Watched()
    fetch("mnist", progress=watched)
    assert watched.done == {name: (len(data), len(data)) for name, data in small_set.packed.items()}


class _Watched:
    def __init__(self) -> None:
        self.done: dict[str, tuple[float, float]] = {}

    def task(self, label, *, total, unit):
        assert unit == "bytes"
        self.label, self.done[label] = label, (total, 0)
        return self

    def advance(self, amount=1, *, note=""):
        total, done = self.done[self.label]
        self.done[self.label] = (total, done + amount)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return None


def test_fetch_refuses_an_unknown_name_and_offers_a_near_one():
    with pytest.raises(
        UsageError, match="no source is named 'minst'; known by name: mnist"
    ) as caught:
        fetch("minst")
    assert caught.value.hint == "did you mean 'mnist'?"


def test_digits_need_no_files():
    assert fetch("digits").location == "inside scikit-learn"
    assert where("digits") == "inside scikit-learn"


def test_digits_are_scikit_learns_divided_into_80_and_20_percent():
    bunch = load_digits()
    with open_source("digits") as source:
        assert (source.name, source.kind) == ("digits", "digits")
        assert source.classes == tuple("0123456789")
        sizes = {name: info.n_samples for name, info in source.splits.items()}
        assert sizes == {"train": 1438, "test": 359}
        (train,) = source.batches("train", batch_size=2000)
        (test,) = source.batches("test", batch_size=2000)
    assert train.images.shape == (1438, 8, 8, 1)
    assert train.images.dtype == np.uint8

    def pixels(images, labels):
        return sorted(
            (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
        )

    grey = np.array([round(level * 255 / 16) for level in range(17)], np.uint8)
    everything = grey[bunch.images.astype(int)]
    assert pixels(everything, bunch.target) == pixels(
        np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    )
    shares = np.bincount(test.labels) / np.bincount(bunch.target)
    assert np.all(np.abs(shares - 0.2) < 0.01)
    for batch in (train, test):  # in the order of the bundled array
        order = [image.tobytes() for image in everything]
        places = [order.index(image.tobytes()) for image in batch.images]
        assert places == sorted(places)


def test_every_fifth_image_of_the_sorted_classes_is_a_test_image():
    target = load_digits().target.tolist()
    by_class = [row for label in range(10) for row in range(1797) if target[row] == label]
    expected = [target[row] for row in sorted(by_class[4::5])]
    with open_source("digits") as source:
        assert source.labels("test").tolist() == expected
        assert source.fingerprint() == open_source("digits").fingerprint()


@pytest.mark.mnist
def test_mnist_equals_its_files_read_by_hand(data_dir):
    with open_source("mnist", data_dir=data_dir) as source:
        for split, stem, n_samples in (("train", "train", 60_000), ("test", "t10k", 10_000)):
            with gzip.open(data_dir / "mnist" / f"{stem}-labels-idx1-ubyte.gz") as file:
                assert struct.unpack(">ii", file.read(8)) == (2049, n_samples)
                labels = list(file.read())
            with gzip.open(data_dir / "mnist" / f"{stem}-images-idx3-ubyte.gz") as file:
                assert struct.unpack(">iiii", file.read(16)) == (2051, n_samples, 28, 28)
                pixels = file.read()
            assert source.labels(split).tolist() == labels
            images = np.concatenate(
                [batch.images for batch in source.batches(split, batch_size=999)]
            )
            assert images.shape == (n_samples, 28, 28, 1)
            assert images.tobytes() == pixels
