"""Protocol buffers on disk: graphs, meta graphs and saved models, binary or as text."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from cnnfeat.errors import NetworkError

M = TypeVar("M", bound=Message)
LIMIT_BYTES = 2**31  # of a protocol buffer


def read_message(path: Path, kind: type[M]) -> M:
    """Read a file as a message of one kind.

    Raises
    ------
    NetworkError
        If it is none.
    """
    size = path.stat().st_size
    if size >= LIMIT_BYTES:
        raise NetworkError(
            f"{path}: {size:,} bytes; a protocol buffer has less than {LIMIT_BYTES:,}"
        )
    message: M = kind()
    content = path.read_bytes()
    try:
        if is_text(content[:4096]):
            text_format.Parse(content.decode("utf-8"), message, allow_unknown_field=True)
        else:
            message.ParseFromString(content)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise NetworkError(f"{path}: damaged, or no {kind.__name__}: {error}") from error
    return message


class Kind(enum.Enum):
    """The kinds of message a model file can be."""

    GRAPH = graph_pb2.GraphDef
    META_GRAPH = meta_graph_pb2.MetaGraphDef
    SAVED_MODEL = saved_model_pb2.SavedModel


def kind_of(path: Path) -> Kind | None:
    """Say which kind of message a file is; None: neither."""
    with path.open("rb") as file:
        head = file.read(4096)
    if is_text(head):
        return _kind_of_text(head.decode("utf-8", "replace"))
    if head[:3] == b"\x08\x01\x12":  # its schema's version, then a meta graph
        return Kind.SAVED_MODEL
    if head[:1] not in (b"\x0a", b"\x12", b"\x22") or path.stat().st_size >= LIMIT_BYTES:
        return None
    for kind in Kind:
        try:
            message = read_message(path, kind.value)
        except NetworkError:
            continue
        if _plausible(message):
            return kind
    return None


def is_text(head: bytes) -> bool:
    """Whether bytes look like a protocol buffer written as text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return "{" in text and all(char.isprintable() or char in "\r\n\t" for char in text)


def _kind_of_text(text: str) -> Kind | None:
    fields = [line.split("{")[0].split(":")[0].strip() for line in text.splitlines()]
    names = [field for field in fields if field and not field.startswith("#")]
    first = names[0] if names else ""
    if first in ("node", "versions", "library", "version"):
        return Kind.GRAPH
    if first in ("saved_model_schema_version", "meta_graphs"):
        return Kind.SAVED_MODEL
    if first in ("meta_info_def", "graph_def", "saver_def"):
        return Kind.META_GRAPH
    return None


def _plausible(message: Message) -> bool:
    if isinstance(message, saved_model_pb2.SavedModel):
        return any(meta.graph_def.node for meta in message.meta_graphs)
    graph = message.graph_def if isinstance(message, meta_graph_pb2.MetaGraphDef) else message
    nodes = graph.node
    return bool(nodes) and all(node.name and node.op for node in nodes)
