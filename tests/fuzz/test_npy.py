"""Files of NumPy arrays whose bytes, headers or members were changed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.arange(6) % 3
TYPES = (
    "|u1", "<u2", ">u2", "=u1", "<f4", ">f8", "<f2", "|b1", "<c8", "<i8", "<U2", "<U1000000000",
    "|S9", "|S1000000000", "|S99999999999999", "|V4", "|V0", "<M8[ns]", "<M8[x]", "m8", "O", "|O8",
    "(2,3)f4", "u1,u1", "f16", "g", "", "float32", "datetime64", "a9", "\0", "<u1\n", "object",
)  # fmt: skip
SHAPES = (
    "(6, 5, 4)", "(6, 20)", "(120,)", "()", "(-1, 5, 4)", "(6, -5, -4)", "(0, 5, 4)", "(6, 0, 4)",
    "(10**9,)", "(1000000000000, 5, 4)", "(9223372036854775807, 2)", "(2, 4611686018427387904, 2)",
    "(0, 9223372036854775807, 9223372036854775807)", "(1000000000000, 0)", "(6.0, 5, 4)",
    "[6, 5, 4]", "(True, 5, 4)", "6", "None", "'6'", "(6, (5, 4))", "(" * 500, "(1," * 90,
    "(" + "1, " * 70 + ")", "-" * 3000 + "1", "(6, 5, 4" + " " * 9000 + ")", "9" * 5000,
    "1if 1else 2",
    "__import__('os')", "{6: 5}", "(6, 5, 4), 'x': 1", "(6, 5, 4L)", "(6, 5, 1_0)", "'\\d'",
)  # fmt: skip
DESCRIPTIONS = (
    "[('a', '|u1')]", "[('a', '|u1'), ('a', '|u1')]", "[('a', '|O')]", "[('a', '|u1', (5, 4))]",
    "[('', '')]", "[(1, 2)]", "[[]]", "[]", "('|u1', (2, 2))", "('|u1', (1000000000,) * 9)",
    "[('a', [('b', [('c', '|u1')])])]", "[('a', '|u1', (-1,))]", "None", "1", "{'a': 1}",
)  # fmt: skip


def header(random: Random) -> bytes:
    """The beginning of an .npy file, of which one or more things are odd."""
    kind = random.choice([repr("|u1")] * 3 + [repr(kind) for kind in TYPES] + [*DESCRIPTIONS])
    shape = random.choice(("(6, 5, 4)",) * 20 + SHAPES)
    order = random.choice(("False",) * 5 + ("True", "0", "None", "'C'"))
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if random.random() < 0.1:
        text = random.choice((text[: random.randrange(len(text))], text + ")", "", " " * 9000))
    version = random.choice(((1, 0),) * 5 + ((2, 0), (3, 0), (0, 0), (9, 9)))
    length = random.choice((len(text.encode()),) * 9 + (0, 65_535, 2**31, 2**32 - 1))
    size = 2 if version == (1, 0) else 4
    start = b"\x93NUMPY" + bytes(version) + (length % (1 << 8 * size)).to_bytes(size, "little")
    return start + text.encode()


def changed(random: Random, mutators: ModuleType, sound: np.ndarray) -> bytes:
    """An .npy file that is wrong in its header, its numbers, or anywhere."""
    file = io.BytesIO()
    array = sound
    if random.random() < 0.3:
        kinds = ("u2", ">u2", "f4", ">f8", "c8", "?", "U3", "S3", "M8[s]", "i1,f4")
        array = np.zeros(sound.shape, random.choice(kinds))
    np.save(file, np.asfortranarray(array) if random.random() < 0.1 else array)
    how = random.random()
    if how < 0.3:
        return mutators.change_bytes(random, file.getvalue())
    if how < 0.4:
        return file.getvalue()
    size = random.choice((sound.nbytes,) * 6 + (0, 1, sound.nbytes - 1, sound.nbytes + 1, 5000))
    return header(random) + bytes(range(3)) * (size // 3) + bytes(size % 3)


def packed(random: Random, mutators: ModuleType) -> bytes:
    """An .npz file with changed members, or changed itself."""
    file = io.BytesIO()
    packing = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr("images.npy", changed(random, mutators, IMAGES))
        archive.writestr("labels.npy", changed(random, mutators, LABELS))
        if random.random() < 0.1:
            name = random.choice(("x/y.npy", ".npy", "images.txt", "more.npz"))
            archive.writestr(name, changed(random, mutators, IMAGES))
    data = file.getvalue()
    return mutators.change_bytes(random, data) if random.random() < 0.5 else data


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A graph that opens fast: the mean of an image."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, (None, 5, 4, 1), name="image")
        tf.reduce_mean(image, [1, 2], name="mean")
    path = tmp_path_factory.mktemp("network") / "mean.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return str(path)


@pytest.mark.parametrize("n_inputs", [100, pytest.param(10_000, marks=SLOW)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_changed_arrays_end_in_a_named_error(fuzz, mutators, network, kind, n_inputs):
    def make(random: Random, folder: Path) -> list[list[str]]:
        words = ["extract", "--model", network, "--layer", "mean", "-o", "f.h5", "--data"]
        if kind == "npz":
            (folder / "x.npz").write_bytes(packed(random, mutators))
            return [[*words, random.choice(("x.npz", "x.npz", "x.npz:/images"))]]
        (folder / "x.npy").write_bytes(changed(random, mutators, IMAGES))
        (folder / "y.npy").write_bytes(changed(random, mutators, LABELS))
        return [[*words, "x.npy", *random.choice(([], ["--labels", "y.npy"]))]]

    outcomes = fuzz(make, n_inputs)
    assert outcomes[3]
    assert outcomes[0]
