"""Keras files that hold more, or are spelled otherwise, than the network needs: they open."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from cnnfeat.errors import MissingInputError, NetworkError, UntrustedModelError
from cnnfeat.network import load_network

L, Q = keras.layers, tf_keras.layers


def features(path: Path | str, layer: str, images: np.ndarray, **how: object) -> np.ndarray:
    network = load_network(str(path), **how)
    probe = network.probe(network.find([layer]), image_shape=images.shape[1:])
    return probe(images)[0]


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)


def no_loss(a: object, b: object) -> int:
    return 0


def own_schedule() -> keras.optimizers.Optimizer:
    class Falling(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: object) -> float:
            return 0.1

        def get_config(self) -> dict:
            return {}

    return keras.optimizers.Adam(Falling())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        lambda: {"optimizer": "adam", "loss": no_loss},
        lambda: {
            "optimizer": "adam",
            "loss": "mse",
            "metrics": [keras.metrics.sparse_categorical_accuracy],
        },
        lambda: {"optimizer": own_schedule(), "loss": "mse"},
    ],
    ids=["loss", "metric", "schedule"],
)
def test_what_a_model_was_compiled_with_is_never_loaded(
    options: Callable[[], dict], nested: bool, tmp_path: Path
) -> None:
    inner = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(2, 3, name="c")], name="inner")
    inner.compile(**options())
    model = keras.Sequential([keras.Input((8, 8, 1)), inner]) if nested else inner
    model.save(tmp_path / "m.keras")
    images = pixels(8, 8, 1)
    found = features(tmp_path / "m.keras", "c", images)
    assert np.allclose(found, inner(images / np.float32(255)).numpy(), atol=1e-5)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_sequence_of_pixels_is_one_image(ending: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((64, 1)), L.Conv1D(4, 5, name="c")])
    model.save(tmp_path / f"m.{ending}")
    images = pixels(8, 8)
    found = features(tmp_path / f"m.{ending}", "c", images[..., None])
    expected = model(images.reshape(5, 64, 1) / np.float32(255)).numpy()
    assert np.allclose(found, expected, atol=1e-5)


def test_a_sequence_of_colours(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((64, 3)), L.Conv1D(4, 5, name="c")])
    model.save(tmp_path / "m.keras")
    images = pixels(8, 8, 3)
    found = features(tmp_path / "m.keras", "c", images)
    assert np.allclose(found, model(images.reshape(5, 64, 3) / np.float32(255)), atol=1e-5)
    with pytest.raises(NetworkError, match=r"don't fit the network's input") as refused:
        features(tmp_path / "m.keras", "c", pixels(9, 8, 3))
    assert "--resize 8x8" in refused.value.hint


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_unet_of_any_size(library: object, tmp_path: Path) -> None:
    layers = library.layers
    given = library.Input((None, None, 1))
    a = layers.Conv2D(2, 3, padding="same", name="c")(given)
    up = layers.UpSampling2D(interpolation="bilinear", name="up")(layers.MaxPooling2D()(a))
    model = library.Model(given, layers.Concatenate(name="both")([a, up]))
    path = tmp_path / "unet.keras"
    model.save(path)
    network = load_network(str(path))
    (both,) = network.find(["both"])
    assert network.image_shape == (None, None, 1)
    assert both.tensor.shape == (None, None, None, 4)
    for side in (8, 12):
        images = pixels(side, side + 2, 1)
        probe = network.probe([both], image_shape=images.shape[1:])
        expected = model(images / np.float32(255))
        assert np.allclose(probe(images)[0], np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("/", "\\", 1),
        lambda name: name.replace("/", "\\"),
        lambda name: name.replace("layers/", "_layer_checkpoint_dependencies\\"),
        # Keras 2.13 counted a layer with weights twice.
        lambda name: name.replace("layers/", "_layer_checkpoint_dependencies/").replace(
            "conv2d_1", "conv2d_2"
        ),
    ],
    ids=["windows", "all", "windows 2.13", "2.13"],
)
def test_groups_as_keras_2_spelled_them(spell: Callable[[str], str], tmp_path: Path) -> None:
    model = tf_keras.Sequential(
        [Q.Input((8, 8, 1)), Q.Conv2D(2, 3), Q.Conv2D(3, 3), Q.Flatten(), Q.Dense(3, name="d")]
    )
    model.save(tmp_path / "posix.keras")
    with (
        zipfile.ZipFile(tmp_path / "posix.keras") as old,
        zipfile.ZipFile(tmp_path / "m.keras", "w") as new,
    ):
        for member in old.namelist():
            data = old.read(member)
            if member.endswith(".h5"):
                data = respelled(data, spell)
            new.writestr(member, data)
    images = pixels(8, 8, 1)
    expected = model(images / np.float32(255)).numpy()
    assert np.allclose(features(tmp_path / "m.keras", "d", images), expected, atol=1e-5)


def respelled(data: bytes, spell: Callable[[str], str]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(data)) as old, h5py.File(buffer, "w") as new:

        def copy(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                new[spell(name)] = item[()]

        old.visititems(copy)
    return buffer.getvalue()


def test_an_embedding_behind_an_input(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    given = tf_keras.Input((16,), dtype="int32")
    model = tf_keras.Model(given, Q.Embedding(300, 4, name="pos")(given))
    model.save(tmp_path / "m.h5")
    recwarn.clear()
    images = pixels(4, 4, 1)
    found = features(tmp_path / "m.h5", "pos", images)
    assert np.allclose(found, model(images.reshape(5, 16)).numpy())
    assert not recwarn.list


OWN = """
import keras
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""


@pytest.fixture(params=["keras", "h5"])
def custom(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    class Doubled(keras.layers.Layer):
        def call(self, x: object) -> object:
            return x * 2

    model = keras.Sequential([keras.Input((8, 8, 1)), Doubled(name="twice")])
    model.save(tmp_path / f"m.{request.param}")
    (tmp_path / "my_own_layers.py").write_text(OWN)
    return tmp_path / f"m.{request.param}"


def test_a_layer_of_ones_own_is_named_and_read_by_its_code(
    custom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = custom.with_name("my_own_layers.py")
    with pytest.raises(UntrustedModelError, match=r"not Keras's own: .*Doubled") as refused:
        load_network(str(custom))
    assert "--import" in refused.value.hint
    images = pixels(8, 8, 1)
    caplog.set_level("INFO", "cnnfeat")
    found = features(custom, "twice", images, imports=[str(code)])
    assert np.allclose(found, images / np.float32(255) * 2)
    with pytest.raises(UntrustedModelError):  # not without being told again
        load_network(str(custom))


def test_code_that_is_not_there_or_fails(custom: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        load_network(str(custom), imports=["nowhere.py"])
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(NetworkError, match="ZeroDivisionError"):
        load_network(str(custom), imports=[str(tmp_path / "bad.py")])
    with pytest.raises(NetworkError, match="no_such_module_anywhere"):
        load_network(str(custom), imports=["no_such_module_anywhere"])


def test_import_is_asked_for_each_time(cnnfeat, custom: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pixels(8, 8))
    done = cnnfeat(
        "extract", "--model", custom.name, "--import", "my_own_layers.py", "--layer", "twice",
        "--data", "x.npy", "-o", "o.h5", folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert "running the code of my_own_layers.py, as --import asks" in done.stderr
    with h5py.File(tmp_path / "o.h5") as file:
        assert '"imports": ["my_own_layers.py"]' in file.attrs["options"]
        assert np.allclose(file["all/twice"][:, ..., 0], pixels(8, 8) / np.float32(255) * 2)
    drawn = ("plot", "activations", "--features", "o.h5", "--layer", "twice", "-o", "a.png")
    refused = cnnfeat(*drawn)
    assert refused.returncode == 4
    assert "--import" in refused.stderr
    assert cnnfeat(*drawn, "--import", "my_own_layers.py").returncode == 0


def test_weights_whose_names_are_no_paths(tmp_path: Path) -> None:
    """A name of Windows that would be two weights' at once, once it is spelled as here."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="c")])
    model.save(tmp_path / "m.keras")
    with (
        zipfile.ZipFile(tmp_path / "m.keras") as old,
        zipfile.ZipFile(tmp_path / "odd.keras", "w") as new,
    ):
        old.extract("model.weights.h5", tmp_path)
        with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
            file["layers/conv2d/vars\\0"] = file["layers/conv2d/vars/0"][()]
        new.writestr("config.json", old.read("config.json"))
        new.write(tmp_path / "model.weights.h5", "model.weights.h5")
    with pytest.raises(NetworkError, match=r"odd\.keras: its weights can't be copied: .*exists"):
        load_network(str(tmp_path / "odd.keras"))
