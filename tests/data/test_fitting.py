from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageOps

from cnnfeat.data.fitting import fit_channels, fit_depth, fit_to_target
from cnnfeat.errors import DataError
from cnnfeat.records import ImageTarget


def triangle_weights(n_from: int, n_to: int, *, crop: int = 0) -> np.ndarray:
    """Bilinear weights with antialiasing, (n_to, n_from): a triangle as wide as the scale."""
    scale = (n_from - 2 * crop) / n_to
    support = max(scale, 1.0)
    centers = crop + (np.arange(n_to) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(n_from)[np.newaxis] - centers[:, np.newaxis]) / support
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resized_by_hand(
    images: np.ndarray, size: tuple[int, int], *, crop: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """With so many rows and columns cut off at both ends; pixels beyond still weigh in."""
    rows = triangle_weights(images.shape[1], size[0], crop=crop[0])
    columns = triangle_weights(images.shape[2], size[1], crop=crop[1])
    return np.einsum("yh,nhwc,xw->nyxc", rows, images.astype(np.float64), columns)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(7, 9), (28, 28), (40, 13), (20, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 1), ("uint16", 1), ("float32", 1e-5)])
def test_resizing_is_bilinear_with_antialiasing(rng, channels, size, dtype, tolerance):
    high = {"uint8": 255, "uint16": 65_535, "float32": 1}[dtype]
    images = (rng.random((3, 20, 16, channels)) * high).astype(dtype)
    fitted = fit_to_target(images, ImageTarget(size=size))
    assert fitted.dtype == images.dtype
    assert fitted.shape == (3, *size, channels)
    difference = np.abs(fitted.astype(np.float64) - resized_by_hand(images, size))
    assert difference.max() <= tolerance


def test_a_picture_of_the_right_size_is_left_alone(rng):
    images = rng.integers(0, 256, (2, 6, 5, 3), np.uint8)
    assert fit_to_target(images, ImageTarget(size=(6, 5), channels=3)) is images
    assert fit_to_target(images, None) is images


def test_grey_becomes_rgb_by_repeating(rng):
    grey = rng.integers(0, 256, (2, 3, 4, 1), np.uint8)
    colour = fit_to_target(grey, ImageTarget(channels=3))
    for channel in range(3):
        np.testing.assert_array_equal(colour[..., channel], grey[..., 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb_becomes_grey_by_luma(rng, dtype):
    colour = rng.integers(0, np.iinfo(dtype).max + 1, (2, 3, 4, 3)).astype(dtype)
    grey = fit_channels(colour, 1)
    expected = 0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]
    assert grey.dtype == colour.dtype
    assert np.abs(grey[..., 0] - expected).max() <= 0.51


def test_luma_agrees_with_pillow(rng):
    colour = rng.integers(0, 256, (1, 50, 40, 3), np.uint8)
    pillow = np.asarray(Image.fromarray(colour[0]).convert("L")).astype(int)
    assert np.abs(fit_channels(colour, 1)[0, :, :, 0] - pillow).max() <= 1


def test_grey_stored_as_rgb_comes_back_exactly(rng):
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(fit_channels(fit_channels(grey, 3), 1), grey)


def test_opacity_is_laid_over_white():
    pixels = np.array([[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]], np.uint8)
    rgb = fit_channels(pixels.reshape(1, 1, 3, 4), 3)
    np.testing.assert_array_equal(rgb[0, 0], [[10, 20, 30], [255, 255, 255], [204, 224, 244]])
    float_rgb = fit_channels(np.array([[[[0.0, 0.5, 1.0, 0.25]]]], np.float32), 3)
    np.testing.assert_allclose(float_rgb[0, 0, 0], [0.75, 0.875, 1.0], atol=1e-6)


def test_channels_that_cannot_be_had_are_refused(rng):
    with pytest.raises(DataError, match="images of 5 channels can't become images of 3"):
        fit_to_target(rng.random((1, 2, 2, 5)).astype(np.float32), ImageTarget(channels=3))
    with pytest.raises(DataError, match="images of 3 channels can't become images of 2"):
        fit_to_target(rng.random((1, 2, 2, 3)).astype(np.float32), ImageTarget(channels=2))


def test_depth_changes_keep_black_and_white():
    shallow = np.array([0, 1, 128, 255], np.uint8).reshape(1, 2, 2, 1)
    deep = fit_depth(shallow, np.dtype(np.uint16))
    assert deep.ravel().tolist() == [0, 257, 128 * 257, 65_535]
    np.testing.assert_array_equal(fit_depth(deep, np.dtype(np.uint8)), shallow)
    with pytest.raises(DataError, match="uint8 pixels among float32 ones"):
        fit_depth(shallow, np.dtype(np.float32))


SIZES = [(7, 9), (28, 28), (40, 13), (20, 3), (3, 20), (1, 1)]


def pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(20, 16), (9, 30), (2, 50)])
def test_crop_and_pad_are_pillow_s(rng, channels, size, shape):
    images = rng.integers(0, 256, (2, *shape, channels), np.uint8)
    turned = (size[1], size[0])
    how = Image.Resampling.BILINEAR
    expected = {
        "stretch": lambda image: pillow(image).resize(turned, how),
        "crop": lambda image: ImageOps.fit(pillow(image), turned, how),
        "pad": lambda image: ImageOps.pad(pillow(image), turned, how, color=0),
    }
    for fit, make in expected.items():
        fitted = fit_to_target(images, ImageTarget(size, fit=fit))
        assert fitted.shape == (2, *size, channels)
        if fit == "pad" and round(shape[0] / shape[1] * size[1]) == 0:
            continue  # Pillow makes a side of no pixel
        for image, wanted in zip(fitted, images, strict=True):
            picture = np.asarray(make(wanted)).reshape(image.shape)
            np.testing.assert_array_equal(image, picture, err_msg=fit)


@pytest.mark.parametrize(("dtype", "tolerance"), [("uint16", 1), ("float32", 1e-5)])
def test_crop_and_pad_of_other_types_by_hand(rng, dtype, tolerance):
    """Of 20×16 the middle 16×16 is cropped; 8×8 has room for 8×6 of the whole."""
    high = {"uint16": 65_535, "float32": 1}[dtype]
    images = (rng.random((3, 20, 16, 2)) * high).astype(dtype)
    cropped = fit_to_target(images, ImageTarget((8, 8), fit="crop"))
    expected = resized_by_hand(images, (8, 8), crop=(2, 0))
    assert np.abs(cropped.astype(np.float64) - expected).max() <= tolerance
    padded = fit_to_target(images, ImageTarget((8, 8), fit="pad"))
    expected = np.zeros((3, 8, 8, 2))
    expected[:, :, 1:7] = resized_by_hand(images, (8, 6))
    assert padded.dtype == cropped.dtype == images.dtype
    assert np.abs(padded.astype(np.float64) - expected).max() <= tolerance


def test_a_line_of_one_pixel_is_not_lost(rng):
    line = np.full((1, 1, 1000, 1), 200, np.uint8)
    padded = fit_to_target(line, ImageTarget((8, 8), fit="pad"))[0, :, :, 0]
    np.testing.assert_array_equal(padded.max(axis=1), [0, 0, 0, 0, 200, 0, 0, 0])


def test_light_becomes_dark():
    for dtype, pixels, wanted in (
        ("uint8", [0, 1, 100, 255], [255, 254, 155, 0]),
        ("uint16", [0, 1, 30_000, 65_535], [65_535, 65_534, 35_535, 0]),
        ("float32", [0, 0.25, 0.5, 1], [1, 0.75, 0.5, 0]),
    ):
        images = np.array(pixels, dtype).reshape(1, 2, 2, 1)
        turned = fit_to_target(images, ImageTarget(invert=True))
        assert turned.dtype == images.dtype
        assert turned.ravel().tolist() == wanted


def test_what_is_padded_is_black_inverted_or_not():
    white = np.full((1, 4, 8, 1), 255, np.uint8)
    padded = fit_to_target(white, ImageTarget((8, 8), fit="pad"))[0, :, 0, 0]
    assert padded.tolist() == [0, 0, 255, 255, 255, 255, 0, 0]
    turned = fit_to_target(255 - white, ImageTarget((8, 8), fit="pad", invert=True))
    assert turned[0, :, 0, 0].tolist() == padded.tolist()


@pytest.mark.parametrize("target", [ImageTarget(invert=True), ImageTarget(channels=3)])
def test_floats_without_a_white_are_refused(target):
    images = np.full((1, 4, 4, 4), 200, np.float32)
    with pytest.raises(DataError, match="from 200 to 200 have no white"):
        fit_to_target(images, target)
    assert fit_to_target(images.astype(np.uint8), target).shape == (1, 4, 4, 3)
    images[0, 0, 0, 0] = np.nan  # said elsewhere, with its row
    assert np.isnan(fit_to_target(images / 255, target)).sum() >= 1


def test_opacity_is_laid_over_white_before_all_else():
    clear = np.zeros((1, 4, 8, 2), np.uint8)  # black, fully transparent
    target = ImageTarget((8, 8), 3, "pad")
    padded = fit_to_target(clear, target)[0, :, 0]
    assert padded.tolist() == [[0] * 3] * 2 + [[255] * 3] * 4 + [[0] * 3] * 2
    assert not fit_to_target(clear, dataclasses.replace(target, invert=True)).any()
    rgba = np.zeros((1, 4, 4, 4), np.uint8)
    assert fit_to_target(rgba, ImageTarget(invert=True)).shape == (1, 4, 4, 3)
    assert ImageTarget(invert=True).shape_of((4, 4, 4)) == (4, 4, 3)


def test_what_an_image_becomes_is_known_before():
    shape = (20, 30, 3)
    assert ImageTarget().shape_of(shape) == shape
    assert ImageTarget((8, 9)).shape_of(shape) == (8, 9, 3)
    assert ImageTarget((8, 9), 1).shape_of(shape) == (8, 9, 1)
    assert ImageTarget(channels=1, invert=True).shape_of(shape) == (20, 30, 1)


def test_a_target_over_another_fills_in_what_it_leaves_open():
    first = ImageTarget((8, 8), 1, "crop", invert=True)
    assert ImageTarget().over(first) == first
    assert ImageTarget((4, 4), 3, "pad").over(first) == ImageTarget((4, 4), 3, "pad", invert=True)
    assert ImageTarget(fit="pad").over(ImageTarget((8, 8))) == ImageTarget((8, 8), fit="pad")
