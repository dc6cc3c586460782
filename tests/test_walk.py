"""What the pages of the documentation say is done, from the built site, by docs/walk.py."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_DOCS = _ROOT / "docs"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}
_NEED_MNIST = ("index", "how/tf1-checkpoint")
# Weights that would be downloaded: random ones do in their place.
_OFFLINE = {"how/transfer": {"CNNFEAT_RUN_WEIGHTS": "none"}}


def _walked(name: str) -> bool:
    """Whether there is something to type on a page that is written by hand."""
    text = (_DOCS / "pages" / f"{name}.md").read_text("utf-8")
    return "```sh\n" in text and "written by" not in text


_PAGES = sorted(
    filter(
        _walked,
        (str(p.relative_to(_DOCS / "pages").with_suffix("")) for p in _DOCS.glob("pages/**/*.md")),
    )
)


@pytest.fixture(scope="module")
def walk():
    spec = importlib.util.spec_from_file_location("walk", _DOCS / "walk.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["walk"] = module  # where its records look for their annotations
    spec.loader.exec_module(module)
    return module


def build(root: Path) -> Path:
    """Build the pages that lie in `root`; links to those that the code writes lead nowhere."""
    config = '[project]\nsite_name = "cnnfeat"\ndocs_dir = "pages"\nsite_dir = "site"\n'
    (root / "zensical.toml").write_text(config)
    command = [sys.executable, "-m", "zensical", "build", "-f", root / "zensical.toml"]
    subprocess.run(command, check=True, capture_output=True)
    return root / "site"


def built(site: Path, name: str) -> Path:
    """Where a page lies in the site."""
    return site / "index.html" if name == "index" else site / name / "index.html"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(_DOCS / "pages", root / "pages")
    for name in ("command-line", "configuration", "python"):
        (root / "pages" / "reference" / f"{name}.md").unlink(missing_ok=True)
    return build(root)


_PAGE = """# A page

```sh
export WORD='a < b'
echo one && echo "$WORD" > said.txt
```

Its output:

```
one
```

```python title="parts/double.py"
print("4 &", 2 * 2)
```

<!-- exits 3 -->

```sh
python parts/double.py
exit 3
```

```python
x = 1
```

then

```python
open("x.txt", "w").write(f"{x} {'WORD' in globals()}")
```

<!-- not run: it would delete everything -->

```sh
rm -r .
```

=== "A tab"

    ```sh
    cp x.txt y.txt
    ```

```r
no such language
```
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    (root / "pages").mkdir()
    (root / "pages" / "index.md").write_text(_PAGE)
    return built(build(root), "index")


def test_blocks_are_found_as_they_were_written(walk, page: Path) -> None:
    found = walk.blocks_of(page.read_text("utf-8"))
    assert [(one.language, one.title, one.exit_code) for one in found] == [
        ("sh", "", 0),
        ("text", "", 0),
        ("python", "parts/double.py", 0),
        ("sh", "", 3),
        ("python", "", 0),
        ("python", "", 0),
        ("sh", "", 0),
        ("sh", "", 0),
        ("r", "", 0),
    ]
    assert found[0].text == "export WORD='a < b'\necho one && echo \"$WORD\" > said.txt\n"
    assert found[2].text == 'print("4 &", 2 * 2)\n'
    assert [one.reason for one in found if one.reason] == ["it would delete everything"]


def test_a_page_is_done_from_top_to_bottom(walk, page: Path, tmp_path: Path) -> None:
    assert walk.walk(page, tmp_path, environment={}) == 0
    work = tmp_path / "work"
    assert (work / "said.txt").read_text() == "a < b\n"
    assert (work / "y.txt").read_text() == "1 False"
    assert (work / "parts" / "double.py").is_file()


@pytest.mark.parametrize(
    ("blocks", "code"),
    [
        ("```sh\nfalse\necho behind\n```", 1),
        ("<!-- exits 3 -->\n\n```sh\nexit 4\n```", 1),
        ("```python\nraise SystemExit(7)\n```", 7),
        ("```sh\nsleep 1000 &\n```", 0),
        ('```sh\n[ "$HOME" != "$PWD" ] && [ -z "$(ls -A . | cat - <(ls -A "$HOME"))" ]\n```', 0),
    ],
    ids=["a command fails", "another exit code", "a program fails", "a server", "nothing is there"],
)
def test_what_a_page_ends_with(walk, tmp_path: Path, blocks: str, code: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(as_built(blocks))
    assert walk.walk(page, tmp_path, environment={}) == code


def as_built(markdown: str) -> str:
    """One block as Zensical writes it, in less time."""
    comment = "".join(re.findall(r"<!--.*?-->", markdown))
    language, text = re.search(r"```(\w+)\n(.*)```", markdown, re.S).groups()
    code = f"<pre><span></span><code><a id='1'></a>{escape(text)}</code></pre>"
    return f'{comment}\n<div class="language-{language} highlight">{code}</div>'


def test_few_blocks_are_not_run_and_each_has_a_reason(walk, site: Path) -> None:
    blocks = [
        one for name in _PAGES for one in walk.blocks_of(built(site, name).read_text("utf-8"))
    ]
    typed = [one for one in blocks if one.language in ("sh", "python")]
    assert len(typed) > 50
    assert sum(1 for one in typed if one.reason) < len(typed) / 5


def test_the_program_of_the_page_on_python_runs(
    walk, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = walk.blocks_of(built(site, "how/python").read_text("utf-8"))
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.text.replace("epochs=20", "epochs=5"), names)  # noqa: S102 - what it is for
    assert len(names["found"].predicted) == 100
    assert names["X"].shape == (240, 128)
    assert {"live.h5", "graph.h5"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a page trains several networks
@pytest.mark.parametrize("name", _PAGES)
def test_a_stranger_s_path(walk, site: Path, request, tmp_path: Path, name: str) -> None:
    environment = {**_QUIET, **_OFFLINE.get(name, {})}
    if name in _NEED_MNIST:
        environment["CNNFEAT_DATA_DIR"] = str(request.getfixturevalue("data_dir"))
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    assert walk.walk(built(site, name), tmp_path, environment=environment) == 0
