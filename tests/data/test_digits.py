from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from cnnfeat.data import open_source


def test_digits_are_scikit_learns_divided_into_80_and_20_percent():
    bunch = load_digits()
    with open_source("digits") as source:
        assert (source.name, source.kind) == ("digits", "digits")
        assert source.classes == tuple("0123456789")
        sizes = {name: info.n_samples for name, info in source.splits.items()}
        assert sizes == {"train": 1438, "test": 359}
        (train,) = source.batches("train", batch_size=2000)
        (test,) = source.batches("test", batch_size=2000)
    assert train.images.shape == (1438, 8, 8, 1)
    assert train.images.dtype == np.uint8

    def pixels(images, labels):
        return sorted(
            (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
        )

    grey = np.array([round(level * 255 / 16) for level in range(17)], np.uint8)
    everything = grey[bunch.images.astype(int)]
    assert pixels(everything, bunch.target) == pixels(
        np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    )
    shares = np.bincount(test.labels) / np.bincount(bunch.target)
    assert np.all(np.abs(shares - 0.2) < 0.01)
    for batch in (train, test):  # in the order of the bundled array
        order = [image.tobytes() for image in everything]
        places = [order.index(image.tobytes()) for image in batch.images]
        assert places == sorted(places)


def test_every_fifth_image_of_the_sorted_classes_is_a_test_image():
    target = load_digits().target.tolist()
    by_class = [row for label in range(10) for row in range(1797) if target[row] == label]
    expected = [target[row] for row in sorted(by_class[4::5])]
    with open_source("digits") as source:
        assert source.labels("test").tolist() == expected
        assert source.fingerprint() == open_source("digits").fingerprint()
