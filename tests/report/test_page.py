"""The report shows what a run made, says what is missing, and shows names as names."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import html5lib
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import Normalize
from PIL import Image

from cnnfeat.errors import (
    FeatureFileError,
    LayerLookupError,
    MissingInputError,
    OutputExistsError,
    UsageError,
)
from cnnfeat.features import write_arrays
from cnnfeat.report.page import write_report

NAMESPACE = "{http://www.w3.org/1999/xhtml}"


class Page:
    """A page read by a parser that stands for every rule of HTML5."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text("utf-8")
        self.tree = html5lib.HTMLParser(strict=True).parse(self.text)

    def all(self, tag: str) -> list:
        return list(self.tree.iter(NAMESPACE + tag))

    def by_id(self, name: str):
        (found,) = [item for item in self.tree.iter() if item.get("id") == name]
        return found

    def has_id(self, name: str) -> bool:
        return any(item.get("id") == name for item in self.tree.iter())

    def missing(self) -> str:
        return words(next(s for s in self.all("section") if "notes" in s.get("class", "")))


def words(element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def pixels_of(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("page") / "report.html"
    result = write_report(run.folder, out, embedding="pca")
    assert result.missing == ()
    assert result.size_bytes == out.stat().st_size < 5e6
    return Page(out)


def test_matrix_shows_the_numbers_of_svm_json(page, run):
    (matrix,) = [table for table in page.all("table") if table.get("class") == "matrix"]
    rows = [
        [int(words(cell) or 0) for cell in row.iter(NAMESPACE + "td")]
        for row in matrix.iter(NAMESPACE + "tr")
    ]
    assert rows[1:] == json.loads((run.folder / "svm.json").read_text("utf-8"))["confusion"]
    assert rows[1:] == run.confusion.tolist()


def test_cells_hold_the_images_behind_them(page, run):
    counts = run.confusion
    for (true, taken), count in np.ndenumerate(counts):
        assert page.has_id(f"c{true}-{taken}") == bool(count)
        if not count:
            continue
        images = list(page.by_id(f"c{true}-{taken}").iter(NAMESPACE + "img"))
        assert len(images) == min(count, 12)
        for image in images:
            name = image.get("alt").partition(":")[0]
            place = run.ids.index(name)
            assert (run.labels[place], run.predicted[place]) == (true, taken)
            np.testing.assert_array_equal(pixels_of(image.get("src")), run.images[name][..., 0])


def test_mistakes_begin_with_the_surest(page, run):
    section = next(s for s in page.all("section") if s.get("aria-labelledby") == "errors")
    shown = [image.get("alt").partition(":")[0] for image in section.iter(NAMESPACE + "img")]
    wrong = np.flatnonzero(run.labels != run.predicted)
    expected = wrong[np.argsort(-run.margins[wrong], kind="stable")]
    assert shown == [run.ids[place] for place in expected[:120]]
    assert f"{len(wrong)} of {len(run.labels)} images are misclassified" in words(section)


def test_filters_and_maps_are_those_of_plain_keras(page, run):
    sheets = {
        image.get("alt"): pixels_of(image.get("src"))
        for image in page.all("img")
        if image.get("class", "").startswith("tiles")
    }
    kernel = run.kernels["conv1"][:, :, 0, :]  # (3, 3, 4)
    filters = next(v for alt, v in sheets.items() if alt.startswith("Filters of layer conv1"))
    assert filters.shape == (7, 7, 4)  # two rows of two tiles of 3×3, a clear pixel between
    expected = painted(kernel, "RdBu_r", low=-np.abs(kernel).max(), high=np.abs(kernel).max())
    for tile, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        np.testing.assert_array_equal(filters[top : top + 3, left : left + 3], expected[:, :, tile])
    for alt, maps in sheets.items():
        if "maps of layer conv2" in alt:
            name = re.search(r"for (\S+):", alt)[1]
            activation = run.maps["conv2"][run.ids.index(name)]  # (2, 2, 6)
            expected = painted(activation, "viridis", low=0, high=activation.max())
            assert maps.shape == (5, 8, 4)  # two rows of three tiles of 2×2
            for tile in range(6):
                top, left = tile // 3 * 3, tile % 3 * 3
                np.testing.assert_array_equal(
                    maps[top : top + 2, left : left + 2], expected[:, :, tile]
                )


def painted(values: np.ndarray, colours: str, *, low: float, high: float) -> np.ndarray:
    """Colour numbers as matplotlib does."""
    scale = Normalize(low, high)
    return mpl.colormaps[colours](scale(values.astype(float)), bytes=True)


def test_the_sentence_that_tells_filters_from_features_is_there(page):
    text = words(page.tree)
    assert "Filters are not features." in text
    assert "the same for every image" in text
    assert {
        "Filters: weights, the same for every image",
        "Features: activations, each image's own",
    } <= {words(heading) for heading in page.all("h4")}


def test_scatter_knows_every_point(page, run):
    data = json.loads(page.by_id("scatter-data").text)
    assert sorted(data["id"]) == sorted(run.ids)
    for name, true, taken, margin in zip(
        data["id"], data["true"], data["predicted"], data["margin"], strict=True
    ):
        place = run.ids.index(name)
        assert true == run.classes[run.labels[place]]
        assert taken == run.classes[run.predicted[place]]
        assert margin == pytest.approx(run.margins[place], abs=6e-4)
    sprite = pixels_of(page.by_id("sprite").get("src"))
    side, columns = data["cell"], data["columns"]
    for place in (0, 7, len(data["id"]) - 1):
        top, left = place // columns * side, place % columns * side
        np.testing.assert_array_equal(
            sprite[top : top + side, left : left + side], run.images[data["id"][place]][..., 0]
        )


def test_charts_come_for_light_and_dark_pages(page):
    charts = page.all("picture")
    assert len(charts) == 2
    for chart, words_of_it in zip(charts, ("conv2", "epoch"), strict=True):
        (dark,), (light,) = (list(chart.iter(NAMESPACE + tag)) for tag in ("source", "img"))
        assert "numbers are in the table" in light.get("alt")
        assert "dark" in dark.get("media")
        drawn = [svg_of(uri) for uri in (light.get("src"), dark.get("srcset"))]
        assert all(f"<!-- {words_of_it} -->" in svg for svg in drawn)
        for svg, background in zip(drawn, ("#ffffff", "#1a2029"), strict=True):
            assert f"fill: {background}" in svg
            assert not re.findall(r'href="(?!#)', svg)


def svg_of(uri: str) -> str:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode("utf-8")


def test_accuracies_stand_with_their_intervals(page, run):
    text = words(page.tree)
    accuracy = (run.labels == run.predicted).mean()
    assert f"{100 * accuracy:.2f}% 95% interval {100 * accuracy - 2:.2f}%" in text
    assert "75.00% 95% interval 70.28% to 79.19%" in text  # Wilson, 270 of 360, by hand


def test_all_shares_have_two_digits(page):
    shares = re.findall(r"\S*\s?%", words(page.by_id("main")).replace("95% interval", ""))
    assert len(shares) > 40
    assert [share for share in shares if not re.fullmatch(r"\(?\d+\.\d\d%", share)] == []


def test_page_asks_for_nothing_from_elsewhere(page):
    for item in page.tree.iter():
        for name in ("src", "href", "action", "srcset", "data"):
            assert item.get(name, "data:").startswith(("data:", "#")), item.get(name)
        assert not [name for name in item.keys() if str(name).startswith("on")]  # noqa: SIM118
        assert item.get("style") is None
    policies = [meta.get("content") for meta in page.all("meta") if meta.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "@import" not in page.text
    assert "url(" not in page.text


def test_names_are_shown_and_never_run(hostile_run, tmp_path):
    write_report(hostile_run.folder, tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    text = words(page.tree)
    assert "<script>document.title='hacked'<" in text
    assert "{{ 7 * 7 }}" in text
    assert "<img src=x onerror=alert(1)>3.png" in text
    assert len(page.all("script")) == 2
    assert all(image.get("onerror") is None for image in page.all("img"))
    data = json.loads(page.by_id("scatter-data").text)
    assert sorted(data["id"]) == sorted(hostile_run.ids)


def copy_run(run, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(run.folder / name, folder / name)
    return folder


def test_without_svm_the_rest_is_shown(run, tmp_path):
    folder = copy_run(run, tmp_path / "run", "features.h5", "model.keras", "model.json")
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert result.sections == (
        *("Results", "Filters and features", "Features as points", "Where this comes from"),
    )
    page = Page(tmp_path / "report.html")
    assert "No SVM yet" in page.missing()
    assert "cnnfeat svm makes it" in page.missing()
    assert not page.has_id("confusion")


def test_without_model_the_rest_is_shown(run, tmp_path):
    folder = copy_run(run, tmp_path / "run", "features.h5", "svm.json", "predictions.csv")
    write_report(folder, tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    assert "No filters and no training curve:" in page.missing()
    assert "which lies neither beside it nor in the current folder" in page.missing()
    assert page.has_id("confusion")
    assert "The weights are not at hand." in words(page.tree)


def test_another_model_is_not_taken_for_the_one_of_the_features(run, hostile_run, tmp_path):
    folder = copy_run(run, tmp_path / "run", "features.h5")
    shutil.copy(hostile_run.folder / "model.keras", folder / "model.keras")
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert any("is not the network that features.h5 was made with" in m for m in result.missing)


def test_svm_of_other_features_is_left_out(run, tmp_path):
    folder = copy_run(run, tmp_path / "run", "features.h5", "svm.json", "predictions.csv")
    document = json.loads((folder / "svm.json").read_text("utf-8"))
    document["features"] = {"network_sha256": "0" * 64}
    (folder / "svm.json").write_text(json.dumps(document), "utf-8")
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert any("was made from other features than features.h5" in m for m in result.missing)
    assert "Confusions" not in result.sections


def write_fakes(folder: Path, *, n_classes: int, labelled: bool = True, rank: int = 1) -> None:
    """Leave features of a source that is nowhere."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    n_rows = max(2 * n_classes, 12)
    labels = np.arange(n_rows) % n_classes
    shape = {1: (5,), 3: (4, 4, 2)}[rank]
    write_arrays(
        folder / "features.h5",
        {"all": {"layer": rng.standard_normal((n_rows, *shape)).astype(np.float32)}},
        labels={"all": labels} if labelled else None,
        classes=[f"class {k}" for k in range(n_classes)] if labelled else (),
        attributes={"source": "/nowhere/pictures", "source_fingerprint": "0" * 64},
    )
    if not labelled:
        return
    predicted = np.where(np.arange(n_rows) % 3 == 0, (labels + 1) % n_classes, labels)
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    document = {
        **{"format": "cnnfeat-svm", "format_version": 1, "layer": "layer", "kernel": "rbf"},
        **{"accuracy": 0.66, "accuracy_interval": [0.6, 0.7], "n_train": 9, "n_test": n_rows},
        "classes": [f"class {k}" for k in range(n_classes)],
        "confusion": confusion.tolist(),
    }
    (folder / "svm.json").write_text(json.dumps(document), "utf-8")
    lines = ["id,label,predicted,margin"] + [
        f"all/{row:05d},class {labels[row]},class {predicted[row]},0.5" for row in range(n_rows)
    ]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n", "utf-8")


def test_moved_images_are_said_to_be_missing(tmp_path):
    write_fakes(tmp_path / "run", n_classes=3, rank=3)
    result = write_report(tmp_path / "run", tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    assert "are not where they were: there is no /nowhere/pictures" in page.missing()
    assert "Mistakes" in result.sections
    assert "no image" in words(page.by_id("c0-1"))
    pictures = [i for i in page.all("img") if i.get("src") and i.get("class") != "chart"]
    assert len(pictures) == 3  # the maps alone


def test_changed_images_are_said_to_be_missing(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_arrays(
        folder / "features.h5",
        {"test": {"fc1": run.maps["fc1"]}},
        attributes={"source": "digits", "source_fingerprint": "0" * 64},
    )
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert any("digits is not what features.h5 was made from" in text for text in result.missing)


def test_a_thousand_classes_are_listed_by_the_worst_pairs(tmp_path):
    write_fakes(tmp_path / "run", n_classes=1000)
    result = write_report(tmp_path / "run", tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    assert result.size_bytes < 2e6
    assert "1,000 classes are too many for a matrix" in words(page.tree)
    assert not [t for t in page.all("table") if t.get("class") == "matrix"]
    assert len(page.by_id("scatter-data").text) > 1000
    assert "1,000 classes" in {words(summary) for summary in page.all("summary")}


def test_large_maps_are_thinned_and_the_page_says_so(tmp_path, rng):
    maps = rng.standard_normal((6, 70, 64, 200)).astype(np.float32)
    write_arrays(tmp_path / "features.h5", {"all": {"wide": maps}})
    result = write_report(tmp_path, tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    assert result.size_bytes < 5e6
    text = words(page.tree)
    assert "70×64×200 = 896,000 features an image; the first 144 of 200 maps are shown" in text
    assert "of each map one pixel in 3×3 is drawn" in text


def test_unlabelled_images_are_points_without_class(tmp_path):
    write_fakes(tmp_path / "run", n_classes=2, labelled=False)
    result = write_report(tmp_path / "run", tmp_path / "report.html", embedding="pca")
    page = Page(tmp_path / "report.html")
    assert page.has_id("embedding")
    assert not page.has_id("results")  # there is none, and no empty card
    assert "Results" not in result.sections
    assert not [u for u in page.all("ul") if u.get("class") == "legend"]


def test_one_class_is_shown_too(tmp_path):
    write_fakes(tmp_path / "run", n_classes=1)
    result = write_report(tmp_path / "run", tmp_path / "report.html", embedding="pca")
    assert "Confusions" in result.sections
    assert "None: all 12 images are classified right." in words(Page(tmp_path / "report.html").tree)


def test_a_sample_is_said_to_be_one_and_holds_all_mistakes(run, tmp_path):
    write_report(run.folder, tmp_path / "report.html", embedding="pca", n_points=200)
    page = Page(tmp_path / "report.html")
    data = json.loads(page.by_id("scatter-data").text)
    wrong = {run.ids[place] for place in np.flatnonzero(run.labels != run.predicted)[:200]}
    assert len(data["id"]) == 200
    if len(wrong) < 200:
        assert wrong <= set(data["id"])
    assert f"PCA of 200 of the {len(run.ids)} images of test" in words(page.tree)


def test_no_features_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(MissingInputError, match=r"features\.h5"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_refusals_leave_the_old_page(run, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("old", "utf-8")
    with pytest.raises(OutputExistsError, match="exists"):
        write_report(run.folder, out)
    with pytest.raises(
        UsageError, match="no embedding 'tnse'; there are: pca, tsne, umap"
    ) as caught:
        write_report(run.folder, out, embedding="tnse", overwrite=True)
    assert "'tsne'" in caught.value.hint
    with pytest.raises(LayerLookupError, match="no layer 'fc9'"):
        write_report(run.folder, out, layer="fc9", embedding="pca", overwrite=True)
    assert out.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("{", "can't be read as JSON"),
        ('{"format": "other"}', "not an SVM result: its format is 'other'"),
        ('{"format": "cnnfeat-svm", "format_version": 9}', "format version 9"),
        ('{"format": "cnnfeat-svm", "format_version": 1}', "damaged: it lacks layer, acc"),
    ],
)
def test_a_damaged_svm_result_is_left_out_and_named(run, tmp_path, damage, message):
    from cnnfeat.result import read_result

    folder = copy_run(run, tmp_path / "run", "features.h5")
    (folder / "svm.json").write_text(damage, "utf-8")
    with pytest.raises(FeatureFileError, match=message):
        read_result(folder / "svm.json")
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert any(message in text for text in result.missing)


def test_predictions_of_other_images_are_left_out_and_named(run, tmp_path):
    folder = copy_run(run, tmp_path / "run", "features.h5", "svm.json")
    (folder / "predictions.csv").write_text(
        "id,label,predicted,margin\nelsewhere.png,0,0,1\n", "utf-8"
    )
    result = write_report(folder, tmp_path / "report.html", embedding="pca")
    assert any("predictions for images that" in text for text in result.missing)
    assert "Confusions" in result.sections
    assert "Mistakes" not in result.sections
