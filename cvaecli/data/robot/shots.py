"""A trajectory in a record of BAIR's TFRecords: its numbers, and where its frames lie in the file."""

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
from . import common, tfrecord
from .common import Floats
from .tfrecord import RecordError, Values

_KEY = re.compile(r"([0-9]{1,9})/(action|endeffector_pos|image_aux1/encoded)")


@dataclass
class Shot:
    """A trajectory in a file: where its frames are (offsets ``[T]``), and its numbers ``[T, ...]``."""

    name: str
    offsets: npt.NDArray[np.int64]
    side: int
    actions: Floats
    positions: Floats

    @property
    def columns(self) -> tuple[int, int]:
        """Numbers of actions and of positions a step."""
        return self.actions.shape[1], self.positions.shape[1]


def read_shot(name: str, record: tfrecord.Record) -> Shot:
    """The trajectory in a record. Raises `RecordError` with what is wrong with it in one line."""
    if record.fault:
        raise RecordError(record.fault)
    features = tfrecord.parse_example(record.payload)
    steps = sorted({int(key[1]) for key in map(_KEY.fullmatch, features) if key})
    if not steps:
        raise RecordError("no robot trajectory (no 0/action); give BAIR robot pushing records")
    if steps[-1] != len(steps) - 1:
        raise RecordError(f"its steps are {spans(steps)}, they must be 0, 1, ... without a gap; mend it")
    lacks = [
        f"{step}/{part}"
        for step in steps
        for part in ("action", "endeffector_pos", "image_aux1/encoded")
        if f"{step}/{part}" not in features
    ]
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise RecordError(f"no {', '.join(lacks[:3])}{more}; write the file again with all of them")
    actions = _numbers(features, len(steps), "action", len(common.ACTION))
    positions = _numbers(features, len(steps), "endeffector_pos", len(common.POSITION))
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
    return Shot(name, offsets, side, actions, positions)


def _numbers(features: dict[str, Values], steps: int, part: str, usual: int) -> Floats:
    """``[T, D]`` of a feature; D is what most steps have, and BAIR's number where that is not clear."""
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
            raise RecordError(f"{step}/{part} has a number that is not finite (nan or inf); mend it")
    return np.stack(rows)


def copy_frames(file: BinaryIO, shot: Shot, out: npt.NDArray[np.uint8]) -> None:
    """Copies the frames of ``shot`` into ``out`` [T, 3, H, W]. Raises `ValueError` where there are none."""
    height, width = out.shape[2:]
    for row, offset in enumerate(shot.offsets):
        file.seek(int(offset))
        pixels = np.frombuffer(file.read(3 * shot.side**2), np.uint8).reshape(shot.side, shot.side, 3)
        if (height, width) != pixels.shape[:2]:
            # As `images.decode_into` does: antialiased, no overshoot.
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        out[row] = pixels.transpose(2, 0, 1)
