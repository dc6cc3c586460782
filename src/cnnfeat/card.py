"""The card beside a model: `model.json`, which says how the model was made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from cnnfeat.brightness import Brightness
from cnnfeat.documents import Count, Duration, Length, Name, Share, read_document, take_up
from cnnfeat.errors import NetworkError
from cnnfeat.files import write_json
from cnnfeat.parts import KeptDivision
from cnnfeat.records import Json
from cnnfeat.regular import open_regular

CARD_FORMAT = "cnnfeat-model"
CARD_VERSION = 1
_WAY_ON = "delete it to go on"


class Epoch(TypedDict, total=False):
    """How one epoch went, as far as that is known."""

    epoch: Length  # counted from 1
    loss: float
    accuracy: Share
    val_loss: float
    val_accuracy: Share
    learning_rate: float


class Training(TypedDict):
    """How the training of one network went."""

    seed: Count
    history: tuple[Epoch, ...]
    best_epoch: Length | None  # counted from 1; None: none was picked, and the last one is kept
    validation_accuracy: Share | None  # of that epoch
    test_accuracy: Share | None
    elapsed_s: Duration


_DRAWN = {"epoch", "loss", "accuracy"}
_VALIDATED = {"val_loss", "val_accuracy"}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What `model.json` says. Accuracies are fractions, 0 to 1."""

    cnnfeat: Name  # versions
    tensorflow: Name
    keras: Name
    created: Name  # UTC, ISO 8601
    config: Mapping[str, Mapping[str, Json]]  # {"data": ..., "network": ..., "train": ...}
    source: Mapping[str, Name]  # name, kind, fingerprint, fingerprint_method
    classes: tuple[Name, ...]
    image_shape: tuple[Length, Length, Length]  # (height, width, channels)
    history: tuple[Epoch, ...]  # of a committee none: its members have theirs
    best_epoch: Length | None  # counted from 1; None: none was picked
    validation_accuracy: Share | None  # None: no rows were held back
    test_accuracy: Share | None
    n_train: Count
    n_validation: Count
    n_test: Count
    elapsed_s: Duration
    model_sha256: Name
    # How the source was divided: a `parts.DivisionRule`, and the digest of what came of it; None
    # in cards of versions that kept nothing of it.
    division: Mapping[str, Json] | None = None
    # Of the pixels trained on, as the network got them; None: unknown.
    pixels: Brightness | None = None
    # Networks of a committee, whose answers' mean the accuracies above are of; else none.
    members: tuple[Training, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """How the training of each network in it went: of one that is alone, its own."""
        seed = self.config.get("train", {}).get("seed")
        alone = Training(
            seed=seed if isinstance(seed, int) else 0,
            history=self.history,
            best_epoch=self.best_epoch,
            validation_accuracy=self.validation_accuracy,
            test_accuracy=self.test_accuracy,
            elapsed_s=self.elapsed_s,
        )
        return self.members or (alone,)

    @property
    def epochs(self) -> int:
        """How many were trained, of all networks in it."""
        return sum(len(one["history"]) for one in self.trainings)

    @property
    def kept(self) -> str:
        """Which epochs' weights were kept, in words."""
        trainings = self.trainings
        if len(trainings) == 1:
            return f"after epoch {_kept(trainings[0])} of {self.epochs}"
        epochs = [f"{_kept(one)} of {len(one['history'])}" for one in trainings]
        return f"the mean of {len(trainings)} networks, after epochs {', '.join(epochs)}"

    @property
    def curves(self) -> tuple[Training, ...]:
        """The trainings, where losses and accuracies of all their epochs are known; else none."""
        trainings = self.trainings
        return trainings if all(_is_drawn(one["history"]) for one in trainings) else ()

    @property
    def source_name(self) -> str:
        """What it was trained on."""
        return self.source.get("name", "unknown")

    @property
    def validation_words(self) -> str:
        """The accuracy on what was held back: "98.50% of 6,000 images"."""
        if self.validation_accuracy is None:
            return "none: all were trained on"
        return f"{self.validation_accuracy:.2%} of {self.n_validation:,} images"

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        test = "none" if self.test_accuracy is None else f"{self.test_accuracy:.2%}"
        return (
            f"ModelCard of a network for {len(self.classes)} classes of images of "
            f"{height}×{width}×{channels}\n"
            f"  trained on  {self.source_name}: {self.n_train:,} images, {self.elapsed_s:.0f} s\n"
            f"  validation  {self.validation_words}, {self.kept}\n"
            f"  test        {test} of {self.n_test:,} images"
        )

    def to_json(self) -> dict[str, Json]:
        """Make the document."""
        fields = {name: getattr(self, name) for name in ModelCard.__slots__}
        fields["pixels"] = None if self.pixels is None else self.pixels.to_json()
        return {"format": CARD_FORMAT, "format_version": CARD_VERSION, **fields}

    @classmethod
    def from_json(cls, document: Mapping[str, object], *, path: Path) -> ModelCard:
        """Check and take up a document.

        Parameters
        ----------
        document : mapping
            What JSON holds.
        path : Path
            Where it stood, for messages.

        Raises
        ------
        NetworkError
            If it is of another version, or a field is missing or of another type.
        """
        if document.get("format_version") != CARD_VERSION:
            raise NetworkError(
                f"{path} has format version {document.get('format_version')!r}; "
                f"this version of cnnfeat reads {CARD_VERSION}"
            )
        try:
            card = take_up(cls, document)
            if card.division is not None:
                take_up(KeptDivision, card.division, at="division")
        except ValueError as error:
            raise NetworkError(f"{path}: damaged: {error}", hint=_WAY_ON) from error
        return card


def _kept(training: Training) -> int:
    """The epoch whose weights are kept."""
    return training["best_epoch"] or len(training["history"])


def _is_drawn(history: Sequence[Epoch]) -> bool:
    validated = [one.keys() >= _VALIDATED for one in history]
    return all(one.keys() >= _DRAWN for one in history) and len(set(validated)) == 1


def card_path(model: Path) -> Path:
    """Where the card of a model file lies."""
    return model.with_suffix(".json")


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card, whole or not at all."""
    write_json(path, card.to_json())


def read_card(model: Path, *, sha256: str | None = None) -> ModelCard | None:
    """Read the card beside a model file; None where there is none, or it is of another file.

    Parameters
    ----------
    model : Path
        The model file.
    sha256 : str, optional
        The model file's digest; a card that names another one was not made with this file.

    Raises
    ------
    NetworkError
        If the file is a card, but can't be read.
    """
    path = card_path(model)
    try:
        document = read_document(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NetworkError(f"{path} can't be read: {error}", hint=_WAY_ON) from error
    if document.get("format") != CARD_FORMAT:
        return None
    of_another = sha256 is not None and document.get("model_sha256") != sha256
    if of_another and document.get("format_version") == CARD_VERSION:
        return None
    return ModelCard.from_json(document, path=path)


def file_sha256(path: Path) -> str:
    """Digest a file, hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
