"""Tar files of pictures, written by Python's own `tarfile` and by GNU tar."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.data.braces import expand
from cnnfeat.errors import DataError, ImageError, UsageError

N = 12


@pytest.fixture
def pictures(rng) -> np.ndarray:
    return rng.integers(0, 256, (N, 6, 5, 3), np.uint8)


@pytest.fixture
def encoded(pictures, png) -> list[bytes]:
    return [png(picture) for picture in pictures]


def save(path: Path, members: Sequence[tuple[str, bytes]], **options) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(encoded: Sequence[bytes], ending: str = "cls", start: int = 0) -> list:
    """Pictures and their labels, 0, 1, 2, 0 …, as WebDataset has them."""
    members = []
    for number, data in enumerate(encoded, start):
        label = {"json": f'{{"label": {number % 3}}}'}.get(ending, str(number % 3))
        members += [(f"{number:04d}.png", data), (f"{number:04d}.{ending}", label.encode())]
    return members


@pytest.mark.parametrize("ending", ["cls", "json", "txt"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_file_is_what_went_in(  # noqa: PLR0917 - fixtures
    tmp_path, pictures, encoded, read_all, ending, format
):
    path = tmp_path / "photos"  # told by content
    save(path, samples(encoded, ending), format=format)
    with open_source(str(path)) as source:
        assert (source.kind, source.name, source.classes) == ("tar", str(path), ("0", "1", "2"))
        rows = read_all(source, "all")
        np.testing.assert_array_equal(rows.images, pictures)
        assert rows.labels.tolist() == [0, 1, 2] * 4
        assert rows.ids == [f"{number:04d}.png" for number in range(N)]
        some = next(source.batches("all", batch_size=4, rows=np.array([1, 5, 9])))
        np.testing.assert_array_equal(some.images, pictures[[1, 5, 9]])
        state, before = source.state(), source.fingerprint()
    save(path, samples(encoded[::-1], ending), format=format)
    with open_source(str(path)) as source:
        assert source.changed_since(state) == "photos has changed"
        assert source.fingerprint() != before


def test_several_tar_files_keep_the_order_of_the_pattern(tmp_path, pictures, encoded, read_all):
    for shard in range(3):
        rows = slice(4 * shard, 4 * shard + 4)
        save(tmp_path / f"shard-{shard + 8:04d}.tar", samples(encoded[rows]))
    with open_source(str(tmp_path / "shard-{0010..0008}.tar")) as source:
        rows = read_all(source, "all")
        order = [8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]
        np.testing.assert_array_equal(rows.images, pictures[order])
        assert rows.ids[3:5] == ["shard-0010.tar/0003.png", "shard-0009.tar/0000.png"]
    with open_source(str(tmp_path)) as source:
        np.testing.assert_array_equal(read_all(source, "all").images, pictures)


def test_names_say_which_split_a_tar_file_is_of(tmp_path, pictures, encoded, read_all):
    for folder, rows in (("train", slice(8)), ("test", slice(8, N))):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / f"{folder}-0.tar", samples(encoded[rows]))
    with open_source(f"{tmp_path}/{{test/test,train/train}}-0.tar") as source:
        np.testing.assert_array_equal(read_all(source, "train").images, pictures[:8])
        np.testing.assert_array_equal(read_all(source, "test").images, pictures[8:])
        assert read_all(source, "test").ids[0] == "test/test-0.tar/0000.png"


def test_what_gnu_tar_writes_is_read(tmp_path, pictures, encoded, read_all):
    deep = Path(*["a folder with a long name"] * 8)
    (tmp_path / "x" / deep).mkdir(parents=True)
    for number, data in enumerate(encoded):
        (tmp_path / "x" / deep / f"ü{number:02d}.png").write_bytes(data)
        (tmp_path / "x" / deep / f"ü{number:02d}.breed.txt").write_text(
            "cat" if number % 2 else "dog"
        )
    (tmp_path / "x" / "README.md").write_text("all about it")
    for format in ("gnu", "pax", "posix"):
        path = tmp_path / f"{format}.tar"
        command = [
            "tar",
            f"--format={format}",
            "--sort=name",
            "-cf",
            path,
            "-C",
            tmp_path / "x",
            ".",
        ]
        subprocess.run(command, check=True)
        with open_source(str(path), labels=":/breed.txt") as source:
            rows = read_all(source, "all")
            np.testing.assert_array_equal(rows.images, pictures)
            assert rows.ids[0] == f"{deep.as_posix()}/ü00.png"
            assert [source.classes[label] for label in rows.labels[:2]] == ["dog", "cat"]


def test_labels_can_be_a_key_of_json(tmp_path, encoded, read_all, caplog):
    members = []
    for number, data in enumerate(encoded):
        document = {"label": number, "key": f"{number}", "breed": "pug" if number < 5 else "beagle"}
        members += [(f"{number}.json", json.dumps(document).encode()), (f"{number}.PNG", data)]
    save(tmp_path / "a.tar", [*members, ("x.cls", b"3")])
    with open_source(str(tmp_path / "a.tar"), labels=":breed") as source:
        assert source.classes == ("beagle", "pug")
        assert read_all(source, "all").labels.tolist() == [1] * 5 + [0] * 7
        assert source.labels_from == ":breed"
    assert "left out, as no picture stands beside them: 1 .cls" in caplog.text
    with pytest.raises(DataError, match="no labels in 'bred', as an ending of members or a key of"):
        open_source(str(tmp_path / "a.tar"), labels=":/bred")


def test_captions_are_no_labels(tmp_path, encoded, caplog):
    members = samples(encoded)
    texts = [(name, f"a photo of {name}".encode() * 200) for name, _ in members[1::2]]
    texts = [(name.replace("cls", "txt"), data) for name, data in texts]
    save(
        tmp_path / "a.tar", [one for pair in zip(members[::2], texts, strict=True) for one in pair]
    )
    with caplog.at_level(logging.INFO), open_source(str(tmp_path / "a.tar")) as source:
        assert source.labels("all") is None
    assert "captions, no labels" in caplog.text


def read(path: Path, on_error: str = "raise") -> list:
    with open_source(str(path)) as source:
        return list(source.batches("all", batch_size=100, on_error=on_error))


@pytest.mark.parametrize(
    ("changed", "left_out", "reason"),
    [
        (lambda one: one[:7] + one[8:], "0003.png", "no label stands beside it, as beside others"),
        (lambda one: one + one[4:6], "0002.png", "its key, the name up to the first dot,"),
        (lambda one: [*one[:4], one[2], *one[5:]], "0001.png", "stands there twice"),
        (lambda one: [*one[:6], ("0003.gif", b""), *one[6:]], "0003.gif", "2 pictures have"),
        (lambda one: [*one[:7], ("0003.json", b"{"), *one[8:]], "0003.png", "its .json is no JSON"),
        (
            lambda one: [*one[:7], ("0003.json", b'{"label": [1]}'), *one[8:]],
            "0003.png",
            r"the label in its \.json is \[1\]; a whole number or a text is needed",
        ),
        (
            lambda one: [*one[:7], ("0003.json", b" " * 2**21), *one[8:]],
            "0003.png",
            r"its \.json has 2,097,152 bytes; at most 1,048,576 are read",
        ),
    ],
)  # fmt: skip
def test_a_wrong_sample_is_refused_or_left_out(tmp_path, encoded, changed, left_out, reason):
    save(tmp_path / "a.tar", changed(samples(encoded)))
    with pytest.raises(ImageError, match=rf"a\.tar, {left_out}: .*{reason}") as caught:
        read(tmp_path / "a.tar")
    assert caught.value.exit_code == 3
    (batch,) = read(tmp_path / "a.tar", "skip")
    assert [one.id for one in batch.skipped] == [left_out]
    assert len(batch) == batch.stop - 1
    assert all(
        int(name[:4]) % 3 == label for name, label in zip(batch.ids, batch.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("cut", "n_left", "words"),
    [
        (512 * 4 + 9, 1, "cut short at byte 2,057, where more should follow"),
        (512 * 5 + 10, 1, r"cut short within 0001\.png, of whose [0-9]+ bytes it holds 10"),
        (512 * 8, 2, "cut short at byte 4,096, where more should follow"),
    ],
)
def test_a_tar_file_cut_short_is_refused_or_its_end_left_out(  # noqa: PLR0917 - fixtures
    tmp_path, encoded, caplog, cut, n_left, words
):
    path = tmp_path / "a.tar"
    assert max(map(len, encoded)) <= 512  # so that a sample takes four blocks
    save(path, samples(encoded))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ImageError, match=f"{words}; what lies behind is lost"):
        read(path)
    (batch,) = read(path, "skip")
    assert batch.ids == tuple(f"{number:04d}.png" for number in range(n_left))
    assert batch.skipped[-1].id == "its end"
    assert "what lies behind is lost" in caplog.text


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (4 * 512 + 148, b"9" * 8, "damaged: no header of a member at byte 2,048"),
        (4 * 512 + 124, b"\xff" * 12, "damaged: no header of a member at byte 2,048"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path, encoded, place, value, words):
    path = tmp_path / "a.tar"
    save(path, samples(encoded))
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words):
        read(path)


def rechecked(header: bytes) -> bytes:
    """Put the right checksum into a header."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@pytest.mark.parametrize(
    ("kind", "size", "content", "words"),
    [
        (b"0", b"\xff" * 12, b"", "damaged: a member of -1 bytes at byte 0"),
        (
            b"0",
            b"\x80" + b"\xff" * 11,
            b"",
            "damaged: a size of '30948500982134506872' at byte 512",
        ),
        (b"x", b"77777777777\0", b"", "damaged: 8,589,934,591 bytes of settings at byte 512"),
        (b"x", b"00000000004\0", b"9 a=", "damaged: settings that can't be read at byte 512"),
        (b"L", b"00000003000\0", b"", "cut short at byte 1,024"),
    ],
)
def test_sizes_that_lie_are_refused_before_they_are_read(tmp_path, kind, size, content, words):
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = size, kind
    (tmp_path / "a.tar").write_bytes(rechecked(bytes(header)) + content.ljust(512, b"\0"))
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.tar")


def test_a_size_of_pax_must_be_a_number(tmp_path):
    record = b"14 size=-9999\n"
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = b"%011o\0" % len(record), b"x"
    first = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "a.tar"
    path.write_bytes(rechecked(bytes(header)) + record.ljust(512, b"\0") + first + bytes(1024))
    with pytest.raises(DataError, match="damaged: a size of '-9999' at byte 1,536"):
        read(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "is a symbolic link"),
        (tarfile.LNKTYPE, "is a hard link"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a pipe"),
        (tarfile.GNUTYPE_SPARSE, "is a sparse file"),
        (b"V", "is of a kind"),
    ],
)
def test_what_is_no_regular_file_is_refused(tmp_path, encoded, kind, words):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0001.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=rf"a\.tar, 0001\.png: {words}") as caught:
        open_source(str(tmp_path / "a.tar"))
    assert "cp -rL FOLDER NEW && tar -cf NEW.tar NEW" in caught.value.hint


def test_what_gnu_tar_writes_of_holes_is_refused(tmp_path):
    with (tmp_path / "0001.png").open("wb") as file:
        file.truncate(2**20)
    for format in ("gnu", "posix"):
        command = ["tar", "-S", f"--format={format}", "-cf", "a.tar", "0001.png"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(DataError, match="is a sparse file; regular files alone"):
            open_source(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("members", [[], [("a.cls", b"1")], [("._a.png", b""), ("README", b"")]])
def test_a_tar_file_without_pictures_is_refused(tmp_path, members):
    save(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match="the split all holds no pictures") as caught:
        open_source(str(tmp_path / "a.tar"))
    assert "0001.jpg" in caught.value.hint


def test_files_of_a_pattern_that_are_missing_are_named(tmp_path, encoded):
    save(tmp_path / "s-1.tar", samples(encoded))
    with pytest.raises(DataError, match=r"2 of 3 files are missing: s-0\.tar, s-2\.tar"):
        open_source(str(tmp_path / "s-{0..2}.tar"))
    with pytest.raises(UsageError, match="stands for 1,000,000,000 numbers"):
        open_source("s-{0..999999999}.tar")


def test_a_pattern_of_other_files_is_refused(tmp_path, encoded):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded[number])
    with pytest.raises(
        DataError, match=r"several files are one source where they are tar,.* 0\.png"
    ):
        open_source(str(tmp_path / "{0..1}.png"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{08..11}", ["a08", "a09", "a10", "a11"]),
        ("{2..0}b", ["2b", "1b", "0b"]),
        ("{1..6..2}", ["1", "3", "5"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
        ("{a}", ["{a}"]),
        ("plain", ["plain"]),
        ("{a", ["{a"]),
        ("{,b}", ["", "b"]),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(pattern, names):
    assert expand(pattern) == names
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}x"], check=True, capture_output=True, text=True
    )
    assert [f"{name}x" for name in names] == said.stdout.split()


def test_more_files_than_anyone_has_are_refused():
    with pytest.raises(UsageError, match="stands for 100,000,000 files; 1,000,000 are allowed"):
        expand("{1..10000}/{1..10000}")
