"""The commands as functions: the command line's files, and what a program has besides."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import cnnfeat
from cnnfeat import DataOptions, ExtractOptions, ReadOptions, SvmOptions, TrainOptions
from cnnfeat.errors import DataError, MissingInputError, NetworkError, OutputExistsError, UsageError
from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions

SIDE = 32
CROPS = 48  # of each photograph


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)[:240], y[:240]


def tiny(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(x)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(image, keras.layers.Dense(12, activation="relu", name="fc1")(x), name="tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits) -> Path:
    """A folder with a network, images in an array file, features, and a machine on them."""
    folder = tmp_path_factory.mktemp("made")
    tiny().save(folder / "model.keras")
    np.savez(folder / "digits.npz", images=digits[0], labels=digits[1])
    cnnfeat.extract(
        folder / "model.keras",
        folder / "digits.npz",
        ExtractOptions(layers=["conv1", "fc1"]),
        out=folder / "features.h5",
    )
    cnnfeat.fit_svm(folder / "features.h5", folder, SvmOptions(layer=("conv1",), C=0.01))
    return folder


def test_features_are_what_keras_computes(made: Path, digits):
    model = keras.models.load_model(made / "model.keras")
    with h5py.File(made / "features.h5") as file:
        for layer in ("conv1", "fc1"):
            part = keras.Model(model.input, model.get_layer(layer).output)
            expected = np.asarray(part(digits[0][..., None]))
            np.testing.assert_allclose(file["all"][layer][:], expected, atol=1e-5 * expected.max())
        np.testing.assert_array_equal(file["all/label"][:], digits[1])


def test_a_live_model_and_arrays(tmp_path: Path, digits):
    model = tiny()
    source = cnnfeat.open_arrays(*digits)
    result = cnnfeat.extract(model, source, ExtractOptions(layers="conv1"), out=tmp_path / "f.h5")
    part = keras.Model(model.input, model.get_layer("conv1").output)
    expected = np.asarray(part(digits[0][..., None]))
    with h5py.File(result.path) as file:
        np.testing.assert_allclose(file["all/conv1"][:], expected, atol=1e-5 * expected.max())
        assert file.attrs["network"] == "live:tiny"
        assert file.attrs["source_kind"] == "arrays"
    cnnfeat.fit_svm(str(tmp_path / "f.h5"), str(tmp_path), SvmOptions(C=0.1))
    machine = cnnfeat.load_machine(tmp_path / "svm.skops", network=model)
    assert np.mean(machine.predict(digits[0]).predicted == digits[1].astype(str)) > 0.9
    with pytest.raises(NetworkError, match="a network that lived in a program, 'tiny'") as caught:
        cnnfeat.load_machine(tmp_path / "svm.skops").predict(digits[0])
    assert "network=" in caught.value.hint
    model.set_weights([weight * 2 for weight in model.get_weights()])
    other = cnnfeat.load_machine(tmp_path / "svm.skops", network=model)
    with pytest.raises(NetworkError, match="is not the network that"):
        other.predict(digits[0])


def test_an_open_source_stays_open_and_a_path_does_not_matter(made: Path, tmp_path: Path):
    options = ExtractOptions(layer=("fc1",), limit=20)
    network = cnnfeat.load_network(made / "model.keras")
    with cnnfeat.open_source(str(made / "digits.npz")) as source:
        for place, given in enumerate((source, source.name, DataOptions(source=source.name))):
            cnnfeat.extract(network, given, options, out=tmp_path / f"{place}.h5")
        assert next(source.batches("all", batch_size=3)).ids == ("all/00000", "all/00001",
                                                                 "all/00002")  # fmt: skip
    rows = [h5py.File(tmp_path / f"{place}.h5")["all/fc1"][:] for place in range(3)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_what_is_no_source_is_refused(made: Path, tmp_path: Path, digits):
    with pytest.raises(UsageError, match="not a ndarray") as caught:
        cnnfeat.extract(
            made / "model.keras", digits[0], ExtractOptions(layer="fc1"), out=tmp_path / "f.h5"
        )
    assert "open_arrays" in caught.value.hint
    with pytest.raises(DataError, match="240 images but 3 labels"):
        cnnfeat.open_arrays(digits[0], [1, 2, 3])


def test_an_output_that_exists_is_refused_first(made: Path):
    with pytest.raises(OutputExistsError):
        cnnfeat.extract("no.keras", "nothing", out=made / "features.h5")
    with pytest.raises(OutputExistsError):
        cnnfeat.train("nothing", out=made / "model.keras")


def test_arrays_are_told_apart(digits):
    digests = [
        cnnfeat.open_arrays(*given).fingerprint().digest
        for given in [
            digits, digits, (digits[0],), (digits[0][:, :4],), (digits[0], digits[1] + 1),
            (digits[0].astype(np.float32), digits[1]),
        ]
    ]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_training_is_the_command_line_s(tmp_path: Path, digits, cnnfeat):
    import cnnfeat as library

    np.savez(tmp_path / "digits.npz", images=digits[0], labels=digits[1])
    options = TrainOptions(epochs=2, seed=3)
    network = ArchitectureOptions(conv=(ConvOptions(filters=3),), dense=(DenseOptions(units=8),))
    card = library.train(
        tmp_path / "digits.npz", options, out=tmp_path / "own.keras", network=network
    )
    (tmp_path / "c.toml").write_text(
        "[[network.conv]]\nfilters = 3\n[[network.dense]]\nunits = 8\n", "utf-8"
    )
    words = ["train", "--data", "digits.npz", "--epochs", "2", "--seed", "3", "--config", "c.toml"]
    done = cnnfeat(*words, "-o", "other.keras", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    own, other = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("own", "other"))
    for one, two in zip(own.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert card.epochs == 2


def test_the_division_of_a_training_goes_on_to_the_features(tmp_path: Path, digits):
    source = cnnfeat.open_arrays(*digits)
    card = cnnfeat.train(
        source,
        TrainOptions(epochs=1),
        out=tmp_path / "model.keras",
        network=ArchitectureOptions(conv=(ConvOptions(filters=3),), dense=()),
    )
    np.savez(tmp_path / "digits.npz", images=digits[0], labels=digits[1])
    options = ExtractOptions(layers="conv1")
    cnnfeat.extract(tmp_path / "model.keras", source, options, out=tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        parts = {split: np.bincount(file[split]["part"]) for split in ("train", "test")}
        ids = [*file["train/id"].asstr(), *file["test/id"].asstr()]
    assert parts["train"].tolist() == [0, card.n_train, card.n_validation]
    assert parts["test"].tolist() == [card.n_test]
    assert sorted(ids) == [f"all/{row:05d}" for row in range(240)]
    assert source.splits.keys() == {"all"}  # it is what it was


def test_a_machine_says_what_the_command_line_says(made: Path, cnnfeat):
    import cnnfeat as library

    machine = library.load_machine(made / "svm.skops")
    by_image = machine.predict(made / "digits.npz")
    assert machine.predict(made / "digits.npz").ids == by_image.ids  # again, with what is open
    done = cnnfeat("predict", "digits.npz", "--svm", "svm.skops", "--csv", folder=made)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["id"] for row in rows] == list(by_image.ids)
    assert [row["predicted"] for row in rows] == by_image.predicted.tolist()
    assert [row["label"] for row in rows] == list(by_image.labels)
    np.testing.assert_allclose([float(row["margin"]) for row in rows], by_image.margins, rtol=1e-4)
    by_row = machine.predict(made / "features.h5")
    assert by_row.predicted.tolist() == by_image.predicted.tolist()


def test_a_machine_takes_arrays_and_opens_its_network_once(made: Path, digits, monkeypatch):
    from cnnfeat import network as room

    opened = []
    real = room.open_network
    monkeypatch.setattr(room, "open_network", lambda *a, **k: opened.append(a) or real(*a, **k),
                        raising=False)  # fmt: skip
    machine = cnnfeat.load_machine(made / "svm.skops")
    assert opened == []
    found = machine.predict(digits[0])
    one_by_one = [machine.predict(image[None])[0] for image in digits[0][:5]]
    assert len(opened) == 1
    assert [item.predicted for item in one_by_one] == found.predicted[:5].tolist()
    assert found.ids[:2] == ("all/00000", "all/00001")
    assert set(found.labels) == {None}
    assert len(found) == 240
    assert (found[3].predicted, found[3].margin) == (found.predicted[3], found.margins[3])
    assert [item.id for item in found[:2]] == list(found.ids[:2])
    assert found.margins.min() >= 0


def test_a_bad_picture_is_left_out_if_that_is_asked(made: Path, tmp_path: Path, digits):
    for place in range(3):
        Image.fromarray(digits[0][place]).save(tmp_path / f"{place}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    machine = cnnfeat.load_machine(made / "svm.skops")
    with pytest.raises(DataError, match=r"1\.png"):
        machine.predict(tmp_path)
    found = machine.predict(tmp_path, on_error="skip")
    assert found.ids == ("0.png", "2.png")
    assert [sample.id for sample in found.skipped] == ["1.png"]


def test_no_machine_and_another_network(made: Path, tmp_path: Path, digits):
    with pytest.raises(MissingInputError):
        cnnfeat.load_machine(tmp_path / "svm.skops")
    tiny(seed=2).save(tmp_path / "other.keras")
    machine = cnnfeat.load_machine(made / "svm.skops", network=tmp_path / "other.keras")
    with pytest.raises(NetworkError, match="is not the network that"):
        machine.predict(digits[0])
    moved = tmp_path / "here.keras"
    moved.write_bytes((made / "model.keras").read_bytes())
    machine = cnnfeat.load_machine(made / "svm.skops", network=moved, read=ReadOptions())
    assert len(machine.predict(digits[0])) == 240


def test_results_are_worth_a_look_in_a_notebook(made: Path, tmp_path: Path, digits):
    features = made / "features.h5"
    result = cnnfeat.extract(
        made / "model.keras", made / "digits.npz", ExtractOptions(layers=["conv1", "fc1"]),
        out=tmp_path / "f.h5",
    )  # fmt: skip
    first, rows, layers = repr(result).splitlines()
    assert first.startswith(f"ExtractResult {tmp_path / 'f.h5'}, ")
    assert (rows, layers) == ("  rows    240 all", "  layers  conv1 (8, 8, 4), fc1 (12,)")
    with cnnfeat.FeatureFile(features) as file:
        shown = repr(file)
    assert repr(file) == shown  # closed
    assert shown.splitlines() == [
        f"FeatureFile {features}",
        "  rows    240 all; 10 classes",
        "  layers  conv1 (8, 8, 4) float32, fc1 (12,) float32",
        f"  from    {made / 'digits.npz'}, by {made / 'model.keras'}",
    ]
    assert repr(cnnfeat.open_arrays(*digits)).splitlines() == [
        "Source arrays (arrays)",
        "  images   240 all; the first of 8×8×1 uint8",
        "  classes  0, 1, 2, 3, 4, 5, 6, 7 and 2 more",
    ]
    machine = cnnfeat.load_machine(made / "svm.skops")
    assert repr(machine).startswith(f"Machine {made / 'svm.skops'}\n  layer    conv1 of ")
    table = repr(machine.predict(digits[0])).splitlines()
    assert table[0].split() == ["predicted", "margin", "label", "id"]
    assert table[1].split()[::2] == [str(digits[1][0]), "all/00000"]
    assert (len(table), table[-1]) == (12, "... and 230 more")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of two real photographs, of many sizes: a class each; and some more, apart."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(CROPS + 6):
            height, width = random.integers(60, 200, 2)
            top = random.integers(0, photograph.shape[0] - height)
            left = random.integers(0, photograph.shape[1] - width)
            crop = photograph[top : top + height, left : left + width]
            place = folder / ("photos" if number < CROPS else "more") / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(place / f"{number}.jpg")
    return folder


def colours() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = keras.layers.Conv2D(16, 5, strides=2, activation="relu", name="conv")(image)
    return keras.Model(image, keras.layers.MaxPooling2D(4, name="pool")(x), name="colours")


def test_photographs_of_many_sizes(photographs: Path, tmp_path: Path):
    model = colours()
    cnnfeat.extract(
        model,
        photographs / "photos",
        ExtractOptions(layers=["pool"], resize=SIDE),
        out=tmp_path / "features.h5",
    )
    result = cnnfeat.fit_svm(tmp_path / "features.h5", tmp_path, SvmOptions(C=0.01))
    assert result.accuracy > 0.7
    machine = cnnfeat.load_machine(tmp_path / "svm.skops", network=model)
    found = machine.predict(photographs / "more")
    assert found.ids == tuple(f"{name}/{n}.jpg" for name in ("china", "flower")
                              for n in range(CROPS, CROPS + 6))  # fmt: skip
    assert np.mean(found.predicted == np.array(found.labels)) > 0.7
    picture = photographs / "more" / "flower" / f"{CROPS}.jpg"
    (one,) = machine.predict(picture, scores=True)
    assert (one.id, one.predicted) == (str(picture), found.predicted[6])
    assert len(one.scores) == 2


def test_photographs_from_a_training_to_new_ones(photographs: Path, tmp_path: Path):
    photos = DataOptions(source=str(photographs / "photos"), resize=(SIDE, SIDE), fit="crop")
    card = cnnfeat.train(
        photos,
        TrainOptions(epochs=8, learning_rate=0.01),
        out=tmp_path / "model.keras",
        network=ArchitectureOptions(dense=(DenseOptions(units=16),)),
    )
    n_photos = 2 * CROPS
    assert card.n_train + card.n_validation + card.n_test == n_photos
    assert card.image_shape == (SIDE, SIDE, 3)
    options = ExtractOptions(layers=["conv2", "fc1"])
    made = cnnfeat.extract(tmp_path / "model.keras", None, options, out=tmp_path / "features.h5")
    assert sum(made.rows.values()) == n_photos
    result = cnnfeat.fit_svm(made.path, tmp_path, SvmOptions(layer=("fc1",), C=0.1))
    assert (result.evaluation, result.n_test) == ("test split", card.n_test)
    assert result.accuracy > 0.6
    machine = cnnfeat.load_machine(tmp_path / "svm.skops")
    found = machine.predict(photographs / "more")
    assert np.mean(found.predicted == np.array(found.labels)) > 0.6
    with Image.open(photographs / "more" / "china" / f"{CROPS}.jpg") as picture:
        (one,) = machine.predict(np.asarray(picture)[None])
    assert one.predicted == found.predicted[0]
