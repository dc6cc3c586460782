"""The front door: what it costs to come in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cnnfeat.network


@pytest.mark.parametrize("module", ["network", "network.lookup", "card", "options"])
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
    assert cnnfeat.network.__all__ == ["Network", "load_network"]
    for name in cnnfeat.network.__all__:
        assert getattr(cnnfeat.network, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'open_network'"):
        _ = cnnfeat.network.open_network
