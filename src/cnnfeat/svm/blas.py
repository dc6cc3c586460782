"""Routines of BLAS, called so that Python's other threads can run meanwhile.

SciPy's own wrappers hold the interpreter's lock while they work. The same library is reached here
through the pointers that `scipy.linalg.cython_blas` exports (SciPy reference, "BLAS Functions for
Cython").
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.linalg import cython_blas, solve_triangular

from cnnfeat.svm.matrix import Floats

# Rows from which NumPy's BLAS sums them: threads of the two libraries, NumPy's and SciPy's, hinder
# each other for a while after each use, which outweighs what adding in place saves.
MANY_ROWS = 512
FEW_COLUMNS = 6  # right-hand sides up to which one at a time is faster
_REALS = {"float32": ("s", ctypes.c_float), "float64": ("d", ctypes.c_double)}


def add_products(rows: Floats, cost: float, total: Floats) -> None:
    """Add ``cost * rows^T rows`` to the lower half of `total`, in place (SYRK).

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n)
        In C order.
    cost : float
        Of all of them.
    total : ndarray of shape (n, n)
        In Fortran order, of the same dtype. What is above its diagonal may change or not.
    """
    n, k = total.shape[1], len(rows)
    _check(rows.flags.c_contiguous and total.flags.f_contiguous and rows.dtype == total.dtype)
    _check(rows.shape[1] == n == total.shape[0])
    routine = _routine("syrk", rows.dtype.name)
    if routine is None or k > MANY_ROWS:
        product = rows.T @ rows
        product *= product.dtype.type(cost)
        total += product.T  # the same, and in the order of `total`
    elif n and k:
        routine(b"L", b"N", n, k, float(cost), rows, n, 1.0, total, n)


def solve_triangle(lower: Floats, columns: Floats, *, transposed: bool) -> None:
    """Solve ``lower x = columns``, or with its transpose, in place (TRSV for few, TRSM for many).

    Parameters
    ----------
    lower : ndarray of shape (n, n)
        In Fortran order. What is above its diagonal is not read.
    columns : ndarray of shape (n, m)
        In Fortran order, of the same dtype.
    transposed : bool
        Whether with the transpose.
    """
    n, m = columns.shape
    _check(lower.flags.f_contiguous and columns.flags.f_contiguous and lower.shape == (n, n))
    _check(lower.dtype == columns.dtype)
    name = "trsv" if m <= FEW_COLUMNS else "trsm"
    routine, turn = _routine(name, lower.dtype.name), b"T" if transposed else b"N"
    if routine is None:
        columns[:] = solve_triangular(
            lower, columns, lower=True, trans=int(transposed), check_finite=False
        )
    elif n and name == "trsm":
        routine(b"L", b"L", turn, b"N", n, m, 1.0, lower, n, columns, n)
    elif n:
        for j in range(m):
            routine(b"L", turn, b"N", n, lower, n, columns[:, j], 1)


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError("arrays of other types, shapes or orders than BLAS is told")


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
