from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cnnfeat import memory


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that leaves 8 GiB, of which no group of processes is told."""
    for name in ("_SYSTEM", "_PROCESS", "_GROUPS", "_GROUP_ROOT"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    (tmp_path / "_SYSTEM").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nX: 1\n")
    return tmp_path


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("memory_", "memory.", 1)).write_text(text)


def test_what_the_system_has_left_is_available(machine):
    assert memory.available_bytes() == 8 << 30


def test_the_least_that_a_group_around_the_process_leaves_is_available(machine):
    (machine / "_GROUPS").write_text("0::/user/job\n")
    group(machine / "_GROUP_ROOT" / "user" / "job", memory_max="max\n", memory_current="5\n")
    group(
        machine / "_GROUP_ROOT" / "user",
        memory_max=f"{2 << 30}\n",
        memory_current=f"{1 << 30}\n",
        memory_stat=f"anon 7\ninactive_file {1 << 28}\n",
    )
    assert memory.available_bytes() == (1 << 30) + (1 << 28)


def test_groups_of_the_first_version_count_too(machine):
    (machine / "_GROUPS").write_text("5:devices:/\n4:cpu,memory:/job\n0::/\n")
    group(
        machine / "_GROUP_ROOT" / "memory" / "job",
        memory_limit_in_bytes=f"{3 << 30}\n",
        memory_usage_in_bytes=f"{1 << 30}\n",
    )
    assert memory.available_bytes() == 2 << 30


def test_a_limit_of_the_process_counts(machine, monkeypatch):
    (machine / "_PROCESS").write_text("VmData:\t1048576 kB\nName:\tpython\n")
    limits = {resource.RLIMIT_DATA: 3 << 30}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2
    )
    assert memory.available_bytes() == 2 << 30


def test_behind_the_limit_too_much_is_refused_at_once():
    code = (
        "import resource\n"
        "from cnnfeat.memory import limit_memory\n"
        "limit_memory()\n"
        "small = bytearray(1 << 20)\n"
        "most, _ = resource.getrlimit(resource.RLIMIT_DATA)\n"
        "try: bytearray(most)\n"
        "except MemoryError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
