"""A network that doesn't end: how long it is waited for, and how the command ends then."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import click
import pytest

from cnnfeat.cli.patience import waiting
from cnnfeat.errors import UnendingError
from cnnfeat.watch import watched

COMMAND = click.Context(click.Command("extract"), info_name="extract")


def timers() -> list[float]:
    """Seconds of each step that is timed now."""
    return [one.interval for one in threading.enumerate() if isinstance(one, threading.Timer)]


def test_a_step_that_takes_too_long_ends_where_python_is():
    with pytest.raises(UnendingError) as caught, waiting(0.05, COMMAND), watched("opening a.pb"):
        while True:
            time.sleep(0.01)
    assert caught.value.message == "opening a.pb had no end after 0.05 s"
    assert "--timeout" in caught.value.hint


def test_what_was_done_before_is_said():
    with pytest.raises(UnendingError) as caught, waiting(0.3, COMMAND):
        with watched("opening a.pb"):
            pass
        with watched("computing 'out'"):
            while True:
                time.sleep(0.01)
    assert caught.value.message == (
        "computing 'out' had no end after 0.3 s; opening a.pb took 0.0 s"
    )


def test_only_steps_are_timed():
    with waiting(0.05, COMMAND):
        with watched("opening a.pb"):
            assert len(timers()) == 1
        time.sleep(0.2)
        assert timers() == []


def test_a_step_may_take_what_it_is_known_to_need():
    with waiting(0.01, COMMAND), watched("computing 'out'", extra_s=1000.0):
        time.sleep(0.2)
        assert timers() == [50_000.01]


def test_with_a_timeout_of_0_nothing_is_timed():
    with waiting(0.0, COMMAND), watched("opening a.pb"):
        time.sleep(0.1)
        assert timers() == []


def test_nobody_watches_a_program():
    with watched("opening a.pb"):
        assert timers() == []


def test_what_does_not_end_in_order_is_ended():
    code = (
        "import threading, click\n"
        "from cnnfeat.cli import patience\n"
        "from cnnfeat.watch import watched\n"
        "patience.GRACE_S = 0.1\n"
        "stuck = threading.Event()\n"
        "command = click.Context(click.Command('extract'), info_name='extract')\n"
        "with patience.waiting(0.1, command):\n"
        "    try:\n"
        "        with watched('opening a.pb'): stuck.wait()\n"
        "    finally:\n"
        "        stuck.wait()\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr == (
        "error: opening a.pb had no end after 0.1 s\n"
        "hint: --timeout SECONDS waits longer, --timeout 0 without end\n"
    )


ENDLESS = """
import sys
import tensorflow as tf
graph = tf.Graph()
with graph.as_default():
    images = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 1], name="x")
    more = lambda i, y: (i * 1.0, y + 1)
    loop = tf.while_loop(lambda i, _: i < 1.0, more, [tf.constant(0.0), images])
    tf.identity(loop[1], name="out")
open(sys.argv[1], "wb").write(graph.as_graph_def().SerializeToString())
"""


@pytest.mark.slow
def test_a_loop_without_end_ends_the_command(tmp_path):
    model, out = tmp_path / "endless.pb", tmp_path / "features.h5"
    subprocess.run([sys.executable, "-c", ENDLESS, model], check=True, capture_output=True)
    words = [sys.executable, "-m", "cnnfeat", "extract", "--timeout", "1", "--model", model]
    words += ["--data", "digits", "--layer", "out", "-o", out]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "endless.pb had no end after 1 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["endless.pb"]
