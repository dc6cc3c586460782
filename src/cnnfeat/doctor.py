"""What is there for cnnfeat to work with, and what to do about each gap."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

import cnnfeat
from cnnfeat import __version__
from cnnfeat.memory import available_bytes
from cnnfeat.network.starting import PACKAGES, load_tensorflow, native_stderr_hidden
from cnnfeat.processor import has_bfloat16, n_cores, processor_flags, processor_name

_OURS = "cnnfeat"
_FOR_DEVELOPERS = {"test", "docs", "bench"}
_VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd")
_GIB = 1 << 30
_LIGHT = "; svm, predict on features, info, verify and export go without it"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    group: str  # "needed", "extra", "machine", "data"
    name: str
    found: str
    advice: str = ""  # what to do; "": nothing
    broken: bool = False  # whether cnnfeat can't work so


def examine(*, data_dir: Path | None = None) -> list[Finding]:
    """Look at versions, extras, the machine, the folders and the data.

    Nothing is written or downloaded. TensorFlow is started, to ask it for devices.

    Parameters
    ----------
    data_dir : Path, optional
        Where data sets are looked for first.

    Returns
    -------
    list of Finding
        Grouped, in the order in which a person would read them.
    """
    return [*_needed(), *_extras(), *_machine(), *_devices(), *_folders(), *_data(data_dir)]


def _needed() -> Iterator[Finding]:
    """The packages that cnnfeat can't do without, as it was installed."""
    found, advice = __version__, ""
    if not _installed():
        found += ", run from its source: what it needs isn't known"
        advice = "pip install -e . in its folder"
    yield Finding("needed", _OURS, found, advice)
    yield Finding("needed", "Python", platform.python_version())
    for requirement in _requirements(""):
        install = f"pip install '{requirement}'"
        one = _package("needed", requirement, install=install, needed=True)
        light = one.broken and requirement.name in PACKAGES
        yield dataclasses.replace(one, advice=f"{install}{_LIGHT}", broken=False) if light else one


def _extras() -> Iterator[Finding]:
    """What extras bring; missing is no fault."""
    declared = metadata.metadata(_OURS).get_all("Provides-Extra") if _installed() else None
    for extra in (name for name in declared or [] if name not in _FOR_DEVELOPERS):
        for requirement in _requirements(extra):
            useless = extra == "gpu" and not _has_driver()
            install = "" if useless else f"pip install 'cnnfeat[{extra}]'"
            yield _package(f"extra {extra}", requirement, install=install, needed=False)


def _installed() -> bool:
    """Whether this is an installed package, which says what it needs."""
    try:
        metadata.distribution(_OURS)
    except metadata.PackageNotFoundError:
        return False
    return True


def _requirements(extra: str) -> list[Requirement]:
    """What an extra needs on this machine; "": what is always needed."""
    return _needs(_OURS, extra) if _installed() else []


def _needs(package: str, extra: str) -> list[Requirement]:
    """What an installed package, or one of its extras, needs on this machine."""
    found = [Requirement(text) for text in metadata.requires(package) or []]
    return [
        one
        for one in found
        if ("extra" in str(one.marker)) == bool(extra)
        and (one.marker is None or one.marker.evaluate({"extra": extra}))
    ]


def _package(group: str, requirement: Requirement, *, install: str, needed: bool) -> Finding:
    """Whether a package is there with its extras, in a version that is asked for."""
    version = _version(requirement.name)
    if version is None:
        return Finding(group, requirement.name, "not here", install, broken=needed)
    for extra in sorted(requirement.extras):
        if any(_version(one.name) is None for one in _needs(requirement.name, extra)):
            name = f"{requirement.name}[{extra}]"
            return Finding(group, name, "not here", install, broken=needed)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(group, requirement.name, version)
    wanted = f"{version}, and {requirement.specifier} is what cnnfeat asks for"
    return Finding(group, requirement.name, wanted, install)


def _version(name: str) -> str | None:
    """What is installed of a package; None: nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    system = platform.system()
    tested = sys.platform in cnnfeat.TESTED_SYSTEMS
    advice = "" if tested else "cnnfeat is tested on Linux; elsewhere a container or WSL 2 is safer"
    yield Finding("machine", "system", f"{system} {platform.release()}", advice)
    able = [flag for flag in _VECTORS if flag in processor_flags()]
    words = f"{processor_name()}, {n_cores()} cores for this process"
    yield Finding("machine", "processor", ", ".join([words, *able]))
    bfloat16 = "yes: --precision bfloat16 gains here" if has_bfloat16() else "no: float32 it is"
    yield Finding("machine", "bfloat16", bfloat16)
    free = available_bytes() / _GIB
    few = "with less than 4 GiB use --batch-size 32 and svm --memory 1GiB" if free < 4 else ""
    yield Finding("machine", "memory", f"{free:.1f} GiB free", few)
    yield _blas()


def _blas() -> Finding:
    """Which library multiplies matrices for the SVM, and in how many threads."""
    try:
        importlib.import_module("scipy.linalg")
        from threadpoolctl import threadpool_info
    except ImportError as error:
        return Finding("machine", "BLAS", f"can't be asked: {error}", "install what is missing")
    found = [
        f"{one['internal_api']} {one.get('version') or ''}".strip()
        + f", {one['num_threads']} threads"
        for one in threadpool_info()
        if one["user_api"] == "blas"
    ]
    return Finding(
        "machine", "BLAS", "; ".join(dict.fromkeys(found)) or "none that says what it is"
    )


def _devices() -> Iterator[Finding]:
    """What TensorFlow computes on, where there is one."""
    if any(find_spec(name) is None for name in PACKAGES):
        return
    try:
        load_tensorflow()
        from cnnfeat.network.devices import gpu_names

        with native_stderr_hidden(hidden=True):
            names = gpu_names()
    except ImportError as error:
        found = f"not known: TensorFlow can't be loaded: {error}"
        yield Finding("machine", "GPU", found, f"reinstall it{_LIGHT}", broken=True)
        return
    unseen = _has_driver() and not names
    advice = "pip install 'cnnfeat[gpu]' lets TensorFlow see it" if unseen else ""
    found = ", ".join(names) or ("none that TensorFlow sees, but a driver" if unseen else "none")
    yield Finding("machine", "GPU", found, advice)


def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None


def _folders() -> Iterator[Finding]:
    """Where downloads and results go, and how much room there is."""
    from cnnfeat.data import user_cache

    for name, folder, variable in (
        ("downloads", user_cache(), "XDG_CACHE_HOME"),
        ("results", Path(os.environ.get("CNNFEAT_DIR") or "artifacts"), "CNNFEAT_DIR"),
    ):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(there).free / _GIB
        advice = ""
        if not os.access(there, os.W_OK):
            advice = f"nothing can be written there; {variable} names another folder"
        elif room < 1:
            advice = f"hardly any room; {variable} names another folder"
        yield Finding("data", name, f"{folder}, {room:.1f} GiB free", advice)


def _data(data_dir: Path | None) -> Iterator[Finding]:
    """Which data sets lie where."""
    from cnnfeat.data import list_sources

    for source in list_sources(data_dir=data_dir):
        missing = f"cnnfeat data fetch {source.name}" if not source.location else ""
        yield Finding("data", source.name, source.location or "not here", missing)
