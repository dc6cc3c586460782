"""Kernel machines: scikit-learn's SVC, and the Nyström map before a linear machine.

Where scikit-learn-intelex is installed and pays, it does the fitting. Its estimators can't be saved
(skops aborts on them), so what one has learned is copied into the plain scikit-learn machine, and
the copy must predict the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from typing import Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.svm import SVC

from cnnfeat.options import SvmOptions
from cnnfeat.progress import SILENT, Progress, Task
from cnnfeat.svm.classweight import weight_by_code
from cnnfeat.svm.matrix import Doubles, Floats
from cnnfeat.svm.trials import TrialPlan, Tried

T = TypeVar("T")

ROWS_LIMIT = 20_000  # above it, the cost is said before it is spent
SELECTION_ROWS = 6_000  # rows that C and gamma are chosen on; twice as many, where some stand apart
NYSTROEM_ROWS = 6_000  # rows that the components are taken from
EXACT_KERNELS = ("rbf", "poly")
KERNEL_GRID = (1.0, 10.0, 100.0)
GAMMA_FACTORS = (0.25, 1.0, 4.0)
NYSTROEM_COMPONENTS = 1_000
KERNEL_VALUES = 2**23  # kernel values in memory at a time, 64 MiB
POLY_DEGREE, POLY_CONSTANT = 3, 1.0
# scikit-learn's SVC on two cores: about n^1.6 rows times features, fitted to measured runs
_FIT_S = 1.1e-8
INTELEX_PAYS_FROM = 512  # features; with fewer, scikit-learn's own is the faster
CHECKED_ROWS = 200  # of the copy
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


def scale_gamma(X: Floats) -> float:
    """Return 1 / (n_features * variance), scikit-learn's "scale"."""
    variance = float(X.var(dtype=np.float64))
    return 1.0 / (X.shape[1] * variance) if variance > 0 else 1.0


def warn_of_cost(n_samples: int, n_features: int, *, kernel: str) -> None:
    """Say what a large exact kernel machine will cost."""
    if n_samples <= ROWS_LIMIT:
        return
    minutes = _FIT_S * n_samples**1.6 * n_features / 60
    _LOG.warning(
        "%s on %s rows of %s features takes about %.0f min (more than %s rows are slow); "
        "--kernel nystroem approximates it in a small part of that",
        kernel,
        f"{n_samples:,}",
        f"{n_features:,}",
        max(1, minutes),
        f"{ROWS_LIMIT:,}",
    )


def fit_svc(
    X: Floats,
    codes: NDArray[np.intp],
    *,
    kernel: Literal["rbf", "poly"],
    C: float,
    gamma: float,
    class_weight: Doubles | None = None,
) -> SVC:
    """Fit an exact kernel machine on prepared rows, `(n_samples, n_features)`.

    The work is done on another thread, so that Ctrl-C is heard at once.
    """
    machine = SVC(
        kernel=kernel,
        C=C,
        gamma=gamma,
        degree=POLY_DEGREE,
        coef0=POLY_CONSTANT if kernel == "poly" else 0.0,
        class_weight=None if class_weight is None else weight_by_code(class_weight),
        cache_size=1_000,
    )
    fitted = interruptible(lambda: accelerated_svc(machine, X, codes) or machine.fit(X, codes))
    # Where two classes have as many votes, `predict` shall say what `decision_function` says.
    return fitted.set_params(break_ties=True)


def accelerated_svc(machine: SVC, X: Floats, codes: NDArray[np.intp]) -> SVC | None:
    """Fit `machine` through scikit-learn-intelex.

    Returns
    -------
    SVC or None
        `machine`, fitted; None where the package is not installed, would not pay, or its machine
        does not carry over.
    """
    if X.shape[1] < INTELEX_PAYS_FROM or find_spec("sklearnex") is None:
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


def select_kernel(
    X: Floats,
    codes: NDArray[np.intp],
    plan: TrialPlan,
    options: SvmOptions,
    *,
    class_weight: Doubles | None = None,
    progress: Progress = SILENT,
) -> Tried:
    """Try settings of C and gamma, on a stratified subsample where rows are many."""
    rows = plan.sample(codes, SELECTION_ROWS * (2 if plan.n_folds == 1 else 1))
    X, codes, plan = X[rows], codes[rows], plan.of(rows)
    settings = _settings(X, options)
    kernel = cast("Literal['rbf', 'poly']", options.kernel)
    fit = partial(fit_svc, kernel=kernel, class_weight=class_weight)
    trials, said = [], []
    with progress.task("choosing C and gamma", total=len(settings), unit="settings") as t:
        for C, gamma in settings:
            note = f"C {C:.3g}, gamma {gamma:.3g}"
            predicted = _left_out(X, codes, plan, fit=partial(fit, C=C, gamma=gamma), task=t)
            said.append(predicted[plan.scored])
            trials.append(plan.trial(codes, predicted, C=C, gamma=gamma))
            t.advance(0, note=f"{note}: {trials[-1].mean:.2%}")
    selection = plan.choose(trials)
    return Tried(selection, rows[plan.scored], said[trials.index(selection.chosen)])


def _settings(X: Floats, options: SvmOptions) -> list[tuple[float, float]]:
    """List the values of C and gamma to try; of a given C, one gamma."""
    base = scale_gamma(X)
    if options.C != "auto":
        return [(options.C, base if options.gamma == "auto" else options.gamma)]
    gammas = [options.gamma] if options.gamma != "auto" else [f * base for f in GAMMA_FACTORS]
    return [(C, gamma) for C in sorted(options.grid or KERNEL_GRID) for gamma in gammas]


def _left_out(
    X: Floats,
    codes: NDArray[np.intp],
    plan: TrialPlan,
    *,
    fit: Callable[[Floats, NDArray[np.intp]], SVC],
    task: Task,
) -> NDArray[np.intp]:
    """Predict each row by a machine that left it out; rows that none did stay 0."""
    predicted = np.zeros(len(codes), np.intp)
    for fold in range(plan.n_folds):
        held = plan.fold == fold
        if len(np.unique(codes[~held])) < 2:  # of very few rows
            predicted[held] = codes[~held][:1]
        elif held.any():
            predicted[held] = predict_svc(fit(X[~held], codes[~held]), X[held])
        task.advance(1 / plan.n_folds)
    return predicted


def decide_svc(machine: SVC, X: Floats) -> NDArray[np.float64]:
    """Compute what `machine.decision_function` does, through matrix products.

    libsvm takes rows one at a time; here a block's kernel values are one product, in float64, and
    the decisions of all pairs of classes another.

    Parameters
    ----------
    machine : SVC
        Fitted, with a kernel of scikit-learn's.
    X : ndarray of shape (n_samples, n_features)
        Prepared as the training rows were.

    Returns
    -------
    ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        For each class its votes among the pairs, and less than one third for how clear they were.
    """
    n_classes = len(machine.classes_)
    weights = _pair_weights(machine)
    step = max(1, KERNEL_VALUES // max(1, len(machine.support_vectors_)))
    values = np.empty((len(X), weights.shape[1]))
    for start in range(0, len(X), step):
        values[start : start + step] = _kernel(machine, X[start : start + step]) @ weights
    values += machine.intercept_
    if n_classes == 2:
        return values[:, 0]
    votes = np.zeros((len(X), n_classes))
    clearness = np.zeros((len(X), n_classes))
    for pair, (i, j) in enumerate(combinations(range(n_classes), 2)):
        first = values[:, pair] >= 0
        votes[first, i] += 1
        votes[~first, j] += 1
        clearness[:, i] += values[:, pair]
        clearness[:, j] -= values[:, pair]
    decisions: NDArray[np.float64] = votes + clearness / (3 * (np.abs(clearness) + 1))
    return decisions


def predict_svc(machine: SVC, X: Floats) -> NDArray[np.intp]:
    """Predict the class of each row of `X`, (n_samples,)."""
    values = decide_svc(machine, X)
    places = values.argmax(axis=1) if values.ndim == 2 else (values > 0).astype(np.intp)
    return cast("NDArray[np.intp]", machine.classes_[places])


def _kernel(machine: SVC, X: Floats) -> NDArray[np.float64]:
    """Kernel values of rows and support vectors, (n_samples, n_support)."""
    values: NDArray[np.float64] = pairwise_kernels(
        X.astype(np.float64),
        machine.support_vectors_,
        metric=machine.kernel,
        filter_params=True,
        gamma=machine._gamma,
        degree=machine.degree,
        coef0=machine.coef0,
    )
    return values


def _pair_weights(machine: SVC) -> NDArray[np.float64]:
    """A column of weights of the support vectors for each pair of classes, as libsvm orders them.

    `dual_coef_` keeps, for a vector of class i against class j, the weight in row j, or j - 1 where
    j is the later class (user guide of scikit-learn, "Support vector machines", multi-class).
    """
    ends = np.cumsum(machine.n_support_)
    members = [slice(end - n, end) for end, n in zip(ends, machine.n_support_, strict=True)]
    n_classes, coefficients = len(machine.classes_), machine.dual_coef_
    if n_classes == 2:
        return cast("NDArray[np.float64]", coefficients.T)
    weights = np.zeros((coefficients.shape[1], n_classes * (n_classes - 1) // 2))
    for pair, (i, j) in enumerate(combinations(range(n_classes), 2)):
        weights[members[i], pair] = coefficients[j - 1, members[i]]
        weights[members[j], pair] = coefficients[i, members[j]]
    return weights


def fit_nystroem(
    X: Floats, *, gamma: float | Literal["auto"], n_components: int, seed: int
) -> Nystroem:
    """Fit the Nyström map of the RBF kernel on prepared rows `(n_rows, n_features)`.

    C. Williams and M. Seeger, "Using the Nyström method to speed up kernel machines", NIPS 2001.
    """
    value = scale_gamma(X) if gamma == "auto" else gamma
    components = min(n_components, len(X))
    return Nystroem(gamma=value, n_components=components, random_state=seed).fit(X)


def interruptible(work: Callable[[], T]) -> T:
    """Run `work` on a thread and wait for it in a way that signals can end."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]
