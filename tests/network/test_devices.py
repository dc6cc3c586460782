"""What TensorFlow computes on; no GPU is there, so its device calls are replaced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tensorflow as tf
from tensorflow.config import PhysicalDevice

from cnnfeat.errors import NetworkError
from cnnfeat.network import runtime
from cnnfeat.network.devices import choose_device


class Machine:
    """TensorFlow's device calls, of a machine with some GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, n_gpus: int) -> None:
        self.gpus = [PhysicalDevice(f"/physical_device:GPU:{n}", "GPU") for n in range(n_gpus)]
        self.visible, self.growing, self.started = list(self.gpus), [], False
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(self.gpus))
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: list(self.visible))
        monkeypatch.setattr(tf.config, "set_visible_devices", self.show)
        monkeypatch.setattr(tf.config, "list_logical_devices", self.start)
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", self.grow)

    def show(self, devices: Sequence[PhysicalDevice], kind: str) -> None:
        assert kind == "GPU"
        if self.started and list(devices) != self.visible:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = list(devices)

    def grow(self, device: PhysicalDevice, enable: bool) -> None:
        assert enable
        if self.started:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growing.append(device)

    def start(self) -> None:
        self.started = True


@pytest.mark.parametrize(
    ("device", "n_gpus", "came_to", "seen"),
    [
        ("auto", 0, "cpu", []),
        ("auto", 1, "gpu:0", [0]),
        ("auto", 2, "gpu:0", [0, 1]),
        ("cpu", 0, "cpu", []),
        ("cpu", 2, "cpu", []),
        ("gpu:0", 1, "gpu:0", [0]),
        ("gpu:1", 2, "gpu:1", [1]),
    ],
)
def test_what_is_not_asked_for_is_hidden_and_memory_grows(
    monkeypatch, device, n_gpus, came_to, seen
):
    machine = Machine(monkeypatch, n_gpus=n_gpus)
    runtime.start(device=device)
    wanted = [machine.gpus[n] for n in seen]
    assert machine.started
    assert machine.visible == machine.growing == wanted
    assert choose_device(device) == choose_device() == came_to  # as probes ask again


@pytest.mark.parametrize(
    ("device", "n_gpus", "there"),
    [("gpu:0", 0, "cpu"), ("gpu:2", 2, "cpu, gpu:0, gpu:1")],
)
def test_a_gpu_that_is_not_there_is_told_with_what_is(monkeypatch, device, n_gpus, there):
    machine = Machine(monkeypatch, n_gpus=n_gpus)
    with pytest.raises(NetworkError, match=f"{device}: .* sees no such GPU; there is: {there}\n"):
        runtime.start(device=device)
    assert not machine.started


@pytest.mark.parametrize(("device", "number"), [("cpu", "-1"), ("gpu:1", "1")])
def test_it_is_too_late_once_tensorflow_computes(monkeypatch, device, number):
    Machine(monkeypatch, n_gpus=2)
    runtime.start()
    with pytest.raises(NetworkError, match=f"{device}: .* computes on gpu:0 .* already") as told:
        choose_device(device)
    assert f"CUDA_VISIBLE_DEVICES={number} " in told.value.hint


def test_what_a_program_has_hidden_stays_hidden(monkeypatch):
    machine = Machine(monkeypatch, n_gpus=3)
    machine.visible = machine.gpus[2:]
    assert choose_device() == "gpu:2"
    machine.visible = []
    assert choose_device() == "cpu"
    assert machine.growing == machine.gpus[2:]


def test_other_words_are_no_device():
    with pytest.raises(NetworkError, match="must be auto, cpu or gpu:N, not 'tpu'"):
        choose_device("tpu")
