from __future__ import annotations

import io
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, features

from cnnfeat.data.decode import MAX_PIXELS, decode_image, is_image, prepare_pillow
from cnnfeat.errors import ImageError


@pytest.fixture(autouse=True)
def prepared() -> None:
    prepare_pillow(MAX_PIXELS)


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    """Says how many bytes were allocated at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.fixture
def rgb(rng) -> np.ndarray:
    return rng.integers(0, 256, (9, 7, 3), np.uint8)


def saved(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path, rgb, ending):
    path = saved(Image.fromarray(rgb), tmp_path / f"a.{ending}", lossless=True)
    np.testing.assert_array_equal(decode_image(path), rgb)


def test_jpeg_is_what_pillow_makes_of_it(tmp_path, rgb):
    path = saved(Image.fromarray(rgb), tmp_path / "a.jpg", quality=95)
    np.testing.assert_array_equal(decode_image(path), np.asarray(Image.open(path)))


def test_grey_has_one_channel(tmp_path, rgb):
    path = saved(Image.fromarray(rgb[..., 0]), tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(path), rgb[..., :1])


def test_one_bit_is_black_and_white(tmp_path, rgb):
    bits = rgb[..., 0] > 127
    path = saved(Image.fromarray(bits), tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(path)[..., 0], np.where(bits, 255, 0))


def test_palettes_become_rgb(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 0])
    for ending in ("png", "gif", "bmp"):
        path = saved(image, tmp_path / f"a.{ending}")
        expected = [[[10, 20, 30], [200, 100, 50], [10, 20, 30]]]
        np.testing.assert_array_equal(decode_image(path), expected)


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "a.png", transparency=1)
    np.testing.assert_array_equal(decode_image(path), [[[10, 20, 30], [255, 255, 255]]])


def test_opacity_is_laid_over_white(tmp_path):
    pixels = np.array([[[0, 100, 200, 255], [0, 100, 200, 0], [0, 100, 200, 51]]], np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png")
    expected = np.array([[[0, 100, 200], [255, 255, 255], [204, 224, 244]]])
    assert np.abs(decode_image(path).astype(int) - expected).max() <= 1
    grey = np.array([[[0, 255], [0, 0], [100, 51]]], np.uint8)
    path = saved(Image.fromarray(grey, "LA"), tmp_path / "b.png")
    assert np.abs(decode_image(path).astype(int) - [[[0], [255], [224]]]).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, rng, ending):
    deep = rng.integers(0, 65_536, (5, 4)).astype(np.uint16)
    path = saved(Image.fromarray(deep), tmp_path / f"a.{ending}")
    pixels = decode_image(path)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels[..., 0], deep)


def test_big_endian_sixteen_bit_tiff(tmp_path):
    strip = struct.pack(">4H", 1, 256, 40_000, 65_535)
    tags = [(256, 2), (257, 2), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    entries += struct.pack(">HHII", 279, 4, 1, 8)
    header = b"MM\0*" + struct.pack(">I", 16)
    path = tmp_path / "a.tif"
    path.write_bytes(header + strip + struct.pack(">H", 9) + entries + bytes(4))
    assert decode_image(path)[..., 0].tolist() == [[1, 256], [40_000, 65_535]]


def test_float_tiff_is_float32(tmp_path, rng):
    values = rng.random((4, 3)).astype(np.float32)
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    np.testing.assert_array_equal(decode_image(path)[..., 0], values)


def test_32_bit_integers_must_fit_16(tmp_path):
    path = saved(Image.fromarray(np.array([[0, 65_535]], np.int32)), tmp_path / "a.tiff")
    assert decode_image(path)[..., 0].tolist() == [[0, 65_535]]
    path = saved(Image.fromarray(np.array([[0, 65_536]], np.int32)), tmp_path / "b.tiff")
    with pytest.raises(ImageError, match=r"b\.tiff: 32-bit pixels from 0 to 65536"):
        decode_image(path)


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # pure red
    for ending in ("tiff", "jpg"):
        pixels = decode_image(saved(cmyk, tmp_path / f"a.{ending}"))
        assert np.abs(pixels[4, 4].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture(tmp_path, orientation, ending):
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {  # how a camera that is held so stores the picture above
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.transpose(1, 0, 2),
        6: np.rot90(corners, 1),
        7: corners[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(corners, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(ending, {})
    path = saved(
        Image.fromarray(np.ascontiguousarray(stored)),
        tmp_path / f"a.{ending}",
        exif=exif,
        **options,
    )
    pixels = decode_image(path)
    assert pixels.shape == (32, 48, 3)
    for y, x in ((5, 5), (5, 40), (25, 5), (25, 40)):
        assert np.abs(pixels[y, x].astype(int) - corners[y, x]).max() < 12


def test_avif_is_what_pillow_makes_of_it(tmp_path, rng):
    if not features.check("avif"):
        pytest.skip("this build of Pillow has no AVIF")
    smooth = np.add.outer(np.arange(32) * 7, np.arange(48) * 5).clip(0, 255).astype(np.uint8)
    path = saved(Image.fromarray(smooth).convert("RGB"), tmp_path / "a", format="AVIF", quality=95)
    assert is_image(path)
    pixels = decode_image(path)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))
    assert np.abs(pixels[..., 0].astype(int) - smooth).max() < 8


def test_avif_that_pillow_lacks_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.avif"
    path.write_bytes(iso_header(b"avif", b"mif1"))
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ImageError, match=r"a\.avif: an AVIF picture, which this build of Pillow"):
        decode_image(path)


def iso_header(*brands: bytes) -> bytes:
    """The first box of a file of ISO 14496-12: its major brand, a version, its other brands."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", len(body) + 4) + body + bytes(200)


@pytest.mark.parametrize("brands", [(b"heic",), (b"mif1", b"heic"), (b"msf1", b"hevc")])
def test_heic_is_known_by_its_content_and_the_extra_is_named(tmp_path, brands, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo"
    path.write_bytes(iso_header(*brands))
    assert is_image(path)
    with pytest.raises(ImageError, match="photo: a HEIC picture needs pillow-heif") as caught:
        decode_image(path)
    assert caught.value.hint == "pip install 'cnnfeat[heic]'"


def test_films_are_no_pictures(tmp_path):
    (tmp_path / "film").write_bytes(iso_header(b"isom", b"mp42"))
    assert not is_image(tmp_path / "film")


def test_heic_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = np.add.outer(np.arange(64) * 3, np.arange(48)).astype(np.uint8)
    heif = pillow_heif.from_pillow(Image.fromarray(smooth).convert("RGB"))
    heif.save(tmp_path / "a.heic", quality=95)
    pixels = decode_image(tmp_path / "a.heic")
    assert pixels.shape == (64, 48, 3)
    assert np.abs(pixels[..., 0].astype(int) - smooth).max() < 12


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_long_texts_of_a_png_do_not_matter(tmp_path, rgb, kind, behind):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    plain = buffer.getvalue()
    text = zlib.compress(b"<x/>" * 800_000)
    body = {
        b"zTXt": b"XML\0\0" + text,
        b"iTXt": b"XML\0\1\0\0\0" + text,
        b"iCCP": b"profile\0\0" + text,
        b"tEXt": b"XML\0" + b"<x/>" * 800_000,
    }[kind]
    chunk = struct.pack(">I", len(body)) + kind + body
    chunk += struct.pack(">I", zlib.crc32(kind + body))
    place = len(plain) - 12 if behind else 33  # before IEND, or right behind IHDR
    (tmp_path / "a.png").write_bytes(plain[:place] + chunk + plain[place:])
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), rgb)


def test_damaged_exif_does_not_matter(tmp_path, rgb):
    path = saved(Image.fromarray(rgb), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert decode_image(path).shape == (9, 7, 3)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for ending in ("gif", "webp"):
        path = tmp_path / f"a.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(path)[0, 0].tolist() == [255, 0, 0]


def test_the_ending_does_not_matter(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "really.jpg", format="PNG")
    np.testing.assert_array_equal(decode_image(tmp_path / "really.jpg"), rgb)


def png_header(width: int, height: int) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in (ihdr, idat)
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (15_000, 15_000)])
def test_an_absurd_size_is_refused_from_the_header(tmp_path, size, traced):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(ImageError, match=r"bomb\.png: .*[0-9] pixels.*allowed"):
        decode_image(path)
    assert traced() < 5_000_000


def test_max_pixels_is_told_with_both_numbers(tmp_path, rgb):
    path = saved(Image.fromarray(rgb), tmp_path / "a.png")
    decode_image(path, max_pixels=63)
    with pytest.raises(ImageError, match="7 × 9 is 63 pixels; 62 are allowed") as caught:
        decode_image(path, max_pixels=62)
    assert "--max-pixels" in caught.value.hint


def test_max_pixels_may_be_more_than_pillow_would_allow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    path = saved(Image.new("L", (10, 10)), tmp_path / "a.png")
    prepare_pillow(30)
    with pytest.raises(ImageError, match="more than the 30 pixels allowed"):
        decode_image(path, max_pixels=30)
    prepare_pillow(100)
    assert decode_image(path, max_pixels=100).shape == (10, 10, 1)


def test_files_that_are_no_pictures_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    for name, message in {
        "pipe.png": "is a pipe, not a regular file",
        "loop.png": "Too many levels of symbolic links",
        "empty.png": "is empty",
        "text.png": "not a picture, or damaged at its start",
        "folder.png": "is a folder, not a regular file",
        "device.png": "is a device, not a regular file",
        "gone.png": "No such file",
        "missing.png": "No such file",
    }.items():
        with pytest.raises(ImageError, match=message) as caught:
            decode_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path, rgb, monkeypatch):
    path = saved(Image.fromarray(rgb), tmp_path / "a.png")

    def refuse(*args: object) -> int:  # to root nothing is forbidden
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ImageError, match=r"a\.png: can't be read: Permission denied"):
            decode_image(path)


def test_postscript_is_not_interpreted(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not a picture"):
        decode_image(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_a_truncated_picture_is_an_error(tmp_path, rng, ending):
    whole = saved(
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), tmp_path / f"a.{ending}"
    ).read_bytes()
    path = tmp_path / f"cut.{ending}"
    for keep in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(ImageError, match=f"cut.{ending}"):
            decode_image(path)
