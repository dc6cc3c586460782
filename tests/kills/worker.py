"""Types commands in processes of their own, and kills each at a given change to its folder.

Reads a line of JSON for each command, {"words": [...], "folder": "...", "at": 3}, and writes one:
{"code": -9, "text": "...", "n_changes": 3}. A change is what Python's audit hooks tell of: a file
opened to be written, renamed or removed. `at` counts them from 1; the process is killed before
that one. Where it is null, or larger than their number, the command goes on to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}


def killing(folder: str, at: int | None, told: int) -> Callable[[str, tuple[object, ...]], None]:
    """Make the hook that counts changes in `folder`, and kills its process before one of them."""
    n_changes = 0

    def hook(event: str, details: tuple[object, ...]) -> None:
        nonlocal n_changes
        writes = event == "open" and isinstance(details[2], int) and details[2] & _WRITES
        if not writes and event not in _CHANGES:
            return
        path = details[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(folder):  # noqa: PTH100
            return
        n_changes += 1
        if n_changes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(told, b"%d" % n_changes, 0)

    return hook


def type_in(command: dict[str, object], said: int, told: int) -> None:
    """Run one command and end the process."""
    os.chdir(command["folder"])
    os.environ["TMPDIR"] = tempfile.tempdir = os.path.join(command["folder"], "tmp")  # noqa: PTH118
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    sys.argv = ["cnnfeat", *command["words"]]
    sys.addaudithook(killing(command["folder"], command["at"], told))
    main = import_module("cnnfeat.cli").main
    try:
        main(command["words"])
    except SystemExit as stopped:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stopped.code or 0))


def main(modules: list[str]) -> None:
    """Import what all commands need, once, and answer until there is no more to type."""
    for module in modules:
        import_module(module)
    for line in sys.stdin:
        command = json.loads(line)
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as told:
            child = os.fork()
            if child == 0:
                type_in(command, said.fileno(), told.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            told.seek(0)
            answer = {
                "code": code,
                "text": said.read().decode("utf-8", "replace"),
                "n_changes": int(told.read() or 0),
            }
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
