"""Support vector machines on features: solver, choice of C, evaluation, saving."""

from cnnfeat.result import SvmResult
from cnnfeat.svm.linear import LinearSVM
from cnnfeat.svm.persistence import SavedSVM, load_svm
from cnnfeat.svm.stage import OUTPUTS, svm_stage

__all__ = [
    "OUTPUTS",
    "LinearSVM",
    "SavedSVM",
    "SvmResult",
    "load_svm",
    "svm_stage",
]
