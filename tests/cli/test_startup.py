"""What TensorFlow writes while it starts."""

from __future__ import annotations

import os

import pytest

from cnnfeat.cli.session import _native_stderr_hidden
from cnnfeat.errors import Interrupted


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM")])
def test_an_interrupt_shows_no_chatter(capfd, stop):
    with pytest.raises(type(stop)), _native_stderr_hidden(hidden=True):
        os.write(2, b"chatter")
        raise stop
    assert capfd.readouterr().err == ""


def test_a_failure_shows_what_was_written_meanwhile(capfd):
    with pytest.raises(ImportError), _native_stderr_hidden(hidden=True):
        os.write(2, b"no such instruction")
        raise ImportError("tensorflow")
    assert capfd.readouterr().err == "no such instruction"
