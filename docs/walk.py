"""Walks pages of the documentation as a reader would: what they say, typed, from an empty folder.

    python docs/walk.py how/photographs how/python ...
    python docs/walk.py --show how/photographs

A page is read as it was built, and made into a script for bash, which is run in a new folder with
a new home. Of its blocks of code

- those of ``sh`` are typed as they are;
- those of ``python`` are run, what stands in a row as one program;
- those with a title are saved in a file of that name;
- others (what a program says, other languages) are passed over.

Two comments in a page's Markdown, which no reader sees, speak of the block behind them:
``<!-- not run: REASON -->`` and ``<!-- exits 6 -->``. Of the environment only what begins with
CNNFEAT_ or TF_ goes along: where data sets lie, or an option's value by its variable, such as
CNNFEAT_RUN_WEIGHTS=none where nothing can be downloaded.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

_COMMENT = re.compile(r"not run: (?P<reason>.+)|exits (?P<code>\d+)")
_END = "end-of-this-block"
_HEAD = """\
set -e
trap 'echo "ended with $? at: $BASH_COMMAND" >&2' ERR
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page."""

    language: str
    text: str
    title: str = ""
    reason: str = ""  # why it isn't run
    exit_code: int = 0  # what its commands end with

    @property
    def is_program(self) -> bool:
        """Whether it is run by Python."""
        return self.language == "python" and not (self.title or self.reason)


class _Page(HTMLParser):
    """Finds the blocks of code in a page that Zensical has built."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._said: dict[str, str] = {}  # by the comment before
        self._language: str | None = None
        self._title = self._text = ""
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        if found := _COMMENT.fullmatch(data.strip()):
            self._said = {key: value for key, value in found.groupdict().items() if value}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        if tag == "div" and "highlight" in classes:
            self._language = classes[0].removeprefix("language-")
            self._title = self._text = ""
        elif self._language is not None and "filename" in classes:
            self._inside = "title"
        elif self._language is not None and tag == "code":
            self._inside = "text"

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self._title += data
        elif self._inside == "text":
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if self._inside == "title":
            self._inside = ""
        elif self._inside == "text" and tag == "code":
            said, self._said = self._said, {}
            self.blocks.append(
                Block(
                    str(self._language),
                    self._text,
                    self._title,
                    reason=said.get("reason", ""),
                    exit_code=int(said.get("code", 0)),
                )
            )
            self._language, self._inside = None, ""


def blocks_of(page: str) -> list[Block]:
    """Find the blocks of code of a built page, in their order."""
    parser = _Page()
    parser.feed(page)
    return parser.blocks


def script_of(blocks: Sequence[Block]) -> str:
    """Make the script that does what a reader would."""
    return _HEAD + "".join(_steps(blocks))


def _steps(blocks: Sequence[Block]) -> Iterator[str]:
    for at, block in enumerate(blocks):
        if block.reason:
            yield f"# not run: {block.reason}\n"
        elif block.title:
            name = shlex.quote(block.title)
            yield f'mkdir -p "$(dirname {name})"\n' + _fed(f"cat > {name}", block.text)
        elif block.is_program:
            if at == 0 or not blocks[at - 1].is_program:
                yield _fed("python -", _program(blocks[at:]))
        elif block.language == "sh":
            yield _expecting(block) if block.exit_code else block.text


def _program(blocks: Sequence[Block]) -> str:
    """Join what stands in a row."""
    n_blocks = next((n for n, one in enumerate(blocks) if not one.is_program), len(blocks))
    return "\n".join(one.text for one in blocks[:n_blocks])


def _expecting(block: Block) -> str:
    done = f'code=0; (\n{block.text}) || code=$?\necho "exit code $code" >&2\n'
    return f"{done}[ $code = {block.exit_code} ]\n"


def _fed(command: str, text: str) -> str:
    return f"{command} <<'{_END}'\n{text}{_END}\n"


def walk(page: Path, folder: Path, *, environment: Mapping[str, str] = os.environ) -> int:
    """Do what a page says, in `folder`; return the exit code of what failed first, or 0.

    Parameters
    ----------
    page : Path
        The built page.
    folder : Path
        An empty folder, in which two are made: `work` and `home`.
    environment : mapping of str to str
        Of which some goes along.
    """
    work, home = folder / "work", folder / "home"
    work.mkdir()
    home.mkdir()
    script = folder / "script.sh"
    script.write_text(script_of(blocks_of(page.read_text("utf-8"))), "utf-8")
    kept = {k: v for k, v in environment.items() if k.startswith(("CNNFEAT_", "TF_"))}
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    given = {**kept, "HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "TMPDIR": str(folder)}
    if "PYTHONPATH" in environment:
        given["PYTHONPATH"] = environment["PYTHONPATH"]
    command = ["bash", "-x", str(script)]
    return subprocess.run(
        command, cwd=work, env=given, stdin=subprocess.DEVNULL, check=False
    ).returncode


def main() -> int:
    """Walk the pages that are named; return how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="+", help="as the menu has them: how/photographs")
    parser.add_argument("--site", type=Path, default=Path(__file__).parent / "site")
    parser.add_argument("--show", action="store_true", help="print the scripts, run nothing")
    given = parser.parse_args()
    failed = []
    for name in given.pages:
        page = given.site / name.removesuffix("index") / "index.html"
        if given.show:
            print(script_of(blocks_of(page.read_text("utf-8"))))
            continue
        with tempfile.TemporaryDirectory(prefix="walk-") as folder:
            if code := walk(page, Path(folder)):
                failed.append(f"{name}: exit code {code}")
    print("\n".join(failed) or "done", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
