"""The report in a real browser: silent, quick to the hand, and usable without eyes or scripts."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from cnnfeat.report.page import write_report

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SIZES = [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


def _quick(*quick: tuple[int, str]) -> list:
    """All sizes and colours, of which the other ones are slow."""
    return [
        size if size in quick else pytest.param(*size, marks=pytest.mark.slow) for size in SIZES
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(run, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run.folder, out, embedding="pca")
    return out.as_uri()


class Visit:
    """A page with everything it says and asks for written down."""

    def __init__(self, browser, address: str, **options) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "request",
            lambda request: (
                None if request.url.startswith("data:") else self.asked.append(request.url)
            ),
        )
        self.page.goto(address)

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser, address) -> Iterator:
    visits = []

    def make(width: int = 1200, *, address: str = address, **options) -> Visit:
        visits.append(Visit(browser, address, viewport={"width": width, "height": 900}, **options))
        return visits[-1]

    yield make
    for item in visits:
        item.close()


def picture(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("L"))


def points(page) -> dict[str, list]:
    return json.loads(page.locator("#scatter-data").text_content())


def on_screen(page, data: dict[str, list], place: int) -> tuple[float, float]:
    """Where a point stands on the screen, with the whole plot shown."""
    plane = page.locator("#plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    return (
        box["x"] + data["x"][place] / 1000 * box["width"],
        box["y"] + data["y"][place] / 700 * box["height"],
    )


def lonely(data: dict[str, list]) -> int:
    """Find the point farthest from all others."""
    places = np.column_stack([data["x"], data["y"]])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return int(apart.min(axis=1).argmax())


def chosen_picture(page) -> np.ndarray:
    return picture(page.locator(".inspector canvas").evaluate("canvas => canvas.toDataURL()"))


@pytest.mark.parametrize(("width", "scheme"), _quick((400, "light"), (1400, "dark")))
def test_page_is_silent_and_asks_for_nothing(visit, address, width, scheme):
    seen = visit(width, color_scheme=scheme)
    seen.page.wait_for_function("document.getElementById('plane').getAttribute('role')")
    seen.page.mouse.wheel(0, 20_000)
    assert seen.said == []
    assert seen.asked == [address]
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "scheme"), _quick((400, "dark")))
def test_axe_finds_nothing_serious(visit, width, scheme):
    page = visit(width, color_scheme=scheme).page
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    page.locator(".matrix td a").first.click()
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (item["id"], item["nodes"][0]["html"], item["nodes"][0]["failureSummary"])
        for item in found
        if item["impact"] in ("serious", "critical", "moderate")
    ]
    assert serious == []


def right_edge(region) -> np.ndarray:
    """The last columns of pixels of what is shown of a region."""
    with Image.open(io.BytesIO(region.screenshot())) as image:
        return np.asarray(image.convert("RGB"))[:, -6:-3].astype(int)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_goes_on_beyond_a_narrow_screen_fades_out(visit, scheme):
    page = visit(400, color_scheme=scheme).page
    region = page.locator("[aria-labelledby=stored]")
    assert region.evaluate("one => one.scrollWidth > one.clientWidth + 20")
    assert np.ptp(right_edge(region), axis=(0, 1)).max() <= 4  # nothing but the card
    region.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
    assert np.ptp(right_edge(region), axis=(0, 1)).max() > 10  # lines between the rows


def test_a_matrix_of_ten_classes_fits_a_narrow_screen(visit):
    page = visit(400).page
    region = page.locator(".scroll:has(.matrix)")
    assert region.evaluate("one => one.scrollWidth <= one.clientWidth")
    assert np.ptp(right_edge(region.locator("thead")), axis=(0, 1)).max() > 10  # not faded
    for link in page.locator(".matrix td a").all():
        assert min(link.bounding_box()["width"], link.bounding_box()["height"]) >= 24


def test_cards_are_filled_on_a_wide_screen(visit):
    page = visit(1400).page
    card = page.locator("main > .card").first.bounding_box()
    inner = card["x"] + card["width"] - 20
    for box in page.locator(".numbers, .chart, .pair, .scatter, .exhibit, .facts").all():
        place = box.bounding_box()
        assert place["x"] + place["width"] == pytest.approx(inner, abs=4)
    matrix, classes = (page.locator(f".pair > {one}").bounding_box() for one in ("div", "details"))
    assert classes["x"] >= matrix["x"] + matrix["width"]
    assert classes["x"] + classes["width"] == pytest.approx(inner, abs=4)
    answers = page.locator(".numbers > div").evaluate_all("all => all.map(one => one.offsetTop)")
    assert len(set(answers)) == 1


def test_axes_of_the_scatter_plot_are_named(visit):
    page = visit(1400).page
    down, across = page.locator(".axis").all()
    plane = page.locator("#plane").bounding_box()
    assert across.inner_text().startswith("principal component 1 (")
    assert down.inner_text().startswith("principal component 2 (")
    assert across.bounding_box()["y"] >= plane["y"] + plane["height"]
    assert down.bounding_box()["x"] + down.bounding_box()["width"] <= plane["x"]


@pytest.mark.parametrize("width", [400, 1400])
def test_names_of_clusters_lie_apart(visit, width):
    page = visit(width).page
    boxes = [name.bounding_box() for name in page.locator(".names text").all()]
    assert len(boxes) == 10
    for one, other in itertools.combinations(boxes, 2):
        across = abs(one["x"] + one["width"] / 2 - other["x"] - other["width"] / 2)
        down = abs(one["y"] + one["height"] / 2 - other["y"] - other["height"] / 2)
        assert across >= (one["width"] + other["width"]) / 2 - 1 or down >= 0.8 * one["height"]


def test_hover_shows_the_point_under_the_pointer(visit, run):
    page = visit().page
    data = points(page)
    place = lonely(data)
    page.mouse.move(*on_screen(page, data, place))
    name = data["id"][place]
    row = run.ids.index(name)
    told = page.locator("#told").inner_text().split("\n")
    assert told[:2] == [name, f"class {run.classes[run.labels[row]]}"]
    assert run.classes[run.predicted[row]] in told[2]
    assert told[3] == f"margin {run.margins[row]:.2f}"
    np.testing.assert_array_equal(chosen_picture(page), run.images[name][..., 0])


def test_tap_shows_the_point_under_the_finger(visit, run):
    page = visit(400, has_touch=True, is_mobile=True).page
    data = points(page)
    place = lonely(data)
    page.touchscreen.tap(*on_screen(page, data, place))
    assert page.locator("#told").inner_text().split("\n")[0] == data["id"][place]
    np.testing.assert_array_equal(chosen_picture(page), run.images[data["id"][place]][..., 0])


def test_keys_walk_from_point_to_point_and_zoom(visit):
    page = visit().page
    data = points(page)
    plane = page.locator("#plane")
    plane.focus()

    def stands() -> float:
        name = page.locator("#told").inner_text().split("\n")[0]
        return data["x"][data["id"].index(name)]

    page.keyboard.press("ArrowRight")
    walk = [stands()]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        walk.append(stands())
    assert walk == sorted(walk)
    assert walk[0] < walk[-1]
    page.keyboard.press("+")
    width = float(plane.get_attribute("viewBox").split()[2])
    assert width == pytest.approx(600)
    page.keyboard.press("0")
    assert plane.get_attribute("viewBox") == "0 0 1000 700"


def test_zoomed_hover_still_finds_the_point(visit):
    page = visit().page
    data = points(page)
    place = lonely(data)
    page.mouse.move(*on_screen(page, data, place))
    page.locator("[data-do=in]").click()
    page.locator("[data-do=in]").click()
    x, y, width, height = map(float, page.locator("#plane").get_attribute("viewBox").split())
    assert width < 500
    other = next(
        i
        for i in np.random.default_rng(0).permutation(len(data["x"]))
        if i != place
        and x + 30 < data["x"][i] < x + width * 0.7
        and y + height * 0.3 < data["y"][i] < y + height - 10
    )
    box = page.locator("#plane").bounding_box()
    page.mouse.move(
        box["x"] + (data["x"][other] - x) / width * box["width"],
        box["y"] + (data["y"][other] - y) / height * box["height"],
    )
    name = page.locator("#told").inner_text().split("\n")[0]
    found = data["id"].index(name)
    assert np.hypot(
        data["x"][found] - data["x"][other], data["y"][found] - data["y"][other]
    ) == pytest.approx(0, abs=0.2)


def test_wheel_zooms_only_once_the_plot_has_focus(visit):
    page = visit().page
    plane = page.locator("#plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -10)
    assert plane.get_attribute("viewBox") == "0 0 1000 700"
    plane.focus()
    page.mouse.wheel(0, -10)
    page.wait_for_function(
        "document.getElementById('plane').getAttribute('viewBox') != '0 0 1000 700'"
    )


def test_a_class_can_be_picked_out(visit):
    page = visit().page
    button = page.locator(".legend button").nth(3)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    faded = page.locator("#plane path[data-class]").evaluate_all(
        "paths => paths.map(path => path.classList.contains('faded'))"
    )
    assert faded.count(False) == 1
    assert faded[3] is False
    data = points(page)
    page.locator("#plane").focus()
    page.keyboard.press("ArrowRight")
    name = page.locator("#told").inner_text().split("\n")[0]
    assert data["label"][data["id"].index(name)] == 3


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_cell_opens_the_images_behind_it(visit, run, scripts):
    page = visit(java_script_enabled=scripts).page
    true, taken = (int(i[0]) for i in np.nonzero(run.confusion * (1 - np.eye(10))))
    panel = page.locator(f"#c{true}-{taken}")
    assert not panel.is_visible()
    page.locator(f".matrix a[href='#c{true}-{taken}']").click()
    assert panel.is_visible()
    images = panel.locator("img")
    assert images.count() == min(run.confusion[true, taken], 12)
    for k in range(images.count()):
        name = images.nth(k).get_attribute("alt").partition(":")[0]
        row = run.ids.index(name)
        assert (run.labels[row], run.predicted[row]) == (true, taken)
        shown = picture(images.nth(k).get_attribute("src"))
        np.testing.assert_array_equal(shown, run.images[name][..., 0])


def test_without_scripts_the_plot_is_a_picture(visit):
    page = visit(java_script_enabled=False).page
    assert page.locator("#plane").is_visible()
    assert not page.locator(".inspector").is_visible()
    assert not page.locator(".tools").is_visible()
    assert page.locator("#plane").get_attribute("role") == "img"


def test_hostile_names_run_nothing(browser, hostile_run, visit, tmp_path):
    out = tmp_path / "report.html"
    write_report(hostile_run.folder, out, embedding="pca")
    seen = visit(address=out.as_uri())
    page = seen.page
    page.locator("#plane").focus()
    page.keyboard.press("ArrowRight")
    assert "<img src=x onerror=alert(1)>" in page.locator("#told").inner_text()
    assert "hacked" not in page.title()
    assert seen.said == []
    assert seen.asked == [out.as_uri()]
