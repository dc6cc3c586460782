"""What all tests share: a seed, a clean environment, commands, the real MNIST where it is."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import numpy as np
import pytest

_DATA_DIR = os.environ.get("CNNFEAT_DATA_DIR")
_numbers = itertools.count()

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line does


def pytest_configure() -> None:
    """Let SIGINT interrupt: a shell that starts tests by `&` has them and theirs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """No option comes from the tester's own environment, and no cache is the tester's own."""
    for name in list(os.environ):
        if name.startswith("CNNFEAT_"):
            monkeypatch.delenv(name)
    # Made by who needs it: making one for each test would go through those of all before.
    cache = tmp_path_factory.getbasetemp() / "caches" / str(next(_numbers))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


class Done(NamedTuple):
    """How a command ended and what it said."""

    returncode: int
    stdout: str
    stderr: str


@functools.cache
def _options(*words: str) -> frozenset[str]:
    """All options of a typed command."""
    from cnnfeat.cli import COMMANDS

    if not words or words[0] not in COMMANDS:  # cnnfeat itself
        return frozenset({"-h", "--help"})
    module, attribute = COMMANDS[words[0]][0].split(":")
    command = getattr(import_module(f"cnnfeat.cli.{module}"), attribute)
    if isinstance(command, click.Group):
        command = command.commands[words[1]]
    words = (word for item in command.params for word in (*item.opts, *item.secondary_opts))
    return frozenset(words) | {"-h", "--help"}


@pytest.fixture
def check_hint() -> Callable[[str, list[str]], None]:
    """Check that options in a hint are those of the typed command, or of one named before them."""
    option = re.compile(r"(?<![\w/-])(?:--[A-Za-z][\w-]*|-o)(?!\w)")

    def check(hint: str, words: list[str]) -> None:
        for way in hint.split("; "):
            before, *named = re.split(r"\bcnnfeat ", way)
            for text, typed in (
                (before, words),
                *((one, re.findall(r"[a-z]+", one)) for one in named),
            ):
                found = option.findall(text)
                assert not found or set(found) <= _options(*typed[:2]), (
                    f"{found} of {typed[:2]} in {hint!r}"
                )

    return check


@pytest.fixture
def cnnfeat(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, check_hint: Callable
) -> Callable[..., Done]:
    """Type a command. It runs in this process, so that TensorFlow starts once and not for each."""
    from cnnfeat.cli import main

    def run(*args: object, folder: Path | None = None, **environment: str) -> Done:
        words = [str(word) for word in args]
        monkeypatch.setattr(sys, "argv", ["cnnfeat", *words])
        if folder is not None:
            monkeypatch.chdir(folder)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as stopped:
            main(words)
        done = Done(int(stopped.value.code or 0), *capfd.readouterr())
        for hint in re.findall(r"^hint: (.*)$", done.stderr, re.MULTILINE):
            check_hint(hint, words)
        return done

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_240_229)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tiny network for 8×8 images: conv1, fc1, fc2."""
    from cnnfeat.network.architecture import build_network
    from cnnfeat.options import ArchitectureOptions, ConvOptions, DenseOptions

    config = ArchitectureOptions(
        conv=(ConvOptions(filters=4, kernel_size=3),), dense=(DenseOptions(6),)
    )
    network = build_network(config, image_shape=(8, 8, 1), n_classes=10, seed=1)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    network.save(path)
    return path


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with mnist/ in it."""
    if _DATA_DIR is None or not (Path(_DATA_DIR) / "mnist").is_dir():
        pytest.skip("CNNFEAT_DATA_DIR names no folder with mnist/ in it")
    return Path(_DATA_DIR).resolve()


@pytest.fixture(scope="session")
def mnist_dir(data_dir: Path) -> Path:
    """The folder with the four MNIST files, packed."""
    return data_dir / "mnist"


@pytest.fixture(scope="session")
def mnist_arrays(mnist_dir: Path) -> dict[str, np.ndarray]:
    """MNIST by the shortest way there is: `train_images` (60000, 28, 28) uint8 and so on."""
    files = {
        "train_images": ("train-images-idx3-ubyte.gz", 16, (60_000, 28, 28)),
        "train_labels": ("train-labels-idx1-ubyte.gz", 8, (60_000,)),
        "test_images": ("t10k-images-idx3-ubyte.gz", 16, (10_000, 28, 28)),
        "test_labels": ("t10k-labels-idx1-ubyte.gz", 8, (10_000,)),
    }
    return {
        name: np.frombuffer(
            gzip.decompress((mnist_dir / file).read_bytes()), np.uint8, offset=skip
        ).reshape(shape)
        for name, (file, skip, shape) in files.items()
    }


def _load(name: str) -> ModuleType:
    """Load a module that stands beside tests, under a name of its own."""
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """Load a module that stands beside tests: `load_module("fuzz/mutators")`."""
    return _load


@pytest.fixture(scope="session")
def work() -> ModuleType:
    """A source and a probe made of NumPy alone: extraction/worker.py."""
    return _load("extraction/worker")


@pytest.fixture(scope="session")
def disks() -> ModuleType:
    """Disks that fail or write down what is done: features/disks.py."""
    return _load("features/disks")


@pytest.fixture(scope="session")
def objectstore() -> ModuleType:
    """What makes stores for tests: objectstore.py."""
    return _load("objectstore")


@pytest.fixture(scope="session")
def s3_endpoint(objectstore: ModuleType) -> Iterator[str]:
    """A store that speaks S3, in a process of its own."""
    with objectstore.served() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(
    objectstore: ModuleType, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[object]:
    """What stands between the store and this process, and counts requests or makes them fail."""
    from cnnfeat import store

    with objectstore.proxied(s3_endpoint) as proxy:
        for name, value in objectstore.KEYS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store.forget_clients()
        yield proxy
        store.forget_clients()


@pytest.fixture
def bucket(objectstore: ModuleType, s3_endpoint: str, proxy: object) -> object:
    """An empty bucket in it, as another client sees it: `name`, `put`, `get`, `names`."""
    return objectstore.Bucket(s3_endpoint, f"tests-{next(_numbers)}")


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], None]]:
    """Put objects into `memory://`, where nothing is before and after."""
    import fsspec

    files = fsspec.filesystem("memory")
    yield files.pipe_file
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def made(work: ModuleType, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make shards in a folder, and by a single run the file of the same rows."""
    from cnnfeat.extraction import extract
    from cnnfeat.options import ExtractOptions
    from cnnfeat.shards import ShardNumber

    def call(n_shards=3, *, bad=None, sizes=None, known=None, **options):
        def source():
            return work.CountingSource(sizes or {"train": 130, "test": 40}, bad=bad, known=known)

        how = ExtractOptions(
            **{"batch_size": 16, "on_error": "skip" if bad else "raise", **options}
        )
        network = work.CountingNetwork()
        for number in range(1, n_shards + 1):
            shard = ShardNumber(number, n_shards)
            extract(network, source(), how, out=tmp_path / "set", shard=shard)
        extract(network, source(), how, out=tmp_path / "single.h5")
        return tmp_path / "set", tmp_path / "single.h5"

    return call


@pytest.fixture
def check(work: ModuleType) -> Callable:
    """Check every value of a complete file, by what the features of a row number must be."""

    from cnnfeat.features import FeatureFile, verify_file

    def checked(path, sizes, *, left_out=None, labelled=True):
        assert verify_file(path).damages == ()
        with FeatureFile(path) as file:
            assert set(file.splits) == set(sizes)
            for split, n in sizes.items():
                gone = (left_out or {}).get(split, set())
                rows = np.array([row for row in range(n) if row not in gone])
                assert file.ids(split) == [f"{split}/{row}.png" for row in rows]
                for number, (name, shape) in enumerate(work.CountingProbe().layers.items()):
                    wanted = work.expected(rows, shape=shape, times=0.5 + number)
                    found = file.read(split, name.replace("/", "."))
                    np.testing.assert_array_equal(found, wanted)
                if labelled:
                    np.testing.assert_array_equal(file.labels(split), rows % 2)
                else:
                    assert file.labels(split) is None
                assert {item.row for item in file.skipped(split)} == gone
        leftovers = [p.name for p in path.parent.iterdir() if p.name.startswith(path.name + ".")]
        assert leftovers == []

    return checked
