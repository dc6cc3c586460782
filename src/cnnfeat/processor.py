"""What the processor is, and what it can: read from the system, nothing is tried."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})  # flags, by any of which it computes in bfloat16


def n_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """What it calls itself: "AMD EPYC"; its kind, such as "x86_64", where nothing says more."""
    return _first("model name") or platform.processor() or platform.machine()


def processor_flags() -> frozenset[str]:
    """What it can besides its kind's least: "avx2", "avx512_bf16" ...; none where nothing says."""
    return frozenset(_first("flags").split())


def has_bfloat16() -> bool:
    """Whether it computes in bfloat16, rather than by way of float32."""
    return bool(BFLOAT16 & processor_flags())


def _first(key: str) -> str:
    """The first value of a key; "" where there is none."""
    try:
        lines = _INFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
