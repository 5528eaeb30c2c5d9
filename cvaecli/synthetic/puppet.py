"""The built-in dancer as a puppet: joints can be moved, and labels are drawn as those of the set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .dancer import dice, paint, room
from .dancer.person import perform

Joints = dict[str, npt.NDArray[np.float64]]

NAMES = tuple(dict.fromkeys(name for stick in paint.STICKS for name in stick))
"""The joints at the ends of the label's sticks."""


class Puppet:
    """A clip of the built-in set as moving joints.

    Args:
        name: the clip's name, such as ``val/0``.
        frames: its number of frames.
        height, width: size of the label in pixels.
        seed: of the set.
    """

    def __init__(self, name: str, frames: int, height: int, width: int, seed: int = 0) -> None:
        self.height, self.width = height, width
        self._studio = paint.Studio(height, width)
        self._points = perform(dice(name, seed), frames, width / height)

    def joints(self, t: int) -> dict[str, tuple[float, float]]:
        """The places (x, y) of the joints in frame ``t``, in pixels of the label."""
        points = np.stack([self._points[name][t] for name in NAMES])
        places, _ = room.project(points, self.height, self.width)
        return {name: (float(x), float(y)) for name, (x, y) in zip(NAMES, places, strict=True)}

    def label(self, t: int, moved: Mapping[str, tuple[float, float]] | None = None) -> npt.NDArray[np.uint8]:
        """The label ``[3, H, W]`` of frame ``t``.

        Args:
            moved: new places of some joints; they keep their distance from the camera.
        """
        points: Joints = {name: point[t : t + 1] for name, point in self._points.items()}
        for name, place in (moved or {}).items():
            points[name] = self._at(place, points[name])
        canvas = self.height * self._studio.scale, self.width * self._studio.scale
        picture = self._studio.label(paint.draw(points, *canvas), 0)
        return np.asarray(picture).transpose(2, 0, 1)

    def _at(self, place: tuple[float, float], point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The point ``[1, 3]`` at the depth of ``point`` that is seen at ``place``."""
        (origin,), (scale,) = room.project(point * (0, 0, 1), self.height, self.width)
        x, y = (np.asarray(place) - origin) / scale
        return np.array([[x, -y, point[0, 2]]])
