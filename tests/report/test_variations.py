"""The figure of varied images: what is drawn, without the drawing."""

from __future__ import annotations

import numpy as np

from cnnfeat.data import open_arrays
from cnnfeat.options import AugmentOptions
from cnnfeat.report.variations import _vary_some


def test_images_are_shown_as_a_training_takes_them():
    clear = np.zeros((4, 6, 5, 4), np.uint8)  # black, and not to be seen
    found = list(_vary_some(open_arrays(clear), AugmentOptions(flip="both"), 2, 3, 0))
    assert len(found) == 2
    for one in found:
        assert len(one.images) == 1 + 3
        for image in one.images:
            np.testing.assert_array_equal(image, np.full((6, 5, 3), 255))
