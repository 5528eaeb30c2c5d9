"""Rows of pictures in a figure: one row per kind of picture, one column per moment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

Picture = npt.NDArray[np.uint8]

_GAP = 2  # white pixels between pictures


def row_height(frames: Picture, columns: int) -> float:
    """Height of a row of pictures ``[..., H, W, 3]`` as a fraction of its width."""
    height, width = frames.shape[-3:-1]
    return float(height / (columns * width))


def draw_rows(axes: Axes, rows: Mapping[str, Picture], numbers: npt.ArrayLike) -> None:
    """Draw rows as one image, with their names on the left and the frame numbers below.

    Args:
        axes: where to draw.
        rows: uint8 ``[K, H, W, 3]`` each, all of one shape.
        numbers: frame numbers, ``[K]``.
    """
    K, H, W = next(iter(rows.values())).shape[:3]
    page = np.full((len(rows) * (H + _GAP), K * (W + _GAP), 3), 255, np.uint8)
    for r, row in enumerate(rows.values()):
        for c, picture in enumerate(row):
            page[r * (H + _GAP) :, c * (W + _GAP) :][:H, :W] = picture
    axes.imshow(page, interpolation="nearest")
    middles = [r * (H + _GAP) + H / 2 for r in range(len(rows))]
    axes.set_yticks(middles, list(rows), fontsize=7.5)
    axes.set_xticks([c * (W + _GAP) + W / 2 for c in range(K)], list(np.asarray(numbers)), fontsize=7.5)
    axes.tick_params(length=0, pad=1)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
