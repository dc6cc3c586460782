"""Which images are each other's opposite, by numbers worked out beside the code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from cnnfeat.brightness import Brightness, measure, opposites_warning
from cnnfeat.documents import take_up


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    X, _ = load_digits(return_X_y=True)
    return (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8, 1)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two photographs whole, and cut into pieces of 107×128."""
    whole = [load_sample_image(name)[np.newaxis] for name in ("china.jpg", "flower.jpg")]
    pieces = [
        image[:, top : top + 107, left : left + 128]
        for image in whole
        for top in range(0, 320, 107)
        for left in range(0, 512, 128)
    ]
    return [*whole, *pieces]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_mean_and_spread_are_numpy_s(rng, dtype):
    full = {"uint8": 255, "uint16": 65_535, "float32": 1}[dtype]
    images = (rng.random((70, 9, 11, 3)) ** 2 * full).astype(dtype)
    pixels = images.astype(np.float64) / full
    found = measure([images[:20], images[20:]])
    assert found.mean == pytest.approx(pixels.mean())
    assert found.spread == pytest.approx(pixels.std())
    red, green, blue = np.moveaxis(pixels, 3, 0)
    apart = np.hypot((red - green).std(), (blue - green).std())
    assert found.colour == pytest.approx(apart)
    assert measure([images[..., :1]]).colour == 0
    counts, _ = np.histogram(pixels, 16, (0, 1))
    np.testing.assert_allclose(found.histogram, counts / pixels.size)
    assert take_up(Brightness, json.loads(json.dumps(found.to_json()))) == found


def test_pixels_that_have_no_white_are_not_measured(rng):
    assert measure([rng.normal(size=(3, 4, 4, 1)).astype(np.float32)]) is None
    assert measure([np.full((1, 2, 2, 1), np.nan, np.float32)]) is None
    assert measure([]) is None
    assert measure([np.empty((0, 4, 4, 1), np.uint8)]) is None


def test_nothing_is_said_where_nothing_is_known(digits):
    assert opposites_warning([255 - digits], None, inverted=False) == ""


def opposite(given: np.ndarray, trained: np.ndarray) -> bool:
    return measure([given]).is_opposite_of(measure([trained]))


def test_digits_and_their_negatives_are_opposites(digits):
    assert opposite(255 - digits, digits)
    assert opposite(digits, 255 - digits)
    assert not opposite(digits[:100], digits)
    assert not opposite(255 - digits[:100], 255 - digits)


def test_every_single_digit_is_on_the_right_side(digits):
    trained = measure([digits])
    images = digits[:600, np.newaxis]
    assert not any(measure([image]).is_opposite_of(trained) for image in images)
    told = [measure([255 - image]).is_opposite_of(trained) for image in images]
    assert np.mean(told) > 0.8


def test_grey_ink_on_dim_paper_is_the_opposite_of_digits(digits, rng):
    """As a telephone sees them: paper at 0.65, uneven, ink at 0.2, noise."""
    strokes = digits[:200].astype(np.float64) / 255 > 0.5
    paper = 0.65 + rng.normal(0, 0.03, strokes.shape) + np.linspace(-0.05, 0.05, 8)[:, None]
    ink = np.where(rng.random(strokes.shape) < 0.4, strokes, 0)  # thin strokes
    seen = (np.where(ink, 0.2, paper) * 255).astype(np.uint8)
    assert opposite(seen, digits)
    assert opposite(255 - seen, 255 - digits)


def test_photographs_are_nobody_s_opposite(digits, photos):
    for photo in photos[:2]:
        for drawings in (digits, 255 - digits):
            assert not opposite(photo, drawings)
            assert not opposite(drawings, photo)
    trained = measure(photos)
    for photo in photos:
        for given in (photo, 255 - photo, photo[..., 1:2]):
            assert not measure([given]).is_opposite_of(trained)


def test_ink_on_warm_paper_is_a_drawing_too(digits, rng):
    ink = digits.astype(np.float64) / 255
    seen = np.array([0.8, 0.75, 0.66]) * (1 - ink) + np.array([0.15, 0.15, 0.3]) * ink
    seen *= 1 + rng.normal(0, 0.03, seen.shape)
    assert opposite((seen * 255).astype(np.uint8), digits)


@pytest.mark.mnist
def test_mnist_and_digits_are_the_same_way_round(mnist_arrays, digits):
    mnist = mnist_arrays["train_images"][:2_000, ..., np.newaxis]
    assert measure([mnist_arrays["train_images"][..., np.newaxis]]).mean == pytest.approx(
        0.1307, abs=5e-5
    )  # as in every tutorial
    assert not opposite(digits, mnist)
    assert not opposite(mnist, digits)
    assert opposite(255 - mnist, digits)
    assert opposite(255 - digits, mnist)
    trained = measure([mnist])
    for image in mnist_arrays["test_images"][:300, np.newaxis, :, :, np.newaxis]:
        assert not measure([image]).is_opposite_of(trained)
        assert measure([255 - image]).is_opposite_of(trained)


def test_the_warning_names_the_way_on(digits):
    known = measure([digits])
    said = opposites_warning([255 - digits], known, inverted=False)
    assert "mostly light, the opposite" in said
    assert "were mostly dark" in said
    assert "--invert turns" in said
    assert "would not be without --invert" in opposites_warning(
        [255 - digits], known, inverted=True
    )
    assert opposites_warning([digits], known, inverted=False) == ""
