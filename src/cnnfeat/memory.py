"""How much memory there is: of the machine, of a container, and of the process's own limits."""

from __future__ import annotations

import resource
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/status")
_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")
_UNKNOWN_BYTES = 16 << 30  # where nothing says it
_UNTOUCHED_BYTES = 4 << 30  # of stacks and arenas: asked for by TensorFlow, and hardly used


def available_bytes() -> int:
    """Say how much more memory this process can use: the least that anything leaves it."""
    left = [_lines(_SYSTEM).get("MemAvailable", _UNKNOWN_BYTES), *_left_by_groups()]
    used = _lines(_PROCESS)
    for limit, word in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            left.append(most - used.get(word, 0))
    return max(0, min(left))


def limit_memory() -> None:
    """Let this process ask for little more memory than there is now.

    The system promises more than it has, and ends whoever takes it at its word. Behind a limit what
    asks for far too much is told so at once, and can say it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = _lines(_PROCESS).get("VmData")
    if soft == resource.RLIM_INFINITY and used is not None:
        swap = _lines(_SYSTEM).get("SwapFree", 0)
        most = used + available_bytes() + swap + _UNTOUCHED_BYTES
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _lines(path: Path) -> dict[str, int]:
    """Sizes in bytes from lines such as `MemAvailable:  23 kB`."""
    try:
        rows = [line.split() for line in path.read_text("ascii", "replace").splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if row[2:] == ["kB"]}


def _left_by_groups() -> list[int]:
    """What the control groups around this process leave it: version 2, or the memory's of 1."""
    try:
        rows = [row.split(":", 2) for row in _GROUPS.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    left = []
    for _, controllers, inside in (row for row in rows if len(row) == 3):
        first = controllers == ""
        if not first and "memory" not in controllers.split(","):
            continue
        root = _GROUP_ROOT if first else _GROUP_ROOT / "memory"
        most, used = (
            ("memory.max", "memory.current")
            if first
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = root / inside.lstrip("/")
        for folder in (group, *group.parents):
            limit = _number(folder / most)
            if limit is not None:
                left.append(limit - (_number(folder / used) or 0) + _cached(folder))
            if folder == root:
                break
    return left


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # "max": none
        return None


def _cached(folder: Path) -> int:
    """What a group has used for files and gives back."""
    try:
        rows = [line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()]
    except OSError:
        return 0
    words = ("inactive_file", "total_inactive_file")
    return max((int(row[1]) for row in rows if len(row) == 2 and row[0] in words), default=0)
