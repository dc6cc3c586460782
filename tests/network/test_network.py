"""The front door: what it costs to come in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cnnfeat.network
from cnnfeat.network import load_network, open_network
from cnnfeat.options import ReadOptions


@pytest.mark.parametrize("module", ["network", "network.lookup", "card", "options", "result"])
def test_what_needs_no_tensorflow_loads_none(module: str) -> None:
    code = (
        f"import sys, cnnfeat.{module} as loaded;"
        "assert loaded.__name__ == sys.argv[1];"
        "heavy = {'tensorflow', 'keras', 'tf_keras', 'h5py'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, f"cnnfeat.{module}"], check=True)


def test_the_lookup_works_without_tensorflow() -> None:
    code = (
        "import sys; from cnnfeat.network.lookup import Names, find;"
        "assert find(Names(['a']), 'a'); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_front_door_has_these_names() -> None:
    assert cnnfeat.network.__all__ == ["Network", "load_network", "open_network"]
    for name in cnnfeat.network.__all__:
        assert getattr(cnnfeat.network, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'find_network'"):
        _ = cnnfeat.network.find_network


def test_a_network_keeps_how_it_was_read(seed_file: Path) -> None:
    options = ReadOptions(input="image", feed=(("spare", 1.0),))
    assert open_network(str(seed_file), options).read_options == options
    network = load_network(str(seed_file), input_name="image", feeds={"spare": 1.0})
    assert network.read_options == options
    assert load_network(str(seed_file)).read_options == ReadOptions()
