"""The keypoints of a film: figures by frame, and the plain table that they are written to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .film import by_number

Points = npt.NDArray[np.float64]

COLUMNS = ["frame", "person", "name", "x", "y", "confidence"]
"""The columns of a plain table."""
Row = list[int | str | float]
"""A row of a plain table."""
OUTSIDE = 0.1
"""Keypoints of a film of this size have at most this share of their points outside the picture."""


class Person(NamedTuple):
    """A figure in one frame: its name, and x, y in pixels and the confidence in 0..1 of each point,
    ``[P, 3]``. Confidence 0: the point is missing."""

    name: str
    points: Points


@dataclass
class Keypoints:
    """The keypoints of a film.

    Attributes:
        source: the file, for messages.
        names: the P names of the points.
        frames: the figures of each frame, by the frame's number in the film.
        length: the number of frames that the file covers; None if frames without a figure are not listed.
        size: (width, height) of the pictures that they were found in; None if the file does not say.
    """

    source: str
    names: tuple[str, ...]
    frames: dict[int, list[Person]] = field(default_factory=lambda: defaultdict(list))
    length: int | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        ends = ("left_shoulder", "right_shoulder")
        if "neck" not in self.names and set(ends) <= set(self.names):
            places = [self.names.index(end) for end in ends]
            self.names = (*self.names, "neck")
            for people in self.frames.values():
                people[:] = [Person(p.name, np.vstack([p.points, _middle(p.points[places])])) for p in people]

    def people(self, frame: int, person: str) -> list[Person]:
        """The figures of a frame.

        Args:
            person: ``all``, ``largest``, or the name or number of one.
        """
        people = self.frames.get(frame, [])
        if person == "all" or not people:
            return people
        if person == "largest":
            return [max(people, key=lambda p: extent(p.points))]
        return [p for p in people if p.name == person]

    def check(self, person: str, width: int, height: int) -> None:
        """Whether they fit the film's pictures.

        Raises:
            UserError: they were found in pictures of another size, or nobody has this name.
        """
        hint = "give the size of the pictures in which they were found: --keypoint-size WxH"
        if self.size not in (None, (width, height)):
            w, h = self.size
            raise UserError(f"{self.source}: keypoints of a {w}x{h} film, but this is {width}x{height}", hint)
        seen = np.concatenate(
            [p.points[p.points[:, 2] > 0, :2] for people in self.frames.values() for p in people]
            or [np.zeros((0, 2))]
        )
        if len(seen) == 0:
            raise UserError(f"{self.source}: no points in it", "is this the right file?")
        margin = OUTSIDE * np.array([width, height])
        outside = float(((seen < -margin) | (seen > np.array([width, height]) + margin)).any(1).mean())
        if outside > OUTSIDE:
            raise UserError(
                f"{self.source}: {outside:.0%} of the points are outside the {width}x{height} picture", hint
            )
        if len(seen) > 10 and seen.max() <= 1.5 < min(width, height) / 10:
            raise UserError(
                f"{self.source}: coordinates are shares of the picture", "add --keypoint-size 1x1"
            )
        if person not in ("all", "largest"):
            names = sorted({p.name for people in self.frames.values() for p in people}, key=by_number)
            if person not in names:
                raise UserError(f"--person {person}: not in {self.source}", f"it has {', '.join(names[:20])}")

    def scaled(self, sx: float, sy: float) -> Keypoints:
        """With x and y multiplied, for a film of another size."""
        frames = {
            number: [Person(p.name, p.points * [sx, sy, 1.0]) for p in people]
            for number, people in self.frames.items()
        }
        return Keypoints(self.source, self.names, frames, self.length)


def extent(points: Points) -> float:
    """The diagonal of the box around the points that are there, in pixels; 0 if there are none."""
    seen = points[points[:, 2] > 0, :2]
    return float(np.hypot(*np.ptp(seen, axis=0))) if len(seen) else 0.0


def rows(frame: int, people: Sequence[Person], names: Sequence[str]) -> Iterator[Row]:
    """The rows of a plain table for one frame; missing points are left out."""
    for person in people:
        for name, (x, y, sure) in zip(names, person.points.tolist(), strict=True):
            if sure > 0:
                yield [frame, person.name, name, round(x, 2), round(y, 2), round(sure, 3)]


def _middle(ends: Points) -> Points:
    """The point between two, missing if one of them is: ``[3]``."""
    sure = ends[:, 2].min()
    middle: Points = np.array([*ends[:, :2].mean(0), sure]) if sure > 0 else np.zeros(3)
    return middle
