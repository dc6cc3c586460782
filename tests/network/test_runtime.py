"""How TensorFlow is started."""

from __future__ import annotations

import pytest
import tensorflow as tf

from cnnfeat.network import runtime


@pytest.mark.parametrize(
    ("n_calls", "environment", "expected"),
    [(2, {}, [1]), (3, {}, [1]), (1, {}, []), (2, {"TF_NUM_INTRAOP_THREADS": "4"}, [])],
)
def test_as_many_calls_as_cores_keep_to_one_thread_each(
    n_calls, environment, expected, monkeypatch
):
    asked: list[int] = []
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", asked.append)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime.start(n_calls=n_calls)
    assert asked == expected


def test_it_is_too_late_once_tensorflow_runs(monkeypatch):
    tf.config.list_logical_devices()
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    before = tf.config.threading.get_intra_op_parallelism_threads()
    runtime.start(n_calls=2)
    assert tf.config.threading.get_intra_op_parallelism_threads() == before
