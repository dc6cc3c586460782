"""Zip archives of strangers: what is wrong with one is said before anything in it is read."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnfeat import archives
from cnnfeat.archives import Archive, is_archive
from cnnfeat.errors import ArchiveError, StorageError, UnsafeArchiveError

TEXT = random.Random(0).randbytes(3000).hex().encode()
LOCAL, LISTED, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def packed(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in (members or {"a.txt": TEXT, "b.txt": b"short"}).items():
            archive.writestr(name, content)
    return file.getvalue()


def named(*names: str) -> bytes:
    return packed(**dict.fromkeys(names, b"x"))


def put(data: bytes, mark: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    """Write over bytes behind the first, or last, mark of a record."""
    place = (data.rfind(mark) if last else data.find(mark)) + offset
    return data[:place] + value + data[place + len(value) :]


def both(data: bytes, offset: int, value: bytes) -> bytes:
    """Write over a field of the first member, in its header and in the archive's list."""
    return put(put(data, LOCAL, offset, value), LISTED, offset + 2, value)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """Read all of an archive that can't be read; what is said, without its path."""

    def read(data: bytes) -> str:
        path = tmp_path / "a.zip"
        path.write_bytes(data)
        with pytest.raises(ArchiveError) as caught, Archive(path) as archive:
            archive.check()
        assert caught.value.message.startswith(f"{path}: ")
        return caught.value.message.removeprefix(f"{path}: ")

    return read


def test_an_empty_archive_has_no_members(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with Archive(tmp_path / "a.zip") as archive:
        assert set(archive.names) == set()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_was_packed_is_read(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed(compression))
    assert is_archive(path)
    with Archive(path) as archive:
        archive.check()
        assert archive.names == {"a.txt", "b.txt"}
        assert archive.read("a.txt") == TEXT
        assert archive.size_bytes("a.txt") == len(TEXT)
        with archive.seekable("a.txt") as file:
            assert file.seek(-5, io.SEEK_END) == len(TEXT) - 5
            assert file.read() == TEXT[-5:]
            assert file.seek(2) == 2
            assert file.read(3) == TEXT[2:5]
        start = archive.start("a.txt")
        if compression == zipfile.ZIP_STORED:
            assert path.read_bytes()[start:].startswith(TEXT)
        else:
            assert start is None


def test_what_others_write_is_read(tmp_path: Path) -> None:
    """Sizes behind the data, sizes in the extra field, folders, other separators, a comment."""
    path = tmp_path / "a.zip"

    class Stream(io.RawIOBase):  # can't be sought in, so sizes follow the data
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("./", b"")
        archive.writestr("assets/", b"")
        archive.writestr("assets\\layers\\conv2d", TEXT)
        with archive.open("wide", "w", force_zip64=True) as file:
            file.write(TEXT)
        archive.comment = b"made by hand"
    path.write_bytes(stream.data)
    with Archive(path) as opened:
        opened.check()
        opened.unpack(tmp_path, wanted=lambda name: name != "wide")
    assert (tmp_path / "assets" / "layers" / "conv2d").read_bytes() == TEXT
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "no whole zip archive", id="empty"),
        pytest.param(packed()[:-1], "no whole zip archive", id="without-its-last-byte"),
        pytest.param(packed()[:2000], "no whole zip archive", id="half"),
        pytest.param(put(packed(), END, 10, b"\7\0"), "lists 2 members, and says 7", id="count"),
        pytest.param(put(packed(), END, 20, b"\7\0"), "ends within its comment", id="comment"),
        pytest.param(put(packed(), END, 16, b"\xff\xff\0\0"), "damaged", id="place-of-the-list"),
        pytest.param(put(packed(), END, 12, b"\xff\0\0\0"), "damaged", id="length-of-the-list"),
        pytest.param(
            put(packed(), END, 12, b"\0\0\0\x10"), "list of its members takes", id="long-list"
        ),
        pytest.param(put(packed(), LISTED, 0, b"PK77"), "damaged", id="mark-in-the-list"),
        pytest.param(put(packed(), LOCAL, 0, b"PK77"), "header and the archive's", id="mark"),
        pytest.param(
            packed()[: -22] + struct.pack("<4sIQI", b"PK\6\7", 9, 0, 9) + packed()[-22:],
            "multiple disks",
            id="several-disks",
        ),
        pytest.param(
            both(packed(), 8, b"\x63\0"),
            "its member 'a.txt' is compressed in a way (99) that can't be read",
            id="compression",
        ),
        pytest.param(both(packed(), 6, b"\1\0"), "its member 'a.txt' is encrypted", id="encrypted"),
        pytest.param(put(packed(), LISTED, 8, b"\x40\0"), "strong encryption", id="strongly"),
        pytest.param(put(packed(), LISTED, 8, b"\x20\0"), "patched data", id="patched"),
        pytest.param(put(packed(), LISTED, 6, b"\xff\0"), "zip file version", id="version"),
        pytest.param(put(packed(), LOCAL, 8, b"\x08\0"), "header and the archive's", id="method"),
        pytest.param(put(packed(), LOCAL, 14, b"\0\0\0\0"), "header and the archive's", id="sums"),
        pytest.param(put(packed(), LOCAL, 30, b"z"), "differ", id="name-of-another"),
        pytest.param(both(packed(), 14, b"\0\0\0\0"), "damaged: Bad CRC-32", id="checksum"),
        pytest.param(both(packed(), 18, b"\5\0\0\0"), "stored as 5", id="stored-otherwise"),
        pytest.param(put(packed(), LISTED, 42, b"\1\0"), "damaged", id="place"),
        pytest.param(
            put(packed(), LISTED, 42, b"\0\0", last=True), "overlaps what follows", id="overlap"
        ),
        pytest.param(
            put(packed(), LISTED, 42, b"\xff\xff", last=True), "overlaps", id="beyond-the-list"
        ),
        pytest.param(put(packed(), LOCAL, 28, b"\xff\xff"), "overlaps", id="long-extra"),
        pytest.param(put(packed(), LISTED, 30, b"\xff\xff"), "damaged", id="long-extra-listed"),
        pytest.param(
            both(packed(), 6, b"\0\x08").replace(b"a.txt", b"\xff.txt"),
            "can't decode byte",
            id="name-no-text",
        ),
        pytest.param(put(packed(zipfile.ZIP_DEFLATED), b"a.txt", 9, b"\xff" * 9), "damaged: Error",
                     id="stream"),
        pytest.param(
            both(packed(zipfile.ZIP_DEFLATED), 22, struct.pack("<I", len(TEXT) + 9)),
            "damaged: it ends 9 bytes early",
            id="longer-than-it-is",
        ),
    ],
)  # fmt: skip
def test_damage_is_said(refused: Callable[[bytes], str], data: bytes, words: str) -> None:
    assert words in refused(data)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("../a",), "lies outside the archive"),
        (("/a",), "lies outside the archive"),
        (("\\a",), "lies outside the archive"),
        (("a\\..\\..\\b",), "lies outside the archive"),
        (("C:\\a",), "lies outside the archive"),
        (("a", "./a"), "has two members './a'"),
        (("a/b", "a\\b"), "has two members 'a\\\\b'"),
        (("a", "a/b"), "'a' is a file and a folder"),
        (("a/b", "a"), "'a' is a file and a folder"),
        ((".",), "has no name of a file"),
        (("a" * 300,), "the name of a member has 300 bytes"),
        (("a/" * 2000 + "b",), "the name of a member has 2,001 bytes"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else "",
)
def test_names_that_no_folder_could_hold(
    refused: Callable[[bytes], str], names: tuple[str, ...], words: str
) -> None:
    assert words in refused(named(*names))


def test_a_name_with_a_zero_in_it(refused: Callable[[bytes], str]) -> None:
    assert "'aXtxt'".replace("X", "\\x00") in refused(named("aXtxt").replace(b"aXt", b"a\0t"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path, refused: Callable[[bytes], str]) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert refused(file.getvalue()) == "it has two members 'a'"


def test_a_link_is_refused(refused: Callable[[bytes], str]) -> None:
    file, link = io.BytesIO(), zipfile.ZipInfo("a")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "lies outside the archive" in refused(file.getvalue())


def test_bombs_of_one_member_and_of_many(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[bytes], str]
) -> None:
    monkeypatch.setattr(archives, "_SLACK_BYTES", 1 << 20)
    one = packed(zipfile.ZIP_DEFLATED, a=bytes(4 << 20), b=b"x")
    assert "its member 'a' would unpack from 4,0" in refused(one)
    many = packed(zipfile.ZIP_DEFLATED, **{str(n): bytes(200_000) for n in range(20)})
    assert "would unpack from 2" in refused(many)


def test_a_bomb_is_no_bomb_where_that_ratio_is_usual(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(packed(zipfile.ZIP_DEFLATED, a=bytes(100 << 20)))
    with pytest.raises(UnsafeArchiveError, match="would unpack"):
        Archive(path)
    with Archive(path, ratio=archives.DEFLATE_LIMIT) as archive:
        assert archive.size_bytes("a") == 100 << 20


def test_a_member_that_is_missing_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed())
    with Archive(path) as archive:
        with pytest.raises(ArchiveError, match=r"a\.zip: it has no c\.txt"):
            archive.read("c.txt")
        with pytest.raises(ArchiveError, match="6,000 bytes; at most 10 are read"):
            archive.read("a.txt", most_bytes=10)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is a folder"):
        Archive(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(packed())
    with Archive(path) as archive, pytest.raises(StorageError, match="unpacking to") as caught:
        archive.unpack(path, wanted=lambda name: True)
    assert "TMPDIR" in caught.value.hint


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, compression: int) -> None:
    data, path = packed(compression), tmp_path / "a.zip"
    draw = random.Random(1)
    for _ in range(300):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :])
        try:
            with Archive(path) as archive:
                archive.check()
                assert archive.read("a.txt") == TEXT
                assert archive.read("b.txt") == b"short"
        except ArchiveError as error:
            assert str(path) in str(error)
