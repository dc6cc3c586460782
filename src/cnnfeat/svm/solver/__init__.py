"""The linear solver: `solve` is its one door, the rest what it is given and what it returns."""

from cnnfeat.svm.solver.design import Columns, Design, Targets, one_against_rest
from cnnfeat.svm.solver.newton import State, solve

__all__ = ["Columns", "Design", "State", "Targets", "one_against_rest", "solve"]
