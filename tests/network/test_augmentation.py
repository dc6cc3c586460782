"""Images varied at random: held against SciPy, Keras's own layers, and what must not change."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import map_coordinates

from cnnfeat.network.augmentation import Augmentation, split_mix
from cnnfeat.options import AugmentOptions

ALL = AugmentOptions(
    rotation=20, shift=0.1, zoom=0.2, crop=0.2, elastic=1.5, elastic_grid=5, flip="both"
)
ROWS = np.arange(6)
Shape = tuple[int, ...]


def images(shape: Shape = (6, 11, 9, 3), dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(3).random(shape)
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    return (values * top).astype(dtype)


def computed(given: np.ndarray, drawn: np.ndarray, options: AugmentOptions) -> np.ndarray:
    """Vary images by numbers that are given."""
    found = Augmentation(options).graph(tf.constant(given), tf.constant(drawn, tf.float32))
    return found.numpy()


def drawn_as(
    *, scale=1.0, angle=0.0, down=0.0, right=0.0, gain=1.0, offset=0.0, n: int = 6
) -> np.ndarray:
    """What is drawn where all images are varied alike, and no displacements are."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.tile([cos, sin, -sin, cos, down, right, gain, offset], (n, 1))


def by_scipy(given: np.ndarray, drawn: np.ndarray, options: AugmentOptions) -> np.ndarray:
    """The same resampling, an image and a channel at a time, in float64."""
    n, height, width, channels = given.shape
    side, rest = options.elastic_grid, np.indices((height, width)).astype(float)
    centre = np.array([height - 1, width - 1])[:, None, None] / 2
    mode = "grid-constant" if options.fill == "black" else "nearest"
    varied = np.empty(given.shape)
    for number in range(n):
        matrix, shift = drawn[number, :4].reshape(2, 2), drawn[number, 4:6]
        places = np.tensordot(matrix, rest - centre, 1) + centre
        places += (shift * [height, width])[:, None, None]
        if options.elastic:
            weights = []
            for length in (height, width):
                at = (np.arange(length) + 0.5) / length * (side - 1)
                bells = np.exp(-((at[:, None] - np.arange(side)) ** 2) / 2)
                weights.append(bells / np.sqrt((bells**2).sum(axis=1, keepdims=True)))
            grid = drawn[number, 8:].reshape(2, side, side)
            places += np.stack([weights[0] @ part @ weights[1].T for part in grid])
        for channel in range(channels):
            varied[number, ..., channel] = map_coordinates(
                given[number, ..., channel].astype(float), places, order=1, mode=mode
            )
    return varied


@pytest.mark.parametrize("fill", ["edge", "black"])
@pytest.mark.parametrize("shape", [(6, 11, 9, 3), (6, 8, 8, 1), (6, 1, 5, 1)], ids=str)
def test_pixels_come_from_where_scipy_takes_them(fill: str, shape: Shape):
    options = AugmentOptions(**dict(ALL.given) | {"fill": fill})
    given, drawn = images(shape), Augmentation(options, seed=1).draws(2, ROWS)
    found = computed(given, drawn, options)
    assert np.abs(found - given).max() > 0.3
    np.testing.assert_allclose(found, by_scipy(given, drawn.astype(float), options), atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_whole_numbers_are_rounded(dtype: str, channels: int):
    given, drawn = images((6, 11, 9, channels), dtype), Augmentation(ALL).draws(0, ROWS)
    found = computed(given, drawn, ALL)
    assert found.dtype == given.dtype
    exact = by_scipy(given, drawn.astype(float), ALL)
    np.testing.assert_allclose(found, exact, atol=0.5 + 2e-5 * np.iinfo(dtype).max)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("fill", ["edge", "black"])
def test_at_strength_0_nothing_changes(dtype: str, fill: str):
    given = images((4, 7, 10, 2), dtype)
    still = np.concatenate([drawn_as(n=4), np.zeros((4, 2 * 5**2))], axis=1)
    options = AugmentOptions(**dict(ALL.given) | {"fill": fill})
    np.testing.assert_array_equal(computed(given, still, options), given)
    assert Augmentation(AugmentOptions())(given, turn=1, rows=np.arange(4)) is given
    assert Augmentation(AugmentOptions()).draws(1, ROWS).shape == (6, 0)


def test_draws_depend_on_seed_turn_and_row_alone():
    first = Augmentation(ALL, seed=1)
    drawn = first.draws(4, np.arange(100))
    np.testing.assert_array_equal(first.draws(4, np.array([70, 3])), drawn[[70, 3]])
    assert len(np.unique(drawn[:, 4])) == 100
    assert not np.isin(first.draws(5, np.arange(100))[:, 4], drawn[:, 4]).any()
    assert not np.isin(Augmentation(ALL, seed=2).draws(4, np.arange(100)), drawn[:, 4]).any()


def test_one_option_doesnt_change_what_is_drawn_for_another():
    alone = Augmentation(AugmentOptions(shift=0.1)).draws(0, ROWS)
    both = Augmentation(AugmentOptions(shift=0.1, brightness=0.5, elastic=2)).draws(0, ROWS)
    np.testing.assert_array_equal(alone[:, 4:6], both[:, 4:6])


def test_random_numbers_are_those_of_split_mix():
    """The first numbers of SplitMix64 from 1234567, as they are published."""
    found = split_mix(np.array([1234567, 0], np.uint64), 5)
    assert found[0].tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip
    assert found[1, 0] == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("options", "measure", "low", "high"),
    [
        (AugmentOptions(rotation=30), lambda d: np.degrees(np.arctan2(d[:, 1], d[:, 0])), -30, 30),
        (AugmentOptions(shift=0.2), lambda d: d[:, 4], -0.2, 0.2),
        (AugmentOptions(zoom=0.25), lambda d: d[:, 0], 1 / 1.25, 1 / 0.75),
        (AugmentOptions(crop=0.4), lambda d: d[:, 3], 0.6, 1),
        (AugmentOptions(brightness=0.3), lambda d: d[:, 7], -0.3, 0.3),
        (AugmentOptions(contrast=0.5), lambda d: d[:, 6], 0.5, 1.5),
    ],
    ids=lambda value: str(value) if isinstance(value, AugmentOptions) else "",
)
def test_numbers_reach_from_one_end_to_the_other(
    options: AugmentOptions, measure: Callable, low: float, high: float
):
    found = measure(Augmentation(options).draws(0, np.arange(4_000)).astype(float))
    room = (high - low) / 100
    assert low - 1e-6 <= found.min() < low + room
    assert high - room < found.max() <= high + 1e-6


def test_a_crop_lies_inside_the_image():
    drawn = Augmentation(AugmentOptions(crop=0.5)).draws(0, np.arange(4_000))
    for scale, shift in ((drawn[:, 0], drawn[:, 4]), (drawn[:, 3], drawn[:, 5])):
        reach = np.abs(shift) + scale / 2
        assert reach.max() <= 0.5 + 1e-6 and reach.max() > 0.499


@pytest.mark.parametrize("side", [2, 5])
def test_displacements_have_their_standard_deviation_at_every_pixel(side: int):
    options = AugmentOptions(elastic=1.5, elastic_grid=side)
    ramp = np.tile(np.arange(12.0, dtype=np.float32), (4_000, 12, 1))[..., None]  # is its own x
    found = Augmentation(options)(ramp, turn=0, rows=np.arange(4_000))[..., 0] - ramp[..., 0]
    # where a ramp can't end, beyond the edge
    np.testing.assert_allclose(found[:, :, 6].std(axis=0), 1.5, rtol=0.06)
    near = np.corrcoef(found[:, 5, 6], found[:, 6, 6])[0, 1]
    assert near > 0.9


def test_mirrored_images_are_the_images_mirrored():
    given = images(dtype="uint8")
    many = np.repeat(given[:1], 400, axis=0)
    ways = {
        "none": [given[0]],
        "horizontal": [given[0], given[0][:, ::-1]],
        "vertical": [given[0], given[0][::-1]],
        "both": [given[0], given[0][:, ::-1], given[0][::-1], given[0][::-1, ::-1]],
    }
    for flip, wanted in ways.items():
        found = Augmentation(AugmentOptions(flip=flip))(many, turn=0, rows=np.arange(400))
        same = np.array([[np.array_equal(one, way) for way in wanted] for one in found])
        assert (same.sum(axis=1) == 1).all()
        assert (np.abs(same.mean(axis=0) - 1 / len(wanted)) < 0.1).all()


def test_brightness_is_that_of_keras():
    """By an amount without chance."""
    given = images(dtype="uint8")
    layer = keras.layers.RandomBrightness((0.25, 0.25), value_range=(0, 255))
    wanted = layer(given.astype("float32"), training=True).numpy()
    found = computed(given, drawn_as(offset=0.25), AugmentOptions(brightness=0.5))
    np.testing.assert_allclose(found, wanted, atol=0.501)


def test_contrast_is_distance_from_the_mean_of_image_and_channel():
    given = images(dtype="uint8")
    mean = given.mean(axis=(1, 2), keepdims=True)
    wanted = np.clip(mean + 1.5 * (given - mean), 0, 255)
    found = computed(given, drawn_as(gain=1.5), AugmentOptions(contrast=0.5))
    np.testing.assert_allclose(found, wanted, atol=0.501)
    assert (found == 255).any() and (found == 0).any()


@pytest.mark.parametrize(
    ("layer", "draws"),
    [
        (
            lambda: keras.layers.RandomRotation((0.1, 0.1), fill_mode="constant"),
            drawn_as(angle=0.2 * np.pi),
        ),
        (
            lambda: keras.layers.RandomTranslation((0.25, 0.25), (-0.125, -0.125), "constant"),
            drawn_as(down=-0.25, right=0.125),
        ),
        (lambda: keras.layers.RandomZoom((0.3, 0.3), fill_mode="constant"), drawn_as(scale=1.3)),
    ],
    ids=["rotation", "shift", "zoom"],
)
def test_what_moves_is_what_keras_moves(layer: Callable, draws: np.ndarray):
    """Each layer of Keras does one of them, by an amount without chance."""
    given = images((6, 8, 8, 2))
    wanted = layer()(given, training=True).numpy()
    options = AugmentOptions(rotation=36, fill="black")
    found = computed(given, draws, options)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_batch_is_varied_as_its_images_one_by_one():
    given, vary = images(dtype="uint8"), Augmentation(ALL, seed=5)
    whole = vary(given, turn=3, rows=ROWS + 40)
    for row in ROWS:
        alone = vary(given[row : row + 1], turn=3, rows=ROWS[row : row + 1] + 40)
        difference = np.abs(alone[0].astype(int) - whole[row])
        assert difference.max() <= 1 and np.count_nonzero(difference) < 5  # but for rounding


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch):
    given, vary = images(), Augmentation(AugmentOptions(shift=0.2))
    whole = vary(given, turn=0, rows=ROWS)
    monkeypatch.setattr("cnnfeat.network.augmentation._VALUES_A_CALL", 2 * given[0].size)
    np.testing.assert_array_equal(vary(given, turn=0, rows=ROWS), whole)
