"""scikit-learn-intelex, where it is installed and pays.

Its estimators can't be saved (skops aborts on them), so what one has learned is copied into the
plain scikit-learn machine, and the copy must predict the same.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from cnnfeat.svm.rows import Floats

PAYS_FROM = 512  # features; with fewer, scikit-learn's own is the faster
CHECKED_ROWS = 200
# What an SVC learns, and the types libsvm insists on.
LEARNED: dict[str, type[np.generic] | None] = {
    "support_": np.int32,
    "support_vectors_": np.float64,
    "_n_support": np.int32,
    "dual_coef_": np.float64,
    "intercept_": np.float64,
    "_dual_coef_": np.float64,
    "_intercept_": np.float64,
    "_probA": np.float64,
    "_probB": np.float64,
    "class_weight_": np.float64,
    "classes_": None,
    "_gamma": None,
    "_sparse": None,
    "shape_fit_": None,
    "fit_status_": None,
    "n_features_in_": None,
    "n_iter_": None,
    "_num_iter": None,
}

_LOG = logging.getLogger("cnnfeat")


def accelerated_svc(machine: SVC, X: Floats, codes: NDArray[np.intp]) -> SVC | None:
    """Fit `machine` through scikit-learn-intelex.

    Returns
    -------
    SVC or None
        `machine`, fitted; None where the package is not installed, would not pay, or its machine
        does not carry over.
    """
    if X.shape[1] < PAYS_FROM or find_spec("sklearnex") is None:
        return None
    from sklearnex.svm import SVC as FastSVC  # noqa: N811 - a class of the same name

    fast = FastSVC(**machine.get_params()).fit(X, codes)
    return machine if _copy(fast, machine, X) else None


def _copy(fast: object, machine: SVC, X: Floats) -> bool:
    """Copy what was learned, and check that it predicts the same."""
    for name, dtype in LEARNED.items():
        if hasattr(fast, name):
            value = getattr(fast, name)
            wanted = value if dtype is None else np.array(value, dtype, order="C")
            setattr(machine, name, wanted)
    vars(machine).setdefault("_effective_probability", False)
    rows = X[:: max(1, len(X) // CHECKED_ROWS)]
    same = np.array_equal(machine.predict(rows), fast.predict(rows))  # type: ignore[attr-defined]
    if not same:
        _LOG.warning("scikit-learn-intelex's machine differs from its copy: fitting again without")
        for name in LEARNED.keys() & vars(machine).keys():
            delattr(machine, name)
    return bool(same)
