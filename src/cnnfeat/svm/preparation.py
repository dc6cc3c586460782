"""What is done to features before the machine: scaling, unit length, principal components.

Everything is learned from training rows alone, block by block, and handed over as the plain
scikit-learn steps that do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.preprocessing import Normalizer, StandardScaler

from cnnfeat.errors import DataError, UsageError
from cnnfeat.svm.matrix import Doubles, Floats, MappedRows, Moments, RowBlocks
from cnnfeat.svm.solver import Design

COVARIANCE_LIMIT = 2048  # features up to which the covariance is decomposed
POWER_PASSES = 6  # over the rows, for wider features
EXTRA_DIRECTIONS = 16


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components."""

    vectors: Doubles  # (n_components, n_features), orthonormal
    mean: Doubles  # (n_features,)
    variance: Doubles  # (n_components,)
    total_variance: float


@dataclass(frozen=True, slots=True)
class Preparation:
    """What was learned from the training rows."""

    normalize: Literal["standard", "l2", "none"]
    n_samples: int
    n_features: int
    mean: Doubles | None = None  # of "standard"
    scale: Doubles | None = None
    components: Components | None = None

    def design(self, rows: RowBlocks) -> Design:
        """Make the matrix a linear solver works on."""
        if self.components is None and self.normalize != "l2":
            return Design(rows, mean=self.mean, scale=self.scale)
        return Design(self.rows(rows))

    def rows(self, rows: RowBlocks) -> MappedRows:
        """Prepare rows when they are read."""
        return MappedRows(rows, self.apply, n_features=self.n_outputs)

    def apply(self, block: Floats) -> Floats:
        """Prepare some rows, `(n_rows, n_features)` to `(n_rows, n_outputs)`."""
        if self.mean is not None and self.scale is not None:
            block = (block - self.mean.astype(block.dtype)) / self.scale.astype(block.dtype)
        elif self.normalize == "l2":
            block = _unit_length(block)
        if self.components is not None:
            centred = block - self.components.mean.astype(block.dtype)
            block = centred @ self.components.vectors.T.astype(block.dtype)
        return block

    @property
    def n_outputs(self) -> int:
        """Features after the preparation."""
        return self.n_features if self.components is None else len(self.components.vectors)

    def steps(self) -> list[tuple[str, BaseEstimator]]:
        """The same as fitted scikit-learn steps."""
        steps: list[tuple[str, BaseEstimator]] = []
        if self.mean is not None and self.scale is not None:
            steps.append(("scale", _scaler(self)))
        elif self.normalize == "l2":
            normalizer = Normalizer()
            normalizer.n_features_in_ = self.n_features
            steps.append(("normalize", normalizer))
        if self.components is not None:
            steps.append(("pca", _pca(self, self.components)))
        return steps


def prepare(
    rows: RowBlocks,
    seen: Moments,
    *,
    normalize: Literal["standard", "l2", "none"],
    pca: int | None = None,
    seed: int = 0,
) -> Preparation:
    """Learn a preparation from training rows.

    Parameters
    ----------
    rows : RowBlocks
        The training rows.
    seen : Moments
        Of the same rows.
    normalize : {"standard", "l2", "none"}
        Mean 0 and deviation 1 for each feature, length 1 for each row, or nothing.
    pca : int, optional
        How many principal components to keep.
    seed : int
        Where the search for components of wide features starts.

    Raises
    ------
    DataError
        If all features are constant.
    UsageError
        If more components are asked for than there are.
    """
    scale = np.sqrt(seen.variance)
    scale[scale <= 10 * np.finfo(rows.dtype).eps * np.abs(seen.mean)] = 0
    if not scale.any():
        raise DataError(
            f"all {rows.n_features:,} features are constant in the training rows: "
            "there is nothing to tell classes by"
        )
    scale[scale == 0] = 1
    learned = Preparation(
        normalize,
        rows.n_samples,
        rows.n_features,
        mean=seen.mean if normalize == "standard" else None,
        scale=scale if normalize == "standard" else None,
    )
    if pca is None:
        return learned
    most = min(rows.n_features, rows.n_samples)
    if pca > most:
        raise UsageError(
            f"--pca must be at most {most:,} for {rows.n_samples:,} rows of "
            f"{rows.n_features:,} features, not {pca:,}"
        )
    components = _components(learned.rows(rows), pca, seed=seed)
    return Preparation(
        normalize, rows.n_samples, rows.n_features, learned.mean, learned.scale, components
    )


def _unit_length(block: Floats) -> Floats:
    length = np.sqrt(np.einsum("ij,ij->i", block, block))
    length[length == 0] = 1
    return block / length[:, None]  # type: ignore[no-any-return]


def _components(rows: RowBlocks, count: int, *, seed: int) -> Components:
    mean, total = _centre(rows)
    d = rows.n_features
    if d <= COVARIANCE_LIMIT:
        variance, vectors = np.linalg.eigh(_covariance(rows, mean, np.eye(d)))
    else:
        width = min(d, count + EXTRA_DIRECTIONS)
        basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, width)))[0]
        for _ in range(POWER_PASSES):
            basis = np.linalg.qr(_covariance(rows, mean, basis))[0]
        inner = basis.T @ _covariance(rows, mean, basis)
        variance, rotation = np.linalg.eigh((inner + inner.T) / 2)
        vectors = basis @ rotation
    order = np.argsort(variance)[::-1][:count]
    vectors = vectors[:, order].T
    largest = np.abs(vectors).argmax(axis=1)
    vectors = vectors * np.sign(vectors[np.arange(count), largest])[:, None]
    return Components(vectors, mean, np.maximum(variance[order], 0), total)


def _centre(rows: RowBlocks) -> tuple[Doubles, float]:
    """Mean, and the sum of the features' variances."""
    total, squares = np.zeros(rows.n_features), np.zeros(rows.n_features)
    for _, block in rows.blocks():
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", block, block).astype(np.float64)
    mean = total / rows.n_samples
    total_variance = (squares - rows.n_samples * mean**2).sum() / max(1, rows.n_samples - 1)
    return mean, float(total_variance)


def _covariance(rows: RowBlocks, mean: Doubles, basis: Doubles) -> Doubles:
    """Covariance times `basis` (n_features, width), in one pass."""
    result = np.zeros(basis.shape)
    whole = basis.shape[0] == basis.shape[1] and np.array_equal(basis, np.eye(len(basis)))
    narrow = basis.astype(rows.dtype)
    for _, block in rows.blocks():
        centred = block - mean.astype(block.dtype)
        result += centred.T @ (centred if whole else centred @ narrow)
    return result / max(1, rows.n_samples - 1)


def _scaler(preparation: Preparation) -> StandardScaler:
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = preparation.mean, preparation.scale
    scaler.var_ = None if preparation.scale is None else preparation.scale**2
    scaler.n_features_in_ = preparation.n_features
    scaler.n_samples_seen_ = preparation.n_samples
    return scaler


def _pca(preparation: Preparation, components: Components) -> PCA:
    pca = PCA(n_components=len(components.vectors))
    pca.components_, pca.mean_ = components.vectors, components.mean
    pca.explained_variance_ = components.variance
    pca.explained_variance_ratio_ = components.variance / max(
        components.total_variance, np.finfo(np.float64).tiny
    )
    pca.singular_values_ = np.sqrt(components.variance * max(1, preparation.n_samples - 1))
    pca.noise_variance_ = 0.0
    pca.n_components_ = len(components.vectors)
    pca.n_samples_, pca.n_features_in_ = preparation.n_samples, preparation.n_features
    return pca
