"""Finds a stored layer by the name a person gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cnnfeat.features.format import StoredLayer


def find_name(name: str, layers: Mapping[str, StoredLayer]) -> str | None:
    """Return the stored name that `name` means, or None.

    In turn: the stored name; that in any case; the layer's or tensor's own name, `/` and `:0`
    included.
    """
    wanted = name.replace("/", ".")
    for candidates in _spellings(wanted, layers):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _spellings(wanted: str, layers: Mapping[str, StoredLayer]) -> Iterator[list[str]]:
    yield [stored for stored in layers if stored == wanted]
    yield [stored for stored in layers if stored.lower() == wanted.lower()]
    for without in ("", ":0"):
        yield [
            stored
            for stored, layer in layers.items()
            if wanted
            in (
                layer.layer.replace("/", "."),
                layer.tensor.removesuffix(without).replace("/", "."),
            )
        ]
