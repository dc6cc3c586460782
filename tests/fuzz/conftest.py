"""The harness of the fuzzers: a warm process that types commands on changed files.

A fuzzer is a test such as::

    @pytest.mark.parametrize("n_inputs", [200, pytest.param(10_000, marks=SLOW)])
    def test_changed_pngs_end_in_a_named_error(fuzz, mutators, n_inputs):
        def make(random: Random, folder: Path) -> list[list[str]]:
            (folder / "a.png").write_bytes(mutators.change_bytes(random, PNG))
            return [["predict", "a.png", "--machine", MACHINE]]

        outcomes = fuzz(make, n_inputs)
        assert outcomes[3] and outcomes[0]

with ``SLOW = [pytest.mark.slow, pytest.mark.timeout(7200)]``. `make` writes one input into an
empty folder, which is the commands' working folder, and returns what is typed there. All that
is drawn comes from `random`, whose seed is the input's number. What must hold of each command is
in `Fuzz.complaint`. All inputs are tried; at the end the test fails with one finding of each
kind, whose inputs are kept in the folder that it names. `fuzz(make, n, first=1234)` begins at
another number, to see one again.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import NamedTuple

import pytest

EXIT_CODES = {0, 2, 3, 4, 5, 6}
DEADLINE_S = 60.0  # of a processor
IDLE = 10  # so many times as long by the clock, for what waits and doesn't compute
GROWN_MB = 2048
_COMPLAINTS = re.compile(
    r"Traceback \(most recent|^\S*Warning\b|: \w+Warning: |in user code:|\{\{node|HDF5-DIAG"
    r"|^WARNING:|^\d{4}-\d\d-\d\d |^[WEF]\d{4} \d\d:",
    re.MULTILINE,
)


class Ended(NamedTuple):
    """How a command ended: by `code`, by itself (None), or not in time."""

    code: int | None
    text: str
    grown_mb: int
    how: str = ""


class Worker:
    """A process of worker.py, started when it is needed and anew after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def type(self, words: list[str], folder: Path) -> Ended:
        """Run one command in `folder`."""
        process = self._started()
        process.stdin.write(json.dumps({"words": words, "folder": str(folder)}).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer(process)
        if answer is None:
            return Ended(None, "", 0, f"no end in {DEADLINE_S:.0f} s")
        if not answer:
            code = self.stop()
            if code == 4 and "--timeout" in words:  # which ends a process that TensorFlow holds
                return Ended(code, "error: no end", 0)
            return Ended(None, "", 0, f"the process ended with {code}")
        return Ended(**json.loads(answer))

    def stop(self) -> int:
        """End the process; its exit code, or the signal that ended it, below 0."""
        process, self._process = self._process, None
        process.stdin.close()
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        process.stdout.close()
        return code

    def close(self) -> None:
        """End the process if there is one."""
        if self._process is not None:
            self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """Read a line; b"" where the process is gone, None where nothing comes in time."""
        answer = b""
        began, used = time.monotonic(), _processor_s(process)
        while not answer.endswith(b"\n"):
            if not select.select([process.stdout], [], [], min(1.0, DEADLINE_S))[0]:
                late = time.monotonic() - began > IDLE * DEADLINE_S
                if late or _processor_s(process) - used > DEADLINE_S:
                    process.kill()
                    self.stop()
                    return None
                continue
            more = os.read(process.stdout.fileno(), 1 << 20)
            if not more:
                return b""
            answer += more
        return answer


def _processor_s(process: subprocess.Popen[bytes]) -> float:
    """Seconds that a process has had a processor, which a busy machine makes no longer."""
    counts = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(counts[11]) + int(counts[12])) / os.sysconf("SC_CLK_TCK")


class Fuzz:
    """Tries inputs on a worker and gathers what must not be."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        self._worker = worker
        self._folder = folder

    def __call__(
        self,
        make: Callable[[Random, Path], list[list[str]]],
        n_inputs: int,
        *,
        first: int = 0,
        grown_mb: int = GROWN_MB,
    ) -> Counter[int]:
        """Try `n_inputs`, each of which may take `grown_mb`; how often each exit code came."""
        outcomes: Counter[int] = Counter()
        findings: dict[str, str] = {}
        for number in range(first, first + n_inputs):
            folder = self._folder / str(number)
            folder.mkdir()
            commands = make(Random(number), folder)
            found = False
            for words in commands:
                ended = self._worker.type([str(word) for word in words], folder)
                outcomes[ended.code] += 1
                kind = self.complaint(ended, folder, grown_mb=grown_mb)
                if kind:
                    found = True
                    findings.setdefault(
                        kind, f"input {number}: {' '.join(map(str, words))}\n{ended.text[-1500:]}"
                    )
            if not found:
                shutil.rmtree(folder)
        assert not findings, f"{len(findings)} kinds, kept in {self._folder}\n" + "\n\n".join(
            f"--- {kind}\n{text}" for kind, text in findings.items()
        )
        return outcomes

    @staticmethod
    def complaint(ended: Ended, folder: Path, *, grown_mb: int = GROWN_MB) -> str:
        """Say what is wrong with how a command ended, in words equal for all of a kind."""
        complaint = ended.how
        if not complaint and ended.code is None:
            places = re.findall(r'File "[^"]*?/([^"/]+/[^"/]+)", line (\d+)', ended.text)
            complaint = f"{ended.text.strip().splitlines()[-1][:60]} at {places[-2:]}"
        elif not complaint and ended.code not in EXIT_CODES:
            complaint = f"exit code {ended.code}"
        elif not complaint and ended.code in {2, 3, 4, 5} and "error: " not in ended.text.lower():
            complaint = f"exit code {ended.code} without a word"
        said = _COMPLAINTS.search(ended.text)
        if said and not complaint:
            line = ended.text[said.start() :].splitlines()[0]
            complaint = f"it said {re.sub(r'[0-9]+', '0', line)[:80]!r}"
        if not complaint and ended.grown_mb > grown_mb:
            complaint = f"it took over {grown_mb} MB more"
        if not complaint and any(path.name.startswith(".") for path in folder.iterdir()):
            complaint = "hidden files were left behind"
        return complaint


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One warm process for a module's inputs."""
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def fuzz(worker: Worker, tmp_path: Path) -> Fuzz:
    """Try inputs: `fuzz(make, n_inputs)`."""
    return Fuzz(worker, tmp_path)


@pytest.fixture(scope="session")
def mutators(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """Changes to sound files: mutators.py."""
    return load_module("fuzz/mutators")
