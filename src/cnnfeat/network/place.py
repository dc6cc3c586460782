"""Whether there is a network where one is named, found out before TensorFlow starts."""

from __future__ import annotations

from pathlib import Path

from cnnfeat.errors import MissingInputError

KNOWN = (
    "a .keras file, a whole-model .h5, a SavedModel folder, a frozen .pb or .pbtxt, "
    "a TensorFlow 1 checkpoint, a .tflite file, a layers model of TensorFlow.js, or keras:NAME"
)


def checkpoint_files(prefix: Path) -> list[Path]:
    """Files by which what is typed is known for what a checkpoint's files begin with."""
    return [prefix.with_name(prefix.name + end) for end in (".meta", ".index")]


def missing_model(path: Path) -> MissingInputError:
    """Make the error for a path where nothing lies."""
    return MissingInputError(f"there is no model {path}", hint=f"models are {KNOWN}")


def check_there(model: str) -> None:
    """Refuse a path where nothing lies; a name of Keras' own networks is none.

    Raises
    ------
    MissingInputError
        If there is no file, no folder and no checkpoint of that name.
    """
    from cnnfeat.address import APPLICATION, is_address

    if model.startswith(APPLICATION) or is_address(model):
        return
    path = Path(model)
    if not any(one.exists() for one in (path, *checkpoint_files(path))):
        raise missing_model(path)
