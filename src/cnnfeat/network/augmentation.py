"""Augmentation: images varied at random, so that a network learns what doesn't change their class.

All that moves pixels is one resampling. Each pixel of a varied image is taken from where an affine
map (rotation, shift, zoom, crop, flip) and a smooth field of displacements send it, interpolated
bilinearly. The field is that of P. Simard, D. Steinkraus and J. Platt, "Best Practices for
Convolutional Neural Networks Applied to Visual Document Analysis", ICDAR (2003): random vectors
smoothed by a Gaussian; here they stand on a coarse grid of control points.

What is drawn for an image depends on a seed, a turn and its row, and on nothing else: neither on
the batch that it is in nor on what was drawn before. So a training can be taken up after any epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from cnnfeat.network.runtime import eagerly
from cnnfeat.options import AugmentOptions
from cnnfeat.records import Array, RowNumbers

Draws: TypeAlias = NDArray[np.float32]  # (..., n_draws)
_Compiled: TypeAlias = Callable[[Array, Draws], tf.Tensor]

# Columns of what is drawn: an affine map, y by y and x and then x by y and x; its shift, a fraction
# of height and of width; a factor of contrast; what is added to brightness; then displacements.
_GAIN, _OFFSET, _GRID = 6, 7, 8
_N_UNIFORM = 12  # numbers for these; unused ones are drawn too, so that options don't shift others
_VALUES_A_CALL = 1 << 22  # of pixels: some hundred megabytes meanwhile

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def split_mix(states: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Make the first `n` numbers of SplitMix64 from each state, (n_states, n).

    G. Steele, D. Lea and C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA (2014).
    """
    numbers = states[:, None] + _GAMMA * np.arange(1, n + 1, dtype=np.uint64)
    for shift, factor in _MIXERS:
        numbers ^= numbers >> shift
        numbers *= factor
    numbers ^= numbers >> np.uint64(31)
    return numbers


def _uniform(seed: int, turn: int, rows: RowNumbers, n: int) -> NDArray[np.float32]:
    """Draw numbers from 0 to below 1 for each row, (n_rows, n); `n` is even."""
    states = np.zeros(len(rows), np.uint64)
    for word in (seed, turn, rows):
        states = split_mix(states + np.asarray(word).astype(np.uint64), 1)[:, 0]
    halves = split_mix(states, n // 2).astype("<u8", copy=False).view("<u4")
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _normal(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make normal numbers of uniform ones, (n_rows, n) with `n` even (Box and Muller, 1958)."""
    half = uniform.shape[1] // 2
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :half]))
    angle = np.float32(2 * np.pi) * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


class Augmentation:
    """Ways to vary images, and the seed of what is drawn.

    Parameters
    ----------
    options : AugmentOptions
        What is varied, and how much.
    seed : int
        Same seed, same images.
    """

    def __init__(self, options: AugmentOptions, *, seed: int = 0) -> None:
        self.options, self._seed = options, seed
        self._compiled: dict[str, _Compiled] = {}

    @property
    def n_draws(self) -> int:
        """How many numbers are drawn for an image; none, where nothing is varied."""
        if not self.options.varies:
            return 0
        return _GRID + (2 * self.options.elastic_grid**2 if self.options.elastic else 0)

    def draws(self, turn: int, rows: RowNumbers) -> Draws:
        """Draw what images are varied by.

        Parameters
        ----------
        turn : int
            Number of the epoch, or of the copy: another one, other numbers.
        rows : ndarray of int
            Row numbers of the images, in any shape.

        Returns
        -------
        ndarray of float32, (*rows.shape, n_draws)
        """
        options, shape = self.options, (*rows.shape, self.n_draws)
        drawn = np.empty((rows.size, self.n_draws), np.float32)
        if not self.n_draws:
            return drawn.reshape(shape)
        n_uniform = _N_UNIFORM + self.n_draws - _GRID
        uniform = _uniform(self._seed, turn, rows.ravel(), n_uniform)
        drawn[:, :_GRID] = _affine(options, uniform[:, :_N_UNIFORM].astype(np.float64))
        drawn[:, _GRID:] = np.float32(options.elastic) * _normal(uniform[:, _N_UNIFORM:])
        return drawn.reshape(shape)

    def graph(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Vary images within a TensorFlow function.

        Parameters
        ----------
        images : tf.Tensor of shape (n_samples, height, width, channels)
            uint8, uint16 or float32.
        draws : tf.Tensor of float32, (n_samples, n_draws)
            What was drawn for each.

        Returns
        -------
        tf.Tensor
            Of the images' shape and dtype. Whole numbers are rounded, and stay in their range.
        """
        options, dtype = self.options, images.dtype
        if not options.varies:
            return images
        values = self._moved(images, draws) if options.moves else tf.cast(images, tf.float32)
        column = (slice(None), None, None, None)
        if options.contrast:
            mean = tf.reduce_mean(values, axis=(1, 2), keepdims=True)
            values = mean + (values - mean) * draws[:, _GAIN][column]
        if options.brightness:
            white = 1.0 if dtype.is_floating else float(dtype.max)
            values += white * draws[:, _OFFSET][column]
        return values if dtype.is_floating else tf.saturate_cast(tf.round(values), dtype)

    @eagerly
    def __call__(self, images: Array, *, turn: int, rows: RowNumbers) -> Array:
        """Vary images in memory.

        Parameters
        ----------
        images : ndarray of shape (n_samples, height, width, channels)
            uint8, uint16 or float32.
        turn, rows
            See `draws`.

        Returns
        -------
        ndarray
            Of the images' shape and dtype.
        """
        if not self.options.varies:
            return images
        varied, step = np.empty_like(images), max(1, _VALUES_A_CALL // max(1, images[:1].size))
        for start in range(0, len(images), step):
            some = slice(start, start + step)
            drawn = self.draws(turn, rows[some])
            varied[some] = self._function(images.dtype)(images[some], drawn).numpy()
        return varied

    def _function(self, dtype: np.dtype[np.generic]) -> _Compiled:
        if dtype.name not in self._compiled:
            signature = [
                tf.TensorSpec((None, None, None, None), dtype),
                tf.TensorSpec((None, self.n_draws), tf.float32),
            ]
            self._compiled[dtype.name] = tf.function(
                self.graph, input_signature=signature, autograph=False
            )
        return self._compiled[dtype.name]

    def _moved(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Take each pixel from where it is sent: float32, of the images' shape."""
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        y, x = _sent_by_map(draws, tf.cast(height, tf.float32), tf.cast(width, tf.float32))
        if self.options.elastic:
            side = self.options.elastic_grid
            grid = tf.reshape(draws[:, _GRID:], (-1, 2, side, side))
            field = tf.matmul(
                _smoothing(side, height), tf.matmul(grid, _smoothing(side, width), transpose_b=True)
            )
            y, x = y + field[:, 0], x + field[:, 1]
        beyond = 1.0 if self.options.fill == "black" else 0.0
        y = tf.clip_by_value(y, -beyond, tf.cast(height, tf.float32) - 1 + beyond)
        x = tf.clip_by_value(x, -beyond, tf.cast(width, tf.float32) - 1 + beyond)
        return _interpolated(images, y, x)


AS_THEY_ARE = Augmentation(AugmentOptions())


def _affine(options: AugmentOptions, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniform numbers, (n_samples, 12), into the columns before the displacements."""
    share, either = uniform.T, 2 * uniform.T - 1  # 0 to 1, and -1 to 1
    angle = np.radians(options.rotation) * either[0]
    cut = options.crop * share[4]
    scale = (1 - cut) / (1 + options.zoom * either[3])
    flips = {
        name: np.where((share[row] < 0.5) & (options.flip in (name, "both")), -1.0, 1.0)
        for name, row in (("vertical", 7), ("horizontal", 8))
    }
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    columns = [
        *(cos * flips["vertical"], sin * flips["horizontal"]),
        *(-sin * flips["vertical"], cos * flips["horizontal"]),
        *(options.shift * either[1] + cut * either[5] / 2,),
        *(options.shift * either[2] + cut * either[6] / 2,),
        1 + options.contrast * either[9],
        options.brightness * either[10],
    ]
    return np.stack(columns, axis=1)


def _sent_by_map(
    draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the map sends each pixel, in pixels: y and x, each (n_samples, height, width).

    What doesn't move is sent to itself exactly: all its numbers are whole or halves.
    """
    centre = ((height - 1) / 2, (width - 1) / 2)

    def along(by_y: tf.Tensor, by_x: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        start += -by_y * centre[0] - by_x * centre[1]
        down = start[:, None] + by_y[:, None] * tf.range(height)
        return down[:, :, None] + (by_x[:, None] * tf.range(width))[:, None, :]

    yy, yx, xy, xx, by_height, by_width = tf.unstack(draws[:, :_GAIN], axis=1)
    return (
        along(yy, yx, centre[0] + by_height * height),
        along(xy, xx, centre[1] + by_width * width),
    )


def _smoothing(side: int, length: tf.Tensor) -> tf.Tensor:
    """Weights of `side` control points at each of `length` pixels, (length, side).

    Gaussians as wide as points are apart. Their squares sum to 1, so a sum of normal numbers with
    these weights has the same standard deviation at every pixel.
    """
    place = (tf.range(length, dtype=tf.float32) + 0.5) * (side - 1) / tf.cast(length, tf.float32)
    apart = place[:, None] - tf.range(side, dtype=tf.float32)
    return tf.math.l2_normalize(tf.exp(-(apart**2) / 2), axis=1)


def _interpolated(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Interpolate between the four pixels around each place; beyond the images all is black.

    The four are put side by side first: fetching them together is what takes time.
    """
    shape = tf.shape(images)
    n, height, width, channels = tf.unstack(shape)
    fours = _fours(tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    top = tf.minimum(tf.floor(y), tf.cast(height - 1, tf.float32))  # from -1
    left = tf.minimum(tf.floor(x), tf.cast(width - 1, tf.float32))
    down, right = (tf.reshape(part, (n, -1, 1)) for part in (y - top, x - left))
    place = (tf.cast(top, tf.int32) + 1) * (width + 1) + tf.cast(left, tf.int32) + 1
    fours = tf.gather(
        tf.reshape(fours, (n, (height + 1) * (width + 1), -1)),
        tf.reshape(place, (n, height * width)),
        batch_dims=1,
    )
    if fours.dtype != images.dtype:
        fours = tf.bitcast(fours, images.dtype)
    fours = tf.reshape(tf.cast(fours, tf.float32), (n, height * width, 4 * channels))
    a, b, c, d = tf.split(fours, 4, axis=2)
    upper, lower = a + (b - a) * right, c + (d - c) * right
    values = tf.reshape(upper + (lower - upper) * down, shape)
    values.set_shape(images.shape)
    return values


def _fours(padded: tf.Tensor) -> tf.Tensor:
    """Put each pixel beside those to its right, below, and below to the right.

    Of grey images of 8 bits the four are the bytes of one number, which takes a third of the time.
    """
    corners = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    if padded.dtype != tf.uint8 or padded.shape[3] != 1:
        return tf.concat(corners, axis=3)
    a, b, c, d = (tf.cast(corner, tf.int32) for corner in corners)
    return a + b * 2**8 + c * 2**16 + d * 2**24  # whose highest bit is a sign, and comes back
