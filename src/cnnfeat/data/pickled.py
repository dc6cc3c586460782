"""Pickles as data: their opcodes are walked, and never run.

The opcodes are those of `pickletools`, protocols 0 to 5, as Python 2 and 3 write them. What is
known is lists, dicts, tuples, bytes, text, whole numbers, and the few calls by which NumPy's arrays
of numbers are written down; these are done here, by hand. Whatever else a pickle asks for is
refused by its name, and nothing is imported for it.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

import numpy as np

from cnnfeat.data.source import open_file
from cnnfeat.errors import DataError

if TYPE_CHECKING:
    from cnnfeat.records import Array

MAX_BYTES = 2**30  # of a pickle; CIFAR-100's training batch has 155 million
MAX_STEPS = 2_000_000  # opcodes; the same batch has 300,000
_COPIES = 4  # of a whole pickle, that what is made of it may take
_DTYPE = re.compile(r"[<>|=]?[biuf][1248]")
_MAX_AXES = 8
_LONGEST_AXIS = 2**40
_START = re.compile(rb"\x80[\x02-\x05]|\(dp[0-9]|\}q")
_MARK = object()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
# By the names in Python 2 and 3, NumPy 1 and 2.
_KNOWN = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "_codecs encode": "encode",  # bytes, in the protocols that have none
    "__builtin__ bytes": "bytes",  # the same, where there are none in them
    "builtins bytes": "bytes",
}
_NEW: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_ARGUMENTS = frozenset(  # opcodes that push what stands beside them
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_T = TypeVar("_T")
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError)


@dataclass(slots=True, eq=False)
class _Call:
    """A name that is known, or what came of calling it, to which BUILD adds a state."""

    what: str
    dtype: np.dtype[np.generic] | None = None
    array: Array | None = None


def is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, or pickled dicts before protocol 2."""
    with open_file(path) as file:
        return _START.match(file.read(4)) is not None


def read_pickle(path: Path) -> Mapping[str, object]:
    """Read a pickle that holds a dict.

    Returns
    -------
    mapping of str to object
        Its values, by their keys as text; arrays are arrays of NumPy, text of Python 2 is bytes.

    Raises
    ------
    DataError
        If it holds anything but a dict of plain data and arrays, or is damaged, or too large.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: a pickle of {size:,} bytes; up to {MAX_BYTES:,} are read")
        stream = io.BytesIO(file.read())
    try:
        found = _Walk(str(path), allowed_bytes=_COPIES * size + 4096).run(stream)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: a damaged pickle: {error or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a pickle of a {type(found).__name__}; a dict is needed")
    return {as_text(key): _finished(value) for key, value in found.items()}


def as_text(value: object) -> str:
    """Read text of either Python as text; what is no text is "".

    Nothing else of a pickle is ever written out: lists that hold each other would never end.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _finished(value: object) -> object:
    return value.array if isinstance(value, _Call) and value.array is not None else value


class _Walk:
    """The stack and the memo of a pickle, as it is gone through."""

    def __init__(self, name: str, *, allowed_bytes: int) -> None:
        self._name = name
        self._allowed_bytes = allowed_bytes
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    def run(self, stream: BinaryIO) -> object:
        """Go through the opcodes to the last, and say what is left."""
        for _ in range(MAX_STEPS):
            code = stream.read(1)
            if not code:
                raise ValueError("it ends before its last opcode")
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is None:
                raise ValueError(f"no opcode is {code.hex()}")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, _argument(opcode, stream))
        raise DataError(f"{self._name}: a pickle of more than {MAX_STEPS:,} steps")

    def _step(self, opcode: str, argument: object) -> None:
        if opcode in _ARGUMENTS:
            self._stack.append(argument)
        elif opcode in _NEW:
            self._stack.append(_NEW[opcode]())
        elif opcode in ("PROTO", "FRAME"):
            pass
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[cast(int, argument)] = self._stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[cast(int, argument)])
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            self._name_a_call(argument)
        elif opcode == "REDUCE":
            arguments, call = self._stack.pop(), self._stack.pop()
            self._stack.append(self._call(call, arguments))
        elif opcode == "BUILD":
            state = self._stack.pop()
            self._build(self._stack[-1], state)
        elif not self._gather(opcode):
            raise self._refused(f"{opcode} {as_text(argument)}".rstrip())

    def _gather(self, opcode: str) -> bool:
        """Make lists, dicts and tuples; False for an opcode that is about none."""
        stack = self._stack
        if opcode == "MARK":
            stack.append(_MARK)
        elif opcode == "POP":
            stack.pop()
        elif opcode == "POP_MARK":
            self._since_mark()
        elif opcode == "DUP":
            stack.append(stack[-1])
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(opcode[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif opcode == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif opcode == "LIST":
            stack.append(self._since_mark())
        elif opcode == "DICT":
            stack.append(self._pairs(self._since_mark()))
        elif opcode in ("APPEND", "APPENDS"):
            items = self._since_mark() if opcode == "APPENDS" else [stack.pop()]
            self._last(list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if opcode == "SETITEMS" else [stack.pop(-2), stack.pop()]
            self._last(dict).update(self._pairs(items))
        else:
            return False
        return True

    def _last(self, kind: type[_T]) -> _T:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is missing")
        return self._stack[-1]

    def _since_mark(self) -> list[object]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _pairs(self, items: list[object]) -> dict[object, object]:
        keys = items[::2]
        if any(not isinstance(key, str | bytes | int) for key in keys):
            raise self._refused("a dict whose keys are neither text nor numbers")
        return dict(zip(keys, items[1::2], strict=True))

    def _name_a_call(self, argument: object) -> None:
        if argument is None:  # STACK_GLOBAL
            name, module = self._stack.pop(), self._stack.pop()
            argument = f"{as_text(module)} {as_text(name)}"
        if argument not in _KNOWN:
            raise self._refused(str(argument).replace(" ", "."))
        self._stack.append(_Call(_KNOWN[argument]))

    def _call(self, call: object, arguments: object) -> object:
        if not isinstance(call, _Call) or not isinstance(arguments, tuple):
            raise self._refused("a call of what is no name")
        match call.what, *arguments:
            case "reconstruct", _Call(what="ndarray"), *_:
                return _Call("array")
            case "dtype", str() | bytes() as name, *_:
                return _Call("type", dtype=self._dtype(as_text(name)))
            case "frombuffer", buffer, _Call(dtype=np.dtype()) as kind, shape, order:
                array = self._array(buffer, kind, shape, fortran=as_text(order) == "F")
                return _Call("array", array=array)
            case "encode", str() as text, str() as encoding if encoding in ("latin1", "latin-1"):
                return self._counted(text.encode("latin-1"))
            case "bytes", *nothing if not nothing:
                return b""
        raise self._refused(f"a call of {call.what}")

    def _build(self, target: object, state: object) -> None:
        match target, state:
            case _Call(what="type", dtype=np.dtype() as dtype), (_, order, None, None, None, *_):
                if as_text(order) in ("<", ">"):
                    target.dtype = dtype.newbyteorder(">" if as_text(order) == ">" else "<")
            case _Call(what="array"), (_, shape, _Call(dtype=np.dtype()) as kind, fortran, buffer):
                target.array = self._array(buffer, kind, shape, fortran=bool(fortran))
            case _:
                raise self._refused("the state of an object")

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        if not _DTYPE.fullmatch(name):
            raise self._refused(f"an array of dtype {name}")
        return np.dtype(name)

    def _array(self, buffer: object, kind: _Call, shape: object, *, fortran: bool) -> Array:
        """Make an array of numbers, on the bytes themselves."""
        if isinstance(buffer, str):  # as Python 3 has what Python 2 wrote
            buffer = self._counted(buffer.encode("latin-1"))
        if not isinstance(buffer, bytes | bytearray) or kind.dtype is None:
            raise self._refused("an array whose numbers are no bytes")
        if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
            raise ValueError("an array without a shape")
        if not all(type(n) is int and 0 <= n < _LONGEST_AXIS for n in shape):
            raise ValueError("an array whose shape is none")
        needed = math.prod(shape) * kind.dtype.itemsize
        if len(buffer) != needed:
            raise ValueError(f"an array of {shape} takes {needed:,} bytes, not {len(buffer):,}")
        array = np.frombuffer(buffer, kind.dtype).reshape(shape, order="F" if fortran else "C")
        array.flags.writeable = False
        return array

    def _counted(self, made: bytes) -> bytes:
        """Keep count of copies, so that a small pickle can't fill the memory."""
        self._allowed_bytes -= len(made)
        if self._allowed_bytes < 0:
            raise DataError(f"{self._name}: a pickle that unpacks to many times its size")
        return made

    def _refused(self, what: str) -> DataError:
        return DataError(
            f"{self._name}: a pickle with more than data in it: {what[:100]}. Arrays of numbers, "
            "lists, dicts, tuples, bytes, text and whole numbers are read; nothing in it is run",
            hint="if you trust it, load it yourself and save its arrays with np.savez",
        )


def _argument(opcode: pickletools.OpcodeInfo, stream: BinaryIO) -> object:
    """Read what stands beside an opcode. Text of Python 2 is bytes."""
    if opcode.arg is None:
        return None
    if opcode.name == "STRING":
        line = stream.readline().rstrip(b"\n")
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise ValueError("text without quotes")
        return codecs.escape_decode(line[1:-1])[0]
    argument = opcode.arg.reader(stream)
    if opcode.name in ("BINSTRING", "SHORT_BINSTRING"):
        return cast(str, argument).encode("latin-1")
    return argument
