"""Every hint names options that the failing command has, or those of a command that it names.

All hints in the source are walked: their texts are read from the syntax tree, and who can fail with
them from the graph of imports. What commands print when they fail is checked besides, for every
error that a test of the command line causes (the fixture `cnnfeat` in tests/conftest.py).
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import pytest

import cnnfeat.cli
from cnnfeat.cli import COMMANDS, cli
from cnnfeat.cli.hints import fit_hint, known_options
from cnnfeat.features import write_arrays

SRC = Path(cnnfeat.cli.__file__).parents[1]
ANY = "X"  # stands in a text for what is known when the error happens
OPTION = re.compile(r"(?<![\w/-])(--[A-Za-z][\w-]*|-o)(?!\w)")


@dataclass(frozen=True)
class Hint:
    """What one place in the source may say."""

    module: str
    line: int
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}:{self.line}"


@functools.cache
def every_command() -> list[str]:
    """What is typed for each: `train`, `plot filters`."""
    found = []
    for name, (place, _) in COMMANDS.items():
        module, attribute = place.split(":")
        command = getattr(import_module(f"cnnfeat.cli.{module}"), attribute)
        below = command.commands if isinstance(command, click.Group) else [""]
        found += [f"{name} {word}".strip() for word in below]
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


class Texts:
    """Reads what an expression of a module may be, as far as its strings tell."""

    def __init__(self, tree: ast.Module) -> None:
        self.known: dict[str, list[ast.expr]] = {}
        parameters: dict[str, list[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        self.known.setdefault(target.id, []).append(node.value)
            match node:
                case ast.For(target=ast.Name(id=name), iter=ast.Tuple(elts=values)):
                    self.known.setdefault(name, []).extend(values)
            if isinstance(node, ast.FunctionDef):
                parameters[node.name] = [item.arg for item in node.args.args]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = parameters.get(node.func.id, [])
                for name, value in zip(names, node.args, strict=False):
                    self.known.setdefault(name, []).append(value)

    def of(self, node: ast.AST, seen: tuple[str, ...] = ()) -> list[str]:  # noqa: PLR0911
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return self._joined(values, seen)
            case ast.FormattedValue(value=value):
                return self.of(value, seen)
            case ast.BinOp(left=left, right=right):
                return self._joined([left, right], seen)
            case ast.IfExp(body=body, orelse=other):
                return self.of(body, seen) + self.of(other, seen)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.of(value, seen)]
            case ast.Name(id=name) | ast.Attribute(attr=name) if (
                name in self.known and name not in seen
            ):
                return [text for v in self.known[name] for text in self.of(v, (*seen, name))]
            case ast.Call(args=args):
                inner = [item for arg in args for item in ast.walk(arg)]
                kept = [item for item in inner if isinstance(item, ast.Name | ast.Constant)]
                return [ANY] + [text for item in kept for text in self.of(item, seen)]
        return [ANY]

    def _joined(self, nodes: list[ast.expr], seen: tuple[str, ...]) -> list[str]:
        parts = [dict.fromkeys(self.of(node, seen)) for node in nodes]
        return ["".join(text) for text in itertools.islice(itertools.product(*parts), 1_000)]


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@functools.cache
def hints_of(module: str) -> tuple[Hint, ...]:
    tree = tree_of(module)
    words = [
        word
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "hint"
    ]
    texts = Texts(tree) if words else None
    return tuple(
        Hint(module, word.value.lineno, tuple(dict.fromkeys(texts.of(word.value))))
        for word in words
    )


@functools.cache
def options_of(typed: str) -> dict[str, str]:
    return known_options(cli, typed.split())


@functools.cache
def imported_by(module: str) -> frozenset[str]:
    """Modules that one imports, anywhere in its code; for types at the doors of rooms alone."""
    path, tree = MODULES[module], tree_of(module)
    skipped: set[ast.AST] = set()
    if path.name != "__init__.py":
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {below for item in node.body for below in ast.walk(item)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in skipped:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found & set(MODULES))


@functools.cache
def reached_from(module: str) -> frozenset[str]:
    done, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            todo.extend(imported_by(name))
    return frozenset(done)


def failing_with(hint: Hint) -> list[str]:
    """The commands that import, by whatever way, the module that a hint stands in."""
    return [
        typed
        for typed in every_command()
        if hint.module
        in reached_from(f"cnnfeat.cli.{COMMANDS[typed.split()[0]][0].partition(':')[0]}")
        or hint.module in ("cnnfeat.cli", "cnnfeat.cli.flags")
    ]


def test_the_walk_finds_the_hints():
    found = [hint for module in MODULES for hint in hints_of(module)]
    assert len(found) > 150
    texts = {text for hint in found for text in hint.texts}
    assert "--overwrite replaces it; -o writes elsewhere" in texts  # a constant
    assert any(
        text.startswith("`cnnfeat layers` lists") for text in texts
    )  # a module's name for one
    assert any(text == "convert it to a SavedModel (onnx2tf)" for text in texts)  # a parameter
    assert sum(bool(OPTION.search(text)) for text in texts) > 40
    assert "predict" in failing_with(hints_of("cnnfeat.network.probe")[0])


@pytest.mark.parametrize("module", MODULES)
def test_a_hint_is_of_use_to_a_command_that_can_fail_with_it(module: str, check_hint):
    """Each of its ways is open to one of them, and no command prints what it hasn't."""
    for hint in hints_of(module):
        failing = failing_with(hint)
        for text in hint.texts:
            for typed in every_command():
                check_hint(fit_hint(text, options_of(typed)), typed.split())
            for way in text.split("; ") if failing else ():
                fitting = [typed for typed in failing if fit_hint(way, options_of(typed))]
                assert fitting or not way, f"{hint}: {way!r}: none of {', '.join(failing)} has that"


def test_ways_that_a_command_has_not_are_left_out():
    hint = "--pool avg gives rows of one length; --resize 8x8 gives images of one size; or look"
    assert fit_hint(hint, {"--pool": "--pool"}) == "--pool avg gives rows of one length; or look"
    assert fit_hint(hint, {}) == "look"
    assert fit_hint("--pool", {}) == ""
    assert fit_hint("write with -o; (ulimit -f)", {}) == "(ulimit -f)"
    assert fit_hint("see a/--x and b-o", {}) == "see a/--x and b-o"
    assert fit_hint("`cnnfeat extract --labels FILE`", {}) == "`cnnfeat extract --labels FILE`"


def test_options_are_those_of_the_typed_command():
    assert "--dpi" in known_options(cli, ["plot", "filters", "--layer", "x"])
    assert "--no-images" in known_options(cli, ["export", "--to", "npz"])
    assert known_options(cli, ["nothing"]).keys() <= {"--version", "--help", "-h"}
    assert known_options(cli, []).keys() <= {"--version", "--help", "-h"}


def test_a_run_s_file_has_keys_for_what_is_no_flag():
    known = known_options(cli, ["run", "c.toml"])
    assert known["--layer"] == "--layer"
    assert known["--folds"] == "[svm] folds"
    assert fit_hint("--folds 2; --C VALUE", known) == "[svm] folds 2; [svm] C VALUE"
    assert "--folds" not in known_options(cli, ["train"])


CAUSED = [
    # what is typed, the exit code, what the hint says, what it doesn't
    ("layers", 2, "`cnnfeat train` makes one; `cnnfeat layers MODEL`", "--model"),
    ("extract", 2, "`cnnfeat train` makes one; --model names another", ""),
    ("plot filters --layer conv1", 2, "`cnnfeat train` makes one; --model names another", ""),
    ("svm", 2, "cnnfeat extract --layer NAME makes one", ""),
    ("report", 2, "cnnfeat extract --layer NAME makes one", ""),
    ("predict x.png", 2, "cnnfeat svm makes one", "train"),
    ("extract --model gone.keras", 2, "models are a .keras file", "train"),
    ("run --weights x", 2, "--model or [model] path names one", ""),
    ("run no.toml", 2, "see configs/ for whole runs", ""),
    ("train --data nowhere", 2, "", ""),
    ("data fetch mist", 2, "did you mean", ""),
]


@pytest.mark.parametrize(
    ("typed", "code", "says", "never"), CAUSED, ids=lambda item: str(item)[:20]
)
def test_errors_of_every_command(cnnfeat, tmp_path, typed, code, says, never):  # noqa: PLR0917
    done = cnnfeat(*typed.split(), folder=tmp_path)  # which checks the hint, too
    assert done.returncode == code, done.stderr
    (hint,) = re.findall(r"^hint: (.*)$", done.stderr, re.MULTILINE) or [""]
    assert says in hint
    assert not never or never not in hint


def test_features_without_labels_are_extracted_again(cnnfeat, tmp_path):
    write_arrays(tmp_path / "f.h5", {"all": {"fc1": np.eye(4, dtype=np.float32)}})
    done = cnnfeat("svm", "f.h5", folder=tmp_path)
    assert done.returncode == 3
    assert "has no labels" in done.stderr
    assert re.search("^hint: .*cnnfeat extract .*--labels FILE", done.stderr, re.MULTILINE)
