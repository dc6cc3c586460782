"""A store that speaks S3, well and badly: pictures out of it, files into it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from cnnfeat import store
from cnnfeat.address import Address
from cnnfeat.data import open_source
from cnnfeat.data.remote import RemotePath, Tree
from cnnfeat.errors import CnnfeatError, ImageError, OutputExistsError, StorageError, UsageError
from cnnfeat.extraction import extract
from cnnfeat.features import FeatureFile
from cnnfeat.options import ExtractOptions
from cnnfeat.transfer import incoming, outgoing

N = 2_000


def png(n: int) -> bytes:
    """A picture that says its number."""
    stream = io.BytesIO()
    pixels = np.array([[[n // 256, n % 256, 7]]], np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def numbers(source, **how) -> list[int]:
    found = [batch.images[:, 0, 0].astype(int) for batch in source.batches("all", **how)]
    pixels = np.concatenate(found)
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


@pytest.fixture
def few(bucket):
    """Forty pictures, two of which the proxy knows by name."""
    for n in range(40):
        bucket.put(f"photos/{n}.png", png(n))
    return f"s3://{bucket.name}/photos"


def _adding_up(work) -> object:
    """A network of one layer, which adds up the pixels of an image."""

    class Sums(work.CountingProbe):
        def __call__(self, images):
            return (images.reshape(len(images), -1).sum(1, keepdims=True).astype(np.float32),)

    return work.CountingNetwork(Sums({"sum": (1,)}))


@pytest.mark.slow
def test_two_thousand_pictures_as_a_folder_a_list_and_tar_files(bucket, proxy, work, tmp_path):
    lines, shards = ["path,label"], {}
    for n in range(N):
        data = png(n)
        bucket.put(f"photos/{n}.png", data)
        lines.append(f"photos/{n}.png,{n % 3}")
        shards.setdefault(n // 500, []).append((f"{n:05}.png", data))
    bucket.put("list.csv", "\n".join(lines).encode())
    for shard, members in shards.items():
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        bucket.put(f"tars/s-{shard:04}.tar", stream.getvalue())
    root = f"s3://{bucket.name}"
    for spec in ("photos", "list.csv", "tars/s-{0000..0003}.tar", "tars"):
        proxy.requests.clear()
        with open_source(f"{root}/{spec}") as source:
            assert numbers(source, batch_size=256) == list(range(N)), spec
        gets = [path for method, path in proxy.requests if "list-type" in path]
        assert len(gets) <= 3, "listed once, a thousand a page"
    assert proxy.most >= 8
    target = Address("s3", f"{bucket.name}/made/features.h5")
    with open_source(f"{root}/list.csv") as source, outgoing(target, overwrite=False) as path:
        path.parent.mkdir(parents=True)
        extract(_adding_up(work), source, ExtractOptions(batch_size=256), out=path)
    (tmp_path / "features.h5").write_bytes(bucket.get("made/features.h5"))
    with FeatureFile(tmp_path / "features.h5") as file:
        assert file.read("all", "sum")[:, 0].tolist() == [n // 256 + n % 256 + 7 for n in range(N)]
        assert file.labels("all").tolist() == [n % 3 for n in range(N)]
        assert file.ids("all") == [f"photos/{n}.png" for n in range(N)]


def test_several_are_asked_for_at_one_time(few, proxy):
    proxy.fault = lambda method, path: "slow" if path.endswith(".png") else None
    with open_source(few) as source:
        assert numbers(source, batch_size=16) == list(range(40))
    assert 8 <= proxy.most <= store.REQUESTS


def test_a_picture_is_one_request(few, proxy):
    with open_source(few) as source:
        proxy.requests.clear()
        assert numbers(source, batch_size=16) == list(range(40))
        assert len(proxy.requests) == 40


@pytest.mark.parametrize("kind", ["503", "cut get"])
def test_what_fails_for_a_while_is_tried_again(few, proxy, kind):
    with open_source(few) as source:
        proxy.times(2, kind, "GET", "/photos/17.png")
        assert numbers(source, batch_size=16) == list(range(40))
        asked = [path for _, path in proxy.requests if path.endswith("/17.png")]
        assert len(asked) == 3


@pytest.mark.parametrize(("kind", "message"), [("403", "forbidden: "), ("404", "not found: ")])
def test_refusals_are_told_at_once(few, proxy, kind, message):
    with open_source(few) as source:
        proxy.times(99, kind, "GET", "/photos/17.png")
        with pytest.raises(StorageError, match=rf"{few}/17\.png: {message}") as caught:
            numbers(source, batch_size=16, on_error="skip")
        assert len([path for _, path in proxy.requests if path.endswith("/17.png")]) == 1
    assert caught.value.exit_code == 5
    assert (kind == "403") == ("AWS_PROFILE" in caught.value.hint)


def test_a_store_that_says_nothing_is_given_up(few, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(store, "_TRIES", 1)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.5}})
    store.forget_clients()
    with open_source(few) as source:
        proxy.times(99, "silent", "GET", "/photos/17.png")
        with pytest.raises(StorageError, match=rf"{few}/17\.png: no answer in time"):
            numbers(source, batch_size=16)


def test_a_store_that_isnt_there_is_told(monkeypatch, few):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(store, "_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store.forget_clients()
    with pytest.raises(StorageError, match=f"{few}: .*http://127.0.0.1:1/") as caught:
        open_source(few)
    assert "list-type" not in str(caught.value)


def test_a_bucket_that_isnt_there_is_told(proxy, bucket):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: not found: .*bucket"):
        open_source("s3://no-such-bucket/x")
    with (
        pytest.raises(StorageError, match="s3://no-such-bucket: not found"),
        outgoing(Address("s3", "no-such-bucket/x.h5"), overwrite=False),
    ):
        raise AssertionError("told before any work")


def test_what_is_no_store_is_told(few, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(store, "_TRIES", 1)
    store.forget_clients()
    proxy.fault = lambda method, path: "a page"
    with pytest.raises(StorageError, match=few):
        open_source(few)


def test_a_profile_that_isnt_there_is_told(few, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    store.forget_clients()
    with pytest.raises(StorageError, match=f"{few}: .*no-such-profile"):
        open_source(few)


def test_names_are_as_odd_as_they_come(bucket):
    names = ["a b", "ü", "a#1", "a?x=1", "a+b", "%41", "a*", "[x]", "a&b;c", "'", '"']
    for number, name in enumerate(names):
        bucket.put(f"photos/{name}.png", png(number))
    bucket.put("deep/x//y.png", png(99))
    with open_source(f"s3://{bucket.name}/photos") as source:
        assert sorted(numbers(source, batch_size=4)) == list(range(len(names)))
        assert {file.id for file in source._files["all"]} == {f"{name}.png" for name in names}
    with open_source(f"s3://{bucket.name}/deep") as source:
        assert numbers(source, batch_size=4) == [99]


def test_a_key_that_would_lead_elsewhere_is_not_read():
    root = Address("s3", "bucket/photos")
    tree = Tree(root, {"../secret.png": store.StoredObject(10, "tag")})
    with pytest.raises(ImageError, match=r"a key with \. and \.\. as folders isn't read"):
        RemotePath(tree, "../secret.png").read(error=ImageError)


def test_without_credentials_that_is_told(few, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store.forget_clients()
    with pytest.raises(StorageError, match=f"{few}: .*credentials") as caught:
        open_source(few)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


@pytest.fixture
def target(bucket, tmp_path, monkeypatch) -> Address:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Address("s3", f"{bucket.name}/made/features.h5")


def put(target: Address, data: bytes, **how: bool) -> Path:
    with outgoing(target, **{"overwrite": False, **how}) as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return path


def test_a_file_is_put_whole_and_none_is_left_here(target, bucket):
    assert not put(target, b"features").exists()
    assert bucket.get("made/features.h5") == b"features"


def test_what_stands_there_stays_unless_it_is_to_be_replaced(target, bucket):
    put(target, b"first")
    with pytest.raises(OutputExistsError, match=f"{target} exists") as caught:
        put(target, b"second")
    assert "--overwrite replaces it" in caught.value.hint
    assert bucket.get("made/features.h5") == b"first"
    put(target, b"third", overwrite=True)
    assert bucket.get("made/features.h5") == b"third"


@pytest.mark.parametrize(("other", "stays"), [(b"theirs", False), (b"ours", True)])
def test_the_first_of_two_writers_wins(target, bucket, other, stays):
    """Another one puts its file while this one is made."""
    made = outgoing(target, overwrite=False)
    path = made.__enter__()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"ours")
    bucket.put("made/features.h5", other)
    if stays:
        made.__exit__(None, None, None)
    else:
        with pytest.raises(OutputExistsError, match=f"{target} exists"):
            made.__exit__(None, None, None)
    assert bucket.get("made/features.h5") == other


@pytest.mark.parametrize(("kind", "stands"), [("501", False), ("501", True), ("412", True)])
def test_stores_that_say_otherwise_that_a_name_is_taken(target, bucket, proxy, kind, stands):
    """Older ones know no If-None-Match, and some give no reason."""
    made = outgoing(target, overwrite=False)
    path = made.__enter__()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"ours")
    proxy.times(1, kind, "PUT", "features.h5")
    if stands:
        bucket.put("made/features.h5", b"theirs")
        with pytest.raises(OutputExistsError, match=f"{target} exists"):
            made.__exit__(None, None, None)
    else:
        made.__exit__(None, None, None)
    assert bucket.get("made/features.h5") == (b"theirs" if stands else b"ours")


@pytest.mark.parametrize("kind", ["503", "cut put"])
def test_a_put_that_fails_for_a_while_is_tried_again(target, bucket, proxy, kind):
    proxy.times(2, kind, "PUT", "features.h5")
    put(target, b"x" * 300_000)
    assert bucket.get("made/features.h5") == b"x" * 300_000


def test_an_answer_that_is_lost_is_no_failure(target, bucket, proxy):
    """The object is there by then, and the next attempt finds it."""
    proxy.times(1, "unsaid", "PUT", "features.h5")
    put(target, b"features")
    assert bucket.get("made/features.h5") == b"features"


def test_a_put_that_is_cut_off_leaves_nothing_there_and_the_file_here(
    target, bucket, proxy, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(store, "_TRIES", 1)
    store.forget_clients()
    proxy.times(99, "cut put", "PUT", "features.h5")
    with pytest.raises(
        StorageError, match=rf"{target}: .*; the file is complete, and kept: "
    ) as caught:
        put(target, b"x" * 300_000)
    kept = Path(str(caught.value).rpartition(": ")[2])
    assert kept.read_bytes() == b"x" * 300_000 and bucket.names() == []
    assert kept.parent.parent.stat().st_mode & 0o077 == 0
    assert "--resume" in caught.value.hint
    proxy.fault = lambda method, path: None
    with outgoing(target, overwrite=False, resume=True) as path:
        assert path == kept
    assert bucket.get("made/features.h5") == b"x" * 300_000 and not kept.exists()


def test_a_folder_that_others_can_write_to_is_not_written_to(target, tmp_path):
    import os

    folder = tmp_path / f"cnnfeat-outgoing-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="others can write to it") as caught:
        put(target, b"features")
    assert "TMPDIR" in caught.value.hint


@pytest.mark.slow
def test_large_files_go_in_parts(target, bucket, proxy):
    data = np.random.default_rng(1).bytes(120 * 2**20)
    put(target, data)
    assert sum("partNumber" in path for method, path in proxy.requests if method == "PUT") >= 2
    with incoming(str(target)) as path:
        assert path.read_bytes() == data


def test_a_copy_is_removed_and_is_called_by_its_address(target, bucket):
    from cnnfeat.transfer import name_of

    bucket.put("made/features.h5", b"features")
    with incoming(str(target)) as path:
        assert path.read_bytes() == b"features" and name_of(path) == str(target)
    assert not path.exists() and name_of(path) == str(path)
    with incoming(path) as same:
        assert same == path


def test_of_a_folder_the_files_right_in_it_are_copied(target, bucket):
    for name in ("manifest.json", "a.h5", "deeper/b.h5", "notes.txt"):
        bucket.put(f"made/{name}", name.encode())
    with incoming(str(target.parent)) as path:
        assert sorted(one.name for one in path.iterdir()) == ["a.h5", "manifest.json"]
    bucket.put("other/notes.txt", b"")
    with (
        pytest.raises(UsageError, match="no feature file right in it"),
        incoming(f"s3://{bucket.name}/other"),
    ):
        pass


def test_an_object_that_changes_while_it_is_copied_is_no_copy(target, bucket, monkeypatch):
    bucket.put("made/features.h5", b"first")
    read = store.read_object

    def changed(*place):
        data = read(*place)
        bucket.put("made/features.h5", b"other")
        return data

    monkeypatch.setattr(store, "read_object", changed)
    with pytest.raises(StorageError, match="has changed while it was read"), incoming(str(target)):
        pass


@pytest.mark.parametrize("missing", ["fsspec", "s3fs"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, missing):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    store.forget_clients()
    with pytest.raises(
        UsageError, match=f"s3:// needs {missing}, which is not installed"
    ) as caught:
        open_source("s3://bucket/x")
    assert caught.value.hint == "pip install 'cnnfeat[s3]'"
    assert isinstance(caught.value, CnnfeatError)


def test_an_object_in_memory_is_the_same_however_it_is_looked_at(memory, tmp_path):
    memory("bucket/one", b"some bytes")
    address = Address("memory", "bucket/one")
    assert store.stat_object(address) == store.list_objects(address)[""]
    with incoming(address) as copy:
        assert copy.read_bytes() == b"some bytes"
