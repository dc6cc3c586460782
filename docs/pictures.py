"""Makes the pictures of the documentation out of a run's folder.

    cnnfeat run configs/mnist.toml
    python docs/pictures.py artifacts

Those of the report are taken by Chromium, the others drawn by `cnnfeat plot`. All are brought to
few colours: together they shall take less than 300 kB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "pages" / "pictures"
_COLOURS = 96
_WIDTH = 1000
# By name: the section's anchor, and how many pixels of its height are shown.
_SECTIONS = {"report": ("filters", 580), "map": ("embedding", 660)}
_PLOTS = {
    "activations": "activations --layer conv2 --image 7",
    "augment": "augment --augment rotation=12,shift=0.1,elastic=1.5",
}


def main(folder: Path) -> None:
    """Make all of them."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        taken = {**photographed(folder / "report.html", Path(scratch))}
        taken |= drawn(folder, Path(scratch))
        for name, path in taken.items():
            reduced(path).save(PICTURES / f"{name}.png", optimize=True)
    print(sum(path.stat().st_size for path in PICTURES.iterdir()), "bytes")


def photographed(page: Path, out: Path) -> dict[str, Path]:
    """Take pictures of the report's sections."""
    found = {}
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": _WIDTH, "height": 900}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        for name, (anchor, height) in _SECTIONS.items():
            box = view.locator(f"section[aria-labelledby={anchor}]").bounding_box()
            clip = {**box, "height": min(height, box["height"])}
            view.screenshot(path=out / f"{name}.png", full_page=True, clip=clip)
            found[name] = out / f"{name}.png"
        browser.close()
    return found


def drawn(folder: Path, out: Path) -> dict[str, Path]:
    """Have the others drawn."""
    found = {}
    for name, words in _PLOTS.items():
        found[name] = out / f"{name}.png"
        command = [sys.executable, "-m", "cnnfeat", "plot", *words.split(), "-o", found[name]]
        subprocess.run([*command, "--dpi", "80"], check=True, cwd=folder.parent)
    return found


def reduced(path: Path) -> Image.Image:
    """Read a picture, and leave it few colours and no more width than is shown."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((_WIDTH, _WIDTH))
    return picture.quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
