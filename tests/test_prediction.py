"""Labels for pictures and feature files, by a saved machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from cnnfeat.data import open_source
from cnnfeat.errors import FeatureFileError, LayerLookupError, NetworkError, UsageError
from cnnfeat.extraction import extract
from cnnfeat.features import write_arrays
from cnnfeat.network import load_network
from cnnfeat.options import ExtractOptions, SvmOptions
from cnnfeat.parts import pack_parts
from cnnfeat.prediction import predict_features, predict_images
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
    assert "of 300 right" in table.stderr
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
    assert "1 pictures were left out" in done.stderr


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
