"""One record of BAIR's TFRecords: a trajectory's numbers, and the places of its frames in the file."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..report import spans
from . import tfrecord
from .condition import COLUMNS, Floats
from .tfrecord import RecordError, Values

_KEY = re.compile(r"([0-9]{1,9})/(action|endeffector_pos|image_aux1/encoded)")


@dataclass
class BairRecord:
    """A trajectory in a file.

    Attributes:
        name: name of the trajectory.
        offsets: ``[T]``: byte in the file where each frame's pixels begin.
        side: height and width of the frames in the file.
        actions: ``[T, A]``.
        positions: ``[T, P]``.
    """

    name: str
    offsets: npt.NDArray[np.int64]
    side: int
    actions: Floats
    positions: Floats

    @property
    def columns(self) -> tuple[int, int]:
        """(A, P): how many actions and positions a step has."""
        return self.actions.shape[1], self.positions.shape[1]


def read_record(name: str, record: tfrecord.Record) -> BairRecord:
    """The trajectory in a record. Raises `RecordError` with its fault in one line."""
    if record.fault:
        raise RecordError(record.fault)
    features = tfrecord.parse_example(record.payload)
    steps = sorted({int(key[1]) for key in map(_KEY.fullmatch, features) if key})
    if not steps:
        raise RecordError("no robot trajectory (no 0/action); give BAIR robot pushing records")
    if steps[-1] != len(steps) - 1:
        raise RecordError(f"its steps are {spans(steps)}, they must be 0, 1, ... without a gap; correct it")
    lacks = [
        f"{step}/{part}"
        for step in steps
        for part in ("action", "endeffector_pos", "image_aux1/encoded")
        if f"{step}/{part}" not in features
    ]
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise RecordError(f"no {', '.join(lacks[:3])}{more}; write the file again with all of them")
    actions = _numbers(features, len(steps), "action", len(COLUMNS["actions"]))
    positions = _numbers(features, len(steps), "endeffector_pos", len(COLUMNS["positions"]))
    frames = [features[f"{step}/image_aux1/encoded"].blobs for step in steps]
    wrong = [step for step, blobs in enumerate(frames) if len(blobs) != 1]
    if wrong:
        raise RecordError(f"{wrong[0]}/image_aux1/encoded: {len(frames[wrong[0]])} values instead of one")
    size = frames[0][0].stop - frames[0][0].start
    side = math.isqrt(size // 3)
    for step, ((start, stop),) in enumerate(frames):
        if stop - start != size or side * side * 3 != size or size == 0:
            raise RecordError(
                f"{step}/image_aux1/encoded: {stop - start} bytes, not those of a square raw RGB picture "
                "(64x64: 12288) like the others; write it again"
            )
    offsets = np.array([blobs[0].start for blobs in frames], np.int64) + record.span.start
    return BairRecord(name, offsets, side, actions, positions)


def _numbers(features: dict[str, Values], steps: int, part: str, usual: int) -> Floats:
    """A feature's numbers ``[T, D]``; D is the number that most steps have; in a tie, BAIR's number."""
    rows = [features[f"{step}/{part}"].floats for step in range(steps)]
    counts = Counter(len(row) for row in rows)
    wanted = max(counts, key=lambda count: (counts[count], count == usual))
    for step, row in enumerate(rows):
        if len(row) != wanted or not len(row):
            need = wanted or usual
            raise RecordError(
                f"{step}/{part} has {len(row)} numbers, {need} are needed; write the file again"
            )
        if not np.isfinite(row).all():
            raise RecordError(f"{step}/{part} has a number that is not finite (nan or inf); correct it")
    return np.stack(rows)


def copy_frames(file: BinaryIO, record: BairRecord, out: npt.NDArray[np.uint8]) -> None:
    """Reads and resizes the frames of ``record`` into ``out`` ``[T, 3, H, W]``.

    Raises:
        ValueError: the file ends before them.
    """
    height, width = out.shape[2:]
    for row, offset in enumerate(record.offsets):
        file.seek(int(offset))
        pixels = np.frombuffer(file.read(3 * record.side**2), np.uint8).reshape(record.side, record.side, 3)
        if (height, width) != pixels.shape[:2]:
            # As `images.decode_into` does: antialiased, no overshoot.
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        out[row] = pixels.transpose(2, 0, 1)
