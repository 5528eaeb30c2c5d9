"""Clips: the common form of all data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Clip:
    """One uncut stretch of video and the condition that drives each of its steps.

    Attributes:
        name: unique within the data set, e.g. ``train/0-629`` (split, first and last file number).
        frames: uint8 ``[T, C, H, W]``, RGB, 0..255; a plain array or a read-only memory map.
            A test sequence may have fewer frames than conditions: only the given ones.
        condition: ``[N, ...]`` with ``N >= T``. ``condition[t]`` drives the step from frame ``t - 1`` to
            frame ``t``. Label images are uint8 ``[N, C, H, W]``; vectors are float32 ``[N, D]``.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    condition: npt.NDArray[np.uint8] | npt.NDArray[np.float32]

    @property
    def n_frames(self) -> int:
        """Number of true frames."""
        return len(self.frames)

    @property
    def n_steps(self) -> int:
        """Number of conditions: the length of the longest video that can be predicted, including given
        frames."""
        return len(self.condition)

    def first(self, n: int) -> Clip:
        """The clip's first ``n`` frames with their conditions; the whole clip if it is shorter."""
        return Clip(self.name, self.frames[:n], self.condition[:n])


def first_frames(lengths: Sequence[int], share: float) -> list[int]:
    """How many frames of each clip are used if only the first ``share`` of all frames is used.

    Args:
        lengths: number of frames of each clip, in order.
        share: ``data.partial``, in (0, 1].
    """
    left = int(sum(lengths) * share + 1e-9)  # 0.29 of 100 is 29, although 0.29 * 100 is 28.999...
    kept = []
    for length in lengths:
        kept.append(min(length, left))
        left -= kept[-1]
    return kept


@dataclass(frozen=True)
class VideoData:
    """A whole data set, decoded and resized.

    Attributes:
        splits: ``train``, ``val`` and, if the source has one, ``test``; each a list of clips.
        source: where it came from, in one line.
        fingerprint: hex digest of the clips' names and contents; equal data give equal digests.
        warnings: what is odd but usable, one line each.
        summary: what the conversion of the source found, one line each.
        converted: whether the source was converted just now instead of read from the cache.
        condition_parts: the columns of each part of a condition vector: ``actions`` and ``positions`` of
            a robot arm. Empty if conditions are label images.
    """

    splits: dict[str, Sequence[Clip]]
    source: str
    fingerprint: str
    warnings: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    converted: bool = False
    condition_parts: dict[str, slice] = field(default_factory=dict)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of every frame."""
        clip = next(clip for clips in self.splits.values() for clip in clips)
        return clip.frames.shape[2], clip.frames.shape[3]


def digest(*parts: object) -> str:
    """A short hex digest of the ``repr`` of ``parts``."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
