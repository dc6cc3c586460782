"""The digits bundled with scikit-learn: real handwriting, 8×8 pixels, always at hand.

https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from cnnfeat.data.arrays import ArraySource, make_split
from cnnfeat.data.fingerprint import FileStates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnfeat.records import Array, Labels

_TEST_EVERY = 5  # one image of five in each class is a test image
_WHITE = 16  # the brightest grey level in the bundled array


def open_digits() -> ArraySource:
    """Open the bundled digits: uint8, (n, 8, 8, 1), "train" with 1,438 images, "test" with 359.

    Every fifth image of each class, counted over all classes one after the other, is a test image.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _WHITE)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    is_test = _test_rows(labels)
    splits = {"train": ~is_test, "test": is_test}
    return ArraySource(
        "digits",
        "digits",
        arrays={
            split: make_split(images[rows], labels[rows], name="digits")
            for split, rows in splits.items()
        },
        classes=tuple(str(name) for name in bunch.target_names),
        states=lambda: _states(images, labels),
    )


def _test_rows(labels: Labels) -> NDArray[np.bool_]:
    """Choose test rows: one of five in each class, in the order of the images."""
    by_class = np.argsort(labels, kind="stable")
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return chosen


def _states(images: Array, labels: Labels) -> FileStates:
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).digest()
    return FileStates({"digits": digest}, "array contents")
