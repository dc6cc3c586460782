"""What the papers beside the code say of it."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import yaml

import cnnfeat

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _yaml(name: str) -> dict[str, object]:
    return yaml.safe_load((_ROOT / name).read_text("utf-8"))


def test_citation_is_of_this_version_and_licence() -> None:
    citation = _yaml("CITATION.cff")
    assert citation["version"] == cnnfeat.__version__
    assert citation["license"] == _PROJECT["license"] == "Apache-2.0"


def test_licence_is_whole() -> None:
    text = (_ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "9. Accepting Warranty or Additional Liability" in text


def test_package_says_that_it_is_typed() -> None:
    assert resources.files("cnnfeat").joinpath("py.typed").is_file()


def test_workflow_runs_each_python_that_the_package_takes() -> None:
    matrix = _yaml(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = "Programming Language :: Python :: "
    declared = [item.removeprefix(named) for item in _PROJECT["classifiers"] if named in item]
    assert matrix == declared
    low, below = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", _PROJECT["requires-python"]).groups()
    assert declared == [f"3.{minor}" for minor in range(int(low), int(below))]


def test_hooks_run_what_the_test_script_runs() -> None:
    script = (_ROOT / "scripts" / "test").read_text("utf-8")
    hooks = {hook["id"]: hook for hook in _yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]}
    for name in ("ruff-check", "ruff-format", "mypy"):
        assert re.search(rf"^ +{re.escape(hooks[name]['entry'])}$", script, re.M)
    assert hooks["test"]["entry"] == "scripts/test"


def test_image_gets_only_what_it_builds_from() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (_ROOT / "Dockerfile").read_text(), re.M)
    let_in = re.findall(r"^!(\S+)$", (_ROOT / ".dockerignore").read_text(), re.M)
    assert " ".join(copied).split() == let_in
    assert all((_ROOT / name).exists() for name in let_in)
