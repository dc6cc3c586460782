"""The notebooks are done as a reader would, from top to bottom in an empty folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

_NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(_NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_of(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def done(name: str, folder: Path) -> nbformat.NotebookNode:
    """Execute it by a kernel of its own; an error of a cell is one here."""
    book = read(name)
    NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return book


def said(book: nbformat.NotebookNode, kind: str) -> str:
    """Everything that its cells show as text, or wrote to a stream."""
    found = []
    for cell in code_of(book):
        for output in cell.outputs:
            if output.output_type == "stream" and kind == output.name:
                found.append(output.text)
            elif output.output_type == "execute_result" and kind == "result":
                found.append(output.data["text/plain"])
    return "\n".join(found)


def n_pictures(book: nbformat.NotebookNode) -> int:
    return sum("image/png" in o.get("data", {}) for cell in code_of(book) for o in cell.outputs)


@pytest.mark.parametrize("name", sorted(path.stem for path in _NOTEBOOKS.glob("*.ipynb")))
def test_it_is_kept_as_it_was_done(name: str) -> None:
    """Whole, in order, and with what it showed: it is read on a page more often than it is run."""
    book = read(name)
    nbformat.validate(book)
    cells = code_of(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        ast.parse(cell.source)
        assert all(output.output_type != "error" for output in cell.outputs)
    assert n_pictures(book) >= 1
    assert said(book, "stderr") == ""
    text = (_NOTEBOOKS / f"{name}.ipynb").read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert len(text) < 500_000


@pytest.mark.slow
@pytest.mark.mnist
@pytest.mark.timeout(3_600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
def test_mnist_from_end_to_end(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNFEAT_DATA_DIR", str(data_dir))
    book = done("mnist", tmp_path)
    assert said(book, "stderr") == ""
    assert n_pictures(book) == n_pictures(read("mnist"))
    shares = re.findall(r"accuracy\s+(\d+\.\d+)% of 10,000 test rows", said(book, "result"))
    assert len(shares) == 2 and all(float(share) > 98.5 for share in shares)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_own_photographs(tmp_path: Path) -> None:
    book = done("photographs", tmp_path)
    assert said(book, "stderr") == ""
    assert n_pictures(book) == n_pictures(read("photographs"))
    assert re.search(r"(\d+)% of 48 test rows", said(book, "stdout"))
    assert {"new-dots.png -> dots", "new-stripes.png -> stripes"} <= set(
        re.findall(r"new-\w+\.png -> \w+", said(book, "stdout"))
    )
