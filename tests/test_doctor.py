"""What is said of the machine, and of what is missing on it."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from cnnfeat import doctor, processor

INFO = """processor\t: 0
model name\t: AMD EPYC 9V74
flags\t\t: fpu avx2 avx512f {more}

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Make the system say something of the processor."""

    def say(more: str) -> None:
        (tmp_path / "cpuinfo").write_text(INFO.format(more=more))
        monkeypatch.setattr(processor, "_INFO", tmp_path / "cpuinfo")

    return say


@pytest.fixture
def packages(monkeypatch):
    """Put other packages in place of those that are installed."""

    def put(
        versions: dict[str, str], *, requires: list[str], extras: list[str], **others: list[str]
    ) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        class _Metadata:
            def get_all(self, _key: str) -> list[str]:
                return extras

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", {"cnnfeat": requires, **others}.get)
        monkeypatch.setattr(metadata, "metadata", lambda _: _Metadata())

    return put


def by_name(findings) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.parametrize(("more", "able"), [("avx512_bf16", True), ("amx_bf16", True), ("", False)])
def test_bfloat16_is_read_from_the_processor_s_flags(cpu, more, able) -> None:
    cpu(more)
    assert processor.has_bfloat16() is able
    assert processor.processor_name() == "AMD EPYC 9V74"
    assert {"avx2", "avx512f"} <= processor.processor_flags()


def test_a_system_that_says_nothing_of_its_processor(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(processor, "_INFO", tmp_path / "none")
    assert processor.processor_flags() == frozenset()
    assert not processor.has_bfloat16()
    assert processor.processor_name() in (platform.processor(), platform.machine())


def test_packages_are_held_against_what_was_tested(packages) -> None:
    packages(
        {"numpy": "2.5.0", "h5py": "3.14.2"},
        requires=[
            "numpy<2.5,>=2.4",
            "h5py<3.15,>=3.14",
            "tensorflow>=2.21",
            "rich>=15",
            "winonly>=1; sys_platform == 'win32'",
            "dask>=2026.8; extra == 'dask'",
            "pytest>=9; extra == 'test'",
        ],
        extras=["dask", "test"],
    )
    found = by_name([*doctor._needed(), *doctor._extras()])
    assert found["h5py"] == doctor.Finding("needed", "h5py", "3.14.2")
    assert found["numpy"].found == "2.5.0, and <2.5,>=2.4 is what cnnfeat asks for"
    assert found["numpy"].advice == "pip install 'numpy<2.5,>=2.4'"
    assert not found["numpy"].broken
    assert (found["rich"].found, found["rich"].broken) == ("not here", True)
    light = found["tensorflow"]
    assert (light.found, light.broken) == ("not here", False)
    assert light.advice.startswith("pip install 'tensorflow>=2.21'; svm, predict on features")
    assert found["dask"] == doctor.Finding(
        "extra dask", "dask", "not here", "pip install 'cnnfeat[dask]'"
    )
    assert not {"pytest", "winonly"} & set(found)


@pytest.mark.parametrize(
    ("there", "driver", "told"),
    [
        ({}, "/usr/bin/nvidia-smi", "tensorflow[and-cuda] not here pip install 'cnnfeat[gpu]'"),
        ({}, None, "tensorflow[and-cuda] not here "),
        ({"nvidia-cudnn-cu12": "9.3.0"}, None, "tensorflow 2.21.0 "),
    ],
)
def test_an_extra_of_a_package_is_there_when_all_that_it_brings_is(
    packages, monkeypatch, there, driver, told
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: driver)
    packages(
        {"tensorflow": "2.21.0", **there},
        requires=["tensorflow[and-cuda]>=2.20; extra == 'gpu'"],
        extras=["gpu"],
        tensorflow=["numpy>=1.26", "nvidia-cudnn-cu12<10,>=9.3; extra == 'and-cuda'"],
    )
    (found,) = doctor._extras()
    assert f"{found.name} {found.found} {found.advice}" == told


def test_a_source_that_was_not_installed_is_told(monkeypatch) -> None:
    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    found = by_name([*doctor._needed(), *doctor._extras()])
    assert list(found) == ["cnnfeat", "Python"]
    assert found["cnnfeat"].advice == "pip install -e . in its folder"


def test_a_folder_that_can_t_be_written_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CNNFEAT_DIR", str(tmp_path / "not" / "yet"))
    assert by_name(doctor._folders())["results"].advice == ""
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    found = by_name(doctor._folders())["results"]
    assert found.advice == "nothing can be written there; CNNFEAT_DIR names another folder"
    assert found.found.startswith(str(tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()


def test_little_memory_is_told(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: 3 << 30)
    found = by_name(doctor._machine())["memory"]
    assert found.found == "3.0 GiB free"
    assert "--batch-size 32" in found.advice


def test_an_untested_system_is_told(monkeypatch) -> None:
    assert next(doctor._machine()).advice == ""
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    system = next(doctor._machine())  # and no more: others ask too which system it is
    assert (system.name, "tested on Linux" in system.advice) == ("system", True)


def test_without_tensorflow_it_still_tells_the_rest(monkeypatch) -> None:
    def broken() -> None:
        raise ImportError("libcublas.so.12: cannot open shared object file")

    monkeypatch.setattr("cnnfeat.doctor.load_tensorflow", broken)
    (found,) = doctor._devices()
    assert found.broken
    assert "libcublas" in found.found
    assert "go without it" in found.advice


def test_a_light_installation_is_no_fault(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert list(doctor._devices()) == []


def test_a_driver_that_tensorflow_does_not_use_is_told(monkeypatch) -> None:
    monkeypatch.setattr("cnnfeat.network.devices.gpu_names", lambda: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (found,) = doctor._devices()
    assert found.advice == "pip install 'cnnfeat[gpu]' lets TensorFlow see it"


def test_the_command_tells_it_for_people_and_programs(cnnfeat, monkeypatch, tmp_path) -> None:
    code, out, err = cnnfeat("doctor", "--json", "--data-dir", str(tmp_path))
    assert (code, err) == (0, "")
    found = {item["name"]: item for item in json.loads(out)}
    assert found["numpy"]["found"].startswith(np.__version__)
    assert found["Python"]["found"] == platform.python_version()
    assert found["digits"] == {
        "group": "data",
        "name": "digits",
        "found": "inside scikit-learn",
        "advice": "",
        "broken": False,
    }
    monkeypatch.setattr(
        doctor, "examine", lambda **_: [doctor.Finding("needed", "h5py", "not here", "do", True)]
    )
    code, out, err = cnnfeat("doctor")
    assert code == 4
    assert out.splitlines() == ["needed", "  h5py  not here  → do"]
    assert "cnnfeat can't work without h5py" in err


def test_nothing_is_written(cnnfeat, monkeypatch, tmp_path) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "CNNFEAT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    assert cnnfeat("doctor")[0] == 0
    assert list(Path(tmp_path).iterdir()) == []
