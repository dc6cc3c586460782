"""Labels for pictures by machines on several layers, of one network and of several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cnnfeat import LayerFeatures, fit_svm, load_machine
from cnnfeat.data import open_source
from cnnfeat.errors import LayerLookupError, MisfitError, NetworkError, UsageError
from cnnfeat.extraction import extract
from cnnfeat.network import load_network
from cnnfeat.network.network import Network
from cnnfeat.options import ExtractOptions, SvmOptions
from cnnfeat.prediction import predict_features, predict_images
from cnnfeat.svm import load_svm, svm_stage
from cnnfeat.svm.persistence import save_svm

N = 120


def net(side: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((side, side, 1), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(3, 3, padding="same", activation="relu", name="conv1")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(9, activation="relu", name="fc1")(x))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, two networks of different sizes, and the features of each."""
    folder = tmp_path_factory.mktemp("run")
    X, y = load_digits(return_X_y=True)
    images = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)[:N]
    for row, image in enumerate(images):
        place = folder / "pictures" / f"digit {y[row]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:03d}.png")
    for name, side in (("a", 8), ("b", 12)):
        net(side, side).save(folder / f"{name}.keras")
        network = load_network(str(folder / f"{name}.keras"))
        with open_source(str(folder / "pictures")) as source:
            options = ExtractOptions(layer=("conv1", "fc1"), resize=None if side == 8 else (12, 12))
            extract(network, source, options, out=folder / f"{name}.h5")
    one = SvmOptions(layer=("conv1+fc1",), C=0.01)
    fit_svm(folder / "a.h5", folder / "one", one)
    fit_svm([folder / "a.h5", folder / "b.h5"], folder / "two", one)
    for name in ("a", "b"):
        shutil.copy(folder / f"{name}.keras", folder / "two")
    shutil.copy(folder / "a.keras", folder / "one")
    return folder


def told(found) -> list[tuple[str, str, str | None]]:
    return [(one.id, one.predicted, one.machine_part) for one in found]


@pytest.mark.parametrize("machine", ["one", "two"])
def test_pictures_and_their_features_get_the_same_labels(run: Path, machine: str):
    saved = load_svm(run / machine / "svm.skops")
    files = [run / "a.h5", run / "b.h5"][: len(saved.files)]
    by_row = list(predict_features(saved, files))
    loaded = load_machine(run / machine / "svm.skops")
    by_image = loaded.predict(run / "pictures", batch_size=32)
    assert told(by_image) == told(by_row)
    assert len(by_row) == N
    np.testing.assert_allclose(by_image.margins, [one.margin for one in by_row], atol=1e-4)
    again = loaded.predict([str(path) for path in files] if machine == "two" else files[0])
    assert told(again) == told(by_row)


def test_features_are_those_of_both_networks_in_the_machine_s_order(run: Path):
    """Against plain Keras: what comes to the machine is conv1 of one, and fc1 of the other."""
    saved = load_svm(run / "two" / "svm.skops")
    X, _ = load_digits(return_X_y=True)
    images = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8, 1)[:6]
    models = [keras.models.load_model(run / f"{name}.keras") for name in ("a", "b")]
    large = np.stack(
        [np.asarray(Image.fromarray(one[..., 0]).resize((12, 12), 2))[..., None] for one in images]
    )
    expected = np.hstack(
        [
            np.asarray(keras.Model(model.input, model.get_layer(layer).output)(pixels)).reshape(
                6, -1
            )
            for model, layer, pixels in zip(models, ("conv1", "fc1"), (images, large), strict=True)
        ]
    )
    values = saved.pipeline.decision_function(expected)
    found = load_machine(run / "two" / "svm.skops").predict(images, scores=True)
    np.testing.assert_allclose([one.scores for one in found], values, atol=1e-3)


@pytest.fixture
def probed(monkeypatch) -> list[tuple[str, ...]]:
    """The layers of each probe that is made."""
    made: list[tuple[str, ...]] = []
    plain = Network.probe

    def counting(self, layers, *args, **options):
        made.append(tuple(layer.name for layer in layers))
        return plain(self, layers, *args, **options)

    monkeypatch.setattr(Network, "probe", counting)
    return made


@pytest.mark.parametrize(
    ("machine", "expected"), [("one", [("conv1", "fc1")]), ("two", [("conv1",), ("fc1",)])]
)
def test_each_network_computes_once(run: Path, probed, machine, expected):
    load_machine(run / machine / "svm.skops").predict(run / "pictures")
    assert [tuple(name.partition("/")[0] for name in layers) for layers in probed] == expected


def test_a_network_of_two_files_computes_once(run: Path, probed, tmp_path: Path):
    network = load_network(str(run / "a.keras"))
    with open_source(str(run / "pictures")) as source:
        options = ExtractOptions(layer=("fc1",), batch_size=50, dtype="float16")
        extract(network, source, options, out=tmp_path / "half.h5")
    files = [run / "a.h5", tmp_path / "half.h5"]
    svm_stage(files, tmp_path, options=SvmOptions(layer=("conv1+fc1",), C=0.01))
    machine = load_machine(tmp_path / "svm.skops", network=network)
    del probed[:]
    found = machine.predict(run / "pictures")
    assert told(found) == told(machine.predict([str(path) for path in files]))
    assert [len(layers) for layers in probed] == [2]


def test_pictures_that_one_network_cant_take_are_left_out_of_all(run: Path, tmp_path: Path):
    folder = tmp_path / "some"
    folder.mkdir()
    for place, path in enumerate(sorted((run / "pictures").rglob("*.png"))[:7]):
        shutil.copy(path, folder / f"{place}.png")
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(folder / "4.png")
    machine = load_machine(run / "two" / "svm.skops")
    found = machine.predict(folder, on_error="skip", batch_size=3)
    assert [Path(name).name for name in found.ids] == [f"{n}.png" for n in (0, 1, 3, 4, 5, 6)]
    assert [Path(one.id).name for one in found.skipped] == ["2.png"]
    saved = load_svm(run / "two" / "svm.skops")
    skipped = []
    with open_source(str(folder)) as source:
        kept = list(
            predict_images(
                saved, machine.networks, source,
                batch_size=3, on_error="skip", skipped=skipped, any_size=False,
            )
        )  # fmt: skip
    assert kept == []  # 8×8 for one and 12×12 for the other: none is of both
    assert len(skipped) == 7
    with open_source(str(folder / "0.png")) as source:
        found = predict_images(saved, machine.networks, source, any_size=False)
        with pytest.raises(MisfitError, match=r"it is 8×8, and .* on pictures of 12×12"):
            list(found)


@pytest.fixture
def command(cnnfeat):
    def typed(folder: Path, *args: object, code: int = 0):
        done = cnnfeat(*args, folder=folder)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return typed


def test_the_command_takes_pictures_and_both_files(command, run: Path):
    picture = sorted((run / "pictures" / "digit 3").iterdir())[0]
    machine = ("--svm", "two/svm.skops", "--json")
    items = json.loads(command(run, "predict", picture, *machine).stdout)
    assert items[0]["predicted"] == "digit 3"
    items = json.loads(command(run, "predict", "a.h5", picture, "b.h5", *machine).stdout)
    assert len(items) == N + 1
    done = command(run, "predict", "a.h5", *machine, code=3)
    assert "was made by another network" in done.stderr


def test_networks_are_named_in_the_order_of_their_layers(command, run: Path, tmp_path: Path):
    shutil.copy(run / "two" / "svm.skops", tmp_path)
    (tmp_path / "moved").mkdir()
    for name in ("a", "b"):
        shutil.copy(run / f"{name}.keras", tmp_path / "moved")
    picture = sorted((run / "pictures" / "digit 3").iterdir())[0]
    words = ("predict", picture, "--svm", "svm.skops", "--json")
    done = command(tmp_path, *words, code=4)
    assert "neither beside it nor in the current folder" in done.stderr
    a, b = ("--model", "moved/a.keras"), ("--model", "moved/b.keras")
    (item,) = json.loads(command(tmp_path, *words, *a, *b).stdout)
    assert item["predicted"] == "digit 3"
    assert "is not the network that" in command(tmp_path, *words, *b, *a, code=4).stderr
    done = command(tmp_path, *words, *a, code=2)
    assert "a.keras" in done.stderr and "b.keras, and is given 1 network\n" in done.stderr
    assert "hint: --model, once for each of them, in this order" in done.stderr


def test_networks_of_a_program_are_given_as_a_list(run: Path):
    networks = [load_network(str(run / f"{name}.keras")) for name in ("a", "b")]
    machine = load_machine(run / "two" / "svm.skops", network=networks)
    assert machine.networks == tuple(networks)
    with pytest.raises(NetworkError, match="is not the network that"):
        load_machine(run / "two" / "svm.skops", network=networks[::-1]).predict(run / "pictures")
    with pytest.raises(UsageError, match="is given 3 networks"):
        _ = load_machine(run / "two" / "svm.skops", network=[*networks, networks[0]]).networks


@pytest.mark.parametrize("name", ["b.png", "nothing.h5"])
def test_a_list_of_other_paths_than_feature_files_is_refused(run: Path, name: str):
    machine = load_machine(run / "two" / "svm.skops")
    with pytest.raises(UsageError, match=f"is of feature files .*, and {name} is none") as told:
        machine.predict([run / "a.h5", Path(name)])
    assert "one by one" in told.value.hint


def test_a_tensor_that_means_several_is_refused(run: Path, tmp_path: Path):
    saved = load_svm(run / "one" / "svm.skops")
    joined = [{**one, "tensor": "*"} for one in saved.metadata["joined"]]
    save_svm(saved.pipeline, tmp_path / "svm.skops", metadata={**saved.metadata, "joined": joined})
    machine = load_machine(tmp_path / "svm.skops", network=run / "a.keras")
    with pytest.raises(LayerLookupError, match=r"is of '\*', which means \d+ layers"):
        machine.predict(run / "pictures")


def test_a_step_of_a_pipeline_joins_layers_as_features_are(run: Path):
    X, _ = load_digits(return_X_y=True)
    images = (X * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8, 1)[:20]
    path = str(run / "a.keras")
    parts = [LayerFeatures(path, layer=name).fit_transform(images) for name in ("fc1", "conv1")]
    joined = LayerFeatures(path, layer="fc1+conv1").fit(images)
    np.testing.assert_array_equal(joined.transform(images), np.hstack(parts))
    names = joined.get_feature_names_out()
    assert joined.n_features_out_ == len(names) == 9 + 192
    assert list(names[[0, 8, 9]]) == ["fc1[0]", "fc1[8]", "conv1[0,0,0]"]
    made = LayerFeatures.from_features(run / "a.h5", layer="fc*+conv1", model=path)
    np.testing.assert_array_equal(made.fit_transform(images), np.hstack(parts))
    with pytest.raises(UsageError, match="has a layer twice"):
        LayerFeatures(path, layer="fc1+fc1").fit(images)
    with pytest.raises(LayerLookupError, match="fc7"):
        LayerFeatures(path, layer="fc1+fc7").fit(images)


def test_a_machine_on_one_layer_of_two_files_is_made_by_the_stage(run: Path, tmp_path: Path):
    result = svm_stage(
        [run / "b.h5", run / "a.h5"], tmp_path, options=SvmOptions(layer=("fc1",), C=0.1)
    )
    assert (result.best.layer, result.best.n_features) == ("fc1+fc1", 18)
