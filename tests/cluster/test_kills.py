"""MNIST on a cluster of this machine, whose workers and drivers are killed at random moments."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnfeat.network.architecture import build_network
from cnnfeat.options import ArchitectureOptions

pytestmark = [pytest.mark.slow, pytest.mark.mnist, pytest.mark.timeout(7200)]
N_WORKERS_KILLED, N_DRIVERS_KILLED = 20, 10
KILLED_A_RUN = 4


@pytest.fixture(scope="module")
def command(tmp_path_factory, data_dir: Path) -> Callable[..., list[str]]:
    """How MNIST is extracted to conv2; a single process's file is compared with."""
    folder = tmp_path_factory.mktemp("mnist")
    network = build_network(ArchitectureOptions(), image_shape=(28, 28, 1), n_classes=10, seed=1)
    network.save(folder / "model.keras")
    words = ["--layer", "conv2", "--model", str(folder / "model.keras"), "--data", "mnist"]
    words = [sys.executable, "-m", "cnnfeat", "extract", *words, "--data-dir", str(data_dir)]
    return lambda out, *more: [*words, "-o", str(out), *more]


@pytest.fixture(scope="module")
def single(tmp_path_factory, command) -> Path:
    """The file of a single process."""
    path = tmp_path_factory.mktemp("single") / "features.h5"
    finish(command(path))
    return path


def finish(words: list[str]) -> None:
    """Let a command go on to its end."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def children(pid: int) -> list[int]:
    """Processes that a process has started to be workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def wait_for_shards(driver: subprocess.Popen[str], folder: Path, n_shards: int) -> None:
    while driver.poll() is None and len(list(folder.glob("features.*.h5"))) < n_shards:
        time.sleep(0.02)


def check(folder: Path, single: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"features.{k:04d}-of-0020.h5" for k in range(1, 21)), "manifest.json"]
    with h5py.File(single) as file:
        for split, n in (("train", 60_000), ("test", 10_000)):
            start = 0
            for name in names[:-1]:
                with h5py.File(folder / name) as shard:
                    stop = start + len(shard[split]["conv2"])
                    for column in ("conv2", "label", "id"):
                        wanted = file[split][column][start:stop]
                        np.testing.assert_array_equal(shard[split][column][:], wanted)
                start = stop
            assert start == n


def test_workers_killed_at_random_moments_cost_no_row(command, single, tmp_path):
    moments = random.Random(11)
    for number in range(N_WORKERS_KILLED // KILLED_A_RUN):
        folder = tmp_path / f"set {number}"
        with subprocess.Popen(
            command(folder, "--dask", "local:2", "--shards", "20"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as driver:
            wait_for_shards(driver, folder, moments.randrange(2))
            for _ in range(KILLED_A_RUN):
                time.sleep(moments.uniform(0, 1))
                if workers := children(driver.pid):
                    os.kill(moments.choice(workers), signal.SIGKILL)
            said, _ = driver.communicate()
        assert "Traceback" not in said, said
        if driver.returncode == 5:  # killed while it was started: nothing is begun
            assert "processes of this machine can't be started as workers" in said, said
            again = command(folder, "--dask", "local:2", "--shards", "20")
            finish(again)
        else:
            assert driver.returncode == 0, said
        check(folder, single)


def test_drivers_killed_at_random_moments_cost_no_shard(command, single, tmp_path):
    moments, folder = random.Random(12), tmp_path / "set"
    words = command(folder, "--dask", "local:2", "--shards", "20")
    kept: dict[str, int] = {}
    for number in range(N_DRIVERS_KILLED):
        with subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as driver:
            wait_for_shards(driver, folder, min(20, len(kept) + moments.randrange(1, 3)))
            time.sleep(moments.uniform(0, 0.3))
            workers = children(driver.pid)
            driver.kill()
        found = {path.name: path.stat().st_ino for path in folder.glob("features.*.h5")}
        assert found.items() >= kept.items(), number
        kept = found
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "workers outlive their driver"
            time.sleep(0.1)
    finish(words)
    check(folder, single)


def test_ctrl_c_lets_shards_finish_and_says_how_to_go_on(command, single, tmp_path):
    folder = tmp_path / "set"
    words = command(folder, "--dask", "local:2", "--shards", "20")
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as driver:
        wait_for_shards(driver, folder, 3)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        _, said = driver.communicate()
    assert driver.returncode == 130, said
    assert "shards, kept in" in said
    assert "Traceback" not in said
    names = [path.name for path in folder.iterdir()]
    assert 3 <= len(names) < 20
    assert all(name.startswith("features.") for name in names)
    finish(words)
    check(folder, single)


def test_a_scheduler_that_is_killed_ends_the_run_in_words(command, single, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            silent = subprocess.DEVNULL
            process = subprocess.Popen([sys.executable, *words], stdout=silent, stderr=silent)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        place = tmp_path / "scheduler.json"
        about = ["--scheduler-file", str(place)]
        scheduler = start(
            *("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"),
            *("--no-dashboard", *about),
        )
        for _ in range(2):
            start("-m", "distributed.cli.dask_worker", *about, "--nthreads", "1", "--no-dashboard")
        while not place.exists():
            time.sleep(0.1)
        address = json.loads(place.read_text("utf-8"))["address"]
        words = command(tmp_path / "set", "--dask", address, "--shards", "20")
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as driver:
            wait_for_shards(driver, tmp_path / "set", 2)
            scheduler.kill()
            _, said = driver.communicate()
    assert driver.returncode == 5, said
    assert f"the Dask scheduler of {address} is gone" in said
    assert "Traceback" not in said
    words = command(tmp_path / "set", "--dask", "local:2", "--shards", "20")
    finish(words)
    check(tmp_path / "set", single)
