"""A source and a probe made of NumPy alone, and an extraction of them as a process of its own.

Features are known functions of a row's number, so that every value in a file can be checked.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from cnnfeat.errors import CnnfeatError, ImageError
from cnnfeat.extraction import Extraction, extract
from cnnfeat.extraction.publishing import write_shard
from cnnfeat.options import AugmentOptions, ExtractOptions, ReadOptions
from cnnfeat.records import (
    Array,
    Batch,
    Fingerprint,
    ImageTarget,
    LayerInfo,
    Probe,
    ProbeOutput,
    SkippedSample,
    SplitInfo,
)
from cnnfeat.shards import ShardNumber

SIDE = 4


class CountingSource:
    """Image number i of a split is filled with i in base 256; `bad` ones can't be read.

    `before` is called before each batch, with the number of those read so far.
    """

    kind = "counting"
    classes = ("even", "odd")

    def __init__(
        self,
        sizes: dict[str, int],
        *,
        bad: dict[str, set[int]] | None = None,
        name: str = "counting",
        delay_s: float = 0.0,
        labelled: bool = True,
        shape_change: int | None = None,
        before: Callable[[int], object] | None = None,
        known: dict[str, dict[str, np.ndarray]] | None = None,
    ) -> None:
        self.name = name
        self.labels_from = ""
        self.options: dict[str, object] = {}
        self.division = None
        self.content = "v1"
        self.bad = bad or {}
        self.delay_s = delay_s
        self.labelled = labelled
        self.shape_change = shape_change  # images from this number on are larger
        self.before = before
        self.known = known or {}  # "part", "group": by split
        self.read_rows: list[tuple[str, int, int]] = []
        self.splits = {
            split: SplitInfo(split, n, (SIDE, SIDE, 1), "uint8", labelled)
            for split, n in sizes.items()
        }

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(hashlib.sha256(self.content.encode()).hexdigest(), "a test's word")

    def state(self) -> bytes:
        return self.content.encode()

    def changed_since(self, state: bytes) -> str | None:
        return None if state == self.state() else "numbers.bin has changed"

    def labels(self, split: str) -> np.ndarray | None:
        return np.arange(self.splits[split].n_samples) % 2 if self.labelled else None

    def parts(self, split: str) -> np.ndarray | None:
        return self.known.get("part", {}).get(split)

    def groups(self, split: str) -> np.ndarray | None:
        return self.known.get("group", {}).get(split)

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        rows: None = None,
        target: ImageTarget | None = None,
        on_error: str = "raise",
    ) -> Iterator[Batch]:
        stop = self.splits[split].n_samples if stop is None else stop
        while start < stop:
            end = min(start - start % batch_size + batch_size, stop)
            if self.shape_change is not None and start < self.shape_change < end:
                end = self.shape_change
            if self.before is not None:
                self.before(len(self.read_rows))
            self.read_rows.append((split, start, end))
            yield self._batch(split, start, end, on_error)
            time.sleep(self.delay_s)
            start = end

    def _batch(self, split: str, start: int, stop: int, on_error: str) -> Batch:
        bad = sorted(self.bad.get(split, set()) & set(range(start, stop)))
        if bad and on_error == "raise":
            raise ImageError(f"{split}/{bad[0]}.png: can't be read")
        rows = np.array([row for row in range(start, stop) if row not in bad], dtype=np.int64)
        larger = self.shape_change is not None and start >= self.shape_change
        side = SIDE + 1 if larger else SIDE
        images = np.zeros((len(rows), side, side, 1), np.uint8)
        for place in range(4):
            images[:, 0, place, 0] = rows >> (8 * place) & 255
        return Batch(
            images=images,
            labels=rows % 2 if self.labelled else None,
            ids=tuple(f"{split}/{row}.png" for row in rows),
            start=start,
            stop=stop,
            skipped=tuple(SkippedSample(row, f"{split}/{row}.png", "can't be read") for row in bad),
        )

    def __enter__(self) -> CountingSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def expected(rows: Array, *, shape: tuple[int, ...], times: float) -> Array:
    """Feature j of row i is i * times + j."""
    width = int(np.prod(shape))
    return (rows[:, None] * times + np.arange(width)).reshape(-1, *shape).astype("float32")


class CountingProbe:
    """Gives rows that tell which image they came from."""

    target = ImageTarget()
    unsteady: ClassVar[dict[str, tuple[str, ...]]] = {}
    device = "cpu"
    engine = "numpy"

    def __init__(self, layers: dict[str, tuple[int, ...]] | None = None, *, delay_s: float = 0.0):
        self.preprocessing = {"scale": "none"}
        self.delay_s = delay_s
        self.layers = layers or {"conv/a": (2, 3, 4), "fc1": (8,)}
        axes = {1: ("feature",), 3: ("height", "width", "channel")}
        self.outputs = tuple(
            ProbeOutput(
                name,
                f"{name}/out:0",
                "Relu",
                shape,
                "float32",
                shape,
                "float32",
                "none",
                axes.get(len(shape), ()),
            )
            for name, shape in self.layers.items()
        )

    def __call__(self, images: Array) -> tuple[Array, ...]:
        time.sleep(self.delay_s)
        places = images[:, 0, :4, 0].astype(np.int64)
        rows = (places << np.arange(0, 32, 8)).sum(axis=1)
        return tuple(
            expected(rows, shape=shape, times=0.5 + number)
            for number, shape in enumerate(self.layers.values())
        )


class CountingNetwork:
    """What an extraction needs of a network, around a probe of NumPy."""

    path, format = "model.keras", "keras"

    def __init__(
        self,
        probe: Probe | None = None,
        *,
        sha256: str = "ab" * 32,
        read: ReadOptions | None = None,
        trained_on: str = "",
    ) -> None:
        self.made = probe or CountingProbe()
        self.sha256 = sha256
        self.read_options = self.read_as = read or ReadOptions()
        self.card = SimpleNamespace(
            test_accuracy=0.993, pixels=None, source={"name": trained_on}, config={}
        )
        self.asked: list[tuple[str, ...]] = []
        self.varied: list[tuple[AugmentOptions, int, list[int]]] = []  # options, turn, rows

    def find(self, names: Sequence[str]) -> tuple[LayerInfo, ...]:
        self.asked.append(tuple(names))
        return ()

    def probe(self, layers: object, options: object, **images: object) -> Probe:
        return self.made

    def augmentation(self, options: AugmentOptions) -> Callable[..., Array]:
        """Copy number k of an image tells it, and the image's number, beside what it shows."""

        def vary(images: Array, *, turn: int, rows: Array) -> Array:
            self.varied.append((options, turn, rows.tolist()))
            images = images.copy()
            images[:, 1, 0] = turn
            images[:, 1, 1, 0] = rows % 256
            return images

        return vary


def holding(at: int) -> Callable[[int], None]:
    """Say "holding" before batch number `at`, and wait for a line on stdin or its end."""

    def before(n_read: int) -> None:
        if n_read == at:
            print("holding", flush=True)  # noqa: T201
            sys.stdin.readline()

    return before


def outcome(options: argparse.Namespace, out: Path, stopped: list[int]) -> int:
    """Extract once; print the error where there is one; return the exit code."""
    source = CountingSource(
        {"train": options.rows, "test": options.rows // 4},
        bad={"train": {options.bad}} if options.bad is not None else None,
        delay_s=options.delay,
        before=None if options.hold is None else holding(options.hold),
    )
    how = ExtractOptions(batch_size=options.batch_size, on_error="skip")
    shard = options.shard and ShardNumber.parse(options.shard)
    try:
        if options.publish:
            job = Extraction.of(CountingNetwork(), how).settle(source)  # type: ignore[arg-type]
            write_shard(job, shard, out)
            print("done", flush=True)  # noqa: T201
            return 0
        extract(
            CountingNetwork(),  # type: ignore[arg-type]
            source,
            how,
            out=out,
            shard=shard,
            overwrite=options.overwrite,
            resume=options.resume,
            should_stop=lambda: bool(stopped),
        )
    except CnnfeatError as error:
        print(f"{type(error).__name__}: {error}", flush=True)  # noqa: T201
        return 128 + stopped[0] if stopped else error.exit_code
    print("done", flush=True)  # noqa: T201
    return 0


def main() -> int:
    """Print "ready" once Python is up, and extract: once, or for every path on stdin."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hold", type=int, default=None)
    parser.add_argument("--bad", type=int, default=None)
    parser.add_argument("--shard", default=None)
    parser.add_argument("--publish", action="store_true", help="as one of several may do it")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    print("ready", flush=True)  # noqa: T201
    if options.out is not None:
        return outcome(options, options.out, stopped)
    for line in sys.stdin:
        outcome(options, Path(line.strip()), stopped)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
