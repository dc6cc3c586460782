"""Small convolutional networks, built from a `[network]` table.

The defaults are the seed network: two blocks of a 5×5 convolution with 16 and 36 filters, 2×2
max-pooling and ReLU, then a dense layer of 128, then the logits. Weights begin truncated normal
with a standard deviation of 0.05, biases at 0.05.

A block is a model of its own inside the network: `conv2` names what leaves it, `conv2/conv` the
raw convolution inside, `conv2/unit1` what leaves its first residual unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras

from cnnfeat.errors import NetworkError
from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions, Precision

PIXEL_SCALES = {"uint8": 1 / 255, "uint16": 1 / 65_535, "float32": 1.0}  # to [0, 1]
UNIT_KERNEL = 3  # of residual units, as ResNets have it
MOST_WEIGHTS = 2**30  # 4 GiB of them, of which an optimizer holds three times as many
_POOLINGS = {
    "average": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
}
# Moving statistics remember fifty calls, half as many as Keras's own momentum of 0.99: in a short
# training those of older calls belong to other weights. Keras's epsilon of 0.001 is as large as the
# variances that small first weights leave.
_NORM = {"momentum": 0.98, "epsilon": 1e-5}


def build_network(
    config: ArchitectureOptions,
    *,
    image_shape: tuple[int, int, int],
    n_classes: int,
    seed: int,
    dtype: str = "uint8",
    precision: Precision = "float32",
    name: str = "cnnfeat",
) -> keras.Model:
    """Build an untrained network.

    Parameters
    ----------
    config : ArchitectureOptions
        Blocks and layers.
    image_shape : (height, width, channels)
        Of the images it will take.
    n_classes : int
        The number of logits.
    seed : int
        Fixes the first weights.
    dtype : str
        Of the images: "uint8" or "uint16", whose scaling to [0, 1] is the network's first layer, or
        "float32", taken as it is.
    precision : str
        What layers between the scaling and the logits compute in. Weights are float32 always.
    name : str
        Of the network, where it is a part of another.

    Returns
    -------
    keras.Model
        Input `(n_samples, height, width, channels)`, output `(n_samples, n_classes)` float32
        logits. Plain Keras loads its file.

    Raises
    ------
    NetworkError
        If pooling leaves nothing of an image of this shape, or there would be too many weights.
    """
    start = _Start(config, seed)
    image = keras.Input(image_shape, dtype=dtype, name="image")
    x = keras.layers.Rescaling(PIXEL_SCALES[dtype], name="scale", dtype="float32")(image)
    with _computing_in(precision):
        for number, block in enumerate(config.conv, 1):
            _check_pooling(block, x.shape[1:3], number, image_shape)
            x = _conv_block(block, x.shape[1:], f"conv{number}", start)(x)
        x = _lead_over(x, config)
        for number, layer in enumerate(config.dense, 1):
            x = _dense_block(layer, x.shape[1:], f"fc{number}", start)(x)
    shape = (x.shape[-1], n_classes)
    logits = keras.layers.Dense(
        n_classes, name=f"fc{len(config.dense) + 1}", dtype="float32", **start.of(shape)
    )(x)
    return keras.Model(image, logits, name=name)


@contextmanager
def _computing_in(precision: Precision) -> Iterator[None]:
    """Let layers that are made meanwhile compute so, with weights in float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class _Start:
    """First weights, each layer with a seed of its own; and how wide layers are."""

    def __init__(self, config: ArchitectureOptions, seed: int) -> None:
        self._config, self._seed = config, seed
        self._n_weights = 0

    def n_units(self, asked: int) -> int:
        return max(1, round(asked * self._config.width))

    def of(self, shape: Sequence[int]) -> dict[str, keras.initializers.Initializer]:
        """How a kernel of this shape and its biases begin."""
        self._count(shape)
        self._seed += 1
        return {
            "kernel_initializer": self._kernel(),
            "bias_initializer": keras.initializers.Constant(self._config.bias),
        }

    def _count(self, shape: Sequence[int]) -> None:
        """Refuse weights that no memory holds before Keras makes them."""
        self._n_weights += math.prod(shape)
        if self._n_weights > MOST_WEIGHTS:
            raise NetworkError(
                f"this network would have more than {MOST_WEIGHTS:,} weights: a layer takes "
                f"{math.prod(shape):,}, a kernel of {'×'.join(map(str, shape))}",
                hint='take fewer filters or units, pool_size above 1, or pooling = "average", in '
                "[network]",
            )

    def _kernel(self) -> keras.initializers.Initializer:
        stddev = self._config.weight_stddev
        if stddev == "he":
            return keras.initializers.HeNormal(seed=self._seed)
        return keras.initializers.TruncatedNormal(stddev=stddev, seed=self._seed)

    def dropout_seed(self) -> int:
        self._seed += 1
        return self._seed


def _check_pooling(
    block: ConvOptions, size: tuple[int, int], number: int, image_shape: tuple[int, int, int]
) -> None:
    if min(size) < block.pool_size:
        raise NetworkError(
            f"images of {image_shape} are too small for this network: block conv{number} gets "
            f"{size[0]}×{size[1]} pixels and pools {block.pool_size}×{block.pool_size}",
            hint="take fewer blocks, or pool_size = 1, in [[network.conv]]",
        )


def _input(shape: tuple[int, ...]) -> keras.KerasTensor:
    """What a block takes, in what layers compute in now: no block casts it there and back."""
    return keras.Input(shape, name="input", dtype=keras.config.dtype_policy().compute_dtype)


def _conv_block(
    block: ConvOptions, shape: tuple[int, int, int], name: str, start: _Start
) -> keras.Model:
    inputs = _input(shape)
    x = _convolved(inputs, block, block.kernel_size, start)
    if block.pool_size > 1:
        x = keras.layers.MaxPooling2D(block.pool_size, name="pool")(x)
    x = keras.layers.ReLU(name="relu")(x)
    if block.dropout:
        x = keras.layers.Dropout(block.dropout, seed=start.dropout_seed(), name="dropout")(x)
    for number in range(1, block.residual + 1):
        x = _residual_unit(block, x.shape[1:], f"unit{number}", start)(x)
    return keras.Model(inputs, x, name=name)


def _residual_unit(
    block: ConvOptions, shape: tuple[int, int, int], name: str, start: _Start
) -> keras.Model:
    """x + f(f(x)), f a convolution and ReLU, as in small ResNets that are trained quickly."""
    inputs = _input(shape)
    x = inputs
    for half in ("_a", "_b"):
        x = _convolved(x, block, UNIT_KERNEL, start, half)
        x = keras.layers.ReLU(name=f"relu{half}")(x)
    return keras.Model(inputs, keras.layers.Add(name="add")([inputs, x]), name=name)


def _convolved(
    x: keras.KerasTensor, block: ConvOptions, size: int, start: _Start, mark: str = ""
) -> keras.KerasTensor:
    """A convolution, and batch norm where the block has it, whose shift then is the bias."""
    n_filters = start.n_units(block.filters)
    x = keras.layers.Conv2D(
        n_filters,
        size,
        padding="same",
        use_bias=not block.batch_norm,
        name=f"conv{mark}",
        **start.of((size, size, x.shape[-1], n_filters)),
    )(x)
    return (
        keras.layers.BatchNormalization(name=f"norm{mark}", **_NORM)(x) if block.batch_norm else x
    )


def _lead_over(x: keras.KerasTensor, config: ArchitectureOptions) -> keras.KerasTensor:
    """Make one vector of each image's channels, `flatten` or `pool` by name."""
    if config.pooling == "flatten":
        return keras.layers.Flatten(name="flatten")(x)
    return _POOLINGS[config.pooling](name="pool")(x)


def _dense_block(layer: DenseOptions, shape: tuple[int], name: str, start: _Start) -> keras.Model:
    inputs = _input(shape)
    n_units = start.n_units(layer.units)
    x = keras.layers.Dense(
        n_units, use_bias=not layer.batch_norm, name="dense", **start.of((*shape, n_units))
    )(inputs)
    if layer.batch_norm:
        x = keras.layers.BatchNormalization(name="norm", **_NORM)(x)
    x = keras.layers.ReLU(name="relu")(x)
    if layer.dropout:
        x = keras.layers.Dropout(layer.dropout, seed=start.dropout_seed(), name="dropout")(x)
    return keras.Model(inputs, x, name=name)
