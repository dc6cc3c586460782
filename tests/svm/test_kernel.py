"""Kernel machines, and what scikit-learn-intelex learned carried over to scikit-learn."""

from __future__ import annotations

import importlib.machinery
import logging
import subprocess
import sys
import types

import numpy as np
import pytest
import skops.io
from sklearn.kernel_approximation import Nystroem
from sklearn.svm import SVC

from cnnfeat.options import SvmOptions
from cnnfeat.svm import kernel
from cnnfeat.svm.kernel import accelerated_svc
from cnnfeat.svm.trials import apart, in_turn


@pytest.fixture
def wide(pixels) -> tuple[np.ndarray, np.ndarray]:
    """As many features as make another implementation worth while."""
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    return np.hstack([X] * 8) / 16, y


def _install(monkeypatch: pytest.MonkeyPatch, svc: type) -> None:
    """Stand a module in for sklearnex."""
    for name, content in {"sklearnex": {}, "sklearnex.svm": {"SVC": svc}}.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


class Faster(SVC):
    """Learns the same, and keeps it in other types."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Faster:
        super().fit(X, y)
        self._plain = SVC(**self.get_params()).fit(X, y)
        self.support_ = self.support_.astype(np.int64)
        self.support_vectors_ = np.asfortranarray(self.support_vectors_)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self._plain.predict(X)


class Wrong(SVC):
    """Predicts something else than what it learned."""

    def predict(self, X: np.ndarray) -> np.ndarray:
        return super().predict(X)[::-1]


def test_what_was_learned_is_copied_into_scikit_learns_own(monkeypatch, wide):
    _install(monkeypatch, Faster)
    plain = SVC(C=10, gamma=0.01).fit(*wide)
    machine = accelerated_svc(SVC(C=10, gamma=0.01), *wide)
    assert type(machine) is SVC
    np.testing.assert_array_equal(machine.predict(wide[0]), plain.predict(wide[0]))
    loaded = skops.io.loads(skops.io.dumps(machine))
    np.testing.assert_array_equal(loaded.predict(wide[0]), plain.predict(wide[0]))


def test_a_copy_that_differs_is_not_used(monkeypatch, wide, caplog):
    _install(monkeypatch, Wrong)
    with caplog.at_level(logging.WARNING, "cnnfeat"):
        assert accelerated_svc(SVC(C=10, gamma=0.01), *wide) is None
    assert "differs from its copy: fitting again without" in caplog.text
    machine = kernel.fit_svc(*wide, kernel="rbf", C=10, gamma=0.01)
    np.testing.assert_array_equal(
        machine.predict(wide[0]), SVC(C=10, gamma=0.01).fit(*wide).predict(wide[0])
    )


def test_narrow_features_and_a_missing_package_are_left_to_scikit_learn(monkeypatch, wide):
    _install(monkeypatch, Faster)
    assert accelerated_svc(SVC(), wide[0][:, :64], wide[1]) is None
    monkeypatch.setattr(kernel, "find_spec", lambda name: None)
    assert accelerated_svc(SVC(), *wide) is None


def test_the_real_package_predicts_the_same(wide):
    pytest.importorskip("sklearnex")
    plain = SVC(C=10, gamma=0.01).fit(*wide)
    machine = accelerated_svc(SVC(C=10, gamma=0.01), *wide)
    assert machine is not None
    np.testing.assert_allclose(
        machine.decision_function(wide[0]), plain.decision_function(wide[0]), atol=1e-2
    )


def test_polynomial_and_gamma_equal_scikit_learn(pixels):
    X, y = pixels[0].reshape(-1, 64)[:300], pixels[1][:300]
    gamma = kernel.scale_gamma(X)
    assert gamma == pytest.approx(1 / (64 * X.astype(float).var()))
    ours = kernel.fit_svc(X, y, kernel="poly", C=2.0, gamma=gamma)
    theirs = SVC(kernel="poly", degree=3, coef0=1.0, C=2.0, gamma="scale").fit(X, y)
    np.testing.assert_array_equal(kernel.predict_svc(ours, X), theirs.predict(X))


def test_selection_tries_every_pair_on_a_stated_number_of_rows(pixels, monkeypatch):
    monkeypatch.setattr(kernel, "SELECTION_ROWS", 200)
    X, y = pixels[0].reshape(-1, 64)[:600], pixels[1][:600]
    plan = in_turn(y, 3, seed=0, rows="rows")
    options = SvmOptions(kernel="rbf", grid=(1.0, 10.0))
    tried = kernel.select_kernel(X, y, plan, options)
    found = tried.selection
    assert np.mean(tried.predicted == y[tried.rows]) == pytest.approx(found.chosen.mean, abs=0.01)
    assert len(found.trials) == 6
    assert 190 <= found.n_samples <= 210
    assert {trial.C for trial in found.trials} == {1.0, 10.0}
    assert found.best.mean > 0.85


def test_rows_apart_are_predicted_by_a_machine_of_all_others(pixels):
    X, y = pixels[0].reshape(-1, 64)[:400], pixels[1][:400]
    plan = apart(np.arange(400) >= 300, y, seed=0, rows="rows")
    tried = kernel.select_kernel(X, y, plan, SvmOptions(kernel="rbf", C=2.0, gamma=0.001))
    theirs = SVC(C=2.0, gamma=0.001).fit(X[:300], y[:300]).predict(X[300:])
    assert tried.rows.tolist() == list(range(300, 400))
    np.testing.assert_array_equal(tried.predicted, theirs)
    assert tried.selection.chosen.scores == (np.mean(theirs == y[300:]),)


def test_a_large_exact_machine_says_its_cost(caplog):
    with caplog.at_level(logging.WARNING, "cnnfeat"):
        kernel.warn_of_cost(20_000, 100, kernel="rbf")
        assert not caplog.text
        kernel.warn_of_cost(60_000, 1_764, kernel="rbf")
    assert "rbf on 60,000 rows of 1,764 features takes about" in caplog.text
    assert "--kernel nystroem" in caplog.text


def test_nystroem_equals_scikit_learn(pixels):
    X = pixels[0].reshape(-1, 64)[:400] / 16
    ours = kernel.fit_nystroem(X, gamma=0.1, n_components=50, seed=7)
    theirs = Nystroem(gamma=0.1, n_components=50, random_state=7).fit(X)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X))


INTERRUPTED = """
import os, signal, threading
from cnnfeat.svm import kernel

end = threading.Event()

def endless():
    os.kill(os.getpid(), signal.SIGINT)
    end.wait()

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    kernel.interruptible(endless)
except KeyboardInterrupt:
    print("interrupted")
end.set()
"""


def test_waiting_can_be_interrupted_and_errors_come_through():
    """In a process of its own: libraries of other tests hear signals too."""
    said = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "interrupted\n"), said.stderr

    def broken() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        kernel.interruptible(broken)
    assert kernel.interruptible(lambda: 7) == 7


@pytest.mark.parametrize("name", ["rbf", "poly"])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_decisions_by_matrix_products_are_libsvms(monkeypatch, pixels, name, n_classes):
    X, y = pixels[0].reshape(-1, 64) / 16, pixels[1]
    kept = y < n_classes
    machine = kernel.fit_svc(X[kept][:400], y[kept][:400], kernel=name, C=10.0, gamma=0.02)
    monkeypatch.setattr(kernel, "KERNEL_VALUES", 10_000)  # several blocks
    theirs = machine.decision_function(X[kept])
    np.testing.assert_allclose(kernel.decide_svc(machine, X[kept]), theirs, atol=1e-9)
    np.testing.assert_array_equal(kernel.predict_svc(machine, X[kept]), machine.predict(X[kept]))
