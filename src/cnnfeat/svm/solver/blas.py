"""Triangular solves of BLAS, called so that Python's other threads can run meanwhile.

SciPy's own wrappers hold the interpreter's lock while they work, so classes worked on side by side
wait for each other: `scripts/bench_svm --only blas` measures what that costs. The same library is
reached here through the pointers that `scipy.linalg.cython_blas` exports (SciPy reference, "BLAS
Functions for Cython"). `cnnfeat.svm.solver.factors` does without where they can't be used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas

Floats: TypeAlias = NDArray[np.floating]
FEW_COLUMNS = 6  # right-hand sides up to which one at a time is faster
_REALS = {"float32": ("s", ctypes.c_float), "float64": ("d", ctypes.c_double)}


def solve_by_pointer(lower: Floats, columns: Floats, *, transposed: bool) -> bool:
    """Do what `factors.solve_triangle` does, by TRSV or for many columns TRSM; whether it could."""
    n, m = columns.shape
    name = "trsv" if m <= FEW_COLUMNS else "trsm"
    routine, turn = _routine(name, lower.dtype.name), b"T" if transposed else b"N"
    if routine is not None and name == "trsm":
        routine(b"L", b"L", turn, b"N", n, m, 1.0, lower, n, columns, n)
    elif routine is not None:
        for j in range(m):
            routine(b"L", turn, b"N", n, lower, n, columns[:, j], 1)
    return routine is not None


@cache
def _routine(name: str, dtype: str) -> Callable[..., None] | None:
    """Look up a routine, to be called with bytes, whole numbers, real numbers and arrays.

    None where this SciPy's arguments aren't of the kinds known.
    """
    letter, real = _REALS[dtype]
    capsule = getattr(cython_blas, "__pyx_capi__", {}).get(letter + name)
    if capsule is None:
        return None
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    kinds = [kind.strip() for kind in signature.decode().partition("(")[2][:-1].split(",")]
    own = f"cython_blas_{letter} *"
    if not all(kind in ("char *", "int *") or kind.endswith(own) for kind in kinds):
        return None
    function = ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * len(kinds)))
    call = function(pointer_of(capsule, signature))

    def reference(value: bytes | float | Floats) -> object:
        if isinstance(value, np.ndarray):
            return ctypes.c_void_p(value.ctypes.data)
        if isinstance(value, bytes):
            return value
        return ctypes.byref(ctypes.c_int(value) if isinstance(value, int) else real(value))

    def routine(*values: bytes | float | Floats) -> None:
        if len(values) != len(kinds):
            raise TypeError(f"{letter}{name} takes {len(kinds)} arguments, not {len(values)}")
        call(*map(reference, values))

    return routine
