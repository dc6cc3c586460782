"""How a network was read is kept with the features, and done again by all that comes after."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import cnnfeat.cli
from cnnfeat import LayerFeatures, options, origin
from cnnfeat.errors import FeatureFileError, Interrupted, NetworkError, UntrustedModelError
from cnnfeat.extraction import extract
from cnnfeat.features import FeatureFile
from cnnfeat.knobs import option, result_options
from cnnfeat.network import open_network
from cnnfeat.options import ExtractOptions, ReadOptions
from cnnfeat.origin import network_spec, open_recorded, recorded_probe, recorded_reading
from cnnfeat.provenance import Provenance
from cnnfeat.svm import load_svm
from cnnfeat.svm.persistence import save_svm

SIDE = 8
HERE = Path("features.h5")
v1 = tf.compat.v1


@pytest.fixture
def cli(capfd, monkeypatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cnnfeat.cli.main([str(word) for word in words])
        found = capfd.readouterr()
        return int(caught.value.code or 0), found.out, found.err

    return call


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> np.ndarray:
    """40 dark and light images in images.npz, which two classes tell apart."""
    labels = np.arange(40) % 2
    pixels = rng.integers(0, 100, (40, SIDE, SIDE, 1)) + 120 * labels[:, None, None, None]
    np.savez(tmp_path / "images.npz", images=pixels.astype(np.uint8), labels=labels)
    return pixels.astype(np.uint8)


def fed(path: Path) -> list[object]:
    """A frozen graph whose features are the pixels times a placeholder."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None, SIDE, SIDE, 1), name="x")
        gain = v1.placeholder(tf.float32, (), name="gain")
        tf.multiply(x, gain, name="out")
    tf.io.write_graph(graph, str(path), "fed.pb", as_text=False)
    return ["--model", "fed.pb", "--feed", "gain=3.0", "--layer", "out"]


def signed(path: Path) -> list[object]:
    """A SavedModel with two signatures, of which neither is the default."""
    module = tf.Module()
    spec = tf.TensorSpec((None, SIDE, SIDE, 1), tf.float32, name="x")

    def times(factor: float) -> Callable:
        return tf.function(
            lambda x: {"y": tf.multiply(x, factor, name="out")}, input_signature=[spec]
        )

    module.double, module.triple = times(2.0), times(3.0)
    signatures = {"double": module.double, "triple": module.triple}
    tf.saved_model.save(module, str(path / "signed"), signatures)
    return ["--model", "signed", "--signature", "triple", "--layer", "out"]


def two_inputs(path: Path) -> list[object]:
    """A frozen graph with two inputs that could take the images."""
    with tf.Graph().as_default() as graph:
        for name, factor in (("a", 2.0), ("b", 3.0)):
            x = v1.placeholder(tf.float32, (None, SIDE, SIDE, 1), name=name)
            tf.multiply(x, factor, name=f"from_{name}")
    tf.io.write_graph(graph, str(path), "two.pb", as_text=False)
    return ["--model", "two.pb", "--input", "b", "--layer", "from_b"]


@pytest.mark.parametrize("made", [fed, signed, two_inputs])
def test_a_network_is_read_again_as_it_was(cli, images, tmp_path, made):
    words = made(tmp_path)
    code, _, err = cli("extract", *words, "--data", "images.npz")
    assert code == 0, err
    with h5py.File("artifacts/features.h5") as file:
        features = file[f"all/{words[-1]}"][:]
        recorded = json.loads(file.attrs["options"])["model"]
    np.testing.assert_allclose(features, 3 * (images / np.float32(255)), rtol=1e-6)
    assert any(recorded.values())
    code, _, err = cli("svm", "--C", "0.1")
    assert code == 0, err
    code, out, err = cli("predict", "images.npz", "--csv")
    assert code == 0, err
    code, from_features, err = cli("predict", "artifacts/features.h5", "--csv")
    assert code == 0, err
    assert out.splitlines() == from_features.splitlines()
    code, _, err = cli("plot", "activations", "--layer", words[-1], "--image", "0")
    assert code == 0, err
    code, out, err = cli("report", "--embedding", "pca", "--json")
    assert code == 0, err
    assert not [text for text in json.loads(out)["missing"] if "network" in text or "model" in text]
    machine = LayerFeatures.from_features("artifacts/features.h5", layer=words[-1])
    np.testing.assert_allclose(machine.fit_transform(images), features.reshape(40, -1), rtol=1e-6)


def test_a_flag_goes_before_what_was_recorded(cli, images, tmp_path):
    words = fed(tmp_path)
    assert cli("extract", *words, "--data", "images.npz")[0] == 0
    assert cli("svm", "--C", "0.1", "--normalize", "none")[0] == 0
    plain = cli("predict", "images.npz", "--json")[1]
    other = cli("predict", "images.npz", "--json", "--feed", "gain=30.0")[1]
    margins = [[item["margin"] for item in json.loads(text)] for text in (plain, other)]
    assert not np.allclose(margins[0], margins[1])


@pytest.mark.slow
def test_weights_are_read_again(cli, tmp_path, rng):
    keras.utils.set_random_seed(0)
    keras.applications.MobileNetV3Small(weights=None).save_weights(tmp_path / "own.weights.h5")
    pixels = rng.integers(0, 256, (24, 224, 224, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(24) % 2)
    words = ["--model", "keras:MobileNetV3Small", "--weights", "own.weights.h5"]
    words += ["--layer", "expanded_conv_squeeze_excite_avg_pool", "--data", "images.npz"]
    code, _, err = cli("extract", *words)
    assert code == 0, err
    code, _, err = cli("svm", "--C", "0.1")
    assert code == 0, err
    code, out, err = cli("predict", "images.npz", "--csv")
    assert code == 0, err
    assert out == cli("predict", "artifacts/features.h5", "--csv")[1]
    assert cli("report", "--embedding", "pca")[0] == 0


def test_resume_with_another_feed_is_refused(cli, images, tmp_path):
    fed(tmp_path)
    asked = iter([False] * 3)
    network = open_network("fed.pb", ReadOptions(feed=(("gain", 1.0),)))
    from cnnfeat import open_source

    with open_source("images.npz") as source, pytest.raises(Interrupted):
        extract(
            network,
            source,
            ExtractOptions(layer=("out",), batch_size=4),
            out=tmp_path / "f.h5",
            should_stop=lambda: next(asked, True),
        )
    words = ["extract", "--model", "fed.pb", "--layer", "out", "--data", "images.npz"]
    words += ["--batch-size", "4", "-o", "f.h5", "--resume"]
    code, _, err = cli(*words, "--feed", "gain=5.0")
    assert code == 2
    assert "begun with another feed: gain=1.0, and now it is gain=5.0" in err
    code, _, err = cli(*words, "--feed", "gain=1")
    assert code == 0, err  # the same value, spelled otherwise
    with h5py.File("f.h5") as file:
        np.testing.assert_allclose(file["all/out"][:], images / np.float32(255), rtol=1e-6)


def test_what_was_left_open_is_compared_by_what_it_came_to(cli, images, tmp_path):
    signed(tmp_path)
    two_inputs(tmp_path)
    one = open_network("two.pb", ReadOptions(input="b:0")).read_as
    assert one == open_network("two.pb", ReadOptions(input="b")).read_as
    named = open_network("signed", ReadOptions(signature="triple"))
    assert named.read_as.signature == "triple"
    assert named.read_as.input


def test_features_of_an_older_version_are_read_plainly():
    assert recorded_reading(Provenance(network="m.keras"), beside=HERE) == ReadOptions()
    old = Provenance(preprocessing={"scale": "unit", "resize": [8, 9]}, precision="float32")
    wanted = ExtractOptions(pool="avg", scale="unit", resize=(8, 9))
    assert recorded_probe(old, pool="avg") == wanted


@pytest.mark.parametrize(
    "facts",
    [
        {"options": {"model": {"feed": 3}}},
        {"options": {"model": {"later": 1}}},
        {"options": {"extract": {"tint": "red"}}},
        {"preprocessing": {"scale": "torch"}},
        {"preprocessing": {"resize": [70000, 8000]}},
        {"precision": "float64"},
    ],
)
def test_what_a_newer_version_kept_is_refused_rather_than_left_out(facts):
    with pytest.raises(FeatureFileError, match="made by another version of cnnfeat"):
        recorded_reading(Provenance(**facts), beside=HERE)
        recorded_probe(Provenance(**facts))


def test_a_field_added_to_reading_is_kept_and_done_again(monkeypatch):
    tint = ("tint", str, option("none", "A colour."))
    kind = dataclasses.make_dataclass("Tinted", [tint], bases=(ReadOptions,), frozen=True)
    monkeypatch.setattr(options, "ReadOptions", kind)
    monkeypatch.setattr(origin, "ReadOptions", kind)
    facts = Provenance(options={"model": result_options(kind(tint="red", signature="a"))})
    assert recorded_reading(facts, beside=HERE).tint == "red"
    whole = recorded_reading(facts, beside=HERE, read=kind(signature="b"))
    assert (whole.tint, whole.signature) == ("red", "b")
    assert recorded_reading(facts, beside=HERE, read=kind(tint="blue")).tint == "blue"


def test_a_feed_s_other_spelling_goes_before_what_was_recorded(cli, images, tmp_path):
    words = fed(tmp_path)
    words[words.index("gain=3.0")] = "gain:0=3.0"
    assert cli("extract", *words, "--data", "images.npz")[0] == 0
    path = Path("artifacts/features.h5")
    with FeatureFile(path) as file:
        said = file.provenance
    network = open_recorded(said, beside=path, read=ReadOptions(feed=(("gain", 30.0),)))
    assert network.read_as.feed == (("gain", 30.0),)


def test_labels_named_in_training_are_found_again(cli, images, tmp_path):
    with np.load("images.npz") as arrays:
        np.save("x.npy", arrays["images"])
        np.save("y.npy", arrays["labels"])
    code, _, err = cli("train", "--data", "x.npy", "--labels", "y.npy", "--epochs", "1")
    assert code == 0, err
    code, _, err = cli("extract", "--layer", "fc1")
    assert code == 0, err
    assert "has changed since" not in err
    with h5py.File("artifacts/features.h5") as file:
        for split, n_rows in (("train", 32), ("test", 8)):  # divided for the training
            rows = [int(name.decode().split("/")[1]) for name in file[f"{split}/id"][:]]
            assert len(rows) == n_rows
            np.testing.assert_array_equal(file[f"{split}/label"][:], np.array(rows) % 2)


def test_links_out_of_the_folder_are_not_followed(tmp_path, monkeypatch):
    here, other = tmp_path / "here", tmp_path / "other" / "deep"
    for folder in (here, other):
        folder.mkdir(parents=True)
    (tmp_path / "other" / "secret.pb").write_text("secret", "utf-8")
    (here / "a").symlink_to(other)
    (here / "l").symlink_to(tmp_path / "other")
    monkeypatch.chdir(here)
    for recorded in ("a/../secret.pb", "l/secret.pb"):
        with pytest.raises(UntrustedModelError):
            network_spec(Provenance(network=recorded), beside=here / "artifacts" / "svm.skops")


def test_a_recorded_path_is_followed_only_where_the_user_points(tmp_path, monkeypatch):
    here, theirs = tmp_path / "here", tmp_path / "theirs"
    for folder in (here, theirs, tmp_path / "private"):
        folder.mkdir()
    (tmp_path / "private" / "model.keras").write_text("secret", "utf-8")
    monkeypatch.chdir(here)
    machine = theirs / "svm.skops"
    for recorded in (tmp_path / "private" / "model.keras", "../private/model.keras"):
        with pytest.raises(UntrustedModelError, match="lies neither beside it nor in the current"):
            network_spec(Provenance(network=str(recorded)), beside=machine)
    assert network_spec(Provenance(network="keras:VGG16"), beside=machine) == "keras:VGG16"
    assert network_spec(Provenance(network="nets/m.pb"), beside=machine) == "nets/m.pb"  # from here
    (theirs / "model.keras").write_text("beside", "utf-8")
    found = network_spec(
        Provenance(network=str(tmp_path / "private" / "model.keras")), beside=machine
    )
    assert Path(found) == theirs / "model.keras"
    monkeypatch.chdir("/")
    gone = Provenance(network=str(tmp_path / "private" / "other.keras"))
    with pytest.raises(UntrustedModelError, match=r"lies neither.* and can't be found") as caught:
        network_spec(gone, beside=machine)
    assert caught.value.hint == "--model FILE says where it is now"


def test_a_machine_that_points_elsewhere_is_not_followed(cli, images, tmp_path):
    assert cli("extract", *fed(tmp_path), "--data", "images.npz")[0] == 0
    assert cli("svm", "--C", "0.1")[0] == 0
    (tmp_path / "fed.pb").rename(tmp_path.parent / f"{tmp_path.name}.pb")
    path = Path("artifacts/svm.skops")
    elsewhere = str(tmp_path.parent / f"{tmp_path.name}.pb")
    _set_metadata(path, network=elsewhere)
    code, _, err = cli("predict", "images.npz")
    assert code == 4
    assert f"--model {elsewhere}" in err
    code, _, err = cli("predict", "images.npz", "--model", elsewhere)
    assert code == 0, err


def _set_metadata(path: Path, **changes: object) -> None:
    saved = load_svm(path)
    save_svm(saved.pipeline, path, metadata={**saved.metadata, **changes})


def test_a_network_that_has_moved_is_looked_for_and_asked_for(cli, images, tmp_path):
    assert cli("extract", *fed(tmp_path), "--data", "images.npz")[0] == 0
    assert cli("svm", "--C", "0.1")[0] == 0
    before = cli("predict", "images.npz", "--csv")[1]
    (tmp_path / "away").mkdir()
    (tmp_path / "fed.pb").rename(tmp_path / "away" / "net.pb")
    places = f"looked for {tmp_path / 'fed.pb'} and {tmp_path / 'artifacts' / 'fed.pb'}"
    for words in (("predict", "images.npz"), ("plot", "filters", "--layer", "out")):
        code, _, err = cli(*words)
        assert code == 4
        assert f"can't be found: {places}" in err
        assert "hint: --model FILE says where it is now" in err
        assert "cnnfeat train" not in err
    with pytest.raises(NetworkError, match="can't be found"):
        LayerFeatures.from_features("artifacts/features.h5", layer="out")
    code, out, err = cli("report", "--embedding", "pca", "--json")
    assert code == 0, err
    assert "there is no model fed.pb" in " ".join(json.loads(out)["missing"])
    code, out, err = cli("predict", "images.npz", "--csv", "--model", "away/net.pb")
    assert (code, out) == (0, before), err


def test_a_machine_that_has_moved_away_from_its_network(cli, images, tmp_path, monkeypatch):
    assert cli("extract", *fed(tmp_path), "--data", "images.npz")[0] == 0
    assert cli("svm", "--C", "0.1")[0] == 0
    (tmp_path / "there").mkdir()
    for name in ("artifacts/svm.skops", "images.npz"):
        (tmp_path / name).rename(tmp_path / "there" / Path(name).name)
    monkeypatch.chdir(tmp_path / "there")
    code, _, err = cli("predict", "images.npz", "--svm", "svm.skops")
    assert code == 4
    assert f"the network of svm.skops can't be found: looked for {Path.cwd() / 'fed.pb'}\n" in err
    assert "cnnfeat train" not in err
    code, _, err = cli("predict", "images.npz", "--svm", "svm.skops", "--model", "../fed.pb")
    assert code == 0, err


def test_weights_that_have_moved_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = Provenance(options={"model": {"weights": "own.h5"}})
    with pytest.raises(NetworkError, match=r"the weights of features\.h5 .*own\.h5") as caught:
        recorded_reading(facts, beside=HERE)
    assert caught.value.hint == "--weights FILE says where it is now"
    assert caught.value.exit_code == 4
    (tmp_path / "own.h5").touch()
    assert recorded_reading(facts, beside=HERE).weights == "own.h5"
