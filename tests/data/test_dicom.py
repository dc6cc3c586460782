from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnfeat.data import open_source
from cnnfeat.data.decode import decode_image, is_image
from cnnfeat.data.dicom import grey_levels
from cnnfeat.errors import DataError, ImageError


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """One element of a DICOM file, explicit and little-endian (PS3.5, section 7.1.2)."""
    value += b"\0" * (len(value) % 2) if kind in (b"UI", b"OW") else b" " * (len(value) % 2)
    length = struct.pack("<HI" if kind == b"OW" else "<H", *([0] * (kind == b"OW")), len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def dicom(stored: np.ndarray, *, photometric: bytes = b"MONOCHROME2", **numbers: bytes) -> bytes:
    """A DICOM file of one picture, written by the standard."""
    bits = stored.dtype.itemsize * 8
    image = {
        0x0002: struct.pack("<H", 1 if stored.ndim == 2 else 3),
        0x0010: struct.pack("<H", stored.shape[0]),
        0x0011: struct.pack("<H", stored.shape[1]),
        0x0100: struct.pack("<H", bits),
        0x0101: struct.pack("<H", int(numbers.pop("bits", b"%d" % bits))),
        0x0102: struct.pack("<H", bits - 1),
        0x0103: struct.pack("<H", stored.dtype.kind == "i"),
    }
    if stored.ndim == 3:
        image[0x0006] = struct.pack("<H", 0)
    texts = {0x0004: (b"CS", photometric)}
    places = {"center": 0x1050, "width": 0x1051, "intercept": 0x1052, "slope": 0x1053}
    texts |= {places[name]: (b"DS", value) for name, value in numbers.items()}
    elements = {place: (b"US", value) for place, value in image.items()} | texts
    body = b"".join(element(0x0028, place, *elements[place]) for place in sorted(elements))
    syntax = element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1")
    meta = element(0x0002, 0x0000, b"UL", struct.pack("<I", len(syntax))) + syntax
    return bytes(128) + b"DICM" + meta + body + element(0x7FE0, 0x0010, b"OW", stored.tobytes())


@pytest.fixture
def scan(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 4096, (6, 4), np.uint16)


def test_levels_of_twelve_bits_fill_sixteen():
    stored = np.array([[0, 4095, 2048]], np.uint16)
    assert grey_levels(stored, bits=12).tolist() == [[0, 65_535, 32_776]]
    assert grey_levels(stored, bits=12, inverted=True).tolist() == [[65_535, 0, 32_759]]


def test_eight_bits_stay_what_they_are(rng):
    stored = rng.integers(0, 256, (5, 4), np.uint8)
    levels = grey_levels(stored, bits=8)
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, stored)


def test_a_window_is_that_of_the_standard():
    """C.11.2.1.2.1: x <= c - 0.5 - (w - 1) / 2 is black, x > c - 0.5 + (w - 1) / 2 is white."""
    stored = np.array([[-1024, -10, 40, 41, 89, 90, 2000]], np.int16)
    levels = grey_levels(stored, bits=16, slope=1, intercept=0, window=(40.0, 100.0))
    expected = [
        0 if x <= 39.5 - 49.5 else 65_535 if x > 39.5 + 49.5 else ((x - 39.5) / 99 + 0.5) * 65_535
        for x in stored[0].tolist()
    ]
    np.testing.assert_allclose(levels[0], expected, atol=0.5)
    rescaled = grey_levels(
        (stored + 1024).astype(np.uint16), bits=16, intercept=-1024, window=(40.0, 100.0)
    )
    np.testing.assert_array_equal(rescaled, levels)


def test_floats_stay_floats():
    assert grey_levels(np.array([[0.5, -3.0]]), bits=32).tolist() == [[0.5, -3.0]]


def test_dicom_is_known_by_its_content_and_the_extra_is_named(tmp_path: Path, scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    path = tmp_path / "scan"
    path.write_bytes(dicom(scan))
    assert is_image(path)
    with pytest.raises(ImageError, match="scan: a DICOM picture needs pydicom") as caught:
        decode_image(path)
    assert caught.value.hint == "pip install 'cnnfeat[dicom]'"
    with pytest.raises(DataError, match="needs pydicom") as refused:
        open_source(str(tmp_path))
    assert refused.value.hint == "pip install 'cnnfeat[dicom]'"


def test_an_ending_of_dicom_claims_to_be_a_picture(tmp_path: Path):
    (tmp_path / "scan.dcm").write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"scan\.dcm: not a picture"):
        open_source(str(tmp_path))


def test_pydicom_reads_what_was_written(tmp_path: Path, scan, rng):
    pytest.importorskip("pydicom")
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(scan, bits=b"12"))
    np.testing.assert_array_equal(
        decode_image(path)[..., 0], np.rint(scan / 4095 * 65_535).astype(np.uint16)
    )
    path.write_bytes(dicom(scan, bits=b"12", center=b"2048", width=b"1025"))
    shares = ((scan - 1535.5) / 1024).clip(0, 1)
    np.testing.assert_array_equal(decode_image(path)[..., 0], np.rint(shares * 65_535))
    colours = rng.integers(0, 256, (6, 4, 3), np.uint8)
    path.write_bytes(dicom(colours, photometric=b"RGB"))
    np.testing.assert_array_equal(decode_image(path), colours)
    with pytest.raises(ImageError, match="4 × 6 is 24 pixels; 23 are allowed"):
        decode_image(path, max_pixels=23)
