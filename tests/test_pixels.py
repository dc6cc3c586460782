"""Numbers that nothing can be computed from, and pixels of another range than is thought."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cnnfeat import LayerFeatures, LinearSVM
from cnnfeat.data import open_arrays, open_source
from cnnfeat.errors import DataError, ImageError
from cnnfeat.features import FeatureFile
from cnnfeat.pixels import range_warning, unusable

BAD = {3: np.nan, 5: np.inf, 8: -1e30}


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    """Twelve pictures; one pixel of three of them is none."""
    images = rng.random((12, 8, 8), np.float32)
    for row, value in BAD.items():
        images[row, 2, 3] = value
    return images


def save(folder: Path, kind: str, x: np.ndarray) -> Path:
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, x.astype(np.float64))
    elif kind == "npz":
        np.savez(path, images=x, labels=np.arange(12) % 2)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file["images"] = x
    elif kind == "mat":
        savemat(path, {"X": x.transpose(1, 2, 0)})
    else:
        path.mkdir()
        for row, image in enumerate(x):
            Image.fromarray(image).save(path / f"{row}.tif")
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "mat", "folder"])
def test_every_source_refuses_what_is_no_pixel_or_leaves_it_out(tmp_path, x, kind):
    with open_source(str(save(tmp_path, kind, x))) as source:
        with pytest.raises(ImageError, match=r"(all/00003|3\.tif): 1 of 64 numbers are NaN"):
            list(source.batches("all", batch_size=5))
        batches = list(source.batches("all", batch_size=5, on_error="skip"))
        chosen = list(
            source.batches("all", batch_size=2, rows=np.array([2, 3, 9]), on_error="skip")
        )
    good = [row for row in range(12) if row not in BAD]
    np.testing.assert_array_equal(np.concatenate([b.images for b in batches])[..., 0], x[good])
    skipped = [one for batch in batches for one in batch.skipped]
    assert [one.row for one in skipped] == list(BAD)
    assert [one.reason.split()[-1] for one in skipped] == ["NaN", "infinite", "1e+15"]
    assert sum(map(len, batches)) + len(skipped) == 12
    np.testing.assert_array_equal(np.concatenate([b.images for b in chosen])[..., 0], x[[2, 9]])
    assert [one.row for batch in chosen for one in batch.skipped] == [1]


def test_doubles_beyond_single_precision_are_no_pixels():
    source = open_arrays(np.full((2, 4, 4), 1e300))
    with pytest.raises(ImageError, match="all/00000: 16 of 16 numbers are infinite"):
        list(source.batches("all", batch_size=2))


def test_immense_features_are_refused_by_the_machine(rng):
    X = rng.normal(size=(20, 3))
    X[4] = 1e18
    with pytest.raises(DataError, match=r"row 4: 3 of 3 numbers are beyond 1e\+15"):
        LinearSVM().fit(X, np.arange(20) % 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_can_be_computed_with_is_good(dtype):
    assert unusable(np.array([[0, -60_000, 1]], dtype)) == {}
    assert unusable(np.array([[1, np.nan], [2, 3]], dtype)) == {0: "1 of 2 numbers are NaN"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rectifier behind the pixels: what hides NaN."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3, activation="relu", name="c"),
            keras.layers.GlobalAveragePooling2D(name="gap"),
        ]
    )
    path = tmp_path_factory.mktemp("network") / "net.keras"
    model.save(path)
    return path


def test_an_extraction_leaves_them_out_or_ends(cnnfeat, tmp_path, network, x):
    data = save(tmp_path, "npy", x)
    words = ("extract", "--model", network, "--layer", "gap", "--data", data, "--batch-size", 4)
    done = cnnfeat(*words, folder=tmp_path)
    assert done.returncode == 3 and "all/00003: 1 of 64 numbers are NaN" in done.stderr
    done = cnnfeat(*words, "--on-error", "skip", "-o", "o.h5", folder=tmp_path)
    assert done.returncode == 6, done.stderr
    with FeatureFile(tmp_path / "o.h5") as file:
        assert [one.row for one in file.skipped("all")] == list(BAD)
        found = file.read("all", "gap")
    good = np.array([image for row, image in enumerate(x) if row not in BAD])[..., None]
    expected = keras.models.load_model(network).predict(good, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_transformer_refuses_them(network, x):
    features = LayerFeatures(str(network), layer="gap").fit(np.ones((2, 8, 8), np.float32))
    with pytest.raises(DataError, match="image 3: 1 of 64 numbers are NaN"):
        features.transform(x)


def test_a_training_refuses_them(cnnfeat, tmp_path, rng):
    x = rng.random((40, 8, 8), np.float32)
    x[17, 0, 0] = np.nan
    np.savez(tmp_path / "d.npz", images=x, labels=np.arange(40) % 2)
    done = cnnfeat("train", "--data", "d.npz", "--epochs", 1, folder=tmp_path)
    assert done.returncode == 3
    assert "1 of 64 numbers are NaN" in done.stderr
    assert not list(tmp_path.glob("artifacts/model.keras"))


def test_floats_from_0_to_255_are_complained_of(cnnfeat, tmp_path, network, rng):
    np.save(tmp_path / "f.npy", rng.integers(0, 256, (6, 8, 8)).astype(np.float32))
    words = ("extract", "--model", network, "--layer", "gap", "--data", "f.npy", "--overwrite")
    done = cnnfeat(*words, folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("where 1 would be white") == 1
    assert "white" not in cnnfeat(*words, "--scale", "raw", folder=tmp_path).stderr  # meant so


@pytest.mark.parametrize(
    ("low", "high", "unit", "said"),
    [
        (0, 255, True, "floating-point pixels go up to 255,"),
        (0, 1, True, ""),
        (-2, 3, True, ""),  # centred: neither
        (0, 1, False, "floating-point pixels go up to 1 only"),
        (0, 255, False, ""),
        (-120, 150, False, ""),
    ],
)
def test_pixels_of_another_range_are_told(low, high, unit, said):
    images = np.array([low, high], np.float32).reshape(1, 1, 2, 1)
    assert range_warning(images, unit=unit).startswith(said)
    assert bool(range_warning(images, unit=unit)) == bool(said)
    assert range_warning(images.clip(0).astype(np.uint8), unit=unit) == ""


def test_a_network_that_scales_by_itself_gets_no_floats_to_1_unsaid(tmp_path, caplog):
    from cnnfeat import load_network

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(2, 3, name="c"),
        ]
    )
    model.save(tmp_path / "own.keras")
    network = load_network(tmp_path / "own.keras")
    probe = network.probe(
        network.find(["c"]), image_shape=(8, 8, 1), image_dtype="float32", batch_size=4
    )
    probe(np.full((2, 8, 8, 1), 0.5, np.float32))
    probe(np.full((2, 8, 8, 1), 0.5, np.float32))
    assert caplog.text.count("the network takes 255 for white") == 1
    caplog.clear()
    deep = network.probe(
        network.find(["c"]), image_shape=(8, 8, 1), image_dtype="uint16", batch_size=4
    )
    deep(np.full((2, 8, 8, 1), 200, np.uint16))
    assert "16 bits" not in caplog.text
    deep(np.full((2, 8, 8, 1), 4_000, np.uint16))
    assert "pixels of 16 bits go up to 4,000" in caplog.text
