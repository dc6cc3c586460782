"""Every kind of picture shows what its artifacts hold."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import keras
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import Normalize
from PIL import Image

from cnnfeat.errors import (
    DataError,
    FeatureFileError,
    LayerLookupError,
    MissingInputError,
    NetworkError,
    UsageError,
)
from cnnfeat.features import FeatureFile, write_arrays
from cnnfeat.report import plots
from cnnfeat.report.embedding import choose_rows, embed_layer
from cnnfeat.report.evidence import Artifacts, Predictions
from cnnfeat.report.figure import CLASS_COLOURS
from cnnfeat.report.gallery import find_top
from cnnfeat.report.page import write_report
from cnnfeat.report.tiles import filter_tiles, make_sheet


def canvas(folder: Path, out: Path) -> plots.Canvas:
    return plots.Canvas(Artifacts.in_folder(folder), out, dpi=50)


def texts(path: Path) -> str:
    return " ".join(t.strip() for t in re.findall(r"<!--(.*?)-->", path.read_text("utf-8")))


def embedded_pictures(path: Path) -> list[np.ndarray]:
    """Decode the pictures inside an SVG, as they were drawn: one pixel a number."""
    found = re.findall(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", path.read_text("utf-8"))
    pictures = []
    for data in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pictures.append(np.asarray(image.convert("RGBA")))
    return pictures


def painted(values: np.ndarray, colours: str, *, low: float, high: float) -> np.ndarray:
    return mpl.colormaps[colours](Normalize(low, high)(values.astype(float)), bytes=True)


def holds(pictures: list[np.ndarray], expected: np.ndarray, *, columns: int) -> bool:
    """Whether one picture is these tiles (height, width, 4, n_tiles), a pixel apart."""
    height, width, _, n_tiles = expected.shape
    for picture in pictures:
        for turned in (picture, picture[::-1]):
            tiles = [
                turned[
                    k // columns * (height + 1) : k // columns * (height + 1) + height,
                    k % columns * (width + 1) : k % columns * (width + 1) + width,
                ]
                for k in range(n_tiles)
            ]
            if all(t.shape == expected.shape[:3] for t in tiles) and all(
                np.array_equal(tile, expected[..., k]) for k, tile in enumerate(tiles)
            ):
                return True
    return False


def test_filters_are_the_kernel_of_plain_keras(run, tmp_path):
    out = tmp_path / "filters.svg"
    plots.draw_filters(canvas(run.folder, out), "conv1")
    kernel = run.kernels["conv1"][:, :, 0, :]
    most = np.abs(kernel).max()
    expected = np.moveaxis(painted(kernel, "RdBu_r", low=-most, high=most), 2, 3)
    assert holds(embedded_pictures(out), expected, columns=2)
    assert "Filters of conv1: 4 of 3×3, 1 input channel" in texts(out)


def test_filters_over_several_channels_keep_their_signs(run, tmp_path):
    kernel = run.kernels["conv2"]  # (3, 3, 4, 6)
    out = tmp_path / "largest.svg"
    plots.draw_filters(canvas(run.folder, out), "conv2")
    expected = np.full((6, 9, 9), np.nan)
    for number in range(6):
        channels = [kernel[:, :, channel, number] for channel in range(4)]
        channels.sort(key=lambda weights: -float((weights.astype(float) ** 2).sum()))
        expected[number, :3, :3], expected[number, :3, 4:7] = channels[:2]
        expected[number, 4:7, :3], expected[number, 4:7, 4:7] = channels[2:]
    np.testing.assert_array_equal(filter_tiles(kernel), expected)
    assert "weights to the 4 of 4 input channels of the largest norm" in texts(out)
    sheet = make_sheet(filter_tiles(kernel))
    assert sheet.low == -sheet.high == -np.abs(kernel).max()
    assert not sheet.pixels[3, :7].any()  # clear between the channels


def test_few_of_many_channels_are_shown(run):
    kernel = np.zeros((1, 1, 9, 1))
    kernel[0, 0, :, 0] = [1, -9, 2, 3, -8, 4, 5, 6, 7]
    tile = np.nan_to_num(filter_tiles(kernel)[0])
    assert tile[:3, :3].tolist() == [[-9, 0, -8], [0, 0, 0], [7, 0, 6]]
    assert not tile[3:].any()
    few = filter_tiles(kernel[:, :, :2])
    assert np.nan_to_num(few[0, 0]).tolist() == [-9, 0, 1, 0, 0]


def test_filters_over_several_channels_are_shown_by_norm_or_channel(run, tmp_path):
    kernel = run.kernels["conv2"]  # (3, 3, 4, 6)
    out = tmp_path / "norm.svg"
    plots.draw_filters(canvas(run.folder, out), "conv2", by="norm")
    norm = np.sqrt((kernel.astype(float) ** 2).sum(axis=2))
    np.testing.assert_allclose(filter_tiles(kernel, by="norm"), np.moveaxis(norm, 2, 0), rtol=1e-6)
    assert "L2 norm over 4 input channels" in texts(out)
    out = tmp_path / "channel.svg"
    plots.draw_filters(canvas(run.folder, out), "conv2", by="channel", channel=3)
    most = np.abs(kernel[:, :, 3]).max()
    expected = np.moveaxis(painted(kernel[:, :, 3], "RdBu_r", low=-most, high=most), 2, 3)
    assert holds(embedded_pictures(out), expected, columns=3)


def test_colour_filters_are_grey_where_they_are_nought():
    kernel = np.zeros((1, 2, 3, 1))
    kernel[0, 0, :, 0] = [1, -1, 0]
    sheet = make_sheet(filter_tiles(kernel))
    assert sheet.pixels[0].tolist() == [[255, 0, 128, 255], [128, 128, 128, 255]]


def test_activations_are_those_of_the_feature_file(run, tmp_path):
    out = tmp_path / "activations.svg"
    plots.draw_activations(canvas(run.folder, out), "conv2", image="7")
    activation = run.maps["conv2"][7]
    np.testing.assert_allclose(
        FeatureFile(run.folder / "features.h5").read("test", "conv2", start=7, stop=8)[0],
        activation,
        atol=1e-6,
    )
    expected = np.moveaxis(painted(activation, "viridis", low=0, high=activation.max()), 2, 3)
    pictures = embedded_pictures(out)
    assert holds(pictures, expected, columns=3)
    image = run.images[run.ids[7]][..., 0]
    assert any(
        np.array_equal(p[..., 0], image) or np.array_equal(p[::-1, :, 0], image) for p in pictures
    )
    assert f"{run.ids[7]} (class {run.labels[7]})" in texts(out)
    assert "Filters are weights: the same for every image." in texts(out)


def test_a_layer_outside_the_file_is_computed_by_the_network(run, tmp_path):
    out = tmp_path / "activations.svg"
    plots.draw_activations(canvas(run.folder, out), "conv1", image=run.ids[7])
    activation = run.maps["conv1"][7]
    expected = painted(activation, "viridis", low=0, high=activation.max())
    (found,) = [p for p in embedded_pictures(out) if p.shape[:2] == (9, 9) and (p[4] == 0).all()][
        -1:
    ]
    for tile, (top, left) in enumerate([(0, 0), (0, 5), (5, 0), (5, 5)]):
        close = np.abs(
            found[top : top + 4, left : left + 4].astype(int) - expected[:, :, tile].astype(int)
        )
        assert close.max() <= 2


@pytest.fixture
def renamed(run, tmp_path) -> Path:
    """A folder whose features name a network that isn't called model.keras."""
    folder = tmp_path / "run"
    folder.mkdir()
    for ending in ("keras", "json"):
        shutil.copy(run.folder / f"model.{ending}", folder / f"net.{ending}")
    digest = hashlib.sha256((folder / "net.keras").read_bytes()).hexdigest()
    write_arrays(
        folder / "features.h5",
        {"test": {"conv2": run.maps["conv2"]}},
        attributes={"network": "somewhere/net.keras", "network_sha256": digest},
    )
    return folder


def test_the_network_is_the_one_that_the_features_name(run, renamed, tmp_path):
    plots.draw_filters(canvas(renamed, tmp_path / "f.svg"), "conv1")
    kernel = run.kernels["conv1"][:, :, 0, :]
    most = np.abs(kernel).max()
    expected = np.moveaxis(painted(kernel, "RdBu_r", low=-most, high=most), 2, 3)
    assert holds(embedded_pictures(tmp_path / "f.svg"), expected, columns=2)
    plots.draw_training(canvas(renamed, tmp_path / "t.png"))
    assert (tmp_path / "t.png").exists()
    result = write_report(renamed, tmp_path / "report.html", embedding="pca")
    assert not [said for said in result.missing if "filters" in said]


def test_filters_of_another_network_are_not_shown_beside_maps(
    hostile_run, renamed, tmp_path, caplog
):
    shutil.copy(hostile_run.folder / "model.keras", renamed / "net.keras")
    plots.draw_activations(canvas(renamed, tmp_path / "a.svg"), "conv2", image="0")
    assert "net.keras is not the network that features.h5 was made with" in caplog.text
    assert "Activations of conv2" in texts(tmp_path / "a.svg")
    assert "Filters of conv2" not in texts(tmp_path / "a.svg")
    with pytest.raises(FeatureFileError, match=r"net\.json: not .* or of another model than is"):
        plots.draw_training(canvas(renamed, tmp_path / "t.png"))


@pytest.mark.slow
def test_a_saved_model_that_the_features_name_is_opened(run, tmp_path):
    folder = tmp_path / "run"
    keras.models.load_model(run.folder / "model.keras").export(folder / "export_dir")
    write_arrays(
        folder / "features.h5",
        {"test": {"conv2": run.maps["conv2"]}},
        attributes={"network": "export_dir", "network_format": "saved_model"},
    )
    plots.draw_filters(canvas(folder, tmp_path / "f.png"), "conv2")
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert not [said for said in result.missing if "filters" in said]


def test_activations_without_the_images_say_so(run, tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    write_arrays(
        folder / "features.h5",
        {"all": {"conv": run.maps["conv2"]}},
        attributes={"source": "/nowhere", "source_fingerprint": "0"},
    )
    plots.draw_activations(canvas(folder, tmp_path / "a.png"), "conv", image="3")
    assert "are not where they were: there is no /nowhere" in caplog.text


@pytest.mark.parametrize("layer", ["fc1", "FC1"])
def test_maps_of_a_vector_are_refused_with_the_layers_that_have_some(run, tmp_path, layer):
    with pytest.raises(DataError, match=r"fc1 has no activation maps: .* shape \(8,\)") as caught:
        plots.draw_activations(canvas(run.folder, tmp_path / "a.png"), layer, image="0")
    assert caught.value.hint == "layers with maps: conv2"


def test_layers_without_filters_are_refused_with_those_that_have_some(run, tmp_path):
    target = canvas(run.folder, tmp_path / "f.png")
    with pytest.raises(NetworkError, match="no filters over an image, but a matrix of 24×8") as e:
        plots.draw_filters(target, "fc1")
    assert "conv1" in e.value.hint
    with pytest.raises(NetworkError, match="but none"):
        plots.draw_filters(target, "scale")
    with pytest.raises(LayerLookupError):
        plots.draw_filters(target, "conv9")
    with pytest.raises(UsageError, match="--channel must be 0 to 3, not 4"):
        plots.draw_filters(target, "conv2", by="channel", channel=4)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_behind_filters_has_none(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3, name="c1"),
            keras.layers.ReLU(name="relu"),
            keras.layers.GlobalAveragePooling2D(name="gap"),
        ]
    )
    model.save(tmp_path / "model.keras")
    target = canvas(tmp_path, tmp_path / "f.png")
    for name in ("relu", "gap"):
        with pytest.raises(NetworkError, match=r"no filters of its own; .* of 'c1'") as caught:
            plots.draw_filters(target, name)
        assert caught.value.hint == "--layer c1"
    assert not (tmp_path / "f.png").exists()
    plots.draw_filters(target, "c1")
    assert (tmp_path / "f.png").exists()


def test_unknown_images_and_units_are_refused_with_the_range(run, tmp_path):
    target = canvas(run.folder, tmp_path / "a.png")
    last = len(run.ids) - 1
    with pytest.raises(UsageError, match=f"no image '9999' in test: give a row, 0 to {last}"):
        plots.draw_activations(target, "conv2", image="9999")
    with pytest.raises(UsageError, match="--unit must be 0 to 5 for conv2, not 6"):
        plots.draw_top(target, "conv2", unit=6, n_images=4)
    with pytest.raises(UsageError, match="no split 'tset'"):
        plots.draw_top(target, "conv2", unit=0, n_images=4, split="tset")


@pytest.mark.parametrize(("layer", "unit"), [("conv2", 4), ("fc1", 2)])
def test_top_finds_the_greatest_answers(run, layer, unit):
    answers = run.maps[layer][..., unit].reshape(len(run.ids), -1).max(axis=1)
    expected = np.argsort(-answers, kind="stable")[:10]
    with FeatureFile(run.folder / "features.h5") as file:
        top = find_top(file, layer, split="test", unit=unit, n_images=10)
    np.testing.assert_allclose([item.value for item in top], answers[expected], rtol=1e-5)
    if len(np.unique(answers[expected])) == 10:
        assert [item.row for item in top] == expected.tolist()
    if layer == "conv2":
        assert run.maps[layer][(top[0].row, *top[0].place, unit)] == pytest.approx(top[0].value)


def test_top_keeps_the_earlier_of_equals_over_blocks(tmp_path):
    X = np.zeros((1200, 2), np.float32)
    X[[3, 700, 1100], 1] = [5, 9, 5]
    write_arrays(tmp_path / "f.h5", {"all": {"fc": X}})
    with FeatureFile(tmp_path / "f.h5") as file:
        top = find_top(file, "fc", split="all", unit=1, n_images=4)
    assert [(item.row, item.value) for item in top] == [(700, 9), (3, 5), (1100, 5), (0, 0)]


def test_top_shows_ids_and_answers(run, tmp_path):
    out = tmp_path / "top.svg"
    plots.draw_top(canvas(run.folder, out), "fc1", unit=2, n_images=3)
    answers = run.maps["fc1"][:, 2]
    best = int(answers.argmax())
    assert run.ids[best] in texts(out)
    assert f"answer {answers[best]:.4g}" in texts(out)
    assert "excite unit 2 of fc1 most" in texts(out)


def test_confusion_shows_the_numbers_of_svm_json(run, tmp_path):
    out = tmp_path / "confusion.svg"
    plots.draw_confusion(canvas(run.folder, out))
    document = json.loads((run.folder / "svm.json").read_text("utf-8"))
    counts = sorted(count for row in document["confusion"] for count in row if count)
    numbers = [t.strip() for t in re.findall(r"<!--(.*?)-->", out.read_text("utf-8"))]
    shown = sorted(int(text) for text in numbers if text.isdigit())
    axes = sorted([*range(10), *range(10)])  # the classes, down and across; and "0" on the scale
    assert shown == sorted([*counts, *axes, 0])


def test_errors_show_the_surest_mistakes(run, tmp_path):
    out = tmp_path / "errors.svg"
    plots.draw_errors(canvas(run.folder, out), n_images=5)
    wrong = np.flatnonzero(run.labels != run.predicted)
    surest = wrong[np.argmax(run.margins[wrong])]
    said = texts(out)
    assert run.ids[surest] in said
    assert f"{run.labels[surest]} taken for {run.predicted[surest]}" in said
    assert f"margin {run.margins[surest]:.2f}" in said
    assert f"{min(5, len(wrong))} of {len(wrong)} mistakes" in said


def test_no_mistake_is_said(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(run.folder / "features.h5", folder)
    shutil.copy(run.folder / "svm.json", folder)
    lines = [f"{name},{k},{k},1" for name, k in zip(run.ids, run.labels, strict=True)]
    (folder / "predictions.csv").write_text(
        "\n".join(["id,label,predicted,margin", *lines]) + "\n", "utf-8"
    )
    with pytest.raises(DataError, match="made no mistake"):
        plots.draw_errors(canvas(folder, tmp_path / "e.png"), n_images=5)


def test_layers_show_every_accuracy_and_the_network(run, tmp_path):
    out = tmp_path / "layers.svg"
    plots.draw_layers(canvas(run.folder, out))
    said = texts(out)
    accuracy = 100 * (run.labels == run.predicted).mean()
    assert f"{accuracy:.2f}" in said
    assert "conv2" in said
    assert "the network itself: 75.00% of test images" in said
    assert f"right, % of {len(run.labels):,} test rows" in said


def test_training_shows_loss_and_accuracy(run, tmp_path):
    out = tmp_path / "training.svg"
    plots.draw_training(canvas(run.folder, out))
    assert {"loss", "epoch", "training", "validation", "kept"} <= set(texts(out).split())


def test_missing_inputs_name_the_command_that_makes_them(tmp_path):
    target = canvas(tmp_path, tmp_path / "p.png")
    for draw, command in (
        (plots.draw_confusion, "cnnfeat svm"),
        (plots.draw_layers, "cnnfeat svm"),
        (plots.draw_training, "cnnfeat train"),
    ):
        with pytest.raises(MissingInputError) as caught:
            draw(target)
        assert command in caught.value.hint
    with pytest.raises(MissingInputError):
        plots.draw_filters(target, "conv1")
    with pytest.raises(MissingInputError):
        plots.draw_embedding(target, None)


def test_a_foreign_card_is_refused(tmp_path):
    (tmp_path / "model.json").write_text("[]", "utf-8")
    with pytest.raises(FeatureFileError, match="not a model's card"):
        plots.draw_training(canvas(tmp_path, tmp_path / "p.png"))


@pytest.mark.parametrize("method", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_embedding_keeps_clusters_apart(tmp_path, rng, method):
    if method == "umap":
        pytest.importorskip("umap", reason="the extra umap is not installed")
    centres = np.repeat([[0.0] * 20, [9.0] * 20, [-9.0, 9.0] * 10], 20, axis=0)
    X = (centres + rng.standard_normal(centres.shape)).astype(np.float32)
    write_arrays(tmp_path / "f.h5", {"all": {"fc": X}})
    with FeatureFile(tmp_path / "f.h5") as file:
        found = embed_layer(file, "fc", split="all", method=method)
        again = embed_layer(file, "fc", split="all", method=method)
    np.testing.assert_array_equal(found.points, again.points)
    groups = found.points.reshape(3, 20, 2)
    middle = groups.mean(axis=1)
    inside = np.linalg.norm(groups - middle[:, None], axis=2).max()
    between = min(np.linalg.norm(middle[i] - middle[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > inside


def test_embedding_is_drawn_with_a_legend(run, tmp_path):
    out = tmp_path / "embedding.svg"
    plots.draw_embedding(canvas(run.folder, out), "fc1", method="pca", n_points=50)
    said = texts(out)
    assert "PCA of fc1, digits test" in said
    assert f"50 of {len(run.ids)} images" in said
    assert "class" in said


def test_embedding_of_the_odd_kind_is_refused_or_drawn(tmp_path):
    X = np.zeros((6, 3), np.float32)
    X[4, 1] = np.nan
    write_arrays(tmp_path / "nan.h5", {"all": {"fc": X}})
    write_arrays(tmp_path / "same.h5", {"all": {"fc": np.ones((6, 1), np.float32)}})
    write_arrays(tmp_path / "few.h5", {"all": {"fc": np.ones((4, 3), np.float32)}})
    with (
        FeatureFile(tmp_path / "nan.h5") as file,
        pytest.raises(DataError, match="all/fc, row 4: 1 of 3 numbers are NaN"),
    ):
        embed_layer(file, "fc", split="all", method="pca")
    with (
        FeatureFile(tmp_path / "few.h5") as file,
        pytest.raises(DataError, match="at least 5 rows; all has 4"),
    ):
        embed_layer(file, "fc", split="all", method="pca")
    with (
        FeatureFile(tmp_path / "same.h5") as file,
        pytest.raises(DataError, match="all 6 rows of all/fc are equal"),
    ):
        embed_layer(file, "fc", split="all", method="pca")


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_single_feature_is_placed_too(tmp_path, method):
    write_arrays(tmp_path / "f.h5", {"all": {"fc": np.arange(6, dtype=np.float32)[:, None]}})
    with FeatureFile(tmp_path / "f.h5") as file:
        points = embed_layer(file, "fc", split="all", method=method).points
    assert points.shape == (6, 2)
    assert np.isfinite(points).all()


def test_umap_without_the_library_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(UsageError, match="UMAP is not installed") as caught:
        plots.draw_embedding(canvas(run.folder, tmp_path / "e.png"), "fc1", method="umap")
    assert "cnnfeat[umap]" in caught.value.hint


def test_rows_are_chosen_once_and_with_those_that_must_be():
    rows = choose_rows(100, 10, always=[97, 3, 3])
    assert len(set(rows.tolist())) == 10
    assert {3, 97} <= set(rows.tolist())
    assert rows.tolist() == sorted(rows.tolist())
    assert choose_rows(100, 2, always=[5, 6, 7]).tolist() == [5, 6]
    assert choose_rows(4, 10).tolist() == [0, 1, 2, 3]


def test_wrong_predictions_come_surest_first():
    found = Predictions(
        "test",
        np.arange(4),
        np.array([0, 1, 2, 0]),
        np.array([0, 0, 1, 2]),
        np.array([9.0, 0.1, 0.5, 0.1]),
    )
    assert found.wrong.tolist() == [2, 1, 3]


def test_classes_have_ten_colours_that_the_page_has_too():
    style = (Path(plots.__file__).parent / "templates" / "report.css").read_text("utf-8")
    assert re.findall(r"--c\d: (#\w+);", style) == list(CLASS_COLOURS)
    assert len(set(CLASS_COLOURS)) == 10
    assert re.findall(r"\.c(\d) \{ stroke: var\(--c(\d)\); \}", style) == [
        (str(number), str(number)) for number in range(10)
    ]
