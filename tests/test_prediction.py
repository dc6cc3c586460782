"""Labels for pictures and feature files, by a saved machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from cnnfeat import LayerFeatures, load_machine
from cnnfeat.brightness import measure
from cnnfeat.card import ModelCard, file_sha256, write_card
from cnnfeat.data import open_data, open_source
from cnnfeat.divided import divide_source
from cnnfeat.errors import FeatureFileError, LayerLookupError, NetworkError, UsageError
from cnnfeat.extraction import extract
from cnnfeat.features import FeatureFile, write_arrays
from cnnfeat.network import load_network
from cnnfeat.options import DataOptions, ExtractOptions, FitOptions, SvmOptions
from cnnfeat.parts import DivisionRule, pack_parts
from cnnfeat.prediction import open_to_predict, predict_features, predict_images
from cnnfeat.svm import load_svm, svm_stage
from cnnfeat.svm.calibration import fit_calibration
from cnnfeat.svm.persistence import save_svm


def tiny(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(12, activation="relu", name="fc1")(x))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, pictures with labels, their features, and a machine on them."""
    folder = tmp_path_factory.mktemp("run")
    tiny(1).save(folder / "model.keras")
    X, y = load_digits(return_X_y=True)
    images = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)[:300]
    for row, image in enumerate(images):
        place = folder / "pictures" / f"digit {y[row]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:03d}.png")
    network = load_network(str(folder / "model.keras"))
    with open_source(str(folder / "pictures")) as source:
        options = ExtractOptions(layer=("conv1", "fc1"))
        extract(network, source, options, out=folder / "features.h5")
    svm_stage(folder / "features.h5", folder, options=SvmOptions(layer=("conv1",), C=0.01))
    return folder


def test_pictures_and_their_features_get_the_same_labels(run: Path):
    saved = load_svm(run / "svm.skops")
    network = load_network(str(run / "model.keras"))
    with open_source(str(run / "pictures")) as source:
        by_image = list(predict_images(saved, network, source, batch_size=64))
    by_row = list(predict_features(saved, run / "features.h5"))
    assert [p.id for p in by_image] == [p.id for p in by_row]
    assert [p.predicted for p in by_image] == [p.predicted for p in by_row]
    np.testing.assert_allclose([p.margin for p in by_image], [p.margin for p in by_row], atol=1e-4)
    right = np.mean([p.label == p.predicted for p in by_image])
    assert right > 0.9
    assert by_image[0].label == by_image[0].id.split("/")[0]
    for item in by_row[:20]:
        assert item.predicted in saved.classes


def test_another_network_is_refused(run: Path, tmp_path: Path):
    tiny(2).save(tmp_path / "other.keras")
    network = load_network(str(tmp_path / "other.keras"))
    saved = load_svm(run / "svm.skops")
    with (
        open_source(str(run / "pictures")) as source,
        pytest.raises(NetworkError, match=r"is not the network that .* was trained on") as caught,
    ):
        next(predict_images(saved, network, source))
    assert "--model" in caught.value.hint


def test_features_of_another_network_or_layer_are_refused(run: Path, tmp_path: Path):
    saved = load_svm(run / "svm.skops")
    digest = str(saved.metadata["network_sha256"])
    rows = np.zeros((4, 5), np.float32)
    cases = [
        ({"fc1": rows}, "other", FeatureFileError, "was made by another network"),
        ({"fc1": rows}, digest, LayerLookupError, "trained on layer 'conv1'; .* has 'fc1'"),
        ({"conv1": rows}, digest, LayerLookupError, "'conv1' has 5 features; .* trained on 256"),
    ]
    for place, (layers, sha256, error, words) in enumerate(cases):
        path = tmp_path / f"{place}.h5"
        write_arrays(path, {"all": layers}, attributes={"network_sha256": sha256})
        with pytest.raises(error, match=words):
            next(predict_features(saved, path))


def test_an_unknown_split_lists_those_there_are(run: Path):
    saved = load_svm(run / "svm.skops")
    with pytest.raises(UsageError, match="no split 'test'; there are all"):
        next(predict_features(saved, run / "features.h5", splits=["test"]))


@pytest.fixture
def command(cnnfeat):
    """Type `cnnfeat predict` in a folder and expect an exit code."""

    def typed(folder: Path, *args: str, code: int = 0):
        done = cnnfeat("predict", *args, folder=folder)
        assert done.returncode == code, done.stderr
        return done

    return typed


def test_one_picture_is_labelled(command, run: Path):
    picture = sorted((run / "pictures" / "digit 3").iterdir())[0]
    done = command(run, str(picture), "--svm", "svm.skops", "--json")
    (item,) = json.loads(done.stdout)
    assert item["predicted"] == "digit 3"
    assert item["margin"] > 0


def test_tables_and_commas(command, run: Path):
    table = command(run, "features.h5", "--svm", "svm.skops")
    assert len(table.stdout.splitlines()) == 301
    counts = [line for line in table.stderr.splitlines() if " right (" in line]
    assert len(counts) == 2  # the machine's own rows, and those that it was scored on
    assert any("the machine was fitted to them" in line for line in counts)
    assert any("the machine was not fitted to them" in line for line in counts)
    assert sum(int(line.split(" of ")[1].split()[0]) for line in counts) == 300
    lines = command(run, "features.h5", "--svm", "svm.skops", "--csv").stdout.splitlines()
    assert lines[0] == "id,split,label,predicted,margin"
    assert len(lines) == 301


def test_pictures_of_one_name_are_told_apart(command, run: Path, tmp_path: Path):
    for name, digit in (("a", 3), ("b", 0)):
        (tmp_path / name).mkdir()
        picture = sorted((run / "pictures" / f"digit {digit}").iterdir())[0]
        (tmp_path / name / "1.png").write_bytes(picture.read_bytes())
    machine = str(run / "svm.skops")
    done = command(tmp_path, "a/1.png", "b/1.png", "--svm", machine, "--json")
    items = json.loads(done.stdout)
    assert [item["id"] for item in items] == ["a/1.png", "b/1.png"]
    assert [item["predicted"] for item in items] == ["digit 3", "digit 0"]


def test_scores_are_the_machines_and_the_best_come_first(command, run: Path):
    done = command(run, "features.h5", "--svm", "svm.skops", "--json", "--scores", "--top", "2")
    items = json.loads(done.stdout)
    saved = load_svm(run / "svm.skops")
    with h5py.File(run / "features.h5") as file:
        rows = file["all/conv1"][:].reshape(300, -1)
    expected = saved.pipeline.decision_function(rows)
    found = np.array([[item["scores"][name] for name in saved.classes] for item in items])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    order = np.argsort(-expected, axis=1)
    for item, best in zip(items, order, strict=True):
        assert [one["class"] for one in item["top"]] == [saved.classes[k] for k in best[:2]]
        assert item["top"][0]["class"] == item["predicted"]


def test_a_calibrated_machine_gives_probabilities(command, run: Path, tmp_path: Path):
    saved = load_svm(run / "svm.skops")
    with h5py.File(run / "features.h5") as file:
        rows, labels = file["all/conv1"][:].reshape(300, -1), file["all/label"][:]
    held = slice(0, 300, 2)  # of all classes; that the machine was fitted to some is no matter here
    learned = fit_calibration(
        saved.pipeline.decision_function(rows[held]), labels[held], classes=saved.classes
    )
    metadata = {**saved.metadata, "calibration": learned.to_json()}
    save_svm(saved.pipeline, tmp_path / "svm.skops", metadata=metadata)
    machine = str(tmp_path / "svm.skops")
    items = json.loads(command(run, "features.h5", "--svm", machine, "--json", "--scores").stdout)
    theirs = CalibratedClassifierCV(FrozenEstimator(saved.pipeline), cv=2)
    expected = theirs.fit(rows[held], labels[held]).predict_proba(rows)
    found = np.array([[item["probabilities"][name] for name in saved.classes] for item in items])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for item in items:
        assert item["probability"] == item["probabilities"][item["predicted"]]
    table = command(run, "features.h5", "--svm", machine).stdout
    assert table.splitlines()[0].split() == ["predicted", "margin", "probability", "label", "id"]


def test_rows_that_the_machine_was_fitted_to_are_told(run: Path, tmp_path: Path):
    saved = load_svm(run / "svm.skops")
    parts = (np.arange(300) % 3).astype(np.uint8)
    metadata = {**saved.metadata, "parts": {"all": pack_parts(parts)}}
    save_svm(saved.pipeline, tmp_path / "svm.skops", metadata=metadata)
    known = load_svm(tmp_path / "svm.skops")
    found = [item.machine_part for item in predict_features(known, run / "features.h5")]
    assert found == ["unseen", "fitted", "validation"] * 100
    other = {**metadata, "source_fingerprint": "another"}
    save_svm(saved.pipeline, tmp_path / "svm.skops", metadata=other)
    unknown = load_svm(tmp_path / "svm.skops")
    assert {item.machine_part for item in predict_features(unknown, run / "features.h5")} == {None}


def test_a_bad_picture_ends_the_run_or_is_left_out(command, run: Path, tmp_path: Path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, picture in enumerate(sorted((run / "pictures" / "digit 5").iterdir())[:3]):
        (folder / f"{place}.png").write_bytes(picture.read_bytes())
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    args = (str(folder), "--svm", "svm.skops", "--json")
    assert "1.png" in command(run, *args, code=3).stderr
    done = command(run, *args, "--on-error", "skip", code=6)
    assert len(json.loads(done.stdout)) == 2
    assert "left out: 1 picture\n" in done.stderr


def test_pictures_named_one_by_one_are_left_out_likewise(command, run: Path, tmp_path: Path):
    good = [str(path) for path in sorted((run / "pictures" / "digit 5").iterdir())[:2]]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    words = [good[0], str(tmp_path / "bad.png"), good[1], "--svm", "svm.skops", "--json"]
    assert "bad.png: damaged" in command(run, *words, code=3).stderr
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "page.png").write_text("<html>", "utf-8")
    others = [str(tmp_path / name) for name in ("pipe.png", "page.png")]
    done = command(run, *others, *words, "--on-error", "skip", code=6)
    assert [item["id"] for item in json.loads(done.stdout)] == good
    assert f"left out: {tmp_path / 'bad.png'}: damaged" in done.stderr
    assert f"left out: {others[0]}: is a pipe, not a regular file" in done.stderr
    assert f"left out: {others[1]}: no kind of data known here" in done.stderr
    large = enlarged(run, tmp_path, "digit 5")
    words = [good[0], str(large), good[1], "--svm", "svm.skops", "--json", "--no-resize"]
    done = command(run, *words, "--on-error", "skip", code=6)
    assert [item["id"] for item in json.loads(done.stdout)] == good
    assert f"left out: {large}: it is 40×32, and the machine was trained on" in done.stderr


def test_pixels_of_another_depth_are_told(run: Path, tmp_path, rng, caplog):
    """The machine's were bytes, and its network divides by 255 itself."""
    images = rng.integers(0, 256, (2, 8, 8), np.uint8)
    machine = load_machine(run / "svm.skops")
    expected = machine.predict(images)
    assert "were uint8 for the machine" not in caplog.text
    float_machine(run, tmp_path)
    again = load_machine(tmp_path / "svm.skops")
    assert again.predict(images).margins == pytest.approx(expected.margins, rel=1e-4)
    again.predict(images.astype(np.float32) / 255)
    again.predict(images.astype(np.float32) / 255)
    assert caplog.text.count("pixels are float32, and were uint8 for the machine's features") == 1


def float_machine(run: Path, folder: Path) -> None:
    """Put the run's machine into a folder, with its network taking floats too."""
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.models.load_model(run / "model.keras")
    x = inputs
    for layer in model.layers[1:]:
        x = layer(x)
    keras.Model(inputs, x).save(folder / "model.keras")
    saved = load_svm(run / "svm.skops")
    made = load_network(str(folder / "model.keras"))
    metadata = {
        **saved.metadata,
        "network": "model.keras",
        "network_sha256": made.sha256,
        "tensor": made.find([str(saved.metadata["layer_name"])])[0].tensor.name,
    }
    save_svm(saved.pipeline, folder / "svm.skops", metadata=metadata)


def test_no_machine_yet_names_the_command(command, tmp_path: Path):
    assert "cnnfeat svm" in command(tmp_path, "digits", code=2).stderr


def test_features_need_no_tensorflow(run: Path):
    code = (
        "import sys\n"
        "from cnnfeat.cli import main\n"
        "try:\n"
        "    main(['predict', 'features.h5', '--svm', 'svm.skops', '-q'])\n"
        "finally:\n"
        "    print([m for m in ('tensorflow', 'keras') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=run, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr.strip() == "[]"


def enlarged(run: Path, folder: Path, label: str, *, shape=(40, 32), colour=True) -> Path:
    """A picture of the training's, made larger and coloured: what a new user has."""
    picture = Image.open(sorted((run / "pictures" / label).iterdir())[0])
    large = picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    (large.convert("RGB") if colour else large).save(folder / f"{label}.png")
    return folder / f"{label}.png"


def test_a_picture_of_any_size_is_brought_to_what_the_network_takes(command, run, tmp_path):
    pictures = [str(enlarged(run, tmp_path, f"digit {digit}")) for digit in (0, 3, 6)]
    done = command(run, *pictures, "--svm", "svm.skops", "--json")
    assert [item["predicted"] for item in json.loads(done.stdout)] == [
        "digit 0",
        "digit 3",
        "digit 6",
    ]
    assert done.stderr.count("brought to 8×8×1, as the network takes them (--fit stretch)") == 1


def test_pictures_of_the_right_size_are_said_nothing_of(command, run):
    picture = str(sorted((run / "pictures" / "digit 3").iterdir())[0])
    assert "brought" not in command(run, picture, "--svm", "svm.skops").stderr


def test_a_picture_of_another_size_can_be_refused(command, run, tmp_path):
    picture = str(enlarged(run, tmp_path, "digit 3"))
    done = command(run, picture, "--svm", "svm.skops", "--no-resize", code=4)
    assert "digit 3.png: it is 40×32, and the machine was trained on pictures of 8×8" in done.stderr
    assert "hint: without --no-resize" in done.stderr
    own = str(sorted((run / "pictures" / "digit 3").iterdir())[0])
    command(run, own, "--svm", "svm.skops", "--no-resize")
    words = ["--no-resize", "--fit", "crop"]
    assert "excludes" in command(run, own, "--svm", "svm.skops", *words, code=2).stderr


def test_pictures_of_many_sizes_take_one_function(run: Path, tmp_path, caplog):
    caplog.set_level("INFO", logger="cnnfeat")
    machine = load_machine(run / "svm.skops")
    for side in (9, 11, 14):
        path = tmp_path / f"{side}.png"
        Image.fromarray(np.full((side, side + 1), 200, np.uint8)).save(path)
        assert machine.predict(path).ids == (str(path),)
    assert sum(text.startswith("images: to ") for text in caplog.messages) == 1


def test_a_fit_keeps_proportions(run, tmp_path):
    """A digit beside an equally large black field: padded or cropped, not squeezed."""
    saved, network = load_svm(run / "svm.skops"), load_network(str(run / "model.keras"))
    small = np.asarray(Image.open(sorted((run / "pictures" / "digit 0").iterdir())[0]))
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = small
    np.savez(tmp_path / "wide.npz", images=wide[None])
    np.savez(tmp_path / "own.npz", images=small[None])
    with open_source(str(tmp_path / "own.npz")) as source:
        (own,) = predict_images(saved, network, source)
    with open_source(str(tmp_path / "wide.npz")) as source:
        (cropped,) = predict_images(saved, network, source, fitting=FitOptions(fit="crop"))
        (squeezed,) = predict_images(saved, network, source)
    assert cropped.margin == pytest.approx(own.margin, abs=1e-4)
    assert squeezed.margin != pytest.approx(own.margin, abs=1e-2)


@pytest.mark.parametrize("invert", [False, True])
def test_what_was_done_to_the_machine_s_pictures_is_done_again(run, tmp_path, invert):
    """A resize, a fit and an inversion by the source, recorded from features to machine."""
    network = load_network(str(run / "model.keras"))
    rng = np.random.default_rng(2)
    labels = np.arange(60) % 2
    images = rng.integers(0, 100, (60, 20, 24), np.uint8)
    images[labels == 1, :, 12:] += 100
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    how = DataOptions(source=str(tmp_path / "x.npz"), resize=(8, 8), fit="crop", invert=invert)
    with open_data(how) as source:
        extract(network, source, ExtractOptions(layer=("conv1",)), out=tmp_path / "f.h5")
    svm_stage(tmp_path / "f.h5", tmp_path, options=SvmOptions(C=0.01))
    saved = load_svm(tmp_path / "svm.skops")
    by_row = [item.margin for item in predict_features(saved, tmp_path / "f.h5")]
    with open_source(str(tmp_path / "x.npz")) as source:
        by_image = [item.margin for item in predict_images(saved, network, source)]
        np.testing.assert_allclose(by_image, by_row, atol=1e-4)
        other = predict_images(saved, network, source, fitting=FitOptions(fit="stretch"))
        assert not np.allclose([item.margin for item in other], by_row, atol=1e-4)
        with pytest.raises(NetworkError, match="the machine was trained on pictures of 8×8"):
            next(predict_images(saved, network, source, any_size=False))
    features = LayerFeatures.from_features(tmp_path / "f.h5", model=str(run / "model.keras")).fit(
        images[:, :, :, None]
    )
    assert (features.resize, features.proportions, features.invert) == ((8, 8), "crop", invert)
    with FeatureFile(tmp_path / "f.h5") as file:
        rows = file.read("all", "conv1").reshape(60, -1)
    np.testing.assert_allclose(features.transform(images[:, :, :, None]), rows, atol=1e-5)


@pytest.fixture
def carded(run, tmp_path) -> Path:
    """The same machine and network, with a card that keeps the pixels trained on."""
    for name in ("model.keras", "svm.skops"):
        shutil.copy(run / name, tmp_path / name)
    with open_source(str(run / "pictures")) as source:
        pixels = measure(batch.images for batch in source.batches("all", batch_size=512))
    card = ModelCard(
        cnnfeat="1", tensorflow="2", keras="3", created="", config={}, classes=(), history=(),
        source={"name": "others"}, image_shape=(8, 8, 1), best_epoch=1, validation_accuracy=1.0,
        test_accuracy=None, n_train=1, n_validation=1, n_test=0, elapsed_s=1.0,
        model_sha256=file_sha256(tmp_path / "model.keras"), pixels=pixels,
    )  # fmt: skip
    write_card(card, tmp_path / "model.json")
    return tmp_path


def negative(run: Path, folder: Path, digit: int) -> Path:
    """A digit of the training's as ink on paper, larger."""
    picture = Image.open(sorted((run / "pictures" / f"digit {digit}").iterdir())[0])
    ImageOps.invert(picture).resize((24, 24), Image.Resampling.BICUBIC).save(
        folder / f"{digit}.png"
    )
    return folder / f"{digit}.png"


def test_opposite_pictures_are_said_to_be_and_turned(command, run, carded):
    pictures = [str(negative(run, carded, digit)) for digit in (0, 3, 6)]
    plain = command(carded, *pictures, "--svm", "svm.skops", "--json")
    assert plain.stderr.count("mostly light, the opposite of those that the network") == 1
    assert plain.stderr.count("--invert turns light into dark") == 1
    turned = command(carded, *pictures, "--svm", "svm.skops", "--json", "--invert")
    assert "mostly" not in turned.stderr
    predicted = [item["predicted"] for item in json.loads(turned.stdout)]
    assert predicted == ["digit 0", "digit 3", "digit 6"]
    own = str(sorted((run / "pictures" / "digit 3").iterdir())[0])
    assert "mostly" not in command(carded, own, "--svm", "svm.skops").stderr
    wrong = command(carded, own, "--svm", "svm.skops", "--invert")
    assert "would not be without --invert" in wrong.stderr


def test_an_extraction_of_opposite_pictures_says_so_too(cnnfeat, run, carded):
    images = 255 - np.stack(
        [np.asarray(Image.open(path)) for path in sorted((run / "pictures").rglob("*.png"))[:90]]
    )
    np.savez(carded / "ink.npz", images=images)
    words = ["extract", "--model", "model.keras", "--layer", "fc1", "--data", "ink.npz"]
    done = cnnfeat(*words, "-o", "ink.h5", folder=carded)
    assert (done.returncode, done.stderr.count("--invert turns light into dark")) == (0, 1)
    done = cnnfeat(*words, "-o", "turned.h5", "--invert", folder=carded)
    assert (done.returncode, "mostly" in done.stderr) == (0, False)
    with FeatureFile(carded / "turned.h5") as file:
        assert json.loads(file.attributes["options"])["data"]["invert"] is True
        turned = file.read("all", "fc1")
    np.savez(carded / "light.npz", images=255 - images)
    done = cnnfeat(*words[:-1], "light.npz", "-o", "light.h5", folder=carded)
    assert (done.returncode, "mostly" in done.stderr) == (0, False)
    with FeatureFile(carded / "light.h5") as file:
        np.testing.assert_array_equal(file.read("all", "fc1"), turned)


def test_what_the_network_saw_of_rows_is_told(run: Path, tmp_path: Path):
    saved = load_svm(run / "svm.skops")
    parts = np.array([0, 1, 2], np.uint8)
    write_arrays(
        tmp_path / "seen.h5",
        {"all": {"conv1": np.zeros((3, 256), np.float32)}},
        parts={"all": parts},
        attributes={"network_sha256": str(saved.metadata["network_sha256"])},
    )
    found = list(predict_features(saved, tmp_path / "seen.h5"))
    assert [item.network_part for item in found] == ["unseen", "fitted", "validation"]
    assert {item.machine_part for item in found} == {None}  # of the same source or not: not known


@pytest.fixture(scope="module")
def divided(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, divided as for a training."""
    folder = tmp_path_factory.mktemp("divided")
    shutil.copytree(run / "pictures", folder / "pictures")
    shutil.copy(run / "model.keras", folder)
    network = load_network(str(folder / "model.keras"))
    with open_source(str(folder / "pictures")) as source:
        rows = divide_source(source, DivisionRule(test_fraction=0.2, validation=0.2, seed=0))
        extract(network, rows, ExtractOptions(layer=("conv1",)), out=folder / "features.h5")
    svm_stage(folder / "features.h5", folder, options=SvmOptions(C=0.01))
    return folder


def test_the_machine_s_own_pictures_are_divided_as_they_were(divided: Path):
    saved = load_svm(divided / "svm.skops")
    network = load_network(str(divided / "model.keras"))
    by_row = {item.id: item for item in predict_features(saved, divided / "features.h5")}
    with open_to_predict(saved, DataOptions(str(divided / "pictures"))) as source:
        by_image = {item.id: item for item in predict_images(saved, network, source)}
    by_machine = {
        item.id: item for item in load_machine(divided / "svm.skops").predict(divided / "pictures")
    }
    assert by_machine == by_image
    assert by_image.keys() == by_row.keys()
    for name, item in by_image.items():
        told = (item.split, item.predicted, item.machine_part, item.network_part)
        row = by_row[name]
        assert told == (row.split, row.predicted, row.machine_part, row.network_part)
    seen = {(item.split, item.machine_part, item.network_part) for item in by_image.values()}
    assert seen == {
        ("train", "fitted", "fitted"),
        ("train", "fitted", "validation"),
        ("test", "unseen", "unseen"),
    }


def test_right_ones_are_counted_by_split(command, divided: Path):
    done = command(divided, "pictures", "--svm", "svm.skops", "--csv")
    counts = [line for line in done.stderr.splitlines() if " right (" in line]
    assert [line.split(":")[0] for line in counts] == ["train", "train", "test"]
    assert counts[2].endswith("neither the machine nor the network was fitted to them")
    lines = command(divided, "pictures", "--svm", "svm.skops", "--csv", "--split", "test").stdout
    assert {line.split(",")[1] for line in lines.splitlines()[1:]} == {"test"}


def test_a_source_that_has_changed_and_an_older_machine_are_said_to_tell_nothing(
    run: Path, tmp_path: Path, caplog
):
    """Some of the rows were seen, and nobody knows which: no bare number of right ones."""
    start = f"which rows of {run / 'pictures'} the machine has seen isn't known: "
    saved = load_svm(run / "svm.skops")
    older = {name: value for name, value in saved.metadata.items() if name != "parts"}
    changed = {**saved.metadata, "source_fingerprint": "0" * 64}
    for metadata, why in (
        (saved.metadata, None),
        (older, "the machine is of an older cnnfeat, which didn't say"),
        (changed, "it has changed since"),
        ({**changed, "source": "elsewhere"}, None),
    ):
        save_svm(saved.pipeline, tmp_path / "svm.skops", metadata=metadata)
        machine = load_machine(tmp_path / "svm.skops", network=run / "model.keras")
        for images in (run / "features.h5", run / "pictures"):
            caplog.clear()
            machine.predict(images)
            said = [record.getMessage() for record in caplog.records if "seen" in record.message]
            assert said == ([] if why is None else [start + why])


def test_of_other_pictures_nothing_is_claimed(command, divided: Path, tmp_path: Path):
    shutil.copytree(divided / "pictures" / "digit 3", tmp_path / "few" / "digit 3")
    shutil.copytree(divided / "pictures" / "digit 4", tmp_path / "few" / "digit 4")
    done = command(divided, str(tmp_path / "few"), "--svm", "svm.skops", "--json")
    items = json.loads(done.stdout)
    assert {(item["machine_part"], item["network_part"]) for item in items} == {(None, None)}
    (line,) = [line for line in done.stderr.splitlines() if " right (" in line]
    assert line.startswith("all: ")
    assert line.endswith("%)")
