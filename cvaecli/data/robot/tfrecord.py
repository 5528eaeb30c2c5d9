"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A file is a sequence of records: uint64 length, masked CRC32C of the length, payload, masked CRC32C of the
payload, all little-endian. `scan` reads one in constant memory and trusts nothing: a damaged file raises
a `RecordError` and never returns wrong data.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Bytes = bytes | memoryview

MAX_RECORD = 512 * 1024 * 1024
"""A longer record is refused, because a whole record is held in memory."""

_POLYNOMIAL = 0x82F63B78  # Castagnoli, lowest bit first
_MASK = 0xA282EAD8
_HEAD = struct.Struct("<QI")


class RecordError(ValueError):
    """A fault of a record or a message, with its remedy and without the file's name."""


class Span(NamedTuple):
    """The place of a payload or a value: bytes ``start`` to ``stop`` (exclusive)."""

    start: int
    stop: int


# -- CRC32C ------------------------------------------------------------------------------------------


def crc32c(data: Bytes) -> int:
    """CRC32C (Castagnoli, RFC 3720 B.4) of ``data``, about 1 GB/s with numpy alone.

    Long data are folded. A CRC is linear over GF(2), so the first m of 2m words can be moved by m words (a
    linear map of 32 bits, in two tables) and added to the last m words. This is repeated with half of m.
    """
    if len(data) < 64:
        state = 0xFFFFFFFF
        for byte in bytes(data):
            state = state >> 8 ^ _byte_table()[(state ^ byte) & 0xFF]
        return state ^ 0xFFFFFFFF
    # Leading zeros have no effect once the initial state is added to the first four bytes.
    padded = np.zeros(-(-len(data) // 4) * 4, np.uint8)
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    padded[len(padded) - len(data) :][:4] ^= 0xFF
    words: Words = padded.view("<u4")
    while len(words) > 1:
        power = (len(words) - 1).bit_length() - 1
        front = len(words) - (1 << power)
        moved = _moved(words[:front], power)
        words = words[front:]
        words[len(words) - front :] ^= moved
    return int(_moved(words, 0)[0]) ^ 0xFFFFFFFF


def masked_crc(data: Bytes) -> int:
    """CRC32C as TFRecords store it: rotated, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


@functools.cache
def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


@functools.cache
def _shift(power: int) -> tuple[Words, Words]:
    """Tables of the linear map for 2^power following zero words: for a state's low and its high 16 bits."""
    if power == 0:
        images = [1 << bit for bit in range(32)]
        for _ in range(4):
            images = [state >> 8 ^ _byte_table()[state & 0xFF] for state in images]
        basis: Words = np.array(images, np.uint32)
    else:
        before = _moved(np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32)), power - 1)
        basis = _moved(before, power - 1)
    tables = []
    for half in (basis[:16], basis[16:]):
        table = np.zeros(1, np.uint32)
        for image in half:
            table = np.concatenate([table, table ^ image])
        tables.append(table)
    return tables[0], tables[1]


def _moved(states: Words, power: int) -> Words:
    low, high = _shift(power)
    moved: Words = low[states & np.uint32(0xFFFF)] ^ high[states >> np.uint32(16)]
    return moved


# -- records -----------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One record: the payload, its place in the file, and its fault (or "")."""

    span: Span
    payload: memoryview
    fault: str


def scan(path: Path) -> Iterator[Record]:
    """Every record of a file in order, one in memory at a time.

    A record whose payload does not match its checksum has a ``fault``; reading continues after it.

    Raises:
        RecordError: nothing more can be read: the file is empty, truncated, unreadable or not a TFRecord.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise RecordError("the file is empty (0 bytes); copy it again")
            position = 0
            for number in itertools.count():
                head = file.read(_HEAD.size)
                if not head:
                    return
                length = _length(head, number)
                position += _HEAD.size
                if length + 4 > size - position:
                    raise RecordError(f"record {number}: the file ends inside it (truncated); copy it again")
                if length > MAX_RECORD:
                    raise RecordError(
                        f"record {number}: {length} bytes, larger than the limit of {MAX_RECORD}; split it"
                    )
                raw = file.read(length + 4)
                if len(raw) != length + 4:
                    raise RecordError("the file was changed while it was read; start again")
                payload = memoryview(raw)[:length]
                good = masked_crc(payload) == int.from_bytes(raw[length:], "little")
                fault = "" if good else "the data are damaged (checksum does not match); copy the file again"
                yield Record(Span(position, position + length), payload, fault)
                position += length + 4
    except OSError as error:
        raise RecordError(f"cannot be read ({error.strerror}); check the file and its permissions") from None


def _length(head: bytes, number: int) -> int:
    if head.startswith(b"\x1f\x8b") and number == 0:
        raise RecordError("compressed with gzip; unpack it with gunzip")
    if len(head) < _HEAD.size:
        raise RecordError(f"record {number}: the file ends inside its header (truncated); copy it again")
    length, crc = _HEAD.unpack(head)
    if masked_crc(head[:8]) != crc:
        if number == 0:
            raise RecordError("not a TFRecord file (the first length's checksum does not match); replace it")
        raise RecordError(f"record {number}: its header is damaged (checksum does not match); copy it again")
    return int(length)


def frame(payload: bytes) -> bytes:
    """``payload`` as a record."""
    length = struct.pack("<Q", len(payload))
    crcs = (struct.pack("<I", masked_crc(part)) for part in (length, payload))
    return length + next(crcs) + payload + next(crcs)


# -- tf.train.Example --------------------------------------------------------------------------------


class Values(NamedTuple):
    """The values of one feature; the list of another type is empty."""

    floats: npt.NDArray[np.float32]
    blobs: list[Span]


def parse_example(message: memoryview) -> dict[str, Values]:
    """The features of a serialised ``tf.train.Example`` by name; int64 lists are ignored.

    ``Example.features (1) > Features.feature (1), a map > {key (1), Feature (2)} > Feature.bytes_list (1)
    | float_list (2) | int64_list (3) > value (1)``. Floats may be packed or not. As in protobuf,
    the last of equal keys wins, and unknown fields are ignored.

    Returns:
        Floats as values, bytes as spans of ``message``, so that nothing large is copied.

    Raises:
        RecordError: this is not such a message.
    """
    found: dict[str, Values] = {}
    for features in _submessages(message, Span(0, len(message)), 1):
        for entry in _submessages(message, features, 1):
            keys = list(_submessages(message, entry, 1))
            try:
                name = str(message[slice(*keys[-1])], "utf-8") if keys else ""
            except UnicodeDecodeError:
                raise RecordError("a feature's name is not UTF-8 text; write the file again") from None
            found[name] = _values(message, list(_submessages(message, entry, 2)))
    return found


def _values(message: memoryview, features: Sequence[Span]) -> Values:
    floats: list[Bytes] = []
    blobs: list[Span] = []
    for feature in features:
        for bytes_list in _submessages(message, feature, 1):
            blobs += _submessages(message, bytes_list, 1)
        for float_list in _submessages(message, feature, 2):
            for number, kind, span in _fields(message, float_list):
                if number == 1 and kind in (2, 5):
                    floats.append(message[slice(*span)])
    raw = b"".join(floats)
    if len(raw) % 4:
        raise RecordError("a list of floats is not a multiple of four bytes; write the file again")
    return Values(np.frombuffer(raw, "<f4").astype(np.float32), blobs)


def _submessages(message: memoryview, span: Span, wanted: int) -> Iterator[Span]:
    for number, kind, inner in _fields(message, span):
        if number == wanted and kind == 2:
            yield inner


def _fields(message: memoryview, span: Span) -> Iterator[tuple[int, int, Span]]:
    """(field number, wire type, span of its bytes) of each field of a message, in order."""
    position, stop = span
    while position < stop:
        tag, position = _varint(message, position, stop)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, end = _varint(message, position, stop)
        elif kind in (1, 5):
            end = position + (8 if kind == 1 else 4)
        elif kind == 2:
            length, position = _varint(message, position, stop)
            end = position + length
        else:
            raise RecordError("not a tf.train.Example message (an unknown wire type); write the file again")
        if end > stop or number == 0:
            raise RecordError("not a tf.train.Example message (a field leaves it); write the file again")
        yield number, kind, Span(position, end)
        position = end


def _varint(message: memoryview, position: int, stop: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position + index >= stop:
            break
        byte = message[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise RecordError("not a tf.train.Example message (a number without end); write the file again")


def build_example(features: Mapping[str, bytes | npt.NDArray[np.float32]]) -> bytes:
    """A serialised ``tf.train.Example``: bytes as a list of one value, arrays as packed floats."""
    parts = []
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _tagged(1, _tagged(1, value))
        else:
            feature = _tagged(2, _tagged(1, value.astype("<f4").tobytes()))
        parts.append(_tagged(1, _tagged(1, name.encode()) + _tagged(2, feature)))
    return _tagged(1, b"".join(parts))


def _tagged(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    size, length = len(value), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value
