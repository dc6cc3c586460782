"""Starting TensorFlow without its chatter."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from cnnfeat.cli.settings import Settings
from cnnfeat.errors import Interrupted


def start_tensorflow(settings: Settings, *, n_calls: int = 1) -> None:
    """Import TensorFlow and find its devices; what it writes meanwhile is shown with -v alone.

    Its C++ half logs to the process's stderr before any of its own settings takes effect. `n_calls`
    of a network will be under way at a time.
    """
    with _native_stderr_hidden(hidden=settings.verbosity <= 0):
        from cnnfeat.network import runtime

        runtime.start(n_calls=n_calls)


@contextmanager
def _native_stderr_hidden(*, hidden: bool) -> Iterator[None]:
    """Send file descriptor 2 to a temporary file; show what came there if the block fails."""
    if not hidden:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except (KeyboardInterrupt, Interrupted):
            raise
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
