"""What `cnnfeat predict` prints: a table, CSV or JSON, and how many were right, split by split."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cnnfeat.cli import console

if TYPE_CHECKING:
    from cnnfeat.prediction import Prediction
    from cnnfeat.records import Json

_log = logging.getLogger("cnnfeat")
_FIELDS = ("id", "split", "predicted", "margin", "label")
_MACHINE = {
    "fitted": "the machine was fitted to them",
    "validation": "the machine's settings were chosen on them",
    "unseen": "the machine was not fitted to them",
    None: "what the machine was fitted to isn't known",
}
_NETWORK = {
    "fitted": "the network was fitted to them",
    "validation": "the network's best epoch was picked by them",
    "unseen": "the network was not fitted to them",
    None: "what the network was fitted to isn't known",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is printed of each prediction."""

    classes: Sequence[str]
    calibrated: bool = False  # the machine gives probabilities
    top: int = 0  # so many of the best classes
    scores: bool = False  # the values of all classes

    def best(self, item: Prediction) -> list[tuple[str, float, float | None]]:
        """The best classes in order, each with its decision value and probability."""
        order = sorted(range(len(self.classes)), key=lambda k: -item.scores[k])[: self.top]
        return [
            (self.classes[k], item.scores[k], item.probabilities[k] if self.calibrated else None)
            for k in order
        ]


@dataclass(slots=True)
class Tally:
    """How many were right, by input, split and what is known to have been fitted to them."""

    counts: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)

    def counting(self, predictions: Iterable[Prediction], *, source: str) -> Iterator[Prediction]:
        """Hand predictions on, and count those whose true class is known."""
        for item in predictions:
            if item.label is not None:
                key = source, item.split, _seen(item.machine_part, item.network_part)
                right, known = self.counts.get(key, (0, 0))
                self.counts[key] = right + (item.label == item.predicted), known + 1
            yield item

    def say(self) -> None:
        """Write a line for each, never one number over several."""
        several = len({source for source, _, _ in self.counts}) > 1
        for (source, split, seen), (right, known) in self.counts.items():
            _log.info(
                "%s: %s of %s right (%.2f%%)%s",
                f"{source}, {split}" if several else split,
                f"{right:,}",
                f"{known:,}",
                100 * right / known,
                seen and f"; {seen}",
            )


def _seen(machine: str | None, network: str | None) -> str:
    """Say what was fitted to rows; nothing where nothing is known."""
    if machine is None and network is None:
        return ""
    if machine == network == "unseen":
        return "neither the machine nor the network was fitted to them"
    return f"{_MACHINE[machine]}; {_NETWORK[network]}"


def write_table(predictions: Iterable[Prediction], wanted: Wanted) -> None:
    """Write aligned lines as they come: there may be more than fit in memory."""
    listed = (
        Wanted(wanted.classes, wanted.calibrated, len(wanted.classes)) if wanted.scores else wanted
    )
    for place, item in enumerate(predictions):
        if not place:
            chance = f" {'probability':>11}" if wanted.calibrated else ""
            console.show(f"{'predicted':<16} {'margin':>8}{chance}  {'label':<16} id")
        chance = f" {item.probability:>11.2%}" if item.probability is not None else ""
        label = "" if item.label is None else item.label
        console.show(f"{item.predicted:<16} {item.margin:>8.3f}{chance}  {label:<16} {item.id}")
        if listed.top:
            for rank, (name, score, probability) in enumerate(listed.best(item), start=1):
                chance = "" if probability is None else f" {probability:>11.2%}"
                console.show(f"{rank:>3}. {name:<11} {score:>8.3f}{chance}")


def write_csv(predictions: Iterable[Prediction], wanted: Wanted) -> None:
    """Write a line for each, once there is a first one: what fails before leaves no header."""
    from cnnfeat.files import csv_lines

    lines = csv_lines(_cells(item, wanted) for item in predictions)
    first = list(itertools.islice(lines, 1))
    sys.stdout.writelines([*csv_lines([_header(wanted)]), *first])
    sys.stdout.writelines(lines)


def _header(wanted: Wanted) -> list[str]:
    names = ["id", "split", "label", "predicted", "margin"]
    chance = ["probability"] if wanted.calibrated else []
    names += chance
    for rank in range(1, min(wanted.top, len(wanted.classes)) + 1):
        names += [f"top{rank}", *(f"top{rank}_{value}" for value in ["score", *chance])]
    if wanted.scores:
        names += [f"{value}_{name}" for value in ["score", *chance] for name in wanted.classes]
    return names


def _cells(item: Prediction, wanted: Wanted) -> list[str | None]:
    cells = [item.id, item.split, item.label, item.predicted, f"{item.margin:.6g}"]
    if wanted.calibrated:
        cells.append(f"{item.probability:.6g}")
    if wanted.top:
        for name, score, probability in wanted.best(item):
            cells += [name, f"{score:.6g}"]
            cells += [] if probability is None else [f"{probability:.6g}"]
    if wanted.scores:
        cells += [f"{value:.6g}" for value in (*item.scores, *item.probabilities)]
    return cells


def write_json(predictions: Iterable[Prediction], wanted: Wanted) -> None:
    """Write a JSON array, an item a line."""
    before = "["
    for item in predictions:
        console.show(before + json.dumps(_document(item, wanted), ensure_ascii=False))
        before = ","
    console.show("]" if before == "," else "[]")


def _document(item: Prediction, wanted: Wanted) -> dict[str, Json]:
    document: dict[str, Json] = {name: getattr(item, name) for name in _FIELDS}
    if wanted.calibrated:
        document["probability"] = item.probability
    document |= {"machine_part": item.machine_part, "network_part": item.network_part}
    if wanted.top:
        keys = ("class", "score", "probability")
        document["top"] = [
            {key: value for key, value in zip(keys, one, strict=True) if value is not None}
            for one in wanted.best(item)
        ]
    if wanted.scores:
        document["scores"] = dict(zip(wanted.classes, item.scores, strict=True))
        if wanted.calibrated:
            chances = zip(wanted.classes, item.probabilities, strict=True)
            document["probabilities"] = dict(chances)
    return document
