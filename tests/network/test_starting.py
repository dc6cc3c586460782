"""What TensorFlow writes while it starts, and what it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cnnfeat.errors import Interrupted
from cnnfeat.network import runtime
from cnnfeat.network.starting import native_stderr_hidden, start_tensorflow


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM")])
def test_an_interrupt_shows_no_chatter(capfd, stop):
    with pytest.raises(type(stop)), native_stderr_hidden(hidden=True):
        os.write(2, b"chatter")
        raise stop
    assert capfd.readouterr().err == ""


def test_a_failure_shows_what_was_written_meanwhile(capfd):
    with pytest.raises(ImportError), native_stderr_hidden(hidden=True):
        os.write(2, b"no such instruction")
        raise ImportError("tensorflow")
    assert capfd.readouterr().err == "no such instruction"


@pytest.mark.parametrize(("given", "taken"), [({}, "1"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0")])
def test_onednn_is_asked_for_unless_the_environment_says_otherwise(monkeypatch, given, taken):
    monkeypatch.setattr(runtime, "start", lambda *, n_calls, device: None)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    start_tensorflow()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == taken


def test_a_program_hears_nothing_and_its_environment_is_its_own_until_then():
    code = (
        "import os, sys, cnnfeat\n"
        "heavy = {'tensorflow', 'sklearn', 'h5py', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'TF_CPP_MIN_LOG_LEVEL' not in os.environ\n"
        "cnnfeat.load_network\n"
        "assert 'tensorflow' in sys.modules\n"
        "assert os.environ['TF_ENABLE_ONEDNN_OPTS'] == '1'\n"
    )
    free = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=free
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_with_no_stderr_starts_it_too(monkeypatch):
    def closed(descriptor: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    monkeypatch.setattr(sys, "stderr", None)
    with native_stderr_hidden(hidden=True):
        done = True
    assert done
