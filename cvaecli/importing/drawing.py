"""Draws label images: figures as coloured sticks on white, as the course's labels are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..media.panels import Frame
from .keypoints import Points
from .skeletons import Colour, Skeleton

STICK = 0.036
"""A stick's width as a share of the picture's shorter side, as in the built-in dancer's labels."""
LEAST = 1.2
"""The least width of a stick in pixels: a thinner one pales."""
SURE = 0.5
"""Confidence from which a stick has its full colour; below, it fades to white."""
SCALE = 8
"""A pixel is this many canvas pixels wide and high; down-sampling the canvas smooths the edges."""


def draw(figures: Sequence[Points], names: Sequence[str], skeleton: Skeleton, size: tuple[int, int]) -> Frame:
    """A label image.

    Args:
        figures: ``[P, 3]`` each: x, y in pixels of the label, and the confidence; 0: missing.
        names: the P names of the points.
        size: (width, height) of the label in pixels.

    Returns:
        uint8 ``[height, width, 3]``.
    """
    width, height = size
    place = {name: i for i, name in enumerate(names)}
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    pen = ImageDraw.Draw(canvas)
    radius = SCALE * max(LEAST, STICK * min(size)) / 2
    sticks = []
    for points in figures:
        for limb in skeleton.limbs:
            if limb.start in place and limb.end in place:
                ends = points[[place[limb.start], place[limb.end]]]
                sticks.append((float(ends[:, 2].min()), ends[:, :2] * SCALE, limb.colour))
    for sure, ends, colour in sorted(sticks, key=lambda stick: stick[0]):  # the surest ones last, on top
        if sure > 0:
            dot = bool((ends[0] == ends[1]).all())
            _stick(pen, ends, 1.6 * radius if dot else radius, _faded(colour, sure))
    return np.asarray(canvas.reduce(SCALE))


def _stick(pen: ImageDraw.ImageDraw, ends: Points, radius: float, colour: Colour) -> None:
    """A line with round ends, ``[2, 2]``."""
    (x0, y0), (x1, y1) = ends.tolist()
    pen.line((x0, y0, x1, y1), fill=colour, width=max(1, round(2 * radius)))
    for x, y in ((x0, y0), (x1, y1)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _faded(colour: Colour, sure: float) -> Colour:
    share = min(1.0, sure / SURE)
    red, green, blue = (round(255 + (c - 255) * share) for c in colour)
    return red, green, blue
