"""Changed pictures of all kinds: each is read, left out with a reason, or refused by name."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, features

SLOW = [pytest.mark.slow, pytest.mark.timeout(14_400)]
SIDE = 12
EDGES = (0, 1, 2, 3, 7, 8, 16, 255, 256, 4096, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def _picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(noise[..., 0].astype(np.float32))
    return Image.fromarray(noise, "RGBA").convert(mode)


def _saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    _picture(mode).save(file, kind, **options)
    return file.getvalue()


def _frames(kind: str) -> bytes:
    more = [_picture("RGB").rotate(90 * turn) for turn in range(1, 4)]
    return _saved(kind, save_all=True, append_images=more)


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    return exif.tobytes()


@cache
def sound() -> dict[str, bytes]:
    """Pictures of all kinds that are read, as their own writers make them."""
    found = {
        **{f"{mode}.png": _saved("PNG", mode) for mode in ("L", "LA", "P", "RGB", "RGBA", "1")},
        "16.png": _saved("PNG", "I;16"),
        "exif.png": _saved("PNG", exif=_exif(), icc_profile=bytes(200)),
        "frames.png": _frames("PNG"),
        **{f"{mode}.jpg": _saved("JPEG", mode) for mode in ("L", "RGB", "CMYK")},
        "exif.jpg": _saved("JPEG", exif=_exif(), icc_profile=bytes(200), comment=b"words"),
        "progressive.jpg": _saved("JPEG", progressive=True),
        **{f"{mode}.gif": _saved("GIF", mode) for mode in ("L", "P", "RGB")},
        "frames.gif": _frames("GIF"),
        **{f"{mode}.bmp": _saved("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")},
        **{f"{mode}.tif": _saved("TIFF", mode) for mode in ("1", "L", "RGB", "CMYK", "I;16", "F")},
        **{
            f"{packing}.tif": _saved(
                "TIFF", "1" if "group" in packing else "RGB", compression=packing
            )
            for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        },
        "frames.tif": _frames("TIFF"),
        "lossy.webp": _saved("WEBP", exif=_exif()),
        "lossless.webp": _saved("WEBP", "RGBA", lossless=True),
        "frames.webp": _frames("WEBP"),
        **{f"{mode}.ppm": _saved("PPM", mode) for mode in ("1", "L", "RGB", "I;16")},
        "text.pgm": b"P2\n# words\n3 2\n255\n0 1 2\n250 251 252\n",
        "text.pbm": b"P1\n3 2\n0 1 0\n1 1 0\n",
        "text.ppm": b"P3\n1 2\n255\n1 2 3\n4 5 6\n",
    }
    if features.check("avif"):
        found["one.avif"] = _saved("AVIF")
    return found


def _chunk(kind: bytes, data: bytes, *, length: int | None = None) -> bytes:
    said = len(data) if length is None else length
    return struct.pack(">I", said) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 8 <= len(png):
        (size,) = struct.unpack_from(">I", png, place)
        found.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + size]))
        place += size + 12
    return found


def _head(random: Random, head: bytes) -> bytes:
    """Change width, height or the way of an IHDR's pixels."""
    width, height, *ways = struct.unpack(">IIBBBBB", head)
    if random.random() < 0.5:
        width, height = random.choice(EDGES) or width, random.choice((height, *EDGES))
    else:
        ways[random.randrange(5)] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    return struct.pack(">IIBBBBB", width, height, *ways)


def _bomb(random: Random) -> bytes:
    return zlib.compress(bytes(random.choice((1 << 16, 1 << 21, 1 << 26))), 9)


def _added(random: Random) -> tuple[bytes, bytes]:
    """A chunk that says more of a picture, and may be far larger than it seems."""
    packed = _bomb(random) if random.random() < 0.3 else zlib.compress(random.randbytes(90))
    return random.choice(
        (
            (b"zTXt", b"Comment\0\0" + packed),
            (b"iTXt", b"Comment\0\1\0\0\0" + packed),
            (b"tEXt", b"Comment\0" + random.randbytes(40)),
            (b"iCCP", b"profile\0\0" + packed),
            (b"eXIf", _exif()[6:][: random.randrange(60)] + random.randbytes(9)),
            (b"tRNS", random.randbytes(random.choice((1, 2, 6, 256, 300)))),
            (b"PLTE", random.randbytes(random.choice((0, 3, 4, 768, 900)))),
            (b"pHYs", random.randbytes(random.choice((0, 9)))),
            (b"gAMA", random.randbytes(random.choice((0, 4)))),
            (b"cHRM", random.randbytes(random.choice((0, 32)))),
            (b"acTL", struct.pack(">II", random.choice(EDGES), random.choice(EDGES))),
            (b"fcTL", struct.pack(">5I", *(random.choice(EDGES) for _ in range(5))) + bytes(6)),
            (b"fdAT", struct.pack(">I", random.choice(EDGES)) + packed),
            (b"IEND", b""),
        )
    )


def change_png(random: Random, png: bytes) -> bytes:
    """Change chunks of a PNG, most of whose checksums are right afterwards."""
    chunks = _chunks(png)
    for _ in range(random.choice((1, 1, 2, 3))):
        at, how = random.randrange(len(chunks)), random.randrange(7)
        kind, data = chunks[at]
        if how == 0:
            chunks[0] = (b"IHDR", _head(random, chunks[0][1]))
        elif how == 1:
            chunks.insert(random.randrange(1, len(chunks) + 1), _added(random))
        elif how == 2 and len(chunks) > 2:
            chunks.pop(random.randrange(1, len(chunks)))
        elif how == 3:
            pixels = [number for number, (name, _) in enumerate(chunks) if name == b"IDAT"]
            if pixels:
                filled = random.randbytes(random.choice((0, 10, 700, 5000)))
                packed = _bomb(random) if random.random() < 0.2 else zlib.compress(filled)
                chunks[random.choice(pixels)] = (b"IDAT", packed[: random.choice((9, 1 << 20))])
        elif how == 4:
            chunks.insert(at, (kind, data))
        elif data and at:
            changed = bytearray(data)
            changed[random.randrange(len(changed))] = random.randrange(256)
            chunks[at] = (kind, bytes(changed))
    lengths = [None] * len(chunks)
    if random.random() < 0.1:
        lengths[random.randrange(len(chunks))] = random.choice(EDGES)
    return png[:8] + b"".join(
        _chunk(kind, data, length=length)
        for (kind, data), length in zip(chunks, lengths, strict=True)
    )


def _packed_fields(random: Random, data: bytes, places: Sequence[tuple[int, str]]) -> bytes:
    """Put edges into some of the numbers at known places."""
    changed = bytearray(data)
    for place, layout in random.choices(places, k=random.choice((1, 1, 2, 3))):
        size = struct.calcsize(layout)
        if 0 <= place <= len(changed) - size:
            number = random.choice(EDGES) % (1 << 8 * size)
            changed[place : place + size] = number.to_bytes(
                size, "big" if ">" in layout else "little"
            )
    return bytes(changed)


def change_bmp(random: Random, data: bytes) -> bytes:
    """Change fields of a BMP's two headers."""
    sizes = ((2, "<I"), (10, "<I"), (14, "<I"), (18, "<I"), (22, "<I"), (34, "<I"), (46, "<I"))
    return _packed_fields(random, data, (*sizes, (26, "<H"), (28, "<H"), (30, "<I")))


def change_tiff(random: Random, data: bytes) -> bytes:
    """Change entries of a TIFF's directories: tags, types, counts, values, where the next lies."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    places, seen = [(4, f"{order}I")], set()
    while start and start not in seen and start + 2 <= len(data):
        seen.add(start)
        (n_entries,) = struct.unpack_from(f"{order}H", data, start)
        places.append((start, f"{order}H"))
        for entry in range(n_entries):
            place = start + 2 + 12 * entry
            places += [(place, f"{order}H"), (place + 2, f"{order}H"), (place + 4, f"{order}I")]
            places += [(place + 8, f"{order}I"), (place + 8, f"{order}H")]
        following = start + 2 + 12 * n_entries
        places.append((following, f"{order}I"))
        (start,) = struct.unpack_from(f"{order}I", data, following)
        if random.random() < 0.05:  # a directory that is its own next
            loop = min(seen).to_bytes(4, "little" if order == "<" else "big")
            data = data[:following] + loop + data[following + 4 :]
    return _packed_fields(random, data, places)


def change_jpeg(random: Random, data: bytes) -> bytes:
    """Change segments of a JPEG: lengths, sizes, colours; some go, some come twice."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", data, place + 2)
        segments.append(bytearray(data[place : place + 2 + size]))
        place += 2 + size
    rest = data[place:]
    at, how = random.randrange(len(segments)), random.randrange(6)
    if how == 0:
        segments.pop(at)
    elif how == 1:
        segments.insert(random.randrange(len(segments)), segments[at])
    elif how == 2:
        segments[at][2:4] = (random.choice(EDGES) % 65_536).to_bytes(2, "big")
    elif how == 3:
        segments[at][random.randrange(4, len(segments[at]))] = random.randrange(256)
    elif how == 4:
        rest = rest[: random.randrange(len(rest))]
    for segment in segments:
        if segment[1] in (0xC0, 0xC2) and how == 5:  # the frame: bits, height, width, colours
            kept = bytes(segment)
            places = ((4, "B"), (5, ">H"), (7, ">H"), (9, "B"))
            segment[:] = _packed_fields(random, kept, places)
    return data[:2] + b"".join(map(bytes, segments)) + rest


def change_gif(random: Random, data: bytes) -> bytes:
    """Change the sizes of a GIF's screen and of its first frames."""
    frames = [place for place in range(13, len(data) - 10) if data[place] == 0x2C][:4]
    inside = [(place + shift, "<H") for place in frames for shift in (1, 3, 5, 7)]
    return _packed_fields(random, data, [(6, "<H"), (8, "<H"), (10, "B"), *inside])


def change_riff(random: Random, data: bytes) -> bytes:
    """Change the lengths of a WebP's chunks, and the sizes in its heads."""
    places, place = [(4, "<I")], 12
    while place + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, place + 4)
        places += [(place + 4, "<I"), (place + 8, "<I"), (place + 12, "<H"), (place + 14, "<H")]
        place += 8 + size + size % 2
    return _packed_fields(random, data, places)


def change_ppm(random: Random, data: bytes) -> bytes:
    """Exchange words of a PPM's head for others."""
    words = data[:40].split(b" ") if b" " in data[:40] else data[:40].split(b"\n")
    odd = (b"0", b"-1", b"65535", b"65536", b"99999999999", b"1e9", b"#", b"", b"P6", b"\xff")
    words[random.randrange(len(words))] = random.choice(odd)
    return random.choice((b" ", b"\n")).join(words) + data[40:]


CHANGES: dict[str, Callable[[Random, bytes], bytes]] = {
    ".png": change_png, ".bmp": change_bmp, ".tif": change_tiff, ".jpg": change_jpeg,
    ".gif": change_gif, ".webp": change_riff, ".ppm": change_ppm,
}  # fmt: skip


@pytest.fixture(scope="session")
def change(mutators) -> Callable[[Random], tuple[str, bytes]]:
    """Change one of the sound pictures: by its structure, by its bytes, or by both."""

    def change(random: Random) -> tuple[str, bytes]:
        name = random.choice(list(sound()))
        data = sound()[name]
        by_structure = CHANGES.get(Path(name).suffix)
        how = random.randrange(4)
        if by_structure is not None and how:
            data = by_structure(random, data)
        if by_structure is None or how in (0, 1):
            data = mutators.change_bytes(random, data)
        return name, data

    return change


@pytest.mark.parametrize("n_inputs", [150, pytest.param(10_000, marks=SLOW)])
def test_changed_pictures_are_read_or_refused_by_name(fuzz, change, n_inputs):
    def make(random: Random, folder: Path) -> list[list[str]]:
        name, data = change(random)
        (folder / name).write_bytes(data)
        return [["read", name]]

    outcomes = fuzz(make, n_inputs)
    assert min(outcomes[0], outcomes[3]) > n_inputs / 20


def _rows(text: str) -> dict[str, list[object]]:
    """What `read` says of each picture, by its name."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("[")]
    return {Path(row[1]).name: row for row in rows}


@pytest.mark.parametrize("n_pictures", [60, pytest.param(400, marks=SLOW)])
def test_a_picture_is_read_among_others_as_it_is_alone(worker, change, tmp_path, n_pictures):
    random = Random(7)
    for label in ("a", "b"):
        (tmp_path / "all" / label).mkdir(parents=True)
        (tmp_path / "all" / label / "0.png").write_bytes(sound()["RGB.png"])
    expected = {}
    for number in range(1, n_pictures + 1):
        name, data = change(random) if number % 3 else random.choice(list(sound().items()))
        name = f"{number}-{name}"
        label = random.choice("ab")
        (tmp_path / "all" / label / name).write_bytes(data)
        alone = tmp_path / "alone" / str(number)
        for other in "ab":
            (alone / other).mkdir(parents=True)
            (alone / other / "0.png").write_bytes(sound()["RGB.png"])
        (alone / label / name).write_bytes(data)
        ended = worker.type(["read", "."], alone)
        assert ended.code == 0, ended
        expected[name] = _rows(ended.text)[name]
        if len(expected[name]) == 5:
            assert expected[name][2] == "ab".index(label)
    ended = worker.type(["read", "."], tmp_path / "all")
    assert ended.code == 0, ended
    found = _rows(ended.text)
    assert {name: row for name, row in found.items() if name != "0.png"} == expected
    n_read = sum(len(row) == 5 for row in expected.values())
    assert n_pictures / 4 < n_read < n_pictures
