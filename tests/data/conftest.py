"""A small data set in MNIST's format, and a server that hands it out, well or badly."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, features

from cnnfeat.data import DATASETS, Dataset, DatasetFile

Behaviour = Callable[[BaseHTTPRequestHandler, bytes, "Server"], None]


def idx_bytes(array: np.ndarray) -> bytes:
    """Write an array of bytes as IDX, by the description of the format."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@dataclass
class SmallSet:
    """Arrays and files of a small data set."""

    arrays: dict[str, np.ndarray]
    packed: dict[str, bytes]
    dataset: Dataset


@pytest.fixture
def small_set(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> SmallSet:
    """Stands in the registry in the place of MNIST; it has no mirrors."""
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (30, 5, 4), np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 30).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (7, 5, 4), np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 7).astype(np.uint8),
    }
    plain = {name: idx_bytes(array) for name, array in arrays.items()}
    packed = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in plain.items()}
    dataset = Dataset(
        name="mnist",
        description="a small stand-in",
        classes=tuple("0123456789"),
        files=tuple(
            DatasetFile(
                f"{name}.gz",
                hashlib.sha256(packed[f"{name}.gz"]).hexdigest(),
                hashlib.sha256(data).hexdigest(),
            )
            for name, data in plain.items()
        ),
    )
    monkeypatch.setitem(DATASETS, "mnist", dataset)
    return SmallSet(arrays, packed, dataset)


@dataclass
class Server:
    """A local web server; the first part of a path chooses how it behaves."""

    address: str
    files: dict[str, bytes]
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    five_ask: threading.Barrier = field(default_factory=lambda: threading.Barrier(5))

    def mirror(self, behaviour: str) -> str:
        return f"{self.address}/{behaviour}/"


def _good(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    _head(handler, len(data))
    handler.wfile.write(data)


def _missing(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    handler.send_error(404)


def _wrong(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    _good(handler, b"<html>please log in</html>", server)


def _truncated(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    _head(handler, len(data))
    handler.wfile.write(data[: len(data) // 2])


def _endless(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(bytes(65_536))


def _hanging(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    server.closing.wait()


def _meeting(handler: BaseHTTPRequestHandler, data: bytes, server: Server) -> None:
    """Hang up once five ask at one time."""
    with contextlib.suppress(threading.BrokenBarrierError):
        server.five_ask.wait(60)


def _head(handler: BaseHTTPRequestHandler, length: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


BEHAVIOURS: dict[str, Behaviour] = {
    "good": _good,
    "missing": _missing,
    "wrong": _wrong,
    "truncated": _truncated,
    "endless": _endless,
    "hanging": _hanging,
    "meeting": _meeting,
}


@pytest.fixture
def server(small_set: SmallSet) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, behaviour, name = self.path.split("/")
            running.requests.append(self.path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                BEHAVIOURS[behaviour](self, running.files[name], running)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with QuietServer(("127.0.0.1", 0), Handler) as http:
        running = Server(f"http://127.0.0.1:{http.server_port}", small_set.packed)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def damaged_pictures(rng: np.random.Generator) -> list[bytes]:
    """500 files that were pictures of all formats and many modes, each damaged once."""
    originals = _pictures(rng)
    return [_damaged(originals[index % len(originals)], rng) for index in range(500)]


def _pictures(rng: np.random.Generator) -> list[bytes]:
    """One picture of each format and many modes."""
    noise = rng.integers(0, 256, (20, 17, 4), np.uint8)
    smooth = np.add.outer(np.arange(20) * 9, np.arange(17) * 3).astype(np.uint8)
    images = [
        (Image.fromarray(noise[..., :3]), "PNG"),
        (Image.fromarray(noise), "PNG"),
        (Image.fromarray(smooth), "PNG"),
        (Image.fromarray(smooth.astype(np.uint16) * 250), "PNG"),
        (Image.fromarray(noise[..., :3]).quantize(16), "PNG"),
        (Image.fromarray(noise[..., :3]), "JPEG"),
        (Image.fromarray(smooth), "JPEG"),
        (Image.fromarray(noise).convert("CMYK"), "JPEG"),
        (Image.fromarray(noise[..., :3]), "BMP"),
        (Image.fromarray(noise[..., :3]).quantize(16), "BMP"),
        (Image.fromarray(noise[..., :3]).quantize(64), "GIF"),
        (Image.fromarray(noise[..., :3]), "WEBP"),
        (Image.fromarray(noise), "WEBP"),
        (Image.fromarray(noise[..., :3]), "TIFF"),
        (Image.fromarray(smooth.astype(np.uint16) * 250), "TIFF"),
        (Image.fromarray(smooth), "PPM"),
    ]
    if features.check("avif"):
        images.append((Image.fromarray(noise[..., :3]), "AVIF"))
    files = []
    for image, format in images:
        buffer = io.BytesIO()
        image.save(buffer, format=format)
        files.append(buffer.getvalue())
    buffer = io.BytesIO()
    images[0][0].save(buffer, format="TIFF", compression="tiff_lzw")
    return [*files, buffer.getvalue()]


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of the ways disks, networks and people do."""
    damaged = bytearray(data)
    kind = rng.integers(6)
    place = int(rng.integers(len(data)))
    if kind == 0:
        return bytes(damaged[:place])
    if kind == 1:
        damaged[place : place + 64] = bytes(len(damaged[place : place + 64]))
    elif kind == 2:
        damaged[place:place] = rng.bytes(10)
    elif kind == 3:
        del damaged[place : place + 20]
    elif kind == 4:
        for position in rng.integers(min(80, len(data)), size=3):  # the header
            damaged[position] = rng.integers(256)
    else:
        for position in rng.integers(len(data), size=8):
            damaged[position] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


class Rows(NamedTuple):
    """All rows of a split, put together."""

    images: np.ndarray
    labels: np.ndarray | None
    ids: list[str]


@pytest.fixture
def read_all() -> Callable[..., Rows]:
    """Reads a split in small batches; the labels of these must be those of the whole split."""

    def read(source, split: str, **options) -> Rows:
        batches = list(source.batches(split, **({"batch_size": 3} | options)))
        start = options.get("start", 0)
        labels = source.labels(split)
        if labels is not None:
            labels = labels[start : start + sum(map(len, batches))]
            np.testing.assert_array_equal(
                np.concatenate([batch.labels for batch in batches]), labels
            )
        assert all((batch.labels is None) == (labels is None) for batch in batches)
        ids = [name for batch in batches for name in batch.ids]
        return Rows(np.concatenate([batch.images for batch in batches]), labels, ids)

    return read


@pytest.fixture
def png() -> Callable[[np.ndarray], bytes]:
    """Encodes pixels."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    return encode
