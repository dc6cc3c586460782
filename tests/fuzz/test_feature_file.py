"""Feature files whose bytes, arrays, links, attributes and tables a stranger has changed."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import h5py
import numpy as np
import pytest
import xxhash

from cnnfeat.features import write_arrays
from cnnfeat.options import SvmOptions
from cnnfeat.svm import svm_stage

SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]
FILE = "f.h5"
ODD_ATTRIBUTES = (
    0, -1, 2**62, 0.5, np.nan, np.inf, 1e300, "", "x", "{", "[1]", "{}", "\x1b[31m", "x" * 5000,
    '{"data": 1}', '{"data": {"resize": [1, 2, 3]}}', '{"extract": {"layer": 7}}',
    '{"a": "\\ud800"}',
    b"\xff\xfe", np.array(["a", "b"], object), np.zeros(3), np.zeros((), [("a", "f4")]), np.True_,
    np.void(b"abc"), h5py.Empty("f4"), np.float16(0.5), np.longdouble(0.5), 1j, "keras:VGG16",
    "../../etc/passwd", "live:x", np.uint64(2**64 - 1), np.int8(-1),
)  # fmt: skip
ODD_TYPES = ("f2", ">f4", "f8", "i1", ">i8", "u8", "c8", "V3", "S4", "?", "f4", "i8", np.longdouble)
NUMBERS = (0, 1, -1, 7, 2**31, 2**62, -(2**63), np.nan, np.inf, -np.inf, 1e15, 3e38, 1e-40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small feature file with all that one can have, and a machine and a result made of it."""
    folder = tmp_path_factory.mktemp("sound")
    rng = np.random.default_rng(0)
    labels = {split: np.arange(n) % 2 for split, n in (("train", 24), ("test", 10))}
    splits = {
        split: {
            "conv": rng.normal(size=(len(y), 2, 2, 3)).astype("f4") + y[:, None, None, None],
            "fc": (rng.normal(size=(len(y), 3)) + 2 * y[:, None]).astype("f4"),
        }
        for split, y in labels.items()
    }
    write_arrays(
        folder / FILE,
        splits,
        labels=labels,
        parts={split: np.arange(len(y)).astype(np.uint8) % 3 for split, y in labels.items()},
        groups={split: np.arange(len(y)) // 2 for split, y in labels.items()},
        classes=["a", "b"],
        attributes={
            **{"network": "m.keras", "network_sha256": "ab" * 32, "network_format": "keras"},
            **{"source": "pictures", "source_kind": "folder", "source_fingerprint": "cd" * 32},
            "preprocessing": '{"scale": "unit", "resize": [8, 8], "pixels": "uint8"}',
            "options": '{"data": {"resize": [8, 8]}, "model": {}, "extract": {"pool": "none"}}',
            "division": '{"test_fraction": 0.2, "validation": 0.1, "seed": 0}',
            "network_test_accuracy": 0.75,
        },
    )
    with h5py.File(folder / FILE, "r+") as file:
        skipped = file["train"].create_group("skipped")
        skipped["row"], skipped["id"], skipped["reason"] = [3, 9], ["x", "y"], ["no", "no"]
    svm_stage(folder / FILE, folder, options=SvmOptions(layer=("fc",), C=1.0))
    return folder


def commands(random: Random, folder: Path) -> list[list[str]]:
    """What is typed: one that looks at the file, and one that does more."""
    machine = str(folder / "svm.skops")
    result = str(folder / "svm.json")
    more = [
        ["svm", FILE, "--layer", "fc", "--C", "1", "-o", "out"],
        ["svm", FILE, "--layer", "conv", "--C", "1", "--cv", "--folds", "2", "-o", "out"],
        ["predict", FILE, "--svm", machine],
        ["predict", FILE, "--svm", machine, "--csv"],
        ["export", FILE, "--to", "csv", "-o", "out.csv"],
        ["export", FILE, "--to", "npz", "-o", "out.npz"],
        ["export", FILE, "--to", "parquet", "-o", "out.parquet"],
        ["export", FILE, "--to", "projector", "--layer", "fc", "-o", "out"],
        [
            "plot",
            "embedding",
            "--features",
            FILE,
            "--layer",
            "fc",
            "--method",
            "pca",
            "-o",
            "e.png",
        ],
        ["report", "--features", FILE, "--svm", result, "--embedding", "pca", "-o", "r.html"],
    ]
    weights = (6, 3, 6, 2, 4, 3, 3, 2, 1, 1)
    return [random.choice((["verify", FILE], ["info", FILE])), *random.choices(more, weights)]


def unsealed(data: bytes) -> bytes:
    """Cut off what stands behind the end of what HDF5 knows of: then nothing checks structures."""
    return data[: int.from_bytes(data[40:48], "little")]


def structures(path: Path, data: bytes) -> list[int]:
    """Places of bytes that HDF5 goes by: between the arrays, and no padding."""
    rows: set[int] = set()
    with h5py.File(path) as file:
        for name in parts_of(file, h5py.Dataset):
            array = file[name].id
            if array.get_offset():
                rows.update(
                    range(array.get_offset(), array.get_offset() + array.get_storage_size())
                )
    return [at for at in range(8, len(data)) if at not in rows and (data[at] or at < 2000)]


def change_structures(
    random: Random, data: bytes, places: list[int], edges: tuple[int, ...]
) -> bytes:
    """Change 1 to 4 numbers that HDF5 goes by, or put one in another's place."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at, other = random.choice(places), random.choice(places)
        how = random.randrange(4)
        if how == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif how == 1:
            changed[at] = random.randrange(256)
        elif how == 2:
            size = random.choice((1, 2, 4, 8))
            changed[at : at + size] = (random.choice(edges) % (1 << 8 * size)).to_bytes(
                size, "little"
            )
        else:
            at, other = at // 8 * 8, other // 8 * 8
            changed[at : at + 8] = changed[other : other + 8]
    return bytes(changed)


@pytest.mark.parametrize("n_inputs", [50, pytest.param(10_000, marks=SLOW)])
def test_changed_bytes_end_in_a_named_error(fuzz, mutators: ModuleType, folder: Path, n_inputs):
    data = unsealed((folder / FILE).read_bytes())
    places = structures(folder / FILE, data)

    def make(random: Random, here: Path) -> list[list[str]]:
        if random.random() < 0.3:
            changed = mutators.change_bytes(random, data)
        else:
            changed = change_structures(random, data, places, mutators.EDGES)
        (here / FILE).write_bytes(changed)
        return commands(random, folder)

    # For an attribute's text HDF5 makes room by a length of 32 bits before it looks for the text.
    outcomes = fuzz(make, n_inputs, grown_mb=5000)
    assert outcomes[3] and outcomes[0]


@pytest.mark.parametrize("n_inputs", [30, pytest.param(10_000, marks=SLOW)])
def test_changed_parts_end_in_a_named_error(fuzz, folder: Path, n_inputs):
    data = (folder / FILE).read_bytes()

    def make(random: Random, here: Path) -> list[list[str]]:
        (here / FILE).write_bytes(data)
        with h5py.File(here / FILE, "r+") as file:
            for _ in range(random.choice((1, 1, 2))):
                random.choice(CHANGES)(random, file)
            if random.random() < 0.9:
                sum_up(file)
        return commands(random, folder)

    outcomes = fuzz(make, n_inputs)
    assert outcomes[3] and outcomes[0]


def parts_of(file: h5py.File, kind: type) -> list[str]:
    """Names of all groups or arrays that HDF5 finds without following links."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, kind) else None)
    return [name for name in names if "_axis" not in name]


def change_attribute(random: Random, file: h5py.File) -> None:
    """Another value, or none, for an attribute of the root or of an array."""
    owners = [file, file, *(file[name] for name in parts_of(file, h5py.Dataset))]
    owner = random.choice(owners)
    names = [name for name in owner.attrs if not name.isupper() or random.random() < 0.1]
    name = random.choice([*names, "overflowed_to_inf", "original_shape", "division", "settings"])
    if name in owner.attrs:
        del owner.attrs[name]
    if random.random() < 0.9:
        owner.attrs[name] = random.choice(ODD_ATTRIBUTES)


def change_document(random: Random, file: h5py.File) -> None:
    """Another value somewhere in an attribute of JSON."""
    name = random.choice(("preprocessing", "options", "division"))
    try:
        document = json.loads(file.attrs[name])
        table = random.choice(list(document)) if document else "data"
    except (KeyError, TypeError, ValueError):
        return
    value = random.choice(
        (None, -1, 2**63, 0.5, "", "x", [], [8], [0, 0], [10**9, 10**9], {}, True)
    )
    if isinstance(document[table], dict):
        keys = ("resize", "fit", "layer", "dtype", "feed", "weights", "group_by", "max_pixels", "x")
        document[table][random.choice(keys)] = value
    else:
        document[table] = value
    file.attrs[name] = json.dumps(document)


def change_array(random: Random, file: h5py.File) -> None:
    """Another type, shape or layout."""
    name = random.choice(parts_of(file, h5py.Dataset))
    old = file[name]
    shape = list(old.shape or (3,))
    axis = random.randrange(len(shape)) if shape else 0
    how = random.randrange(6)
    if shape and how == 0:
        shape[axis] = random.choice((0, 1, shape[axis] + 1, max(0, shape[axis] - 1), 1000))
    elif how == 1:
        shape = random.choice(([], [0], [*shape, 1], [1, *shape], [2] * 8))
    kind = old.dtype if how < 3 and old.dtype.kind != "O" else random.choice(ODD_TYPES)
    del file[name]
    if how == 5:
        file.create_dataset(name, data=["x", "é", ""], dtype=h5py.string_dtype())
    elif how == 4:
        file.create_dataset(name, shape, kind, chunks=True if shape and 0 not in shape else None)
    else:
        file.create_dataset(name, data=np.ones(shape, kind))


def change_numbers(random: Random, file: h5py.File) -> None:
    """Other numbers in an array."""
    names = [
        n for n in parts_of(file, h5py.Dataset) if file[n].dtype.kind in "fiu" and file[n].size
    ]
    array = file[random.choice(names)]
    values = array[...]
    with np.errstate(all="ignore"):
        for _ in range(random.choice((1, 1, 3))):
            value = np.array(random.choice(NUMBERS)).astype(values.dtype)
            values.reshape(-1)[random.randrange(values.size)] = value
        if random.random() < 0.1:
            values[...] = value
    array[...] = values


def change_texts(random: Random, file: h5py.File) -> None:
    """Other ids, classes, columns or reasons."""
    names = [n for n in parts_of(file, h5py.Dataset) if h5py.check_string_dtype(file[n].dtype)]
    array = file[random.choice(names)]
    if array.ndim == 1 and len(array) and h5py.check_string_dtype(array.dtype).length is None:
        texts = [
            "",
            "x",
            "../x",
            "/",
            ".",
            "label",
            "\x1b[31m",
            "=1+1",
            "a\nb",
            b"\xff",
            "x" * 70_000,
        ]
        for _ in range(random.choice((1, 2, 5))):
            array[random.randrange(len(array))] = random.choice(texts)


def change_link(random: Random, file: h5py.File) -> None:
    """Something else under a name: nothing, a group, a link; or the same under another name."""
    names = [*parts_of(file, h5py.Dataset), *parts_of(file, h5py.Group)]
    name, other = random.choice(names), random.choice(names)
    how = random.randrange(7)
    if how == 0:
        file.move(name, random.choice(("other", "train/other", "test/é", "checksums/other")))
        return
    if name == other or other.startswith(name + "/"):
        other = "/"
    target = file[other]
    if how == 1:
        file.create_group(f"group{random.randrange(9)}")
        return
    del file[name]
    if how == 2:
        file[name] = target
    elif how == 3:
        file[name] = h5py.SoftLink(random.choice(("/" + other, "/" + name, "/nowhere")))
    elif how == 4:
        file[name] = h5py.ExternalLink(random.choice((FILE, "/dev/zero", "none.h5")), "/train")
    elif how == 5:
        file.create_group(name)


CHANGES: tuple[Callable[[Random, h5py.File], None], ...] = (
    change_attribute,
    change_document,
    change_array,
    change_numbers,
    change_numbers,
    change_texts,
    change_link,
)


def sum_up(file: h5py.File) -> None:
    """Make the checksums right again, as far as there are such tables and arrays."""
    for split in ("train", "test"):
        try:
            sums, columns = (
                file["checksums"][split],
                file["checksums"][split]["column"].asstr()[...],
            )
            stops = [operator.index(stop) for stop in sums["stop"][...]]
            table = [
                [digest(file[split][column][begin:end]) for column in columns]
                for begin, end in zip([0, *stops], stops, strict=False)
            ]
            sums["sum"][...] = np.array(table, "u8")
        except (KeyError, TypeError, ValueError, OSError, AttributeError, IndexError, RuntimeError):
            continue


def digest(rows: np.ndarray) -> int:
    if rows.dtype.kind == "O":
        return xxhash.xxh3_64_intdigest(b"".join(text + b"\0" for text in rows.tolist()))
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(rows).tobytes())
