"""The solver has one door."""

from __future__ import annotations

import ast
from pathlib import Path

import cnnfeat
from cnnfeat.svm import solver

SRC = Path(cnnfeat.__file__).parent
ROOM = Path(solver.__file__).parent


def _imported(path: Path) -> set[str]:
    """Every module, and every name of a module, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_the_solver_imports_what_is_inside_it():
    inside = {f"cnnfeat.svm.solver.{path.stem}" for path in ROOM.glob("[!_]*.py")}
    assert "cnnfeat.svm.solver.newton" in inside
    doors = 0
    for path in SRC.rglob("*.py"):
        if path.parent == ROOM:
            continue
        for name in _imported(path):
            doors += name == "cnnfeat.svm.solver.solve"
            past = [module for module in inside if f"{name}.".startswith(f"{module}.")]
            assert not past, f"{path}: {name}: import it from cnnfeat.svm.solver"
    assert doors


def test_the_solver_gives_away_what_its_callers_need():
    assert solver.__all__ == ["Columns", "Design", "State", "Targets", "one_against_rest", "solve"]


def test_the_solver_needs_nothing_but_the_matrix():
    for path in ROOM.glob("*.py"):
        for name in _imported(path):
            own = name.startswith(("cnnfeat.svm.solver.", "cnnfeat.svm.matrix."))
            assert own or not name.startswith("cnnfeat"), f"{path}: {name}"
