"""The labels of an import: from keypoint files, a detector, or the frames themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..media.panels import Frame
from . import drawing, keypoint_files, skeletons, textures
from .keypoints import Keypoints, Person
from .options import Options

DETECTED = "person"
TEXTURES = {"edges": textures.edges, "foreground": textures.foreground}
"""Labels that are made from the frames."""
SLACK = 2
"""Keypoint files may have this many frames more or fewer than the film: tools disagree about its end."""

Paint = Callable[[int, int], tuple[Frame, list[Person]]]
"""From a frame's number and that of its picture in the film: the label, uint8 ``[H, W, 3]``, and the figures
in it, in pixels of the frame."""


@dataclass(frozen=True)
class Fit:
    """How pictures of the film become frames.

    Attributes:
        box: the part that is used: (left, top, right, bottom) in pixels of the film.
        size: (width, height) of the frames.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]

    def people(self, people: list[Person]) -> list[Person]:
        """Figures in pixels of the film, in pixels of the frame."""
        left, top, right, bottom = self.box
        scale = np.array([self.size[0] / (right - left), self.size[1] / (bottom - top), 1.0])
        return [Person(p.name, (p.points - [left, top, 0]) * scale) for p in people]


class Labels:
    """Labels as the options ask for. Files are read at once: their faults show before the film is read.

    Attributes:
        detector: finds the figures while the film is read; None if none is needed.

    Raises:
        UserError: keypoints, skeleton or weights cannot be used.
        CvaeError: the detector's weights cannot be downloaded.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.detector = None
        self._points: Keypoints | None = None
        self._skeleton: skeletons.Skeleton | str | None = options.skeleton
        if options.skeleton not in (None, "person", "points"):
            self._skeleton = skeletons.read(Path(options.skeleton))
        if options.labels == DETECTED:
            from .detector import Detector

            self.detector = Detector(options.weights, options.device)
        elif options.labels not in TEXTURES:
            path = Path(options.labels)
            if not path.exists():
                hint = f"give keypoints, or {', '.join([DETECTED, *TEXTURES])}"
                raise UserError(f"--labels {path}: no such file or folder", hint)
            named = self._skeleton if isinstance(self._skeleton, skeletons.Skeleton) else None
            self._points = keypoint_files.read(path, named)
            self._skeleton = skeletons.choose(self._skeleton, self._points.names)

    def check_size(self, width: int, height: int) -> None:
        """Whether keypoints fit a film of this size in pixels. Raises `UserError` if not."""
        if self._points is not None:
            if self.options.keypoint_size:
                w, h = self.options.keypoint_size
                self._points = self._points.scaled(width / w, height / h)
            self._points.check(self.options.person, width, height)

    def check_length(self, film: Path, frames: int, whole: bool) -> list[str]:
        """Whether keypoints fit a film of which ``frames`` frames were read, up to its end or (not ``whole``)
        to an earlier one. Returns warnings, raises `UserError` if not."""
        points = self._points
        if points is None:
            return []
        length = points.length
        if length is None:  # frames without a figure are not listed
            length = max(frames, max(points.frames, default=0) + 1) if whole else frames
        elif not whole:
            length = min(length, frames)
        if length == frames:
            return []
        fault = f"{points.source}: keypoints of {length} frames, but {film} has {frames}"
        if abs(length - frames) > SLACK:
            raise UserError(fault, "give the keypoints of this film, with one entry for each of its frames")
        return [fault]

    def take_detected(self, table: Path, film: Path) -> None:
        """Use what the detector found, a plain table in pixels of the film. Raises `UserError` if it is
        empty."""
        self._points = keypoint_files.read(table)
        if not self._points.frames:
            raise UserError(f"{film}: the detector found nobody", "give keypoints, or --labels foreground")
        self._skeleton = skeletons.choose(self._skeleton, self._points.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the figures' points; none if the labels are made from the frames."""
        return self._points.names if self._points else ()

    def painter(self, frames: npt.NDArray[np.uint8], fit: Fit) -> Paint:
        """How to draw the labels of these frames, uint8 ``[N, 3, H, W]``, once all of the film is read."""
        points, skeleton = self._points, self._skeleton
        if points is None:
            texture = TEXTURES[self.options.labels](frames)
            return lambda frame, number: (texture(frames[frame]), [])
        assert isinstance(skeleton, skeletons.Skeleton)

        def paint(frame: int, number: int) -> tuple[Frame, list[Person]]:
            people = fit.people(points.people(number, self.options.person))
            return drawing.draw([p.points for p in people], points.names, skeleton, fit.size), people

        return paint
