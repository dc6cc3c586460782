"""`cnnfeat extract`, and signals while it runs."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from cnnfeat.data.decode import decode_stream
from cnnfeat.errors import ImageError, Interrupted
from cnnfeat.extraction import widening
from cnnfeat.features import FeatureFile, FeatureWriter


@pytest.fixture
def images(tmp_path: Path, rng: np.random.Generator) -> Path:
    """150 images with labels, without a division."""
    path = tmp_path / "images.npz"
    np.savez(
        path,
        images=rng.integers(0, 256, (150, 8, 8, 1), np.uint8),
        labels=rng.integers(0, 10, 150),
    )
    return path


@pytest.fixture
def run(cnnfeat, monkeypatch, tmp_path, model):
    monkeypatch.chdir(tmp_path)
    return functools.partial(cnnfeat, "extract", "--model", model)


def _by_keras(model: Path, images: np.ndarray, layer: str) -> np.ndarray:
    x = images
    for item in keras.models.load_model(model).layers[1:]:
        x = item(x, training=False)
        if item.name == layer:
            return np.asarray(x)
    raise LookupError(layer)


def test_features_are_those_of_plain_keras(run, model, images):
    code, out, err = run("--data", images, "--layer", "conv1", "--layer", "fc1", "--batch-size", 64)
    assert code == 0, err
    with np.load(images) as arrays, FeatureFile(Path("artifacts/features.h5")) as file:
        for layer in ("conv1", "fc1"):
            wanted = _by_keras(model, arrays["images"], layer)
            found = file.read("all", layer)
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
        np.testing.assert_array_equal(file.labels("all"), arrays["labels"])
        assert file.attributes["network"] == str(model)
        assert json.loads(str(file.attributes["preprocessing"]))["scale"]
    assert "all: conv1 (150, 4, 4, 4) float32, fc1 (150, 6) float32, label (150,) int64" in err
    assert "150 rows" in out and re.search(r"images/s\n", out)
    assert "TensorFlow" not in err  # its chatter


def test_layers_are_found_by_the_names_they_were_asked_for(run, cnnfeat, images):
    words = ["--layer", "-2", "--layer", "CONV1", "--layer", "fc2/*"]
    code, _, err = run("--data", images, *words, "-o", "asked.h5")
    assert code == 0, err
    with FeatureFile(Path("asked.h5")) as file:
        known = {asked: file.find_layer(asked) for asked in ("-2", "CONV1")}
        with h5py.File("asked.h5") as plain:
            said = {name: array.attrs.get("asked") for name, array in plain["all"].items()}
    assert known == {"-2": "fc1", "CONV1": "conv1"}
    assert said["fc1"] == "-2" and said["conv1"] == "CONV1"
    code, out, err = cnnfeat("svm", "asked.h5", "--layer", "-2", "-o", "asked")
    assert code == 0, err
    assert re.search("^layer +fc1: 6 features$", out, re.MULTILINE)


def test_json_says_what_was_made(run, images):
    code, out, err = run(
        "--data", images, "--layer", "conv*", "--json", "--dtype", "float16", "-o", "f.h5"
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["path"] == "f.h5" and said["rows"] == {"all": 150} and said["skipped"] == {}
    assert said["layers"][0]["layer"] == "conv1" and said["layers"][0]["row_shape"] == [4, 4, 4]
    with h5py.File("f.h5") as file:
        assert file["all/conv1"].dtype == "float16"


def test_skipped_pictures_give_exit_code_6(run, tmp_path, rng):
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        picture.save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "7.png").write_bytes(b"\x89PNG broken")
    code, _, err = run("--data", tmp_path / "pictures", "--layer", "fc1")
    assert code == 3 and "7.png" in err
    assert not Path("artifacts/features.h5").exists()
    code, out, err = run(
        "--data", tmp_path / "pictures", "--layer", "fc1", "--on-error", "skip", "--overwrite"
    )
    assert code == 6
    assert "left out 7.png" in err and "1 left out" in out
    with FeatureFile(Path("artifacts/features.h5")) as file:
        assert file.ids("all") == [f"{number}.png" for number in range(12) if number != 7]
        assert [item.id for item in file.skipped("all")] == ["7.png"]


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--layer", "convv1"], 4, "convv1", "conv1"),
        (["--layer", "fc1", "--batch-size", "0"], 2, "at least 1", ""),
        (["--layer", "fc1", "--dtype", "float64"], 2, "'float32' or 'float16'", ""),
        (["--layer", "fc1", "--resize", "8x8x8"], 2, "8x8x8", ""),
        (["--layer", "fc1", "--feed", "keep_prob"], 2, "keep_prob=1.0", ""),
        (["--layer", "fc1", "--limit", "0"], 2, "--limit", ""),
        (["--layer", "fc1", "--split", "tset"], 2, "no split 'tset'", ""),
        (["--layer", "fc1", "--model", "none.keras"], 2, "none.keras", "models are"),
        (["--layer", "fc1", "--data", "nowhere"], 2, "nowhere", ""),
        (["--layer", "fc1", "--device", "gpu:99"], 4, "--device gpu:99: ", "--device auto"),
    ],
)
def test_bad_options_are_answered(run, images, words, code, message, hint):  # noqa: PLR0917
    data = [] if "--data" in words else ["--data", str(images)]
    found, out, err = run(*data, *words)
    assert found == code, err
    assert message in err and hint in err
    assert out == ""
    assert not Path("artifacts/features.h5").exists()


def test_images_that_do_not_fit_are_refused_with_both_shapes(run, tmp_path, rng):
    np.savez(tmp_path / "large.npz", images=rng.integers(0, 256, (5, 9, 9, 3), np.uint8))
    code, _, err = run("--data", tmp_path / "large.npz", "--layer", "fc1")
    assert code == 4
    assert "9" in err and "8" in err and "--resize" in err


def test_existing_output_is_answered_before_anything_is_loaded(run, images):
    Path("artifacts").mkdir()
    Path("artifacts/features.h5").write_text("mine")
    code, _, err = run("--data", images, "--layer", "fc1")
    assert code == 2
    assert "artifacts/features.h5 exists" in err and "--overwrite" in err
    assert Path("artifacts/features.h5").read_text() == "mine"


HELD = """
import sys
import cnnfeat.data

class Held:
    def __init__(self, source): self.source = source
    def __getattr__(self, name): return getattr(self.source, name)
    def __enter__(self): return self
    def __exit__(self, *exc_info): return self.source.__exit__(*exc_info)

    def batches(self, split, **options):
        for number, batch in enumerate(self.source.batches(split, **options)):
            if number == 60:
                print("held", flush=True)
                sys.stdin.readline()
            yield batch

open_data = cnnfeat.data.open_data
cnnfeat.data.open_data = lambda *args, **options: Held(open_data(*args, **options))
from cnnfeat.cli import main
main(sys.argv[1:])
"""  # the command, but it waits for a line on stdin before its sixtieth batch


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signal_ends_in_order_and_the_command_it_says_goes_on(
    cnnfeat, tmp_path, model, rng, number
):
    images = rng.integers(0, 256, (1000, 8, 8, 1), np.uint8)
    np.save(tmp_path / "many.npy", images)
    words = ["extract", "--model", str(model), "--data", "many.npy", "--layer", "conv1"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *words, "--batch-size", "8"],
        cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n", process.communicate()
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    said = re.search(r"stopped after (\d+) of 1,000 samples, which are kept in", err)
    assert (60 - 8) * 8 <= int(said[1]) <= 60 * 8  # no batch after the signal; 8 wait to be written
    (line,) = [line for line in err.splitlines() if line.startswith("hint: cnnfeat extract")]
    command = shlex.split(line.removeprefix("hint: ").removesuffix(" goes on from there"))
    assert command[-1] == "--resume"
    code, out, err = cnnfeat(*command[1:], folder=tmp_path)
    assert code == 0, err
    assert f"going on after {said[1]}" in err and "1,000 rows" in out
    assert re.search(rf"extracted in +\S+ s, \S+ images/s of {1000 - int(said[1])} left\n", out)
    with FeatureFile(tmp_path / "artifacts" / "features.h5") as file:
        wanted = _by_keras(model, images[::50], "conv1")
        found = file.take("all", "conv1", np.arange(0, 1000, 50))
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_a_picture_too_small_for_a_network_is_named_or_left_out(cnnfeat, tmp_path, rng):
    given = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="c1")(keras.layers.Rescaling(1 / 255)(given))
    model = keras.Model(given, keras.layers.GlobalAveragePooling2D(name="gap")(x))
    model.save(tmp_path / "net.keras")
    sizes = {"a": (30, 20), "b": (31, 20), "c": (1, 1), "d": (30, 20)}
    (tmp_path / "d").mkdir()
    pixels = {name: rng.integers(0, 256, (h, w, 3), np.uint8) for name, (h, w) in sizes.items()}
    for name, image in pixels.items():
        Image.fromarray(image).save(tmp_path / "d" / f"{name}.png")
    words = ("extract", "--model", "net.keras", "--layer", "gap", "--data", "d", "-o", "o.h5")
    done = cnnfeat(*words, folder=tmp_path)
    assert done.returncode == 4
    assert "error: 'c.png': images of shape (1, 1, 3) don't go through the network" in done.stderr
    assert "{{" not in done.stderr and "Conv2D[" not in done.stderr
    done = cnnfeat(*words, "--on-error", "skip", "--overwrite", folder=tmp_path)
    assert done.returncode == 6
    with FeatureFile(tmp_path / "o.h5") as file:
        assert [(one.row, one.id) for one in file.skipped("all")] == [(2, "c.png")]
        found = file.read("all", "gap")
    expected = [model.predict(pixels[n][None].astype("f4"), verbose=0)[0] for n in "abd"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_four_channels_go_to_a_network_of_four(cnnfeat, tmp_path, rng):
    model = keras.Sequential([keras.Input((9, 9, 4)), keras.layers.Conv2D(2, 3, name="c")])
    model.save(tmp_path / "four.keras")
    x = rng.integers(0, 256, (5, 9, 9, 4), np.uint8)
    np.save(tmp_path / "four.npy", x)
    np.save(tmp_path / "three.npy", x[..., :3])
    words = ("extract", "--model", "four.keras", "--layer", "c", "-o", "o.h5", "--data")
    done = cnnfeat(*words, "four.npy", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with FeatureFile(tmp_path / "o.h5") as file:
        found = file.read("all", "c")
    expected = model.predict(x.astype("f4") / 255, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    done = cnnfeat(*words, "three.npy", "--overwrite", folder=tmp_path)
    assert done.returncode == 4 and "takes 4 channels" in done.stderr


def test_shards_are_merged_into_the_data_of_a_single_run(run, cnnfeat, images):
    asked = ("--data", images, "--layer", "conv1", "--layer", "fc1", "--batch-size", 16)
    for number in (2, 1, 3):
        code, out, err = run(*asked, "--shard", f"{number}/3")
        assert code == 0, err
        assert f"artifacts/features/features.000{number}-of-0003.h5" in out
    assert run(*asked, "-o", "single.h5").returncode == 0
    assert cnnfeat("merge", "artifacts/features", "-o", "merged.h5").returncode == 0
    with h5py.File("single.h5") as single, h5py.File("merged.h5") as merged:
        for name in ("conv1", "fc1", "label", "id"):
            assert single["all"][name][...].tobytes() == merged["all"][name][...].tobytes() or (
                list(single["all"][name]) == list(merged["all"][name])
            )
        said = [{key: file.attrs[key] for key in file.attrs} for file in (single, merged)]
        differ = {key for key in said[0] if said[0][key] != said[1][key]}
        assert said[0].keys() == said[1].keys() and differ <= {"created"}


@pytest.mark.parametrize("given", ["0/4", "5/4", "x"])
def test_what_is_no_shard_is_refused_before_anything_is_read(run, given):
    code, _, err = run("--data", "nowhere", "--shard", given)
    assert code == 2
    assert "no shard" in err and "--shard 3/20 is the third of twenty" in err


def test_more_shards_than_batches_are_refused(run, images):
    code, _, err = run("--data", images, "--layer", "fc1", "--batch-size", 64, "--shard", "1/4")
    assert code == 2
    assert "4 shards are more than there are batches: the longest split has 3" in err


def test_shards_have_no_timed_batch_size(run, images):
    code, _, err = run("--data", images, "--shard", "1/4", "--batch-size", "auto", "--layer", "fc1")
    assert code == 2 and "--batch-size auto times a few sizes" in err


def _bytes_of(path: Path) -> dict[str, bytes | list[bytes]]:
    with h5py.File(path) as file:
        return {
            name: list(array) if array.dtype.hasobject else array[...].tobytes()
            for name, array in file["all"].items()
            if isinstance(array, h5py.Dataset)
        } | {"checksums": file["checksums/all/sum"][...].tobytes()}


def _attributes_of(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        return {name: file.attrs[name] for name in file.attrs if name != "created"}


def test_a_layer_is_added_to_a_file_as_if_it_had_been_asked_for(run, images):
    asked = ("--data", images, "--batch-size", 64)
    assert run(*asked, "--layer", "fc1", "-o", "f.h5").returncode == 0
    before = _bytes_of(Path("f.h5"))
    code, out, err = run(*asked, "--layer", "conv1", "--add", "-o", "f.h5")
    assert code == 0, err
    assert "conv1" in out and "fc1" in out
    assert run(*asked, "--layer", "fc1", "--layer", "conv1", "-o", "g.h5").returncode == 0
    assert _bytes_of(Path("f.h5")) == _bytes_of(Path("g.h5"))
    assert _attributes_of(Path("f.h5")) == _attributes_of(Path("g.h5"))
    assert before["fc1"] == _bytes_of(Path("f.h5"))["fc1"]
    code, _, err = run(*asked, "--layer", "conv1", "--add", "-o", "f.h5")
    assert code == 0 and "f.h5 has these layers already" in err


def test_a_file_that_was_made_anew_meanwhile_is_not_replaced(run, images, monkeypatch):
    asked = ("--data", images, "--layer", "fc1")
    assert run(*asked, "-o", "f.h5").returncode == 0
    assert run(*asked, "--dtype", "float16", "-o", "g.h5").returncode == 0
    other = Path("g.h5").read_bytes()
    monkeypatch.setattr(widening, "check_sound", lambda *_: Path("g.h5").replace("f.h5"))
    code, _, err = run("--data", images, "--layer", "conv1", "--add", "-o", "f.h5")
    assert code == 2 and "f.h5 was made anew by another process meanwhile" in err
    assert Path("f.h5").read_bytes() == other
    assert [path.name for path in Path().glob("*.h5*")] == ["f.h5"]


def test_a_layer_is_added_to_a_set(run, cnnfeat, images):
    asked = ("--data", images, "--batch-size", 16)
    for number in (1, 2, 3):
        assert run(*asked, "--layer", "fc1", "--shard", f"{number}/3", "-o", "set").returncode == 0
    assert cnnfeat("merge", "set", "--manifest").returncode == 0
    code, _, err = run(*asked, "--layer", "conv1", "--add", "-o", "set")
    assert code == 0, err
    assert run(*asked, "--layer", "fc1", "--layer", "conv1", "-o", "g.h5").returncode == 0
    assert cnnfeat("merge", "set", "-o", "f.h5").returncode == 0
    assert _bytes_of(Path("f.h5")) == _bytes_of(Path("g.h5"))
    assert _attributes_of(Path("f.h5")) == _attributes_of(Path("g.h5"))
    assert sorted(path.name for path in Path("set").iterdir()) == [
        *(f"features.000{number}-of-0003.h5" for number in (1, 2, 3)),
        "manifest.json",
    ]


def test_adding_to_a_set_goes_on_where_it_was_killed_while_shards_were_replaced(
    run, cnnfeat, images
):
    asked = ("--data", images, "--batch-size", 64)
    for number in (1, 2):
        assert run(*asked, "--layer", "fc1", "--shard", f"{number}/2", "-o", "set").returncode == 0
    assert cnnfeat("merge", "set", "--manifest").returncode == 0
    shutil.copytree("set", "other")
    stale = Path("set/manifest.json").read_bytes()
    assert run(*asked, "--layer", "conv1", "--add", "-o", "other").returncode == 0
    shutil.copy("other/features.0001-of-0002.h5", "set")
    code, _, err = cnnfeat("verify", "set")
    assert code == 3 and "it was made again or is damaged" in err
    assert run(*asked, "--layer", "conv1", "--add", "-o", "set").returncode == 0
    with FeatureFile("set") as one, FeatureFile("other") as other:
        assert one.layers == ("fc1", "conv1")
        np.testing.assert_array_equal(one.read("all", "conv1"), other.read("all", "conv1"))
    shutil.copy("other/features.0002-of-0002.h5", "set")
    Path("set/manifest.json").write_bytes(stale)  # killed after the last shard
    assert run(*asked, "--layer", "conv1", "--add", "-o", "set").returncode == 0
    assert cnnfeat("verify", "set").returncode == 0


@pytest.fixture
def pictures(rng, tmp_path):
    """A folder of six."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["5.png", "2.png"])
def test_a_picture_that_cant_be_read_any_more_is_not_left_out_of_what_is_there(
    run, pictures, monkeypatch, name
):
    asked = ("--data", pictures, "--batch-size", 4, "--on-error", "skip", "-o", "f.h5")
    assert run(*asked, "--layer", "fc1").returncode == 0
    before = Path("f.h5").read_bytes()

    def fail(stream, *, name, **how):
        if name.endswith(unreadable):
            raise ImageError(f"{name}: Input/output error")
        return decode_stream(stream, name=name, **how)

    unreadable = name
    with monkeypatch.context() as patched:
        patched.setattr("cnnfeat.data.imagefiles.decode_stream", fail)
        code, _, err = run(*asked, "--layer", "conv1", "--add")
    assert code == 3
    assert f"f.h5 has {name} in split 'all' where the source has" in err
    assert Path("f.h5").read_bytes() == before
    assert run(*asked, "--layer", "conv1", "--add").returncode == 0
    with FeatureFile("f.h5") as file:
        assert file.n_rows("all") == 6 and file.layers == ("fc1", "conv1")


def test_a_layer_is_added_to_a_set_whose_last_shard_has_no_rows(run, cnnfeat, pictures):
    for number in (4, 5):
        (pictures / f"{number}.png").write_bytes(b"junk")
    asked = ("--data", pictures, "--batch-size", 2, "--on-error", "skip")
    for number in (1, 2, 3):
        run(*asked, "--layer", "fc1", "--shard", f"{number}/3", "-o", "set")
    code, _, err = run(*asked, "--layer", "conv1", "--add", "-o", "set")
    assert code == 6, err
    assert run(*asked, "--layer", "fc1", "--layer", "conv1", "-o", "g.h5").returncode == 6
    assert cnnfeat("merge", "set", "-o", "f.h5").returncode == 0
    assert _bytes_of(Path("f.h5")) == _bytes_of(Path("g.h5"))


def test_layers_that_are_there_are_not_added_with_other_settings(run, images, rng):
    asked = ("--layer", "fc1", "--add", "-o", "f.h5")
    assert run("--data", images, "--layer", "fc1", "-o", "f.h5").returncode == 0
    code, _, err = run("--data", images, *asked, "--dtype", "float16")
    assert code == 2
    assert "f.h5 was made with another dtype: float32, and now it is float16" in err
    np.savez(images, images=rng.integers(0, 256, (150, 8, 8, 1), np.uint8), labels=np.arange(150))
    code, _, err = run("--data", images, *asked)
    assert code == 3 and "has other pixels than it had" in err


def test_new_pictures_are_added_and_then_a_layer(run, pictures, rng):
    asked = ("--data", pictures, "--batch-size", 4, "-o", "f.h5")
    assert run(*asked, "--layer", "fc1", "--layer", "conv1").returncode == 0
    _new_picture(rng, pictures / "2a.png")
    _new_picture(rng, pictures / "9.png")
    before = Path("f.h5").read_bytes()
    code, _, err = run(*asked, "--layer", "flatten", "--add")
    assert code == 2
    assert "f.h5 has no layer flatten, and was made of other images than the source has now" in err
    assert "add the images first, by --add without --layer; then the layer" in err
    assert Path("f.h5").read_bytes() == before
    code, out, err = run(*asked, "--add")
    assert code == 0, err
    assert "f.h5: 2 new images in all" in err and "8 rows" in out
    fresh = ("--data", pictures, "--batch-size", 4, "-o", "g.h5")
    assert run(*fresh, "--layer", "fc1", "--layer", "conv1").returncode == 0
    with FeatureFile("f.h5") as one, FeatureFile("g.h5") as other:
        assert one.ids("all") == other.ids("all")
        assert one.ids("all")[2:4] == ["2.png", "2a.png"]
        np.testing.assert_allclose(one.read("all", "fc1"), other.read("all", "fc1"), rtol=1e-5)
        np.testing.assert_allclose(one.read("all", "conv1"), other.read("all", "conv1"), rtol=1e-5)
    assert _attributes_of(Path("f.h5")) == _attributes_of(Path("g.h5"))
    code, _, err = run(*asked, "--layer", "flatten", "--add")
    assert code == 0, err
    with FeatureFile("f.h5") as file:
        assert file.layers == ("fc1", "conv1", "flatten")


def _new_picture(rng, path: Path) -> None:
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)


def test_a_new_class_gives_rows_that_are_there_their_new_labels(run, pictures, rng):
    for number in range(6):
        folder = pictures / ("dog" if number % 2 else "owl")
        folder.mkdir(exist_ok=True)
        (pictures / f"{number}.png").rename(folder / f"{number}.png")
    asked = ("--data", pictures, "--batch-size", 4, "-o", "f.h5")
    assert run(*asked, "--layer", "fc1").returncode == 0
    with FeatureFile("f.h5") as file:
        before = file.read("all", "fc1")
    (pictures / "cat").mkdir()
    _new_picture(rng, pictures / "cat" / "7.png")
    assert run(*asked, "--add").returncode == 0
    with FeatureFile("f.h5") as file:
        assert file.classes == ("cat", "dog", "owl")
        assert file.labels("all").tolist() == [0, 1, 1, 1, 2, 2, 2]
        np.testing.assert_array_equal(file.read("all", "fc1", start=1), before)


def _tar_of(paths, out: Path) -> None:
    with tarfile.open(out, "w") as file:
        for path in paths:
            file.add(path, path.name)


def _listed(pictures: Path, n: int) -> Path:
    path = pictures.parent / "list.csv"
    path.write_text("path\n" + "".join(f"pictures/{k}.png\n" for k in range(n)), "utf-8")
    return path


def _as_array(pictures: Path, n: int) -> Path:
    path = pictures.parent / "images.npy"
    found = [np.asarray(Image.open(pictures / f"{number}.png")) for number in range(n)]
    np.save(path, np.stack(found))
    return path


def _in_tars(pictures: Path, n: int) -> str:
    for number in range(0, n, 2):
        names = [pictures / f"{one}.png" for one in (number, number + 1)]
        _tar_of(names, pictures.parent / f"shard-{number // 2}.tar")
    return f"{pictures.parent}/shard-{{0..{n // 2 - 1}}}.tar"


@pytest.mark.parametrize("source", [_listed, _as_array, _in_tars])
def test_sources_of_other_kinds_grow_too(run, pictures, source):
    asked = ("--batch-size", 4, "-o", "f.h5")
    assert run("--data", source(pictures, 4), "--layer", "fc1", *asked).returncode == 0
    with FeatureFile("f.h5") as file:
        before = file.read("all", "fc1")
    code, _, err = run("--data", source(pictures, 6), "--add", *asked)
    assert code == 0, err
    assert "f.h5: 2 new images in all" in err
    with FeatureFile("f.h5") as file:
        assert file.n_rows("all") == 6
        np.testing.assert_array_equal(file.read("all", "fc1", stop=4), before)


def test_another_addition_that_was_interrupted_is_named_with_the_way_out(run, images, monkeypatch):
    asked = ("--data", images, "--batch-size", 64)
    for number in (1, 2):
        assert run(*asked, "--layer", "fc1", "--shard", f"{number}/2", "-o", "set").returncode == 0

    def stop(_writer):
        raise Interrupted("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(FeatureWriter, "finish", stop)
        assert run(*asked, "--layer", "conv1", "--add", "-o", "set").returncode == 130
    code, _, err = run(*asked, "--layer", "flatten", "--add", "-o", "set")
    assert code == 2 and "0001-of-0002.h5 was begun with another layer" in err
    (journal,) = Path("set/.adding").glob("*.journal")
    assert f"or delete {journal.absolute()}" in err
    journal.unlink()
    code, _, err = run(*asked, "--layer", "flatten", "--add", "-o", "set")
    assert code == 0, err
    with FeatureFile("set") as file:
        assert file.layers == ("fc1", "flatten")


def test_what_cant_be_added_to_is_said(run, images):
    asked = ("--data", images, "--layer", "fc1")
    code, _, err = run(*asked, "--add", "-o", "f.h5")
    assert code == 2 and "no feature file f.h5" in err
    assert run(*asked, "-o", "f.h5").returncode == 0
    code, _, err = run(*asked, "--layer", "conv1", "--dtype", "float16", "--add", "-o", "f.h5")
    assert code == 2
    assert "f.h5 was made with another dtype: float32, and now it is float16" in err
    code, _, err = run(*asked, "--add", "--overwrite", "-o", "f.h5")
    assert code == 2 and "goes with neither --overwrite nor --shard" in err
    with h5py.File("f.h5") as file:
        offset = file["all/fc1"].id.get_offset()
    with Path("f.h5").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    code, _, err = run(*asked, "--layer", "conv1", "--add", "-o", "f.h5")
    assert code == 3 and "layer 'fc1', block 0" in err
