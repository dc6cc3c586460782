"""Finds a batch size: by a rule, or by trying a few."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

from cnnfeat.extraction.threads import IN_FLIGHT
from cnnfeat.records import Array, OnError, Probe, Source

SMALLEST, LARGEST = 16, 2048
_BATCH_BYTES = 64 << 20  # of images and activations together
_TRIAL_S = 0.3
_SLOW_S = 0.5  # a batch that takes longer makes Ctrl-C slow; larger ones are not tried
_GAIN = 1.03  # a larger batch must be this much faster

_DEFAULT = 512
# Of the images of a default batch: 4 pictures of 224×224 in RGB. What layers make of more finds no
# place in the processor's cache: 16 at a time took a tenth to a fifth longer, by either engine.
_DEFAULT_VALUES = 5 << 17

_log = logging.getLogger("cnnfeat")


def default_batch_size(image_shape: tuple[int, int, int]) -> int:
    """Pick a batch size by the images' shape alone: 512, fewer if they are large.

    The same on every run, as results to the last bit can depend on it. A batch stays short enough
    that memory is flat and Ctrl-C is heard soon.
    """
    height, width, channels = image_shape
    return max(1, min(_DEFAULT, _DEFAULT_VALUES // (height * width * channels)))


def pick_batch_size(source: Source, split: str, *, probe: Probe, on_error: OnError) -> int:
    """Time powers of two on the first images of a split, and return the fastest.

    Of two that are equally fast it is the smaller one, which takes less memory.
    """
    info = source.splits[split]
    wanted = min(LARGEST, info.n_samples, _most_rows(info.image_shape, probe))
    batches = source.batches(
        split, batch_size=wanted, stop=wanted, target=probe.target, on_error=on_error
    )
    images = next((batch.images for batch in batches if len(batch)), None)
    if images is None:
        return SMALLEST
    rates = _rates(probe, images)
    best = max(rates, key=lambda size: rates[size])
    chosen = min(size for size in rates if rates[size] * _GAIN >= rates[best])
    tried = ", ".join(f"{size}: {rate:,.0f}" for size, rate in rates.items())
    _log.info("batch size %d (images/s by batch size: %s)", chosen, tried)
    return chosen


def _most_rows(image_shape: tuple[int, int, int], probe: Probe) -> int:
    height, width, channels = image_shape
    row_bytes = 4 * height * width * channels
    for output in probe.outputs:
        n_values = 1
        for length in output.row_shape:
            n_values *= length
        row_bytes += 4 * n_values
    return max(SMALLEST, _BATCH_BYTES // row_bytes)


def _rates(probe: Probe, images: Array) -> dict[int, float]:
    """Images per second, by batch size."""
    rates = {}
    size = min(SMALLEST, len(images))
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        while True:
            began = time.perf_counter()
            probe(images[:size])
            first_s = time.perf_counter() - began
            rates[size] = _rate(pool, probe, images, size=size)
            if size * 2 > len(images) or size / rates[size] > _SLOW_S or first_s > 4 * _SLOW_S:
                return rates
            size *= 2


def _rate(pool: ThreadPoolExecutor, probe: Probe, images: Array, *, size: int) -> float:
    starts = range(0, len(images) - size + 1, size)
    n_images, began = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - began) < _TRIAL_S or not n_images:
        for start in starts[: 2 * IN_FLIGHT] or [0]:
            n_images += size
            last = pool.submit(probe, images[start : start + size])
        last.result()
    return n_images / elapsed_s
