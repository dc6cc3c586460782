from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cnnfeat.data.fitting import fit_channels, fit_depth, fit_to_target
from cnnfeat.errors import DataError
from cnnfeat.records import ImageTarget


def triangle_weights(n_from: int, n_to: int) -> np.ndarray:
    """Bilinear weights with antialiasing, (n_to, n_from): a triangle as wide as the scale."""
    scale = n_from / n_to
    support = max(scale, 1.0)
    centers = (np.arange(n_to) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(n_from)[np.newaxis] - centers[:, np.newaxis]) / support
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resized_by_hand(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows = triangle_weights(images.shape[1], size[0])
    columns = triangle_weights(images.shape[2], size[1])
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
