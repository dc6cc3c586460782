"""Types commands one after another in one process, and says of each how it ended.

Besides those of the product there is `read DATA`, which goes through all rows of a source as an
extraction would, and says of each its place, identifier, label and the digest of its pixels.

Reads a line of JSON for each command, {"words": [...], "folder": "..."}, and writes one:
{"code": 3, "text": "error: ...", "grown_mb": 1}. The code is None where the command ended in
an exception that is none of the product's own; the text then ends in its traceback.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

MEMORY_BYTES = 24 << 30  # of addresses: what asks for more has believed a size in a file


def peak_mb() -> int:
    """The most memory this process has had; `ru_maxrss` begins with what its parent had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) // 1024


def read(words: list[str]) -> None:
    """Go through the rows of a source; damaged ones are left out."""
    from cnnfeat.data import open_source
    from cnnfeat.errors import CnnfeatError

    def say(row: list[object]) -> None:
        sys.stdout.write(json.dumps(row) + "\n")

    try:
        with open_source(words[1]) as source:
            for split in source.splits:
                for batch in source.batches(split, batch_size=16, on_error="skip"):
                    labels = [None] * len(batch) if batch.labels is None else batch.labels.tolist()
                    for one, label, image in zip(batch.ids, labels, batch.images, strict=True):
                        digest = hashlib.sha256(image.tobytes()).hexdigest()
                        say([split, one, label, str(image.shape), digest])
                    for left in batch.skipped:
                        say([split, left.id, left.reason])
    except CnnfeatError as error:
        sys.stdout.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.exit(0)


def type_in(words: list[str]) -> int | None:
    """Run one command; its exit code."""
    from cnnfeat.cli import main

    sys.argv = ["cnnfeat", *words]
    try:
        (read if words[0] == "read" else main)(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    except BaseException:  # noqa: BLE001 - this is what is looked for
        traceback.print_exc()
        return None


def main() -> None:
    """Answer until there is no more to type."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    said = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - for as long as the process lives
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    for line in sys.stdin:
        command = json.loads(line)
        os.chdir(command["folder"])
        os.truncate(said.fileno(), 0)
        os.lseek(said.fileno(), 0, os.SEEK_SET)
        before = peak_mb()
        with warnings.catch_warnings():
            warnings.simplefilter("always", RuntimeWarning)
            warnings.simplefilter("always", UserWarning)
            code = type_in(command["words"])
        sys.stdout.flush()
        sys.stderr.flush()
        said.seek(0)
        text = said.read(1 << 20).decode("utf-8", "replace")
        print(
            json.dumps({"code": code, "text": text, "grown_mb": peak_mb() - before}),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()
