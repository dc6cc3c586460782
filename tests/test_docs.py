"""The documentation: its reference says all that the code has, and the site builds strictly."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cnnfeat
from cnnfeat import errors
from cnnfeat.cli import COMMANDS

_ROOT = Path(__file__).parents[1]
_DOCS = _ROOT / "docs"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", _DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def test_every_command_and_option_has_its_row(reference, cnnfeat) -> None:
    page = "\n".join(reference.command_line())
    sections = dict(re.findall(r"^##+ (.+?)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    assert set(COMMANDS) <= set(sections)
    for name in ("train", "extract", "svm", "predict", "data fetch", "plot augment"):
        code, help_text, _ = cnnfeat(*name.split(), "--help")
        assert code == 0
        words = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text, re.M))
        assert words
        assert {word for word in words if f"{word}" not in sections[name]} == set()


def test_every_key_of_the_configurations_has_its_row(reference) -> None:
    page = "\n".join(reference.configuration())
    for path in (_ROOT / "configs").glob("*.toml"):
        for table, keys in tomllib.loads(path.read_text("utf-8")).items():
            section = page.split(f"## [{table}]")[1].split("\n## [")[0]
            plain = [key for key, value in keys.items() if not isinstance(value, list | dict)]
            assert {key for key in plain if f"| `{key}` |" not in section} == set()


def test_every_exit_code_has_its_row(reference) -> None:
    codes = {code for code, _ in reference.exit_codes()}
    raised = {str(kind.exit_code) for kind in subclasses(errors.CnnfeatError)}
    assert raised - codes <= {"130"}  # which stands in one row with 143
    assert {"0", "6", "130, 143"} <= codes


def test_every_public_name_has_its_entry(reference) -> None:
    page = "\n".join(reference.python())
    entries = re.findall(r"^(?:::: \S+\.|## )(\w+)$", page, re.M)
    assert entries == list(cnnfeat.__all__)


def test_pages_of_the_menu_are_there(reference, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reference, "PAGES", tmp_path / "reference")
    reference.main()
    shutil.copytree(_DOCS / "pages", tmp_path, dirs_exist_ok=True)
    menu = re.findall(r'"(\S+\.md)"', (_DOCS / "zensical.toml").read_text("utf-8"))
    assert menu
    assert {name for name in menu if not (tmp_path / name).is_file()} == set()


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path) -> None:
    for name in ("docs", "src"):
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("site"))
    subprocess.run([sys.executable, "docs/reference.py"], cwd=tmp_path, check=True)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "docs/zensical.toml"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "docs/site/reference/python/index.html").is_file()
    (tmp_path / "docs/pages/index.md").write_text("[nowhere](none.md)")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True, check=False).returncode != 0
