"""Reads a file of ``torch.save`` that holds whole objects, without running anything in it.

A pickle is a program that may call any function by name. Here every name means an inert class (`Record`) that
keeps what it is given and does nothing. So a file can only build records and plain containers. Tensors are
made afterwards, from the few records that describe them, with all sizes checked.

Both formats of ``torch.save`` are read: the zip archive, and the one before version 1.6.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

MAX_MODULES = 10_000
"""Limit on the modules of a file: a few shared records can describe a tree of any size."""

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")


class Record:
    """What a file says about an object. Subclasses differ in ``origin`` alone.

    Attributes:
        origin: module and name of the object's class, or of the function that would make it.
        arguments: what it would be called with.
        state: what its ``__setstate__`` would get.
        entries: what it would get as a dict.
        elements: what it would get as a list.
    """

    origin: ClassVar[str] = ""

    arguments: tuple[object, ...]
    state: object
    entries: dict[object, object]
    elements: list[object]

    def __new__(cls, *arguments: object) -> Record:
        """Keep the arguments."""
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        record.entries, record.elements = {}, []
        return record

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def append(self, element: object) -> None:
        """Called for a list's elements one by one."""
        self.elements.append(element)

    def extend(self, elements: list[object]) -> None:
        """Called for several elements of a list."""
        self.elements.extend(elements)


class Storage(NamedTuple):
    """A tensor's memory.

    Attributes:
        dtype: type of its elements.
        key: its name in the file.
        length: number of elements.
        offset: first element, in a storage that is a part of another.
    """

    dtype: torch.dtype
    key: str
    length: int
    offset: int = 0


# The unpickler in Python, not the one in C: its memo is a dict, so a file cannot claim gigabytes for it.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO, storages: dict[str, Storage]) -> None:
        super().__init__(file, encoding="latin-1")
        self._storages = storages

    def find_class(self, module: str, name: str) -> type[Record]:
        return type("Record", (Record,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: object) -> object:
        if not isinstance(pid, tuple) or len(pid) < 2:
            raise pickle.UnpicklingError("unknown kind of persistent object")
        if pid[0] == "module":  # a class with its source code, before version 1.6
            return pid[1]
        _, kind, key, _location, count, *view = pid
        name = kind.origin.rpartition(".")[2]
        whole = Storage(DTYPES[name], str(key), _natural(count))
        self._storages[whole.key] = whole
        if view and view[0] is not None:
            _, offset, count = view[0]
            return whole._replace(length=_natural(count), offset=_natural(offset))
        return whole


class InertFile:
    """A file's content as records, plain containers, numbers and text.

    Args:
        path: the file.

    Attributes:
        content: the object that was saved.

    Raises:
        UserError: the file cannot be read, is damaged, or is no file of ``torch.save``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._storages: dict[str, Storage] = {}
        self._bytes: dict[str, bytes] = {}
        try:
            with path.open("rb") as file:
                is_zip = file.read(4) == b"PK\x03\x04"
                file.seek(0)
                self.content: object = self._read_zip(file) if is_zip else self._read_stream(file)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # a damaged file can raise any error inside the unpickler
            raise UserError(
                f"{path}: damaged, or not a file of torch.save", "copy it again, or save it again"
            ) from error

    def tensor(self, value: object) -> Tensor | None:
        """The tensor or parameter that a record describes; None for anything else.

        Raises:
            UserError: it does not lie within its storage.
        """
        if isinstance(value, Record) and value.origin in PARAMETERS and value.arguments:
            value = value.arguments[0]
        if not isinstance(value, Record) or value.origin not in TENSORS:
            return None
        try:
            storage, first, size, stride = value.arguments[:4]
            if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
                raise ValueError("not a tensor's numbers")
            flat = self._elements(storage)
            return flat.as_strided([*map(_natural, size)], [*map(_natural, stride)], _natural(first))
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: holds a damaged tensor", "copy the file again") from error

    def state_dict(self, value: object) -> dict[str, Tensor]:
        """The tensors of a saved module, or of a saved state dict, under their usual names.

        Raises:
            UserError: a damaged tensor, or too many modules.
        """
        found = mapping(value)
        if found is not None:
            return {str(n): tensor for n in found if (tensor := self.tensor(found[n])) is not None}
        tensors: dict[str, Tensor] = {}
        waiting = [("", value)]
        seen = 0
        while waiting:
            if (seen := seen + 1) > MAX_MODULES:
                raise UserError(f"{self.path}: holds more than {MAX_MODULES} modules", "is it a model?")
            prefix, module = waiting.pop()
            attributes = mapping(module.state) if isinstance(module, Record) else None
            for kind in ("_parameters", "_buffers", "_modules"):
                parts = mapping((attributes or {}).get(kind)) or {}
                for name, part in parts.items():
                    if kind == "_modules":
                        waiting.append((f"{prefix}{name}.", part))
                    elif (tensor := self.tensor(part)) is not None:
                        tensors[f"{prefix}{name}"] = tensor
        return tensors

    # --- formats ----------------------------------------------------------------------------------

    def _read_zip(self, file: BinaryIO) -> object:
        with zipfile.ZipFile(file) as archive:
            (name,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
            content: object = _Unpickler(io.BytesIO(archive.read(name)), self._storages).load()
            for key, storage in self._storages.items():
                info = archive.getinfo(f"{name.removesuffix('data.pkl')}data/{key}")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != _size(storage):
                    raise ValueError("a storage of another size")
                self._bytes[key] = archive.read(info)
        return content

    def _read_stream(self, file: BinaryIO) -> object:
        """A magic number, a version and the machine's sizes; the content; the storages' keys and bytes."""
        magic, _version, machine, content, keys = (_Unpickler(file, self._storages).load() for _ in range(5))
        if magic != 0x1950A86A20F9469CFC6C or not machine["little_endian"]:
            raise ValueError("another format")
        for key in keys:
            storage = self._storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            self._bytes[key] = file.read(_size(storage))
            if count != storage.length or len(self._bytes[key]) != _size(storage):
                raise ValueError("a storage of another size")
        result: object = content
        return result

    def _elements(self, storage: Storage) -> Tensor:
        data = self._bytes[storage.key]
        if not storage.length:
            return torch.empty(0, dtype=storage.dtype)
        offset = storage.offset * storage.dtype.itemsize
        return torch.frombuffer(bytearray(data), dtype=storage.dtype, count=storage.length, offset=offset)


def mapping(value: object) -> Mapping[object, object] | None:
    """A dict, the record of an ``OrderedDict``, or an ``argparse.Namespace`` as a dict; else None."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Record) and value.origin == "argparse.Namespace":
        return value.state if isinstance(value.state, dict) else None
    if isinstance(value, Record) and value.origin == "collections.OrderedDict":
        given = value.arguments[0] if value.arguments else []
        pairs = (
            [pair for pair in given if isinstance(pair, list | tuple) and len(pair) == 2]
            if isinstance(given, list | tuple)
            else []
        )
        return {**{pair[0]: pair[1] for pair in pairs}, **value.entries}
    return None


def _natural(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError("not a size")
    return number


def _size(storage: Storage) -> int:
    return storage.length * storage.dtype.itemsize
