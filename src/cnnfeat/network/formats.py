"""What kind of file a model is, by its content, never by its ending; and its messages read."""

from __future__ import annotations

import enum
import io
import os
import pickletools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from cnnfeat.archives import Archive, is_archive
from cnnfeat.documents import SIZE_LIMIT as DOCUMENT_LIMIT
from cnnfeat.documents import parse_value
from cnnfeat.errors import (
    ArchiveError,
    NetworkError,
    UnsafeArchiveError,
    UntrustedModelError,
)
from cnnfeat.network.place import KNOWN, checkpoint_files, missing_model
from cnnfeat.regular import IrregularError, open_regular, require_regular

M = TypeVar("M", bound=Message)
_LIMIT_BYTES = 2**31  # of a protocol buffer


class Format(enum.Enum):
    """Kinds of model that can be loaded."""

    KERAS = "keras"
    HDF5 = "h5"
    SAVED_MODEL = "savedmodel"
    GRAPH_DEF = "graphdef"
    CHECKPOINT = "checkpoint"
    APPLICATION = "applications"
    TFJS = "tfjs"
    TFLITE = "tflite"
    LIVE = "live"  # no file: a model or a graph of the program that asks


# The message that a file of each format is, whole.
_MESSAGES: Mapping[Format, type[Message]] = {
    Format.GRAPH_DEF: graph_pb2.GraphDef,
    Format.CHECKPOINT: meta_graph_pb2.MetaGraphDef,
    Format.SAVED_MODEL: saved_model_pb2.SavedModel,
}
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # before PyTorch 1.6, a number first
_TORCH_MEMBERS = (b"sys_info", b"pickle", b"tensors", b"storages")  # before 0.2, a tar archive


def sniff(path: Path) -> Format:
    """Tell what kind of model lies at `path`.

    Raises
    ------
    MissingInputError
        If nothing lies there.
    NetworkError
        If it is no model, or one of another framework; the message names it.
    """
    try:
        with open_regular(path) as file:
            head = file.read(4096)
    except FileNotFoundError:
        return _prefix(path)
    except OSError as error:
        if path.is_dir():
            return _folder(path)
        raise NetworkError(
            f"{path}: can't be read: {error.strerror}", hint=f"models are {KNOWN}"
        ) from error
    return _file(path, head)


def _prefix(path: Path) -> Format:
    """A checkpoint may be given as what its files' names begin with."""
    beside = checkpoint_files(path)
    if any(item.is_file() for item in beside):
        return Format.CHECKPOINT
    _refuse_irregular(beside)
    raise missing_model(path)


def _folder(path: Path) -> Format:
    if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
        return Format.SAVED_MODEL
    metas = sorted(path.glob("*.meta"))
    _refuse_irregular([*(path / f"saved_model.{end}" for end in ("pb", "pbtxt")), *metas])
    if (path / "checkpoint").is_file() or metas:
        return Format.CHECKPOINT
    _refuse_irregular([path / "checkpoint"])
    inside = sorted(item for item in path.iterdir() if item.is_dir())
    nested = [item for item in inside if (item / "saved_model.pb").is_file()]
    hint = f"did you mean {nested[0]}?" if nested else f"models are {KNOWN}"
    raise NetworkError(
        f"{path}: a folder with neither saved_model.pb nor a checkpoint in it", hint=hint
    )


def _refuse_irregular(paths: Iterable[Path]) -> None:
    """Say what stands where a model's file would: a pipe, a folder."""
    for path in paths:
        try:
            require_regular(path)
        except IrregularError as error:
            raise NetworkError(f"{path}: {error}", hint=f"models are {KNOWN}") from error
        except OSError:
            continue


def _file(path: Path, head: bytes) -> Format:
    if not head:
        raise NetworkError(f"{path} is empty", hint=f"models are {KNOWN}")
    if head.startswith(_HDF5_MAGIC) or head[4:8] == b"TFL3":
        return Format.TFLITE if head[4:8] == b"TFL3" else Format.HDF5
    if is_archive(path):
        return _zip(path)
    if path.name.endswith((".index", ".meta")) or ".data-" in path.name:
        return Format.CHECKPOINT
    _refuse_foreign(path, head)
    kind = Format.TFJS if _is_json(head) else _kind_of(path, head)
    if kind is not None:
        return kind
    if path.with_name(f"{path.name}.meta").is_file():
        return Format.CHECKPOINT
    raise NetworkError(f"{path} is no model this program knows", hint=f"models are {KNOWN}")


@contextmanager
def opened_archive(path: Path) -> Iterator[Archive]:
    """Open the archive a network lies in, or is.

    Raises
    ------
    UntrustedModelError
        If it would write outside itself, or fill the memory.
    NetworkError
        If it can't be read, then or within the block.
    """
    try:
        with Archive(path) as archive:
            yield archive
    except ArchiveError as error:
        unsafe = isinstance(error, UnsafeArchiveError)
        kind = UntrustedModelError if unsafe else NetworkError
        raise kind(error.message, hint=error.hint) from error


def _zip(path: Path) -> Format:
    with opened_archive(path) as archive:
        names = archive.names
    if "config.json" in names:
        return Format.KERAS
    if any(name.endswith("data.pkl") for name in names) or any("/data/" in name for name in names):
        raise _foreign(path, "a PyTorch file", "convert it to ONNX and from there to a SavedModel")
    if any(name.endswith(".npy") for name in names):
        raise NetworkError(
            f"{path}: NumPy arrays, no network",
            hint="as pictures, `cnnfeat extract --data` takes it; as weights, put them in a model "
            "and save that",
        )
    if any(name.endswith("saved_model.pb") for name in names):
        raise NetworkError(f"{path}: a packed SavedModel", hint="unpack it and give the folder")
    raise NetworkError(f"{path}: a zip archive without a model", hint=f"models are {KNOWN}")


def _refuse_foreign(path: Path, head: bytes) -> None:
    if head.startswith(_TORCH) or head[:100].rstrip(b"\0") in _TORCH_MEMBERS:
        raise _foreign(
            path, "an old PyTorch file", "convert it to ONNX and from there to a SavedModel"
        )
    if _is_pickle(head):
        raise _foreign(
            path, "a Python pickle", "nothing is unpickled here: save the model as .keras"
        )
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        raise _foreign(
            path,
            "a safetensors file, weights without their network",
            "put them in a Keras model and save that: model.save('model.keras')",
        )
    if _is_onnx(head):
        raise _foreign(path, "an ONNX model", "convert it to a SavedModel (onnx2tf)")
    if (
        head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf"))
        or head[257:262] == b"ustar"
    ):
        raise NetworkError(f"{path}: a packed file", hint="unpack it and give what is inside")
    refuse_pointer(path, head)
    if _is_page(head):
        raise NetworkError(
            f"{path} is a web page, no model: something else was downloaded than was meant",
            hint="open the address in a browser, and save the file that is offered there",
        )
    if _is_json(head) and b"modelTopology" not in head and b"weightsManifest" not in head:
        raise NetworkError(
            f"{path}: a JSON file: an architecture without weights, or no model at all",
            hint="save the whole model: model.save('model.keras')",
        )


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of a network, if it is a regular one.

    Raises
    ------
    NetworkError
        If it can't be read.
    """
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise NetworkError(f"{path}: can't be read: {error.strerror or error}") from error


def read_json(path: Path, *, otherwise: str) -> dict[str, object]:
    """Read a JSON file that holds one object.

    Raises
    ------
    NetworkError
        If it can't be read, or holds anything else: that the file is `otherwise` is said then.
    """
    try:
        with opened(path) as file:
            document = parse_value(file.read(DOCUMENT_LIMIT + 1), finite=False)
    except ValueError as error:
        raise NetworkError(f"{path}: its JSON can't be read: {error}") from error
    if not isinstance(document, dict):
        raise NetworkError(f"{path}{otherwise}")
    return document


def refuse_pointer(path: Path, head: bytes) -> None:
    """Refuse what Git LFS leaves in place of a file.

    Raises
    ------
    NetworkError
        With how to get the file.
    """
    if head.startswith(b"version https://git-lfs"):
        raise NetworkError(
            f"{path}: a Git LFS pointer; the file itself was not downloaded", hint="git lfs pull"
        )


def _is_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (
        start.startswith((b"<?xml", b"<!--")) and b"<html" in start
    )


def _foreign(path: Path, what: str, convert: str) -> NetworkError:
    return NetworkError(f"{path} is {what}, not a TensorFlow network", hint=convert)


def _is_pickle(head: bytes) -> bool:
    """Whether bytes begin as a pickle does; nothing is unpickled."""
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return True
    if head[:2] not in (b"(d", b"(l", b"(i", b"cn", b"cc"):
        return False
    try:
        next(iter(pickletools.genops(head)))
    except (ValueError, IndexError):
        return False
    return True


def _is_onnx(head: bytes) -> bool:
    """ONNX begins with its version (field 1); its producer (2), notes or graph (7) follow."""
    return (
        head[:1] == b"\x08"
        and (head[2:3] in (b"\x12", b"\x3a", b"\x42") or b"onnx" in head[:256].lower())
        and (b"meta_graphs" not in head)
        and not _is_saved_model(head)
    )


def _is_saved_model(head: bytes) -> bool:
    """A SavedModel's second field is a meta graph, which begins with its own information."""
    if head[:3] != b"\x08\x01\x12":
        return False
    index = 3
    while index < len(head) and head[index] & 0x80:
        index += 1
    return head[index + 1 : index + 2] == b"\x0a"


def _is_json(head: bytes) -> bool:
    """Whether bytes begin as a JSON document does."""
    if head.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        parse_value(head.decode("utf-8", "ignore"), finite=False)
    except ValueError:
        return b'"' in head[:200]
    return True


def read_message(path: Path, kind: type[M]) -> M:
    """Read a file as a message of one kind.

    Raises
    ------
    NetworkError
        If it is none.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _LIMIT_BYTES:
            raise NetworkError(
                f"{path}: {size:,} bytes; a protocol buffer has less than {_LIMIT_BYTES:,}"
            )
        content = file.read()
    message: M = kind()
    refuse_pointer(path, content[:64])
    try:
        if _is_text(content[:4096]):
            text_format.Parse(content.decode("utf-8"), message, allow_unknown_field=True)
        else:
            message.ParseFromString(content)
    except text_format.ParseError as error:  # which quotes what it found there
        place = f"line {error.GetLine()}, column {error.GetColumn()}"
        raise NetworkError(f"{path}: damaged, or no {kind.__name__}, at {place}") from error
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NetworkError(f"{path}: damaged, or no {kind.__name__}: {error}") from error
    return message


def _kind_of(path: Path, head: bytes) -> Format | None:
    """Say of which format a file is that holds one message; None: of none."""
    if _is_text(head):
        return _kind_of_text(head.decode("utf-8", "replace"))
    if head[:3] == b"\x08\x01\x12":  # its schema's version, then a meta graph
        return Format.SAVED_MODEL
    if head[:1] not in (b"\x0a", b"\x12", b"\x22") or path.stat().st_size >= _LIMIT_BYTES:
        return None
    for kind, message_type in _MESSAGES.items():
        try:
            message = read_message(path, message_type)
        except NetworkError:
            continue
        if _plausible(message):
            return kind
    return None


def _is_text(head: bytes) -> bool:
    """Whether bytes look like a protocol buffer written as text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return "{" in text and all(char.isprintable() or char in "\r\n\t" for char in text)


def _kind_of_text(text: str) -> Format | None:
    fields = [line.split("{")[0].split(":")[0].strip() for line in text.splitlines()]
    names = [field for field in fields if field and not field.startswith("#")]
    first = names[0] if names else ""
    if first in ("node", "versions", "library", "version"):
        return Format.GRAPH_DEF
    if first in ("saved_model_schema_version", "meta_graphs"):
        return Format.SAVED_MODEL
    if first in ("meta_info_def", "graph_def", "saver_def"):
        return Format.CHECKPOINT
    return None


def _plausible(message: Message) -> bool:
    if isinstance(message, saved_model_pb2.SavedModel):
        return any(meta.graph_def.node for meta in message.meta_graphs)
    graph = message.graph_def if isinstance(message, meta_graph_pb2.MetaGraphDef) else message
    nodes = graph.node
    return bool(nodes) and all(node.name and node.op for node in nodes)
