"""A saved pipeline, made anew from what its file holds: the steps that `cnnfeat svm` writes.

Every number that decisions depend on is looked at: types, shapes that fit each other, and that
they are finite. libsvm reads as far as an array of counts tells it to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from cnnfeat.documents import Count, Length, Positive, Range, take_up
from cnnfeat.svm.skopsfile import Stored, Value

T = TypeVar("T")


def _whole_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


PIPELINE = _whole_name(Pipeline)


class _Scaled(TypedDict):
    with_mean: Literal[True]
    with_std: Literal[True]
    n_features_in_: Length
    n_samples_seen_: int | float


class _Normalized(TypedDict):
    norm: Literal["l2"]
    n_features_in_: Length


class _Projected(TypedDict):
    whiten: Literal[False]
    n_features_in_: Length
    n_components_: Length
    n_samples_: Count
    noise_variance_: Annotated[float, Range(0)]


class _Mapped(TypedDict):
    kernel: Literal["rbf"]
    gamma: Positive
    coef0: None
    degree: None
    kernel_params: None
    n_features_in_: Length


class _Separated(TypedDict):
    C: Positive
    n_features_in_: Length
    n_iter_: NotRequired[Count]


class _Supported(TypedDict):
    kernel: Literal["rbf", "poly"]
    C: Positive
    degree: Annotated[int, Range(1, 100)]
    coef0: float
    _gamma: Positive
    n_features_in_: Length


@dataclass(frozen=True, slots=True)
class _Step:
    """One step as it lies in the file, and how many features come to it."""

    name: str
    stored: Stored
    width: int
    n_classes: int

    def facts(self, kind: type[T]) -> T:
        """Its single values."""
        found = take_up(kind, self.stored.attributes, at=self.name)
        n_features = cast("Mapping[str, int]", found)["n_features_in_"]
        if n_features != self.width:
            raise ValueError(
                f"{self.name} is of {n_features:,} features, and {self.width:,} come to it"
            )
        return found

    def array(self, name: str, *shape: int | None, dtype: type = np.floating) -> NDArray:  # type: ignore[type-arg]
        """One of its arrays, of a shape whose lengths are given, or None."""
        value = self.stored.attributes.get(name)
        said = f"{self.name}.{name}"
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{said} must be an array, not {value!r:.60}")
        if not np.issubdtype(value.dtype, dtype) or value.dtype == np.float16:
            raise ValueError(f"{said} is of {value.dtype}, and should be of {dtype.__name__}")
        if len(value.shape) != len(shape) or any(
            wanted not in (None, length) for length, wanted in zip(value.shape, shape, strict=True)
        ):
            wanted = ", ".join("n" if length is None else f"{length}" for length in shape)
            raise ValueError(f"{said} has the shape {value.shape}, and should have ({wanted})")
        if not np.isfinite(value).all():
            raise ValueError(f"{said} holds NaN or infinity")
        return value

    def classes(self) -> NDArray[np.intp]:
        """What its decisions are between: 0, 1 ..."""
        found, expected = self.stored.attributes.get("classes_"), np.arange(self.n_classes)
        if not isinstance(found, np.ndarray) or not np.array_equal(found, expected):
            raise ValueError(f"{self.name}.classes_ should be 0 to {self.n_classes - 1}, in order")
        return expected

    def make(self, kind: type[BaseEstimator], **learned: object) -> BaseEstimator:
        """Make it with its parameters, and give it what it has learned."""
        known = kind().get_params(deep=False)
        given = {
            name: self.stored.attributes[name] for name in known if name in self.stored.attributes
        }
        for name, value in given.items():
            if not isinstance(value, bool | int | float | str | dict | None):
                raise ValueError(f"{self.name}.{name} must be a plain value, not {value!r:.60}")
        made = kind(**given)
        for name, found in learned.items():
            setattr(made, name, found)
        made.n_features_in_ = self.width
        return made


def _scaler(step: _Step) -> tuple[BaseEstimator, int]:
    facts, d = step.facts(_Scaled), step.width
    mean, scale, variance = (step.array(name, d) for name in ("mean_", "scale_", "var_"))
    if not (scale > 0).all():
        raise ValueError(f"{step.name}.scale_ should be more than 0")
    learned = {"mean_": mean, "scale_": scale, "var_": variance}
    return step.make(StandardScaler, **learned, n_samples_seen_=facts["n_samples_seen_"]), d


def _normalizer(step: _Step) -> tuple[BaseEstimator, int]:
    step.facts(_Normalized)
    return step.make(Normalizer), step.width


def _pca(step: _Step) -> tuple[BaseEstimator, int]:
    facts = step.facts(_Projected)
    width = facts["n_components_"]
    per_component = ("explained_variance_", "explained_variance_ratio_", "singular_values_")
    made = step.make(
        PCA,
        components_=step.array("components_", width, step.width),
        mean_=step.array("mean_", step.width),
        **{name: step.array(name, width) for name in per_component},
        noise_variance_=facts["noise_variance_"],
        n_components_=width,
        n_samples_=facts["n_samples_"],
    )
    return made, width


def _nystroem(step: _Step) -> tuple[BaseEstimator, int]:
    step.facts(_Mapped)
    components = step.array("components_", None, step.width)
    width = len(components)
    made = step.make(
        Nystroem,
        components_=components,
        normalization_=step.array("normalization_", width, width),
        component_indices_=step.array("component_indices_", width, dtype=np.integer),
        _n_features_out=width,
    )
    return made, width


def _linear(step: _Step) -> tuple[BaseEstimator, int]:
    facts = step.facts(_Separated)
    n_machines = step.n_classes if step.n_classes > 2 else 1
    made = step.make(
        LinearSVC,
        coef_=step.array("coef_", n_machines, step.width),
        intercept_=step.array("intercept_", n_machines),
        classes_=step.classes(),
        n_iter_=facts.get("n_iter_", 0),
    )
    return made, 0


def _kernel(step: _Step) -> tuple[BaseEstimator, int]:
    facts, k = step.facts(_Supported), step.n_classes
    vectors = step.array("support_vectors_", None, step.width, dtype=np.float64)
    n_vectors = len(vectors)
    counts = step.array("_n_support", k, dtype=np.int32)
    if not n_vectors or (counts < 0).any() or counts.sum(dtype=np.int64) != n_vectors:
        raise ValueError(
            f"{step.name}._n_support is {counts.tolist()!s:.60}, of {n_vectors:,} support vectors"
        )
    rows = step.array("support_", n_vectors, dtype=np.int32)
    dual = step.array("dual_coef_", k - 1, n_vectors, dtype=np.float64)
    offsets = step.array("intercept_", k * (k - 1) // 2, dtype=np.float64)
    sign = -1 if k == 2 else 1  # scikit-learn turns two classes round, for itself and not libsvm
    made = step.make(
        SVC,
        support_=rows,
        support_vectors_=vectors,
        _n_support=counts,
        dual_coef_=dual,
        intercept_=offsets,
        _dual_coef_=sign * dual,
        _intercept_=sign * offsets,
        _probA=np.empty(0),
        _probB=np.empty(0),
        class_weight_=step.array("class_weight_", k, dtype=np.float64),
        classes_=step.classes(),
        fit_status_=0,
        shape_fit_=(max(n_vectors, int(rows.max()) + 1), step.width),
        _gamma=facts["_gamma"],
        _sparse=False,
        _effective_probability=False,
    )
    return made, 0


_Maker = Callable[[_Step], tuple[BaseEstimator, int]]  # a step, and how many features it gives
_MAKERS: dict[tuple[str, str], _Maker] = {
    ("scale", _whole_name(StandardScaler)): _scaler,
    ("normalize", _whole_name(Normalizer)): _normalizer,
    ("pca", _whole_name(PCA)): _pca,
    ("nystroem", _whole_name(Nystroem)): _nystroem,
    ("svm", _whole_name(LinearSVC)): _linear,
    ("svm", _whole_name(SVC)): _kernel,
}
_ORDER = re.compile(r"(?:(?:scale|normalize), )?(?:pca, )?(?:nystroem, )?svm")
TRUSTED = frozenset({PIPELINE, *(kind for _, kind in _MAKERS)})


def rebuild(stored: Stored, *, n_features: int, n_classes: int) -> Pipeline:
    """Make a fitted pipeline of scikit-learn's from what a file holds of one.

    Parameters
    ----------
    stored : Stored
        The pipeline.
    n_features : int
        How many features its rows have.
    n_classes : int
        How many classes it tells apart.

    Raises
    ------
    ValueError
        With the step, if it is none that `cnnfeat svm` writes, or its numbers can't be.
    """
    steps: list[tuple[str, BaseEstimator]] = []
    named = _named_steps(stored.attributes.get("steps"))
    if not _ORDER.fullmatch(", ".join(name for name, _ in named)):
        raise ValueError(f"its steps are {', '.join(name for name, _ in named)!r:.60}")
    width = n_features
    for name, item in named:
        maker = _MAKERS.get((name, item.kind))
        if maker is None or (maker is _kernel and steps and steps[-1][0] == "nystroem"):
            raise ValueError(f"its step {name!r} is a {item.kind}, which cnnfeat svm doesn't write")
        made, width = maker(_Step(name, item, width, n_classes))
        steps.append((name, made))
    return Pipeline(steps)


def _named_steps(value: Value) -> list[tuple[str, Stored]]:
    found: list[tuple[str, Stored]] = []
    for item in value if isinstance(value, list) else ():
        match item:
            case (str(name), Stored() as step):
                found.append((name, step))
            case _:
                raise ValueError(f"one of its steps is no step: {item!r:.60}")
    return found
