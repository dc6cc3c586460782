"""The documentation: its reference says all that the code has, and the site builds strictly."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest

import cnnfeat
from cnnfeat import errors
from cnnfeat.cli import cli
from cnnfeat.features import write_arrays
from cnnfeat.features.format import FORMAT_VERSION
from cnnfeat.options import RunOptions
from cnnfeat.provenance import Provenance

_ROOT = Path(__file__).parents[1]
_DOCS = _ROOT / "docs"
_OF_NETCDF = {"DIMENSION_LIST", "block", "sum_column"}  # what names the axes


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", _DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(command: click.Command, *words: str) -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, as they are typed."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), *words, name)
    else:
        yield " ".join(words), command


def options_of(command: click.Command) -> set[str]:
    """Its options' long names, that of the help among them."""
    params = command.get_params(click.Context(command))
    names = {word for item in params for word in (*item.opts, *item.secondary_opts)}
    return {name for name in names if name.startswith("--")}


def keys_of(record: type) -> set[str]:
    """All keys of a table of the configuration, those of tables inside it too."""
    hints, found = typing.get_type_hints(record), set()
    for item in dataclasses.fields(record):
        inner = next((kind for kind in typing.get_args(hints[item.name])), None)
        found |= keys_of(inner) if dataclasses.is_dataclass(inner) else {item.name}
    return found


def exit_codes() -> set[str]:
    """All that a command can end with, but for a signal's."""
    todo, codes = [errors.CnnfeatError], {0, errors.SKIPPED_EXIT_CODE}
    while todo:
        kind = todo.pop()
        codes.add(kind.exit_code)
        todo += kind.__subclasses__()
    return {str(code) for code in codes}


def test_every_command_and_option_has_its_row(reference) -> None:
    page = "\n".join(reference.command_line())
    sections = dict(re.findall(r"^##+ (.+?)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    commands = dict(leaves(cli))
    assert {"train", "data fetch", "plot augment"} < set(commands) <= set(sections)
    for name, command in commands.items():
        rows = sections[name]
        missing = {one for one in options_of(command) if not re.search(rf"{one}(?![\w-])", rows)}
        assert missing == set(), name


def test_every_key_has_its_row(reference) -> None:
    page = "\n".join(reference.configuration())
    hints = typing.get_type_hints(RunOptions)
    assert {"data", "network", "svm"} < set(hints)
    for table, record in hints.items():
        section = page.split(f"## [{table}]")[1].split("\n## [")[0]
        rows = section + "".join(re.findall(rf"## \[\[{table}\..*?(?=\n## |\Z)", page, re.S))
        assert {key for key in keys_of(record) if f"| `{key}` |" not in rows} == set(), table


def test_every_key_of_the_configurations_has_its_row(reference) -> None:
    page = "\n".join(reference.configuration())
    for path in (_ROOT / "configs").glob("*.toml"):
        for table, keys in tomllib.loads(path.read_text("utf-8")).items():
            section = page.split(f"## [{table}]")[1].split("\n## [")[0]
            plain = [key for key, value in keys.items() if not isinstance(value, list | dict)]
            assert {key for key in plain if f"| `{key}` |" not in section} == set()


def test_every_exit_code_has_its_row(reference) -> None:
    listed = {code for codes, _ in reference.exit_codes() for code in codes.split(", ")}
    assert exit_codes() | {"143"} <= listed


def test_every_public_name_has_its_entry(reference) -> None:
    page = "\n".join(reference.python())
    entries = re.findall(r"^(?:::: \S+\.|## )(\w+)$", page, re.M)
    assert entries == list(cnnfeat.__all__)


@pytest.fixture(scope="module")
def pages(reference, tmp_path_factory) -> Path:
    """All pages, those that the code writes too, beside the papers that stand above them."""
    root = tmp_path_factory.mktemp("root")
    for paper in _ROOT.glob("*.md"):
        shutil.copy(paper, root)
    shutil.copy(_ROOT / "LICENSE", root)
    shutil.copy(_ROOT / "CITATION.cff", root)
    for folder in ("pages", "notebooks"):
        shutil.copytree(_DOCS / folder, root / "docs" / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PAGES", root / "docs" / "pages" / "reference")
        reference.main()
    return root


def test_all_pages_are_in_the_menu_and_no_others(pages) -> None:
    menu = re.findall(r'"(\S+\.md)"', (_DOCS / "zensical.toml").read_text("utf-8"))
    there = [
        str(path.relative_to(pages / "docs/pages")) for path in pages.rglob("docs/pages/**/*.md")
    ]
    assert sorted(menu) == sorted(there)


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^##+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in headings}


def test_links_lead_somewhere(pages) -> None:
    broken = []
    for page in pages.rglob("*.md"):
        prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if name.startswith("http"):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
                broken.append(f"{page.relative_to(pages)}: {link}")
    assert broken == []


def test_what_is_read_on_its_own_leads_to_no_page_that_is_built(reference) -> None:
    readme = (_ROOT / "README.md").read_text("utf-8")
    assert not re.search(r"reference/(command-line|configuration|python)\.md", readme)


def typed(text: str) -> set[str]:
    """All `cnnfeat ...` in blocks of code and between backquotes."""
    blocks = "".join(re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S))
    joined = re.sub(r"\s*\\\n\s*", " ", blocks)
    lines = re.findall(r"(?:^|do )(cnnfeat [^;#>\n]*)", joined, re.M)
    return {*lines, *re.findall(r"`(cnnfeat [^`]+)`", text.replace(blocks, ""))}


def is_understood(line: str) -> bool:
    """Whether the command line takes it, whatever the values are."""
    words = [word for word in shlex.split(line.replace("…", ""))[1:] if word]
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0].isupper():  # a placeholder: KIND
            return True
        command, words = command.get_command(click.Context(command), words[0]), words[1:]
        if command is None:
            return False
    context = click.Context(command)
    try:
        command.make_parser(context).parse_args(words)
    except click.NoSuchOption:
        return False
    except click.BadOptionUsage:  # named without its value, in a sentence
        return True
    return True


_TEXTS = {
    str(path.relative_to(_ROOT)): path
    for path in (*_ROOT.glob("*.md"), *_DOCS.glob("pages/**/*.md"))
    if "cnnfeat " in path.read_text("utf-8") and "written by" not in path.read_text("utf-8")
}


@pytest.mark.parametrize("name", sorted(_TEXTS))
def test_every_command_line_is_one(name: str) -> None:
    lines = typed(_TEXTS[name].read_text("utf-8"))
    assert {line for line in lines if not is_understood(line)} == set()


def test_what_is_no_command_line_is_told() -> None:
    assert is_understood("cnnfeat extract --layer conv2 --data x")
    assert is_understood("cnnfeat plot KIND")
    assert not is_understood("cnnfeat extract --layers conv2")
    assert not is_understood("cnnfeat plot filter")
    assert not is_understood("cnnfeat learn")


def test_the_specification_names_what_is_in_a_feature_file(tmp_path: Path) -> None:
    text = (_DOCS / "pages" / "reference" / "feature-file.md").read_text("utf-8")
    path = tmp_path / "features.h5"
    rows = np.zeros((3, 2, 2, 1), np.float32)
    write_arrays(path, {"train": {"conv": rows}}, labels={"train": np.arange(3)}, classes="abc")
    with h5py.File(path) as file:
        said = {*file.attrs, *file["train/conv"].attrs, *file["checksums/train"]} - _OF_NETCDF
        stored = {name for name in file["train"] if not file["train"][name].is_scale} - {"conv"}
    said |= {item.name for item in dataclasses.fields(Provenance)}
    assert {name for name in said | stored if not re.search(rf"[`/]{name}`", text)} == set()
    assert f"\n| {FORMAT_VERSION} | " in text.split("## Version history")[1]


def test_every_extra_has_its_row() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"test", "docs", "bench"}
    text = (_DOCS / "pages" / "reference" / "networks.md").read_text("utf-8")
    rows = "".join(re.findall(r"^\|([^|]*)\|", text.split("## Extras")[1], re.M))
    assert set(re.findall(r"`(\w+)`", rows)) == extras


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = list((_DOCS / "pages" / "pictures").iterdir())
    assert sum(path.stat().st_size for path in pictures) < 300_000
    texts = "".join(path.read_text("utf-8") for path in _DOCS.glob("pages/**/*.md"))
    assert {path.name for path in pictures if f"pictures/{path.name})" not in texts} == set()


def test_the_house_names_every_room() -> None:
    text = (_DOCS / "pages" / "maintainers.md").read_text("utf-8")
    house = text.split("src/cnnfeat/\n")[1].split("```")[0]
    rooms = {
        path.name if path.suffix else f"{path.name}/"
        for path in (_ROOT / "src" / "cnnfeat").iterdir()
        if not path.name.startswith("__")
    }
    assert {room for room in rooms if room not in house} == set()


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path) -> None:
    for name in ("docs", "src"):
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("site"))
    subprocess.run([sys.executable, "docs/reference.py"], cwd=tmp_path, check=True)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "docs/zensical.toml"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = {
        path.parent.name: path.read_text("utf-8") for path in tmp_path.glob("docs/site/**/*.html")
    }
    said = {name: html.unescape(re.sub(r"<[^>]+>", "", page)) for name, page in site.items()}
    for name, command in leaves(cli):
        assert {
            one for one in (name, *options_of(command)) if one not in said["command-line"]
        } == set()
    for record in typing.get_type_hints(RunOptions).values():
        assert {key for key in keys_of(record) if key not in said["configuration"]} == set()
    assert {code for code in exit_codes() if code not in said["command-line"]} == set()
    assert {name for name in cnnfeat.__all__ if f".{name}" not in site["python"]} == set()
    (tmp_path / "docs/pages/index.md").write_text("[nowhere](none.md)")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True, check=False).returncode != 0
