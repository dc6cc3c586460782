from __future__ import annotations

import os

import pytest

from cnnfeat.data import open_source
from cnnfeat.errors import DataError, UsageError


def test_an_unknown_name_is_told_with_those_allowed_and_near_ones():
    with pytest.raises(UsageError) as caught:
        open_source("minst")
    assert "no data source 'minst'" in str(caught.value)
    for allowed in ("auto, mnist, fashion-mnist, digits", "IDX", ".npz", "images.h5:/x", "CSV"):
        assert allowed in str(caught.value)
    assert caught.value.hint == "did you mean 'mnist'?"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"hello", b"\0\1\2\3", b"%PDF-1.7", b"one line\nmore\n"])
def test_a_file_of_no_known_kind_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.csv: no kind of data known here; allowed are"):
        open_source(str(tmp_path / "x.csv"))


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
