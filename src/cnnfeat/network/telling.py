"""What TensorFlow and Keras say is wrong, in one line, without traces and colours."""

from __future__ import annotations

import re

_NOISE = (
    "Graph execution error", "Detected at node", "<stack traces", "[[", "(", "in user code:",
    "File ", "Exception encountered when calling", "Arguments received by", "Original stack trace",
    "Traceback", "During handling of", "Call arguments received",
)  # fmt: skip
_FIRST = re.compile(r"^(?:\{\{[^}]*\}\}\s*)+")  # what the graph calls the place, before the words
_LAST = re.compile(r"[ :,]*(?:for|in|at|by)?[ ']*\{\{.*")  # the same behind them
_DEVICE = re.compile(r" on /job:\S+(?: by allocator \w+)?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAISED = re.compile(r"(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Warning): (.+)")
_OF_SIZE = re.compile(
    r"shape|dimension|[Ss]ize|[Ii]ncompatible|out of bounds|must be at least|negative",
    re.IGNORECASE,
)
_OF_AN_OBJECT = "Exception encountered: "  # what Keras ends with, after all it was to build
_LONGEST = 300


def told(error: BaseException) -> str:
    """Say what is wrong in one line.

    Parameters
    ----------
    error : Exception
        Of TensorFlow or Keras.
    """
    text = _DEVICE.sub("", _COLOUR.sub("", str(error))).strip()
    text = text.rpartition(_OF_AN_OBJECT)[2]
    lines = [_LAST.sub("", _FIRST.sub("", line.strip(), count=1)) for line in text.splitlines()]
    traced = any(line.startswith("in user code:") for line in lines)
    if traced:  # lines of code follow; what was raised stands at the end
        raised = [place for place, line in enumerate(lines) if _RAISED.fullmatch(line)]
        lines = lines[raised[0] :] if raised else lines[-1:]
    telling = [line for line in lines if line and not line.startswith(_NOISE)]
    telling = [found[1] if (found := _RAISED.fullmatch(line)) else line for line in telling]
    telling = [line for line in telling if not line.startswith(_NOISE)]
    return (telling[0] if telling else type(error).__name__)[:_LONGEST]


def of_size(reason: str) -> bool:
    """Whether images of another size may be the way out."""
    return bool(_OF_SIZE.search(reason))
