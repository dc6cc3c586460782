"""Addresses: what is one, and what is kept out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnfeat.address import Address, place_of, scrubbed
from cnnfeat.errors import UsageError


@pytest.mark.parametrize("text", ["photos", "/data/photos", "train-{00..09}.tar", "a:b", "x.h5:/y"])
def test_what_is_no_address_is_a_path(text):
    assert place_of(text) == Path(text)


def test_a_file_by_its_address_is_a_path():
    assert place_of("file:///data/my photos") == Path("/data/my photos")
    with pytest.raises(UsageError, match=r"three slashes: file:///folder/name"):
        place_of("file://data/photos")


@pytest.mark.parametrize(
    "text", ["s3://b/photos/train", "s3://b/photos/train/", "S3://b/photos/train"]
)
def test_an_address_has_a_bucket_and_a_key(text):
    address = place_of(text)
    assert isinstance(address, Address)
    assert (address.protocol, address.path) == ("s3", "b/photos/train")
    assert (address.name, str(address.parent)) == ("train", "s3://b/photos")
    assert str(address / "1.png") == "s3://b/photos/train/1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://example.org/1.png", "nothing is read from web addresses"),
        ("https://me:secret@example.org/1.png?token=secret", "nothing is read from web addresses"),
        ("s4://bucket/x", r"no address known here; s3://, gs://, memory://, file:// are"),
        ("s3://key:secret@bucket/x", "says where something is, and nothing of who asks"),
        ("s3://key:sec/ret+secret@bucket/x", "nothing of who asks"),
        ("s3://bucket/x?X-Amz-Signature=secret", "says where something is"),
        ("s3://bucket/../x", r"an address has no folders \. and \.\."),
        ("s3://bucket//x", "has one / between two names"),
        ("s3://bucket/x//y.tar", "has one / between two names"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/\n", "names no bucket"),
    ],
)
def test_what_else_looks_like_one_is_refused_without_secrets(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        place_of(text)
    assert not any(part in f"{caught.value} {caught.value.hint}" for part in ("secret", "sec/ret"))


def test_web_addresses_are_to_be_downloaded_first():
    with pytest.raises(UsageError) as caught:
        place_of("https://example.org/1.png")
    assert "download it first" in caught.value.hint and "wget -i" in caught.value.hint


def test_secrets_are_taken_out_of_what_others_say():
    said = 'no answer from "http://me:secret@host:9000/b?list-type=2&prefix=x": refused'
    assert scrubbed(said) == 'no answer from "http://host:9000/b": refused'
    assert scrubbed("s3://key:sec/ret@bucket/x: refused") == "s3://bucket/x: refused"
    assert scrubbed("http://host:9000/b/x: refused") == "http://host:9000/b/x: refused"


def test_a_path_within_a_bucket_stays_in_it():
    folder = Address("s3", "bucket/lists")
    assert str(folder.join("../photos/1.png")) == "s3://bucket/photos/1.png"
    for path in ("../../other/1.png", "/etc/passwd", "../.."):
        with pytest.raises(UsageError, match="no path from s3://bucket/lists, within its bucket"):
            folder.join(path)
