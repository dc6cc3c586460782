"""A committee: several networks of one kind in one model, which answers with the mean of theirs.

Members lie in it as models of their own, `seed0`, `seed1` …; a layer of one is `seed0/fc1`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras


def join_networks(members: Mapping[str, keras.Model]) -> keras.Model:
    """Make one network of several, with their weights as its own.

    Parameters
    ----------
    members : mapping of str to keras.Model
        By the names that they have: images in, logits out.

    Returns
    -------
    keras.Model
        Images in; out what the logarithm of the mean of the members' probabilities is, which are
        logits whose softmax is that mean. Plain Keras loads its file.
    """
    first = next(iter(members.values()))
    image = keras.Input(first.input_shape[1:], dtype=first.inputs[0].dtype, name="image")
    answers = [member(image) for member in members.values()]
    logits = _mean(list(members), first.output_shape[1:])(answers)
    return keras.Model(image, logits, name="cnnfeat")


def _mean(names: list[str], shape: tuple[int, ...]) -> keras.Model:
    """Logarithms throughout: small probabilities don't become 0, whose logarithm is infinite."""
    inputs = [keras.Input(shape, name=name) for name in names]
    chances = [keras.ops.log_softmax(logits, axis=-1) for logits in inputs]
    total = keras.ops.logsumexp(keras.ops.stack(chances, axis=1), axis=1)
    return keras.Model(inputs, total - math.log(len(names)), name="logits")
