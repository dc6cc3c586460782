"""The README says what there is, on a page or two, and leads to the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cnnfeat import errors
from cnnfeat.cli import COMMANDS

_ROOT = Path(__file__).parents[1]
_TEXT = (_ROOT / "README.md").read_text("utf-8")


def test_it_is_short() -> None:
    assert len(_TEXT.splitlines()) <= 200


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_table(name: str) -> None:
    assert re.search(rf"^\|.*`cnnfeat {name}\b", _TEXT, re.MULTILINE)


def test_every_exit_code_is_named() -> None:
    codes = {errors.SKIPPED_EXIT_CODE, 0, 130, 143}
    todo = [errors.CnnfeatError]
    while todo:
        error = todo.pop()
        codes.add(error.exit_code)
        todo.extend(error.__subclasses__())
    named = _TEXT.split("Exit codes: ")[1].split("\n\n")[0]
    assert {code for code in codes if not re.search(rf"\b{code}\b", named)} == set()


def test_the_two_scripts_stand_under_install() -> None:
    section = _TEXT.split("\n## Install\n")[1].split("\n## ")[0]
    assert section.index("./scripts/quickstart") < section.index("./scripts/test")
    for name in ("quickstart", "test"):
        assert (_ROOT / "scripts" / name).stat().st_mode & 0o111


def test_it_leads_to_every_page_that_is_written_by_hand() -> None:
    written = {
        str(path.relative_to(_ROOT))
        for path in (_ROOT / "docs" / "pages").rglob("*.md")
        if "<!-- written by" not in path.read_text("utf-8")
    }
    linked = set(re.findall(r"\]\((docs/pages/[^)#]+\.md)", _TEXT))
    assert written == linked
