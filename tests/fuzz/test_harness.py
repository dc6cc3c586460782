"""The harness sees what it is there for."""

from __future__ import annotations

import pytest

CASES = {
    "def main(w): raise SystemExit(3)": "exit code 3 without a word",
    "def main(w): print('error: no'); raise SystemExit(3)": "",
    "def main(w): 1 / 0": "ZeroDivisionError: division by zero at",
    "def main(w): print('error: {{node x}}'); raise SystemExit(4)": "it said '{{node x}}'",
    "def main(w): import warnings; warnings.warn('no'); raise SystemExit(0)": "it said ",
    "def main(w): open('.x', 'w').close(); raise SystemExit(0)": "hidden files were left behind",
    "def main(w): raise SystemExit(1)": "exit code 1",
    "def main(w): import os; os.abort()": "the process ended with -6",
    "def main(w): import os; os.kill(os.getpid(), 9)": "the process ended with -9",
    "def main(w):\n import time\n time.sleep(99)": "no end in 0 s",
    "def main(w):\n x = bytearray(1 << 28)\n raise SystemExit(0)": "it took over 200 MB more",
}


@pytest.mark.parametrize("code", CASES, ids=range(len(CASES)))
def test_what_must_not_be_is_found(fuzz, tmp_path, monkeypatch, code):
    package = tmp_path / "own" / "cnnfeat"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    module = type(fuzz).complaint.__globals__
    monkeypatch.setitem(module, "DEADLINE_S", 0.3 if "sleep" in code else 30)
    if CASES[code]:
        with pytest.raises(AssertionError, match="1 kinds") as failed:
            fuzz(lambda random, folder: [["x"]], 2, grown_mb=200)
        assert f"--- {CASES[code]}" in str(failed.value)
    else:
        assert fuzz(lambda random, folder: [["x"]], 2, grown_mb=200) == {3: 2}
    fuzz._worker.close()
