"""What is no regular file is refused before anything waits for it, whoever asked for it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.archives import is_archive
from cnnfeat.artifact import describe_file
from cnnfeat.card import read_card
from cnnfeat.configfile import load_config
from cnnfeat.documents import json_text, printable, read_document
from cnnfeat.errors import (
    CnnfeatError,
    ConfigError,
    DataError,
    FeatureFileError,
    NetworkError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from cnnfeat.features import FeatureFile, write_arrays
from cnnfeat.files import check_output, locked
from cnnfeat.prediction import is_feature_file
from cnnfeat.provenance import Provenance
from cnnfeat.regular import open_regular, read_text
from cnnfeat.result import read_result
from cnnfeat.stages import StageBook
from cnnfeat.svm import load_svm

pytestmark = pytest.mark.timeout(60)  # a pipe without a writer is waited for without end


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's name has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(before)


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a pipe"),
    "link to a pipe": (_link_to_a_pipe, "is a pipe"),
    "device without end": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "socket": (_socket, "is a socket"),
    "folder": (Path.mkdir, "is a folder"),
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic"),
}


@pytest.fixture(params=KINDS)
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A path that leads to no file, and what is said of it."""
    make, words = KINDS[request.param]
    make(tmp_path / "x.keras")
    return tmp_path / "x.keras", words


def test_what_is_no_file_is_named(irregular):
    path, words = irregular
    with pytest.raises(OSError, match=words):
        open_regular(path)


@pytest.mark.parametrize("name", ["no\0file", "half \ud800"], ids=["NUL", "half a character"])
def test_a_name_that_no_file_has_is_that_of_none(name):
    with pytest.raises(FileNotFoundError, match="no file has such a name"):
        open_regular(Path(name))


def test_a_regular_file_is_read(tmp_path: Path):
    (tmp_path / "a").write_text("schön", "utf-8")
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link") == "schön"
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b")


READERS: dict[str, tuple[Callable[[Path], object], type[CnnfeatError]]] = {
    "a configuration": (load_config, ConfigError),
    "a feature file": (FeatureFile, FeatureFileError),
    "a machine": (load_svm, FeatureFileError),
    "a result": (read_result, FeatureFileError),
    "a book of stages": (StageBook, UsageError),
    "a file of some kind": (describe_file, DataError),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_say_what_it_is(irregular, reader):
    path, words = irregular
    read, error = READERS[reader]
    with pytest.raises(error, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_card_that_is_no_file_is_said(irregular):
    path, words = irregular
    card = path.with_suffix(".json")
    path.rename(card) if words != "Too many levels of symbolic" else card.symlink_to(card.name)
    with pytest.raises(NetworkError, match=words):
        read_card(path)


def test_questions_about_a_path_are_answered(irregular):
    path, words = irregular
    assert not is_feature_file(str(path))
    for ask in (is_archive, read_document):
        with pytest.raises(OSError, match=words):
            ask(path)


def test_an_output_replaces_nothing_but_files(irregular):
    path, words = irregular
    error = StorageError if "Too many" in words else OutputExistsError
    with pytest.raises(error, match=words):
        check_output(path, overwrite=True)


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "out.lock")
    check_output(tmp_path / "out", overwrite=False)
    with pytest.raises(StorageError, match=r"out\.lock"), locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("text", ["99999999999999999999", "-1", "0", "", "one"])
def test_a_lock_file_of_no_process_does_not_block(tmp_path: Path, text: str):
    (tmp_path / "out.lock").write_text(text)
    check_output(tmp_path / "out", overwrite=False)
    with locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("what", ["journal", "partial"])
def test_a_feature_file_is_not_written_through_a_link(tmp_path: Path, what: str):
    other = tmp_path / "other"
    other.write_text("of someone else")
    (tmp_path / f"f.h5.{what}").symlink_to(other)
    if what == "partial":  # is removed, as any that nothing says anything of
        write_arrays(tmp_path / "f.h5", {"train": {"a": np.zeros((1, 1))}})
    else:
        with pytest.raises(StorageError, match="Too many levels of symbolic links"):
            write_arrays(tmp_path / "f.h5", {"train": {"a": np.zeros((1, 1))}})
    assert other.read_text() == "of someone else"


COMMANDS = {
    "train --data": ["train", "--data", "{}"],
    "train --labels": ["train", "--data", "pictures", "--labels", "{}"],
    "train --config": ["train", "--config", "{}"],
    "svm": ["svm", "{}"],
    "predict --svm": ["predict", "f.h5", "--svm", "{}"],
    "run": ["run", "{}"],
    "report": ["report", "--features", "{}"],
    "plot confusion": ["plot", "confusion", "--svm", "{}"],
    "info": ["info", "{}"],
    "verify": ["verify", "{}"],
    "export": ["export", "{}", "--to", "npz"],
    "export -o": ["export", "f.h5", "--to", "npz", "-o", "{}", "--overwrite"],
}


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("kind", ["pipe", "device without end"])
def test_commands_refuse_what_is_no_file(cnnfeat, tmp_path: Path, words: str, kind: str):
    write_arrays(tmp_path / "f.h5", {"train": {"a": np.zeros((1, 1))}})
    (tmp_path / "pictures").mkdir()
    KINDS[kind][0](tmp_path / "x.npz")
    done = cnnfeat(*(word.format("x.npz") for word in COMMANDS[words]), folder=tmp_path)
    assert done.returncode in (2, 3)
    assert re.search(rf"x\.npz:? .*{KINDS[kind][1]}, not a regular file", done.stderr)


def test_a_name_too_long_is_said(cnnfeat, tmp_path: Path):
    for words in (["info"], ["svm"], ["run"], ["train", "--data"], ["export", "--to", "npz"]):
        done = cnnfeat(*words, "n" * 300, folder=tmp_path)
        assert done.returncode in (2, 3, 5), words
        assert "File name too long" in done.stderr


def test_a_network_named_by_no_name_of_a_file_is_refused(tmp_path: Path):
    from cnnfeat.origin import recorded_network

    with pytest.raises(CnnfeatError, match=r"names 'a\\x00b', which no file can be called"):
        recorded_network(Provenance(network="a\0b"), beside=tmp_path / "f.h5")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CnnfeatError, match="loop"):
        recorded_network(Provenance(network=str(tmp_path / "loop")), beside=tmp_path / "f.h5")


def test_files_named_in_bytes_that_are_no_text(cnnfeat, tmp_path: Path, rng):
    name = os.fsdecode(b"\xff.h5")
    labels = np.arange(40) % 2
    write_arrays(
        tmp_path / name,
        {"train": {"a": rng.normal(size=(40, 2)) + labels[:, np.newaxis] * 9}},
        labels={"train": labels},
        attributes={"network": os.fsdecode(b"\xfe.keras")},
    )
    done = cnnfeat("info", name, "--json", folder=tmp_path)
    assert json.loads(done.stdout)["path"] == name
    assert json.loads(done.stdout)["facts"]["network"] == "\\xfe.keras"
    done = cnnfeat("svm", name, "--C", "1", "-o", ".", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "svm.json").read_text("utf-8"))
    assert document["features"]["path"] == "\\xff.h5"


def test_json_holds_whole_characters_alone():
    name = os.fsdecode(b"a\xff\\b\xc3\xa4")
    assert printable(name) == "a\\xff\\bä"
    assert json.loads(json_text({"name": name, name: [1]})) == {
        "name": "a\\xff\\bä",
        "a\\xff\\bä": [1],
    }
