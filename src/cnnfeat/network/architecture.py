"""Small convolutional networks, built from a `[network]` table.

The defaults are the seed network: two blocks of a 5×5 convolution with 16 and 36 filters, 2×2
max-pooling and ReLU, then a dense layer of 128, then the logits. Weights begin truncated normal
with a standard deviation of 0.05, biases at 0.05.

A block is a model of its own inside the network: `conv2` names what leaves it, `conv2/conv` the
raw convolution inside.
"""

from __future__ import annotations

import keras

from cnnfeat.errors import NetworkError
from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions

PIXEL_SCALES = {"uint8": 1 / 255, "uint16": 1 / 65_535, "float32": 1.0}  # to [0, 1]


def build_network(
    config: ArchitectureOptions,
    *,
    image_shape: tuple[int, int, int],
    n_classes: int,
    seed: int,
    dtype: str = "uint8",
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

    Returns
    -------
    keras.Model
        Input `(n_samples, height, width, channels)`, output `(n_samples, n_classes)` float32
        logits. Plain Keras loads its file.

    Raises
    ------
    NetworkError
        If pooling leaves nothing of an image of this shape.
    """
    start = _Start(config, seed)
    image = keras.Input(image_shape, dtype=dtype, name="image")
    x = keras.layers.Rescaling(PIXEL_SCALES[dtype], name="scale")(image)
    for number, block in enumerate(config.conv, 1):
        _check_pooling(block, x.shape[1:3], number, image_shape)
        x = _conv_block(block, x.shape[1:], f"conv{number}", start)(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number, layer in enumerate(config.dense, 1):
        x = _dense_block(layer, x.shape[1:], f"fc{number}", start)(x)
    logits = keras.layers.Dense(n_classes, name=f"fc{len(config.dense) + 1}", **start.arguments())(
        x
    )
    return keras.Model(image, logits, name="cnnfeat")


class _Start:
    """First weights, each layer with a seed of its own."""

    def __init__(self, config: ArchitectureOptions, seed: int) -> None:
        self._config, self._seed = config, seed

    def arguments(self) -> dict[str, keras.initializers.Initializer]:
        self._seed += 1
        return {
            "kernel_initializer": keras.initializers.TruncatedNormal(
                stddev=self._config.weight_stddev, seed=self._seed
            ),
            "bias_initializer": keras.initializers.Constant(self._config.bias),
        }

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


def _conv_block(
    block: ConvOptions, shape: tuple[int, int, int], name: str, start: _Start
) -> keras.Model:
    inputs = keras.Input(shape, name="input")
    x = keras.layers.Conv2D(
        block.filters, block.kernel_size, padding="same", name="conv", **start.arguments()
    )(inputs)
    if block.batch_norm:
        x = keras.layers.BatchNormalization(name="norm")(x)
    if block.pool_size > 1:
        x = keras.layers.MaxPooling2D(block.pool_size, name="pool")(x)
    x = keras.layers.ReLU(name="relu")(x)
    if block.dropout:
        x = keras.layers.Dropout(block.dropout, seed=start.dropout_seed(), name="dropout")(x)
    return keras.Model(inputs, x, name=name)


def _dense_block(layer: DenseOptions, shape: tuple[int], name: str, start: _Start) -> keras.Model:
    inputs = keras.Input(shape, name="input")
    x = keras.layers.Dense(layer.units, name="dense", **start.arguments())(inputs)
    if layer.batch_norm:
        x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    if layer.dropout:
        x = keras.layers.Dropout(layer.dropout, seed=start.dropout_seed(), name="dropout")(x)
    return keras.Model(inputs, x, name=name)
