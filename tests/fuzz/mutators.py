"""Changes to sound files: of their bytes, of documents in them, of archives' members."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, "", "x", "conv2d", "../x",
    "\x00", "\x1b[31m", "\ud800", "9" * 400, [], {}, [[]], [None], {"": None}, ["a", 1], [0] * 50,
)  # fmt: skip


def change_bytes(random: Random, data: bytes) -> bytes:
    """Change 1 to 8 places: bits, bytes, edges of integers, runs left out, doubled or exchanged."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        if not changed:
            break
        at = random.randrange(len(changed))
        how = random.randrange(8)
        if how == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif how == 1:
            changed[at] = random.randrange(256)
        elif how == 2:
            size = random.choice((1, 2, 4, 8))
            order = random.choice(("little", "big"))
            edge = random.choice(EDGES) % (1 << 8 * size)
            changed[at : at + size] = edge.to_bytes(size, order)
        elif how == 3:
            del changed[at : at + random.choice((1, 4, 64, 4096))]
        elif how == 4:
            run = changed[at : at + random.choice((1, 4, 64, 4096))]
            changed[at:at] = run
        elif how == 5:
            del changed[at:]
        elif how == 6:
            other = random.randrange(len(changed))
            run = changed[other : other + 16]
            changed[at : at + len(run)] = run
        else:
            changed[at:at] = random.randbytes(random.choice((1, 3, 100)))
    return bytes(changed)


def places(document: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a document of JSON."""
    found, waiting = [], [document]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def change_document(
    random: Random, text: bytes | str, *, values: tuple[Any, ...] = ODD_VALUES
) -> bytes:
    """Change 1 to 3 values, keys or branches of JSON text; now and then nest it deep."""
    document = json.loads(text)
    for _ in range(random.choice((1, 1, 2, 3))):
        found = places(document)
        if not found:
            break
        node, key = random.choice(found)
        other_node, other_key = random.choice(found)
        how = random.randrange(7)
        if how <= 2:
            node[key] = deepcopy(random.choice(values))
        elif how == 3:
            del node[key]
        elif how == 4:
            node[key] = json.loads(json.dumps(other_node[other_key]))
        elif how == 5 and isinstance(node, dict):
            node[random.choice(("class_name", "module", "config", "shape", "x"))] = node.pop(key)
        elif isinstance(node[key], int | float):
            node[key] = node[key] * random.choice((-1, 2, 1000, 1e9, 0.5)) + random.choice((0, 1))
        else:
            node[key] = [node[key]]
    changed = json.dumps(document)
    if random.random() < 0.02:
        depth = random.choice((70, 1000, 100_000))
        changed = '{"a":' * depth + changed + "}" * depth
    return changed.encode("utf-8", "surrogatepass")


def change_member(
    random: Random, data: bytes, change: Callable[[Random, str, bytes], bytes]
) -> bytes:
    """Change one member of a zip archive and pack it anew, so that its checksum is right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            how = random.randrange(20) if name == chosen else -1
            if how == 0:
                continue
            new_name = random.choice(("/x", "../x", "a\\b", "x" * 300)) if how == 1 else name
            packing = zipfile.ZIP_DEFLATED if how == 2 else zipfile.ZIP_STORED
            new.writestr(
                new_name, change(random, name, content) if name == chosen else content, packing
            )
            if how == 3:
                new.writestr("more/" + name, content)
    return packed.getvalue()
