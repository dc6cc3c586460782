"""Starting TensorFlow, whoever asks first: the command line or a program that imports cnnfeat."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

from cnnfeat.errors import CnnfeatError, NetworkError
from cnnfeat.options import ArchitectureOptions, RunOptions

# What holds where the environment says nothing else.
_ENVIRONMENT = {
    # Convolutions by oneDNN: TensorFlow takes it by itself on processors with AVX-512 alone, and
    # with AVX2 it is twice as fast as Eigen.
    "TF_ENABLE_ONEDNN_OPTS": "1",
}


PACKAGES = ("tensorflow", "keras")  # what networks need, and nothing else does
HALVES = 2  # of a batch that is trained on, computed side by side
GHOST_ROWS = 64  # of a batch, where its halves are normed each by itself


def calls_of_training(config: RunOptions) -> int:
    """How many calls of a network its training has under way at a time: the halves of a batch."""
    return HALVES if config.train.batch_size >= least_halved(config.network) else 1


def least_halved(network: ArchitectureOptions) -> int:
    """How many images a batch has at least whose halves are computed side by side.

    With batch norm each half is normed by its own mean and variance, which no less than 32 images
    give. Such "ghost" batches generalise no worse than whole ones (E. Hoffer, I. Hubara and
    D. Soudry, "Train longer, generalize better", NeurIPS 2017).
    """
    normed = [layer.batch_norm for layer in network.conv]
    normed += [layer.batch_norm for layer in network.dense]
    return GHOST_ROWS if any(normed) else HALVES


def load_tensorflow(*, device: str = "auto") -> None:
    """Start TensorFlow if no one has imported it; if someone has, it is set up as they want it."""
    if "tensorflow" not in sys.modules:
        quiet = not logging.getLogger("cnnfeat").isEnabledFor(logging.DEBUG)
        start_tensorflow(device=device, quiet=quiet)


def start_tensorflow(*, n_calls: int = 1, device: str = "auto", quiet: bool = True) -> None:
    """Import TensorFlow and find its devices.

    Its C++ half logs to the process's stderr before any of its own settings takes effect.

    Parameters
    ----------
    n_calls : int
        How many calls of a network will be under way at a time; see `runtime.start`.
    device : str
        What it computes on; see `devices.choose_device`.
    quiet : bool
        Whether what it writes meanwhile is hidden.

    Raises
    ------
    NetworkError
        If it isn't installed: what computes nothing by a network goes without it.
    """
    # What goes wrong it raises too, and that is told in our words.
    chatter = {"TF_CPP_MIN_LOG_LEVEL": "3" if quiet else "2"}
    for name, value in {**_ENVIRONMENT, **chatter}.items():
        os.environ.setdefault(name, value)
    with native_stderr_hidden(hidden=quiet):
        try:
            from cnnfeat.network import runtime
        except ModuleNotFoundError as error:
            if error.name not in PACKAGES:
                raise
            raise NetworkError(
                f"this needs {error.name}, which is not installed here",
                hint="pip install cnnfeat brings TensorFlow and Keras; a light installation has "
                "svm, predict on features, info, verify and export",
            ) from error
        runtime.start(n_calls=n_calls, device=device)


@contextlib.contextmanager
def native_stderr_hidden(*, hidden: bool) -> Iterator[None]:
    """Send file descriptor 2 to a temporary file; show what came there if the block fails."""
    kept = _copy_of_stderr() if hidden else None
    if kept is None:
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except (KeyboardInterrupt, CnnfeatError):
            raise
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _copy_of_stderr() -> int | None:
    """A second descriptor of stderr; None where a program has closed it."""
    try:
        if sys.stderr is not None:  # as it is in programs with no console
            sys.stderr.flush()
        return os.dup(2)
    except (OSError, ValueError):
        return None
